"""Run the chaos suite from the command line: `python -m tests.chaos`, or `make chaos`."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.cycles import run
from tests.chaos.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Run what was asked for; the last line is one JSON object. Return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to have the same faults and events")
    parser.add_argument("--faults", type=_kinds, default=tuple(FAULTS), help=f"some of {','.join(FAULTS)}")
    chosen = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed
    folder = Path(tempfile.mkdtemp(prefix="xplat-chaos-"))
    figures = run(folder, cycles=chosen.cycles, seed=seed, kinds=chosen.faults)
    ok = figures.pop("ok")
    if ok:
        shutil.rmtree(folder)
    else:
        sys.stderr.write(f"failed: {figures['failed']}\nlogs are kept in {folder}\n")
    sys.stderr.flush()
    print(json.dumps(figures), flush=True)
    return 0 if ok else 1


def _kinds(text: str) -> Sequence[str]:
    kinds = tuple(text.split(","))
    if unknown := sorted({*kinds} - FAULTS.keys()):
        message = f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}"
        raise argparse.ArgumentTypeError(message)
    return kinds


if __name__ == "__main__":
    sys.exit(main())
