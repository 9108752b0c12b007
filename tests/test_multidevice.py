"""The same numbers on any number of devices, and under jit and pmap."""

import numpy as np

from tests.conftest import losses, rows, run
from vit_jax import inference

# What looks at the batch as a whole: partners of mixtures, and a step uphill along the whole gradient.
STEPS = (
    "--config.steps=20",
    "--config.task.mix={'type': 'MixupOrCutMix', 'mode': 'element'}",
    "--config.grad={'type': 'sam.Sam', 'rho': 0.05}",
)


def test_jit_and_pmap_on_8_devices_and_1_device_give_the_same_20_losses(tmp_path):
    run(tmp_path / "one", *STEPS)
    run(tmp_path / "jit", *STEPS, devices=8)
    run(tmp_path / "pmap", *STEPS, "--config.parallel=pmap", devices=8)
    one = losses(tmp_path / "one")
    assert len(one) == 20
    assert one[-1] < one[0]
    for other in ("jit", "pmap"):
        np.testing.assert_allclose(losses(tmp_path / other), one, rtol=1e-5, err_msg=other)
        assert rows(tmp_path / other)[-1]["test/num_examples"] == 360


def test_a_run_of_1_device_goes_on_with_4(tmp_path):
    halfway = ("--config.steps=20", "--config.checkpoint.every=10", "--config.checkpoint.keep=2")
    run(tmp_path / "whole", *halfway)
    run(tmp_path / "halves", *halfway)
    # As if it had been stopped half-way.
    for name in ("checkpoints/20",):
        (tmp_path / "halves" / name).rename(tmp_path / "aside")
    assert "resuming at step 10" in run(tmp_path / "halves", *halfway, devices=4)
    np.testing.assert_allclose(losses(tmp_path / "halves"), losses(tmp_path / "whole"), rtol=1e-5)
    loaded = [inference.load(tmp_path / name) for name in ("whole", "halves")]
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(*(model(images)["logits"] for model in loaded), atol=1e-4)


def test_parameters_divided_over_devices_give_the_same_losses(tmp_path):
    rules = "--config.sharding=[('mlp/up/kernel', (None, 'fsdp')), ('mlp/down/kernel', ('fsdp', None))]"
    run(tmp_path / "one", "--config.steps=5")
    run(tmp_path / "fsdp", "--config.steps=5", "--config.mesh={'data': 2, 'fsdp': 2}", rules, devices=4)
    np.testing.assert_allclose(losses(tmp_path / "fsdp"), losses(tmp_path / "one"), rtol=1e-5)
