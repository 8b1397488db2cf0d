"""The chaos suite and its sisters: `make chaos`, `make fresh-groups`, `make soak`, `make release-faults`."""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.cycles import run as run_cycles
from tests.chaos.faults import FAULTS
from tests.chaos.fresh_groups import run as run_starts
from tests.chaos.releases import DEATHS
from tests.chaos.releases import run as run_releases
from tests.chaos.soak import run as run_soak

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def main() -> int:
    """Run what was asked for; the last line is one JSON object. Return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="of a run to be repeated")
    programs = parser.add_subparsers(dest="program", required=True)
    cycles = programs.add_parser("cycles", parents=[common], help="one fault after another")
    cycles.add_argument("--cycles", type=int, default=10)
    cycles.add_argument("--faults", type=_kinds, default=tuple(FAULTS), help=f"some of {','.join(FAULTS)}")
    fresh = programs.add_parser("fresh-groups", parents=[common], help="groups with nothing committed")
    fresh.add_argument("--starts", type=int, default=10)
    releases = programs.add_parser("releases", help="somebody dies at the steps of a release")
    releases.add_argument("--deaths", type=_deaths, default=tuple(DEATHS), help=f"some of {','.join(DEATHS)}")
    soak = programs.add_parser("soak", parents=[common], help="half load for long")
    soak.add_argument("--minutes", type=float, default=30.0)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leave no server and no mount behind
    folder = Path(tempfile.mkdtemp(prefix="xplat-chaos-"))
    figures = _figures(folder, chosen)
    ok = figures.pop("ok")
    if ok:
        shutil.rmtree(folder)
    else:
        sys.stderr.write(f"failed: {figures['failed']}\nlogs are kept in {folder}\n")
    sys.stderr.flush()
    print(json.dumps(figures), flush=True)
    return 0 if ok else 1


def _figures(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    if chosen.program == "cycles":
        return run_cycles(folder, cycles=chosen.cycles, seed=chosen.seed, kinds=chosen.faults)
    if chosen.program == "fresh-groups":
        return run_starts(folder, starts=chosen.starts, seed=chosen.seed)
    if chosen.program == "releases":
        return run_releases(folder, names=chosen.deaths)
    return run_soak(folder, minutes=chosen.minutes, seed=chosen.seed)


def _kinds(text: str) -> Sequence[str]:
    return _some_of(FAULTS, text)


def _deaths(text: str) -> Sequence[str]:
    return _some_of(DEATHS, text)


def _some_of(known: Iterable[str], text: str) -> Sequence[str]:
    kinds = tuple(text.split(","))
    if unknown := sorted({*kinds} - {*known}):
        message = f"no such fault: {', '.join(unknown)}; there are {', '.join(known)}"
        raise argparse.ArgumentTypeError(message)
    return kinds


if __name__ == "__main__":
    sys.exit(main())
