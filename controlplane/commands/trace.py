"""`vickrey trace`: look at traces, convert them, change their pace, and make them up."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.traces.reader import TraceFile
    from testbed.traces.record import Records
    from testbed.traces.transform import Change

DESCRIPTION = """\
Look at traces, convert them, change their pace, and make them up. Formats are found out from the first lines: marllb,
wikibench, azure2021, azure2019, csv, jsonl, npy; .gz is understood, and - is standard input. Several files are merged
by time. Rows that cannot be read are left out, counted, and the first ten are shown on standard error."""

EXAMPLES = """
  vickrey trace info poisson_for_loop_rate_150.csv
  vickrey trace head wiki.1190146243.gz
  vickrey trace convert azure.csv --from 1h --to 2h --speed 10 -o hour.csv.gz
  vickrey trace convert trace.csv --scale-work 2e-9 --load 0.8 --capacity 16 -o at80.npy
  vickrey trace convert both.csv -o 'balancer{balancer}.csv'
  vickrey trace generate mmpp2 --flows 1000000 --rate 500 --set factor=10 -o bursts.npy
"""

KINDS = "poisson, mmpp2, sine, diurnal, onoff, flash, pareto, mice, wiki"
_CANNOT_PRINT_BOTH = "--json and the trace cannot both go to standard output: name a file with -o"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from controlplane.command import add_json

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    info = actions.add_parser("info", help="what a trace is like", description="Count, span, rate, burstiness, work.")
    head = actions.add_parser("head", help="its first rows", description="Print the first rows.")
    head.add_argument("-n", type=_count, default=10, metavar="ROWS", help="how many (default 10)")
    convert = actions.add_parser(
        "convert", help="another format, pace or part", description="Write a trace in another format, pace or part."
    )
    generate = actions.add_parser(
        "generate",
        help="a made-up trace",
        description=f"Make up a trace. Kinds: {KINDS}; docs/traces.md explains them.",
    )
    for sub in (info, head, convert):
        _add_reading(sub)
    for sub in (convert, generate):
        sub.add_argument(
            "-o", "--output", required=True, metavar="FILE",
            help="NAME.csv, .jsonl or .npy, and .gz for the first two; - is standard output; with {balancer} in it, "
            "one file for each",
        )  # fmt: skip
        sub.add_argument("--output-format", choices=("csv", "jsonl", "npy"), help="instead of what the name says")
    _add_generating(generate)
    for sub in (info, head, convert, generate):
        add_json(sub)


def _add_reading(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("files", nargs="+", metavar="FILE", help="several are merged by time")
    reading = sub.add_argument_group("reading")
    reading.add_argument("--format", default="auto", help="do not guess: marllb, wikibench, azure2021, azure2019, …")
    reading.add_argument(
        "--column", action="append", default=[], metavar="FIELD=NAME[:UNIT]",
        help="where CSV and JSONL have t, work, bytes, key or balancer; units s, ms, us, ns",
    )  # fmt: skip
    reading.add_argument("--durations", metavar="FILE", help="azure2019: the durations that belong to the invocations")
    reading.add_argument("--seed", type=int, default=0, help="azure2019: of what the files leave open (default 0)")
    reading.add_argument("--strict", action="store_true", help="refuse the file at the first bad row")
    reading.add_argument(
        "--reorder", type=_count, default=65536, metavar="ROWS",
        help="how many rows too late one may stand (default 65536); 0: none may",
    )  # fmt: skip
    change = sub.add_argument_group("change")
    change.add_argument("--from", dest="start", type=_duration, metavar="TIME", help="from 10s, 5m … after the start")
    change.add_argument("--to", dest="end", type=_duration, metavar="TIME", help="up to then")
    change.add_argument("--limit", type=_count, metavar="ROWS", help="at most so many")
    change.add_argument("--balancer", type=_count, metavar="N", help="only what arrives at this one")
    change.add_argument("--balancer-per-file", action="store_true", help="the first file arrives at balancer 0, …")
    change.add_argument("--speed", type=float, default=1.0, metavar="X", help="time passes X times as fast")
    change.add_argument("--load", type=float, metavar="RHO", help="the speed that offers this share of --capacity")
    change.add_argument("--capacity", type=float, metavar="WORK", help="work that the servers can do a second")
    change.add_argument("--scale-work", type=float, default=1.0, metavar="X", help="multiply all work")
    change.add_argument("--rebase", action="store_true", help="the first arrival is at 0")


def _add_generating(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("kind", metavar="KIND")
    sub.add_argument("--flows", type=_count, default=100_000, help="rows (default 100000)")
    sub.add_argument("--rate", type=float, default=100.0, help="arrivals a second (default 100)")
    sub.add_argument("--mean-work", type=float, default=0.01, metavar="SECONDS", help="at speed 1 (default 0.01)")
    sub.add_argument("--seed", type=int, default=1, help="(default 1)")
    sub.add_argument("--clients", type=_count, default=0, help="distinct keys (default 0: every flow has its own)")
    sub.add_argument("--balancers", type=_count, default=1, help="where flows arrive, at random (default 1)")
    sub.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the kind")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def _duration(text: str) -> float:
    from controlplane.config_values import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    from controlplane.command import CommandError
    from testbed.traces.record import TraceError

    if args.action in ("convert", "generate") and args.output == "-" and args.json:
        raise CommandError(_CANNOT_PRINT_BOTH, status=2)
    action = {"info": _info, "head": _head, "convert": _convert, "generate": _generate}[args.action]
    try:
        return action(args)
    except TraceError as error:
        raise CommandError(str(error)) from None


def _usage(make: Callable[[], Any]) -> Any:
    """Make something of the arguments; what is wrong with them is bad usage."""
    from controlplane.command import CommandError
    from testbed.traces.record import TraceError

    try:
        return make()
    except TraceError as error:
        raise CommandError(str(error), status=2) from None


class _Reading:
    """The files of a command line, as one trace."""

    def __init__(self, args: argparse.Namespace) -> None:
        from testbed.traces.columns import parse_columns
        from testbed.traces.reader import FORMATS, Options, TraceFile
        from testbed.traces.record import TraceError
        from testbed.traces.transform import Change

        if args.format not in ("auto", *FORMATS):
            self._refuse(f"no format is called '{args.format}': there are {', '.join(FORMATS)}")
        if args.files.count("-") > 1:
            self._refuse("standard input can be read only once")
        _usage(lambda: parse_columns(args.column))
        self.change: Change = _usage(
            lambda: Change(
                start=args.start, end=args.end, balancer=args.balancer, scale_work=args.scale_work, limit=args.limit,
                speed=args.speed, load=args.load, capacity=args.capacity, rebase=args.rebase,
            )
        )  # fmt: skip
        options = Options(
            format=args.format, strict=args.strict, columns=tuple(args.column), durations=args.durations,
            seed=args.seed, reorder=args.reorder,
        )  # fmt: skip
        self._by_file = args.balancer_per_file
        if self.change.passes > 1 and "-" in args.files:
            self._refuse("--load reads the trace twice: standard input is gone after once")
        self.files: list[TraceFile] = []
        try:
            for path in args.files:
                self.files.append(TraceFile(path, options))
        except TraceError:
            self.close()
            raise

    @staticmethod
    def _refuse(message: str) -> None:
        from controlplane.command import CommandError

        raise CommandError(message, status=2)

    def blocks(self) -> Iterator[Records]:
        return self.change.apply(self._merged)

    def _merged(self) -> Iterator[Records]:
        from testbed.traces.order import merged
        from testbed.traces.transform import with_balancer

        sources = [
            with_balancer(file.blocks(), number) if self._by_file else file.blocks()
            for number, file in enumerate(self.files)
        ]
        return sources[0] if len(sources) == 1 else merged(sources)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def report(self) -> None:
        """Say on standard error which rows were left out."""
        import sys

        for file in self.files:
            for problems in (file.problems, file.durations_problems):
                if problems is not None and problems.bad:
                    print(problems, file=sys.stderr)

    def as_json(self) -> list[dict[str, Any]]:
        found = []
        for file in self.files:
            one: dict[str, Any] = {"file": file.name, "format": file.format, "work_unit": file.work_unit}
            one["bad_rows"] = file.problems.as_json()
            if file.durations_problems is not None:
                one["bad_durations"] = file.durations_problems.as_json()
            found.append(one)
        return found


def _info(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from testbed.traces.statistics import Statistics

    reading, statistics = _Reading(args), Statistics()
    for block in reading.blocks():
        statistics.add(block)
    figures = {"files": reading.as_json(), **statistics.as_json()}
    reading.report()
    if args.json:
        print_json(figures)
    else:
        print(described(figures))
    return 0


def described(figures: dict[str, Any]) -> str:
    """Return the figures of a trace for a reader."""
    from controlplane.config_values import format_duration
    from controlplane.table import number, plain_table

    units = {"n": " loop turns", "s": " s"}
    unit = units.get(figures["files"][0]["work_unit"], "") if len(figures["files"]) == 1 else ""
    lines = [f"{one['file']}  {one['format']}" for one in figures["files"]]
    rows, rate = figures["rows"], figures["rate_per_s"]
    lines.append(f"rows        {rows:,}")
    if rows:
        lines.append(f"span        {figures['span_s']:,.6g} s, from {figures['first_ns'] * 1e-9:.6f} s")
    if rate is not None:
        lines.append(f"rate        {rate:,.6g} a second; gaps vary by {figures['interarrival_cv']:.3g} (cv; Poisson 1)")
    for name, of_unit in (("work", unit), ("bytes", "")):
        amount = figures[name]
        if amount["known"] == 0:
            lines.append(f"{name:<11} not known")
            continue
        if amount["known"] < rows:
            of_unit += f", of {amount['known']:,} rows"
        quantiles = "  ".join(f"{key} {amount[key]:.4g}" for key in ("min", "p50", "p90", "p99", "p999", "max"))
        lines += [f"{name:<11} mean {amount['mean']:.6g}{of_unit}, cv {amount['cv']:.3g}", f"{'':<12}{quantiles}"]
    if len(figures["balancers"]) > 1:
        shares = ", ".join(f"{balancer}: {count:,}" for balancer, count in list(figures["balancers"].items())[:20])
        lines.append(f"balancers   {shares}")
    lines.append(f"sha256      {figures['sha256']}")
    if figures["dispersion"]:
        cells = [
            [format_duration(row["window_s"]), number(row["windows"]), f"{row['index']:.3g}"]
            for row in figures["dispersion"]
        ]
        lines += ["", "index of dispersion (variance over mean of the arrivals in a window; Poisson 1)"]
        lines.append(plain_table([">WINDOW", ">WINDOWS", ">INDEX"], cells))
    return "\n".join(lines)


def _head(args: argparse.Namespace) -> int:
    from controlplane.command import print_json
    from controlplane.table import plain_table
    from testbed.traces.record import FIELDS
    from testbed.traces.transform import first_rows

    reading = _Reading(args)
    rows = [row for block in first_rows(reading.blocks(), args.n) for row in block.tolist()]
    reading.report()
    if args.json:
        known = [[None if value != value else value for value in row] for row in rows]
        named = [dict(zip(FIELDS, row, strict=True)) for row in known]
        print_json({"files": reading.as_json(), "rows": named})
        return 0
    columns = [">T (S)", ">WORK", ">BYTES", ">KEY", ">BALANCER"]
    cells = [
        [f"{t * 1e-9:.9f}", "-" if w != w else f"{w:.9g}", str(size), f"{key:016x}", str(balancer)]
        for t, w, size, key, balancer in rows
    ]
    print(plain_table(columns, cells))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from testbed.traces.writer import format_of

    _usage(lambda: format_of(args.output, args.output_format))
    reading = _Reading(args)
    written = _write(args, reading.blocks())
    reading.report()
    return _say_written(args, written, {"files": reading.as_json()})


def _generate(args: argparse.Namespace) -> int:
    from testbed.traces.generate import Recipe, generate
    from testbed.traces.writer import format_of

    _usage(lambda: format_of(args.output, args.output_format))
    recipe: Recipe = _usage(
        lambda: Recipe(
            args.kind, flows=args.flows, seed=args.seed, rate=args.rate, mean_work=args.mean_work,
            clients=args.clients, balancers=args.balancers, shape=_shape(args.set),
        )
    )  # fmt: skip
    written = _write(args, generate(recipe))
    return _say_written(args, written, {"kind": recipe.kind, "seed": recipe.seed, "parameters": recipe.parameters})


def _shape(pairs: list[str]) -> dict[str, float]:
    from testbed.traces.record import TraceError

    shape = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            shape[name] = float(value)
        except ValueError:
            raise TraceError(f"--set '{pair}': expected NAME=VALUE, and a number") from None
    return shape


def _write(args: argparse.Namespace, blocks: Iterator[Records]) -> list[dict[str, Any]]:
    """Write one file, or one for each balancer; return what was written."""
    from contextlib import ExitStack

    from testbed.traces.order import by_balancer
    from testbed.traces.record import TraceError
    from testbed.traces.writer import Writer

    is_split = "{balancer}" in args.output
    most = 256  # open files
    with ExitStack() as stack:
        writers: dict[int, Writer] = {}
        if not is_split:
            writers[0] = stack.enter_context(Writer(args.output, args.output_format))
            writers[0].write_all(blocks)
        else:
            for balancer, records in by_balancer(blocks):
                if balancer not in writers:
                    if len(writers) == most:
                        raise TraceError(f"more than {most} balancers: too many files")
                    name = args.output.replace("{balancer}", str(balancer))
                    writers[balancer] = stack.enter_context(Writer(name, args.output_format))
                writers[balancer].write(records)
    return [
        {"file": writer.path, "format": writer.format, "rows": writer.rows, "sha256": writer.checksum}
        for _, writer in sorted(writers.items())
    ]


def _say_written(args: argparse.Namespace, written: list[dict[str, Any]], more: dict[str, Any]) -> int:
    import sys

    from controlplane.command import print_json

    if args.json:
        print_json({**more, "written": written})
        return 0
    for one in written:
        out = sys.stderr if one["file"] == "-" else sys.stdout
        print(f"{one['file']}: {one['rows']:,} rows, {one['format']}, sha256 {one['sha256']}", file=out)
    return 0
