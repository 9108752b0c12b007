"""Images of any shape: equal to the plain ViT on square grids, unchanged by padding, positions as other code has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests.peers import torch, transformers
from vit_jax.config.load import load
from vit_jax.data.transforms.ops import patches_that_fit
from vit_jax.data.transforms.preprocess import parse
from vit_jax.layers.patches import Patches, interpolated
from vit_jax.models.vit import ViT
from vit_jax.train.fit import fit
from vit_jax.types import UserError

FIELDS = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}


def patches_of(images, budget, patch=4):
    """Patches of a list of images [h, w, c], each padded to a budget."""
    rng, made = np.random.default_rng(0), parse(f"patchify({patch}, {budget})")
    found = [made({"image": np.asarray(image)}, rng) for image in images]
    pixels = np.stack([x["patches"] for x in found]).astype(np.float32) / 255
    return Patches(jnp.asarray(pixels), *(jnp.asarray(np.stack([x[k] for x in found])) for k in ("coords", "valid")))


def model(pool, posemb="learn", rope=None):
    from vit_jax.layers.rope import Axial

    made = ViT(
        num_classes=3, **FIELDS, pool=pool, posemb=posemb, rope=None if rope is None else Axial(base=100.0), head_bias=0.1,
        posemb_grid=(4, 4) if posemb == "learn" else None,
    )  # fmt: skip
    params = jax.jit(made.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    rng = np.random.default_rng(1)
    return made, {
        "params": jax.tree.map(lambda x: x + 0.1 * jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    }


def picture(h, w, seed=0):
    return np.random.default_rng([seed, h, w]).integers(0, 256, (h, w, 3), np.uint8)


CASES = [("tok", "learn", None), ("map", "learn", None), ("gap", "none", "axial")]


@pytest.mark.parametrize(("pool", "posemb", "rope"), CASES)
def test_square_full_grids_give_what_the_plain_vit_gives(pool, posemb, rope, agrees):
    made, weights = model(pool, posemb, rope)
    images = np.stack([picture(16, 16, seed) for seed in range(3)])
    plain = made.clone(posemb_grid=None)
    expected = jax.jit(plain.apply)(weights, jnp.asarray(images, jnp.float32) / 255)
    agrees("NaFlex", "the plain ViT", jax.jit(made.apply)(weights, patches_of(images, 16)), expected, 1e-5)


@pytest.mark.parametrize(("pool", "posemb", "rope"), CASES)
def test_padding_never_changes_a_result(pool, posemb, rope, agrees):
    """For images of many shapes, more padding, of any content, and other images in the batch change nothing."""
    made, weights = model(pool, posemb, rope)
    rng, apply = np.random.default_rng(0), jax.jit(made.apply)
    images = [picture(4 * rows, 4 * columns) for rows, columns in ((1, 1), (2, 5), (5, 2), (3, 3), (1, 12), (4, 3))]
    whole = patches_of(images, 20)
    garbage = jnp.asarray(rng.normal(size=whole.pixels.shape) * 1e3, jnp.float32)
    wrong = Patches(
        jnp.where(whole.valid[:, :, None], whole.pixels, jnp.where(garbage > 1e3, jnp.nan, garbage)),
        jnp.where(
            whole.valid[:, :, None], whole.coords, jnp.asarray(rng.integers(0, 30, whole.coords.shape), jnp.int32)
        ),
        whole.valid,
    )
    found, padded = apply(weights, whole), apply(weights, wrong)
    agrees("NaFlex", "the same with other padding", padded, found, 1e-5)
    for i, image in enumerate(images):
        tight = patches_of([image], (image.shape[0] // 4) * (image.shape[1] // 4))
        agrees("NaFlex", "the same without padding", jax.jit(made.apply)(weights, tight)[0], found[i], 1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (9, 7), (1, 1), (16, 2)])
def test_positions_are_interpolated_as_torch_does(grid, agrees):
    table = np.random.default_rng(0).normal(size=(4, 4, 5)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(table).permute(2, 0, 1)[None], size=grid, mode="bilinear", align_corners=False, antialias=True
    )
    coords = np.indices(grid).reshape(2, -1).T[None]
    ours = interpolated(jnp.asarray(table), jnp.asarray(coords, jnp.int32), jnp.asarray([grid], jnp.int32))
    agrees("positions of any grid", "torch's interpolate, antialiased", ours[0], theirs[0].flatten(1).T, 1e-5)


def test_images_are_fitted_as_siglip_2_does():
    from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches as theirs

    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w = (int(x) for x in rng.integers(20, 800, 2))
        patch, budget = int(rng.choice([8, 14, 16])), int(rng.choice([16, 64, 256]))
        rows, columns = patches_that_fit(h, w, patch, budget)
        assert rows * columns <= budget
        assert (rows * patch, columns * patch) == theirs(h, w, patch, budget), (h, w, patch, budget)
    assert transformers is not None


def test_images_beyond_the_budget_are_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"which is 8 x 8 patches; resize it before"):
        parse("patchify(4, 16)").image(picture(32, 32))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of two classes and many shapes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "test"):
        for i, name in enumerate(("dark", "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for k in range(6):
                h, w = rng.integers(8, 40, 2)
                Image.fromarray(rng.integers(100 * i, 100 * i + 100, (h, w, 3)).astype(np.uint8)).save(
                    folder / f"{k}.png"
                )
    return root


def config(photos):
    from tests.conftest import ROOT

    made = load(str(ROOT / "configs" / "digits.py"))
    made.steps, made.batch_size, made.log.every, made.checkpoint.every = 3, 6, 1, 3
    made.model = {"type": "vit.ViT", **FIELDS, "pool": "gap", "posemb_grid": (4, 4)}
    made.data.source = {"type": "folder.Folder", "path": str(photos), "split": "train"}
    made.data.preprocess = "fit(4, (4, 9, 16))|patchify(4, 16)"
    made.data.eval_preprocess = "resize(16)"
    test = {
        "type": "classification.Classification",
        "source": {"type": "folder.Folder", "path": str(photos), "split": "test"},
    }
    made.evals = {f"test_{n}": test | {"preprocess": f"fit(4, {n})|patchify(4, {n})", "batch_size": 6} for n in (9, 16)}
    return made


def test_a_run_trains_on_any_shape_and_is_measured_at_several_lengths(photos, tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **facts: compiled.append(facts.get("fun_name", "")) if event.endswith("jaxpr_to_mlir_module_duration") else None
    )  # fmt: skip
    results = fit(config(photos), tmp_path / "run")
    assert {"test_9/accuracy", "test_16/accuracy"} <= set(results)
    assert sum("step" in name for name in compiled) <= 1
    loaded = vit_jax.load(tmp_path / "run")
    assert loaded(photos / "test" / "dark" / "0.png")["logits"].shape == (1, 2)


def test_a_model_without_positions_for_any_shape_is_refused(photos, tmp_path):
    made = config(photos)
    made.model.posemb_grid = None
    with pytest.raises(UserError, match=r"need model\.posemb_grid"):
        fit(made, tmp_path / "run")


def test_an_objective_for_whole_images_is_refused(photos, tmp_path):
    made = config(photos)
    made.task = {"type": "mae.Mae", "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    made.evals = {}
    with pytest.raises(UserError, match="takes whole images"):
        fit(made, tmp_path / "run")
