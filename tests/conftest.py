import contextlib
import gc
import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the suite's time; its toy models need no optimised code.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    )
)
if importlib.metadata.version("jaxlib") < "0.11":  # later ones have no such flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Tests and the runs that they start compile many programs alike; kept in build/, they serve the next run of the suite, too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / "build" / "compiled_in_tests"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import ml_collections
import numpy as np
import psutil
import pytest

import tests.typecheck  # noqa: F401  # the type checker that pyproject.toml names, before anything it checks
from tests.forked import Forked
from vit_jax import main
from vit_jax.checkpoint import saver
from vit_jax.config import load as config_file
from vit_jax.train import fit as training
from vit_jax.train.report import write_report

jax.config.update("jax_numpy_rank_promotion", "raise")
# Ctrl-C is tested too, also where the suite runs in the background of a shell, whose children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent


def tiny_config() -> ml_collections.ConfigDict:
    """Return the digits config with a model that compiles in a second."""
    config = config_file.load(str(ROOT / "configs" / "digits.py"))
    config.steps, config.batch_size = 12, 16
    config.model = {"type": "vit.ViT", "width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2, "patch_size": 4}
    config.optim.schedule.warmup_steps = 2
    config.log.every, config.checkpoint.every, config.evals.test.every = 1, 4, 4
    config.data.preprocess = "pad_crop(8, 1)"
    config.evals.test.preprocess = ""
    return config


@pytest.fixture
def tiny() -> ml_collections.ConfigDict:
    """See tiny_config."""
    return tiny_config()


@pytest.fixture(scope="session", autouse=True)
def without_pictures():
    """Runs in this process draw no report, which takes longer than they do, but within `pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def ends_on_sigterm():
    """A command that ran in this process leaves SIGTERM ignored, which the processes of later tests would inherit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def frees_programs():
    """Clear JAX's caches of compiled programs, which would grow to 6 GB in each worker."""
    yield
    if psutil.Process().memory_info().rss > 3e9:
        jax.clear_caches()
        gc.collect()


@contextlib.contextmanager
def pictures():
    """Let runs in this process draw their reports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_report", write_report)
        yield


@pytest.fixture
def draws():
    """See pictures."""
    with pictures():
        yield


TINY_FLAGS = [
    f"--config={ROOT / 'configs' / 'digits.py'}",
    "--config.model={'type': 'vit.ViT', 'width': 16, 'depth': 1, 'mlp_dim': 32, 'num_heads': 2, 'patch_size': 4}",
    "--config.data.preprocess=pad_crop(8, 1)",
    "--config.evals.test.preprocess=",
    "--config.batch_size=16",
    "--config.optim.schedule.warmup_steps=2",
    "--config.log.every=1",
]


@pytest.fixture
def train():
    """Runs vit_jax.main in this process and gives its exit code."""
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda *flags: main.main([str(flag) for flag in flags])
    signal.signal(signal.SIGTERM, handler)


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a run on so many virtual devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def crossed(*axes: Sequence) -> list:
    """Return all combinations of the values of some axes; the suite runs enough to cover each value, torture the others."""
    sample = {tuple(i % len(axis) for axis in axes) for i in range(max(map(len, axes)))}
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, places, strict=True)),
            marks=() if places in sample else pytest.mark.torture,
        )
        for places in itertools.product(*(range(len(axis)) for axis in axes))
    ]


def sampled(values: Iterable, *sample) -> list:
    """Return a test parameter for each value; those outside the sample run only under torture."""
    return [pytest.param(value, marks=() if value in sample else pytest.mark.torture) for value in values]


def on(names: Iterable[str], sample: Sequence[str], group: Callable[[str], str]) -> pytest.MarkDecorator:
    """Parametrize a test with runs of the fixture `run`; those outside the sample run under torture.

    group: the name of the group of tests that one worker runs.
    """
    params = [
        pytest.param(
            name,
            marks=[pytest.mark.xdist_group(group(name)), *([] if name in sample else [pytest.mark.torture])],
        )
        for name in names
    ]
    return pytest.mark.parametrize("run", params, indirect=True)


WITHOUT_REPORT = (sys.executable, "-m", "tests.train_undrawn")


def start(
    workdir: Path, *flags: str, devices: int = 1, command=(sys.executable, "-m", "vit_jax.main")
) -> subprocess.Popen:
    """A training process of the tiny digits run, as a user starts it."""
    return subprocess.Popen(
        [*command, *TINY_FLAGS, f"--workdir={workdir}", *flags],
        cwd=ROOT, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(workdir: Path, *flags: str, devices: int = 1) -> str:
    """Train the tiny digits run to its end without drawing its report, and return its output."""
    return forked(["train", *TINY_FLAGS, f"--workdir={workdir}", *flags], devices)


def forked(argv: list[str], devices: int = 1) -> str:
    """Run a command to its end without drawing reports, and return its output; see tests/forked.py."""
    process = Forked(argv, environment(devices))
    output = process.wait()
    assert process.returncode == 0, output
    return output


def kill_at(argv: list[str], words: str) -> None:
    """Start a process, and kill it once it prints a line that begins with `words`."""
    process = subprocess.Popen(argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(words):
            break
    process.kill()
    process.communicate()


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> list[float]:
    return [row["loss"] for row in rows(workdir)]


def checkpoint(workdir: Path) -> dict[str, bytes]:
    """The bytes of every array of the last checkpoint."""
    directory = workdir / "checkpoints"
    step = saver.steps_in(directory)[-1]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        for name, leaf in saver.shapes_of(directory, step).items()
    }
    return {name: np.asarray(leaf).tobytes() for name, leaf in saver.restore(directory, step, like).items()}


@pytest.fixture
def agrees(record_property):
    """Asserts that two arrays are equal up to a tolerance, and enters how far they are apart into the table of parity.

    agrees(ingredient, reference, ours, theirs, tolerance): the difference is the largest one, as a share of the largest number
    of `theirs` where that is above 1.
    """

    def check(ingredient: str, reference: str, ours, theirs, tolerance: float) -> None:
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
        difference = float(np.max(np.abs(ours - theirs), initial=0)) / max(
            1.0, float(np.max(np.abs(theirs), initial=0))
        )
        record_property("parity", [ingredient, reference, difference, tolerance])
        assert difference <= tolerance, (
            f"{ingredient}: {difference:.1e} from {reference}, at most {tolerance:.0e} expected"
        )

    return check


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items):
    """Keep the tests that share a fixture of their module on one worker, so that it is made once."""
    for item in items:
        shared = [
            name
            for name, found in item._fixtureinfo.name2fixturedefs.items()
            if found[-1].scope == "module" and found[-1].baseid == item.nodeid.partition("::")[0]
        ]
        if shared and not item.get_closest_marker("xdist_group"):
            params = getattr(item, "callspec", None)
            chosen = [str(params.params[name]) for name in shared if params and name in params.params]
            item.add_marker(pytest.mark.xdist_group("-".join([item.module.__name__, *chosen])))


def pytest_collection_finish():
    """Exclude what was imported from garbage collection: each full collection would take a quarter of a second."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def pytest_terminal_summary(terminalreporter):
    """Prints the table of parity: every ingredient that was compared with code of others."""
    rows: dict[tuple[str, str], tuple[float, float]] = {}
    for report in (r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, [])):
        for name, value in getattr(report, "user_properties", []):
            if name == "parity":
                ingredient, reference, difference, tolerance = value
                worst = max(difference, rows.get((ingredient, reference), (0.0, 0.0))[0])
                rows[ingredient, reference] = worst, tolerance
    if rows:
        terminalreporter.write_line(
            "\n| ingredient | compared with | largest difference | allowed |\n| --- | --- | --- | --- |"
        )
        for (ingredient, reference), (difference, tolerance) in sorted(rows.items()):
            terminalreporter.write_line(f"| {ingredient} | {reference} | {difference:.1e} | {tolerance:.0e} |")
