"""Every key, flag and operation with values that nobody means: refused in a sentence with exit code 2, or it works; in bounds."""

import ast
import contextlib
import inspect
import pkgutil
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from tests import hostile
from tests.conftest import ROOT, tiny_config
from tests.test_configs import ARGUMENTS, data, load  # noqa: F401
from tests.test_malformed import call, shared  # noqa: F401
from tests.test_recipes import RUNS, toy
from vit_jax import __main__ as commands
from vit_jax import cli, inference
from vit_jax import main as training
from vit_jax.cli import command
from vit_jax.config.schema import KEYS
from vit_jax.data import pipeline
from vit_jax.data.source import UnreadableImage
from vit_jax.data.transforms.preprocess import OPS, parse
from vit_jax.train import build as parts
from vit_jax.train.build import Run, build
from vit_jax.train.fit import fit
from vit_jax.types import UserError

# Of the loop, which the parts of a run alone do not show.
LOOP = ("checkpoint", "log", "evals.test.every")
# Two of every kind of mistake, by key, for the ordinary suite.
SAMPLE = [
    ("batch_size", 10**12), ("batch_size", ""), ("steps", 10**30), ("seed", -1), ("data.workers", 10**12), ("data.threads", 1e308),
    ("data.prefetch", 10**12), ("data.cache_mb", 10**30), ("data.eval_preprocess", 0), ("model.depth", 10**12), ("model.width", 10**9),
    ("optim.lr", float("nan")), ("optim.weight_decay", float("inf")), ("optim.multipliers", [0]), ("evals.test.batch_size", 10**12),
    ("evals.test.every", 0.5), ("mesh.data", 10**12), ("log.every", ""), ("checkpoint.keep", -1), ("optim.clip_norm", 10**5000),
]  # fmt: skip


def begin(config: dict, workdir: Path) -> Run:
    """The parts of a run, with its first batches, and its step as shapes."""
    run = build(config, workdir)
    with contextlib.closing(run.data.from_step(0, min(2, run.parts.steps))) as batches:
        next(batches)
    for evaluator, _ in run.evaluators.values():
        for images in evaluator.passes.values():
            with contextlib.closing(iter(images)) as batches:
                next(batches)
    constants = {"task": run.parts.task.constants, "data": run.data.device_arrays}
    jax.eval_shape(run.parts.make_step(), constants, run.parts.shapes, dict(run.parts.batch))
    return run


def outcome(config: dict, workdir: Path, whole: bool = False) -> str:
    """Return "refused" or "accepted", or what went wrong."""
    try:
        with hostile.bounded():
            if whole:
                fit(ml_collections.ConfigDict(config), workdir)
            else:
                begin(config, workdir)
    except UserError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        shutil.rmtree(workdir, ignore_errors=True)
    return "accepted"


@pytest.mark.parametrize(("path", "value"), SAMPLE, ids=lambda x: hostile.shown(x))
def test_a_sample_of_wrong_values_is_refused(path, value, tmp_path):
    assert outcome(hostile.replaced(tiny_config().to_dict(), path, value), tmp_path / "run") == "refused"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line",
    [
        "predict x --model=y --top=1000000000000", "predict x --model=y --batch_size=0", "evaluate --model=x --data=y --batch_size=nan",
        "bench data --config=x --steps=-1", "bench data --config=x --rounds=1000000000000", "bench data --config=x --counts=1,1000000000000",
        "plan --config=x --num_classes=1e400", "prepare --data=folder:x --out=y --threads=1000000000000",
        "prepare --data=folder:x --out=y --max_unreadable=nan", "prepare --data=folder:x --out=y --min_side=", "report x --watch=inf",
        "sweep x --out=y --jobs=1000000000000", "sweep x --out=y --executor=ray --gpus=-1", "launch slurm --nodes=0.5 -- true",
    ],
)  # fmt: skip
def test_a_number_of_a_flag_is_checked_first(line, capsys):
    assert run(line.split()) == 2
    flag = next(word for word in line.split() if word.rpartition("=")[2] in line.split()[-1]).partition("=")[0]
    assert (
        f"expected {'int' if flag not in ('--max_unreadable', '--watch', '--gpus') else 'finite float'} from"
        in capsys.readouterr().err
    )


