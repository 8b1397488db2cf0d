"""Errors: policy is in the type, and an operator's error is one whole line."""

from __future__ import annotations

import inspect

import pytest

from xplat_stream import errors
from xplat_stream.errors import DeliveryError, OperatorError, RejectedEvent, XplatError

CLASSES = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, XplatError)]
OPERATOR = [error for error in CLASSES if issubclass(error, OperatorError)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_in_the_tree(error: type[XplatError]) -> None:
    """Whoever catches `XplatError` catches all of it, and the tree drawn at the top of the file is complete."""
    assert issubclass(error, XplatError)
    assert error.__name__ in (errors.__doc__ or "")
    assert error.__doc__


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_drawing_says_what_may_be_retried(error: type[XplatError]) -> None:
    """`retriable` in the code and in the drawing are the same."""
    line = next(line for line in (errors.__doc__ or "").splitlines() if f" {error.__name__} " in f"{line} ")
    assert error.retriable == ("retriable" in line)


@pytest.mark.parametrize("error", OPERATOR, ids=lambda error: error.__name__)
def test_an_operator_error_is_one_line(error: type[OperatorError]) -> None:
    """What, where, expected and fix are all in the line that is printed."""
    told = error("it broke", where="here", expected="better", fix="Mend it.")
    assert str(told) == "it broke (here); expected better. Mend it."
    assert (told.what, told.where, told.expected, told.fix) == ("it broke", "here", "better", "Mend it.")


def test_a_rejection_carries_its_reason() -> None:
    """The dead-letter reason is a field, not a text to take apart."""
    rejection = RejectedEvent("syntax", "no JSON")
    assert (rejection.reason, rejection.detail, str(rejection)) == ("syntax", "no JSON", "syntax: no JSON")


def test_a_delivery_error_counts() -> None:
    """It says how many records are missing."""
    assert DeliveryError("2 left", left=2).left == 2


def test_exit_codes_are_pinned() -> None:
    """Scripts and supervisors rely on them."""
    assert (errors.EXIT_OPERATOR, errors.EXIT_SOFTWARE) == (2, 70)
