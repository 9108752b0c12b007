"""The controller, with runs that do not train."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.conftest import ROOT
from vit_jax.runs.sweeps import record as records
from vit_jax.runs.sweeps.board import Board
from vit_jax.runs.sweeps.controller import Controller
from vit_jax.runs.sweeps.executor import Executor, Job, JobEnd, LocalExecutor
from vit_jax.runs.sweeps.record import SweepRecord, SweepRun

PRETEND = Path(__file__).with_name("pretend.py")


def controller(folder, ends, retries=1, executor=None, search=None, steps=6):
    """Return a controller for runs, by name, that end in these ways; an existing record is continued."""
    folder.mkdir(exist_ok=True)
    runs = [SweepRun(name, {"seed": number}) for number, name in enumerate(ends)]
    known = records.load_record(folder) or SweepRecord("sweep.py", "", "c.py", [], "test/accuracy", "max", runs)
    commands = {
        name: (sys.executable, str(PRETEND), str(folder / name), str(steps), *how) for name, how in ends.items()
    }
    board = Board("test/accuracy", "max", Console(file=io.StringIO()))
    return Controller(known, folder, commands, executor or LocalExecutor(2), board, retries, search)


def attempts(folder, name):
    return (folder / name / "attempts").read_text().splitlines()


@pytest.mark.parametrize(
    ("ends", "state", "count", "reason"),
    [
        (["finish"], "finished", 1, ""),
        (["crash", "finish"], "finished", 2, ""),
        (["kill", "finish"], "finished", 2, ""),
        (["kill"], "failed", 2, "killed by SIGKILL"),
        (["crash"], "failed", 2, "RuntimeError: RESOURCE_EXHAUSTED: out of memory"),
        (["diverge"], "failed", 1, "Stopped: the loss of step 3 is nan; no checkpoint was saved before."),
        (["mistake"], "failed", 1, "error: --config.optim.lr: unknown key; expected one of these:"),
        # Preempted, but each attempt makes progress, so this is no failure.
        (["half", "half", "half", "finish"], "finished", 4, ""),
        (["at_once"], "failed", 2, "it was terminated"),
    ],
)
def test_every_kind_of_end_is_handled(tmp_path, ends, state, count, reason):
    sweep = controller(tmp_path, {"a": ends})
    assert sweep.run() == (0 if state == "finished" else 1)
    (run,) = records.load_record(tmp_path).runs
    assert (run.state, run.attempts, run.reason) == (state, count, reason)
    assert len(attempts(tmp_path, "a")) == count


def test_finished_runs_are_skipped_and_failed_ones_are_tried_again_by_a_new_sweep(tmp_path):
    ends = {"good": ["finish"], "bad": ["mistake", "finish"], "gone": ["finish"]}
    assert controller(tmp_path, ends).run() == 1
    shutil.rmtree(tmp_path / "gone")
    assert controller(tmp_path, ends).run() == 0
    assert [len(attempts(tmp_path, name)) for name in ends] == [1, 2, 1]
    assert {run.state for run in records.load_record(tmp_path).runs} == {"finished"}


def test_a_log_holds_every_attempt_with_its_command(tmp_path):
    controller(tmp_path, {"a": ["crash", "finish"]}).run()
    log = (tmp_path / "a.log").read_text()
    assert log.count(f"$ {sys.executable} {PRETEND}") == 2
    assert log.count("RuntimeError: RESOURCE_EXHAUSTED") == 1


def test_sigterm_saves_the_runs_and_the_next_sweep_resumes_them(tmp_path):
    ends = {name: ["slow", "finish"] for name in "abc"}
    sweep = controller(tmp_path, ends)
    timer = threading.Timer(0.0, end_when_under_way, [tmp_path, "ab"])
    timer.start()
    assert sweep.run() == 128 + signal.SIGTERM
    assert "stopping: the runs save and exit" in sweep.board.console.file.getvalue()
    timer.join()
    assert [run.state for run in records.load_record(tmp_path).runs] == ["waiting"] * 3
    assert [run.attempts for run in records.load_record(tmp_path).runs] == [1, 1, 0]
    assert controller(tmp_path, ends).run() == 0
    starts = [int(attempts(tmp_path, name)[-1].split()[-1]) for name in "abc"]
    assert starts[0] > 0
    assert starts[1] > 0


def end_when_under_way(folder, names):
    while not all((folder / name / "metrics.jsonl").exists() for name in names):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


class Losing(Executor):
    """Loses the machine of the first attempt of each job."""

    slots = 1

    def __init__(self):
        self.local, self.lost = LocalExecutor(1), []

    def start(self, job: Job) -> None:
        self.local.start(job)

    def poll(self) -> list[JobEnd]:
        ended = self.local.poll()
        new = [job for job in ended if job.name not in self.lost]
        self.lost += [job.name for job in new]
        return [JobEnd(job.name, None) if job in new else job for job in ended]

    def stop(self, name: str) -> None:
        self.local.stop(name)

    def close(self) -> None:
        self.local.close()


def test_a_lost_machine_is_no_failure_where_the_run_came_further(tmp_path):
    sweep = controller(tmp_path, {"a": ["half", "finish"], "b": ["half", "finish"]}, retries=0, executor=Losing())
    assert sweep.run() == 0
    assert [run.attempts for run in records.load_record(tmp_path).runs] == [2, 2]


def test_jobs_of_one_machine_have_cores_of_their_own(tmp_path):
    local = LocalExecutor(2)
    for name in "ab":
        code = "import os, time; print(sorted(os.sched_getaffinity(0))); time.sleep(0.5)"
        log = tmp_path / f"{name}.log"
        local.start(Job(name, (sys.executable, "-c", code), ROOT, log, tmp_path / f"{name}.lock", dict(os.environ)))
    ended = []
    while len(ended) < 2:
        ended += local.poll()
    assert {job.code for job in ended} == {0}
    cores = [set(json.loads((tmp_path / f"{name}.log").read_text().splitlines()[-1])) for name in "ab"]
    whole = os.sched_getaffinity(0)
    assert cores[0] | cores[1] <= whole
    assert len(cores[0]) == len(cores[1])
    assert not cores[0] & cores[1] or len(whole) == 1


KILLED = """
import os, sys, time
from pathlib import Path
from vit_jax.runs.sweeps.executor import Job, LocalExecutor
folder = Path(sys.argv[1])
command = (sys.executable, sys.argv[2], str(folder / "a"), "1000", "slow", "finish")
LocalExecutor(1).start(Job("a", command, Path.cwd(), folder / "a.log", folder / "a.lock", dict(os.environ)))
time.sleep(60)
"""


def test_a_killed_sweep_leaves_no_run_unattended_and_its_successor_waits_for_it(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, PRETEND], cwd=ROOT)
    while not (tmp_path / "a" / "metrics.jsonl").exists():
        time.sleep(0.02)
    first.kill()
    first.wait()
    local = LocalExecutor(1)
    command = (sys.executable, str(PRETEND), str(tmp_path / "a"), "1000", "slow", "finish")
    local.start(Job("a", command, ROOT, tmp_path / "a.log", tmp_path / "a.lock", dict(os.environ)))
    while not (ended := local.poll()):
        time.sleep(0.02)
    assert ended == [JobEnd("a", 0)]
    started = attempts(tmp_path, "a")
    assert started[0] == "slow from 0"
    # The second started from the checkpoint of the first, which received SIGTERM from the kernel.
    assert started[1].startswith("finish from ")
    assert started[1] != "finish from 0"


def test_two_sweeps_cannot_share_a_folder(tmp_path):
    with records.locked_folder(tmp_path):
        refused = pytest.raises(records.UserError, match="another sweep is running there")
        with refused, records.locked_folder(tmp_path):
            pass
    with records.locked_folder(tmp_path):
        pass


def test_the_workdir_of_a_run_is_no_place_for_a_sweep(tmp_path):
    (tmp_path / "config.json").touch()
    refused = pytest.raises(records.UserError, match="is the workdir of a run")
    with refused, records.locked_folder(tmp_path):
        pass
