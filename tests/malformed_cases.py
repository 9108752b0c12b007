"""Mistakes that users make, and what the message about each must say.

In a command line $tmp is the case's own folder, $config a small config, $run a trained workdir of it, $images a data folder.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line that must be refused.

    argv: the words after `python -m vit_jax.main`, or after `python -m vit_jax` where the first is a command. says: what the
    message must contain. prepare: makes the files of the case in its folder, given that folder and that of the shared files.
    devices: run in a process of its own with that many virtual devices. late: is only seen once the model runs.
    """

    name: str
    argv: tuple[str, ...]
    says: tuple[str, ...]
    prepare: Callable[[Path, Path], object] | None = None
    devices: int = 0
    late: bool = False


CASES: list[Case] = []
# A mark of every kind of mistake for the ordinary test suite.
SAMPLE = (
    "misspelt_key", "unknown_type", "wrong_kind", "type_only_changed", "batch_not_shared", "patch_does_not_tile",
    "no_data_folder", "one_class", "splits_differ", "other_config", "checkpoint_of_another_model", "unwritable_workdir",
    "config_syntax_error", "hostile_model_type", "evaluate_unknown_class",
)  # fmt: skip


def case(name: str, *argv: str, says: str | tuple[str, ...], **options) -> None:
    CASES.append(Case(name, argv, (says,) if isinstance(says, str) else says, **options))


def train(name: str, *argv: str, says: str | tuple[str, ...], config: str = "$config", **options) -> None:
    case(name, f"--config={config}", "--workdir=$tmp/run", *argv, says=says, **options)


def folder(
    name: str, *argv: str, says: str | tuple[str, ...], path: str = "$tmp/data", op: str = "", **options
) -> None:
    """Training on a data folder, and evaluating on its test split."""
    source = f"{{'type': 'folder.Folder', 'path': '{path}', 'channels': 1"
    train(
        name,
        f"--config.data.source={source}}}",
        f"--config.evals.test.source={source}, 'split': 'test'}}",
        f"--config.data.preprocess={op}",
        f"--config.evals.test.preprocess={op}",
        *argv,
        says=says,
        **options,
    )


def file(name: str, text: str | bytes) -> Callable[[Path, Path], object]:
    """Writes one file."""

    def prepare(tmp: Path, shared: Path) -> None:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return prepare


def config_file(body: str) -> Callable[[Path, Path], object]:
    """Writes bad.py: the small config changed by one line."""

    def prepare(tmp: Path, shared: Path) -> None:
        small = (shared / "tiny.py").read_text()
        (tmp / "bad.py").write_text(small.replace("    return config", f"    {body}\n    return config"))

    return prepare


