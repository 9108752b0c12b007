import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from tests.conftest import checkpoint, rows
from vit_jax import inference
from vit_jax.checkpoint.saver import steps_in
from vit_jax.data.sources.digits import Digits
from vit_jax.evals.classification import Classification
from vit_jax.runs.sweeps.controller import STOPPED
from vit_jax.train.loop import fit
from vit_jax.train.metrics import NonFiniteLossError
from vit_jax.types import UserError


def test_a_run_leaves_what_its_users_look_for(tiny, tmp_path, capsys):
    metrics = fit(tiny, tmp_path / "run")
    out = capsys.readouterr().out
    assert "ETA" in out
    assert "images/s" in out
    assert f"test accuracy {100 * metrics['test/accuracy']:.2f} %" in out
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["batch_size"] == 16
    assert record["versions"]["jax"]
    assert record["data"]["class_names"] == list("0123456789")
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))
    assert {
        "loss",
        "accuracy",
        "lr",
        "grad_norm",
        "param_norm",
        "update_norm",
        "images_per_second_per_device",
        "data_wait",
    } <= set(rows(tmp_path / "run")[0])
    for name in ("curves.png", "predictions.png"):
        with Image.open(tmp_path / "run" / "report" / name) as picture:
            assert min(picture.size) > 300
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_resumed_run_is_bit_identical(tiny, tmp_path):
    fit(tiny, tmp_path / "whole")
    fit(tiny, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoints" / "12").rename(tmp_path / "aside")  # back to step 8
    fit(tiny, tmp_path / "parts")
    assert checkpoint(tmp_path / "parts") == checkpoint(tmp_path / "whole")
    assert [r["loss"] for r in rows(tmp_path / "parts")] == [r["loss"] for r in rows(tmp_path / "whole")]
    assert [r["step"] for r in rows(tmp_path / "parts")] == list(range(1, 13))


def test_a_finished_run_stays_as_it_is(tiny, tmp_path):
    first = fit(tiny, tmp_path)
    before = checkpoint(tmp_path)
    assert fit(tiny, tmp_path) == first
    assert checkpoint(tmp_path) == before


def test_the_best_checkpoint_is_kept_beside_the_last(tiny, tmp_path):
    tiny.checkpoint.update(keep=1, best="test/loss", best_mode="max")  # the worst loss is that of the first evaluation
    fit(tiny, tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 12]


def test_only_free_keys_may_change_on_resuming(tiny, tmp_path):
    fit(tiny, tmp_path)
    tiny.log.every, tiny.data.threads = 3, 4
    fit(tiny, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["changes"][-1]["keys"] == ["data.threads", "log.every"]
    before = (tmp_path / "config.json").read_bytes()
    tiny.optim.lr = 0.5
    with pytest.raises(UserError, match=r"optim\.lr: 0\.00\d+ there, 0\.5 here"):
        fit(tiny, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


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
    good = rf"^{STOPPED}norm of the parameters after step 6 is nan; the last good checkpoint is of step 3, in "
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


def test_a_run_may_begin_from_the_weights_of_another(tiny, tmp_path):
    fit(tiny, tmp_path / "first")
    tiny.init = {"ref": f"{tmp_path / 'first'}@8"}
    tiny.optim.lr = 0.0
    fit(tiny, tmp_path / "second")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    outputs = [inference.load(ref)(images)["logits"] for ref in (f"{tmp_path / 'first'}@8", tmp_path / "second")]
    np.testing.assert_array_equal(*outputs)


def test_weights_of_another_model_are_refused_by_name(tiny, tmp_path):
    fit(tiny, tmp_path / "first")
    tiny.init = {"ref": str(tmp_path / "first")}
    tiny.model.width = 32
    with pytest.raises(UserError, match=r"shape: cls is \(1, 1, 16\), here \(1, 1, 32\)"):
        fit(tiny, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_the_average_of_the_weights_is_loaded_unless_raw_is_asked_for(tiny, tmp_path):
    tiny.ema_decay = 0.9
    metrics = fit(tiny, tmp_path)
    images = Digits("test")
    batch = {
        "image": np.stack([images.image(i) for i in range(360)]),
        "label": np.array([*map(images.label, range(360))]),
    }
    loaded = {"test": inference.load(tmp_path), "test_raw": inference.load(f"{tmp_path}@12:raw")}
    # Both were evaluated in training, under these names.
    for name, model in loaded.items():
        np.testing.assert_allclose(metrics[f"{name}/loss"], model.predict(batch)["loss"].mean(), rtol=1e-5)
    assert metrics["test/loss"] != metrics["test_raw/loss"]


def test_a_run_begun_from_weights_resumes_without_them(tiny, tmp_path):
    fit(tiny, tmp_path / "first")
    tiny.init = {"ref": str(tmp_path / "first")}
    fit(tiny, tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    (tmp_path / "second" / "checkpoints" / "12").rename(tmp_path / "aside")
    assert fit(tiny, tmp_path / "second")["step"] == 12


def test_evaluations_may_change_on_resuming(tiny, tmp_path):
    fit(tiny, tmp_path)
    tiny.evals.another = tiny.evals.test.to_dict() | {"preprocess": "resize(8)"}
    fit(tiny, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["data"]["preprocess"] == "resize(8)"


class Refusing(Classification):
    """Finds something wrong with its data when it is too late."""

    def __call__(self, predict):
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


def test_unreadable_images_are_counted(tiny, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "data" / "cat" / "3.png").write_bytes(b"not an image")
    folder = {"type": "folder.Folder", "path": str(tmp_path / "data")}
    tiny.data.source = folder | {"split": "all"}
    tiny.evals.test.source = folder | {"split": "all"}
    fit(tiny, tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert last["unreadable"] == 1
    assert (last["test/num_examples"], last["test/unreadable"]) == (39, 1)
