"""The recipes of papers: they train, have the papers' settings, and say where those are from."""

import re

import jax
import numpy as np
import pytest

from tests.conftest import ROOT, sampled
from tests.test_configs import ARGUMENTS
from vit_jax import inference
from vit_jax.config import factory as configs
from vit_jax.config import load as config_file
from vit_jax.data.transforms.preprocess import parse
from vit_jax.train import fit as training
from vit_jax.train.build import build
from vit_jax.train.settings import fill_in
from vit_jax.types import UserError

NO_RECIPES = {"__init__", "arguments", "common", "imagenet", "stages", "cifar_mini", "scratch", "towers"}
# Those with captions, or with images of any shape, are in tests/words/test_recipes.py.
NO_RECIPES |= {"siglip", "clip", "lit", "cappa", "naflex", "flexivit"}
# Traced stage by stage by test_labelfree_recipes.py.
LABELFREE = {
    "mae_i1k",
    "simmim_i1k",
    "beit_i1k",
    "ijepa_i1k",
    "lejepa_i1k",
    "dino_i1k",
    "ibot_i1k",
    "dinov2_i1k",
    "dino_cifar",
}
DENSE = {"segment", "detect"}  # built by tests/dense/test_configs.py
RECIPES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - NO_RECIPES - DENSE - set(ARGUMENTS))
FAKE = {"type": "fake.Fake", "num_examples": 16, "image_size": 40, "num_classes": 1000}

# One run of each, with every kind of model, objective, gradient and update rule among them.
RUNS = [
    "augreg:variant=R+Ti/16",
    "deit:teacher=mu/16",
    "deit3",
    "distill:teacher=mu/16",
    "mixer",
    "sam:method=gsam,variant=B/16",
    "scaling_vit:variant=B/16",
    "swin:version=2",
    "vit",
    "vit_s16_i1k",
]
# Other paths through them, which are traced whole but not compiled.
PATHS = ["deit3:variant=B/16,init=mu/16", "deit3:data=i21k", "sam:method=sam,model=mixer,variant=B/16"]

