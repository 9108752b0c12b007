import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vit_jax.__main__ import main
from vit_jax.runs.launch import tpu, tpu_job

FAKE = Path(__file__).parent / "fake_gcloud.py"
PLACE = ["--name=pod", "--zone=us-west4-a", "--type=v5litepod-16"]
# A run of eight steps that resumes from its workdir and pauses at the fourth while a file exists; workers record their arguments.
TRAIN = """
import json, os, pathlib, sys, time
workdir, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
worker = pathlib.Path.home().name
place = workdir / worker
place.mkdir(parents=True, exist_ok=True)
state = place / "step"
step = int(state.read_text()) if state.exists() else 0
(place / "words.json").write_text(json.dumps(words))
(place / "secret").write_text(os.environ.get("WANDB_API_KEY", "none"))
print(f"from step {step}", flush=True)
while step < 8:
    step += 1
    time.sleep(0.05)
    state.write_text(str(step))
    print(f"step {step} of {worker}", flush=True)
    while step == 4 and (workdir / "hold").exists():
        time.sleep(0.05)
pathlib.Path("result.txt").write_text(f"step {step}")
sys.exit(int(os.environ.get("FAKE_CODE", 0)) if "fail" not in words else 3)
"""
# Replaces the uv of a worker, which has no network in tests: "installs" the Python that runs the tests.
UV = f"""#!/bin/bash
echo "$@" >> ~/uv.log
[ "$1" = venv ] || exit 0
mkdir -p "${{@: -1}}/bin"
printf '#!/bin/bash\\nexec {sys.executable} "$@"\\n' > "${{@: -1}}/bin/python"
chmod +x "${{@: -1}}/bin/python"
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def git(folder, *words):
    flags = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *flags, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


class Cloud:
    """A fake gcloud on PATH, a repository to launch from, and a workdir that outlives slices, like a bucket."""

    def __init__(self, tmp_path, monkeypatch, template):
        self.root, self.bucket = tmp_path / "cloud", tmp_path / "bucket"
        self.repository = tmp_path / "repository with blanks"
        self.home = tmp_path / "home"
        shutil.copytree(template, self.repository)
        for folder in (self.root, self.bucket, self.home):
            folder.mkdir()
        self.set_workers(1)
        executable(self.root / "bin" / "gcloud", f'#!/bin/bash\nexec {sys.executable} -S -E {FAKE} "$@"\n')
        executable(self.root / "remote_bin" / "uv", UV)
        self.commit = git(self.repository, "rev-parse", "HEAD")
        monkeypatch.setenv("FAKE_GCLOUD", str(self.root))
        monkeypatch.setenv("PATH", f"{self.root / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(self.home))
        for module in (tpu, tpu_job):
            monkeypatch.setattr(module, "POLL", 0.2)
        monkeypatch.chdir(self.repository)

    def set_workers(self, count):
        (self.root / "workers").write_text(str(count))

    def launch(self, *flags, words=()):
        """Return the exit code of `launch tpu`."""
        return main(["launch", "tpu", *PLACE, *flags, "--", "python", "train.py", str(self.bucket), *words])

    def calls(self):
        """Return the calls of gcloud, except describe."""
        path = self.root / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call for call in calls if call[3] != "describe"]

    def verbs(self):
        return [call[3] for call in self.calls()]

    def home_of(self, worker):
        return self.root / "workers.d" / f"pod-{worker}"

    def session_of(self, worker):
        """Block until the run has started and return its process group."""
        path = self.home_of(worker) / "vit_jax_launch" / "pid"
        while not (path.exists() and path.read_text().endswith("\n")):
            time.sleep(0.02)
        return int(path.read_text())

    def when(self, step, act, release=True):
        """Call `act` once worker 0 has reached a step, at most the fourth, where the run pauses until `release`."""
        hold = self.bucket / "hold"
        hold.touch()

        def wait():
            state = self.bucket / "pod-0" / "step"
            while not (state.exists() and state.read_text() and int(state.read_text()) >= step):
                time.sleep(0.02)
            act()
            if release:
                hold.unlink()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def preempt(self):
        subprocess.run(
            [sys.executable, "-c", "import fake_gcloud; fake_gcloud.preempt('pod')"], cwd=FAKE.parent, check=True
        )

    def nodes(self):
        return sorted(path.stem for path in (self.root / "nodes").glob("*.json"))


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A repository with one commit, to copy."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "train.py").write_text(TRAIN)
    (folder / "requirements.txt").write_text("")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "code")
    return folder


@pytest.fixture
def cloud(tmp_path, monkeypatch, template):
    cloud = Cloud(tmp_path, monkeypatch, template)
    yield cloud
    if cloud.nodes():
        subprocess.run(
            [sys.executable, "-c", "import fake_gcloud; fake_gcloud.end_all('pod')"], cwd=FAKE.parent, check=True
        )
