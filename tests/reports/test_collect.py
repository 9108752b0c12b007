import json

import pytest

from tests.conftest import TINY_FLAGS, rows
from tests.reports.made import COMMIT, finished, workdir
from vit_jax.config.factory import short_names
from vit_jax.runs.reports.collect import collect_runs, distinct_keys, read_run
from vit_jax.runs.reports.comparison import choose_metric, compare_runs, mode_of
from vit_jax.types import UserError


def test_a_trained_run_is_read_with_its_result_and_cost(train, tmp_path):
    assert train(*TINY_FLAGS, "--config.steps=6", f"--workdir={tmp_path / 'run'}") == 0
    run = read_run(tmp_path / "run", "run")
    assert (run.state, run.step, run.steps) == ("finished", 6, 6)
    assert run.last("test/accuracy") == rows(tmp_path / "run")[-1]["test/accuracy"]
    assert run.config["optim.rule.type"] == "adam"
    assert run.hardware.startswith("cpu: ")
    assert run.hardware.endswith(" cores")
    assert 0 < run.seconds < 600
    assert run.commit


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    finished(tmp_path / "sweep" / "a", 0.9)
    finished(tmp_path / "sweep" / "deeper" / "b", 0.8)
    finished(tmp_path / "sweep" / "a" / "checkpoints" / "not_a_run", 0.7)
    (tmp_path / "sweep" / "empty").mkdir()
    runs, broken = collect_runs([tmp_path / "sweep", tmp_path / "sweep" / "a"])
    assert [run.name for run in runs] == ["a", "deeper/b"]
    assert broken == []


def test_runs_of_one_name_in_two_folders_are_distinguished(tmp_path):
    for folder in ("one", "two"):
        finished(tmp_path / folder / "seed_0", 0.9)
    runs, _ = collect_runs([tmp_path / "one", tmp_path / "two"])
    assert [run.name for run in runs] == ["one/seed_0", "two/seed_0"]
    runs, _ = collect_runs([tmp_path / "one" / "seed_0"])
    assert [run.name for run in runs] == ["seed_0"]


def test_a_run_under_way_is_read_up_to_its_torn_line(tmp_path):
    path = finished(tmp_path / "run", 0.9)
    lines = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(lines[: len(lines) - 20])
    (run,), broken = collect_runs([tmp_path])
    assert (run.state, run.step, broken) == ("step 50 of 100", 50, [])
    (path / "metrics.jsonl").write_text("")
    (run,), _ = collect_runs([tmp_path])
    assert (run.step, run.last("test/accuracy"), run.hours) == (0, None, None)


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ("{", "cannot be read"),
        ("[]", "list"),
        (json.dumps({"config": {}, "data": {}, "versions": {}, "changes": []}), "num_examples"),
        (
            json.dumps({"config": {"steps": "9"}, "data": {"num_examples": 1}, "versions": {}, "changes": []}),
            "'steps': '9'",
        ),
    ],
)
def test_a_broken_workdir_is_named_and_left_out(tmp_path, record, word):
    finished(tmp_path / "good", 0.9)
    bad = finished(tmp_path / "bad", 0.9)
    (bad / "config.json").write_text(record)
    runs, (reason,) = collect_runs([tmp_path])
    assert [run.name for run in runs] == ["good"]
    assert str(bad) in reason
    assert word in reason


def test_values_that_are_no_numbers_are_passed_over(tmp_path):
    row = {
        "step": 100,
        "loss": float("nan"),
        "note": "x",
        "flag": True,
        "big": 10**400,
        "list": [1],
        "test/accuracy": 1,
    }
    run = read_run(workdir(tmp_path / "run", {}, [row]), "run")
    assert run.curves == {"test/accuracy": [(100, 1.0)]}


def test_runs_from_before_hardware_and_seconds_were_kept_are_reported(tmp_path):
    run = read_run(workdir(tmp_path / "run", {}, [{"step": 100, "loss": 1.0}], git_commit=None), "run")
    assert (run.finished, run.hours, run.hardware, run.commit) == (True, None, "", "")