def test_batches_beyond_the_memory_of_the_host_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "host_memory", lambda: 5 * 16 * 68.0 - 1)  # five batches of 16 images and labels
    with pytest.raises(UserError, match="prefetch=4 of them ahead"):
        build(tiny_config().to_dict(), tmp_path / "run")
    monkeypatch.setattr(pipeline, "host_memory", lambda: 10 * 360 * 68.0)
    build(tiny_config().to_dict(), tmp_path / "run")


def test_a_state_beyond_the_memory_of_a_device_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "device_memory", lambda _: 1e4)
    with pytest.raises(UserError, match=r"on each device.*mesh\.fsdp"):
        build(tiny_config().to_dict(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_long_preprocess_is_refused_at_once():
    with pytest.raises(UserError, match="500,000 letters, expected at most 10,000") as error:
        parse("flip|" * 100_000)
    assert len(str(error.value)) < 300


TOYS = {"width": "16", "depth": "1", "mlp_dim": "32", "num_heads": "2"}
SMALL = [
    ("steps", "2"),
    ("epochs", "None"),
    ("batch_size", "8"),
    ("optim.schedule.warmup_steps", "1"),
    ("data.threads", "1"),
]


def small(name: str, folder: Path) -> dict:
    """A config at toy size."""
    if name == "tiny":
        return tiny_config().to_dict()
    if name not in ARGUMENTS:
        return toy(name).to_dict()
    sizes = [(f"model.{key}", value) for key, value in TOYS.items() if name != "finetune"]
    return load(name, folder, *SMALL, *sizes).to_dict()


NAMES = ["tiny", *RUNS, *(name for name in ARGUMENTS if name != "digits")]  # tiny is digits, smaller


def keys(config: dict) -> dict[tuple, str]:
    """Return the path of every key, by itself and the types beside it."""
    found = {}
    for path in hostile.places(config):
        part = config
        for name in path.split(".")[:-1]:
            part = part[name]
        parts = [part, *(inner for inner in part.values() if isinstance(inner, dict))] if "." in path else []
        found[path, *(one.get("type") for one in parts)] = path
    return found


def cases(name: str, folder: Path) -> Iterator[tuple[str, str, dict]]:
    """Yield (key, value, config) for every key that no config before had, beside the same types."""
    before = {key for other in NAMES[: NAMES.index(name)] for key in keys(small(other, folder))}
    config = small(name, folder)
    values = hostile.places(config)
    for path in (path for key, path in keys(config).items() if key not in before):
        for value in hostile.values_for(values[path]):
            yield path, hostile.shown(value), hostile.replaced(config, path, value)
        yield path, "misspelt", hostile.misspelt(config, path)


@pytest.mark.torture
@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_config(name, data, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(inference.Loaded, "has_untrained_head", False)  # teachers have random weights
    assert outcome(small(name, data), tmp_path / "run") == "accepted"
    wrong, counts = [], {"refused": 0, "accepted": 0}
    for path, value, config in cases(name, data):
        found = outcome(config, tmp_path / "run", whole=path.startswith(LOOP))
        if found in counts:
            counts[found] += 1
        else:
            wrong.append(f"{path}={value}: {found[:200]}")
            with capsys.disabled():
                print(name, wrong[-1], flush=True)
    with capsys.disabled():
        print(name, counts, len(wrong), flush=True)
    assert not wrong


# Calls that work, of operations that need arguments or others than their defaults.
CALLS = {
    "resize": {"size": 8}, "resize_small": {"size": 8}, "central_crop": {"size": 8}, "inception_crop": {"size": 8},
    "random_resized_crop": {"size": 8}, "pad_crop": {"size": 8, "padding": 1}, "rotate": {"degrees": 10.0}, "simple_crop": {"size": 8},
    "views": {"views": 2, "crops": 1, "view": "resize(8)", "crop": "resize(4)"}, "maybe": {"prob": 0.5, "spec": "flip"},
    "patchify": {"patch": 4, "budget": 64}, "fit": {"patch": 4, "budget": 64}, "color_jitter": {"brightness": 0.3},
}  # fmt: skip


def operations() -> list[str]:
    """Return specs of every operation, with each of its arguments wrong in every way."""
    specs = []
    for name, maker in OPS.items():
        if name == "drop":
            continue
        parameters = inspect.signature(maker).parameters.values()
        given = {p.name: p.default for p in parameters if p.default is not p.empty} | CALLS.get(name, {})
        for key, value in given.items():
            for wrong in hostile.values_for(value):
                text = {"nan": "nan", "inf": "1e999"}.get(str(wrong), repr(wrong))
                rest = [f"{k}={text if k == key else repr(v)}" for k, v in given.items()]
                specs.append(f"{name}({', '.join(rest)})")
        specs.append(f"{name}({', '.join(f'{k}x={v!r}' for k, v in given.items())}, x=1)")
    return specs


@pytest.mark.parametrize("name", OPS)
def test_every_argument_of_a_preprocess_operation(name):
    wrong = []
    for spec in (text for text in operations() if text.startswith(f"{name}(")):
        for shape in ((20, 30, 3), (1, 1, 1)):
            try:
                with hostile.bounded(memory=2**30):
                    parse(spec)({"image": np.full(shape, 100, np.uint8)}, np.random.default_rng(0))
            except (UserError, UnreadableImage):
                continue
            except Exception as error:
                wrong.append(f"{spec[:150]} on {shape}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


TEXTS = (
    "",
    " ",
    "x",
    "-1",
    "0",
    "0.5",
    "1" + "0" * 12,
    "1" + "0" * 5000,
    "1e400",
    "nan",
    "inf",
    "None",
    "(",
    "x" * 5000,
    "\u2028",
    "--x",
)
# A command that works, by name; $run is a trained model.
COMMANDS = {
    "main": "--config=$config --workdir=$tmp/run",
    "train": "train --config=$config --workdir=$tmp/run",
    "bench step": "bench step --config=$config --steps=1 --rounds=1",
    "bench loop": "bench loop --config=$config --steps=1 --rounds=1",
    "bench data": "bench data --config=$config --steps=1 --rounds=1 --counts=1",
    "bench inference": "bench inference --config=$config --steps=1 --rounds=1 --batch_size=1",
    "convert": "convert --model=$run --to=npz --out=$tmp/new.npz",
    "evaluate": "evaluate --model=$run --data=digits --evaluator=classification --batch_size=360",
    "explain": "explain $images/test/cat/0.png --model=$run --out=$tmp/out --method=rollout",
    "export": "export --model=$run --to=stablehlo --out=$tmp/out",
    "features": "features --model=$run --data=folder:$images --out=$tmp/new.npy",
    "init": "init $tmp/new",
    "launch tpu": "launch tpu --name=a --zone=us-west4-a --type=v5litepod-8 --committed --dry-run -- true",
    "launch slurm": "launch slurm --dry-run -- true",
    "models": "models --json",
    "plan": "plan --config=$config --json",
    "predict": "predict $images/test/cat/0.png --model=$gray",
    "prepare": "prepare --data=folder:$images --out=$tmp/out",
    "preview": "preview --config=$config --out=$tmp/out --scan=5 --images=2",
    "report": "report $run --out=$tmp/out",
    "search build": "search build $images/test --model=$run --index=$tmp/index",
    "search query": "search query $images/test/cat/0.png --index=$index",
    "search duplicates": "search duplicates --index=$index",
    "serve": "serve --model=$run --port=0",
    "summary": "summary --model=$run",
    "tokenizer": "tokenizer --data=pairs:$pairs --out=$tmp/new.json",
    "sweep": "sweep $sweep --out=$tmp/out --dry-run",
}
# What would rightly run for ever, or take the machine.
MEANT = {("--watch", "0.5"), ("--watch", "without")}


def flags_of(argv: list[str], monkeypatch) -> list:
    """Return the flags that a command line is parsed with."""
    parsers: list[command.Parser] = []

    def parse_known(parser: command.Parser, argv: list[str]) -> None:
        parsers.append(parser)
        raise UserError("seen")

    with monkeypatch.context() as patch:
        patch.setattr(command.Parser, "parse", parse_known)
        assert run(argv) == 2
    return [
        a
        for a in parsers[0]._actions
        if "--help" not in a.option_strings and not any("KEY" in o for o in a.option_strings)
    ]


def run(argv: list[str]) -> int:
    return call(training if argv[0].startswith("--") else commands, argv)


def command_lines(base: list[str], actions: list) -> list[tuple[str, str, list[str]]]:
    """Return (flag, text, command line) for every flag and argument with every text, and misspelt."""
    lines = []
    end = base.index("--") if "--" in base else len(base)
    for action in actions:
        flag = action.option_strings[-1] if action.option_strings else None
        for text in TEXTS:
            if (flag, text) in MEANT or (flag is None and text.startswith("-")):
                continue
            if flag is None:
                at = next(
                    (
                        i
                        for i, word in enumerate(base[1:end], 1)
                        if not word.startswith("-")
                        and word not in ("step", "loop", "data", "inference", "build", "query", "duplicates")
                    ),
                    end,
                )
                lines.append((action.dest, text, [*base[:at], text, *base[at + 1 :]]))
            else:
                rest = [word for word in base[:end] if word.partition("=")[0] != flag]
                lines.append((flag, text, [*rest, f"{flag}={text}", *base[end:]]))
        if flag is not None:
            rest = [word for word in base[:end] if word.partition("=")[0] != flag]
            lines.append((flag, "misspelt", [*rest, f"{flag}x=1", *base[end:]]))
            if (flag, "without") not in MEANT:
                lines.append((flag, "without", [*rest, flag, *base[end:]]))
    return lines


def test_every_command_is_tried():
    names = {info.name for info in pkgutil.iter_modules(cli.__path__)} - {"command"}
    assert {name.split()[0] for name in COMMANDS} == {*names, "main"}


@pytest.mark.torture
@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command(name, shared, tmp_path, capsys, monkeypatch):  # noqa: F811
    (tmp_path / "sweep.py").write_text(
        f"from vit_jax.runs.sweeps.space import Sweep, product\ndef get_sweep():\n    return Sweep({str(shared / 'tiny.py')!r}, product({{'optim.lr': [0.1]}}))\n"
    )
    image = shared / "images/test/cat/0.png"
    (tmp_path / "pairs.csv").write_text(f"image,text\n{image},a cat\n{image},the same cat\n")
    places = {
        "$config": shared / "tiny.py",
        "$run": shared / "run",
        "$gray": shared / "run",
        "$images": shared / "images",
        "$pairs": tmp_path / "pairs.csv",
        "$index": tmp_path / "index",
        "$sweep": tmp_path / "sweep.py",
        "$tmp": tmp_path / "t",
    }
    if "$index" in COMMANDS[name]:
        assert (
            run(
                f"search build {shared / 'images' / 'test'} --model={shared / 'run'} --index={tmp_path / 'index'}".split()
            )
            == 0
        )
    monkeypatch.setattr("vit_jax.serve.app.run", lambda *_: None)  # which would serve for ever
    base = COMMANDS[name].split()
    for key, place in places.items():
        base = [word.replace(key, str(place)) for word in base]
    wrong, codes = [], {0: 0, 2: 0}
    monkeypatch.chdir(ROOT if name == "launch tpu" else tmp_path)  # which sends a commit
    for flag, text, argv in [("", "as it is", base), *command_lines(base, flags_of(base, monkeypatch))]:
        shutil.rmtree(tmp_path / "t", ignore_errors=True)
        (tmp_path / "t").mkdir()
        capsys.readouterr()
        try:
            with hostile.bounded():
                code = run(argv)
            out, err = capsys.readouterr()
            found = (
                "" if code in codes and "Traceback" not in out + err and len(err) < 6000 else f"{code}: {err[-300:]}"
            )
            codes[code] = codes.get(code, 0) + 1
            if not flag and code:
                found = f"does not work: {err[-300:]}"
        except (Exception, SystemExit) as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            wrong.append(f"{name} {flag}={text[:40]!r}: {found[:300]}")
            with capsys.disabled():
                print(wrong[-1], flush=True)
    with capsys.disabled():
        print(name, codes, len(wrong), flush=True)
    assert not wrong


# Of other programs, which an error advises to call.
THEIRS = {"--head", "--unshallow", "--qos", "--no-deps"}


def test_an_error_names_only_flags_that_there_are(monkeypatch):
    known = {"--help", "--config.KEY", "--evaluator.KEY", "--method.KEY", *THEIRS}
    for line in COMMANDS.values():
        known |= {option for action in flags_of(line.split(), monkeypatch) for option in action.option_strings}
    named = {}
    for path in Path(command.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise):
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
                for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", " ".join(texts)):
                    named[flag] = path.name
    assert len(named) > 15
    keys = ("--config.", "--evaluator.", "--method.")
    assert {flag: file for flag, file in named.items() if flag not in known and not flag.startswith(keys)} == {}
    tops = {flag.split(".")[1] for flag in named if flag.startswith("--config.")}
    assert tops <= set(KEYS) | {"KEY"}
