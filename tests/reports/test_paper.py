import json

import pytest

from tests.reports.made import COMMIT, finished, workdir
from vit_jax.runs.reports.comparison import compare_runs
from vit_jax.runs.reports.paper import read_paper
from vit_jax.types import UserError

ROWS = [
    {"name": "Ti/16", "where": {"model.variant": "Ti/16", "ema_decay": None}, "published": 72.2, "spread": 0.1},
    {"name": "S/16", "where": {"model": {"variant": "S/16"}}, "published": 79.8, "note": "300 epochs"},
    {"name": "B/16", "where": {"model.variant": "B/16"}, "published": 81.8},
]
PAPER = {"title": "DeiT", "source": "arXiv:2012.12877, table 5", "metric": "test/accuracy", "unit": "%", "rows": ROWS}


def study(tmp_path, **changes):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "paper.json").write_text(json.dumps(PAPER | changes))
    return tmp_path / "study"


def test_ours_stand_beside_the_published(tmp_path):
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        finished(tmp_path / "runs" / f"ti_{seed}", accuracy, {"seed": seed, "model": {"variant": "Ti/16"}})
    finished(tmp_path / "runs" / "averaged", 0.9, {"model": {"variant": "Ti/16"}, "ema_decay": 0.99})
    workdir(tmp_path / "runs" / "s", {"model": {"variant": "S/16"}}, [{"step": 40, "test/accuracy": 0.1}])
    tiny, small, base = compare_runs([tmp_path / "runs"], study(tmp_path)).paper_rows
    assert (tiny.ours.mean, tiny.ours.spread, tiny.ours.n) == (pytest.approx(72.0), pytest.approx(2.0), 3)
    assert tiny.difference == pytest.approx(-0.2)
    assert (tiny.hardware, tiny.hours, tiny.commit) == ("8 x TPU v5 lite", 1.0, COMMIT)
    assert (small.ours, small.state, small.difference) == (None, "step 40 of 100", None)
    assert (base.ours, base.state) == (None, "not run")


def test_of_several_settings_of_a_line_the_best_mean_counts_and_is_named(tmp_path):
    for lr, accuracies in ((0.1, (0.7, 0.8)), (0.2, (0.6, 0.85))):
        for seed, accuracy in enumerate(accuracies):
            config = {"seed": seed, "optim": {"lr": lr}, "model": {"variant": "B/16"}}
            finished(tmp_path / "runs" / f"{lr}_{seed}", accuracy, config)
    *_, base = compare_runs([tmp_path / "runs"], study(tmp_path)).paper_rows
    assert base.ours.mean == pytest.approx(75.0)
    assert base.state == "finished; the best of 2 settings: lr=0.1"


def test_the_paper_says_what_runs_are_compared_by(tmp_path):
    finished(tmp_path / "runs" / "a", 0.9)
    report = compare_runs([tmp_path / "runs"], study(tmp_path, metric="loss", mode="min"))
    assert (report.metric, report.mode) == ("loss", "min")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"metrik": "x"}, "unknown key 'metrik'; did you mean metric"),
        ({"mode": "most"}, "expected one of 'max', 'min'"),
        ({"rows": [{"name": "a"}]}, r"rows\[0\]: expected an object with name, where"),
        ({"rows": [{"name": "a", "where": {}, "published": "1"}]}, r"rows\[0\]: published is '1'"),
        ({"rows": 1}, "rows is 1"),
    ],
)
def test_a_malformed_paper_is_refused(tmp_path, changes, word):
    with pytest.raises(UserError, match=word):
        read_paper(study(tmp_path, **changes))


def test_a_missing_paper_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"--paper=.*paper\.json"):
        read_paper(tmp_path)
