"""The balancers side by side in a comparison, each configured as its own users would call good."""
