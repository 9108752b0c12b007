"""Every mistake of malformed_cases: one clear message, exit code 2, nothing compiled, nothing written."""

import os
import signal
import string
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import pytest

from tests.malformed_cases import CASES, SAMPLE, Case, write_images
from vit_jax import __main__ as commands
from vit_jax import main as training

CONFIGS = Path(__file__).parent.parent / "configs"
TINY = """
from configs import digits


def get_config():
    config = digits.get_config()
    config.steps, config.batch_size = 2, 16
    config.model = {
        "type": "vit.ViT", "width": 8, "depth": 1, "mlp_dim": 16, "num_heads": 2, "patch_size": 2, "pool": "gap", "posemb": "learn",
    }
    config.data.preprocess, config.evals.test.preprocess = "pad_crop(8, 1)", ""
    config.optim.schedule.warmup_steps, config.checkpoint.every = 0, 1
    return config
"""
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if event == COMPILE_EVENT else None
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """The small config, a run of it, another config and a data folder."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "tiny.py").write_text(f"import sys\nsys.path.insert(0, {str(CONFIGS.parent)!r})\n{TINY}")
    (folder / "other.py").write_text((CONFIGS / "digits.py").read_text().replace("64", "32"))
    (folder / "digits.py").write_text((CONFIGS / "digits.py").read_text())
    for split in ("train", "test"):
        write_images(folder / "images" / split)
    assert call(training, [f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'run'}"]) == 0
    return folder


def call(module: ModuleType, argv: list[str]) -> int:
    """The exit code of a command line, run in this process."""
    handler, path = signal.getsignal(signal.SIGTERM), sys.path[:]
    try:
        return module.main(argv)
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.path[:] = path


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        if "__pycache__" not in path.parts:
            kind = "link" if path.is_symlink() else "folder"
            found[str(path)] = path.read_bytes() if path.is_file() and kind == "folder" else kind
    return found


def refused(case: Case, tmp: Path, shared: Path, capsys) -> None:
    """Checks that a case is answered as it must be."""
    if case.prepare:
        case.prepare(tmp, shared)
    places = {
        "tmp": tmp,
        "shared": shared,
        "config": shared / "tiny.py",
        "run": shared / "run",
        "images": shared / "images",
    }
    argv = [string.Template(word).safe_substitute(places) for word in case.argv]
    before = contents(tmp) | contents(shared)
    module = training if not argv or argv[0].startswith("--") else commands
    capsys.readouterr()
    compiled.clear()
    if case.devices:
        flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={case.devices}"}
        done = subprocess.run(
            [sys.executable, "-m", module.__name__.removesuffix(".__main__"), *argv],
            env=os.environ | flags,
            capture_output=True,
            text=True,
            timeout=120,
        )
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        code = call(module, argv)
        out, err = capsys.readouterr()

    assert code == 2, out + err
    assert err.startswith("error: "), err
    assert "Traceback" not in out + err, err
    assert len(err.splitlines()) <= 25, err
    assert len(err) <= 4000, err
    for text in case.says:
        wanted = string.Template(text).safe_substitute(places)
        assert any(option in err for option in wanted.split("|")), f"{wanted!r} is not in:\n{err}"
    if not case.late:
        assert not compiled
        assert "compiled" not in out
        assert contents(tmp) | contents(shared) == before


def test_there_are_enough():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 100
    assert set(SAMPLE) <= set(names)
    assert len(SAMPLE) == 15


@pytest.mark.parametrize("case", [case for case in CASES if case.name in SAMPLE], ids=lambda case: case.name)
def test_sample_is_refused(case, tmp_path, shared, capsys):
    refused(case, tmp_path, shared, capsys)


@pytest.mark.torture
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_refused(case, tmp_path, shared, capsys):
    refused(case, tmp_path, shared, capsys)
