import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time

import psutil
import pytest

from tests.conftest import ROOT, TINY_FLAGS, rows
from vit_jax.__main__ import main
from vit_jax.runs.launch import gcloud, session, tpu
from vit_jax.runs.launch.logtail import new_output
from vit_jax.runs.launch.session import CONNECTED
from vit_jax.runs.launch.subprocesses import check_command
from vit_jax.types import UserError

from .conftest import PLACE, git

WORDS = ["two words", "it's", '"quoted"', "$HOME", "$(touch hacked)", "`id`", "a\\b", "*", "", "line\nbreak", "ü;&|<>!"]
STEPS = [f"step {n} of pod-0" for n in range(1, 9)]


def log(output):
    return [line for line in output.splitlines() if "step" in line]


def test_a_run_is_created_set_up_on_all_workers_run_and_deleted(cloud, capfd):
    cloud.set_workers(2)
    assert cloud.launch("--keep", words=WORDS) == 0
    for worker in ("pod-0", "pod-1"):
        assert json.loads((cloud.bucket / worker / "words.json").read_text()) == WORDS
        folder = cloud.root / "workers.d" / worker / "vit_jax_launch"
        assert git(folder / "code", "rev-parse", "HEAD") == cloud.commit
        assert (folder.parent / "uv.log").read_text().splitlines()[1].endswith("-c requirements.txt -e .[tpu]")
    assert log(capfd.readouterr().out) == ["from step 0", *STEPS]
    assert cloud.launch(words=WORDS) == 0
    first, again = ["create", "ssh", "ssh", "scp", "ssh", "ssh", "ssh", "ssh"], ["ssh", "ssh", "ssh", "delete"]
    assert cloud.verbs() == [*first, *again]
    assert cloud.nodes() == []


def test_a_preempted_run_is_created_again_and_resumes(cloud, capfd):
    cloud.when(3, cloud.preempt)
    assert cloud.launch("--spot") == 0
    output = capfd.readouterr()
    assert "pod is PREEMPTED" in output.err
    begins = [int(step) for step in re.findall(r"from step (\d+)", output.out)]  # a lost worker may end within a line
    assert begins[0] == 0
    assert 3 <= begins[1] < 8
    assert [verb for verb in cloud.verbs() if verb in ("create", "delete")] == ["create", "delete", "create", "delete"]
    assert cloud.nodes() == []


def test_a_queued_run_waits_and_is_asked_for_again_after_a_preemption(cloud, capfd):
    cloud.when(3, cloud.preempt)
    assert cloud.launch("--queued", "--spot") == 0
    output = capfd.readouterr().err
    assert output.count("pod is WAITING_FOR_RESOURCES") == 2
    changes = [call[2:4] for call in cloud.calls() if call[3] in ("create", "delete")]
    assert changes == [["queued-resources", verb] for verb in ("create", "delete", "create", "delete")]
    assert cloud.nodes() == []


def test_a_dry_run_pasted_into_a_shell_makes_the_same_calls(cloud, capfd, monkeypatch):
    cloud.set_workers(2)
    monkeypatch.setenv("WANDB_API_KEY", "s'e$cret")
    flags = ["--env=WANDB_API_KEY", "--fetch=result.txt:result.txt", "--queued"]
    assert cloud.launch(*flags, "--dry-run", words=WORDS) == 0
    pasted = capfd.readouterr().out
    assert cloud.calls() == []
    assert cloud.launch(*flags, words=WORDS) == 0
    done = cloud.calls()
    done.remove(next(call for call in done if call[3] == "ssh"))  # that asks whether the run is there already
    (cloud.root / "calls.jsonl").unlink()
    (cloud.repository / "result.txt").unlink()
    subprocess.run(["bash", "-e", "-c", pasted], check=True, cwd=cloud.repository)
    assert cloud.calls() == done
    assert json.loads((cloud.bucket / "pod-1" / "words.json").read_text()) == WORDS
    assert (cloud.bucket / "pod-1" / "secret").read_text() == "s'e$cret"
    assert (cloud.repository / "result.txt").read_text() == "step 8"


