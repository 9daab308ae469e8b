"""Fail where a file of the package has too few of its lines run by the tests.

python -m slipcover --json --out coverage.json -m pytest && python tests/coverage_floor.py coverage.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FLOOR = 85.0  # percent of the lines of each file


def below(report: dict) -> dict[str, float]:
    """Percent of the lines that ran, of each file with less than the floor: the least first."""
    shares = {name: file["summary"]["percent_covered"] for name, file in report["files"].items()}
    return {name: share for name, share in sorted(shares.items(), key=lambda item: item[1]) if share < FLOOR}


def main(path: str) -> int:
    """Print what is below the floor and the total; the exit status."""
    report = json.loads(Path(path).read_text())
    if not report["files"]:
        print("Expected the coverage of at least one file, found none.")
        return 1
    low = below(report)
    for name, share in low.items():
        print(f"{name}: {share:.1f} % of the lines run in tests, expected {FLOOR:.0f} % or more")
    print(f"{len(report['files'])} files, {report['summary']['percent_covered']:.1f} % of their lines run in tests")
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
