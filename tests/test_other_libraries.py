"""Other libraries' words get what they are called here; helps have examples."""

import pytest

from tests.conftest import ROOT
from vit_jax import __version__
from vit_jax.__main__ import main as vit
from vit_jax.config import factory, other_libraries, schema
from vit_jax.config import load as config_file
from vit_jax.data.transforms.preprocess import parse
from vit_jax.models.sizes import MIXER_SIZES, SIZES, fill_variant
from vit_jax.types import UserError

DIGITS = str(ROOT / "configs" / "digits.py")


@pytest.mark.parametrize(
    ("word", "ours"),
    {
        "--lr=1e-3": "--config.optim.lr=1e-3",
        "--learning-rate=1e-3": "--config.optim.lr=1e-3",
        "--batch-size=32": "--config.batch_size=32",
        "--num_train_epochs=5": "--config.epochs=5",
        "--model=vit_tiny_patch16_224": "--config.model.variant=Ti/16",
        "--output_dir=x": "--workdir=DIR",
        "--data-path=x": "configs/scratch.py:data=folder:PATH",
        "--amp": "--config.model.dtype=bfloat16",
        "--config.learning_rate=1": "--config.optim.lr=1",
        "--config.optim.wd=1": "--config.optim.weight_decay=1",
        "--config.model=deit_small_patch16_224": "--config.model.variant=S/16",
        "--config.model.variant=vit_base_patch32_224": "model.variant=B/32",
        "--config.model.variant=ViT-L/14": "model.variant=L/14",
    }.items(),
)
def test_flags_of_others_get_ours(word, ours, train, tmp_path, capsys):
    assert train(f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}", word) == 2
    assert ours in capsys.readouterr().err


def test_a_flag_and_its_value_apart_get_the_same_hint(train, tmp_path, capsys):
    assert train("--batch_size", "32", f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}") == 2
    assert "--config.batch_size=32" in capsys.readouterr().err


def test_every_key_that_is_hinted_at_exists():
    config = factory.flatten_config(schema.defaults().to_dict())
    known = {key.rpartition(".")[0] for key in config} | set(config)
    arguments = {
        f"{seam}.{name}"
        for seam, package in factory.SEAMS.items()
        for target in factory.types_in(package).values()
        for name in factory.parameters(target)
    }
    assert set(other_libraries.KEYS.values()) <= known | arguments | {"model.variant"}


@pytest.mark.parametrize("name", [name for name, ours in other_libraries.TRANSFORMS.items() if ours])
def test_every_transform_that_is_hinted_at_parses(name):
    parse(other_libraries.TRANSFORMS[name].format(64))


@pytest.mark.parametrize(
    ("spec", "hint"),
    {
        "RandomResizedCrop(64)": "random_resized_crop(64)",
        "Resize(256)|CenterCrop(224)": "resize_small(256)",
        "CenterCrop(224)": "central_crop(224)",
        "RandomHorizontalFlip(0.5)": "'flip'",
        "ToTensor": "leave it out",
        "Normalize(0.5, 0.5)": "leave it out",
        "flip_lr": "'flip'",
        "decode|flip": "leave it out",
    }.items(),
)
def test_transforms_of_others_get_ours(spec, hint):
    with pytest.raises(UserError) as error:
        parse(spec)
    assert hint in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_224",
        "timm/vit_small_patch16_224.augreg_in21k",
        "deit_small_patch16_224",
        "ViT-S/16",
        "vit-s-16",
        "S16",
    ],
)
def test_model_names_of_others_name_a_size(name):
    assert other_libraries.variant_of(name) == "S/16"


def test_sizes_that_are_hinted_at_exist():
    assert {
        other_libraries.variant_of(f"vit_{letter}_patch16").partition("/")[0]
        for letter in other_libraries._LETTERS
        if len(letter) > 2
    } <= SIZES.keys() | MIXER_SIZES.keys()


def test_a_variant_takes_the_place_of_the_fields_it_stands_for():
    config = config_file.load(DIGITS, [("model.variant", "S/16")])
    model = fill_variant(config.model.to_dict())
    assert (model["width"], model["depth"], model["mlp_dim"], model["num_heads"], model["patch_size"]) == (
        384,
        12,
        1536,
        6,
        16,
    )
    assert model["pool"] == "gap"


def test_a_field_after_a_variant_changes_it():
    config = config_file.load(DIGITS, [("model.variant", "S/16"), ("model.depth", "3")])
    assert fill_variant(config.model.to_dict())["depth"] == 3


@pytest.mark.parametrize(
    "command", sorted(p.stem for p in (ROOT / "vit_jax" / "cli").glob("[a-z]*.py") if p.stem != "command")
)
def test_every_help_has_examples_of_its_command(command, capsys):
    for words_ in [[command], *([[command, "tpu"], [command, "slurm"]] if command == "launch" else [])]:
        if words_ == ["launch"]:
            continue
        with pytest.raises(SystemExit):
            vit([*words_, "--help"])
        assert f"  vit {' '.join(words_)}" in capsys.readouterr().out.partition("examples:")[2]


def test_bench_help_is_of_its_kind_alone(capsys):
    with pytest.raises(SystemExit):
        vit(["bench", "step", "--help"])
    out = capsys.readouterr().out
    assert "inference" not in out
    assert "--counts" not in out
    assert "--peer" in out


def test_version_is_printed(capsys):
    assert vit(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"vit_jax {__version__}"
