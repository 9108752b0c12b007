import pytest

from vit_jax.runs.sweeps import devices
from vit_jax.types import UserError


@pytest.fixture
def installed(monkeypatch):
    """Pretend that JAX's plugins for GPUs and TPUs are installed."""
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: object())


def machine(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_gpus_are_those_that_jax_would_use(installed, tmp_path):
    folder = machine(tmp_path, "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")
    assert devices.gpus({}, folder) == ["0", "1"]
    assert devices.gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-8a"}, folder) == ["3", "GPU-8a"]
    assert devices.gpus({"CUDA_VISIBLE_DEVICES": ""}, folder) == []
    assert devices.gpus({"JAX_PLATFORMS": "cpu"}, folder) == []
    assert devices.gpus({"JAX_PLATFORMS": "cuda,cpu"}, folder) == ["0", "1"]


def test_tpu_chips_are_those_that_jax_would_use(installed, tmp_path):
    assert devices.tpu_chips({}, machine(tmp_path / "old", "accel0", "accel1")) == ["0", "1"]
    assert devices.tpu_chips({}, machine(tmp_path / "new", "vfio/0", "vfio/1", "vfio/vfio")) == ["0", "1"]
    assert devices.tpu_chips({"JAX_PLATFORMS": "cpu"}, tmp_path / "old") == []


def test_jobs_have_gpus_of_their_own_or_equal_parts_of_one(monkeypatch):
    monkeypatch.setattr(devices, "tpu_chips", lambda environment: [])
    monkeypatch.setattr(devices, "gpus", lambda environment: ["0", "1", "2", "3"])
    shares = devices.split_devices(2, {})
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0,1", "2,3"]
    assert len(devices.split_devices(None, {})) == 4
    shares = devices.split_devices(8, {})
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == [*"01230123"]
    assert {share.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.450"}
    own = devices.split_devices(8, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})[0].environment
    assert own == {"CUDA_VISIBLE_DEVICES": "0"}
    assert devices.split_devices(1, {})[0].environment == {}


def test_jobs_have_a_tpu_chip_each_and_are_clusters_of_their_own(monkeypatch):
    monkeypatch.setattr(devices, "tpu_chips", lambda environment: ["0", "1", "2", "3"])
    shares = devices.split_devices(None, {})
    assert [share.environment["TPU_VISIBLE_CHIPS"] for share in shares] == [*"0123"]
    assert len({share.environment["JAX_COORDINATOR_ADDRESS"] for share in shares}) == 4
    assert {share.environment["JAX_NUM_PROCESSES"] for share in shares} == {"1"}
    with pytest.raises(UserError, match="--jobs=3 on 4 TPU chips; expected 4, one per chip, or 1"):
        devices.split_devices(3, {})


def test_all_jobs_have_equally_many_cores(monkeypatch):
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {2, 3, 5, 7, 8})
    assert devices.split_cores(2) == [(2, 3), (5, 7)]
    assert devices.split_cores(1) == [(2, 3, 5, 7, 8)]
    assert devices.split_cores(7) == [(2,), (3,), (5,), (7,), (8,), (2,), (3,)]
