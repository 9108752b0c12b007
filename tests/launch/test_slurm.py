import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vit_jax.__main__ import main

from .conftest import executable
from .test_tpu import WORDS

# A fake Slurm. srun starts --ntasks-per-node tasks; scancel signals them; sbatch runs the script, and again if scontrol requeues
# it. Their files are in $FAKE_SLURM.
SBATCH = """#!/bin/bash
cd "$FAKE_SLURM"
echo "Submitted batch job 7"
export SLURM_JOB_ID=7 TASKS=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$1")
while :; do
  rm -f requeue
  setsid bash "$1" >> log 2>&1 &
  echo $! > script.pid
  wait $!
  echo $? >> codes
  [ -e requeue ] || break
done
"""
SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for task in $(seq 0 $((TASKS - 1))); do
  SLURM_PROCID=$task setsid "$@" &
  echo $! > "$FAKE_SLURM/task.$task"
done
code=0
for job in $(jobs -p); do wait $job || code=$?; done
exit $code
"""
SCANCEL = """#!/bin/bash
[ "$*" = "--signal=TERM 7" ] || exit 9
for file in "$FAKE_SLURM"/task.*; do kill -TERM -- "-$(cat $file)"; done
"""
SCONTROL = """#!/bin/bash
[ "$*" = "requeue 7" ] || exit 9
touch "$FAKE_SLURM/requeue"
"""
# Counts to 20; on SIGTERM it saves and exits with 0, like a run.
TRAIN = """
import json, os, pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1], os.environ["SLURM_PROCID"])
place.mkdir(parents=True, exist_ok=True)
(place / "words.json").write_text(json.dumps(sys.argv[2:]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
state = place / "step"
step = int(state.read_text()) if state.exists() else 0
print("from", step, flush=True)
while step < 20:
    step += 1
    time.sleep(0.05)
    (place / "partial").write_text(str(step))
    (place / "partial").rename(state)
"""


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


class Cluster:
    def __init__(self, tmp_path, monkeypatch):
        self.folder, self.workdir = tmp_path / "cluster", tmp_path / "workdir"
        self.here = tmp_path / "here with blanks"
        self.here.mkdir()
        (self.here / "train.py").write_text(TRAIN)
        for name, text in {"sbatch": SBATCH, "srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
            executable(self.folder / "bin" / name, text)
        monkeypatch.setenv("FAKE_SLURM", str(self.folder))
        monkeypatch.setenv("PATH", f"{self.folder / 'bin'}:{os.environ['PATH']}")
        monkeypatch.chdir(self.here)

    def launch(self, *flags, words=()):
        flags = ["--gpus=2", "--out=out", *flags]
        return main(["launch", "slurm", *flags, "--", sys.executable, "train.py", str(self.workdir), *words])

    def submit(self, *flags):
        """Submit in another process, because the fake sbatch blocks, and wait for the third step."""
        command = [sys.executable, "-m", "vit_jax", "launch", "slurm", "--gpus=2", "--out=out", *flags]
        environment = os.environ | {"PYTHONPATH": str(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))}
        process = subprocess.Popen([*command, "--", sys.executable, "train.py", str(self.workdir)], env=environment)
        until(lambda: all((self.workdir / task / "step").exists() and self.step(task) > 2 for task in "01"))
        return process

    def step(self, task):
        return int((self.workdir / task / "step").read_text())


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return Cluster(tmp_path, monkeypatch)


def test_a_script_is_submitted_and_runs_the_command_once_for_each_gpu(cluster, capfd):
    assert cluster.launch("--nodes=1", words=WORDS) == 0
    output = capfd.readouterr().out
    assert "Submitted batch job 7" in output
    assert f"log: {cluster.here}/out/vit_jax-7.log" in output
    for task in "01":
        assert cluster.step(task) == 20
        assert json.loads((cluster.workdir / task / "words.json").read_text()) == WORDS
    assert (cluster.folder / "codes").read_text() == "0\n"


def test_a_run_saves_before_its_time_limit_and_goes_on_in_another_turn(cluster):
    process = cluster.submit("--time=1:00")
    os.kill(int((cluster.folder / "script.pid").read_text()), signal.SIGUSR1)
    assert process.wait(60) == 0
    begins = [int(line.split()[1]) for line in (cluster.folder / "log").read_text().splitlines() if "from" in line]
    assert begins[:2] == [0, 0]
    assert all(2 < begin < 20 for begin in begins[2:])
    assert len(begins) == 4
    assert [cluster.step(task) for task in "01"] == [20, 20]


def test_a_preempted_run_does_not_pass_for_finished(cluster):
    process = cluster.submit()
    subprocess.run([cluster.folder / "bin" / "scancel", "--signal=TERM", "7"], check=True)
    until(lambda: "waiting for Slurm" in (cluster.folder / "log").read_text())
    assert process.poll() is None  # it waits for Slurm to take the nodes and to begin it again
    assert not (cluster.folder / "codes").exists()
    os.killpg(int((cluster.folder / "script.pid").read_text()), signal.SIGKILL)
    process.wait(60)


def test_a_failure_is_the_jobs(cluster):
    (cluster.here / "train.py").write_text("raise SystemExit(3)")
    assert cluster.launch() == 0
    assert (cluster.folder / "codes").read_text() == "3\n"


def test_a_dry_run_prints_the_script_and_writes_nothing(cluster, capfd):
    flags = ["--nodes=2", "--time=1-00:00:00", "--partition=gpu", "--account=me", "--mem=10G", "--cpus=4"]
    assert cluster.launch(*flags, "--name=x", "--sbatch=--constraint=a100&ib", "--dry-run") == 0
    output = capfd.readouterr().out
    for line in (
        "--job-name=x",
        "--nodes=2",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--cpus-per-task=4",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in output
    for line in ("--time=1-00:00:00", "--partition=gpu", "--account=me", "--mem=10G", "--constraint='a100&ib'"):
        assert f"#SBATCH {line}\n" in output
    subprocess.run(["bash", "-n", "-c", output], check=True)
    assert not (cluster.here / "out").exists()
    assert not (cluster.folder / "codes").exists()


def test_another_script_of_the_name_is_not_overwritten(cluster, capfd):
    assert cluster.launch() == 0
    script = (cluster.here / "out" / "vit_jax.sbatch").read_text()
    assert cluster.launch("--nodes=2") == 2
    assert "vit_jax.sbatch already exists" in capfd.readouterr().err
    assert (cluster.here / "out" / "vit_jax.sbatch").read_text() == script


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=a b"], "--name=a b"),
        (["--nodes=0"], "--nodes: found '0'"),
        (["--time=soon"], "--time=soon"),
        (["--sbatch=qos"], "--sbatch=qos"),
        (["--partition="], "--partition is empty"),
        (["--partitoin=gpu"], "--partition"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_found_before_anything_is_submitted(cluster, capfd, flags, message):
    assert cluster.launch(*flags) == 2
    assert message in capfd.readouterr().err
    assert not (cluster.here / "out").exists()


def test_a_missing_sbatch_and_its_errors_are_reported(cluster, capfd):
    executable(cluster.folder / "bin" / "sbatch", "#!/bin/bash\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    assert cluster.launch() == 2
    assert "invalid partition" in capfd.readouterr().err
    (cluster.folder / "bin" / "sbatch").unlink()
    assert cluster.launch() == 2
    assert "sbatch was not found on PATH" in capfd.readouterr().err
