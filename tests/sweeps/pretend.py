"""A run without training: pretend.py WORKDIR STEPS END..., whose first attempt ends as the first END says, and so on.

It writes config.json, a row of metrics per step, and a checkpoint if it finishes or receives SIGTERM.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    workdir, steps, ends = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(1))
    workdir.mkdir(exist_ok=True)
    record = {"config": {"steps": steps}, "data": {"num_examples": 9}, "versions": {}, "changes": []}
    (workdir / "config.json").write_text(json.dumps(record))
    attempts = workdir / "attempts"
    attempts.touch()
    number = len(attempts.read_text().splitlines())
    end = ends[min(number, len(ends) - 1)]
    saved = max((int(path.name) for path in workdir.glob("checkpoints/*")), default=0)
    with attempts.open("a") as file:
        print(f"{end} from {saved}", file=file)
    if end == "at_once":
        sys.exit(0)
    if end == "mistake":
        print("error: --config.optim.lr: unknown key; expected one of these:\n  lr")
        sys.exit(2)
    for step in range(saved + 1, steps + 1 if end in ("finish", "slow") else steps):
        row = {"step": step, "loss": 1 / step, "test/accuracy": step / (100 if workdir.name.startswith("poor") else 10)}
        with (workdir / "metrics.jsonl").open("a") as file:
            print(json.dumps(row), file=file, flush=True)
        if end == "slow" and not terminated:
            time.sleep(0.1)
        if terminated:
            save(workdir, step)
            sys.exit(0)
        if end == "half" and step == saved + (steps - saved) // 2:
            save(workdir, step)
            sys.exit(0)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "crash":
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    if end == "diverge":
        print("Stopped: the loss of step 3 is nan; no checkpoint was saved before.")
        sys.exit(1)
    save(workdir, steps)


def save(workdir: Path, step: int) -> None:
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)


if __name__ == "__main__":
    main()
