"""What a run shows: a bar on a terminal, lines elsewhere, and a warning of long runs before they begin."""

import contextlib
import io
import re

import jax.numpy as jnp
import pytest

from vit_jax.train import metrics, progress
from vit_jax.train.fit import fit


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    # pytest replaces sys.stdout between the fixture and the test.
    return screen, contextlib.redirect_stdout(screen)


def shown(terminal):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal[0].getvalue())


def values(loss, accuracy=0.5):
    return {"loss": jnp.float32(loss), "accuracy": jnp.float32(accuracy)}


def test_the_bar_shows_means_since_the_last_log_and_the_epoch(terminal):
    with terminal[1]:
        bar = progress.display(steps=100, batch_size=10, num_examples=40)
        bar.stepped(1, values(1.0, 0.25), None)
        bar.stepped(2, values(2.0, 0.75), 20.0)
        bar.close()
    last = shown(terminal).splitlines()[-1]
    assert "step 2/100  epoch 0.5  loss 1.500  acc 50.0 %  20 img/s  ETA 0:00:49" in last
    assert re.search(r"\d GB", last)


def test_the_bar_says_nothing_of_speed_in_the_first_steps(terminal):
    with terminal[1]:
        bar = progress.display(steps=100, batch_size=10, num_examples=40)
        bar.stepped(1, values(1.0), None)
        bar.close()
    assert "step 1/100" in shown(terminal)
    assert "ETA" not in shown(terminal)


def test_a_run_on_a_terminal_says_what_it_does(terminal, tiny, tmp_path):
    tiny.steps = 6
    with terminal[1]:
        fit(tiny, tmp_path / "run")
    text = shown(terminal)
    assert "compiling" in text
    assert "step 6/6" in text
    assert "lr " not in text
    assert "test accuracy" in text


def test_what_is_not_a_terminal_gets_lines(capsys):
    assert isinstance(progress.display(steps=10, batch_size=1, num_examples=1), progress.Lines)


def test_a_long_run_is_estimated_after_its_first_steps(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LONG", 0.0)
    tiny.log.every = tiny.checkpoint.every = tiny.evals.test.every = 50
    fit(tiny, tmp_path / "run")
    out = capsys.readouterr().out
    assert len(re.findall(r"steps will take about \d+:\d\d:\d\d, at [\d,]+ images/s", out)) == 1


def test_thousands_of_epochs_are_warned_of(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit_jax.train.report.MANY_EPOCHS", 0.1)
    fit(tiny, tmp_path / "run")
    out = capsys.readouterr().out
    assert "warning: 12 steps of 16 are 0 epochs of 1,437 examples" in out
    assert out.index("warning") < out.index("compiled in")


def test_results_of_an_own_evaluator_are_shown_whole():
    assert metrics.summary({f"value{i}": float(i) for i in range(20)}).count("value") == 20
