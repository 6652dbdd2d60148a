"""Agents that learn to correct the best known policy, one file each; `vickrey[rl]`. docs/learning.md explains them."""
