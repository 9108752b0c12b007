import json


WORDS = ["two words", "it's", '"quoted"', "$HOME", "$(touch hacked)", "`id`", "a\\b", "*", "", "line\nbreak", "ü;&|<>!"]


def test_a_run_is_created_set_up_run_and_deleted(cloud, capfd):
    assert cloud.launch(words=WORDS) == 0
    for worker in ("pod-0", "pod-1"):
        assert json.loads((cloud.bucket / worker / "words.json").read_text()) == WORDS
    said = capfd.readouterr().out
    assert [line for line in said.splitlines() if "step" in line] == ["from step 0"] + [
        f"step {n} of pod-0" for n in range(1, 9)
    ]
    assert cloud.verbs() == ["create", "ssh", "ssh", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert cloud.nodes() == []


def test_a_preempted_run_is_created_again_and_resumes(cloud, capfd):
    cloud.when(3, cloud.preempt)
    assert cloud.launch("--spot") == 0
    said = capfd.readouterr().out
    assert "pod is PREEMPTED" in said
    lines = [line for line in said.splitlines() if line.startswith("from step")]
    assert len(lines) == 2 and int(lines[1].split()[-1]) >= 3
    assert [verb for verb in cloud.verbs() if verb in ("create", "delete")] == ["create", "delete", "create", "delete"]
    assert cloud.nodes() == []
