import re

import pytest

from vit_jax.runs.sweeps.names import run_names
from vit_jax.runs.sweeps.space import chain, product, seeds


def test_names_tell_what_varies_by_the_shortest_tails():
    runs = product({"optim.lr": [1e-3, 3e-5], "model.width": [64], "steps": [10]}, seeds(2))
    assert run_names(runs) == ["lr=0.001,seed=0", "lr=0.001,seed=1", "lr=3e-05,seed=0", "lr=3e-05,seed=1"]


def test_keys_of_one_tail_are_told_apart():
    names = run_names(
        product({"data.source.path": ["a"], "evals.test.source.path": ["a", "b"], "evals.val.source.path": ["c", "d"]})
    )
    assert names[0] == "test.source.path=a,val.source.path=c"
    assert run_names(product({"seed": [0, 1], "data.seed": [0, 1]}))[1] == "seed=0,data.seed=1"


def test_a_key_that_some_runs_lack_is_left_out_of_their_names():
    assert run_names(chain([{}], product({"task.label_smoothing": [0.1]}))) == ["base", "label_smoothing=0.1"]


def test_a_single_run_is_named_by_all_it_sets():
    assert run_names([{"optim.lr": 0.1}]) == ["lr=0.1"]
    assert run_names([{}]) == ["base"]


@pytest.mark.parametrize(
    "values",
    [
        ["resize(16)|flip", "resize(16)|rotate(10)"],
        ["a b", "a_b", "a$b", "A_B", "../..", "", "x" * 300, "y.log", "~", "é"],
        [{"type": "vit.ViT", "width": 1}, {"type": "vit.ViT", "width": 2}, {"type": "mixer.Mixer"}],
        [[0.9, 0.99], [0.9, 0.999], []],
        [None, True, False, "None"],
        ["configs/a.py:x=1", "configs/a.py:x=2", "configs/a.py"],
    ],
)
def test_names_are_unique_and_safe_for_shells_and_file_systems(values):
    names = run_names(product({"some.key": values}, seeds(2)))
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+,=-]*", name)
        assert len(name) <= 100
        assert not name.endswith(".log")


def test_names_that_are_taken_are_avoided():
    runs = product({"a": [1, 2]})
    assert run_names(runs, taken=["a=1"])[0].startswith("a=1-")
