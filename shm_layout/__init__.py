"""The shared memory segment between data plane and control plane: one C header, and the Python face built from it."""
