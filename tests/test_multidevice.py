"""The same numbers on any number of devices, and under jit and pmap."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT, environment, losses, rows, run
from vit_jax import inference

pytestmark = pytest.mark.xdist_group("multidevice")  # so that the run on one device is made once
# What looks at the batch as a whole: partners of mixtures, and a step uphill along the whole gradient.
STEPS = (
    "--config.steps=20",
    "--config.checkpoint.every=10",
    "--config.checkpoint.keep=2",
    "--config.task.mix={'type': 'MixupOrCutMix', 'mode': 'element'}",
    "--config.grad={'type': 'sam.Sam', 'rho': 0.05}",
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run on one device."""
    folder = tmp_path_factory.mktemp("one") / "run"
    run(folder, *STEPS)
    return folder


@pytest.mark.parametrize(("parallel", "devices"), [("jit", 8), ("pmap", 2)])
def test_many_devices_and_1_device_give_the_same_20_losses(tmp_path, one, parallel, devices):
    run(tmp_path / "run", *STEPS, f"--config.parallel={parallel}", devices=devices)
    assert len(losses(one)) == 20
    assert losses(one)[-1] < losses(one)[0]
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5)
    assert rows(tmp_path / "run")[-1]["test/num_examples"] == 360


def test_a_run_of_1_device_goes_on_with_4(tmp_path, one):
    shutil.copytree(one, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "20")  # as if it had been stopped half-way
    assert "resuming at step 10" in run(tmp_path / "run", *STEPS, devices=4)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5)
    loaded = [inference.load(folder) for folder in (one, tmp_path / "run")]
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(*(model(images)["logits"] for model in loaded), atol=1e-4)


def test_parameters_divided_over_devices_give_the_same_losses(tmp_path, one):
    rules = "--config.sharding=[('mlp/up/kernel', (None, 'fsdp')), ('mlp/down/kernel', ('fsdp', None))]"
    run(tmp_path / "fsdp", *STEPS, "--config.mesh={'data': 2, 'fsdp': 2}", rules, devices=4)
    np.testing.assert_allclose(losses(tmp_path / "fsdp"), losses(one), rtol=1e-5)


def test_attention_that_reads_positions_gives_the_same_losses_with_heads_and_parameters_divided(tmp_path):
    steps = (
        "--config.steps=3",
        "--config.model.relative_bias=blocks",
        "--config.model.qkv_bias=qv",
        "--config.model.patch_drop=0.2",
    )
    steps += ("--config.model.rope={'type': 'Mixed'}",)
    for name, mesh, devices in (("one", "{'data': 1}", 1), ("four", "{'fsdp': 2, 'tensor': 2}", 4)):
        run(tmp_path / name, *steps, f"--config.mesh={mesh}", devices=devices)
    np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), rtol=1e-5)


KERNEL = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vit_jax import sharding
from vit_jax.layers import attend

rng = np.random.default_rng(0)
q, k, v, g = (jnp.asarray(rng.standard_normal((8, 5, 2, 4)), "float32") for _ in range(4))
mask, bias = jnp.asarray(rng.random((8, 5)) < 0.7), jnp.asarray(rng.standard_normal((2, 5, 5)), "float32")

def both_passes(form):
    def run(q, k, v, bias, mask, g):
        out, back = jax.vjp(lambda q, k, v, bias: form(q, k, v, mask, bias), q, k, v, bias)
        return out, *back(g)
    return run

mesh = sharding.make_mesh(None, data=2, tensor=2)
batch, whole = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
places = (batch, batch, batch, whole, batch, batch)
found = jax.jit(sharding.on_mesh(both_passes(attend.pallas), mesh), in_shardings=places)(q, k, v, bias, mask, g)
for ours, theirs in zip(found, jax.jit(both_passes(attend.plain))(q, k, v, bias, mask, g), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
"""


def test_the_kernel_sums_the_gradients_of_biases_over_the_devices():
    done = subprocess.run([sys.executable, "-c", KERNEL], cwd=ROOT, env=environment(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
