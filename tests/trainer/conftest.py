"""One small run of the trainer, made once and looked at by many tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.trainer.corpus import label_of, make_log, taxonomy
from tests.trainer.tiny import make_tiny_base
from trainer.data.compact import Compact, vector_table
from trainer.data.dataset import Dataset, build_examples
from trainer.networks.head import Head, HeadShape
from trainer.networks.models import Encoder
from trainer.run.options import TrainOptions
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xplat_stream.event import Event

SPEC = WindowSpec(per_platform=10)
OPTIONS = TrainOptions(publish=False, head_epochs=12, max_events=24, seed=3)


@pytest.fixture(scope="session")
def log() -> tuple[Event, ...]:
    return make_log(users=120, events_each=40)


@pytest.fixture(scope="session")
def dataset(log: tuple[Event, ...]) -> Dataset:
    return build_examples(log, taxonomy(), SPEC, OPTIONS)


@pytest.fixture(scope="session")
def inputs(dataset: Dataset) -> dict[str, Compact]:
    return {"train": dataset.train.inputs, "tune": dataset.tune.inputs, "test": dataset.test.inputs}


@pytest.fixture(scope="session")
def table(dataset: Dataset) -> NDArray[np.float16]:
    """Vectors a good encoder could have made: texts on one subject lie near each other, whatever their platform."""
    random = np.random.default_rng(5)
    labels = [label_of(text) for text in dataset.texts.texts]
    centers = {label: random.normal(size=64) for label in sorted(set(labels))}
    raw = np.stack([centers[label] + 0.5 * random.normal(size=64) for label in labels])
    return vector_table((raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16))


@pytest.fixture
def head() -> Head:
    """A head with weights at random, so that nothing it computes is zero, for a target on platform 2."""
    torch.manual_seed(0)
    shape = HeadShape(labels=25, platforms=3, target=frozenset({2}))
    made = Head(shape, torch.linspace(-3, 0, 25), members=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.eval()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pretrained encoder of one layer, as a Hugging Face folder."""
    return str(make_tiny_base(tmp_path_factory.mktemp("tiny-base")))


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    """A BERT of two layers with weights at random, made without any download."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=200,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        attn_implementation="eager",
    )
    return Encoder(BertModel(config), hidden=32, width=64, vocabulary=config.vocab_size).eval()
