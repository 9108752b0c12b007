import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from tests.conftest import checkpoint, pictures, rows, sampled, tiny_config
from vit_jax import inference
from vit_jax.checkpoint.saver import steps_in
from vit_jax.data.pipeline import TrainData
from vit_jax.data.sources.digits import Digits
from vit_jax.evals.classification import Classification
from vit_jax.runs.sweeps.controller import STOPPED
from vit_jax.train.fit import fit
from vit_jax.train.metrics import NonFiniteLossError, Recorder
from vit_jax.train.report import no_better_than_guessing
from vit_jax.train.writers import TensorBoard
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A finished run of the tiny config, its last metrics, and what it printed."""
    workdir, out = tmp_path_factory.mktemp("shared") / "run", io.StringIO()
    with pictures(), contextlib.redirect_stdout(out):
        metrics = fit(tiny_config(), workdir)
    return workdir, metrics, out.getvalue()


@pytest.fixture
def finished(shared, tmp_path):
    """A copy of it."""
    shutil.copytree(shared[0], tmp_path / "finished")
    return tmp_path / "finished"


def test_a_run_leaves_what_its_users_look_for(shared):
    workdir, metrics, out = shared
    assert "compiled in" in out
    assert "first step" in out
    assert "ETA" in out
    assert "images/s" in out
    assert f"test accuracy {100 * metrics['test/accuracy']:.2f} %" in out
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["batch_size"] == 16
    assert record["versions"]["jax"]
    assert record["data"]["class_names"] == list("0123456789")
    assert [row["step"] for row in rows(workdir)] == list(range(1, 13))
    assert {
        "loss",
        "accuracy",
        "lr",
        "grad_norm",
        "param_norm",
        "update_norm",
        "images_per_second_per_device",
        "data_wait",
    } <= set(rows(workdir)[0])
    for name in ("curves.png", "predictions.png"):
        with Image.open(workdir / "report" / name) as picture:
            assert min(picture.size) > 300
    assert list(workdir.glob("events.out.tfevents.*"))


def test_resumed_run_is_bit_identical(tiny, shared, finished, tmp_path):
    (finished / "checkpoints" / "12").rename(tmp_path / "aside")  # back to step 8
    fit(tiny, finished)
    assert checkpoint(finished) == checkpoint(shared[0])
    assert [r["loss"] for r in rows(finished)] == [r["loss"] for r in rows(shared[0])]
    assert [r["step"] for r in rows(finished)] == list(range(1, 13))


def test_a_finished_run_stays_as_it_is(tiny, shared, finished):
    assert fit(tiny, finished) == shared[1]
    assert checkpoint(finished) == checkpoint(shared[0])


def test_logged_metrics_are_means_since_the_last_log(tiny, shared, tmp_path):
    tiny.log.every = 3
    fit(tiny, tmp_path)
    every = rows(shared[0])
    for row in (row for row in rows(tmp_path) if "loss" in row):
        mean = [other for other in every if row["step"] - 3 < other["step"] <= row["step"]]
        assert row["loss"] == pytest.approx(np.mean([other["loss"] for other in mean]), rel=1e-6)
        assert row["lr"] == mean[-1]["lr"]


def test_the_best_checkpoint_is_kept_beside_the_last(tiny, tmp_path):
    tiny.checkpoint.update(keep=1, best="test/loss", best_mode="max")  # the worst loss is that of the first evaluation
    fit(tiny, tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 12]


def test_only_free_keys_may_change_on_resuming(tiny, finished):
    tiny.log.every, tiny.data.threads = 3, 4
    fit(tiny, finished)
    assert json.loads((finished / "config.json").read_text())["changes"][-1]["keys"] == ["data.threads", "log.every"]
    before = (finished / "config.json").read_bytes()
    tiny.optim.lr = 0.5
    with pytest.raises(UserError, match=r"optim\.lr: 0\.00\d+ there, 0\.5 here"):
        fit(tiny, finished)
    assert (finished / "config.json").read_bytes() == before


def exploding(step: int = 5) -> optax.GradientTransformation:
    """An update rule whose update of one step is no number."""

    def update(updates, count, params=None):
        return jax.tree.map(lambda u: u + jnp.where(count == step, jnp.nan, 0.0), updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


@pytest.mark.parametrize("log_every", [1, 5, 100])
def test_a_loss_that_is_no_number_stops_the_run_at_its_step(tiny, tmp_path, log_every):
    tiny.optim.rule = {"type": "tests.train.test_fit:exploding"}
    tiny.log.every = log_every
    tiny.evals.test.every = None
    tiny.checkpoint.every = 3  # step 6 is to be saved: its loss is finite, its update is not
    good = rf"^{STOPPED}norm of the parameters after step 6 is nan; the last good checkpoint is step 3, in "
    with pytest.raises(NonFiniteLossError, match=good):
        fit(tiny, tmp_path)
    assert all(
        np.isfinite(np.frombuffer(b, np.float32)).all() for n, b in checkpoint(tmp_path).items() if "params" in n
    )
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path))


def test_epochs_give_the_length(tiny, tmp_path):
    tiny.steps, tiny.epochs = None, 0.1
    fit(tiny, tmp_path)
    assert rows(tmp_path)[-1]["step"] == round(0.1 * 1437 / 16)


def test_a_run_may_begin_from_the_weights_of_another(tiny, shared, tmp_path):
    tiny.init = {"ref": f"{shared[0]}@8"}
    tiny.optim.lr = 0.0
    fit(tiny, tmp_path / "second")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    outputs = [inference.load(ref)(images)["logits"] for ref in (f"{shared[0]}@8", tmp_path / "second")]
    np.testing.assert_array_equal(*outputs)


def test_weights_of_another_model_are_refused_by_name(tiny, shared, tmp_path):
    tiny.init = {"ref": str(shared[0])}
    tiny.model.width = 32
    with pytest.raises(UserError, match=r"shape: cls is \(1, 1, 16\), here \(1, 1, 32\)"):
        fit(tiny, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_the_average_of_the_weights_is_loaded_unless_raw_is_asked_for(tiny, tmp_path):
    tiny.ema_decay = 0.9
    metrics = fit(tiny, tmp_path)
    images = Digits("test")
    batch = {key: np.stack([images[i][key] for i in range(360)]) for key in images.fields}
    loaded = {"test": inference.load(tmp_path), "test_raw": inference.load(f"{tmp_path}@12:raw")}
    # Both were evaluated in training, under these names.
    for name, model in loaded.items():
        np.testing.assert_allclose(metrics[f"{name}/loss"], model.predict(batch)["loss"].mean(), rtol=1e-5)
    assert metrics["test/loss"] != metrics["test_raw/loss"]


def test_a_run_begun_from_weights_resumes_without_them(tiny, finished, tmp_path):
    tiny.init = {"ref": str(finished)}
    fit(tiny, tmp_path / "second")
    finished.rename(tmp_path / "gone")
    (tmp_path / "second" / "checkpoints" / "12").rename(tmp_path / "aside")
    assert fit(tiny, tmp_path / "second")["step"] == 12


def test_evaluations_may_change_on_resuming(tiny, finished):
    tiny.evals.another = tiny.evals.test.to_dict() | {"preprocess": "resize(8)"}
    fit(tiny, finished)
    assert json.loads((finished / "config.json").read_text())["data"]["preprocess"] == "resize(8)"


def test_the_size_of_images_for_the_trained_model_may_change_on_resuming(tiny, tmp_path):
    tiny.model.posemb = "sincos2d"
    fit(tiny, tmp_path)
    tiny.data.eval_preprocess = "resize(12)"
    fit(tiny, tmp_path)
    assert inference.load(tmp_path).image_shape == (12, 12, 1)


def test_a_step_that_does_not_fit_into_the_memory_is_a_mistake(tiny, tmp_path, monkeypatch, capsys):
    def exhausted(self, step, *rest):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(Recorder, "took", exhausted)
    monkeypatch.setattr(Recorder, "is_finite", exhausted)
    with pytest.raises(UserError, match="more memory than a device has, with batch_size=16"):
        fit(tiny, tmp_path)
    assert "nothing was saved" in capsys.readouterr().out


class Refusing(Classification):
    """Finds something wrong with its data when it is too late."""

    def result(self, measured):
        raise UserError("nothing to be measured")


def test_the_state_is_saved_where_an_evaluation_fails(tiny, tmp_path):
    tiny.evals.test.type, tiny.evals.test.every = f"{__name__}:Refusing", 3
    with pytest.raises(UserError, match="nothing to be measured"):
        fit(tiny, tmp_path / "run")
    assert steps_in(tmp_path / "run" / "checkpoints") == [3]


def test_both_halves_of_a_folder_are_divided_alike(tiny, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    folder = {"type": "folder.Folder", "path": str(tmp_path / "data"), "channels": 1}
    tiny.data.source, tiny.evals.test.source = folder | {"holdout": 0.3}, folder | {"split": "test"}
    with pytest.raises(UserError, match=r"data\.source\.holdout is 0\.3 but evals\.test\.source\.holdout is None"):
        fit(tiny, tmp_path / "run")


@pytest.mark.parametrize(("broken", "allowed"), [(1, 0.01), (3, 0.1)])
def test_unreadable_images_are_counted(broken, allowed, tiny, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    for i in range(2, 2 + broken):
        (tmp_path / "data" / "cat" / f"{i}.png").write_bytes(b"not an image")
    folder = {"type": "folder.Folder", "path": str(tmp_path / "data")}
    tiny.data.source, tiny.data.max_unreadable = folder | {"split": "all"}, allowed
    tiny.evals.test.source = folder | {"split": "all"}
    fit(tiny, tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert last["unreadable"] == broken
    assert (last["test/num_examples"], last["test/unreadable"]) == (40 - broken, broken)


@pytest.mark.parametrize("place", sampled(["data", "writer", "interrupt"], "data", "interrupt"))
def test_an_exception_outside_the_step_saves_the_last_state(place, tiny, shared, tmp_path, monkeypatch, capsys):
    error = KeyboardInterrupt if place == "interrupt" else RuntimeError

    def failing(self, step, *rest):
        if step == 6:
            raise error("at step 6")
        return real(self, step, *rest)

    target = {"data": (TrainData, "_make_batch"), "writer": (TensorBoard, "write"), "interrupt": (Recorder, "took")}[
        place
    ]
    real = getattr(*target)
    monkeypatch.setattr(*target, failing)
    with pytest.raises(error, match="at step 6"):
        fit(tiny, tmp_path / "run")
    (saved,) = (step for step in steps_in(tmp_path / "run" / "checkpoints") if step != 4)
    assert saved in (5, 6, 7)
    assert f"step {saved} is saved" in capsys.readouterr().out
    monkeypatch.setattr(*target, real)
    fit(tiny, tmp_path / "run")
    assert checkpoint(tmp_path / "run") == checkpoint(shared[0])


@pytest.mark.parametrize("step", [8, 12])
def test_an_evaluation_that_failed_is_made_when_the_run_resumes(step, tiny, shared, tmp_path, monkeypatch):
    def failing(self, row, *rest):
        if row == step:
            raise RuntimeError("at its end")
        return real(self, row, *rest)

    real = Recorder.evaluated
    monkeypatch.setattr(Recorder, "evaluated", failing)
    with pytest.raises(RuntimeError, match="at its end"):
        fit(tiny, tmp_path / "run")
    monkeypatch.setattr(Recorder, "evaluated", real)
    assert fit(tiny, tmp_path / "run")["test/accuracy"] == rows(shared[0])[-1]["test/accuracy"]
    found, expected = ({r["step"]: r.get("test/accuracy") for r in rows(p)} for p in (tmp_path / "run", shared[0]))
    assert found == expected


@pytest.mark.parametrize(("predicted", "warned"), [([1, 1, 1, 1], True), ([0, 1, 0, 1], True), ([0, 1, 1, 1], False)])
def test_a_classifier_no_better_than_the_most_frequent_class_is_named(predicted, warned):
    rows = {"label": np.array([0, 1, 1, 1]), "predicted": np.array(predicted)}
    said = no_better_than_guessing(rows, ["cat", "dog"])
    assert ("always answering 'dog' is right for 75.00 %" in said) == warned
