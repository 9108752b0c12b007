import pytest

from vit_jax.runs.sweeps import record as records
from vit_jax.runs.sweeps.space import Sweep, product, seeds
from vit_jax.types import UserError


def sweep(*widths, config="configs/digits.py", **more):
    return Sweep(config, product({"model.width": list(widths)} | more))


def started(folder, of, overrides=()):
    record = records.update_record(folder, "sweep.py:small", of, overrides)
    for run in record.runs:
        run.state, run.attempts = "finished", 1
    record.write(folder)
    return record


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = started(tmp_path, sweep(1, 2), [("steps", "9")])
    assert records.load_record(tmp_path) == record
    assert (record.file, record.arg) == ("sweep.py", "small")


def test_runs_may_be_added_and_removed_and_the_others_keep_name_and_state(tmp_path, capsys):
    started(tmp_path, sweep(1, 2))
    record = records.update_record(tmp_path, "sweep.py", sweep(2, 3), ())
    assert [(run.name, run.state) for run in record.runs] == [("width=2", "finished"), ("width=3", "waiting")]
    output = capsys.readouterr().out.splitlines()
    assert "1 runs were added since this sweep started: width=3" in output[0]
    assert "width=1" in output[1]


def test_a_run_keeps_its_name_when_more_varies(tmp_path):
    started(tmp_path, Sweep("c.py", product({"model.width": [1, 2]}, seeds(1))))
    record = records.update_record(tmp_path, "sweep.py", Sweep("c.py", product({"model.width": [1, 2]}, seeds(2))), ())
    assert [run.name for run in record.runs] == ["width=1", "width=1,seed=1", "width=2", "width=2,seed=1"]


@pytest.mark.parametrize(
    ("other", "overrides", "message"),
    [
        (sweep(7), (), r"no run is the same: {'model.width': 1} in the folder, {'model.width': 7} now"),
        (sweep(1, config="configs/cifar10.py"), (), "config: configs/digits.py in the folder, configs/cifar10.py now"),
        (sweep(1), [("steps", "9")], "--config.steps: not set in the folder, 9 now"),
    ],
)
def test_another_sweep_is_refused_with_what_differs(tmp_path, other, overrides, message):
    started(tmp_path, sweep(1, 2))
    with pytest.raises(UserError, match=message):
        records.update_record(tmp_path, "sweep.py", other, overrides)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": 3}', '{"runs": [{"name": 1}]}', "\x00"])
def test_a_damaged_record_is_reported(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json is not the record of a sweep .*new --out"):
        records.load_record(tmp_path)
