"""Models converted to another image size give what the source's own code gives at that size."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.dense.made import config_of, write_folder
from tests.peers import torch, transformers
from vit_jax import inference
from vit_jax.__main__ import main as vit
from vit_jax.tasks.task import normalize
from vit_jax.train.fit import fit


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A small ViT for images of 56 px in a folder of transformers."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=56, patch_size=14, num_labels=3, **sizes)
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.add_(0.1 * torch.randn_like(x))
    model.save_pretrained(folder)
    processor = {
        "size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 56, "width": 56},
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, model


@pytest.mark.parametrize(
    ("flag", "size"), [("84", (84, 84)), ("42,70", (42, 70)), ("56", (56, 56)), ("28,112", (28, 112))]
)
def test_logits_at_another_size_are_those_of_transformers(vit_folder, flag, size, tmp_path, agrees):
    folder, model = vit_folder
    out = tmp_path / "out"
    assert vit(["convert", f"--model={folder}", f"--out={out}", "--to=workdir", f"--image_size={flag}"]) == 0
    loaded = inference.load(out)
    assert loaded.image_shape == (*size, 3)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    pixels = np.array(normalize(jnp.asarray(images), loaded.task.mean, loaded.task.std)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels), interpolate_pos_encoding=True).logits.numpy()
    agrees("ViT at another image size", "transformers", loaded(images)["logits"], expected, 1e-5)


def test_its_preprocessing_is_scaled(vit_folder, tmp_path):
    out = tmp_path / "out"
    assert vit(["convert", f"--model={vit_folder[0]}", f"--out={out}", "--to=workdir", "--image_size=112"]) == 0
    plain = inference.load(out).preprocessing
    assert (plain.size, plain.resized) == ((112, 112), 128)


def test_any_image_covers_another_aspect_ratio(vit_folder, tmp_path):
    out = tmp_path / "out"
    assert vit(["convert", f"--model={vit_folder[0]}", f"--out={out}", "--to=workdir", "--image_size=42,70"]) == 0
    loaded = inference.load(out)
    assert (loaded.preprocessing.size, loaded.preprocessing.resized) == ((42, 70), (48, 80))
    for size in ((100, 100), (30, 200), (200, 30)):
        assert loaded.preprocess(np.full((*size, 3), 200, np.uint8)).min() == 200  # nothing is padded


def test_a_model_without_preprocessing_gets_a_resize(tmp_path):
    out = tmp_path / "out"
    assert vit(["convert", "--model=tests/workdirs/plain", f"--out={out}", "--to=workdir", "--image_size=16"]) == 0
    assert inference.load(out).preprocess_spec == "resize(16)"


def test_models_of_pixels_and_wrong_sizes_are_refused(vit_folder, tmp_path, capsys):
    config = config_of(write_folder(tmp_path / "data", {"train": 8, "val": 2}))
    config.steps, config.evals, config.optim.schedule.warmup_steps = 1, {}, 0
    fit(config, tmp_path / "run")
    for model, flag, says in (
        (tmp_path / "run", "64", "train it with config.image_size"),
        (vit_folder[0], "1,2,3", "give one number, or height and width"),
        (vit_folder[0], "0", "--image_size"),
        (vit_folder[0], "60", "60"),
    ):
        assert (
            vit(["convert", f"--model={model}", f"--out={tmp_path / 'x'}", "--to=workdir", f"--image_size={flag}"]) == 2
        )
        assert says in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
