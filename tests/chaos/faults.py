"""The faults. Each breaks something and heals it again; its choices are the seed's.

Sleeping is what a fault is made of here: how long a network is gone is the fault, not a wait for something.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.proxy import Mode
from tests.chaos.traffic import repeated, with_oversize
from tests.tiny_release import announce_release

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.chaos.fleet import Fleet
    from tests.chaos.stack import Stack
    from tests.chaos.traffic import Record
    from tests.tiny_release import Published


class Scene(NamedTuple):
    """What there is to break."""

    stack: Stack
    fleet: Fleet
    good: Published
    """The release that is announced."""
    nan: Published
    """One whose head answers NaN for most windows."""


def kill(scene: Scene, chance: random.Random) -> float:
    """`kill -9`: of the working process alone, or of everything at once."""
    slot = chance.choice(scene.fleet.wanted)
    if chance.random() < 0.5:
        with suppress(ProcessLookupError):
            os.kill(slot.running.line[-1], signal.SIGKILL)
        return time.monotonic()
    with scene.fleet.down(slot):
        return time.monotonic()


def stop(scene: Scene, chance: random.Random) -> float:
    """Pause a worker for longer than its session lasts, as a suspended machine."""
    slot = chance.choice(scene.fleet.wanted)
    worker = slot.running
    worker.signal_line(signal.SIGSTOP)
    time.sleep(scene.stack.settings.worker.session_timeout_s + chance.uniform(2, 5))
    worker.signal_line(signal.SIGCONT)
    return time.monotonic()


def storm(scene: Scene, chance: random.Random) -> float:
    """Let workers join and leave one after another, and end with as many as before."""
    fleet = scene.fleet
    before = len(fleet.wanted)
    for _ in range(chance.randrange(3, 6)):
        if fleet.free and (len(fleet.wanted) == 1 or chance.random() < 0.5):
            fleet.join(chance.choice(fleet.free))
        else:
            fleet.leave(chance.choice(fleet.wanted))
        time.sleep(chance.uniform(0, 2))
    while len(fleet.wanted) > before:
        fleet.leave(chance.choice(fleet.wanted))
    while len(fleet.wanted) < before:
        fleet.join(chance.choice(fleet.free))
    return time.monotonic()


def state(scene: Scene, chance: random.Random) -> float:
    """Lose a host with its disk."""
    with scene.fleet.down(chance.choice(scene.fleet.wanted)) as folder:
        shutil.rmtree(folder, ignore_errors=True)
        return time.monotonic()


def broker_restart(scene: Scene, chance: random.Random) -> float:
    """End the broker, by force or not, and start it again with its disk."""
    scene.stack.kafka.end(chance.choice((signal.SIGKILL, signal.SIGTERM)))
    time.sleep(chance.uniform(0, 2))
    scene.stack.kafka.start()
    return time.monotonic()


def broker_refused(scene: Scene, _: random.Random) -> float:
    """Refuse the workers every connection to the broker for five seconds."""
    scene.stack.kafka_proxy.switch(Mode.REFUSE)
    time.sleep(5)
    scene.stack.kafka_proxy.switch(Mode.PASS)
    return time.monotonic()


def broker_blackhole(scene: Scene, chance: random.Random) -> float:
    """Let nothing through to or from the broker, and keep every connection open."""
    scene.stack.kafka_proxy.switch(Mode.BLACKHOLE)
    time.sleep(chance.uniform(8, 12))
    scene.stack.kafka_proxy.switch(Mode.PASS)
    return time.monotonic()


def triton_kill(scene: Scene, chance: random.Random) -> float:
    """`kill -9` Triton, and start it again a little later."""
    scene.stack.triton.end(signal.SIGKILL)
    time.sleep(chance.uniform(0, 4))
    scene.stack.start_triton()
    return time.monotonic()


def triton_drip(scene: Scene, chance: random.Random) -> float:
    """Let Triton's answers come a few bytes at a time, far past every deadline."""
    scene.stack.triton_proxy.switch(Mode.DRIP, bytes_per_s=chance.choice((1, 20, 200)))
    time.sleep(chance.uniform(4, 8))
    scene.stack.triton_proxy.switch(Mode.PASS)
    return time.monotonic()


