"""What `vit bench` measures is consistent, and what it cannot measure is told."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, TINY_FLAGS, environment
from vit_jax.__main__ import main as vit
from vit_jax.perf.peer import Peer
from vit_jax.perf.turns import in_turns, ratio
from vit_jax.types import UserError

SHORT = ["--steps=2", "--rounds=2", "--json"]
SLEEPER = "tests.bench_peers:sleeper"


def bench(capsys, what, *flags):
    assert vit(["bench", what, *TINY_FLAGS, *SHORT, *flags]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *flags):
    assert vit(["bench", *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def test_step_gives_figures_that_agree_with_each_other(capsys):
    result = bench(capsys, "step", "--batch_size=32")
    assert result["batch_size"] == 32
    assert result["images_per_second"] == pytest.approx(32e3 / result["ms_per_step"])
    seconds = 1e-3 * result["ms_per_step"]
    assert result["tflops_per_second"] == pytest.approx(result["flops_per_step"] / seconds / 1e12)
    parts = [result[key] for key in ("trace_seconds", "compile_seconds", "first_run_seconds")]
    assert result["first_step_seconds"] == pytest.approx(sum(parts))
    assert min(parts) > 0 < result["memory_bytes"]
    assert result["mfu"] is None  # a CPU's peak is not in the table
    assert not {"peer", "uncounted_calls"} & result.keys()


def test_flops_are_those_of_the_network_however_it_is_computed(capsys):
    expected = bench(capsys, "step")["flops_per_step"]
    again = bench(capsys, "step", "--config.model.remat=full", "--config.model.scan=True")["flops_per_step"]
    assert again == expected > 0


def test_step_takes_pmap_too(capsys):
    result = bench(capsys, "step", "--config.parallel=pmap")
    assert result["compile_seconds"] is None
    assert result["first_step_seconds"] > 0


def test_loop_is_compared_with_its_step(capsys):
    result = bench(capsys, "loop")
    assert result["ratio"] > 0
    assert 0 <= result["data_wait"] <= 1
    assert result["bare_steps_per_second"] > 0 < result["loop_steps_per_second"]


def test_data_are_measured_with_threads_and_with_workers(capsys):
    rows = bench(capsys, "data", "--counts=1")["rows"]
    assert [(row["kind"], row["count"]) for row in rows] == [("threads", 1), ("workers", 1)]
    assert all(row["images_per_second"] > 0 for row in rows)


def test_inference_is_measured_for_each_batch_size_and_dtype(capsys):
    rows = bench(capsys, "inference", "--batch_size=1,4", "--dtypes=float32,bfloat16", f"--peer={SLEEPER}")["rows"]
    assert [(row["dtype"], row["batch_size"]) for row in rows] == [
        (dtype, size) for dtype in ("float32", "bfloat16") for size in (1, 4)
    ]
    for row in rows:
        assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"]
        assert row["images_per_second"] > 0 < row["of_peer"]
        assert row["peer_images_per_second"] < 1e3 * row["batch_size"]


def test_peer_of_ones_own_is_timed_in_turns(capsys):
    result = bench(capsys, "step", f"--peer={SLEEPER}")
    assert result["peer"]["ms_per_step"] >= 1
    assert result["of_peer_lowest"] <= result["of_peer"] <= result["of_peer_highest"]


def test_timm_takes_the_same_model(capsys):
    result = bench(capsys, "step", "--peer=timm", "--peer_dtype=bfloat16")
    assert "timm" in result["peer"]["about"]
    assert "bfloat16" in result["peer"]["about"]
    assert result["of_peer"] > 0 < result["peer"]["first_step_seconds"]


@pytest.mark.parametrize("pool", ["tok", "gap", "map"])
def test_timm_has_the_parameters_of_our_network(pool):
    import jax

    from tests import peers  # noqa: F401
    from vit_jax.models.vit import ViT
    from vit_jax.perf.timm_peer import make_model

    fields = {"width": 16, "depth": 2, "mlp_dim": 40, "num_heads": 2, "patch_size": 4, "pool": pool}
    model = ViT(num_classes=5, **fields)
    ours = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    theirs = make_model(fields | {"mlp": model.mlp}, (8, 8, 3), 5)
    assert sum(p.numel() for p in theirs.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(ours))


def test_unknown_peer_is_one_message(capsys):
    for peer in ("tim", "timm:fast", "module:"):
        assert f"--peer={peer} is unknown" in refused(capsys, "step", *TINY_FLAGS, f"--peer={peer}")


def test_peer_that_is_not_installed_is_told(capsys):
    message = refused(capsys, "step", *TINY_FLAGS, "--peer=nowhere.to_be_found:make")
    assert "not installed here (No module named 'nowhere')" in message


def test_peer_that_fails_is_told(capsys):
    assert "no luck today" in refused(capsys, "step", *TINY_FLAGS, "--peer=tests.bench_peers:failing")
    assert "gone" in refused(capsys, "step", *TINY_FLAGS, "--peer=tests.bench_peers:exits")


def test_peer_that_is_silent_is_given_up():
    with pytest.raises(UserError, match="no answer"), Peer(SLEEPER, limit=30.0, batch_size=1) as peer:
        peer._limit = 0.05
        peer(1000)


def test_mistakes_in_flags_are_told(capsys):
    assert "invalid choice" in refused(capsys, "steps", *TINY_FLAGS)
    assert "--batch_size: found '1,2'" in refused(capsys, "step", *TINY_FLAGS, "--batch_size=1,2")
    assert "--batch_size: found 'some'" in refused(capsys, "inference", *TINY_FLAGS, "--batch_size=some")
    assert "Unknown argument --profiel" in refused(capsys, "step", *TINY_FLAGS, "--profiel=x")
    assert "from 1 to" in refused(capsys, "step", *TINY_FLAGS, "--rounds=0")


def test_profile_writes_a_trace(capsys, tmp_path):
    bench(capsys, "step", f"--profile={tmp_path / 'trace'}")
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_sides_are_timed_in_turns():
    order = []

    def side(name, seconds):
        return lambda steps: order.append(name) or steps * seconds

    found = in_turns({"a": side("a", 1.0), "b": side("b", 3.0)}, 4, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0] * 3, "b": [3.0] * 3}
    assert ratio(found["a"], found["b"]) == 3.0


def test_the_gpu_experiment_runs_where_only_jax_flax_optax_torch_and_timm_are(tmp_path):
    code = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grain", "tensorflow_datasets", "PIL", "simplejpeg", "sklearn", "orbax", "ml_collections"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    script = ROOT / "experiments" / "speed_202611" / "gpu.py"
    command = [sys.executable, "-c", code, script, "--smoke", f"--out={tmp_path}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    beside, alone, failed = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert beside["of_peer"] > 0 < beside["images_per_second"]
    assert alone["peer"] is None
    assert alone["flops_per_step"] == beside["flops_per_step"] / 2
    assert "heads" in failed["error"]
    assert (tmp_path / "speed.md").read_text().count("\n| mu/16") == 3


def test_the_gpu_experiment_ends_when_its_time_is_over(tmp_path):
    script = ROOT / "experiments" / "speed_202611" / "gpu.py"
    command = [sys.executable, str(script), "--smoke", "--budget=1", f"--out={tmp_path}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the time was over" in (tmp_path / "speed.md").read_text()
