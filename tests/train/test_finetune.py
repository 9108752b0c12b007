"""Runs that begin from a model: what is taken from it, what is trained, and by how much."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conftest import ROOT, checkpoint, rows
from vit_jax import inference, trees
from vit_jax.checkpoint import workdir as workdirs
from vit_jax.checkpoint.transfer.patches import resize_patch_embed, resize_posemb
from vit_jax.config import load as config_file
from vit_jax.config.factory import ConfigError
from vit_jax.data.sources.digits import Digits
from vit_jax.evals.classification import Classification
from vit_jax.evals.evaluator import evaluate
from vit_jax.models.vit import ViT
from vit_jax.optim.layer_decay import scale_by_layer
from vit_jax.tasks.classify import Classify
from vit_jax.tasks.task import backbone_names
from vit_jax.train import begin_from
from vit_jax.train.build import build
from vit_jax.train.fit import fit
from vit_jax.train.settings import fill_by_size, fill_from_model
from vit_jax.types import UserError


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A short run with a model, normalisation and size of its own."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    fit(small(), workdir)
    return workdir


def small(**changes):
    config = config_file.load(str(ROOT / "configs" / "digits.py"))
    config.steps, config.batch_size = 8, 16
    config.model = {"type": "vit.ViT", "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}
    config.task.mean = 0.3
    config.optim.schedule.warmup_steps = 2
    config.log.every, config.checkpoint.every, config.evals.test.every = 1, 4, 4
    config.data.preprocess, config.evals.test.preprocess = "pad_crop(8, 1)", ""
    for key, value in changes.items():
        config[key] = value
    return config


def tuning(first, **changes):
    """A config that leaves model, normalisation and size to the model it begins from."""
    config = small(**changes)
    config.model = changes.get("model", {})
    del config.task.mean
    config.init = {"ref": str(first)}
    config.data.preprocess, config.evals.test.preprocess = "pad_crop(SIZE, 1)", "resize(SIZE)"
    return config


def params(workdir):
    return trees.flatten(jax.device_get(inference.load(workdir).params))


def test_model_normalisation_and_size_are_those_of_the_model_it_begins_from(first, tmp_path):
    run = build(tuning(first, model={"drop_path": 0.1}).to_dict(), tmp_path / "run")
    assert (run.parts.task.model.width, run.parts.task.model.depth, run.parts.task.model.drop_path) == (16, 2, 0.1)
    assert run.parts.task.mean == 0.3
    assert run.data.spec.layout["image"].shape == (8, 8, 1)


@pytest.mark.parametrize(("mean", "expected"), [((0.2,), (0.2,)), ((0.1, 0.2, 0.6), 0.3), (0.4, 0.4)])
def test_images_of_other_channels_are_normalised_by_the_mean_of_the_models(mean, expected):
    config = tuning("somewhere").to_dict()
    config["image_size"] = None
    facts = {"model": {}, "image_size": [8, 8], "mean": mean, "std": mean}
    task = fill_from_model(config, facts, Digits("test"))["task"]
    assert task["mean"] == task["std"] == pytest.approx(expected)


def test_another_image_size_resizes_the_position_embeddings_and_is_reported(first, tmp_path, capsys):
    config = tuning(first, image_size=16)
    config.data.preprocess = "resize(SIZE)|flip"
    run = build(config.to_dict(), tmp_path / "run")
    assert run.data.spec.layout["image"].shape == (16, 16, 1)
    assert run.initial_params["posemb"]["table"].shape == (1, 17, 16)
    with run.opened():
        assert "resized   posemb/table" in capsys.readouterr().out
    report = (tmp_path / "run" / "init.txt").read_text()
    assert len(report.splitlines()) == 1 + len(trees.flatten(run.initial_params))


@pytest.mark.parametrize("asked", ["auto", "bicubic_no_antialias"])
def test_a_run_keeps_how_the_model_it_began_from_is_resized(first, tmp_path, asked):
    loaded = dataclasses.replace(inference.load(first), posemb="bicubic", patches="bicubic")
    config = tuning(first, image_size=16, model={"patch_size": 6, "stride": 2})
    config.data.preprocess = "resize(SIZE)"
    spec = {"image": jax.ShapeDtypeStruct((16, 16, 1), "uint8")}
    task = build(config.to_dict(), tmp_path / "run").parts.task
    began = begin_from.begin(loaded, {"ref": str(first), "posemb": asked}, task, spec, 0).params
    np.testing.assert_array_equal(
        began["posemb/table"],
        resize_posemb(loaded.arrays["posemb/table"], (2, 2), (6, 6), 1, "bicubic" if asked == "auto" else asked),
    )
    np.testing.assert_array_equal(
        began["embed/kernel"], resize_patch_embed(loaded.arrays["embed/kernel"], (6, 6), "bicubic")
    )


def test_a_resumed_run_needs_no_more_of_the_model_it_began_from(first, tmp_path):
    (tmp_path / "source").symlink_to(first)
    config = tuning(tmp_path / "source")
    fit(config, tmp_path / "whole")
    config.steps = 4
    config.optim.schedule = {"type": "constant"}
    other = tuning(tmp_path / "source")
    fit(other, tmp_path / "halves")
    last = tmp_path / "halves" / "checkpoints" / "8"
    last.rename(tmp_path / "taken_away")
    (tmp_path / "source").unlink()
    fit(other, tmp_path / "halves")
    assert checkpoint(tmp_path / "halves") == checkpoint(tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_begins_from_the_model_again(first, tmp_path):
    config = tuning(first)
    build(config.to_dict(), tmp_path / "run")  # leaves config.json and no checkpoint
    assert build(config.to_dict(), tmp_path / "run").initial_params is not None


def test_frozen_parameters_stay_and_have_no_optimiser_state(first, tmp_path):
    config = tuning(first, freeze="^(?!head)")
    run = build(config.to_dict(), tmp_path / "run")
    state = run.parts.shapes
    assert set(trees.flatten(state.params)) == {"head/kernel", "head/bias"}
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
        < 3 * sum(leaf.size for leaf in jax.tree.leaves(state.params)) + 3
    )
    fit(config, tmp_path / "run")
    before, after = params(first), params(tmp_path / "run")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"head/kernel", "head/bias"}


def test_frozen_and_averaged_weights_are_evaluated_as_logged(first, tmp_path):
    fit(tuning(first, freeze="^(?!head)", ema_decay=0.5), tmp_path / "run")
    loaded = inference.load(tmp_path / "run")
    evaluator = Classification(Digits("test"), loaded.preprocess_spec, 360)
    again, _ = evaluate(evaluator, loaded.predictor, loaded.weights)
    assert again["accuracy"] == rows(tmp_path / "run")[-1]["test/accuracy"]


def test_a_regex_that_freezes_nothing_or_everything_is_refused(first, tmp_path):
    for pattern, word in (("backbone", "no parameter"), (".", "every parameter")):
        with pytest.raises(UserError, match=f"finds {word}"):
            build(tuning(first, freeze=pattern).to_dict(), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_layer_factors_are_those_of_the_paper():
    names = ("embed/kernel", "cls", "posemb/table", "encoder/block_0/mlp/up/kernel", "encoder/block_11/norm1/scale", "encoder/norm/scale", "head/kernel")  # fmt: skip
    # arXiv:2111.06377 and its code: layer 0 is the embedding, blocks are 1 to 12, what follows is 13 of 13.
    layers = dict(zip(names, (0, 0, 0, 1, 12, 13, 13), strict=True))
    network = ViT(num_classes=0, width=4, depth=12, mlp_dim=4, num_heads=1, patch_size=4)
    assert {name: network.layer_of(name) for name in names} == layers
    ones = trees.nest({name: jnp.ones(1) for name in names})
    tx = scale_by_layer(0.75, lambda: layers)
    updates, _ = tx.update(ones, tx.init(ones), ones)
    expected = {name: pytest.approx(0.75 ** (13 - layer)) for name, layer in layers.items()}
    assert {name: float(leaf[0]) for name, leaf in trees.flatten(updates).items()} == expected


def test_a_nested_backbone_has_the_layers_of_its_own_names():
    network = ViT(num_classes=0, width=4, depth=2, mlp_dim=4, num_heads=1, patch_size=4)

    class Nested(Classify):
        def init(self, rng, spec):
            return {"backbone": super().init(rng, spec), "head": {"embed": jnp.ones(3)}}

        def backbone(self, weights):
            return self.model, {"params": weights["params"]["backbone"]}

    task = Nested(network, class_names=("a", "b"))
    params = jax.eval_shape(lambda: task.init(jax.random.key(0), {"image": jax.ShapeDtypeStruct((8, 8, 1), "uint8")}))
    layers = backbone_names(task, params).layers(params)
    assert layers["backbone/embed/kernel"] == 0
    assert layers["backbone/encoder/block_1/mlp/up/kernel"] == 2
    assert layers["backbone/encoder/norm/scale"] == layers["head/embed"] == 3


def test_layer_decay_scales_the_update_and_the_weight_decay():
    tree = trees.nest(
        {"encoder/block_0/kernel": jnp.ones(2), "encoder/block_1/kernel": jnp.ones(2), "head/kernel": jnp.ones(2)}
    )
    tx = optax.chain(
        optax.add_decayed_weights(1.0),
        scale_by_layer(0.5, lambda: {"encoder/block_0/kernel": 1, "encoder/block_1/kernel": 2, "head/kernel": 3}),
    )
    updates, _ = tx.update(tree, tx.init(tree), tree)
    assert [float(leaf[0]) for leaf in jax.tree.leaves(updates)] == [0.5, 1.0, 2.0]


def test_keys_without_a_value_follow_from_the_number_of_images():
    config = {
        "by_size": [{"below": 100, "steps": 5, "optim": {"lr": 0.1, "clip_norm": 2.0}}, {"steps": 9}],
        "steps": None, "epochs": None, "optim": {"lr": None, "clip_norm": 1.0},
    }  # fmt: skip
    few, many = fill_by_size(config, 99), fill_by_size(config, 100)
    assert (few["steps"], few["optim"]) == (5, {"lr": 0.1, "clip_norm": 1.0})
    assert (many["steps"], many["optim"]["lr"]) == (9, None)
    assert fill_by_size(config | {"epochs": 2.0}, 99)["steps"] is None


def test_a_part_of_the_size_follows_the_size(first, tmp_path):
    config = tuning(first, image_size=12)
    config.data.preprocess = "resize(SIZE*7//6)|pad_crop(SIZE, 0)"
    fit(config, tmp_path / "run")
    assert workdirs.read(tmp_path / "run")["config"]["data"]["preprocess"] == "resize(14)|pad_crop(12, 0)"


def test_a_size_that_nothing_gives_is_told(tmp_path):
    config = small()
    config.data.preprocess = "pad_crop(SIZE, 1)"
    with pytest.raises(ConfigError, match="give image_size"):
        build(config.to_dict(), tmp_path / "run")


def test_head_reset_drops_the_representation_layer(tmp_path):
    config = small(steps=1)
    config.model.rep_size = 12
    config.optim.schedule.warmup_steps = 0
    fit(config, tmp_path / "first")
    tuned = tuning(tmp_path / "first", steps=1)
    tuned.init = {"ref": str(tmp_path / "first"), "head": "reset"}
    tuned.optim.schedule.warmup_steps = 0
    run = build(tuned.to_dict(), tmp_path / "second")
    assert "rep" not in run.initial_params
    assert not run.initial_params["head"]["kernel"].any()
