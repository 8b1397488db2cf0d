"""Options that cannot be are refused before anything is read."""

from __future__ import annotations

import pytest

from tests.trainer.corpus import make_log
from trainer.run.options import TrainOptions, checked
from trainer.train import train_on
from xplat_stream.errors import DataError
from xplat_stream.settings import Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"adapter": "lroa"}, r"'lroa'.*adapter", id="adapter"),
        pytest.param({"augment": "letters"}, r"'letters'.*augment", id="augmentation"),
        pytest.param({"fgm": -0.1}, r">= 0.*fgm", id="negative step"),
        pytest.param({"mlm_steps": -1}, r">= 0.*mlm_steps", id="negative steps"),
        pytest.param({"encoder_dropout": 1.0}, r"< 1.*encoder_dropout", id="everything dropped"),
        pytest.param({"accumulate": 0}, r">= 1.*accumulate", id="no batch a step"),
        pytest.param({"precision": "int4"}, r"'int4'.*precision", id="number format"),
    ],
)
def test_an_option_that_cannot_be_is_named(options, said):
    """The line says which option, and what is wrong with it."""
    with pytest.raises(DataError, match=said):
        train_on(make_log(users=2, events_each=10), Settings(), TrainOptions(**options))


def test_the_recipe_is_possible():
    """The defaults pass their own check and come back as they are."""
    assert checked(TrainOptions()) == TrainOptions()