def test_what_changed_between_attempts_is_reported(tmp_path):
    changes = [{"keys": [], "hardware": "1 x NVIDIA H200", "git_commit": COMMIT}, {"keys": []}]
    run = read_run(finished(tmp_path / "run", 0.9, changes=changes), "run")
    assert (run.hardware, run.commit) == ("8 x TPU v5 lite, then 1 x NVIDIA H200", COMMIT)


def test_epochs_say_how_long_a_run_is(tmp_path):
    path = finished(tmp_path / "run", 0.9, {"steps": None, "epochs": 2.0})
    assert read_run(path, "run").steps == 200


def test_best_is_the_first_of_the_best_values(tmp_path):
    logged = [{"step": step, "test/loss": value} for step, value in ((25, 0.5), (50, 0.3), (75, 0.3), (100, 0.4))]
    run = read_run(workdir(tmp_path / "run", {}, logged), "run")
    assert run.best("test/loss", "min") == (50, 0.3)
    assert run.best("test/loss", "max") == (25, 0.5)
    assert run.best("other", "max") is None


def test_keys_that_differ_are_found_and_shortened(tmp_path):
    finished(
        tmp_path / "a", 0.9, {"optim": {"lr": 1, "rule": {"type": "adam"}}, "model": {"type": "vit.ViT"}, "x": None}
    )
    finished(
        tmp_path / "b", 0.9, {"optim": {"lr": 1.0, "rule": {"type": "lion"}}, "model": {"type": "m.M"}, "flag": True}
    )
    finished(tmp_path / "c", 0.9, {"optim": {"lr": 1.0, "rule": {"type": "lion"}}, "model": {"type": "m.M"}, "flag": 1})
    keys = distinct_keys(collect_runs([tmp_path])[0])
    assert keys == ["flag", "model.type", "optim.rule.type"]  # 1 is 1.0 but not True, and unset is absent
    assert short_names(["a.lr", "model.type", "optim.rule.type", "type"]) == {
        "a.lr": "lr",
        "model.type": "model.type",
        "optim.rule.type": "rule.type",
        "type": "type",
    }


def test_the_metric_is_the_most_telling_one(tmp_path):
    def chosen(**values):
        path = workdir(tmp_path / str(len(list(tmp_path.iterdir()))), {}, [{"step": 100, **values}])
        return choose_metric([read_run(path, "run")], None)

    assert chosen(loss=1, **{"v2/accuracy": 1, "test/accuracy": 1}) == "test/accuracy"
    assert chosen(loss=1, **{"v2/accuracy": 1, "test/loss": 1}) == "v2/accuracy"
    assert chosen(loss=1, **{"test/loss": 1}) == "test/loss"
    assert chosen(loss=1) == "loss"
    assert [mode_of(name) for name in ("test/loss", "test/mean_absolute_error", "test/r2")] == ["min", "min", "max"]


def test_mistakes_are_reported_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="missing is not a folder; expected workdirs"):
        collect_runs([tmp_path / "missing"])
    with pytest.raises(UserError, match=r"No runs in .*config\.json and metrics\.jsonl"):
        collect_runs([tmp_path])
    finished(tmp_path / "run", 0.9)
    with pytest.raises(UserError, match="no run has logged it; did you mean test/accuracy"):
        compare_runs([tmp_path], metric="test/acuracy")


def test_a_sweep_says_what_its_runs_are_compared_by_and_which_were_given_up(tmp_path):
    states = ("finished", "failed", "stopped", "running")
    for state in states[1:]:
        workdir(tmp_path / state, {}, [{"step": 50, "loss": 1.0, "test/accuracy": 0.5}])
    finished(tmp_path / "finished", 0.9)
    record = {"file": "sweep.py", "arg": "", "config": "c.py", "overrides": [], "metric": "loss", "mode": "min"}
    record["runs"] = [{"name": state, "settings": {}, "state": state} for state in states]
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    report = compare_runs([tmp_path])
    assert (report.metric, report.mode) == ("loss", "min")
    assert [run.state for run in report.runs] == [
        "failed at step 50 of 100",
        "finished",
        "step 50 of 100",
        "stopped at step 50 of 100",
    ]
    for text in ("{", "[1]", json.dumps({"metric": None, "mode": 1, "runs": []})):
        (tmp_path / "sweep.json").write_text(text)
        assert compare_runs([tmp_path]).metric == "test/accuracy"
