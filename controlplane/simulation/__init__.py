"""`vickrey sim`: scenarios in YAML, policies × seeds over all cores, figures with confidence intervals, a report.

    scenario        what may stand in a scenario's file, and the simulator's World it describes
    scenario_file   finds and reads one: a path, or a name from scenarios/; errors with line and column
    runs            one run of one policy with one seed, and its figures
    pool            many runs over all cores
    intervals       means over seeds with 95 % confidence intervals, paired differences
    outcome         everything found, as one document; the tables on the terminal
    svg, page       plots, and the files of --out

The simulator itself is dataplane/simulator. Nothing of this is imported by a balancer.
"""