def test_a_variable_reaches_all_workers_and_is_seen_nowhere(cloud, capfd, monkeypatch):
    cloud.set_workers(2)
    secret = "s3cr3t 'with' $quotes"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    assert cloud.launch("--env=WANDB_API_KEY", "--keep") == 0
    assert {(cloud.bucket / worker / "secret").read_text() for worker in ("pod-0", "pod-1")} == {secret}
    output = capfd.readouterr()
    assert "s3cr3t" not in output.out + output.err + (cloud.root / "calls.jsonl").read_text()
    for folder in (cloud.root, cloud.home):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"s3cr3t" not in path.read_bytes(), path


def test_ctrl_c_detaches_and_the_same_command_attaches_again(cloud, capfd):
    cloud.when(4, lambda: os.kill(os.getpid(), signal.SIGINT), release=False)
    assert cloud.launch() == 130
    output = capfd.readouterr().err
    for words in ("Detached", "To attach again", "-- python train.py", "tpu-vm delete pod"):
        assert words in output
    assert cloud.nodes() == ["pod"]
    threading.Timer(1.0, (cloud.bucket / "hold").unlink).start()
    assert cloud.launch() == 0
    assert log(capfd.readouterr().out) == ["from step 0", *STEPS]
    assert cloud.nodes() == []


def test_a_lost_connection_loses_and_repeats_no_line_of_the_log(cloud, capfd):
    def cut():
        for path in cloud.home_of(0).glob("ssh.*"):
            os.killpg(int(path.name.split(".")[1]), signal.SIGKILL)

    cloud.when(3, cut)
    assert cloud.launch() == 0
    assert log(capfd.readouterr().out) == ["from step 0", *STEPS]


def test_lines_that_gcloud_repeats_after_connecting_again_are_printed_once():
    whole = b"one\ntwo\nthree\n"
    for cut in range(len(whole) + 1):
        seen = 4

        def count():
            return seen

        out = b""
        for text in new_output(
            (CONNECTED + whole[4 : max(cut, 4)] + CONNECTED + whole[4:]).splitlines(keepends=True), 4, count
        ):
            out += text
            seen += len(text)
        assert out == whole[4:]


def test_a_run_that_its_machine_ended_is_started_again(cloud, capfd):
    # A run that saves on SIGTERM exits with 0, but has not finished.
    cloud.when(3, lambda: os.killpg(cloud.session_of(0), signal.SIGTERM))
    assert cloud.launch() == 0
    assert "the run on pod is lost; restarting it" in capfd.readouterr().err
    assert (cloud.bucket / "pod-0" / "step").read_text() == "8"
    assert cloud.verbs().count("create") == 1


def test_a_worker_that_fails_since_another_was_lost_does_not_fail_the_run(cloud, capfd):
    cloud.set_workers(2)

    def lose():
        sessions = [cloud.session_of(n) for n in range(2)]
        os.killpg(sessions[1], signal.SIGKILL)
        for process in psutil.Process(sessions[0]).children():
            process.kill()

    cloud.when(3, lose)
    assert cloud.launch() == 0
    output = capfd.readouterr().err
    assert "the run on pod is lost" in output
    assert "exit code" not in output
    assert (cloud.bucket / "pod-0" / "step").read_text() == "8"


def test_a_failed_run_gives_its_exit_code_and_its_last_lines(cloud, capfd):
    cloud.set_workers(2)
    assert cloud.launch(words=["fail"]) == 3
    output = capfd.readouterr().err
    assert "ended with exit code 3" in output
    assert "step 8 of pod-1" in output
    assert cloud.nodes() == []


