import math

import pytest

from tests.reports.made import finished, workdir
from vit_jax.runs.reports.collect import collect_runs
from vit_jax.runs.reports.seed_groups import group_by_seed, seed_statistics


def test_statistics_equal_those_by_hand():
    stats = seed_statistics([0.70, 0.72, 0.77])
    assert stats.mean == pytest.approx(0.73)
    assert stats.spread == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    # Student's t of two degrees of freedom, 97.5 %: 4.302653, from tables.
    assert stats.confidence == pytest.approx(4.302653 * stats.spread / math.sqrt(3), rel=1e-6)
    assert stats.n == 3


def test_one_number_has_no_spread_and_none_no_mean():
    assert seed_statistics([0.5]).spread is None
    assert seed_statistics([0.5]).confidence is None
    assert seed_statistics([]) is None


def test_runs_that_differ_in_the_seed_alone_are_one_group_by_seed(tmp_path):
    for lr in (0.1, 0.2):
        for seed in range(3):
            finished(tmp_path / f"lr={lr},seed={seed}", lr + seed, {"seed": seed, "optim": {"lr": lr}})
    groups = group_by_seed(collect_runs([tmp_path])[0])
    assert [(one.name, len(one.runs)) for one in groups] == [("lr=0.1", 3), ("lr=0.2", 3)]
    assert groups[1].statistics("test/accuracy").mean == pytest.approx(1.2)


def test_unfinished_runs_are_in_no_mean(tmp_path):
    finished(tmp_path / "a", 0.9, {"seed": 0})
    workdir(tmp_path / "b", {"seed": 1}, [{"step": 50, "test/accuracy": 0.1}])
    (one,) = group_by_seed(collect_runs([tmp_path])[0])
    assert (one.statistics("test/accuracy").mean, one.statistics("test/accuracy").n, len(one.runs)) == (0.9, 1, 2)


def test_groups_of_many_settings_are_named_by_their_runs(tmp_path):
    for name, depth in (("small", 1), ("large", 2)):
        for seed in range(2):
            model = {f"a_rather_long_argument_{index}": depth for index in range(9)}
            finished(tmp_path / f"{name}_seed{seed}", 0.9, {"seed": seed, "model": model})
    assert [one.name for one in group_by_seed(collect_runs([tmp_path])[0])] == ["large", "small"]