# What a wrong value of would be a silent defect, from the sources that the recipes name.
FACTS = {
    "vit:variant=L/16,data=i1k": {
        "epochs": 300, "batch_size": 4096, "optim.lr": 3e-3, "optim.weight_decay": 0.3, "optim.clip_norm": 1.0,
        "optim.schedule.type": "cosine", "optim.schedule.warmup_steps": 10_000, "model.dropout": 0.1, "model.rep_size": 1024,
        "model.head_bias": -10.0, "task.loss_name": "sigmoid_xent", "data.source.split": "train[:99%]",
    },
    "vit:variant=B/32,data=i21k": {
        "epochs": 90, "batch_size": 4096, "optim.lr": 1e-3, "optim.weight_decay": 0.03, "optim.clip_norm": None,
        "optim.schedule.type": "linear", "optim.schedule.end": 0.01, "model.dropout": 0.1, "model.rep_size": 768,
    },
    "augreg:variant=L/16,data=i21k": {
        "epochs": 300, "batch_size": 4096, "optim.lr": 1e-3, "optim.weight_decay": 0.1, "optim.clip_norm": 1.0,
        "optim.schedule.type": "cosine", "optim.schedule.warmup_steps": 10_000, "model.dropout": 0.0, "model.drop_path": 0.0,
        "model.rep_size": None, "model.head_bias": -10.0, "task.mix.alpha": 0.5, "task.loss_name": "sigmoid_xent",
        "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 20)",
    },
    "augreg:variant=R50+L/32,data=i21k": {
        "model.dropout": 0.1, "model.drop_path": 0.1, "task.mix.alpha": 0.2,
        "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 15)",
    },
    "augreg:variant=R+Ti/16,data=i1k": {"model.rep_size": 192, "model.head_bias": -6.9, "task.mix.alpha": None},
    "augreg:aug=strong2,wd=0.03,drop=0.1,epochs=30": {
        "epochs": 30, "optim.weight_decay": 0.03, "model.dropout": 0.1, "model.drop_path": 0.1, "task.mix.alpha": 0.8,
        "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 20)",
    },
    "augreg:aug=none,drop=0.0": {"task.mix.alpha": None, "data.preprocess": "inception_crop(SIZE)|flip"},
    "augreg:aug=light1": {"task.mix.alpha": None, "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 0)"},
    "vit_s16_i1k:epochs=300": {
        "epochs": 300, "batch_size": 1024, "optim.lr": 1e-3, "optim.weight_decay": 0.1, "optim.clip_norm": 1.0,
        "optim.schedule.type": "cosine", "optim.schedule.warmup_steps": 10_000, "model.variant": "S/16", "model.pool": "gap",
        "model.posemb": "sincos2d", "model.rep_size": 384, "task.mix.alpha": 0.2, "task.loss_name": "softmax_xent",
        "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 10)",
    },
    "deit:variant=B/16": {
        "epochs": 300, "batch_size": 1024, "optim.lr": 1e-3, "optim.weight_decay": 0.05, "optim.clip_norm": None,
        "model.drop_path": 0.1, "model.mlp": "gelu", "model.weight_init": "trunc_normal", "model.head.std": 0.02, "task.label_smoothing": 0.1, "task.mix.mixup_alpha": 0.8,
        "task.mix.cutmix_alpha": 1.0, "data.repeats": 3, "ema_decay": None, "data.source.split": "train",
    },
    "deit:teacher=MODEL,epochs=1000": {
        "epochs": 1000, "model.distilled": True, "task.kind": "hard", "task.weight": 0.5, "teacher": "MODEL",
        "task.label_smoothing": 0.1,
    },
    "deit3:variant=S/16,epochs=800": {
        "image_size": 224, "optim.lr": 4e-3, "model.drop_path": 0.05, "optim.weight_decay": 0.05, "batch_size": 2048,
        "optim.rule.type": "lamb", "optim.rule.eps": 1e-8, "optim.clip_norm": 1.0, "task.loss_name": "bce",
        "task.label_smoothing": 0.0, "task.target_threshold": 0.0, "data.repeats": 3, "model.drop_path_rule": "constant",
        "model.layer_scale": 1e-4, "model.posemb_prefix": False,
        "data.preprocess": "random_resized_crop(SIZE, method='bicubic')|flip|three_augment(0.3)",
    },
    "deit3:variant=L/16,epochs=400": {
        "image_size": 192, "optim.lr": 3e-3, "model.drop_path": 0.4, "optim.weight_decay": 0.02, "epochs": 400,
    },
    "deit3:variant=H/14,data=i21k": {
        "image_size": 126, "optim.lr": 1e-3, "model.drop_path": 0.5, "optim.weight_decay": 0.02, "epochs": 90,
        "task.loss_name": "softmax_xent", "task.label_smoothing": 0.1, "task.mix.type": "CutMix", "task.mix.alpha": 1.0,
        "data.repeats": 1, "data.preprocess": "simple_crop(SIZE)|flip|three_augment(0.3)", "optim.rule.type": "lamb",
    },
    "deit3:variant=B/16,init=MODEL,size=384": {
        "image_size": 384, "optim.lr": 1e-5, "model.drop_path": 0.15, "optim.weight_decay": 0.1, "epochs": 20, "batch_size": 512,
        "optim.rule.type": "adam", "optim.clip_norm": None, "optim.schedule.end": 1.0, "data.repeats": 1, "init.ref": "MODEL",
        "task.loss_name": "softmax_xent", "task.label_smoothing": 0.1, "task.mix.mixup_alpha": 0.8,
    },
    "deit3:variant=B/16,data=i21k,init=MODEL": {
        "optim.lr": 3e-4, "model.drop_path": 0.15, "optim.weight_decay": 0.02, "epochs": 50, "batch_size": 2048,
        "optim.rule.type": "lamb", "data.source.name": "imagenet2012", "task.mix.type": "CutMix",
    },
    "sam": {
        "epochs": 300, "batch_size": 4096, "optim.lr": 3e-3, "optim.weight_decay": 0.3, "optim.schedule.type": "linear",
        "optim.schedule.end": 0.01, "optim.schedule.warmup_steps": 10_000, "grad.rho_max": 0.6, "grad.rho_min": 0.1,
        "grad.alpha": 0.6, "grad.adaptive": False, "model.pool": "gap", "model.variant": "B/32", "task.loss_name": "sigmoid_xent",
        "data.preprocess": "inception_crop(SIZE)|flip",
    },
    "sam:model=mixer,variant=B/16": {"grad.rho_max": 0.5, "grad.rho_min": 0.2, "grad.alpha": 0.01},
    "sam:method=adamw": {"grad.type": "gradient.Plain", "optim.lr": 3e-3, "optim.weight_decay": 0.3},
    "sam:method=sam,model=mixer,variant=B/16": {"grad.type": "sam.Sam", "grad.rho": 0.2, "model.type": "mixer.Mixer"},
    "mixer:variant=L/16,data=i21k": {
        "epochs": 300, "batch_size": 4096, "optim.lr": 1e-3, "optim.weight_decay": 0.1, "optim.schedule.type": "linear",
        "optim.schedule.warmup_steps": 10_000, "model.drop_path": 0.1, "model.scale_by_keep": False, "model.head_bias": -10.0, "task.mix.alpha": 0.5,
        "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 20)", "task.loss_name": "sigmoid_xent",
    },
    "mixer": {"task.mix.alpha": 0.5, "data.preprocess": "inception_crop(SIZE)|flip|randaug(2, 15)", "model.head_bias": -6.9},
    "scaling_vit": {
        "steps": 1_000_000, "epochs": None, "batch_size": 16_384, "optim.lr": 8e-4, "optim.weight_decay": 0.03,
        "optim.multipliers": [("^head/", {"weight_decay": 100.0})], "optim.rule.type": "adafactor",
        "optim.schedule.type": "rsqrt", "optim.schedule.timescale": 10_000, "optim.schedule.warmup_steps": 10_000,
        "optim.schedule.cooldown_steps": 50_000, "model.pool": "map", "model.variant": "g/14",
    },
    "swin:variant=B": {
        "epochs": 300, "batch_size": 1024, "optim.lr": 1e-3, "optim.weight_decay": 0.05, "optim.clip_norm": 5.0, "image_size": 224,
        "optim.schedule.warmup_steps": 20 / 300, "model.drop_path": 0.5, "model.window": 7, "data.repeats": 1,
    },
    "swin:variant=T,version=2,window=16": {"image_size": 256, "model.version": 2, "model.window": 16, "model.drop_path": 0.2},
    "swin:variant=B,init=MODEL": {
        "epochs": 30, "optim.lr": 4e-5, "optim.weight_decay": 1e-8, "image_size": 384, "model.window": 12, "init.ref": "MODEL",
    },
    "distill:teacher=MODEL": {
        "epochs": 300, "batch_size": 4096, "optim.lr": 1e-3, "optim.weight_decay": 0.3, "optim.schedule.warmup_steps": 5_000,
        "task.weight": 1.0, "task.temperature": 1.0, "task.mix.alpha": 1.0, "task.kind": "soft", "image_size": 224,
    },
    "distill:teacher=MODEL,data=flowers,epochs=1000000": {
        "epochs": 1_000_000, "batch_size": 512, "optim.lr": 3e-4, "optim.weight_decay": 1e-5 / 3e-4, "task.temperature": 1.0,
        "optim.schedule.warmup_steps": 1_500, "image_size": 128, "data.source.name": "oxford_flowers102",
    },
}  # fmt: skip


