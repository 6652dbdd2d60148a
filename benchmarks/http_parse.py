"""What a head costs, in nanoseconds (and instructions, where the kernel counts): `python benchmarks/http_parse.py`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.c_build import build_c, run_c

SOURCES = ["http_fields", "http_request", "http_response", "http_websocket", "http_write"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    arguments = parser.parse_args()
    program = build_c("http_parse", ["benchmarks/http_parse.c", *(f"dataplane/socket/{s}.c" for s in SOURCES)])
    done = run_c(program, 20_000 if arguments.quick else 200_000)
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
