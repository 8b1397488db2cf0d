"""Where a partition ends is asked with patience, and never guessed."""

from __future__ import annotations

from typing import cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from xplat_stream.kafka.log import positions


class Broker:
    """Answers one after the other."""

    def __init__(self, *answers: tuple[int, int] | int | None) -> None:
        self._answers = list(answers)

    def get_watermark_offsets(self, _: TopicPartition, *, timeout: float) -> tuple[int, int] | None:
        """Return the next answer; a number is the code of an error."""
        assert timeout > 0
        answer = self._answers.pop(0)
        if isinstance(answer, int):
            raise KafkaException(KafkaError(answer))
        return answer


def ends(*answers: tuple[int, int] | int | None) -> list[int]:
    """Return the resolved end of one partition."""
    consumer = cast("Consumer", Broker(*answers))
    return [one.offset for one in positions(consumer, [TopicPartition("t", 0)], at_end=True)]


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    ],
)
def test_a_topic_just_made_is_waited_for(code: int) -> None:
    """Errors that pass by themselves while a new partition finds its leader are asked past."""
    assert ends(code, code, (3, 8)) == [8]


@pytest.mark.parametrize("answer", [None, KafkaError.TOPIC_AUTHORIZATION_FAILED])
def test_an_end_that_is_not_told_is_an_error(answer: int | None) -> None:
    """A broker that does not answer in time, or refuses, is no empty partition."""
    with pytest.raises(KafkaException):
        ends(answer)


def test_the_beginning_needs_no_answer() -> None:
    """Reading from the start asks nothing."""
    consumer = cast("Consumer", Broker())
    assert positions(consumer, [TopicPartition("t", 0)], at_end=False)[0].offset == OFFSET_BEGINNING
