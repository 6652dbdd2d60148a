"""The game-theoretic balancer: the auction of the seed documents, its learning, its cooperative side and its ledger."""
