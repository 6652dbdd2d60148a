"""The control plane: it observes, decides and writes the parameters of the bids."""
