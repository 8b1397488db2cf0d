"""Encoder and head, trained together: what 64 numbers a text are made of, and that serving gets the same ones."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.trainer.people import FOLDS, LABELS, TAXONOMY, make_people, study
from tests.trainer.tiny import make_tiny_base
from trainer.data.compact import Compact
from trainer.data.study import A_ONLY, EVERYTHING, earlier
from trainer.evaluation.split import SplitMethod
from trainer.export.export import encode_texts, export_encoder, export_head, score_inputs
from trainer.fitting.fit_head import views_of_platforms
from trainer.fitting.joint import text_states
from trainer.measuring.baselines import Popularity
from trainer.measuring.measures import ndcg
from trainer.measuring.methods import split, try_method
from trainer.networks.words import TokenTable, latent_words
from trainer.run.options import TrainOptions
from xplat_stream.serving.features import TextFeatures

OPTIONS = TrainOptions(adapter="none", max_tokens=16, members=2, head_batch=64, head_epochs=6)


@pytest.fixture(scope="module")
def method(tmp_path_factory):
    """The served model on an encoder of one layer with weights at random: all it knows it learns here."""
    base = make_tiny_base(tmp_path_factory.mktemp("base"), study().texts.texts)
    return SplitMethod(msgspec.structs.replace(OPTIONS, base=str(base)))


@pytest.fixture(scope="module")
def parts():
    return split(study(), 0)


@pytest.fixture(scope="module")
def fitted(method, parts):
    return method.fit(study(), parts.train, parts.tune)


def test_it_reads_one_platform_for_another(method):
    """Titles of videos, which name no label, tell what is bought in the shop far better than what is popular."""
    names = [A_ONLY, EVERYTHING]
    mine, popular = (try_method(study(), one, views=names, folds=range(1)) for one in (method, Popularity()))
    rows = split(study(), 0).rows
    targets = study().test.targets[rows]
    for view in names:
        assert ndcg(mine[view].scores[rows], targets).mean() > ndcg(popular[view].scores[rows], targets).mean() + 0.1


def test_the_graphs_answer_as_the_method_does(method, fitted, parts):
    """What is exported, encoder and head, gives the vectors and scores that were evaluated."""
    tokenizer = Tokenizer.from_str(method.prepared(study().texts).fresh.tokenizer.decode())
    graph = export_encoder(fitted.encoder, vocabulary=tokenizer.get_vocab_size())
    texts = study().texts.texts
    features = TextFeatures(tokenizer, max_tokens=OPTIONS.max_tokens)
    *_, (_, vectors) = encode_texts(graph, features, texts, width=64)
    rows = np.arange(min(20, len(parts.test)))
    served = score_inputs(export_head(fitted.head), parts.test.inputs.with_vectors(fitted.table, rows))

    np.testing.assert_allclose(vectors, fitted.table[1:], atol=2e-3)
    np.testing.assert_allclose(served, fitted.scores(parts.test.take(rows)), atol=1e-3)


def test_folds_share_the_transformer_and_nothing_else(method, fitted, parts):
    """Fitting another fold changes no vector and no weight of the one before."""
    before = fitted.table.copy(), [value.clone() for value in fitted.head.state_dict().values()]
    other = split(study(), FOLDS - 1)
    again = method.fit(study(), other.train, other.tune)

    assert np.array_equal(before[0], fitted.table)
    assert all(map(torch.equal, before[1], fitted.head.state_dict().values()))
    assert not np.array_equal(again.table, fitted.table)


def test_same_seed_same_model(method, fitted, parts):
    """The same cuts and seed give the same vectors and scores, in the next process as well."""
    again = replace(method, _prepared={}).fit(study(), parts.train, parts.tune)
    assert np.array_equal(again.table, fitted.table)
    assert np.array_equal(again.scores(parts.test), fitted.scores(parts.test))


def test_texts_are_read_once_ever(method, fitted, tmp_path, monkeypatch):
    """What the transformer says is kept in a folder: the next run has it read nothing, and fits the same model."""
    kept = [replace(method, cache=tmp_path, _prepared={}) for _ in range(2)]
    first = kept[0].prepared(study().texts).states
    monkeypatch.setattr("trainer.fitting.frozen.mean_vectors", None)
    second = kept[1].prepared(study().texts).states

    assert np.array_equal(first.means, second.means)
    np.testing.assert_allclose(first.means, method.prepared(study().texts).states.means, atol=1e-3)
    assert all(map(np.array_equal, first.tokens, method.prepared(study().texts).states.tokens))


def test_windows_hold_readable_texts_only():
    """No window holds a text that is not read, whenever it is looked at; what nobody who is cut touched is left out."""
    of = study()
    some = of._replace(train=of.train.of_users(np.arange(len(of.histories)) == of.train.user[0]))
    rows = some.readable()
    assert 0 < len(rows) < len(of.readable()) == len(of.texts.texts)
    assert of.texts.own_known[np.setdiff1d(np.arange(len(of.texts.texts)), rows)].sum() == 0
    for cuts in (some.train, earlier(of, some.train, some.train.before // 2)):
        assert np.isin(cuts.inputs.text, [0, *(rows + 1)]).all()


def test_texts_nobody_reads_are_not_encoded(method):
    """The others' states are those of a run over all texts."""
    fresh, states = method.prepared(study().texts)
    rows = np.arange(3, 9)
    found = text_states(fresh.encoder, fresh.features, study().texts.texts, lambda *_: None, rows)
    np.testing.assert_allclose(found.means[rows + 1], states.means[rows + 1], atol=1e-3)
    assert not found.means[np.setdiff1d(np.arange(len(found.means)), rows + 1)].any()


