"""Every adapter, by name: it trains what it says, and what it made is what is served."""

from __future__ import annotations

from typing import get_args

import msgspec
import numpy as np
import pytest
import torch

from tests.trainer.conftest import OPTIONS
from tests.trainer.tiny import HIDDEN
from trainer.export.export import TOLERANCE, export_encoder, session
from trainer.fitting.fit import fit_encoder
from trainer.networks.adapters import Bottleneck, adapt
from trainer.networks.models import Encoder, read_base
from trainer.run.options import AdapterName, TrainOptions
from trainer.run.progress import silent
from xplat_stream.errors import DataError

QUICK = msgspec.structs.replace(
    OPTIONS, encoder_texts_shown=600, max_texts=220, encoder_batch=16, encoder_lr=1e-3, encoder_patience=9, threads=1
)
LORA = ("lora", "adalora")


def encoder_under(base, name, **options):
    """Return an encoder under an adapter whose weights are at random, so that nothing it adds is zero."""
    read = read_base(base)
    adapter = adapt(read.model, TrainOptions(adapter=name, **options), steps=20, where=base)
    torch.manual_seed(1)
    for parameter in adapter.backbone.parameters():
        if parameter.requires_grad and name not in {"full", "none"}:
            torch.nn.init.normal_(parameter, std=0.1)
    return Encoder(adapter.backbone, hidden=HIDDEN, width=64, vocabulary=1000).eval()


def some_texts(rows=3, tokens=12):
    mask = (torch.arange(tokens) < torch.tensor([[tokens], [3], [5]][:rows])).long()
    ids = torch.randint(5, 90, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return ids * mask, mask


@pytest.mark.parametrize("name", get_args(AdapterName))
def test_every_adapter_learns_and_serves_what_it_learnt(dataset, tiny_base, name):
    """Fine-tuning lowers the loss, and the exported graph answers as the encoder does."""
    losses = []

    def report(stage, done, total, metrics):
        if "loss" in metrics:
            losses.append(metrics["loss"])

    encoder, _ = fit_encoder(dataset.texts, msgspec.structs.replace(QUICK, adapter=name), tiny_base, report)
    ids, mask = some_texts()
    with torch.no_grad():
        expected = encoder(ids, mask).numpy()
    graph = export_encoder(encoder, vocabulary=90)
    (found,) = session(graph, 1).run(["vector"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})

    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert not encoder.training
    assert not any("lora" in parameter for parameter, _ in encoder.named_parameters())
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("name", get_args(AdapterName))
@torch.no_grad()
def test_merging_changes_no_vector(tiny_base, name):
    """What is served answers as what was trained."""
    encoder = encoder_under(tiny_base, name)
    before = encoder(*some_texts())
    encoder.merge()

    torch.testing.assert_close(encoder(*some_texts()), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", get_args(AdapterName))
@torch.no_grad()
def test_padding_changes_no_vector_under_any_adapter(tiny_base, name):
    """A text has one vector in any batch, whatever stands in front of or behind it."""
    encoder = encoder_under(tiny_base, name)
    ids, mask = some_texts()

    torch.testing.assert_close(encoder(ids[1:2, :3], mask[1:2, :3]), encoder(ids, mask)[1:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("lora", 2 * 2 * 8 * HIDDEN, id="lora"),
        pytest.param("adalora", 2 * (2 * 12 * HIDDEN + 12), id="adalora, half as many ranks again"),
        pytest.param("bottleneck", 2 * (2 * 32 * HIDDEN + 32 + HIDDEN), id="bottleneck"),
        pytest.param("prefix", 2 * 8 * HIDDEN, id="prefix"),
        pytest.param("none", 0, id="none"),
    ],
)
def test_little_is_trained(tiny_base, name, expected):
    """As many weights are trained as the method has, all others are frozen."""
    backbone = encoder_under(tiny_base, name).backbone

    assert sum(weight.numel() for weight in backbone.parameters() if weight.requires_grad) == expected


def test_all_weights_that_are_read_are_trained_under_full(tiny_base):
    """`full` trains everything but the pooler, which no vector depends on."""
    frozen = {
        name.split(".")[0]
        for name, weight in encoder_under(tiny_base, "full").backbone.named_parameters()
        if not weight.requires_grad
    }

    assert frozen == {"pooler"}


def test_a_bottleneck_begins_as_nothing():
    """A new bottleneck answers as the layer it stands behind."""
    layer = torch.nn.Linear(4, 6)
    hidden = torch.randn(2, 3, 4)

    torch.testing.assert_close(Bottleneck(layer, 2)(hidden), layer(hidden))


def test_an_unknown_adapter_is_named_with_those_there_are(tiny_base):
    """A name that is no adapter is refused with the names that are."""
    with pytest.raises(DataError, match=r"'lroa'.*lora, adalora, bottleneck"):
        adapt(read_base(tiny_base).model, msgspec.structs.replace(OPTIONS, adapter="lroa"), steps=1, where="tiny")


@pytest.mark.parametrize("name", ["prefix", "lora", "bottleneck"])
def test_an_encoder_that_cannot_take_an_adapter_says_so(name):
    """An encoder without the layers, or the arguments, that an adapter needs is refused in one line."""
    from transformers import FNetConfig, FNetModel

    model = FNetModel(FNetConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, intermediate_size=32))
    for layer in model.encoder.layer:  # FNet mixes without attention; give its layers names of their own too
        layer.output.mixed = layer.output.dense
        del layer.output.dense

    with pytest.raises(DataError, match=r"FNetModel has no .*another `adapter`"):
        adapt(model, TrainOptions(adapter=name), steps=1, where="tiny")


def test_a_prefix_needs_positions(tiny_base):
    """A prefix that would not fit in front of the longest text is refused before anything is trained."""
    with pytest.raises(DataError, match=r"no room for a prefix of 8 tokens.*136 positions"):
        encoder_under(tiny_base, "prefix", max_tokens=128)


def test_the_same_seed_gives_the_same_encoder(dataset, tiny_base):
    """With every source of chance switched on, the same log, options and seed give the same weights."""
    options = msgspec.structs.replace(
        QUICK, encoder_texts_shown=200, augment="words", fgm=0.05, mlm_steps=3, accumulate=2, seed=11
    )
    one, other = (fit_encoder(dataset.texts, options, tiny_base, silent).encoder.state_dict() for _ in range(2))

    assert all(map(torch.equal, one.values(), other.values()))