def load(recipe):
    name, colon, argument = recipe.partition(":")
    return config_file.load(f"{ROOT / 'configs' / name}.py{colon}{argument}")


def toy(recipe):
    """A recipe for two steps on made-up images of 32 pixels, with a model of one narrow block."""
    config = load(recipe)
    config.epochs, config.steps, config.batch_size, config.image_size = None, 2, 8, 32
    config.data.source, config.data.threads, config.evals = FAKE, 1, {}
    schedule = config.optim.schedule
    schedule.update({key: 0 for key in schedule if key.endswith("_steps")})
    if config.model.get("type") == "swin.Swin":
        config.model.update({"width": 8, "depths": (1, 1), "num_heads": (2, 2)})
    elif "type" in config.model:
        mlp = ("tokens_mlp_dim", "channels_mlp_dim") if config.model.type == "mixer.Mixer" else ("mlp_dim", "num_heads")
        config.model.update({"width": 16, "depth": 1} | dict.fromkeys(mlp, 2))
    if "rep_size" in config.model:
        config.model.rep_size = 16
    return config


@pytest.mark.parametrize("recipe", [recipe for recipe in RUNS if recipe.partition(":")[0] in ("deit", "mixer", "sam")])
def test_a_recipe_trains_at_toy_size(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(inference.Loaded, "has_untrained_head", False)  # the teacher has random weights
    metrics = training.fit(toy(recipe), tmp_path / "run")
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize("recipe", sampled([*RUNS, *PATHS], *[*RUNS, *PATHS][::2]))
def test_every_way_through_a_recipe_is_traced(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(inference.Loaded, "has_untrained_head", False)  # the teacher has random weights
    assert build(toy(recipe).to_dict(), tmp_path / "run").parts.steps == 2


def test_every_recipe_is_trained():
    assert {recipe.partition(":")[0] for recipe in RUNS} == set(RECIPES) - LABELFREE


@pytest.mark.parametrize("recipe", FACTS)
def test_a_recipe_has_the_settings_of_its_source(recipe):
    config = configs.flatten_config(load(recipe).to_dict())
    assert {key: config.get(key) for key in FACTS[recipe]} == FACTS[recipe]


def test_deit_learns_at_timms_rates():
    optim = load("deit").to_dict()["optim"]
    steps = 300 * 1251
    schedule = configs.build(optim["schedule"], "optim.schedule", steps=steps)

    def rate(step):
        return optim["lr"] * schedule(step)

    np.testing.assert_allclose(
        [rate(0), rate(5 * 1251), rate(steps)],
        [1e-6, 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi / 60)), 1e-5],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "recipe", [*RUNS, *PATHS, "distill:teacher=mu/16,data=pets", "deit3:variant=B/16,init=mu/16,size=384"]
)
def test_training_and_evaluation_images_have_the_size_that_a_recipe_says(recipe):
    config = fill_in(load(recipe).to_dict(), None, configs.build(FAKE, "data.source"))
    image, rng = np.zeros((260, 300, 3), np.uint8), np.random.default_rng(0)
    for spec in (config["data"]["preprocess"], *(entry["preprocess"] for entry in config["evals"].values())):
        assert parse(spec).image(image, rng).shape == (config["image_size"], config["image_size"], 3), spec


