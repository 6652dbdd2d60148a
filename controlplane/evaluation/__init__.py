"""`vickrey eval`: a policy against every heuristic at its tuned best, in all scenarios of a suite, on paired seeds.

    suite           which scenarios, how often; reads suites/*.yaml
    rivals          the heuristics, and what of each may be tuned
    tuning          the best options of each by family of scenarios, on seeds of their own; kept in a cache
    measure         the runs: policies and references × scenarios × seeds
    statistics      paired ratios, one-sided bounds, Holm
    gate            whether a policy may ship, and why not
    outcome         everything found, as one document; what of it belongs in a policy's manifest
    tables, report  the same for a terminal, and as a page with plots, JSON and CSV
    published       what MARLLB and the Markov-potential-game paper report, as data
    reproduce       their test beds in the simulator

The simulator is dataplane/simulator, its scenarios are controlplane/simulation's. Nothing here needs torch.
"""
