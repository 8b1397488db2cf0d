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
    ├── DeliveryError        records were not acknowledged by Kafka; carries how many
    └── InvalidScores        a model answered with something that is not a score          retriable

Policy is in the type: `retriable` says whether the same call may succeed later without anyone acting.
The command line prints an `OperatorError` as one line and leaves with exit code 2.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OPERATOR = 2
EXIT_SOFTWARE = 70  # sysexits.h EX_SOFTWARE: the worker stopped rather than skip a record


class XplatError(Exception):
    """Root of every error raised on purpose."""

    retriable: ClassVar[bool] = False


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


class TopicMismatch(OperatorError):  # noqa: N818 - says what is wrong with the topics
    """Topics are missing, or topics keyed by user differ in their partition count."""


class TritonUnavailable(OperatorError):  # noqa: N818 - the state of the server
    """No Triton answers at the given address, or it refuses the call."""

    retriable = True


class ReleaseError(OperatorError):
    """A model release is incomplete, altered, or does not answer as recorded."""


class StackError(OperatorError):
    """The local stack cannot be installed, started or stopped."""


class DataError(OperatorError):
    """An input folder or file of the user cannot be read."""


class StateError(OperatorError):
    """A worker's state folder cannot be used."""


class DeliveryError(XplatError):
    """Records were handed to Kafka and not acknowledged. `left` counts them."""

    def __init__(self, message: str, *, left: int) -> None:
        super().__init__(message)
        self.left = left


class InvalidScores(XplatError):  # noqa: N818 - named after what the model sent
    """A model answered with NaN, the wrong shape or a value outside [0, 1]."""

    retriable = True
