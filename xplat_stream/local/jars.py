"""Jars from Maven that may run: exactly those of a lock file, by name and sha256.

jgo resolves and fetches the jars into its own cache. What it resolves is not taken on trust: every file name and
sha256 has to be the one in the lock file, and exactly those files are the class path. (Without that, naming
log4j in the endpoint silently gives a kafka-clients of another version, and the broker dies at its first request.)
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INSTALL: Final = "Install it: pip install 'xplat-stream[local]', or set XPLAT_KAFKA__BOOTSTRAP to a Kafka you run."


class JarLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one set of jars that may run."""

    name: str
    """What they are together, in a word."""
    version: str
    endpoint: str
    """What jgo is asked for: Maven coordinates joined by ``+``."""
    jars: dict[str, str]
    """File name → sha256."""


def read_lock(path: Path) -> JarLock:
    """Read a lock file that is part of this project."""
    return msgspec.json.decode(path.read_bytes(), type=JarLock)


def locked_jars(lock: JarLock, note: Path, report: Callable[[str], None]) -> list[Path]:
    """Return the checked jars; where they were found last time (`note`) spares asking jgo again.

    Raises `StackError`.
    """
    try:
        jars = [Path(jar) for jar in msgspec.json.decode(note.read_bytes(), type=list[str])]
        complete = {jar.name for jar in jars} == lock.jars.keys() and all(jar.is_file() for jar in jars)
    except (OSError, msgspec.DecodeError):
        complete = False
    if not complete:
        report(f"{lock.name} {lock.version}: installing {len(lock.jars)} jars where jgo has not cached them")
        jars = _resolve(lock)
    check_jars(jars, lock)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_bytes(msgspec.json.encode([str(jar) for jar in jars]))
    return jars


def check_jars(jars: Sequence[Path], lock: JarLock) -> None:
    """Refuse any set of jars but the locked one. Raises `StackError`."""
    found = {jar.name: jar for jar in jars}
    missing = sorted(lock.jars.keys() - found.keys())
    foreign = sorted(found.keys() - lock.jars.keys())
    if missing or foreign:
        raise StackError(
            f"the jars of {lock.name} are not the known ones: missing {', '.join(missing) or 'none'}; "
            f"unknown {', '.join(foreign) or 'none'}",
            where=str(jars[0].parent) if jars else "jgo",
            expected=f"the {len(lock.jars)} jars of its lock file",
            fix="Remove that folder and run the command again.",
        )
    for name, jar in sorted(found.items()):
        try:
            actual = hashlib.sha256(jar.read_bytes()).hexdigest()
        except OSError as error:
            raise StackError(
                f"a jar of {lock.name} cannot be read: {error}",
                where=str(jar),
                expected="a readable file",
                fix="Give this user read permission, or remove the folder and run the command again.",
            ) from error
        if actual != lock.jars[name]:
            raise StackError(
                f"{name} is not the published file: its sha256 is {actual}",
                where=str(jar),
                expected=lock.jars[name],
                fix="Nothing was started. Remove that folder and the same jar under ~/.m2, then run the command again.",
            )


def _resolve(lock: JarLock) -> list[Path]:
    try:
        jgo = importlib.import_module("jgo")  # only here: it takes half a second to import
    except ImportError as error:
        raise StackError(
            f"{lock.name} cannot be fetched: {error}",
            where="jgo",
            expected="the package jgo",
            fix=INSTALL,
        ) from error
    try:
        environment = jgo.build(lock.endpoint)
    except Exception as error:  # jgo documents no error of its own
        raise StackError(
            f"{lock.name} cannot be fetched: {type(error).__name__}: {error}",
            where=lock.endpoint,
            expected="a Maven repository that answers",
            fix="Check the network and ~/.m2/settings.xml, or set XPLAT_KAFKA__BOOTSTRAP to a Kafka you run.",
        ) from error
    return [Path(jar) for jar in [*environment.classpath, *environment.module_path_jars]]
