"""The recipes without labels: every stage of them is traced, and they have the papers' settings."""

import ast

import jax
import numpy as np
import pytest

from tests.conftest import sampled
from tests.test_recipes import FAKE, load
from vit_jax.data.transforms.preprocess import parse
from vit_jax.train import fit as training
from vit_jax.train.build import build
from vit_jax.types import UserError

IMAGENET = {"task.mean": (0.485, 0.456, 0.406), "task.std": (0.229, 0.224, 0.225)}
DINO = {
    "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.4, "optim.clip_norm": 3.0, "task.momentum": 0.996,
    "task.hidden": 2048, "task.bottleneck": 256, "model.drop_path": 0.1,
}  # fmt: skip
# What a wrong value of would be a silent defect, from the sources that the recipes name.
FACTS = {
    "mae_i1k": IMAGENET | {
        "epochs": 1600, "batch_size": 4096, "optim.lr": 2.4e-3, "optim.weight_decay": 0.05, "optim.rule.b2": 0.95,
        "optim.clip_norm": None, "optim.schedule.warmup_steps": 40 / 1600, "task.mask_ratio": 0.75, "task.norm_pixels": True,
        "task.decoder_width": 512, "task.decoder_depth": 8, "task.decoder_heads": 16,
        "data.preprocess": "random_resized_crop(SIZE, 0.2, method='bicubic')|flip", "data.source.split": "train",
    },
    "mae_i1k:stage=finetune,init=MODEL": IMAGENET | {
        "epochs": 100, "batch_size": 1024, "optim.lr": 2e-3, "optim.layer_decay": 0.65, "model.drop_path": 0.1,
        "optim.weight_decay": 0.05, "optim.clip_norm": None, "optim.schedule.warmup_steps": 0.05, "optim.schedule.end": 5e-4,
        "task.label_smoothing": 0.1, "task.mix.mixup_alpha": 0.8, "task.mix.cutmix_alpha": 1.0, "model.pool": "gap",
        "model.head.std": 2e-5, "optim.rule.b2": 0.999,
    },
    "mae_i1k:variant=H/14,stage=finetune,init=MODEL": {
        "epochs": 50, "optim.lr": 4e-3, "optim.layer_decay": 0.75, "model.drop_path": 0.3,
    },
    "mae_i1k:variant=L/16,stage=probe,init=MODEL": IMAGENET | {
        "epochs": 50, "batch_size": 16_384, "optim.lr": 6.4, "optim.weight_decay": 0.0, "optim.rule.type": "lars",
        "optim.clip_norm": None, "optim.schedule.warmup_steps": 0.2, "freeze": "^(?!head)", "task.label_smoothing": 0.0,
        "model.head.type": "batch_norm_linear", "model.head.std": 0.01,
    },
    "simmim_i1k": IMAGENET | {
        "epochs": 800, "batch_size": 2048, "optim.lr": 4e-4, "optim.weight_decay": 0.05, "optim.clip_norm": 5.0,
        "optim.schedule.type": "multistep", "optim.schedule.milestones": (0.875,), "optim.schedule.factor": 0.1,
        "optim.schedule.start": 5e-3, "task.mask_ratio": 0.6, "task.unit": 2, "model.drop_path": 0.1, "model.layer_scale": 0.1,
        "data.preprocess": "random_resized_crop(SIZE, 0.67)|flip",
    },
    "simmim_i1k:stage=finetune,init=MODEL": {
        "epochs": 100, "batch_size": 2048, "optim.lr": 5e-3, "optim.layer_decay": 0.65, "optim.clip_norm": 5.0,
        "optim.schedule.warmup_steps": 0.2, "optim.schedule.count_warmup": True,
    },
    "beit_i1k:stage=tokenizer,teacher=MODEL": {
        "epochs": 100, "batch_size": 512, "optim.lr": 2e-4, "optim.weight_decay": 1e-4, "optim.rule.b2": 0.99,
        "task.codes": 8192, "task.code_width": 32, "task.decoder_depth": 3, "teacher": "MODEL", "task.mean": 0.5,
    },
    "beit_i1k:teacher=DIR,epochs=300": IMAGENET | {
        "epochs": 300, "batch_size": 2048, "optim.lr": 1.5e-3, "optim.weight_decay": 0.05, "optim.rule.b2": 0.98,
        "optim.clip_norm": 3.0, "model.drop_path": 0.0, "model.layer_scale": 0.1, "task.smallest_block": 16, "teacher": "DIR",
    },
    "beit_i1k:stage=finetune,init=MODEL,epochs=1600": {
        "epochs": 100, "batch_size": 1024, "optim.lr": 5e-4, "optim.layer_decay": 0.6, "model.drop_path": 0.2,
        "optim.schedule.warmup_steps": 0.2,
    },
    "dino_i1k": IMAGENET | DINO | {
        "epochs": 100, "batch_size": 512, "optim.lr": 1e-3, "task.outputs": 65_536, "task.teacher_temperature": (0.04, 0.04),
        "task.warmup": 0.0, "task.freeze_last": 0.01, "optim.schedule.warmup_steps": 0.1, "optim.schedule.end": 1e-3,
    },
    "dino_i1k:epochs=300": DINO | {
        "batch_size": 1024, "optim.lr": 2e-3, "task.teacher_temperature": (0.04, 0.07), "task.warmup": 0.1,
    },
    "ibot_i1k": IMAGENET | DINO | {
        "epochs": 800, "batch_size": 1024, "optim.lr": 2e-3, "task.outputs": 8192, "task.teacher_temperature": (0.04, 0.07),
        "task.warmup": 30 / 800, "task.freeze_last": 1 / 800, "task.mask_prob": 0.5, "task.mask_ratio": (0.1, 0.5),
        "task.smallest_block": 16,
    },
    "dinov2_i1k": IMAGENET | DINO | {
        "steps": 125_000, "epochs": None, "batch_size": 2048, "optim.lr": 4e-3 * 2**0.5, "task.momentum": 0.992,
        "task.outputs": 65_536, "task.patch_outputs": None, "task.assignment": "centering", "task.koleo_weight": 0.1,
        "model.drop_path": 0.3, "model.drop_path_rule": "constant", "model.layer_scale": 1e-5, "optim.layer_decay": 0.9,
        "optim.multipliers": [("backbone/embed/", {"lr": 0.2})], "model.registers": 0,
    },
    "ijepa_i1k": IMAGENET | {
        "epochs": 300, "batch_size": 2048, "optim.lr": 1e-3, "optim.schedule.start": 0.2, "optim.schedule.end": 1e-3,
        "optim.schedule.warmup_steps": 40 / 300, "optim.weight_decay": 0.04, "optim.weight_decay_end": 0.4,
        "optim.clip_norm": None, "task.predictor_depth": 12, "task.predictor_width": 384, "task.predictor_heads": 16,
        "task.momentum": 0.996, "data.preprocess": "random_resized_crop(SIZE, 0.3)",
    },
    "lejepa_i1k:weight=0.02": IMAGENET | {
        "task.weight": 0.02, "task.directions": 1024, "optim.lr": 5e-4, "optim.weight_decay": 0.05, "optim.schedule.end": 1e-3,
        "optim.clip_norm": None,
    },
    "dino_cifar:data=folder:/images": DINO | {
        "epochs": 200, "batch_size": 512, "optim.lr": 1e-4, "optim.schedule.warmup_steps": 0.15, "optim.schedule.end": 0.01,
        "model.depth": 9, "model.width": 192, "model.num_heads": 12, "model.mlp_dim": 384, "model.patch_size": 4,
        "task.outputs": 1024, "task.hidden": 512, "task.teacher_temperature": (0.04, 0.07), "task.warmup": 0.05,
        "task.freeze_last": 0.005, "image_size": 32,
    },
    "dino_cifar:data=folder:/images,init=MODEL": {
        "epochs": 100, "batch_size": 256, "optim.lr": 1e-3, "optim.weight_decay": 0.05, "data.repeats": 3, "task.mix.prob": 0.5,
        "model.drop_path": 0.1, "task.label_smoothing": 0.1, "optim.schedule.warmup_steps": 0.1,
    },
}  # fmt: skip
# (large views, their shares of the area, small crops, their size and shares)
CROPS = {
    "dino_i1k": (2, 224, (0.4, 1.0), 8, 96, (0.05, 0.4)),
    "ibot_i1k": (2, 224, (0.25, 1.0), 10, 96, (0.05, 0.25)),
    "dinov2_i1k": (2, 224, (0.32, 1.0), 8, 96, (0.05, 0.32)),
    "lejepa_i1k": (2, 224, (0.3, 1.0), 6, 98, (0.05, 0.3)),
    "dino_cifar:data=folder:/images": (2, 32, (0.7, 1.0), 8, 16, (0.2, 0.5)),
}
TRACED = [
    "mae_i1k", "mae_i1k:stage=finetune,init=mu/16", "mae_i1k:stage=probe,init=mu/16", "simmim_i1k",
    "beit_i1k:stage=tokenizer,teacher=mu/16", "dino_i1k", "ibot_i1k", "dinov2_i1k", "ijepa_i1k", "lejepa_i1k",
    "dino_cifar:data=folder:/images", "dino_cifar:data=folder:/images,init=mu/16",
]  # fmt: skip
SMALL = {"width": 16, "depth": 1, "mlp_dim": 16, "num_heads": 2}
NARROW = {"outputs": 8, "hidden": 8, "bottleneck": 4, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2, "codes": 8,
          "predictor_width": 8, "predictor_depth": 1, "predictor_heads": 2, "teacher_width": 32, "directions": 2}  # fmt: skip