def triton_nan(scene: Scene, chance: random.Random) -> float:
    """Announce a release that answers NaN for windows longer than its golden ones, then the good one again."""
    announce_release(scene.stack.settings, *scene.nan)
    time.sleep(chance.uniform(4, 6))
    announce_release(scene.stack.settings, *scene.good)
    return time.monotonic()


def disk_full(scene: Scene, chance: random.Random) -> float:
    """Leave a worker no room for its state: its small disk is filled, or its files may not grow."""
    slot = chance.choice(scene.fleet.wanted)
    seconds = chance.uniform(3, 6)
    if scene.fleet.disks_are_small:
        ballast = slot.disk / "ballast"
        _fill(ballast)
        time.sleep(seconds)
        ballast.unlink()
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with suppress(ProcessLookupError):
            pid = slot.running.line[-1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, hard))
            time.sleep(seconds)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    return time.monotonic()


def _fill(ballast: Path) -> None:
    """Write until the disk takes no more; what others free meanwhile is taken too."""
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 1 << 12):
            try:
                while True:
                    file.write(bytes(block))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def bit_flip(scene: Scene, chance: random.Random) -> float:
    """Kill a worker and turn over single bits in the files of a partition's state."""
    with scene.fleet.down(chance.choice(scene.fleet.wanted)) as folder:
        for file in _some_files(folder, chance):
            content = bytearray(file.read_bytes())
            for _ in range(3):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(content)
        return time.monotonic()


def truncate(scene: Scene, chance: random.Random) -> float:
    """Kill a worker and cut off the files of a partition's state, or take them away."""
    with scene.fleet.down(chance.choice(scene.fleet.wanted)) as folder:
        for file in _some_files(folder, chance):
            kept = chance.choice((None, 0, chance.randrange(file.stat().st_size)))
            if kept is None:
                file.unlink()
            else:
                os.truncate(file, kept)
        return time.monotonic()


def _some_files(folder: Path, chance: random.Random) -> list[Path]:
    """Draw a few files with content, of any kind, from one partition's folder."""
    partitions = sorted(one for one in folder.glob("partition-*") if one.is_dir() and ".corrupt" not in one.name)
    if not partitions:  # it was killed before it owned any
        return []
    files = sorted(one for one in chance.choice(partitions).iterdir() if one.is_file() and one.stat().st_size)
    return chance.sample(files, min(len(files), chance.randrange(1, 4)))


def nothing(_scene: Scene, _chance: random.Random) -> float:
    """Break nothing: the fault is in what the producers send."""
    return time.monotonic()


class Fault(NamedTuple):
    """What goes wrong in a cycle."""

    breaks: Callable[[Scene, random.Random], float]
    """Break, heal, and return when it was healed (`time.monotonic`)."""
    sends: Callable[[Sequence[Record], random.Random], Sequence[Record]] = lambda records, _: records
    producer: Mapping[str, Any] = {}
    """Options of librdkafka in which the producer differs from the SDK's."""


FAULTS: dict[str, Fault] = {
    "kill": Fault(kill),
    "stop": Fault(stop),
    "storm": Fault(storm),
    "state": Fault(state),
    "broker-restart": Fault(broker_restart),
    "broker-refused": Fault(broker_refused),
    "broker-blackhole": Fault(broker_blackhole),
    "triton-kill": Fault(triton_kill),
    "triton-drip": Fault(triton_drip),
    "triton-nan": Fault(triton_nan),
    "disk-full": Fault(disk_full),
    "bit-flip": Fault(bit_flip),
    "truncate": Fault(truncate),
    "duplicates": Fault(nothing, sends=repeated),
    "oversize": Fault(nothing, sends=with_oversize),
    "foreign": Fault(nothing, producer={"partitioner": "consistent_random"}),
}
"""Every kind, by the name `--faults` takes."""
