"""The data plane: the balancing core and its engines, in C, and their thin Python faces."""
