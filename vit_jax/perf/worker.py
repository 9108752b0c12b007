"""Run a peer in a process: python -m vit_jax.perf.worker, started by perf/peer.py, which sends it lines of JSON."""

import importlib
import json
import os
import sys
import time
from typing import Any

WARM_UP = 2  # steps after the first


def main() -> int:
    """Build the peer, warm it up, and run the number of steps in each line of stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # library output must not look like an answer

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    request = json.loads(sys.stdin.readline())
    module, _, name = request["make"].partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        answer(missing=str(error))
        return 1
    try:
        begin = time.perf_counter()
        run = make(**request["arguments"])
        run(1)
        first = time.perf_counter() - begin
        run(WARM_UP)
        answer(first_seconds=first, about=getattr(run, "about", ""))
        for line in sys.stdin:
            begin = time.perf_counter()
            run(int(line))
            seconds = time.perf_counter() - begin
            answer(seconds=seconds, memory=getattr(run, "memory", lambda: None)())
    except Exception as error:
        answer(failed=f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
