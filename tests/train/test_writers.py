import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, rows
from vit_jax.train.fit import fit
from vit_jax.types import UserError

# What the package wandb has, as far as a run uses it; it writes what it is told into the folder that it is told.
FAKE = """
import json, os, pathlib
class Error(Exception): pass
def init(**given):
    if os.environ.get("FAKE_WANDB_FAILS"):
        raise Error("api_key not configured")
    return Run(given)
class Run:
    def __init__(self, given):
        self.path = pathlib.Path(given["dir"]) / "told.jsonl"
        self.starting_step = sum("step" in line for line in self.path.read_text().splitlines()) if self.path.exists() else 0
        self.tell(init=given)
    def tell(self, **what):
        with self.path.open("a") as file:
            file.write(json.dumps(what) + chr(10))
    def log(self, values, step):
        assert step >= self.starting_step
        self.tell(step=step, values=values)
    def finish(self, exit_code):
        self.tell(exit_code=exit_code)
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("WANDB_API_KEY", "secret" * 7)


def told(workdir):
    return [json.loads(line) for line in (workdir / "told.jsonl").read_text().splitlines()]


def test_weights_and_biases_gets_every_step_once_and_goes_on_as_the_same_run(tiny, tmp_path, wandb):
    tiny.log.wandb = "my-project"
    fit(tiny, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "aside")  # back to step 8
    fit(tiny, tmp_path / "run")
    first, second = [line["init"] for line in told(tmp_path / "run") if "init" in line]
    assert first["project"] == "my-project"
    assert first["config"]["batch_size"] == 16
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    merged = {}
    for line in told(tmp_path / "run"):
        if "values" in line:
            merged.setdefault(line["step"], {}).update(line["values"])
    assert sorted(merged) == list(range(1, 13))
    assert [merged[row["step"]]["loss"] for row in rows(tmp_path / "run")] == [
        r["loss"] for r in rows(tmp_path / "run")
    ]
    assert merged[12]["test/accuracy"] == rows(tmp_path / "run")[-1]["test/accuracy"]
    assert told(tmp_path / "run")[-1] == {"exit_code": 0}


def test_no_key_is_left_in_the_workdir(tiny, tmp_path, wandb):
    tiny.log.wandb = "my-project"
    fit(tiny, tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"secretsecret" in path.read_bytes() for path in files)


def test_without_weights_and_biases_nothing_is_begun(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    tiny.log.wandb = "my-project"
    with pytest.raises(UserError, match=r"pip install .*\[wandb\]"):
        fit(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_refusal_of_weights_and_biases_says_what_to_do(tiny, tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("FAKE_WANDB_FAILS", "1")
    tiny.log.wandb = "my-project"
    with pytest.raises(UserError, match=r"api_key not configured.*WANDB_MODE=offline"):
        fit(tiny, tmp_path / "run")


def test_tensorboard_may_be_left_out(tiny, tmp_path):
    tiny.log.tensorboard = False
    fit(tiny, tmp_path / "run")
    assert not list((tmp_path / "run").glob("events*"))
    assert len(rows(tmp_path / "run")) == 12


def test_seconds_go_on_over_attempts_and_hardware_is_kept(tiny, tmp_path):
    tiny.steps = 4
    fit(tiny, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["hardware"].startswith("cpu: ")
    before = rows(tmp_path / "run")
    seconds = [row["seconds"] for row in before]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    # As if the attempt had taken an hour up to step 4, and had been killed after it.
    before[3]["seconds"] = 3600.0
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before))
    config["config"]["steps"] = 8
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    tiny.steps = 8
    fit(tiny, tmp_path / "run")
    assert all(3600 < row["seconds"] < 3600 + 600 for row in rows(tmp_path / "run")[4:])
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 9))


def test_tensorboard_events_import_no_torch(tmp_path):
    code = (
        "import sys; from pathlib import Path; from vit_jax.train.writers import TensorBoard; "
        f"TensorBoard(Path({str(tmp_path)!r}), 0).close(); assert 'torch' not in sys.modules; import torch; torch.zeros(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