def write_image(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> None:
    """A PNG file of noise, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)


def write_images(root: Path, classes: str = "cat dog", count: int = 4) -> None:
    """A folder of classes."""
    for i, name in enumerate(classes.split()):
        for j in range(count):
            write_image(root / name / f"{j}.png", seed=100 * i + j)


def images(
    change: Callable[[Path], object] = lambda data: None, classes: str = "cat dog"
) -> Callable[[Path, Path], object]:
    """A data folder with train and test sub-folders, then changed."""

    def prepare(tmp: Path, shared: Path) -> None:
        for split in ("train", "test"):
            write_images(tmp / "data" / split, classes)
        change(tmp / "data")

    return prepare


def run(change: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    """A copy of the trained workdir, then changed."""

    def prepare(tmp: Path, shared: Path) -> None:
        shutil.copytree(shared / "run", tmp / "run")
        change(tmp / "run")

    return prepare


def record(change: Callable[[dict], object]) -> Callable[[Path, Path], object]:
    """A copy of the trained workdir with another config.json."""

    def edit(workdir: Path) -> None:
        content = json.loads((workdir / "config.json").read_text())
        content = change(content) or content
        (workdir / "config.json").write_text(json.dumps(content))

    return run(edit)


def truncate(workdir: Path) -> None:
    """Cuts every file of the checkpoints in half."""
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(pattern: str) -> Callable[[Path], None]:
    """Empties the files that match."""

    def change(root: Path) -> None:
        found = [path for path in root.glob(pattern) if path.is_file()]
        assert found, pattern
        for path in found:
            path.write_bytes(b"")

    return change


# The config file.
case("config_missing", "--config=$tmp/tiny.py", "--workdir=$tmp/run", says=("no file", "tiny.py", "get_config()"))
case("config_near", "--config=$shared/tinny.py", "--workdir=$tmp/run", says=("tinny.py", "did you mean", "/tiny.py or"))
train("config_is_folder", config="$shared", says=("no file", "expected|give"))
train("config_empty_name", config="", says="--config")
train(
    "config_syntax_error",
    config="$tmp/bad.py",
    prepare=file("bad.py", "def get_config(:\n"),
    says=("bad.py", "SyntaxError"),
)
train(
    "config_no_get_config",
    config="$tmp/bad.py",
    prepare=file("bad.py", "x = 1\n"),
    says=("no get_config()", "expected"),
)
train("config_get_config_no_function", config="$tmp/bad.py", prepare=file("bad.py", "get_config = 3\n"), says="bad.py")
train(
    "config_returns_list", config="$tmp/bad.py", prepare=file("bad.py", "def get_config(): return [1]\n"),
    says=("returned a list", "expected the ConfigDict of ml_collections"),
)  # fmt: skip
train("config_returns_none", config="$tmp/bad.py", prepare=file("bad.py", "def get_config(): pass\n"), says="NoneType")
train(
    "config_raises", config="$tmp/bad.py", prepare=file("bad.py", "def get_config():\n    return 1 / 0\n"),
    says=("bad.py:2", "ZeroDivisionError"),
)  # fmt: skip
train(
    "config_exits", config="$tmp/bad.py", prepare=file("bad.py", "import sys\n\ndef get_config(): sys.exit(0)\n"),
    says=("bad.py:3", "SystemExit"),
)  # fmt: skip
train(
    "config_recursion", config="$tmp/bad.py", prepare=file("bad.py", "def get_config(): return get_config()\n"),
    says="RecursionError",
)  # fmt: skip
train(
    "config_import_error",
    config="$tmp/bad.py",
    prepare=file("bad.py", "import nowhere_to_be_found\n"),
    says=("bad.py:1", "nowhere"),
)
train("config_binary", config="$tmp/bad.py", prepare=file("bad.py", bytes(range(256))), says="bad.py")
train("config_not_python", config="$tmp/bad.txt", prepare=file("bad.txt", "seed: 3\n"), says="is not a Python file")
train("config_unwanted_argument", config="$shared/digits.py:small", says=("get_config", "argument"))
train("config_bare_seams", config="$tmp/bad.py", says="lacks",
      prepare=file("bad.py", "import ml_collections\ndef get_config(): return ml_collections.ConfigDict()\n"))  # fmt: skip
train("config_numpy_value", config="$tmp/bad.py", says=("data.preprocess", "ndarray"),
      prepare=config_file("import numpy; config.unlock(); del config.data['preprocess']; config.data.preprocess = numpy.zeros(3)"))  # fmt: skip
train("config_function_value", config="$tmp/bad.py", says=("model.width", "function"),
      prepare=config_file("config.unlock(); del config.model['width']; config.model.width = lambda: 3"))  # fmt: skip
train("config_number_as_key", config="$tmp/bad.py", says=("config", "key that is not a string"),
      prepare=config_file("config.model = {'type': 'vit.ViT', 17: 3}"))  # fmt: skip
train(
    "config_nan_lr",
    config="$tmp/bad.py",
    says=("optim.lr is nan", "finite"),
    prepare=config_file("config.optim.lr = float('nan')"),
)
train("config_extra_key", config="$tmp/bad.py", says=("config.sed: unknown key", "did you mean", "seed"),
      prepare=config_file("config.unlock(); config.sed = 3"))  # fmt: skip
train("config_mesh_number", config="$tmp/bad.py", says=("config.mesh is 4", "expected dict"),
      prepare=config_file("config.unlock(); del config['mesh']; config.mesh = 4"))  # fmt: skip
train("config_seam_missing", config="$tmp/bad.py", says=("data.source", "type"),
      prepare=config_file("config.unlock(); del config.data['source']"))  # fmt: skip
train(
    "config_part_missing",
    config="$tmp/bad.py",
    says=("lacks optim",),
    prepare=config_file("config.unlock(); del config['optim']"),
)

# Flags.
case("no_flags", says=("--config, --workdir", "--help"))
case("workdir_missing", "--config=$config", says=("--workdir", "--help"))
case("workdir_empty", "--config=$config", "--workdir=", says="--workdir")
case("config_flag_missing", "--workdir=$tmp/run", says=("--config", "--help"))
case("workdir_without_value", "--config=$config", "--workdir", says=("--workdir", "expected one argument"))
train("unknown_flag", "--wrokdir=$tmp/x", says=("Unknown argument --wrokdir", "did you mean --workdir?"))
train("stray_word", "digits", says="Unknown argument digits")
train("override_without_value", "--config.data.preprocess", says=("--config.data.preprocess", "value"))
train(
    "override_eats_no_flag", "--config.data.preprocess", "--config.steps=3", says=("--config.data.preprocess", "value")
)
case(
    "command_to_train",
    "fit",
    "--config=configs/digits.py",
    says=("Unknown command 'fit'", "did you mean train"),
)
case("bench_kind_last", "bench", "--config=configs/digits.py", "step", says=("put it first", "vit bench step"))
case("unknown_command", "evalute", "--model=$run", says=("Unknown command 'evalute'", "did you mean evaluate?"))

# Keys and values on the command line.
train("misspelt_key", "--config.batchsize=3", says=("--config.batchsize: unknown key", "did you mean batch_size"))
train(
    "misspelt_nested_key",
    "--config.optim.weigth_decay=1",
    says=("unknown key 'weigth_decay'", "did you mean weight_decay"),
)
train("misspelt_parent", "--config.optm.lr=1", says=("unknown key 'optm'", "did you mean optim?"))
train("misspelt_argument", "--config.model.drop_pth=0.1", says=("--config.model.drop_pth", "did you mean drop_path"))
train("key_below_value", "--config.steps.more=1", says=("steps", "no keys"))
train("key_below_unset", "--config.init.ref=$run", says=("init", "whole part", "--config.init="))
train("key_empty", "--config.=3", says="unknown key")
train("key_dots", "--config.model..width=3", says="unknown key")
train("key_dunder", "--config.__class__=3", says="unknown key '__class__'")
train("key_dunder_nested", "--config.model.__init__.__globals__=3", says="unknown key '__init__'")
train("key_method", "--config.to_dict=3", says="unknown key 'to_dict'")
train("wrong_kind", "--config.batch_size=many", says=("--config.batch_size is 'many'", "expected int"))
train("float_for_int", "--config.batch_size=16.5", says=("--config.batch_size is '16.5'", "expected int"))
train("bool_for_int", "--config.steps=True", says=("--config.steps", "expected int"))
train("text_for_float", "--config.optim.lr=fast", says=("--config.optim.lr", "expected finite float"))
train("infinite_float", "--config.optim.lr=1e999", says=("--config.optim.lr", "expected finite float"))
train("none_not_allowed", "--config.seed=none", says=("config lacks seed",))
train(
    "int_for_bool",
    "--config.optim.rule={'type': 'sgd', 'nesterov': 3}",
    says=("optim.rule.nesterov is 3", "expected bool"),
)
train(
    "list_for_text",
    "--config.data={'source': {'type': 'digits.Digits'}, 'preprocess': ['flip']}",
    says=("data.preprocess", "expected str"),
)
train("tuple_too_long", "--config.model.patch_size=(2,2,2)", says=("--config.model.patch_size", "expected int | tuple"))
train(
    "tuple_of_text", "--config.model.patch_size=('a','b')", says=("--config.model.patch_size", "expected int | tuple")
)
train("not_a_choice", "--config.model.pool=mean", says=("--config.model.pool", "'tok', 'gap', 'map'"))
train("not_a_dtype", "--config.model.dtype=float8", says=("--config.model.dtype", "bfloat16"))
train("not_parallel", "--config.parallel=pjit", says=("config.parallel is 'pjit'", "'jit', 'pmap'"))
train("code_as_value", "--config.seed=__import__('os').getpid()", says=("--config.seed", "expected int"))
train("deep_value", f"--config.seed={'(' * 5000}", says=("--config.seed", "expected int"))
train("seam_by_text", "--config.model=vit.ViT", says=("--config.model is 'vit.ViT'", "'type'"))
train("seam_by_list", "--config.optim.rule=[1]", says=("--config.optim.rule", "'type'"))
train("seam_without_type", "--config.model={'width': 3}", says=("model.type is None", "expected a name such as"))
train("seam_dotted_key", "--config.model={'type': 'vit.ViT', 'a.b': 3}", says=("--config.model", "'a.b'"))
train("seam_number_key", "--config.model={'type': 'vit.ViT', 3: 3}", says=("model", "3"))
train(
    "type_only_changed",
    "--config.optim.rule.type=sgd",
    says=("--config.optim.rule.type=sgd", "b1, b2", "momentum", "Replace the whole part"),
)
train("grad_retyped", "--config.grad.type=accumulate.Accumulate", says=("grad lacks microbatches",))
train(
    "unknown_type", "--config.model.type=vit.Vit", says=("model.type: unknown type 'vit.Vit'", "did you mean vit.ViT")
)
train(
    "type_of_other_seam", "--config.model={'type': 'classify.Classify'}", says=("model.type: unknown type", "vit.ViT")
)
train("type_dunder", "--config.model.type=__builtins__.eval", says="model.type: unknown type")
train("type_number", "--config.model={'type': 5}", says=("model.type is 5", "expected a name"))
train("type_empty", "--config.model={'type': ''}", says=("model.type: unknown type ''", "vit.ViT"))
train("type_none", "--config.model={'type': None}", says="model")
train(
    "type_of_the_system",
    "--config.model={'type': 'os:system', 'command': 'touch $tmp/hacked'}",
    says=("os:system", "expected a subclass of Module"),
)
train(
    "type_of_a_process",
    "--config.optim.rule={'type': 'subprocess:Popen', 'args': 'touch $tmp/hacked'}",
    says=("subprocess:Popen", "expected a subclass of GradientTransformation"),
)
train(
    "type_eval",
    "--config.data.source={'type': 'builtins:eval'}",
    says=("builtins:eval", "expected a subclass of Source"),
)
train(
    "type_exec_in_evals",
    "--config.evals.test={'type': 'builtins:exec'}",
    says=("evals.test.type", "expected a subclass of Evaluator"),
)
train(
    "type_absent_module",
    "--config.model={'type': 'experiments.nowhere:ViT'}",
    says=("cannot import", "package.module:Name"),
)
train(
    "type_absent_name",
    "--config.model={'type': 'vit_jax.models.vit:Vit'}",
    says=("cannot import", "package.module:Name"),
)
train("type_relative", "--config.model={'type': '.vit:ViT'}", says=("cannot import", "package.module:Name"))
train("type_without_module", "--config.model={'type': ':ViT'}", says=("cannot import", "package.module:Name"))
train(
    "type_abstract",
    "--config.task={'type': 'task.Task'}",
    says=("task.type: unknown type 'task.Task'", "classify.Classify"),
)
train("type_inner_module", "--config.model={'type': 'resnet.ResNet', 'stages': [1]}", says=("model", "num_classes"))
train(
    "type_of_stem",
    "--config.model.stem={'type': 'resnet.Resnet'}",
    says=("model.stem.type", "did you mean resnet.ResNet"),
)
train("stem_by_text", "--config.model.stem=resnet", says=("--config.model.stem is 'resnet'", "'type'"))
train(
    "class_token_lacks",
    "--config.model={'type': 'vit.ViT', 'variant': 'mu/4', 'class_token': False}",
    says="class_token=True",
)
train("mlp_kind", "--config.model.mlp=relu", says=("--config.model.mlp", "'gelu_tanh', 'gelu', 'quick_gelu', 'swiglu'"))
train("registers_negative", "--config.model.registers=-1", says=("registers", "-1"))
train("mixer_variant", "--config.model={'type': 'mixer.Mixer', 'variant': 'Ti/16'}", says=("'Ti'", "near"))
train(
    "type_lists_no_private",
    "--config.optim.schedule={'type': '_warmed_up', 'decay': 3}",
    says=("optim.schedule.type: unknown type",),
)
train(
    "unknown_argument",
    "--config.optim.rule={'type': 'adam', 'beta1': 0.5}",
    says=("optim.rule.beta1: unknown key", "b1"),
)
train("given_argument", "--config.optim.schedule={'type': 'cosine', 'steps': 5}", says="optim.schedule.steps")
train(
    "missing_arguments",
    "--config.model={'type': 'vit.ViT', 'width': 8}",
    says=("model lacks depth, mlp_dim, num_heads, patch_size",),
)
train("variant_unknown", "--config.model={'type': 'vit.ViT', 'variant': 'XL/16'}", says=("'XL'", "near"))
train("variant_patch", "--config.model={'type': 'vit.ViT', 'variant': 'S/big'}", says=("'big'", "B/16"))
train("variant_number", "--config.model={'type': 'vit.ViT', 'variant': 16}", says=("variant", "16"))
train(
    "source_of_a_source",
    "--config.data.source={'type': 'vit_jax.data.source:Spread', 'source': 3, 'count': 1}",
    says=("data.source.source is 3", "Source"),
)
train("evaluator_number", "--config.evals={'test': 3}", says=("evals", "3", "expected dict"))
train("evaluator_every", "--config.evals.test.every=0", says=("evals.test.every is 0", "expected"))
train("evaluator_split", "--config.evals.test.source.split=tset", says=("'tset'", "'train' or 'test'"))

# Numbers out of range.
train("no_steps", "--config.steps=0", says=("steps=0", "positive"))
train("negative_steps", "--config.steps=-5", says=("steps=-5", "positive"))
train(
    "steps_and_epochs",
    "--config.epochs=1",
    "--config.steps=3",
    says=("set one of steps and epochs", "--config.epochs=10"),
)
train("neither_steps_nor_epochs", "--config.steps=none", says="set one of steps and epochs")
train("infinite_epochs", "--config.steps=none", "--config.epochs=1e999", says=("epochs", "finite float"))
train("negative_epochs", "--config.steps=none", "--config.epochs=-1", says=("epochs=-1", "positive"))
train("batch_size_0", "--config.batch_size=0", says=("config.batch_size is '0'", "from 1 to"))
train("negative_seed", "--config.seed=-1", says=("config.seed is '-1'", "from 0 to 4,294,967,295"))
train("huge_seed", f"--config.seed={10**30}", says=("config.seed is '1000000", "from 0 to 4,294,967,295"))
train("negative_lr", "--config.optim.lr=-0.1", says=("lr=-0.1", "negative"))
train("negative_decay", "--config.optim.weight_decay=-1", says=("weight_decay=-1", "negative"))
train("clip_norm_0", "--config.optim.clip_norm=0", says=("clip_norm=0", "positive"))
train("adam_b1", "--config.optim.rule.b1=1.5", says=("b1=1.5", "[0, 1)"))
train("sgd_momentum", "--config.optim.rule={'type': 'sgd', 'momentum': -1}", says=("momentum=-1", "[0, 1)"))
train("decay_regex", "--config.optim.decay=(", says=("optim.decay='('", "regular expression"))
train(
    "decay_matches_nothing",
    "--config.optim.decay=kernle$",
    "--config.optim.weight_decay=0.1",
    says=("optim.decay='kernle$'", "matches no parameter"),
)
train("warmup_too_long", "--config.optim.schedule.warmup_steps=3", says=("warmup_steps=3", "2 steps"))
train("negative_warmup", "--config.optim.schedule.warmup_steps=-3", says=("warmup_steps=-3",))
train(
    "cooldown_too_long",
    "--config.optim.schedule={'type': 'rsqrt', 'cooldown_steps': 9}",
    says=("cooldown_steps=9", "2 steps"),
)
train("timescale_0", "--config.optim.schedule={'type': 'rsqrt', 'timescale': 0}", says=("timescale=0", "at least 1"))
train("ema_decay_1", "--config.ema_decay=1.0", says=("ema_decay is 1.0", "[0, 1)"))
train("label_smoothing", "--config.task.label_smoothing=1.5", says=("label_smoothing is 1.5", "[0, 1)"))
train("loss_name", "--config.task.loss_name=softmax", says=("loss_name is 'softmax'", "softmax_xent"))
train("mix_type", "--config.task.mix={'type': 'MixUp'}", says=("task.mix.type", "'MixUp'", "Mixup"))
train("mix_key", "--config.task.mix={'type': 'Mixup', 'p': 0.2}", says=("task.mix.p", "unknown key"))
train("mix_alpha_0", "--config.task.mix={'type': 'CutMix', 'alpha': 0.0}", says=("alpha=0.0", "Beta"))
train(
    "mix_in_pairs_of_an_odd_batch",
    "--config.task.mix={'type': 'MixupOrCutMix', 'mode': 'pair'}", "--config.batch_size=15", says=("even batch", "15 images"),
)  # fmt: skip
train(
    "threshold_below_smoothing",
    "--config.task.loss_name=bce", "--config.task.target_threshold=0.0", "--config.task.label_smoothing=0.1",
    says=("label_smoothing=0.1", "at least 0.01", "target_threshold=0.0"),
)  # fmt: skip
train(
    "copies_mixed_with_each_other",
    "--config.task.mix={'type': 'Mixup'}", "--config.data.repeats=2", says=("data.repeats=2", "partner='flip'"),
)  # fmt: skip
train(
    "target_std",
    "--config.task={'type': 'regress.Regress', 'target_std': 0.0}",
    says=("task.target_std is 0.0", "above 0"),
)
train(
    "more_shots_than_images",
    "--config.evals={'few': {'type': 'fewshot.FewShot', 'source': {'type': 'digits.Digits', 'split': 'test'}, 'train': "
    "{'type': 'digits.Digits', 'split': 'train'}, 'preprocess': '', 'shots': (1, 500)}}",
    says=("shots=(1, 500)", "ask for fewer"),
)
train(
    "imagenet_of_ten_classes",
    "--config.evals={'v2': {'type': 'imagenet.ImageNet', 'variant': 'v2', 'source': {'type': 'digits.Digits', 'split': 'test'}, "
    "'preprocess': ''}}",
    says=("10 logits", "1000"),
)
train("threshold_of_softmax", "--config.task.target_threshold=0.2", says=("target_threshold", "bce"))
train("no_teacher", "--config.task={'type': 'distill.Distill'}", says=("no teacher", "--config.teacher=REF"))
train(
    "teacher_without_use",
    "--config.teacher=$run",
    says=("config.teacher is", "Classify takes no teacher", "distill.Distill"),
)
train(
    "unknown_teacher",
    "--config.task={'type': 'distill.Distill'}",
    "--config.teacher=nowhere",
    says=("No model at", "nowhere"),
)
train("regression_of_classes", "--config.task={'type': 'regress.Regress'}", says=("table.Table",))
train("rho_0", "--config.grad={'type': 'sam.Sam', 'rho': 0.0}", says=("rho=0.0", "above 0"))
train(
    "sam_inside", "--config.grad={'type': 'sam.Sam', 'inner': {'type': 'sam.Sum'}}", says=("grad.inner.type", "sam.Sam")
)
train("repeats_0", "--config.data.repeats=0", says=("data.repeats is 0", "from 1 to"))
train("multiplier_key", "--config.optim.multipliers=[('^head/', {'wd': 1.0})]", says=("wd=1.0", "weight_decay"))
train(
    "multiplier_finds_nothing",
    "--config.optim.multipliers=[('^neck/', {'lr': 1.0})]",
    says=("'^neck/'", "finds no parameter"),
)
train("randaug_magnitude", "--config.data.preprocess=randaug(2, 99)", says=("randaug(2, 99)", "30"))
train("drop_path_rule", "--config.model.drop_path_rule=square", says=("drop_path_rule", "'linear', 'constant'"))
train("std_0", "--config.task.std=0", says=("task.std", "above 0"))
train("mean_of_3_channels", "--config.task.mean=(0.5,0.5,0.5)", says=("task.mean", "one per channel"))
train("dropout", "--config.model.dropout=1.5", says=("dropout", "1.5", "[0, 1)"))
train("negative_attn_dropout", "--config.model.attn_dropout=-0.5", says=("attn_dropout", "-0.5", "[0, 1)"))
train("drop_path_1", "--config.model.drop_path=1.0", says=("drop_path", "1.0", "[0, 1)"))
train("width_0", "--config.model.width=0", says=("model.width is '0'", "from 1 to"))
train("depth_negative", "--config.model.depth=-1", says=("depth", "-1"))
train("mlp_dim_0", "--config.model.mlp_dim=0", says=("mlp_dim", "0", "at least 1"))
train("heads_0", "--config.model.num_heads=0", says=("num_heads", "0", "at least 1"))
train("heads_do_not_divide", "--config.model.num_heads=3", says=("width of 8", "num_heads=3"))
train("rep_size_negative", "--config.model.rep_size=-4", says=("rep_size", "-4"))
train(
    "sincos_width",
    "--config.model.posemb=sincos2d",
    "--config.model.width=6",
    "--config.model.num_heads=2",
    says=("sincos2d", "divisible by 4", "6"),
)
train("patch_size_0", "--config.model.patch_size=0", says=("patch_size", "0", "at least 1"))
train("stride_0", "--config.model.stride=0", says=("stride", "0", "at least 1"))
train("stride_negative", "--config.model.stride=(-1,2)", says=("stride", "-1", "at least 1"))
train(
    "patch_does_not_tile",
    "--config.model.patch_size=3",
    says=("height of 8", "patches of 3", "Use a height of 6 or 9", "padding='same'"),
)
train("patch_larger_than_image", "--config.model.patch_size=16", says=("height of 8", "patches of 16"))
train(
    "microbatches_do_not_divide",
    "--config.grad={'type': 'accumulate.Accumulate', 'microbatches': 3}",
    says=("microbatches=3", "16"),
)
train("microbatches_0", "--config.grad={'type': 'accumulate.Accumulate', 'microbatches': 0}", says=("microbatches=0",))
train("threads_negative", "--config.data.threads=-1", says=("data.threads is -1", "from 0 to"))
train("cache_negative", "--config.data.cache_mb=-1", says=("cache_mb=-1", "at least"))
train("max_unreadable", "--config.data.max_unreadable=1.5", says=("max_unreadable=1.5", "between 0 and 1"))
train("prefetch_negative", says=("prefetch=-1", "at least"), config="$tmp/bad.py",
      prepare=config_file("config.unlock(); config.data.prefetch = -1"))  # fmt: skip
train("checkpoint_every_0", "--config.checkpoint.every=0", says=("checkpoint.every=0", "at least 1"))
train("checkpoint_keep_0", "--config.checkpoint.keep=0", says=("checkpoint.keep=0", "at least 1"))
train(
    "checkpoint_best_unknown",
    "--config.checkpoint.best=val/accuracy",
    says=("checkpoint.best", "'val/accuracy'", "test/"),
)
train(
    "checkpoint_best_of_no_evaluator",
    "--config.checkpoint.best=test_foo/accuracy",
    says=("'test_foo/accuracy', which no evaluator measures", "test/accuracy"),
)
train(
    "checkpoint_best_not_measured",
    "--config.checkpoint.best=test/acc",
    says=("'test/acc', which is not measured", "test/accuracy"),
    late=True,
)
train("misspelt_evaluator", "--config.evals.tset.batch_size=8", says="unknown key 'tset'; did you mean test?")
case("train_without_flags", "train", says="--config, --workdir")
train(
    "checkpoint_best_mode",
    "--config.checkpoint.best_mode=most",
    says=("checkpoint.best_mode is 'most'", "'max', 'min'"),
)
train("checkpoint_key", says=("checkpoint.evry: unknown key", "every"), config="$tmp/bad.py",
      prepare=config_file("config.unlock(); config.checkpoint.evry = 3"))  # fmt: skip
train("log_every_0", "--config.log.every=0", says=("log.every is 0", "expected"))
train("eval_batch_0", "--config.evals.test.batch_size=0", says=("evals.test.batch_size is '0'", "from 1 to"))
train(
    "fake_size_3",
    "--config.data.source={'type': 'fake.Fake', 'image_size': (8,8,8)}",
    says=("data.source.image_size", "expected int | tuple"),
)
train("fake_size_0", "--config.data.source={'type': 'fake.Fake', 'image_size': 0}", says=("image_size=0", "at least 1"))
train("fake_seed", "--config.data.source={'type': 'fake.Fake', 'image_size': 8, 'seed': -1}", says=("seed is -1",))

# Devices, mesh and sharding.
train("mesh_of_3", "--config.mesh={'data': 3}", says=("'data': 3", "devices", "one may be -1"))
train("mesh_of_0", "--config.mesh={'data': 0}", says=("'data': 0", "devices"))
train("mesh_two_free", "--config.mesh={'data': -1, 'fsdp': -1}", says=("devices", "one may be -1"))
train("mesh_of_text", "--config.mesh={'data': 'all'}", says=("config.mesh", "'all'", "expected dict"))
train("sharding_text", "--config.sharding=kernel", says=("--config.sharding", "expected list"))
train("sharding_numbers", "--config.sharding=[1, 2]", says=("config.sharding", "expected list"))
train("sharding_axis", "--config.sharding=[('head/kernel', (None, 'modle'))]", says=("head/kernel", "'modle'", "mesh"))
train(
    "sharding_dimensions",
    "--config.sharding=[('head/kernel', ('data',))]",
    says=("head/kernel", "one axis or None per dimension"),
)
train(
    "sharding_axis_twice", "--config.sharding=[('mlp/up/kernel', ('data', 'data'))]", says=("mlp/up/kernel", "'data'")
)
train("sharding_regex", "--config.sharding=[('(', (None,))]", says=("config.sharding='('", "regular expression"))
train(
    "batch_not_shared",
    "--config.batch_size=12",
    devices=8,
    says=("batch_size=12", "8 devices", "multiple", "such as 16"),
)
train("mesh_not_the_devices", "--config.mesh={'data': 2, 'fsdp': 2}", devices=8, says=("does not divide 8 devices",))
train(
    "sharding_does_not_divide",
    "--config.mesh={'data': 1, 'fsdp': 8}",
    "--config.sharding=[('head/kernel', (None, 'fsdp'))]",
    devices=8,
    says=("head/kernel", "(8, 10)"),
)
train("tensor_does_not_divide", "--config.mesh={'data': 1, 'tensor': 8}", devices=8, says=("mesh.tensor=8", "heads"))
train(
    "pmap_with_fsdp",
    "--config.mesh={'data': 2, 'fsdp': 4}",
    "--config.parallel=pmap",
    devices=8,
    says=("pmap", "data parallel only"),
)
train(
    "pmap_microbatches",
    "--config.parallel=pmap",
    "--config.grad={'type': 'accumulate.Accumulate', 'microbatches': 16}",
    devices=8,
    says=("microbatches=16", "2 examples"),
)

# Preprocessing.
train(
    "unknown_operation", "--config.data.preprocess=central_corp(8)", says=("central_corp", "did you mean central_crop")
)
train(
    "operation_of_python",
    "--config.data.preprocess=__import__('os').system('touch $tmp/hacked')",
    says=("operation 1", "expected name(literal"),
)
train("operation_without_size", "--config.data.preprocess=resize()", says=("resize", "missing"))
train("operation_argument", "--config.data.preprocess=resize(8, methd='box')", says=("methd", "expected resize(size"))
train("operation_choice", "--config.data.preprocess=resize(8, method='best')", says=("method='best'", "bilinear"))
train("operation_size_0", "--config.data.preprocess=resize(0)", says=("resize(0)", "at least 1"))
train("operation_unclosed", "--config.data.preprocess=flip|resize(8", says=("operation 2", "expected name(literal"))
train("operation_empty", "--config.data.preprocess=flip||flip", says=("operation 2", "expected name(literal"))
train(
    "operation_after_model",
    "--config.data.preprocess=central_crop(9)",
    says=("8 x 8", "at least 9 x 9", "resize_small"),
)
train("sizes_differ", "--config.data.preprocess=resize(4)", says=("evals.test.preprocess", "(8, 8, 1)", "(4, 4, 1)"))
train("huge_resize", "--config.data.preprocess=resize(1000000)", says=("1000000", "pixels"))

# Data folders.
folder("no_data_folder", says=("data.source: ", "$tmp/data", "No such file", "check the path"))
folder(
    "test_folder_named_val",
    prepare=images(lambda data: (data / "test").rename(data / "val")),
    says=("evals.test.source: ", "'test'", "split=val"),
)
folder("data_folder_is_file", prepare=file("data", "x"), says=("$tmp/data", "Not a directory"))
folder("data_path_empty", path="", says=("''", "check the path"))
folder("data_path_null", path="a\\x00b", says=("check the path",))
folder(
    "data_path_loop",
    prepare=lambda tmp, shared: (tmp / "data").symlink_to(tmp / "data"),
    says=("$tmp/data", "check the path"),
)
folder("data_path_long", path="x" * 300, says=("File name too long",))
folder("data_path_without_permission", path="/proc/1/task/nowhere", says=("/proc/1/task/nowhere", "check the path"))
folder(
    "data_folder_empty",
    prepare=lambda tmp, shared: (tmp / "data").mkdir(),
    says=("no images", "a sub-folder for each class"),
)
folder(
    "data_without_classes",
    prepare=lambda tmp, shared: write_image(tmp / "data" / "a.png"),
    says=("no images", "a sub-folder for each class"),
)
folder("one_class", prepare=images(classes="cat"), says=("one class only", "(cat)", "at least two"))
folder("class_without_images", prepare=images(lambda data: (data / "train" / "owl").mkdir(), "cat dog"), says=("owl",))
folder(
    "data_of_text_files",
    prepare=lambda tmp, shared: (
        write_images(tmp / "data"),
        [p.rename(p.with_suffix(".txt")) for p in (tmp / "data").rglob("*.png")],
    ),
    says=("no images", ".jpg"),
)
folder(
    "splits_differ",
    prepare=images(lambda data: (data / "test" / "dog").rename(data / "test" / "dgo")),
    says=("different classes", "dog", "dgo"),
)
folder("split_missing", prepare=images(lambda data: shutil.rmtree(data / "test")), says=("'test'", "train"))
folder(
    "split_twice",
    prepare=images(lambda data: shutil.copytree(data / "train", data / "Train")),
    says=("'Train'", "'train'", "rename or remove"),
)
folder(
    "every_image_corrupt",
    prepare=images(empty("train/*/*.png")),
    says=("unreadable images among 8", "the file is empty"),
)
folder(
    "corrupt_among_the_first",
    prepare=images(empty("train/cat/*.png")),
    says=("unreadable images among 8", "1.00%", "max_unreadable"),
)
folder(
    "corrupt_seen_late",
    "--config.steps=10",
    prepare=lambda tmp, shared: (write_images(tmp / "data", count=40), empty("cat/[1-3].png")(tmp / "data")),
    says=("unreadable images among 72", "1.00%", "max_unreadable"),
    late=True,
)
folder(
    "sizes_of_images_differ",
    prepare=images(lambda data: write_image(data / "train" / "cat" / "0.png", (16, 8))),
    says=("8 x 16|(8, 16, 1)", "resize"),
)
folder(
    "some_sizes_differ",
    prepare=images(lambda data: write_image(data / "train" / "dog" / "3.png", (16, 8))),
    says=("(8, 16, 1)", "resize"),
)
folder(
    "holdout",
    "--config.data.source={'type': 'folder.Folder', 'path': '$tmp/data', 'holdout': 1.0}",
    prepare=lambda tmp, shared: write_images(tmp / "data"),
    says=("holdout=1.0", "between 0 and 1"),
)
folder(
    "channels_2",
    "--config.data.source={'type': 'folder.Folder', 'path': '$images', 'channels': 2}",
    path="$images",
    says=("channels=2", "set 1", "or 3"),
)
folder(
    "channels_differ",
    "--config.data.source={'type': 'folder.Folder', 'path': '$images', 'channels': 3}",
    path="$images",
    says=("(8, 8, 1)", "(8, 8, 3)"),
)
train(
    "classes_of_other_data",
    "--config.data.source={'type': 'folder.Folder', 'path': '$images', 'channels': 1}",
    "--config.data.preprocess=",
    says=("evals.test: its classes differ", "'cat'", "'0'"),
)
train(
    "tfds_unknown",
    "--config.data.source={'type': 'tfds.Tfds', 'name': 'cifar11', 'data_dir': '$tmp'}",
    says=("'cifar11'", "did you mean cifar10"),
)
train(
    "tfds_not_prepared",
    "--config.data.source={'type': 'tfds.Tfds', 'name': 'cifar10', 'data_dir': '$tmp'}",
    says=("cifar10", "pip install"),
)
train(
    "tfds_bad_name",
    "--config.data.source={'type': 'tfds.Tfds', 'name': '!!/..', 'data_dir': '$tmp'}",
    says=("'!!/..'", "check the name"),
)

# Workdirs.
train("workdir_is_file", prepare=file("run", "x"), says=("--workdir=", "is a file", "new folder"))
train("workdir_is_used", prepare=file("run/thesis.tex", "x"), says=("has files but no config.json", "new folder"))
train("workdir_below_file", "--workdir=$tmp/file/run", prepare=file("file", "x"), says=("--workdir=", "$tmp/file"))
train(
    "workdir_dangling_link",
    prepare=lambda tmp, shared: (tmp / "run").symlink_to(tmp / "nowhere"),
    says=("--workdir=", "link"),
)
train("workdir_name_too_long", f"--workdir=$tmp/{'x' * 300}", says=("--workdir=", "too long"))
train("unwritable_workdir", "--workdir=/proc/vit_jax/run", says=("/proc/vit_jax/run", "cannot be written"))
train(
    "other_config",
    "--config.optim.lr=0.5",
    prepare=run(lambda workdir: None),
    says=("another config", "optim.lr: 0.003 there, 0.5 here", "Give another --workdir"),
)
train(
    "very_other_config",
    config="$shared/other.py",
    prepare=run(lambda workdir: None),
    says=("another config", "model.", "Give another --workdir"),
)
train(
    "record_truncated",
    prepare=run(lambda w: (w / "config.json").write_text('{"config": {')),
    says=("config.json", "cannot be read"),
)
train("record_empty", prepare=run(empty("config.json")), says=("config.json", "cannot be read"))
train(
    "record_binary",
    prepare=run(lambda w: (w / "config.json").write_bytes(b"\xff\xfe\x00")),
    says=("config.json", "cannot be read"),
)
train(
    "record_deep",
    prepare=run(lambda w: (w / "config.json").write_text("[" * 100_000)),
    says=("config.json", "cannot be read"),
)
train(
    "record_folder",
    prepare=run(lambda w: ((w / "config.json").unlink(), (w / "config.json").mkdir())),
    says=("config.json", "cannot be read"),
)
train("record_list", prepare=record(lambda r: [1]), says=("config.json", "not the config.json of a training run"))
train("record_lacks_data", prepare=record(lambda r: r.pop("data") and None), says=("config.json", "'data'", "missing"))
train(
    "record_lacks_versions",
    prepare=record(lambda r: r.pop("versions") and None),
    says=("config.json", "'versions'", "missing"),
)
train("record_config_text", prepare=record(lambda r: r | {"config": "x"}), says=("config.json", "config"))
train("record_data_text", prepare=record(lambda r: r | {"data": "x"}), says=("config.json", "data"))
train("record_changes_number", prepare=record(lambda r: r | {"changes": 3}), says=("config.json", "changes"))
train(
    "record_other_data",
    prepare=record(lambda r: r["data"].update(num_examples=7)),
    says=("other data", "num_examples: 7 there, 1437 here"),
)
train(
    "checkpoint_of_another_model", "--config.model.width=16", prepare=record(lambda r: r["config"]["model"].update(width=16)),
    says=("checkpoints/2", "embed/bias is (8,), expected (16,)", "... and "),
)  # fmt: skip
train("checkpoints_truncated", prepare=run(truncate), says=("checkpoints/2", "remove"))
train(
    "checkpoint_emptied",
    prepare=run(lambda w: (shutil.rmtree(w / "checkpoints" / "2"), (w / "checkpoints" / "2").mkdir())),
    says=("checkpoints/2", "remove"),
)
train(
    "checkpoint_without_arrays",
    prepare=run(lambda w: [shutil.rmtree(p) for p in (w / "checkpoints" / "2" / "default").glob("*") if p.is_dir()]),
    says=("checkpoints/2", "remove"),
)
train(
    "checkpoints_is_file",
    prepare=run(lambda w: (shutil.rmtree(w / "checkpoints"), (w / "checkpoints").write_text("x"))),
    says=("checkpoints", "file"),
)
train(
    "metrics_is_folder",
    prepare=run(lambda w: ((w / "metrics.jsonl").unlink(), (w / "metrics.jsonl").mkdir())),
    says=("metrics.jsonl",),
)

# Weights of another run to begin from.
INIT = "--config.init={'ref': '%s'}"
train("init_size", INIT % "B16", says=("did you mean the published ViT-B_16",))
train("init_missing", INIT % "$tmp/nowhere", says=("No model at", "$tmp/nowhere", "DIR@STEP"))
train("init_is_file", INIT % "$config", says=("not a .npz, .safetensors or .pth file", "expected the weights"))
train("init_no_workdir", INIT % "$images", says=("is not a workdir", "config.json"))
train("init_step", INIT % "$run@7", says=("no checkpoint of step 7", "it has 1, 2"))
train(
    "init_of_another_model",
    INIT % "$run",
    "--config.model.width=16",
    says=("do not fit the model", "embed/bias is (8,), here (16,)", "width (8, here 16)"),
)
train(
    "init_of_deeper_model",
    INIT % "$run",
    "--config.model.depth=2",
    says=("do not fit the model", "missing in the pretrained", "block_1"),
)
train("init_key", "--config.init={'reff': '$run'}", says=("init.reff: unknown key", "did you mean ref?"))
train("init_number", "--config.init={'ref': 3}", says=("init.ref is 3", "expected str"))
train("init_empty", "--config.init={}", says=("init lacks ref",))


# Prepare.
def prepare(name: str, *argv: str, says: str | tuple[str, ...], data: str = "folder:$images", **options) -> None:
    case(name, "prepare", f"--data={data}", "--out=$tmp/out", *argv, says=says, **options)


case("prepare_no_flags", "prepare", says=("--data, --out", "--help"))
prepare("prepare_flag", "--min_sides=8", says=("Unknown argument --min_sides", "did you mean --min_side"))
prepare("prepare_kind", data="digits", says=("--data=digits", "folder:PATH or tfds:NAME"))
prepare("prepare_no_path", data="folder:", says=("--data=folder:", "folder:PATH"))
prepare("prepare_missing", data="folder:$tmp/nowhere", says=("$tmp/nowhere", "check the path"))
prepare("prepare_file", data="folder:$config", says=("$config", "Not a directory"))
prepare("prepare_tfds", data="tfds:no_such_set", says=("'no_such_set'",))
prepare("prepare_tfds_name", data="tfds:no/such/set!", says=("'no/such/set!'", "check the name"))
prepare("prepare_side_0", "--min_side=0", says=("--min_side=0", "at least 1"))
prepare("prepare_side_text", "--min_side=big", says=("--min_side", "'big'"))
prepare("prepare_threads", "--threads=-1", says=("--threads", "'-1'", "from 1 to"))
prepare("prepare_quality", "--min_side=8", "--quality=101", says=("--quality", "'101'", "1 to 100"))
prepare("prepare_quality_alone", "--quality=90", says=("--quality=90", "--min_side"))
prepare("prepare_share", "--max_unreadable=nan", says=("--max_unreadable=nan", "from 0 to 1"))
prepare("prepare_split", "--split=tets", says=("--split=tets", "train, test|test, train"))
prepare("prepare_name", "--name=My photos", says=("'My photos'", "--name=NAME"))
prepare("prepare_name_of_tfds", "--name=mnist", says=("'mnist'", "--name=my_mnist"))
prepare("prepare_data_dir", "--data_dir=$tmp", says=("--data_dir=$tmp", "tfds:NAME"))
case("prepare_remote", "prepare", "--data=folder:$images", "--out=gs://x", says=("--out=gs://x", "this machine"))
prepare(
    "prepare_out_is_file", prepare=file("out", ""), says=("$tmp/out", "File exists|Not a directory", "another --out")
)
prepare(
    "prepare_taken",
    prepare=file("out/images/1.0.0/x", ""),
    says=("$tmp/out/images/1.0.0", "already exists", "another --out"),
)


# Evaluate.
EVALUATE = ("evaluate", "--data=digits")


def evaluate(name: str, *argv: str, says: str | tuple[str, ...], model: str = "$run", **options) -> None:
    case(name, "evaluate", f"--model={model}", *argv, says=says, **options)


def predict(name: str, *argv: str, says: str | tuple[str, ...], model: str = "$run", **options) -> None:
    case(name, "predict", f"--model={model}", *argv, says=says, **options)


case("evaluate_no_flags", "evaluate", says=("--model, --data", "--help"))
evaluate("evaluate_flag", "--data=digits", "--spilt=test", says=("Unknown argument --spilt", "did you mean --split"))
evaluate("evaluate_model_missing", "--data=digits", model="$tmp/run", says=("No model at", "$tmp/run"))
evaluate("evaluate_model_empty", "--data=digits", model="", says=("is not a model", "DIR@STEP"))
evaluate("evaluate_model_size", "--data=digits", model="XL/16", says=("No model at 'XL/16'", "S/16"))
evaluate("evaluate_model_patch", "--data=digits", model="S/big", says=("'big'", "B/16"))
evaluate(
    "evaluate_model_is_file",
    "--data=digits",
    model="$config",
    says=("not a .npz, .safetensors or .pth file", "expected the weights"),
)
evaluate("evaluate_model_is_data", "--data=digits", model="$images", says=("is not a workdir", "config.json"))
evaluate("evaluate_step", "--data=digits", model="$run@9", says=("no checkpoint of step 9", "it has 1, 2"))
evaluate("evaluate_step_text", "--data=digits", model="$run@last", says=("No model at", "@last", "DIR@STEP"))
evaluate("evaluate_step_huge", "--data=digits", model="$run@" + "9" * 60, says=("No model at|no checkpoint of step",))
evaluate("evaluate_data_kind", "--data=digit", says=("'digit'", "digits, folder:PATH, table:FILE.csv, tfds:NAME"))
evaluate("evaluate_data_no_path", "--data=folder:", says=("'folder:'", "folder:PATH"))
evaluate("evaluate_data_missing", "--data=folder:$tmp/nowhere", says=("$tmp/nowhere", "check the path"))
evaluate("evaluate_split", "--data=digits", "--split=val", says=("split='val'", "'train' or 'test'"))
evaluate("evaluate_split_of_folder", "--data=folder:$images", "--split=val", says=("'val'", "test, train"))
evaluate(
    "evaluate_unknown_class",
    "--data=folder:$images",
    says=("does not know 2 of the data's 2 classes", "'cat', 'dog'", "'0', '1'"),
)
evaluate(
    "evaluate_sizes",
    "--data=folder:$tmp/data",
    prepare=lambda tmp, shared: [write_image(tmp / "data" / c / f"{i}.png", (9, 9)) for c in "01" for i in range(2)],
    says=("(9, 9, 1)", "(8, 8, 1)"),
)
evaluate(
    "evaluate_corrupt",
    "--data=folder:$tmp/data",
    prepare=lambda tmp, shared: (write_images(tmp / "data", "0 1"), empty("*/*.png")(tmp / "data")),
    says=("unreadable images among 8", "the file is empty"),
)
evaluate("evaluate_batch_0", "--data=digits", "--batch_size=0", says=("evals.test.batch_size is '0'", "from 1 to"))
evaluate("evaluate_batch_negative", "--data=digits", "--batch_size=-3", says=("batch_size=-3", "at least 1"))
evaluate("evaluate_batch_text", "--data=digits", "--batch_size=NaN", says=("--batch_size", "'NaN'"))
evaluate("evaluate_split_of_a_table", "--data=table:t.csv", "--split=val", says=("--split=val", "has no splits"))
evaluate("evaluate_label_key", "--data=digits", "--label_key=all", says=("--label_key=all", "tfds:NAME", "digits"))
evaluate("evaluate_tfds", "--data=tfds:no_such_set", says=("'no_such_set'",))
evaluate("evaluate_size_classes", "--data=digits", model="mu/16", says=("(224, 224, 3)", "(224, 224, 1)"), late=True)


def hostile(name: str, change: Callable[[dict], object], says: str | tuple[str, ...], *argv: str) -> None:
    """Evaluation of a downloaded workdir whose config.json was tampered with."""
    evaluate(name, "--data=digits", *argv, model="$tmp/run", prepare=record(change), says=says)


def spec(**fields) -> Callable[[dict], object]:
    return lambda r: r["config"]["model"].update(fields)


def given(**fields) -> Callable[[dict], object]:
    return lambda r: r["data"].update(fields)


hostile("hostile_model_type", spec(type="os:system"), ("'os:system'", "outside vit_jax", "--trust"))
hostile("hostile_model_module", spec(type="hostile_module:ViT"), ("'hostile_module:ViT'", "outside vit_jax", "--trust"))
hostile("hostile_lookalike", spec(type="vit_jax_evil.models:ViT"), ("'vit_jax_evil.models:ViT'", "outside vit_jax"))
hostile("hostile_inside", spec(type="vit_jax.checkpoint.workdir:subprocess"), ("expected a subclass of Module",))
hostile(
    "hostile_task_type",
    lambda r: r["config"]["task"].update(type="subprocess:call"),
    ("'subprocess:call'", "outside vit_jax"),
)
hostile("hostile_type_list", spec(type=["vit.ViT"]), ("model.type is ['vit.ViT']", "expected a name"))
hostile("hostile_variant", spec(variant=16), ("variant", "16"))
hostile("hostile_argument", spec(parent=3), ("model.parent: unknown key",))
hostile(
    "hostile_model_text",
    lambda r: r["config"].update(model="vit.ViT"),
    ("config.json", "'vit.ViT' as config.model", "expected dict"),
)
hostile(
    "hostile_model_missing",
    lambda r: r["config"].pop("model") and None,
    ("config.json", "config.model", "expected dict"),
)
hostile("hostile_width", spec(width=1 << 40, num_heads=1), ("width", "2**31"))
hostile("hostile_heads", spec(num_heads=0), ("num_heads",))
hostile("hostile_evals", lambda r: r["config"].update(evals=3), ("evals",))

hostile(
    "class_names_too_few",
    given(class_names=["0", "1"]),
    ("does not fit this model", "head/kernel is (8, 10), expected (8, 2)"),
)
hostile("class_names_text", given(class_names="0123456789"), ("config.json", "class_names", "expected"))
hostile("class_names_number", given(class_names=10), ("config.json", "class_names", "expected"))
hostile("class_names_of_numbers", given(class_names=list(range(10))), ("config.json", "class_names", "expected"))
hostile("image_shape_short", given(image_shape=[8, 8]), ("config.json", "image_shape", "expected"))
hostile("image_shape_negative", given(image_shape=[-8, 8, 1]), ("config.json", "image_shape", "expected"))
hostile(
    "image_shape_missing", lambda r: r["data"].pop("image_shape") and None, ("config.json", "image_shape", "expected")
)
hostile(
    "preprocess_unknown", given(preprocess="os.system('touch /tmp/hacked')"), ("operation 1", "expected name(literal")
)
hostile("preprocess_number", given(preprocess=3), ("config.json", "preprocess", "expected"))
evaluate(
    "model_without_checkpoints",
    "--data=digits",
    model="$tmp/run",
    prepare=run(lambda w: shutil.rmtree(w / "checkpoints")),
    says=("has no checkpoint yet",),
)
evaluate(
    "model_with_empty_checkpoints",
    "--data=digits",
    model="$tmp/run",
    prepare=run(lambda w: (shutil.rmtree(w / "checkpoints"), (w / "checkpoints").mkdir())),
    says=("has no checkpoint yet",),
)
evaluate(
    "model_truncated", "--data=digits", model="$tmp/run", prepare=run(truncate), says=("checkpoints/2", "another step")
)
evaluate(
    "model_emptied",
    "--data=digits",
    model="$tmp/run@1",
    prepare=run(lambda w: (shutil.rmtree(w / "checkpoints" / "1"), (w / "checkpoints" / "1").mkdir())),
    says=("checkpoints/1", "another step"),
)
evaluate(
    "model_array_lost",
    "--data=digits",
    model="$tmp/run",
    prepare=run(lambda w: [p.unlink() for p in (w / "checkpoints" / "2" / "default").rglob("d/*")]),
    says=("checkpoints/2", "another step"),
)

# Predict.
predict("predict_no_images", says=("FILE_OR_FOLDER", "--help"))
predict("predict_missing", "$tmp/cat.jpg", says=("No file or folder at", "cat.jpg"))
predict("predict_one_missing", "$images", "$tmp/cat.jpg", says=("No file or folder at", "cat.jpg"))
predict("predict_name_too_long", "x" * 300 + ".png", says=("xxx", "too long|No file"))
predict(
    "predict_empty_folder",
    "$tmp/empty",
    prepare=lambda tmp, shared: (tmp / "empty").mkdir(),
    says=("no images in", ".jpg"),
)
predict("predict_device", "/dev/zero", says=("/dev/zero",))
predict("predict_top_0", "$images", "--top=0", says=("--top", "'0'", "from 1 to"))
predict("predict_top_text", "$images", "--top=all", says=("--top", "'all'"))
predict("predict_batch_0", "$images", "--batch_size=0", says=("--batch_size=0", "at least 1"))
predict("predict_model_missing", "$images", model="$tmp/run", says=("No model at", "$tmp/run"))
predict(
    "predict_sizes",
    "$tmp/a.png",
    prepare=lambda tmp, shared: write_image(tmp / "a.png", (9, 9)),
    says=("(9, 9, 1)", "(8, 8, 1)"),
)
predict("predict_flag", "$images", "--topp=3", says=("Unknown argument --topp", "did you mean --top"))
