"""Replay: a trace against a real server, open loop, and a report on what became of it.

source      a trace file or a made-up trace, at a speed or a load, as requests
queries     what the rows of a trace ask for, word for word
capacity    what servers can do: as they say, or as measured
run         the run, which Ctrl-C may end at any moment
live        progress and percentiles while it runs
results     figures, per request, as a histogram, in words
report      the HTML page
origin      where the figures come from: commit, machine, load, configuration
"""
