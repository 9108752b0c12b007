import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peers
from tests.conftest import losses
from tests.models.helpers import apply
from vit_jax import inference
from vit_jax.models.vit import ViT
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.distill import Distill
from vit_jax.tasks.mixing import Mixup
from vit_jax.tasks.task import normalize
from vit_jax.tasks.teacher import Teacher
from vit_jax.train.build import load_teacher
from vit_jax.train.fit import fit
from vit_jax.types import UserError

torch = peers.torch
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 3), np.uint8)),
    "label": jnp.asarray(RNG.integers(0, 4, 6), jnp.int32),
}
VIT = {"num_classes": 4, "width": 8, "depth": 1, "mlp_dim": 16, "num_heads": 2, "patch_size": 4}
KEY = jax.random.key(0)
SPEC = {"image": jax.ShapeDtypeStruct((8, 8, 3), "uint8")}


def randomised(task, seed):
    shapes = jax.eval_shape(lambda: task.init(KEY, SPEC))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


def parts(distilled=False, **arguments):
    """The task, its student's parameters, and both models' logits of the batch as it is."""
    teacher_task = Classify(ViT(**VIT), mean=0.4, std=0.3)
    teacher = Teacher(teacher_task, {"params": randomised(teacher_task, 1)}, (8, 8, 3))
    task = Distill(ViT(**VIT, distilled=distilled), teacher=teacher, **arguments)
    return task, randomised(task, 2)


def value(task, params, batch=BATCH):
    return jax.jit(lambda p: task.loss(p, {}, task.prepare(batch, KEY, task.constants), KEY))(params)


def logits_of(task, weights):
    return task.predict(weights, {"image": BATCH["image"]})["logits"]


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_both_kinds_equal_deits_loss(kind, agrees):
    """The loss of arXiv:2012.12877 as its authors compute it, from the logits of both heads."""
    task, params = parts(distilled=True, kind=kind, weight=0.3, temperature=3.0)
    _, sown = apply(task.model, params, normalize(BATCH["image"], 0.5, 0.5), train=True, mutable=["intermediates"])
    student, token, teacher = (
        torch.tensor(np.array(x))
        for x in (
            sown["intermediates"]["logits_cls"],
            sown["intermediates"]["logits_dist"],
            logits_of(task.teacher.task, task.constants),
        )
    )
    F = torch.nn.functional
    labels = torch.tensor(np.array(BATCH["label"], np.int64))
    if kind == "soft":
        taught = F.kl_div(F.log_softmax(token / 3, 1), F.log_softmax(teacher / 3, 1), reduction="sum", log_target=True)
        taught = taught * 9 / len(labels)
    else:
        taught = F.cross_entropy(token, teacher.argmax(dim=1))
    expected = 0.7 * F.cross_entropy(student, labels) + 0.3 * taught
    agrees(
        f"distillation: {kind}, two tokens",
        f"torch {torch.__version__.partition('+')[0]}",
        value(task, params)[0],
        expected,
        1e-6,
    )


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher_task = Classify(ViT(**VIT))
    params = randomised(teacher_task, 1)
    task = Distill(ViT(**VIT), teacher=Teacher(teacher_task, {"params": params}, (8, 8, 3)), weight=1.0, mix=Mixup())
    loss_of = jax.jit(lambda p: task.loss(p, {}, task.prepare(BATCH, KEY, task.constants), KEY))
    (loss, (metrics, _)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    assert abs(loss) < 1e-6
    assert metrics["agreement"] == 1
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-5


def test_the_teacher_sees_the_mixed_images_of_the_student():
    task, _ = parts(mix=Mixup(alpha=1.0))
    batch = task.prepare(BATCH, KEY, task.constants)
    expected = task.teacher.task.predict(task.constants, {"image": batch["image"]})["logits"]
    assert batch["image"].dtype == jnp.float32
    np.testing.assert_allclose(batch["teacher"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(batch["teacher"] - logits_of(task.teacher.task, task.constants)).max() > 1e-3


def test_a_teacher_of_another_size_sees_the_images_resized():
    task, _ = parts()
    big = dataclasses.replace(task.teacher, image_shape=(16, 16, 3), task=Classify(ViT(**{**VIT, "patch_size": 8})))
    weights = randomised_for(big)
    enlarged = jax.image.resize(BATCH["image"].astype(jnp.float32), (6, 16, 16, 3), "bilinear")
    expected = big.task.predict(weights, {"image": enlarged})["logits"]
    np.testing.assert_allclose(big.predict(weights, BATCH["image"], "logits"), expected, rtol=1e-4, atol=1e-5)


def randomised_for(teacher):
    spec = {"image": jax.ShapeDtypeStruct(teacher.image_shape, "uint8")}
    shapes = jax.eval_shape(lambda: teacher.task.init(KEY, spec))
    params = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1) + jnp.arange(leaf.size).reshape(leaf.shape) % 3, shapes
    )
    return {"params": params}


def test_no_teacher_and_a_teacher_of_other_classes_are_told():
    with pytest.raises(UserError, match="no teacher; name a model with --config"):
        Distill(ViT(**VIT)).prepare(BATCH, KEY, {})
    task, _ = parts()
    other = Distill(ViT(**{**VIT, "num_classes": 3}), teacher=task.teacher)
    with pytest.raises(UserError, match="4 classes, the training data 3"):
        other.prepare(BATCH | {"label": BATCH["label"] % 3}, KEY, task.constants)
    with pytest.raises(UserError, match=r"task\.weight=2"):
        Distill(ViT(**VIT), weight=2.0)


def test_a_run_learns_from_another_run_and_is_loaded_without_it(tiny, tmp_path):
    fit(tiny, tmp_path / "teacher")
    tiny.teacher = str(tmp_path / "teacher")
    tiny.task = {"type": "distill.Distill", "weight": 0.5, "temperature": 2.0, "mix": {"type": "Mixup", "alpha": 0.5}}
    metrics = fit(tiny, tmp_path / "student")
    assert {"loss_teacher", "loss_labels", "agreement"} <= metrics.keys()
    assert losses(tmp_path / "student")[-1] < losses(tmp_path / "student")[0]
    (tmp_path / "teacher").rename(tmp_path / "gone")
    loaded = inference.load(tmp_path / "student")
    assert loaded(np.zeros((1, 8, 8, 1), np.uint8))["logits"].shape == (1, 10)
    # The teacher's weights are not among what was saved.
    from vit_jax.checkpoint import saver

    names = saver.shapes_of(tmp_path / "student" / "checkpoints", 12)
    assert not [name for name in names if "teacher" in name or name.startswith("frozen")]


def test_a_teacher_of_other_class_names_is_refused_before_the_run_begins(tiny, tmp_path, monkeypatch):
    loaded = SimpleNamespace(names_known=True, class_names=tuple("abcdefghij"))
    monkeypatch.setattr(inference, "load", lambda _: loaded)
    tiny.teacher = "somewhere"
    tiny.task = {"type": "distill.Distill"}
    with pytest.raises(UserError, match="The teacher somewhere has 10 classes such as"):
        fit(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_was_never_trained_is_refused():
    with pytest.raises(UserError, match="head of the teacher mu/16 is untrained"):
        load_teacher("mu/16", tuple("abc"))
