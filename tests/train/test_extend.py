"""A run goes on to more steps where its schedule allows it, and says how to begin anew where not."""

import json

import pytest

from tests.conftest import checkpoint, rows, sampled
from vit_jax.train.fit import fit
from vit_jax.types import UserError

OPEN = [
    {"type": "constant", "warmup_steps": 2},
    {"type": "rsqrt", "warmup_steps": 2, "timescale": 4},
]


@pytest.mark.parametrize("schedule", sampled(OPEN, OPEN[-1]), ids=str)
def test_an_extended_run_is_the_longer_run(schedule, tiny, tmp_path, capsys):
    tiny.optim.schedule = schedule
    tiny.steps = 6
    fit(tiny, tmp_path / "extended")
    tiny.steps = 12
    fit(tiny, tmp_path / "extended")
    assert "resuming at step 6" in capsys.readouterr().out
    fit(tiny, tmp_path / "whole")
    assert checkpoint(tmp_path / "extended") == checkpoint(tmp_path / "whole")
    record = json.loads((tmp_path / "extended" / "config.json").read_text())
    assert record["config"]["steps"] == 12
    assert record["changes"][-1]["keys"] == ["steps"]


def test_epochs_extend_a_run_of_steps(tiny, tmp_path):
    tiny.optim.schedule = OPEN[0]
    tiny.steps = 6
    fit(tiny, tmp_path / "run")
    tiny.steps, tiny.epochs = None, 12 * 16 / 1437
    fit(tiny, tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["step"] == 12


@pytest.mark.parametrize(
    ("optim", "says"),
    [
        ({"schedule": {"type": "constant", "warmup_steps": 0.2}}, "its learning rate, by optim.schedule='constant'"),
        (
            {"schedule": OPEN[0], "weight_decay": 0.1, "weight_decay_end": 0.2},
            "by optim.weight_decay_end, has followed",
        ),
    ],
    ids=["warm-up", "weight decay"],
)
def test_what_followed_the_length_before_is_not_extended(optim, says, tiny, tmp_path):
    tiny.optim.update(optim)
    tiny.steps = 6
    fit(tiny, tmp_path / "run")
    tiny.steps = 12
    with pytest.raises(UserError, match=says):
        fit(tiny, tmp_path / "run")


def test_wsd_is_extended_before_it_decays(tiny, tmp_path):
    tiny.optim.schedule = {"type": "wsd", "warmup_steps": 2, "decay_steps": 4}
    fit(tiny, tmp_path / "run")
    for step in (8, 12):
        (tmp_path / "run" / "checkpoints" / str(step)).rename(tmp_path / f"away{step}")
    tiny.steps = 20
    with pytest.raises(UserError, match="cannot go on"):
        (tmp_path / "away12").rename(tmp_path / "run" / "checkpoints" / "12")
        fit(tiny, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "away12")
    (tmp_path / "away8").rename(tmp_path / "run" / "checkpoints" / "8")
    fit(tiny, tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["step"] == 20


def test_a_schedule_that_has_fallen_says_how_to_begin_anew(tiny, tmp_path):
    fit(tiny, tmp_path / "run")
    tiny.steps = 24
    with pytest.raises(UserError, match="is at step 12 of 12 and cannot go on to 24") as error:
        fit(tiny, tmp_path / "run")
    assert f"""--config.init="{{'ref': '{tmp_path / "run"}'}}\"""" in str(error.value)
    assert "cosine" in str(error.value)


def test_fewer_steps_than_done_are_refused(tiny, tmp_path):
    tiny.optim.schedule = OPEN[0]
    fit(tiny, tmp_path / "run")
    tiny.steps = 6
    with pytest.raises(UserError, match="less than it has done"):
        fit(tiny, tmp_path / "run")