def backbone(method, of, fold=0):
    """Fit one fold and return the transformer's weights."""
    parts = split(of, fold)
    return method.fit(of, parts.train, parts.tune).encoder.backbone.state_dict()


def same(one, other):
    return all(map(torch.equal, one.values(), other.values()))


@pytest.mark.parametrize(
    "changes", [{}, {"contrast": 0.1, "weak_labels": True, "mlm_steps": 2}], ids=["plain", "all hints"]
)
def test_the_transformer_is_fine_tuned_on_training_users_alone(method, changes):
    """Whatever tuning and tested users do, and after what, no weight of it changes; another fold's are others."""
    quick = {"head_epochs": 1, "members": 1, "encoder_texts_shown": 64, "max_texts": 20, "adapter": "lora"}
    tuned = replace(method, options=msgspec.structs.replace(method.options, **quick, **changes))
    kept = np.isin(study().train.user, split(study(), 0).train.user)
    altered = study()._replace(train=backwards(study().train, ~kept), test=backwards(study().test))

    found = backbone(tuned, study())

    assert not same(found, method.prepared(study().texts).fresh.encoder.backbone.state_dict())
    assert same(found, backbone(tuned, altered))
    assert not same(found, backbone(tuned, study(), 1))


def backwards(cuts, chosen=True):
    """Return the cuts with some of the windows exchanged, and what came after them."""
    rows = np.arange(len(cuts))
    moved = rows.copy()
    chosen = np.broadcast_to(chosen, rows.shape)
    moved[chosen] = rows[chosen][::-1]
    return replace(cuts, inputs=cuts.inputs.take(moved), targets=cuts.targets[moved], next_texts=cuts.next_texts[moved])


def test_words_that_the_same_people_touch_lie_near_each_other():
    """A word of a video title lies nearer to the label its readers buy than to the others, and frames are no words."""
    features = TextFeatures(_words_of(study().texts.texts), max_tokens=16)
    tokens = TokenTable.of(features, study().texts.texts)
    last = study().test.inputs
    found = latent_words(tokens, last, vocabulary=features_size(features), width=8, seed=0)
    nearest = 0
    vocabulary = _words_of(study().texts.texts).get_vocab()
    for label, word in zip(LABELS, ("novel", "saddle", "guitar", "kitten", "orchid", "laces"), strict=True):
        scores = {one: found.words[vocabulary[word]] @ found.words[vocabulary[one]] for one in LABELS}
        nearest += max(scores, key=scores.__getitem__) == label
    assert nearest >= 5
    assert found.rarity[vocabulary["[CLS]"]] == 0


def _words_of(texts):
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: row for row, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return made


def features_size(features):
    return features._tokenizer.get_vocab_size()


def test_views_of_platforms():
    """One platform has no other view; of three, each alone and each missing are trained on."""
    assert views_of_platforms(1) == []
    assert views_of_platforms(2) == [{1}, {2}]
    assert views_of_platforms(3) == [{1}, {2}, {3}, {2, 3}, {1, 3}, {1, 2}]


def test_a_view_is_the_window_of_who_is_known_there_only():
    """Hidden events leave no gap, and ages are counted from the newest event that is left."""
    window = Compact(
        np.array([[1, 2, 3]], np.int32),
        np.array([[1, 2, 1]], np.int32),
        np.array([[1, 1, 1]], np.int32),
        np.log1p(np.array([[9.0, 4.0, 0.0]], np.float32)),
        np.array([3]),
    )
    seen = window.seeing(np.array([2], np.int32))
    assert (seen.text.tolist(), seen.length.tolist(), seen.age.tolist()) == ([[2]], [1], [[0.0]])
    assert TAXONOMY.ids() == LABELS
    assert make_people()
