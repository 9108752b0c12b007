"""Time to accuracy of configs/cifar10_fast.py: python experiments/speed_202611/cifar10.py --data=folder:PATH --out=DIR.

Trains as `vit train` does, in a process of its own that is asked to stop, and saves its state, when the minutes are over; the same
command goes on. The times count from the start of the process: imports, decoding, compiling and evaluations are in
them. Writes DIR/cifar10.md and DIR/cifar10.json; the run is DIR/cifar10.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vit_jax.train.metrics import read_rows, seconds_of  # noqa: E402

CONFIG = ROOT / "configs" / "cifar10_fast.py"
ACCURACIES = (0.90, 0.94, 0.95)


def train(workdir: Path, argument: str, minutes: float, overrides: list[str]) -> float:
    """Run until the end or the limit; return the seconds of the process that its log does not count."""
    command = [
        sys.executable,
        "-m",
        "vit_jax.main",
        f"--config={CONFIG}:{argument}",
        f"--workdir={workdir}",
        *overrides,
    ]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    begin, before = time.perf_counter(), logged_seconds(workdir)
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)})
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}")
    return time.perf_counter() - begin - (logged_seconds(workdir) - before)


def logged_seconds(workdir: Path) -> float:
    """Return the seconds that the log of a run has counted."""
    return seconds_of(read_rows(workdir / "metrics.jsonl")) or 0.0


def summary(workdir: Path, uncounted: float) -> dict[str, Any]:
    """Return the figures of a run: its epochs, accuracy, speed, and the seconds to each accuracy."""
    rows, about = read_rows(workdir / "metrics.jsonl"), json.loads((workdir / "config.json").read_text())
    epochs_of_step = about["config"]["batch_size"] / about["data"]["num_examples"]
    measured = [row for row in rows if "test/accuracy" in row]
    if not measured:
        raise SystemExit(f"{workdir} has no test accuracy; give more --minutes")
    # The first row's speed has the first steps' compiling in it.
    speeds, shares = ([row[key] for row in rows[1:] if key in row] for key in ("images_per_second", "mfu"))

    def reached(accuracy: float) -> dict[str, float] | None:
        row = next((row for row in measured if row["test/accuracy"] >= accuracy), None)
        return row and {"seconds": row["seconds"] + uncounted, "epochs": row["step"] * epochs_of_step}

    return {
        "device": about["hardware"],
        "epochs": rows[-1]["step"] * epochs_of_step,
        "accuracy": measured[-1]["test/accuracy"],
        "num_examples": measured[-1].get("test/num_examples"),
        "seconds": rows[-1]["seconds"] + uncounted,
        "images_per_second": statistics.median(speeds) if speeds else None,
        "mfu": statistics.median(shares) if shares else None,
        "reached": {f"{100 * accuracy:.0f} %": reached(accuracy) for accuracy in ACCURACIES},
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures in Markdown."""
    cells = {
        "device": found["device"],
        "epochs": f"{found['epochs']:.1f}",
        "test accuracy, last": f"{100 * found['accuracy']:.2f} %",
        "seconds in all": f"{found['seconds']:.0f}",
        "images/s": f"{found['images_per_second']:,.0f}" if found["images_per_second"] else "",
        "MFU": f"{found['mfu']:.1%}" if found["mfu"] else "",
    }
    for accuracy, at in found["reached"].items():
        cells[f"to {accuracy}"] = f"{at['seconds']:.0f} s, {at['epochs']:.1f} epochs" if at else "not reached"
    return f"| {' | '.join(cells)} |\n{'| --- ' * len(cells)}|\n| {' | '.join(cells.values())} |\n"


def main() -> None:
    """Train, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder:PATH with train and test folders, or tfds:NAME")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="default $OUT, or here")
    parser.add_argument("--minutes", type=float, default=6.0, help="the longest that the process may take; default 6")
    parser.add_argument("--epochs", type=int, default=200, help="default 200")
    flags, overrides = parser.parse_known_args()
    workdir = flags.out / "cifar10"
    uncounted = train(workdir, f"data={flags.data},epochs={flags.epochs}", flags.minutes, overrides)
    found = summary(workdir, uncounted)
    (flags.out / "cifar10.json").write_text(json.dumps(found, indent=1))
    (flags.out / "cifar10.md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
