"""The data plane: C sources and their cffi face. core/ balances; socket/ and sim/ are engines around it."""
