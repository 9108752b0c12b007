"""Names from outside are shown as text by every output, and no output interprets them."""

import csv
import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from tests.conftest import sampled
from tests.reports.made import workdir
from vit_jax import printable
from vit_jax.cli import command
from vit_jax.data.examples import Reader
from vit_jax.data.sources.folder import Folder
from vit_jax.runs.reports.comparison import compare_runs
from vit_jax.runs.reports.page import as_page
from vit_jax.runs.reports.tables import as_csv, as_markdown, print_tables
from vit_jax.types import UserError
from vit_jax.viz.curves import draw_curves, draw_group_curves
from vit_jax.viz.predictions import Prediction, draw_predictions

NAMES = [
    "a$b$c", "$\\frac{1$", "two\nlines", "\x1b[31mred\x1b[0m", "bytes\udcff", "\u202eltr", "\r=1+1", "_hidden",
    "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", "\t=1", "＝1+1", "</script><b>&\"'", "[x](http://y)", "![x](y) *b* `c` | d",
    "null\0", "line\u2028sep", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_printable_line(name):
    shown = printable.line(name)
    assert shown.isprintable()
    shown.encode()


def test_ordinary_names_are_unchanged():
    for name in ("café", "日本語 1", "lr=0.1,width=16", "a-b_c.d/e", "x" * 300):
        assert (
            printable.line(name)
            == printable.picture(name)
            == printable.csv_cell(name)
            == printable.markdown(name)
            == name
        )


def test_bytes_of_file_names_can_be_told_apart():
    assert printable.line("a\udcff\udc80\x1b\n") == r"a\xff\x80\x1b\n"


def test_numbers_in_csv_stay_numbers():
    assert [printable.csv_cell(x) for x in (-0.5, 3, None, "-0.5", "+1e-3", "-2")] == [
        -0.5,
        3,
        None,
        "-0.5",
        "+1e-3",
        "-2",
    ]


@pytest.fixture
def report(tmp_path):
    """A comparison of two runs for each name, which is a value, a hardware, an evaluator and, where it can be, a folder."""
    for number, name in enumerate(NAMES):
        folder = (
            f"{number}{name.translate({ord('/'): '', 0: ''})}" if name.isascii() or "\udcff" in name else str(number)
        )
        for seed in (0, 1):
            rows = [{"step": 100, "loss": 1.0 + number, f"{name}/loss": 1.0, "test/accuracy": 0.5}]
            config = {"note": name, "seed": seed, "model": {"type": name}}
            workdir(tmp_path / f"{folder}-{seed}", config, rows, hardware=name, git_commit=name)
    return compare_runs([tmp_path])


def test_no_cell_of_the_csv_is_a_formula_and_each_is_one_line(report):
    text = as_csv(report)
    text.encode()
    table = list(csv.reader(io.StringIO(text)))
    assert {len(row) for row in table} == {len(table[0])}
    assert len(table) == 1 + 2 * len(NAMES)
    for cell in (cell for row in table for cell in row):
        assert cell.isprintable()
        assert not cell.startswith(("=", "+", "-", "@", "＝"))


def test_markdown_shows_names_as_text(report):
    lines = as_markdown(report).split("\n")
    assert all(line.isprintable() for line in lines)
    text = "\n".join(lines)
    for markup in ("<b>", "</script", "[x](", "![x]", "`c`", " *b*", "a$b"):
        assert markup not in text.replace("\\" + markup[0], "")
    tables = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables[-2 * len(NAMES) :]}) == 1


def test_the_page_holds_names_as_data(report):
    page = as_page(report)
    page.encode()
    assert "<b>" not in page
    data = json.loads(page.split('id="data"')[1].split(">", 1)[1].split("</script>")[0])
    assert all(run["name"].isprintable() and run["hardware"].isprintable() for run in data["runs"])


def test_the_terminal_gets_no_control_characters(report, capsys):
    from rich.console import Console

    print_tables(report, Console(width=200, force_terminal=False))
    shown = capsys.readouterr().out
    shown.encode()
    assert all(line.isprintable() for line in shown.split("\n"))


@pytest.mark.parametrize(
    "name",
    sampled(NAMES, *(name for name in NAMES if name[0] not in "=+-@\t＝")),  # cells of tables
)
def test_pictures_take_any_name(tmp_path, name):
    curve = [[(1, 0.5), (2, 0.6)]]
    draw_group_curves({name: {name: curve, "other": curve}}, tmp_path / "group.png")
    rows = [{"step": 1, f"{name}/loss": 1.0, f"{name}/accuracy": 0.5, "other/loss": 1.0}]
    draw_curves(rows, tmp_path / "run.png")
    draw_predictions([Prediction(np.zeros((4, 4, 3), np.uint8), name, "x" * 13 + name, 0.5)], name, tmp_path / "p.png")


def test_no_group_is_missing_from_the_legend(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    labels = []
    monkeypatch.setattr(Figure, "legend", lambda self, handles, names, **_: labels.extend(names))
    draw_group_curves({"loss": {name: [[(1, 0.5), (2, 0.6)]] for name in ("_a", "$b$")}}, tmp_path / "x.png")
    assert sorted(label.strip() for label in labels) == [r"\$b\$", "_a"]


def test_messages_of_unreadable_files_are_one_line(tmp_path, caplog):
    for name in ("a", "b\x1b[31m\n\udcff"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    (tmp_path / "b\x1b[31m\n\udcff" / "bad\n.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        reader = Reader(Folder(str(tmp_path), "all"), "", 0, 1.0, "repair them")
    (name,) = reader.unreadable
    assert name.isprintable()
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_an_error_message_has_no_escapes(capsys):
    def fail(argv):
        raise UserError("first\nsecond \x1b[31m \udcff")

    assert command.run_cli(fail, []) == 2
    assert capsys.readouterr().err == "error: first\nsecond \\x1b[31m \\xff\n"
