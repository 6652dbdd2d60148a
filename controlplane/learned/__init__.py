"""Learned policies where they are used: what they see and may do, their files, their networks in plain numpy.

Nothing here needs torch: the machine that balances has none. Training: controlplane/agents, controlplane/training.
"""
