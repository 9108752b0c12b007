import pytest

from tests.sweeps.test_controller import attempts, controller
from vit_jax.runs.sweeps import record as records
from vit_jax.runs.sweeps.executor import LocalExecutor
from vit_jax.runs.sweeps.halving import SuccessiveHalving

pytest.importorskip("optuna")


def judged(values, mode="max"):
    """Return which runs are stopped when they reach the first evaluation, in this order, with these values."""
    halving = SuccessiveHalving(mode)
    return [halving.should_stop(str(number), [(10, value)]) for number, value in enumerate(values)]


def test_the_best_so_far_is_never_stopped():
    assert judged([0.1, 0.2, 0.3, 0.4]) == [False] * 4
    assert judged([0.4, 0.3, 0.2, 0.1]) == [False, True, True, True]
    assert judged([0.4, 0.3, 0.2, 0.1], mode="min") == [False] * 4


def test_runs_are_judged_at_the_first_evaluation_and_at_four_times_its_step_alone():
    halving = SuccessiveHalving("max")
    assert not halving.should_stop("best", [(step, 0.9) for step in range(10, 100, 10)])
    assert not halving.should_stop("better", [(10, 1.0), (20, 0.1), (30, 0.1)])
    assert halving.should_stop("better", [(10, 1.0), (20, 0.1), (30, 0.1), (40, 0.1)])


def test_what_a_resumed_run_measures_again_is_not_judged_again():
    halving = SuccessiveHalving("max")
    assert not halving.should_stop("a", [(10, 0.9)])
    assert not halving.should_stop("a", [(10, 0.1)])
    assert halving.should_stop("b", [(10, 0.5)])


def test_runs_that_fall_behind_are_stopped_and_stay_so_while_the_search_goes_on(tmp_path):
    ends = {name: ["slow", "finish"] for name in ("good", "poor", "poor_too")}

    def sweep(search):
        return controller(tmp_path, ends, executor=LocalExecutor(1), search=search, steps=16)

    assert sweep(SuccessiveHalving("max")).run() == 0
    assert [run.state for run in records.load_record(tmp_path).runs] == ["finished", "stopped", "stopped"]
    assert sweep(SuccessiveHalving("max")).run() == 0
    assert [len(attempts(tmp_path, name)) for name in ends] == [1, 1, 1]
    assert sweep(None).run() == 0
    assert [run.state for run in records.load_record(tmp_path).runs] == ["finished"] * 3
    # They resumed from their checkpoints.
    assert [int(attempts(tmp_path, name)[-1].split()[-1]) > 0 for name in ends] == [False, True, True]