def test_a_stopped_run_is_not_started_again(cloud, capfd):
    pod = gcloud.TpuSlice("pod", "us-west4-a", "v5litepod-16")
    cloud.when(2, lambda: subprocess.run(pod.ssh(session.stop_script()), check=True))
    assert cloud.launch() == 2
    output = capfd.readouterr().err
    assert "was stopped" in output
    assert "to delete it:\n  gcloud compute tpus tpu-vm delete pod" in output


def test_another_command_does_not_disturb_a_run(cloud, capfd):
    cloud.when(4, lambda: os.kill(os.getpid(), signal.SIGINT), release=False)
    assert cloud.launch() == 130
    assert cloud.launch(words=["other"]) == 2
    assert "is running another command" in capfd.readouterr().err
    (cloud.bucket / "hold").unlink()
    assert cloud.launch() == 0


def test_missing_capacity_and_a_failed_copy_are_retried(cloud, capfd):
    (cloud.root / "refuse.create").write_text('There is no more capacity in the zone "us-west4-a"')
    (cloud.root / "refuse.scp").write_text("[255] connection refused")
    assert cloud.launch() == 0
    assert "no capacity for v5litepod-16 in us-west4-a" in capfd.readouterr().err


def test_errors_of_gcloud_are_shown(cloud, capfd):
    (cloud.root / "refuse.create").write_text("PERMISSION_DENIED: Cloud TPU API has not been used in project 7 before")
    assert cloud.launch() == 2
    assert "Cloud TPU API has not been used in project 7" in capfd.readouterr().err


def test_a_missing_ssh_key_is_reported_with_the_remedy(cloud, capfd):
    remedy = 'SSH Key is not present in the SSH agent. Please run "ssh-add KEY" to add it'
    (cloud.root / "refuse.scp").write_text(remedy)
    assert cloud.launch() == 2
    assert 'Please run "ssh-add KEY"' in capfd.readouterr().err


def test_changes_that_are_in_no_commit_are_refused(cloud, capfd):
    (cloud.repository / "train.py").write_text("raise SystemExit(9)")
    assert cloud.launch() == 2
    output = capfd.readouterr().err
    assert " M train.py" in output
    assert cloud.calls() == []
    assert cloud.launch("--committed", "--dry-run") == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=Pod"], "--name=Pod"),
        (["--type=v5e-8"], "--type=v5e-8: expected v2, v3"),
        (["--type=v5litepod-0"], "--type=v5litepod-0"),
        (["--zone=us-west4"], "--zone=us-west4"),
        (["--fetch=there"], "expected REMOTE:LOCAL"),
        (["--env=VIT_JAX_UNSET"], "--env=VIT_JAX_UNSET"),
        (["--env=A=b"], "--env=A=b"),
        (["--spott"], "--spott"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_found_before_anything_is_created(cloud, capfd, flags, message):
    assert cloud.launch(*flags) == 2
    assert message in capfd.readouterr().err
    assert cloud.calls() == []


@pytest.mark.parametrize("word", ["WANDB_API_KEY=abcdef", "--wandb_api_key=abcdef", "export WANDB_API_KEY=abcdef; x"])
def test_a_secret_on_the_command_line_is_refused_without_showing_it(cloud, capfd, word):
    assert cloud.launch(words=[word]) == 2
    output = capfd.readouterr().err
    assert "--env=WANDB_API_KEY" in output
    assert "abcdef" not in output


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["--api_key=abc"],
            ["--apiKey", "abc"],
            ["APIKEY=abc"],
            ["api-key: abc"],
            ["password=12345"],
            ["--PassWord", "abc"],
        ),
        *(
            ["-passwd", "abc"],
            ["PGPASSWORD=abc"],
            ["--config.log.token=abc"],
            ["https://x/?a=1&token=abc"],
            ["--hf-token", "abc"],
        ),
        *(
            ["bash", "-c", "export TOKEN='abc'; x"],
            ['{"password": "abc"}'],
            ["AWS_SECRET_ACCESS_KEY=abc"],
            ["MY_KEY=abc"],
        ),
    ],
    ids=" ".join,
)
def test_a_secret_is_found_in_any_spelling(words):
    with pytest.raises(UserError, match="other users can see command lines"):
        check_command(["python", *words])


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["--config.model.mask_token=True"],
            ["--config.model.mask_token", "True"],
            ["--config.model={'mask_token': True}"],
        ),
        *(
            ["--label_key=fine_label"],
            ["--max_tokens=5"],
            ["--tokenizer=bert"],
            ["--workdir=/token/run"],
            ["--config=secret.py"],
        ),
        *(["bash", "-c", "x --token=$HF_TOKEN"], ["--password", "--other"]),
    ],
    ids=" ".join,
)
def test_what_only_resembles_a_secret_is_left_alone(words):
    check_command(["python", *words])


