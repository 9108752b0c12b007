import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vit_jax.config.load import load
from vit_jax.runs.sweeps.space import product
from vit_jax.runs.sweeps.sweep_file import config_flags, flag_text, load_sweep
from vit_jax.types import UserError

DIGITS = str(ROOT / "configs" / "digits.py")
HEAD = f"""
from vit_jax.runs.sweeps.space import *
def get_sweep(arg=""):
    return Sweep({DIGITS!r}, """


def file(tmp_path, runs):
    path = tmp_path / "sweep.py"
    path.write_text(f"{HEAD}{runs})\n")
    return str(path)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ('product({"optim.lrr": [1, 2]}, seeds(3))', "unknown key 'lrr'; did you mean lr?"),
        ('product({"optim.lr": [1e-3, "fast"]})', "lr=fast: --config.optim.lr is 'fast'; expected finite float"),
        ('product({"model": [{"type": "vit.Vit"}]})', "model.type: unknown type 'vit.Vit'; did you mean vit.ViT"),
        ('product({"model": [{"type": "vit.ViT", "widht": 3}]})', "model.widht: unknown key; did you mean width?"),
        (
            'product({"model": [{"variant": "S/16", "type": "vit.ViT", "width": "wide"}]})',
            "model.width is 'wide'; expected",
        ),
        (
            'product({"evals.test": [{"type": "classification.Classification", "source": {"type": "x"}}]})',
            "evals.test.source",
        ),
        ('[{"seed": 1}, {"seed": 1}]', "the same config as"),
        ('[{}, {"seed": 0}]', "seed=0: the run has the same config as base"),
        ('product({"config": ["nowhere.py"]})', "no file 'nowhere.py'"),
        ('seeds(2), metric="tset/accuracy"', "evals has no 'tset'; did you mean test"),
        (
            'product({"data.preprocess": ["resize(8)", "resise(8)"]})',
            "data.preprocess: Found the unknown operation 'resise'",
        ),
        ('product({"evals.test.preprocess": ["resize(eight)"]})', "evals.test.preprocess: Found 'resize(eight)'"),
        ('product({"data.eval_preprocess": ["resize(8)|"]})', "data.eval_preprocess: Found ''"),
        ('product({"data.preprocess": ["resize(-8)"]})', "size must be at least 1"),
        ('product({"steps": [1], "batch_size": [2]})', "--config.steps: the sweep also sets steps"),
    ],
)
def test_every_mistake_is_reported_before_anything_starts(tmp_path, runs, message):
    with pytest.raises(UserError, match="nothing was started") as caught:
        load_sweep(file(tmp_path, runs), [("steps", "9")] if "steps" in runs else [])
    assert message in str(caught.value)


def test_a_mistake_of_all_runs_is_reported_once_and_all_mistakes_are_reported(tmp_path):
    with pytest.raises(UserError) as caught:
        load_sweep(file(tmp_path, 'chain(product({"optim.lrr": [1, 2]}), [{"stepss": 1}])'), [])
    assert str(caught.value).count("unknown key") == 2


def test_a_whole_part_that_is_right_is_taken(tmp_path):
    part = {"type": "classification.Classification", "source": {"type": "digits.Digits", "split": "test"}, "every": 9}
    sweep = load_sweep(
        file(tmp_path, f'product({{"evals.test": [{part}], "model": [{{"type": "vit.ViT", "variant": "S/16"}}]}})'), []
    )
    assert sweep.runs[0]["evals.test"] == part


def test_an_error_in_the_file_is_reported_with_its_line(tmp_path):
    (tmp_path / "sweep.py").write_text("def get_sweep():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"sweep: .*sweep.py:2: ZeroDivisionError"):
        load_sweep(str(tmp_path / "sweep.py"), [])
    (tmp_path / "sweep.py").write_text("def get_sweep():\n    return []\n")
    with pytest.raises(UserError, match="returned a list; expected the Sweep of vit_jax"):
        load_sweep(str(tmp_path / "sweep.py"), [])
    with pytest.raises(UserError, match=r"sweep: no file 'nothing\.py'"):
        load_sweep("nothing.py", [])


@pytest.mark.parametrize(
    "value", [1, 0.1, 1e-5, True, None, "tok", "resize(16)|flip", [1, 2], [0.9, "a b"], {"x": None}]
)
def test_the_command_line_reads_a_value_as_it_was(value):
    (settings,) = product({"data.source": [{"type": "x", "value": value}]})
    flags = config_flags(settings)
    assert load(DIGITS, flags).to_dict()["data"]["source"]["value"] == value


@pytest.mark.parametrize("text", ["1", "None", "true", "[1]", "'a'", "gap", "a'b"])
def test_text_stays_text(text):
    settings = {"data.preprocess": text}
    assert load(DIGITS, config_flags(settings)).data.preprocess == text
    assert flag_text("gap") == "gap"


def test_checking_leaves_the_accelerators_to_the_runs(tmp_path):
    code = f"""
from vit_jax.runs.sweeps.sweep_file import load_sweep
import vit_jax.runs.sweeps.controller
from jax._src import xla_bridge
load_sweep({file(tmp_path, 'product({"optim.lr": [1e-3]}, seeds(2))')!r}, [])
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_size_that_a_model_gives_later_is_no_mistake(tmp_path):
    load_sweep(file(tmp_path, 'product({"data.preprocess": ["resize(SIZE)", "resize(SIZE*8//7)"]})'), [])


def test_a_preprocess_on_the_command_line_is_checked_too(tmp_path):
    with pytest.raises(UserError, match="unknown operation 'flipp'"):
        load_sweep(file(tmp_path, "seeds(2)"), [("data.preprocess", "flipp")])
