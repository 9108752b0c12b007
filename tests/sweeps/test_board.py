import io
import json

from rich.console import Console

from vit_jax.runs.sweeps.board import Board, Pace
from vit_jax.runs.sweeps.progress import RunProgress
from vit_jax.runs.sweeps.record import SweepRun


def followed(tmp_path, name, rows, steps=10, mode="max"):
    workdir = tmp_path / name
    workdir.mkdir()
    record = {"config": {"steps": steps}, "data": {"num_examples": 9}, "versions": {}, "changes": []}
    (workdir / "config.json").write_text(json.dumps(record))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    progress = RunProgress(workdir, "test/accuracy", mode)
    progress.refresh()
    return progress


def row(step, accuracy):
    return {"step": step, "loss": 1.0 / step, "test/accuracy": accuracy}


def test_progress_follows_a_file_that_grows_and_one_that_is_replaced(tmp_path):
    progress = followed(tmp_path, "a", [row(1, 0.5)])
    path = tmp_path / "a" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
        file.flush()
        progress.refresh()
        assert progress.step == 1
        file.write('ss": 0.25, "test/accuracy": 0.25}\n')
    progress.refresh()
    assert (progress.step, progress.loss, progress.last, progress.best, progress.steps) == (2, 0.25, 0.25, 0.5, 10)
    cut = tmp_path / "a" / "cut"
    cut.write_text(json.dumps(row(1, 0.1)) + "\n")
    cut.replace(path)
    progress.refresh()
    assert (progress.step, progress.best) == (1, 0.1)


def test_where_the_least_is_best_it_is_kept(tmp_path):
    assert followed(tmp_path, "a", [row(1, 0.5), row(2, 0.2), row(3, 0.3)], mode="min").best == 0.2


def test_lines_that_are_no_rows_are_passed_over(tmp_path):
    progress = followed(tmp_path, "a", [row(1, 0.5)])
    with (tmp_path / "a" / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\x00\n[]\n{}\n" + json.dumps(row(2, 0.6)).encode() + b"\n")
    progress.refresh()
    assert progress.step == 2


def board(**console):
    return Board("test/accuracy", "max", Console(file=io.StringIO(), **console))


def test_a_low_terminal_shows_what_runs_first_and_how_much_is_hidden(tmp_path):
    runs = [SweepRun(f"lr={n}", {}, state="finished" if n < 18 else "running") for n in range(20)]
    progress = {run.name: followed(tmp_path, run.name, [row(5, 0.5)]) for run in runs}
    shown = board(force_terminal=True, width=100, height=10)
    shown.refresh(runs, progress, 2)
    shown.close()
    text = shown.console.file.getvalue()
    assert "lr=18" in text
    assert "lr=19" in text
    assert "16 runs not shown" in text
    assert "2 running" in text


def test_the_time_left_is_that_of_the_steps_left_at_the_pace_seen():
    pace = Pace()
    pace.update("a", 10, now=100.0)
    pace.update("a", 20, now=105.0)
    assert pace.remaining("a", 20, 100) == 40.0
    assert pace.remaining("not seen", 0, 100) == 50.0
    assert pace.remaining("a", 20, None) is None


def test_a_pipe_gets_a_line_for_each_change(tmp_path):
    run = SweepRun("lr=1", {}, state="failed", reason="killed by SIGKILL")
    piped = board()
    piped.run_changed(run, [run], followed(tmp_path, "a", [row(5, 0.5)]))
    assert piped.console.file.getvalue() == ("[1/1] lr=1: failed at step 5, test/accuracy 50.00 %: killed by SIGKILL\n")


def test_the_summary_ranks_runs_and_names_the_setting_that_is_best_over_its_seeds(tmp_path):
    values = {"lr=1,seed=0": 0.99, "lr=1,seed=1": 0.80, "lr=2,seed=0": 0.95, "lr=2,seed=1": 0.94}
    runs = [SweepRun(name, {"optim.lr": int(name[3]), "seed": int(name[-1])}, state="finished") for name in values]
    runs.append(SweepRun("lr=3", {"optim.lr": 3}, state="failed", reason="Stopped: the loss"))
    progress = {name: followed(tmp_path, name, [row(10, value)]) for name, value in values.items()}
    progress["lr=3"] = followed(tmp_path, "lr=3", [])
    piped = board()
    piped.summary(runs, progress)
    text = piped.console.file.getvalue()
    assert text.index("lr=1,seed=0") < text.index("lr=2,seed=0") < text.index("lr=1,seed=1") < text.index("lr=3")
    assert "best: optim.lr=2: test/accuracy 94.50 %, mean of 2 seeds" in text
    assert "failed: lr=3: Stopped: the loss" in text