def test_a_command_may_contain_the_end_of_the_script(tmp_path):
    command = ["printf", "a\nEND OF RUN\nEND OF RUN.\ntouch hacked"]
    script = session.start_script("run", command)
    heredoc = script[script.index("cat > run.sh") : script.index("\ncat /proc/sys")]
    subprocess.run(["bash", "-c", heredoc], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run.sh"]
    assert f"{shlex.join(command)}\ncode=$?" in (tmp_path / "run.sh").read_text()


def test_a_missing_gcloud_is_reported(cloud, capfd, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert cloud.launch() == 2
    assert "gcloud was not found on PATH" in capfd.readouterr().err


def test_a_stopped_slice_is_left_to_its_owner(cloud, capfd):
    subprocess.run(gcloud.TpuSlice("pod", "us-west4-a", "v5litepod-16").create(), check=True)
    node = cloud.root / "nodes" / "pod.json"
    node.write_text(node.read_text().replace("READY", "STOPPED"))
    assert cloud.launch() == 2
    assert "pod is STOPPED; start it" in capfd.readouterr().err
    node.write_text(node.read_text().replace("STOPPED", "READY").replace("v5litepod-16", "v4-8"))
    assert cloud.launch() == 2
    assert "pod is a v4-8, expected v5litepod-16" in capfd.readouterr().err


def test_a_queued_request_that_fails_is_reported(cloud, capfd, monkeypatch):
    def refuse():
        state = {"state": "FAILED", "failedData": {"error": {"message": "quota of 0 chips"}}}
        (cloud.root / "requests" / "pod.json").write_text(json.dumps({"state": state}))

    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: refuse())
    assert cloud.launch("--queued") == 2
    assert "The queued resource pod failed: quota of 0 chips" in capfd.readouterr().err


@pytest.mark.torture
def test_training_goes_on_after_a_preemption(cloud, capfd, monkeypatch):
    """Send this commit and train with it."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags = [*PLACE, "--spot", "--committed", "--env=JAX_PLATFORMS"]
    run = [
        "python",
        "-m",
        "vit_jax.main",
        *TINY_FLAGS[1:],
        "--config=configs/digits.py",
        f"--workdir={cloud.bucket}/run",
    ]
    run += ["--config.steps=400", "--config.checkpoint.every=20"]

    def preempt():
        while not (cloud.bucket / "run" / "checkpoints" / "20").exists():
            time.sleep(0.1)
        cloud.preempt()

    thread = threading.Thread(target=preempt)
    thread.start()
    assert main(["launch", "tpu", *flags, "--", *run]) == 0
    thread.join()
    output = capfd.readouterr().out
    print(output)
    assert re.findall(r"resuming at step (\d+)", output)
    assert [row["step"] for row in rows(cloud.bucket / "run")] == list(range(1, 401))
    commit = json.loads((cloud.bucket / "run" / "config.json").read_text())["git_commit"]
    assert commit == git(ROOT, "rev-parse", "HEAD")
