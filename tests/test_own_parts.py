"""A user's own model, task, source, transform and evaluator, in a file beside a config outside the repository."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment, rows
from vit_jax import main

PARTS = Path(__file__).with_name("own_parts.py").read_text()
CONFIG = """
from configs import common


def get_config():
    config = common.get_config()
    config.steps, config.batch_size = 20, 16
    config.model = {"type": "my_parts:Conv"}
    config.data.source = {"type": "my_parts:Stripes"}
    config.data.preprocess = "my_parts:invert(0.5)|flip"
    config.optim.lr = 0.02
    test = {"type": "my_parts:Stripes", "split": "test"}
    config.evals.wrong = {"type": "my_parts:Wrong", "source": test, "preprocess": "", "every": 10}
    return config
"""
HINGE = (
    "--config.task={'type': 'my_parts:Hinge'}",
    "--config.model={'type': 'vit.ViT', 'width': 8, 'depth': 1, 'mlp_dim': 8, 'num_heads': 1, 'patch_size': 4}",
)


@pytest.fixture
def folder(tmp_path):
    """A config and its parts, by a name that no other test has imported."""
    (tmp_path / "mine.py").write_text(CONFIG)
    (tmp_path / "my_parts.py").write_text(PARTS)
    path = sys.path[:]
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("my_parts", None)
    importlib.invalidate_caches()


def call(folder, *flags):
    return main.main([f"--config={folder / 'mine.py'}", f"--workdir={folder / 'run'}", *flags])


def test_they_train_and_evaluate_from_another_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    argv = [sys.executable, "-m", "vit_jax.main", f"--config={folder / 'mine.py'}", f"--workdir={folder / 'run'}"]
    done = subprocess.run(argv, cwd=elsewhere, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(folder / "run")[-1]["wrong/wrong"] < 0.3
    code = (
        f"import sys; sys.path.append({str(folder)!r}); from vit_jax import inference\n"
        f"import numpy as np; loaded = inference.load({str(folder / 'run')!r}, trust=True)\n"
        "print(sorted(loaded.weights), loaded(np.zeros((3, 8, 8, 1), np.uint8))['probs'].shape, loaded.class_names)"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment(), capture_output=True, text=True
    )
    assert again.stdout.strip() == "['batch_stats', 'params'] (3, 2) ('across', 'down')", again.stderr


def test_an_own_task_trains_a_network_of_ours(folder):
    assert call(folder, *HINGE) == 0
    assert rows(folder / "run")[-1]["wrong/wrong"] < 0.6


def replaced(old: str, new: str):
    assert old in PARTS, old
    return PARTS.replace(old, new)


MODEL = {
    "another_name": (replaced("class Conv", "class Other"), "my_parts:Conv|cannot import"),
    "no_module": (replaced("class Conv(nn.Module):\n    num_classes: int\n", "class Conv:\n"), "subclass of Module"),
    "no_value_for_a_field": (
        replaced("    num_classes: int\n", "    num_classes: int\n    width: int\n"),
        "model lacks width",
    ),
    "no_images": (
        replaced("def __call__(self, images, train=False):", "def __call__(self):\n        images = train = 0"),
        "images",
    ),
    "too_few_logits": (replaced("nn.Dense(self.num_classes)", "nn.Dense(1)"), "(16, 1)|expected logits [b, 2]"),
    "no_logits": (replaced("nn.Dense(self.num_classes)(nn.relu(x).mean(axis=(1, 2)))", "x"), "expected logits [b, 2]"),
}
TASK = {
    "no_predict": (
        replaced("    def predict(self, weights", "    def guess(self, weights"),
        "subclass of Task|all its methods",
    ),
    "loss_alone": (replaced(', Aux({"accuracy": accuracy})', ""), "Hinge.loss|expected (loss, Aux(metrics, stats))"),
    "losses": (replaced("signs * logits).mean()", "signs * logits)"), "Hinge.loss|the loss has the shape (16, 2)"),
    "metric_of_examples": (replaced('batch["label"]).mean()', 'batch["label"])'), "'accuracy'|(16,)"),
    "key_that_is_not_there": (replaced("len(self.class_names)) - 1.0", "2) - batch['mass']"), "'mass'"),
    "state_that_changes": (
        replaced(
            "    def predict(self",
            "    def update(self, params, state, stats, step):\n        return {'n': step}\n\n    def predict(self",
        ),
        "Hinge.update|init_state|n ()",
    ),
    "unknown_argument": (replaced("margin: float", "gap: float").replace("self.margin", "self.gap"), "margin|gap"),
}
SOURCE = {
    "no_fields": (replaced("self.fields = ", "self.kinds = "), "Stripes has no fields"),
    "other_keys": (replaced('"label": index % 2}', '"class": index % 2}'), "['class', 'image']|['image', 'label']"),
    "pair": (
        replaced('        return {"image": lines if', "        return (lines if").replace(
            ', "label": index % 2}', ", 0)"
        ),
        "a tuple|expected a dict",
    ),
    "floats": (replaced('{"image": lines if', '{"image": (lines / 255) if'), "float|uint8"),
    "label_beyond": (replaced('"label": index % 2', '"label": index'), "label 8|2 class names"),
    "empty": (replaced("return self.count", "return 0"), "no examples in Stripes"),
    "no_name": (replaced("    def name(self, index)", "    def title(self, index)"), "subclass of Source"),
}
TRANSFORM = {
    "another_name": (replaced("def invert", "def negative"), "my_parts:invert|cannot be imported"),
    "no_function": (replaced("    return transform\n", "    return 3\n"), "makes a int|function"),
    "nothing_back": (
        replaced('        return {**example, "image": 255', '        {**example, "image": 255'),
        "NoneType|a dict",
    ),
    "other_argument": (replaced("prob: float", "prob: str"), "prob=0.5|str"),
    "sizes_that_differ": (
        replaced('255 - example["image"]', 'example["image"][:, :rng.integers(3, 8)]'),
        "'image'|resize",
    ),
    "floats": (replaced("255 - example", "1.0 - example"), "float32|uint8"),
}
EVALUATOR = {
    "no_result": (replaced("    def result(self", "    def outcome(self"), "subclass of Evaluator"),
    "a_dict": (replaced("return Measured(", "return dict("), "evals.wrong: measure returns a dict"),
    "mean": (
        replaced('!= batch["label"]}', '!= batch["label"].mean()}').replace("argmax(axis=1)", "argmax()"),
        "one entry for each",
    ),
    "needs_more": (replaced('    """The share of wrong classes."""', '    needs = ("masses",)'), "masses|logits"),
    "unknown_argument": (
        replaced(
            "class Wrong(Evaluator):",
            "class Wrong(Evaluator):\n    def __init__(self, source):\n        super().__init__(source, '')\n",
        ),
        "evals.wrong.preprocess: unknown key",
    ),
}
KINDS = {"model": MODEL, "task": TASK, "source": SOURCE, "transform": TRANSFORM, "evaluator": EVALUATOR}


@pytest.mark.parametrize(
    ("kind", "parts", "says"),
    [pytest.param(kind, *case, id=f"{kind}-{name}") for kind, cases in KINDS.items() for name, case in cases.items()],
)
def test_a_part_that_is_wrong_is_refused_before_any_compile(kind, parts, says, folder, capsys):
    (folder / "my_parts.py").write_text(parts)
    flags = HINGE if kind == "task" else ()
    flags += (
        ("--config.task={'type': 'my_parts:Hinge', 'margin': 2.0}",) if parts == TASK["unknown_argument"][0] else ()
    )
    assert call(folder, *flags) == 2
    out, err = capsys.readouterr()
    assert "compiled" not in out
    assert not (folder / "run").exists()
    assert err.startswith("error: "), err
    for words in says.split("|"):
        assert words in err, err


FAILS = replaced(
    '        return {"wrong": float', "        raise RuntimeError('a typo of mine')\n        return {\"wrong\": float"
)


def test_an_evaluator_that_fails_loses_no_step(folder, capsys):
    (folder / "my_parts.py").write_text(FAILS)
    with pytest.raises(RuntimeError, match="a typo of mine"):
        call(folder)
    assert "step 10 is saved" in capsys.readouterr().out
    (folder / "my_parts.py").write_text(PARTS)
    sys.modules.pop("my_parts", None)
    assert call(folder) == 0
    assert "resuming at step 10" in capsys.readouterr().out


def test_a_user_sees_the_traceback_of_their_own_code(folder):
    (folder / "my_parts.py").write_text(FAILS)
    argv = [sys.executable, "-m", "vit_jax.main", f"--config={folder / 'mine.py'}", f"--workdir={folder / 'run'}"]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "my_parts.py" in done.stderr
    assert done.stderr.strip().endswith("RuntimeError: a typo of mine")


def test_a_task_of_ones_own_keeps_batch_statistics(folder):
    assert call(folder, "--config.task={'type': 'my_parts:Focal'}", "--config.steps=4") == 0
    assert "wrong/wrong" in rows(folder / "run")[-1]


def test_a_task_that_does_not_keep_them_is_told_how(folder, capsys):
    assert call(folder, "--config.task={'type': 'my_parts:Hinge'}") == 2
    assert "Conv has batch_stats besides parameters" in capsys.readouterr().err


def test_an_evaluator_can_be_left_out(folder):
    assert call(folder, "--config.evals.wrong=None", "--config.steps=2", "--config.data.eval_preprocess=") == 0
    assert not any("wrong/wrong" in row for row in rows(folder / "run"))


@pytest.mark.parametrize(
    ("result", "says"),
    [("{'wrong': np.zeros(3)}", "'wrong' of shape (3,)"), ("0.5", "returns a float; expected a dict")],
)
def test_a_result_that_is_no_dict_of_numbers_is_named(result, says, folder, capsys):
    text = PARTS.replace('return {"wrong": float(measured[""]["wrong"].mean())}', f"return {result}")
    assert text != PARTS
    (folder / "my_parts.py").write_text(text)
    assert call(folder) == 2
    assert says in capsys.readouterr().err


def test_a_missing_method_is_named(folder, capsys):
    (folder / "my_parts.py").write_text(PARTS.replace("def measure(", "def mesure("))
    assert call(folder) == 2
    assert "'my_parts:Wrong' has no measure; expected a subclass of Evaluator" in capsys.readouterr().err
