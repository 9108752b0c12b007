import re
import types

import jax
import pytest

from vit_jax.chips import CHIPS, chip_of, hardware


def device(kind, coords=(0, 0, 0)):
    return types.SimpleNamespace(device_kind=kind, coords=coords, id=0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200")],
)
def test_chips_are_found_by_device_kind(kind, name):
    assert chip_of([device(kind)]).name == name


def test_a_cpu_and_an_unknown_chip_have_no_peak():
    assert chip_of(jax.devices()) is None
    assert chip_of([device("TPU v99")]) is None


def test_two_cores_share_a_chip():
    cores = [device("TPU7x", (x, 0, 0)) for x in (0, 0, 1, 1)]
    assert chip_of(cores).flops == CHIPS["TPU7x"].flops / 2


def test_hardware_is_described_by_number_and_kind():
    accelerators = [types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")] * 8
    assert hardware(accelerators) == "8 x TPU v5 lite"
    assert re.fullmatch(r"cpu: .+ x \d+ cores", hardware(jax.devices()))