# Millions of parameters, with a head of 1000 classes: arXiv:2106.10270 (table 2), facebookresearch/deit, arXiv:2105.01601
# (table 1, without the head of 0.8M), arXiv:2106.04560 (table 2, without pooling and head).
@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("augreg:variant=R26+S/32", 36.6),
        ("deit:variant=Ti/16,teacher=MODEL", 5.9),
        ("mixer", 59.9),
        ("scaling_vit:variant=Ti/16", 6.2),
    ],
)
def test_the_models_of_recipes_are_built_at_full_size(recipe, millions):
    model = configs.build(load(recipe).to_dict()["model"], "model", num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    logits, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert logits.shape == (1, 1000)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("vit:B/16", "found 'B/16', expected KEY=VALUE with a key of variant, data"),
        ("vit:variant=H/14", "expected B/16 or B/32"),
        ("vit:data=i1k,data", "expected KEY=VALUE"),
        ("vit:source=/images", "folder:PATH or tfds:NAME"),
        ("vit:evals=real", "expected val or all"),
        ("augreg:wd=0.2", "expected auto or 0.1 or 0.03"),
        ("augreg:epochs=1e3", "epochs=1e3, expected a whole number"),
        ("deit:epochs=5", "more than the 5 of the warm-up"),
        ("deit3:epochs=300", "expected 400 or 800"),
        ("deit3:variant=S/16,init=MODEL", "settings to fine-tune B/16, L/16, H/14 of i1k"),
        ("deit3:size=384", "without init"),
        ("sam:rho=0.1", "method=gsam"),
        ("sam:method=sam,rho=high", "expected a number"),
        ("distill", "teacher=MODEL"),
        ("distill:teacher=MODEL,data=pets,epochs=100", "epochs=3000 or 1000 or 30000"),
    ],
)
def test_a_wrong_argument_is_told(recipe, says):
    with pytest.raises(UserError, match=says):
        load(recipe)


def test_imagenet_may_be_in_a_folder_whose_path_has_commas():
    config = load("vit_s16_i1k:source=folder:/a,b=c,d,epochs=150")
    assert config.data.source.to_dict() == {"type": "folder.Folder", "path": "/a,b=c,d", "split": "train"}
    assert {name: evaluator.source.split for name, evaluator in config.evals.items()} == {"val": "val"}
    assert config.epochs == 150


def test_more_is_measured_where_it_is_asked_for():
    few_shot = {"few_shot": "imagenet2012"}
    assert set(load("vit").evals) == {"val", "minival"}
    for data, more in (("i21k", few_shot), ("i1k", {"v2": "imagenet_v2", "real": "imagenet2012_real"} | few_shot)):
        evals = load(f"vit:data={data},evals=all").to_dict()["evals"]
        assert more.items() <= {name: entry["source"]["name"] for name, entry in evals.items()}.items()
        for name, entry in evals.items():
            target = configs.resolve(entry["type"], "vit_jax.evals", name)
            assert set(entry) - {"type", "every"} <= set(configs.parameters(target))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_paper_and_its_commands_and_says_that_it_was_not_run(name):
    text = (ROOT / "configs" / f"{name}.py").read_text().split('"""')[1]
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert "None of this was run here." in " ".join(text.split())
    commands = re.findall(r"python -m vit_jax.main --config=configs/(\S+)\.py(\S*) --workdir=", text)
    assert commands
    for recipe, argument in commands:
        assert recipe == name
        load(recipe + argument)
