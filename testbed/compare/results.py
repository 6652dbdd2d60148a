"""`python -m testbed.compare.results`: run the shipped scenarios and write docs/results.md from what they came to.

Scenarios that are named are run, and only their sections are written anew; without names all are. The full reports go
to results/SCENARIO.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from controlplane.command import CommandError
from controlplane.commands.compare import QUICK_S, needs_plotly, takes_s
from controlplane.config_errors import ConfigError
from testbed.compare import tables
from testbed.compare.outcome import document, ratio_of
from testbed.compare.report import Writer
from testbed.compare.runner import Runner
from testbed.compare.scenario_file import library, load
from testbed.interrupts import Deferred
from testbed.processes import StartError

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "results.md"

_HEAD = """\
# Results: Vickrey beside HAProxy, nginx and Envoy

What `vickrey compare` measured in the scenarios that come with Vickrey: real servers and real balancers on loopback,
open-loop load, the same arrivals and demands for everybody, interleaved rounds, every balancer freshly started. Wins
and losses alike. This page is written by

```console
$ make results                          # all of it: about {minutes:.0f} minutes
$ make results QUICK=1                  # one short round of each
$ make results ARGS="failure heavy-tail"    # only these sections
```

and one scenario, with plots over time, by `vickrey compare SCENARIO`. What the columns mean stands
[below](#how-to-read-it). The machine matters: every section says which one it was, when, and how busy it was with
other things. Ratios are paired within a round, so arrivals and demands cancel; what else the machine did while one
balancer ran does not, for they run one after another.

## In short

Mean and p99 of `vickrey adaptive`, which is told nothing, over those of the best rival: the one with the lowest mean
among those that were told nothing either, and among those that were told the true weights and, where they can use
them, worker counts. Below 1: Vickrey is ahead. In brackets 95 % intervals.
"""

_READ = f"""\
## How to read it

{tables.LEGEND}

Every competitor runs with one worker, upstream connections reused, and the configuration that `vickrey compare` leaves
in `configurations/` of its report: HAProxy `leastconn`, nginx `least_conn` and `random two least_conn`, Envoy
`LEAST_REQUEST` of two and of all; the told ones beside them. The *central queue* and *least work left* are simulated on
the same arrivals, with the servers' lateness and the path's overhead as measured; *over the path* a worker also waits
for the way of its answer and of the next request, as behind any balancer that sends one to a free worker alone. Least
work left knows every demand in advance, and minimises the time of the flow at hand, not of those to come.
"""

_WORDS = {
    "behind": "Behind",
    "level": "Level (the interval has 1 in it)",
    "unknown": "Not known (too short for an interval)",
    "none": "Not compared (no round that both have)",
}
_COLUMNS = ["scenario", ">mean ms", "told nothing", ">mean", ">p99", "told the truth", ">mean", ">p99", "aim"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.compare.results", description=(__doc__ or "").strip())
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(library())} (default: all)")
    parser.add_argument("--quick", action="store_true", help=f"one round of {QUICK_S:g} s each")
    parser.add_argument("--rounds", type=int, help="rounds (default: the scenario's)")
    parser.add_argument("--seconds", type=float, help="length of a run's counted part (default: the scenario's)")
    parser.add_argument("--out", default="results", help="folder of the reports (default results)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (default docs/results.md)")
    args = parser.parse_args(argv)
    needs_plotly()
    names = args.scenarios or library()
    try:
        scenarios = {name: load(name) for name in names}
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    for name in names:
        scenario = scenarios[name]
        if args.quick or args.rounds:
            scenario = scenario.model_copy(update={"rounds": args.rounds or 1})
        if args.quick or args.seconds:
            scenario = scenario.lasting(args.seconds or QUICK_S)
        scenarios[name] = scenario
    print(f"about {sum(map(takes_s, scenarios.values())) / 60:.0f} minutes", file=sys.stderr)
    failed = False
    for name, scenario in scenarios.items():
        print(f"\n{name}", file=sys.stderr, flush=True)
        writer = Writer(f"{args.out}/{name}")
        try:
            with Deferred() as signals:
                found = Runner(scenario, say=lambda line: print(line, file=sys.stderr, flush=True)).run(signals)
                if not found.interrupted:
                    outcome = document(name, found)
                    writer.write(outcome, found)
                    update(args.page, outcome)
        except (StartError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        if found.interrupted:  # an unfinished scenario tells nothing that belongs on the page
            print("interrupted; the page has what was finished before", file=sys.stderr)
            return 1
        failed |= bool(found.failed) or not all(one["valid_rounds"] for one in outcome["balancers"])
    print(args.page)
    return 1 if failed else 0


def update(page: Path, outcome: dict[str, Any]) -> None:
    """Write one scenario's section and its line of the summary anew, and keep those of the others."""
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    sections = dict(re.findall(r"<!-- scenario: (\S+) -->\n(.*?)<!-- end -->\n", old, re.DOTALL))
    rows = re.findall(r"^(\| \[[^\]]+\]\(#([^)]+)\) .*)$", old, re.MULTILINE)
    lines = {name: line for line, name in rows}
    name = outcome["scenario"]
    sections[name] = section(outcome)
    columns, row = summary(outcome)
    table = tables.markdown(columns, [row]).splitlines()
    lines[name] = table[2]
    shown = [one for one in library() if one in sections]
    shown += sorted(set(sections) - set(shown))  # of files that do not come with Vickrey
    minutes = sum(takes_s(load(one)) for one in library()) / 60
    parts = [
        _HEAD.format(minutes=minutes),
        "\n".join([*table[:2], *(lines[one] for one in shown if one in lines)]) + "\n",
        *(f"<!-- scenario: {one} -->\n{sections[one]}<!-- end -->\n" for one in shown),
        _READ,
    ]
    page.write_text("\n".join(parts), encoding="utf-8")


def summary(outcome: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The scenario in a row: against the rivals that knew nothing and those that knew the truth."""
    ours = next((one for one in outcome["balancers"] if one["name"] == outcome["base"]), None)
    row = [f"[{outcome['scenario']}](#{outcome['scenario']})", f"{ours['mean']:.1f}" if ours else "-"]
    means = {one["name"]: one["mean"] for one in outcome["balancers"]}
    for told in (False, True):
        rivals = [line for line in outcome["verdict"] if line["told"] == told]
        if not rivals:
            row += ["-", "-", "-"]
            continue
        best = min((line["theirs"] for line in rivals), key=lambda name: means[name])
        row.append(best)
        row += [str(ratio_of(line)) for line in rivals if line["theirs"] == best]
    judged = [line["meets"] for line in outcome["verdict"] if line["meets"] is not None]
    missed = judged.count(False)
    row.append("-" if not judged else "met" if not missed else f"missed in {missed} of {len(judged)}")
    return _COLUMNS, row


def section(outcome: dict[str, Any]) -> str:
    """One scenario, for the page."""
    settings = outcome["settings"]
    command = f"$ vickrey compare {outcome['scenario']} --rounds {settings['rounds']} --seconds {settings['seconds']}"
    parts = [
        f'<a id="{outcome["scenario"]}"></a>\n\n## {outcome["title"]}',
        outcome["shows"].strip(),
        f"```console\n{command} --seed {settings['seed']}\n```",
        f"{tables.heading(outcome)}. Measured {outcome['when']} on {outcome['machine']}.",
        *(f"> {line}" for line in outcome["notes"]),
        tables.markdown(*tables.main_table(outcome)),
    ]
    kinds = tables.kinds_table(outcome)
    if kinds:
        parts.append(tables.markdown(*kinds))
    parts.append(not_ahead(outcome))
    return "\n\n".join(part for part in parts if part) + "\n\n"


def not_ahead(outcome: dict[str, Any]) -> str:
    """Where `vickrey adaptive` was not clearly ahead of the best setting of a competitor, in words."""
    if not outcome["verdict"]:
        return ""
    found: dict[str, list[str]] = {word: [] for word in _WORDS}
    for line in outcome["verdict"]:
        if line["ratio"] is None:
            found["none"].append(f"{line['figure']} of {line['theirs']}")
        elif line["word"] != "ahead":
            found[line["word"]].append(f"{line['figure']} {ratio_of(line)} of {line['theirs']}")
    texts = [f"{_WORDS[word]}: {'; '.join(lines)}." for word, lines in found.items() if lines]
    if not texts:
        return "Ahead of the best setting of every competitor, in mean and p99."
    if any(line["word"] == "ahead" for line in outcome["verdict"]):
        texts.append("Ahead of the best setting of every competitor in the rest.")
    return " ".join(texts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (CommandError, KeyboardInterrupt) as problem:
        print(f"results: {problem or 'interrupted'}", file=sys.stderr)
        sys.exit(1)
