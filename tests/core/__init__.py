"""The balancing core, against models and papers."""
