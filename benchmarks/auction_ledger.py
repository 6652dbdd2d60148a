"""How many records a second the ledger appends and verifies, CPU time of this process; the best of five runs.

python benchmarks/auction_ledger.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.auction.ledger import Ledger, verify

RECORDS = 20_000


def main() -> None:
    appended = verified = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for run in range(5):
            path = Path(folder) / f"ledger-{run}"
            begun = time.process_time()
            with Ledger(path) as ledger:
                for i in range(RECORDS):
                    ledger.append("auction", round=i, server="web-3", bid=12.5, price=13.25, sla="gold")
            appended = max(appended, RECORDS / (time.process_time() - begun))
            begun = time.process_time()
            verify(path)
            verified = max(verified, RECORDS / (time.process_time() - begun))
    print(f"appended {appended:,.0f} records/s, verified {verified:,.0f} records/s")


if __name__ == "__main__":
    main()