def value(config, path):
    for key in path.split("."):
        config = config.get(key)
    return config


@pytest.mark.parametrize("recipe", FACTS)
def test_a_recipe_has_the_settings_of_its_source(recipe):
    config = load(recipe).to_dict()
    for path, expected in FACTS[recipe].items():
        found = value(config, path)
        assert found == (pytest.approx(expected) if isinstance(expected, float) else expected), path


@pytest.mark.parametrize("recipe", CROPS)
def test_the_views_of_a_recipe_are_those_of_its_source(recipe):
    config = load(recipe)
    call = ast.parse(config.data.preprocess.replace("SIZE", str(config.image_size)), mode="eval").body
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    count, size, area, crops, small, shares = CROPS[recipe]
    assert [ast.literal_eval(x) for x in call.args] == [count, crops]
    for spec in (given["view"], given["last_view"]):
        assert spec.startswith(f"random_resized_crop({size}, {area[0]}, {area[1]}")
    assert given["crop"].startswith(f"random_resized_crop({small}, {shares[0]}, {shares[1]}")


@pytest.mark.parametrize("recipe", sampled(TRACED, *TRACED[::2], TRACED[-1]))
def test_every_stage_is_traced(recipe, tmp_path):
    config = load(recipe)
    config.epochs, config.steps, config.batch_size = None, 100, 4
    if "dino_cifar" in recipe and "init" in recipe:  # of images as large as the model that it begins from
        config.image_size, config.data.preprocess = 224, "resize(224)"
    size = config.image_size
    source = FAKE | {"image_size": size, "num_examples": 8}
    config.data.source, config.data.threads = source, 1
    config.evals = {"collapse": {"type": "collapse.Collapse", "source": source, "preprocess": f"resize({size})"}}
    schedule = config.optim.schedule
    schedule.update({key: 0.1 for key in schedule if key.endswith("_steps")})
    if "type" in config.model:
        config.model.update(SMALL)
    config.task.update({key: x for key, x in NARROW.items() if config.task.get(key) is not None})
    parts = build(config.to_dict(), tmp_path / "run").parts
    constants = {"task": parts.task.constants, "data": {}}
    after, metrics = jax.eval_shape(parts.make_step(), constants, parts.shapes, dict(parts.batch))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), parts.shapes)
    assert metrics["loss"].shape == ()


