"""Runs that are killed and started again end as if nothing had happened."""

import random
import signal
import time

import pytest

from tests.conftest import checkpoint, losses, rows, run, start


def chaos(tmp_path, signals, steps):
    """An undisturbed run and one that is sent signals at random moments of its life."""
    flags = (f"--config.steps={steps}", "--config.checkpoint.every=10", "--config.evals.test.every=25")
    begin = time.monotonic()
    run(tmp_path / "undisturbed", *flags)
    lifetime = time.monotonic() - begin
    moments = random.Random(0)
    for number in signals:
        process = start(tmp_path / "disturbed", *flags)
        time.sleep(moments.uniform(1.0, lifetime))
        process.send_signal(number)
        output, _ = process.communicate()
        assert "Traceback" not in output, output
        if number != signal.SIGKILL:
            expected = 130 if number == signal.SIGINT and "report:" not in output else 0  # or it had ended before
            assert process.returncode == expected, output
    run(tmp_path / "disturbed", *flags)
    assert checkpoint(tmp_path / "disturbed") == checkpoint(tmp_path / "undisturbed")
    assert losses(tmp_path / "disturbed") == losses(tmp_path / "undisturbed")
    assert [row["step"] for row in rows(tmp_path / "disturbed")] == list(range(1, steps + 1))


@pytest.mark.torture
def test_three_signals_leave_no_trace(tmp_path):
    chaos(tmp_path, [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], steps=60)


@pytest.mark.torture
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_twenty_signals_leave_no_trace(tmp_path, number):
    chaos(tmp_path, 20 * [number], steps=300)
