"""Every error this project raises on purpose.

    XplatError
    ├── RejectedEvent        one record is not an event; carries the dead-letter reason
    ├── OperatorError        a person has to act: says what, where, what was expected, what to do
    │   ├── SettingsError    a setting is unknown, malformed or contradicts another
    │   ├── KafkaUnavailable   no broker answers                                     retriable
    │   ├── TopicMismatch    topics are missing or differ in their partition count
    │   ├── TritonUnavailable  no model server answers, or it refuses                retriable
    │   ├── ReleaseError     a model release is incomplete, altered or does not answer as recorded
    │   ├── StackError       the local stack cannot be installed, started or stopped
    │   ├── DataError        an input folder or file of the user cannot be read
    │   └── StateError       a worker's state folder is unusable
    ├── WorkerStop           the worker cannot keep its promise and stops; a restart is the cure
    │   ├── DamagedState       what RocksDB holds cannot be read or written any more
    │   ├── OffsetGap          records between two chunks were never handled
    │   ├── StalledWorker      there is work, and none gets done
    │   └── LostLease          the process stood still so long that its partitions are another's
    ├── DeliveryError        records were not acknowledged by Kafka; carries how many
    └── InvalidScores        a model answered with something that is not a score          retriable

Policy is in the type: `retriable` says whether the same call may succeed later without anyone acting, `exit_code` how
a worker ends that meets the error. The command line prints an `OperatorError` as one line and leaves with exit code 2.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OPERATOR = 2
# From sysexits.h where it has the meaning; 71 and 72 stand for others there. docs/how-to/operate.md lists them.
EXIT_UNAVAILABLE = 69
EXIT_SOFTWARE = 70
EXIT_STALLED = 71
EXIT_LEASE = 72
EXIT_STATE = 74
EXIT_DELIVERY = 75
EXIT_GAP = 76


class XplatError(Exception):
    """Root of every error raised on purpose."""

    retriable: ClassVar[bool] = False
    exit_code: ClassVar[int] = EXIT_SOFTWARE


class RejectedEvent(XplatError):  # noqa: N818 - named after the record's fate, as in the dead-letter topic
    """A record that is not an admissible event.

    `reason` is one of the closed list in `xplat_stream.adapters.REASONS`; `detail` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class OperatorError(XplatError):
    """Something only a person can put right, told in one line."""

    exit_code = EXIT_OPERATOR

    def __init__(self, what: str, *, where: str, expected: str, fix: str) -> None:
        super().__init__(f"{what} ({where}); expected {expected}. {fix}")
        self.what = what
        self.where = where
        self.expected = expected
        self.fix = fix


class SettingsError(OperatorError):
    """A setting is unknown, malformed or contradicts another."""


class KafkaUnavailable(OperatorError):  # noqa: N818 - the state of the broker, as aiokafka and kopf name theirs
    """No broker answers at the given address."""

    retriable = True
    exit_code = EXIT_UNAVAILABLE


class TopicMismatch(OperatorError):  # noqa: N818 - says what is wrong with the topics
    """Topics are missing, or topics keyed by user differ in their partition count."""


class TritonUnavailable(OperatorError):  # noqa: N818 - the state of the server
    """No Triton answers at the given address, or it refuses the call."""

    retriable = True
    exit_code = EXIT_UNAVAILABLE


class ReleaseError(OperatorError):
    """A model release is incomplete, altered, or does not answer as recorded."""


class StackError(OperatorError):
    """The local stack cannot be installed, started or stopped."""


class DataError(OperatorError):
    """An input folder or file of the user cannot be read."""


class StateError(OperatorError):
    """A worker's state folder cannot be used."""


class WorkerStop(XplatError):  # noqa: N818 - what happens, not what is wrong
    """A worker cannot keep its promise any longer: it stops, and whoever starts next reads the chunk again."""


class DamagedState(WorkerStop):
    """RocksDB cannot read or write a partition's state: a damaged file, a full disk."""

    exit_code = EXIT_STATE


class OffsetGap(WorkerStop):
    """A chunk does not begin where the last one ended: records in between were never handled."""

    exit_code = EXIT_GAP


class StalledWorker(WorkerStop):
    """There are records to handle and none was handled for too long."""

    exit_code = EXIT_STALLED


class LostLease(WorkerStop):
    """The process stood still for so long that its partitions may belong to another worker."""

    exit_code = EXIT_LEASE


class DeliveryError(XplatError):
    """Records were handed to Kafka and not acknowledged. `left` counts them."""

    exit_code = EXIT_DELIVERY

    def __init__(self, message: str, *, left: int) -> None:
        super().__init__(message)
        self.left = left


class InvalidScores(XplatError):  # noqa: N818 - named after what the model sent
    """A model answered with NaN, the wrong shape or a value outside [0, 1]."""

    retriable = True
