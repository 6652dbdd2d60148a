"""Training of learned policies: `vickrey train`. docs/learning.md explains it.

config         hyper-parameters, one YAML an agent (configs/)
tasks          what to train in: scenarios, or farms drawn at random
episodes       vectors of paired episodes: the agent's, and the base policy's on the same arrivals
jobs, workers  rollouts and evaluations as pure functions, over processes or a Ray cluster
sampler        rollouts for agents that learn by gradients
gradient, arms, offline        the loops, and the evolution strategy's in learners; trainer what they have in common
checkpoints    what a run leaves behind, and how it is resumed
"""
