import csv
import io
import json
import re

import pytest
from rich.console import Console

from tests.reports.made import COMMIT, finished, workdir
from tests.reports.test_paper import study
from vit_jax.__main__ import main as vit
from vit_jax.runs.reports import collect
from vit_jax.runs.reports.comparison import compare_runs
from vit_jax.runs.reports.tables import as_csv, as_markdown, format_hours, print_tables
from vit_jax.runs.sweeps.board import format_metric


def test_csv_gives_back_what_the_runs_hold(tmp_path):
    settings = {"text": 'a, "b"\nc|<d>', "list": [1, None, "x"], "flag": True, "lr": 0.1 + 0.2}
    finished(tmp_path / "a", 1 / 3, {"optim": settings})
    finished(tmp_path / "b", 2 / 3)
    first, second = csv.DictReader(io.StringIO(as_csv(compare_runs([tmp_path]))))
    assert first["optim.text"] == settings["text"].replace("\n", r"\n")
    assert {key: json.loads(first[f"optim.{key}"]) for key in ("list", "flag", "lr")} == {
        key: settings[key] for key in ("list", "flag", "lr")
    }
    assert float(first["last test/accuracy"]) == 1 / 3
    assert float(first["best test/accuracy"]) == 1 / 3 + 0.01
    assert (first["best step"], first["hours"], first["commit"]) == ("50", "1.0", COMMIT)
    assert second["optim.text"] == ""


def test_every_cell_of_the_markdown_stays_in_its_place(tmp_path):
    finished(tmp_path / "a", 0.25, {"note": "one | two\n<script>"})
    finished(tmp_path / "b", 0.75, {"note": "plain"})
    lines = as_markdown(compare_runs([tmp_path])).splitlines()
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert {len(line) for line in table} == {len(table[0])}
    assert [line[0].strip() for line in table[2:]] == ["b", "a"]  # the best first
    assert table[3][2].strip() == r"one \| two\\n&lt;script&gt;"


def test_the_terminal_shows_names_as_they_are_and_constant_columns_once(tmp_path, capsys):
    finished(tmp_path / "runs" / "[red]a[/]", 0.25, {"seed": 0})
    finished(tmp_path / "runs" / "b", 0.75, {"seed": 1})
    print_tables(compare_runs([tmp_path / "runs"], study(tmp_path)), Console(width=120))
    out = capsys.readouterr().out
    assert "[red]a[/]" in out
    assert out.count("8 x TPU v5 lite") == 1
    assert "50.00 ± 35.36 %" in out
    assert "± 317.66 %" in out
    assert "not run" in out


def test_long_tables_are_cut_off_in_the_terminal_alone(tmp_path, capsys):
    for index in range(50):
        finished(tmp_path / f"run{index}", index / 50, {"lr": index})
    report = compare_runs([tmp_path])
    print_tables(report, Console(width=120))
    assert "... and 10 more" in capsys.readouterr().out
    assert as_markdown(report).count("\n| run") == 50 + 1


def test_times_and_numbers_read_well():
    assert [format_hours(hours) for hours in (None, 12 / 3600, 0.3, 40.0)] == ["", "12 s", "18 min", "40.0 h"]
    assert format_metric(0.5, "test/accuracy") == "50.00 %"
    assert [format_metric(value) for value in (None, 0.0, 0.5, 12.34567, 1.234567e-5)] == [
        "",
        "0.0000",
        "0.5000",
        "12.3457",
        "1.235e-05",
    ]


def test_the_command_writes_every_file_and_says_where(tmp_path, capsys):
    finished(tmp_path / "runs" / "a", 0.25, {"seed": 0})
    finished(tmp_path / "runs" / "b", 0.75, {"seed": 1})
    (workdir(tmp_path / "runs" / "c", {}, []) / "config.json").write_text("{")
    assert vit(["report", str(tmp_path / "runs"), f"--paper={study(tmp_path)}", f"--out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    names = ["curves.png", "report.csv", "report.html", "report.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert all(str(tmp_path / "out" / name) in out for name in names)
    assert "left out: " in out
    assert "2012.12877" in (tmp_path / "out" / "report.md").read_text()
    assert vit(["report", str(tmp_path / "runs")]) == 0
    assert (tmp_path / "runs" / "report.html").exists()


def test_mistakes_in_the_command_are_user_errors(tmp_path, capsys):
    finished(tmp_path / "run", 0.25)
    for flags, word in (
        ([], "DIR"),
        ([str(tmp_path / "none")], "is not a folder"),
        ([str(tmp_path), "--metric=test/acuracy"], "did you mean test/accuracy"),
        ([str(tmp_path), "--watch=-1"], "expected finite float from 0.1"),
        ([str(tmp_path), f"--out={tmp_path / 'run' / 'config.json'}"], "cannot be written"),
    ):
        assert vit(["report", *flags]) == 2
        assert word in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "expected"), [("--watch=7", 7.0), ("--watch 7", 7.0), ("--watch", 30.0)])
def test_watching_waits_for_runs_and_shows_new_ones(tmp_path, capsys, monkeypatch, flag, expected):
    (tmp_path / "runs").mkdir()
    turns = []

    def sleep(seconds):
        turns.append((seconds, capsys.readouterr().out))
        if len(turns) == 3:
            raise KeyboardInterrupt
        finished(tmp_path / "runs" / f"run{len(turns)}", 0.25, {"lr": len(turns)})

    monkeypatch.setattr("vit_jax.cli.report.time.sleep", sleep)
    assert vit(["report", *flag.split(), str(tmp_path / "runs")]) == 130
    assert [seconds for seconds, _ in turns] == [expected] * 3
    assert "No runs" in turns[0][1]
    assert [("run1" in out, "run2" in out) for _, out in turns] == [(False, False), (True, False), (True, True)]
    assert f'"refresh":{expected}' in (tmp_path / "runs" / "report.html").read_text()


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    for name in ("a", "b"):
        finished(tmp_path / name, 0.25)
    cache, seen = {}, []
    original = collect.read_run
    monkeypatch.setattr(collect, "read_run", lambda path, name: seen.append(name) or original(path, name))
    first, _ = collect.collect_runs([tmp_path], cache)
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 101, "test/accuracy": 0.75}) + "\n")
    second, _ = collect.collect_runs([tmp_path], cache)
    assert seen == ["a", "b", "b"]
    assert second[0] == first[0]
    assert second[1].last("test/accuracy") == 0.75
