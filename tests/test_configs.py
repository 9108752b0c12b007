"""Every config is a run that begins; those of papers are in test_recipes.py."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, sampled
from vit_jax.config import factory, schema
from vit_jax.config import load as config_file
from vit_jax.train import fit as training
from vit_jax.train import settings
from vit_jax.train.build import build
from vit_jax.types import UserError

# What a config needs to be told, and what makes a run of it small enough for a test.
ARGUMENTS = {
    "cifar10": "folder:{data}",
    "digits": "",
    "dino": "",
    "mae": "",
    "labelfree": "ibot,data=folder:{data}",
    "finetune": "model=mu/8,data=folder:{data},size=32",
    "small_data": "data=folder:{data},aug=strong",
    "cifar10_fast": "data=folder:{data}",
    "mae_cifar_mini": "data=folder:{data}",
    "dino_cifar_mini": "data=folder:{data}",
    "ibot_cifar_mini": "data=folder:{data}",
    "lejepa_cifar_mini": "data=folder:{data}",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten classes of small JPEG files in train and test folders."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for label in range(10):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{i}.jpg")
    return folder


def load(name, data, *overrides):
    argument = ARGUMENTS[name].format(data=data)
    return config_file.load(f"{ROOT / 'configs' / name}.py" + (f":{argument}" if argument else ""), overrides)


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(("key", "text"), [("steps", "60"), ("steps", "7"), ("epochs", "2"), ("epochs", "0.5")])
def test_small_configs_take_any_length(name, key, text, data):
    config = load(name, data, (key, text)).to_dict()
    source = factory.build(config["data"]["source"], "data.source")
    config = schema.check(settings.fill_by_size(config, len(source)))
    steps = factory.steps_of(config, 10_000)
    factory.build(config["optim"]["schedule"], "optim.schedule", steps=steps)
    assert steps == (int(text) if key == "steps" else round(float(text) * 10_000 / config["batch_size"]))


# Trained at toy size; the others have parts that these and the runs of other tests have, and are traced.
TRAINED = ("cifar10", "finetune", "small_data", "cifar10_fast", "dino", "lejepa_cifar_mini")


@pytest.mark.parametrize("name", sampled(ARGUMENTS, *(name for name in ARGUMENTS if name not in TRAINED)))
def test_one_step_of_every_config_has_the_shapes_of_its_state(name, data, tmp_path):
    two_blocks = () if name == "finetune" else [("model.depth", "2")]  # of the width and all else of the config
    parts = build(load(name, data, *two_blocks).to_dict(), tmp_path / "run").parts
    state, constants = parts.shapes, parts.constants
    after, metrics = jax.eval_shape(parts.make_step(), constants, state, dict(parts.batch))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("name", sampled(ARGUMENTS, *TRAINED))
def test_every_config_trains_at_toy_size(name, data, tmp_path):
    toy = [("steps", "2"), ("epochs", "None"), ("batch_size", "8"), ("optim.schedule.warmup_steps", "1")]
    toy += [  # fine-tuning takes the size of its model
        (f"model.{key}", value)
        for key, value in {"width": "16", "depth": "1", "mlp_dim": "32", "num_heads": "2"}.items()
        if name != "finetune"
    ]
    metrics = training.fit(load(name, data, *toy), tmp_path / "run")
    assert np.isfinite(metrics["loss"])


def test_every_key_of_common_is_a_key_of_training():
    assert set(config_file.load(str(ROOT / "configs" / "common.py"))) == set(schema.KEYS)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "pets", "flowers", "imagenet"])
@pytest.mark.parametrize("recipe", ["vit", "augreg"])
def test_the_papers_fine_tuning_is_said_for_each_of_their_datasets(kind, recipe):
    config = config_file.load(f"{ROOT / 'configs' / 'finetune.py'}:model=B/16,data={kind},recipe={recipe}")
    assert (config.batch_size, config.optim.clip_norm, config.image_size, config.init.head) == (512, 1.0, 384, "reset")
    assert config.steps == {"imagenet": 20_000, "pets": 500, "flowers": 500}.get(kind, 10_000)
    assert config.optim.rule.to_dict() == {"type": "sgd", "momentum": 0.9, "momentum_dtype": "bfloat16"}
    assert config.data.source.type == "tfds.Tfds"


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("", "expected model=MODEL,data=DATA"),
        ("B/16", "expected KEY=VALUE"),
        ("model=B/16", "expected model=MODEL,data=DATA"),
        ("model=B/16,data=cifar", "cifar10, cifar100"),
        ("model=B/16,data=pets,recipe=mine", "recipe=mine, expected vit or augreg"),
        ("model=B/16,data=pets,size=big", "number of pixels"),
        ("model=B/16,data=pets,size=0", "number of pixels"),
        ("model=B/16,data=cifar10:x", "tfds:NAME or folder:PATH"),
        ("model=B/16,data=folder:", "tfds:NAME or folder:PATH"),
        ("modl=B/16,data=pets", "modl"),
    ],
)
def test_a_wrong_argument_of_finetune_is_told(argument, says):
    with pytest.raises(UserError, match=says):
        config_file.load(f"{ROOT / 'configs' / 'finetune.py'}:{argument}")


def test_a_folder_may_have_a_comma_in_its_name():
    config = config_file.load(f"{ROOT / 'configs' / 'finetune.py'}:model=B/16,data=folder:/a,b=c,size=64")
    assert (config.data.source.path, config.image_size) == ("/a,b=c", 64)


def test_a_part_that_is_optional_can_be_left_out():
    fine_tuning = "configs/finetune.py:model=hf:google/vit-base-patch16-224,data=cifar10"
    assert config_file.load(fine_tuning).init is not None
    assert config_file.load(fine_tuning, [("init", "None")]).init is None
    assert config_file.load("configs/deit.py", [("task.mix", "None")]).task.mix is None
    with pytest.raises(UserError, match=r"--config\.optim is 'None'; expected a whole part"):
        config_file.load("configs/deit.py", [("optim", "None")])


def test_configs_share_no_values():
    first, before = schema.defaults(), schema.defaults().to_dict()
    first.checkpoint.best, first.log.wandb, first.optim.layer_decay, first.data.eval_preprocess = "x", "y", 0.5, "z"
    first.mesh.fsdp, first.init = 2, {"ref": "somewhere"}
    assert schema.defaults().to_dict() == before
