import re

import numpy as np
import pytest

from vit_jax.runs.sweeps.space import (
    Sweep,
    chain,
    choice,
    log_uniform,
    product,
    run_names,
    sample,
    seeds,
    uniform,
    zipped,
)
from vit_jax.types import UserError


def test_product_has_every_combination_once_with_the_last_part_fastest():
    runs = product({"optim.lr": [1e-3, 3e-3], "model.width": [32, 64, 96]}, seeds(2))
    assert len(runs) == 12
    assert len({tuple(run.items()) for run in runs}) == 12
    assert runs[:2] == [{"optim.lr": 1e-3, "model.width": 32, "seed": seed} for seed in (0, 1)]


def test_zipped_goes_in_step_and_refuses_lists_of_other_lengths():
    assert zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert zipped({"a": [1, 2]}, seeds(2)) == [{"a": 1, "seed": 0}, {"a": 2, "seed": 1}]
    with pytest.raises(UserError, match="zipped: found lists of 2, 3 values"):
        zipped({"a": [1, 2], "b": [1, 2, 3]})


def test_chain_keeps_the_order_of_its_parts():
    assert chain(seeds(1), [{"a": 1}], seeds(1, first=5)) == [{"seed": 0}, {"a": 1}, {"seed": 5}]


def test_combinators_nest():
    pairs = zipped({"model.width": [32, 64], "model.depth": [6, 3]})
    assert product(chain(pairs, [{"model.width": 96}]), seeds(2))[-1] == {"model.width": 96, "seed": 1}


def test_a_sample_is_the_same_every_time_and_keeps_its_draws_when_it_grows():
    space = {"optim.lr": log_uniform(1e-4, 1e-2), "pool": choice("tok", "gap")}
    few = sample(5, space, seed=3)
    more = sample(50, space | {"more": uniform(0.0, 1.0)}, seed=3)
    assert [{key: run[key] for key in space} for run in more[:5]] == few
    assert sample(5, space, seed=4) != few
    # Draws must not depend on the version of Python or of this code, or a sweep would not find its runs again.
    assert sample(2, {"optim.lr": log_uniform(1e-4, 1e-2)}) == [{"optim.lr": 0.009983}, {"optim.lr": 0.001585}]


def test_draws_keep_to_their_range_and_spread_over_it():
    lrs = np.array([run["lr"] for run in sample(2000, {"lr": log_uniform(1e-4, 1e-2)})])
    assert lrs.min() >= 1e-4
    assert lrs.max() <= 1e-2
    assert abs(np.mean(lrs < 1e-3) - 0.5) < 0.05
    numbers = np.array([run["x"] for run in sample(2000, {"x": uniform(-1.0, 3.0)})])
    assert abs(np.mean(numbers < 1) - 0.5) < 0.05
    words = [run["w"] for run in sample(300, {"w": choice("a", "b", "c")})]
    assert {w: words.count(w) > 70 for w in "abc"} == {"a": True, "b": True, "c": True}


def test_numbers_of_numpy_become_plain():
    run = product({"a": np.logspace(-3, -2, 2), "b": np.arange(2)})[-1]
    assert [type(value) for value in run.values()] == [float, int]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product({"a": 1}), "a is 1; expected a list"),
        (lambda: product({"a": "tok"}), "a is 'tok'; expected a list"),
        (lambda: product({"seed": [1]}, seeds(2)), "seed is set twice, to 1 and to 0"),
        (lambda: product([1]), "found 1 among the settings"),
        (lambda: product({"a..b": [1]}), "'a..b' is not a config key"),
        (lambda: product({"a": [object()]}), "a is a object; expected bool"),
        (lambda: chain({"a": [1]}), "use product"),
        (lambda: sample(1, {"a": [1]}), "expected uniform"),
        (lambda: log_uniform(0.0, 1.0), "expected 0 < low < high"),
        (lambda: uniform(2.0, 1.0), "expected low < high"),
        (lambda: Sweep(config="configs/digits.py", runs=[]), "runs is empty"),
        (lambda: Sweep(config="configs/digits.py", runs=seeds(1), mode="best"), "expected 'max' or 'min'"),
    ],
)
def test_mistakes_are_reported(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_names_show_what_varies_by_the_shortest_suffixes():
    runs = product({"optim.lr": [1e-3, 3e-5], "model.width": [64], "steps": [10]}, seeds(2))
    assert run_names(runs) == ["lr=0.001,seed=0", "lr=0.001,seed=1", "lr=3e-05,seed=0", "lr=3e-05,seed=1"]


def test_keys_with_the_same_suffix_are_distinguished():
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


def test_a_part_without_a_type_is_named_by_its_values():
    inits = [{"ref": "workdirs/mae", "allow": None}, {"ref": "hf:a/b", "head": "reset", "trust": True}, {}]
    assert run_names(product({"init": inits})) == ["init=workdirs_mae", "init=hf_a_b+reset+trust_True", "init=none"]


def test_names_that_are_taken_are_avoided():
    runs = product({"a": [1, 2]})
    assert run_names(runs, taken=["a=1"])[0].startswith("a=1-")


@pytest.mark.parametrize(
    "make",
    [
        lambda: seeds(10**12),
        lambda: seeds(-1),
        lambda: sample(10**12, {"a": uniform(0.0, 1.0)}),
        lambda: product(*[{f"a{i}": list(range(10))} for i in range(12)]),
    ],
    ids=["seeds", "negative", "sample", "product"],
)
def test_more_runs_than_any_sweep_has_are_refused_before_they_are_made(make):
    with pytest.raises(UserError, match="expected int from 0 to 100,000"):
        make()