def test_beit_masks_75_of_196_patches():
    assert int(load("beit_i1k:teacher=DIR").task.mask_ratio * 196) == 75


def test_crops_of_a_recipe_are_made():
    config = load("dino_cifar:data=folder:/images")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    made = parse(config.data.preprocess.replace("SIZE", "32"))({"image": image}, np.random.default_rng(0))
    assert {key: x.shape for key, x in made.items()} == {"views": (2, 32, 32, 3), "crops": (8, 16, 16, 3)}


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("mae_i1k:stage=probe", "expected init=MODEL too"),
        ("mae_i1k:epochs=40", "more than the 40 of the warm-up"),
        ("mae_i1k:evals=all", "evals=all, expected val"),
        ("beit_i1k:epochs=800", "expected 300 or 1600"),
        ("ibot_i1k:epochs=30", "more than the 30"),
        ("dino_cifar:data=cifar10", "expected folder:PATH or tfds:NAME"),
        ("dino_cifar_mini:data=cifar10", "expected folder:PATH or tfds:NAME"),
    ],
)
def test_a_wrong_argument_is_told(recipe, says):
    with pytest.raises(UserError, match=says):
        load(recipe)


def test_dino_trains_on_views_made_on_the_device(tmp_path, monkeypatch):
    config = load("dino_cifar_mini:data=folder:/images")
    source = FAKE | {"image_size": 32}
    config.steps, config.batch_size, config.data.source, config.data.resident = 2, 4, source, True
    config.evals, config.data.eval_preprocess = {}, "resize(32)"
    config.model.update(SMALL)
    config.task.update({"outputs": 8, "hidden": 8, "bottleneck": 4})
    assert np.isfinite(training.fit(config, tmp_path / "run")["loss"])
