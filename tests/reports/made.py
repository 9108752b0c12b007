"""Create workdirs of runs without training."""

import json
import math
import random
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def workdir(path: Path, config: dict, rows: list[dict], **record) -> Path:
    """Create a workdir with these rows, and with this config added to the defaults."""
    config = {"seed": 0, "steps": 100, "epochs": None, "batch_size": 10} | config
    record = {"data": {"num_examples": 1000}, "versions": {}, "changes": [], "git_commit": COMMIT} | record
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"config": config} | record))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def finished(path: Path, accuracy: float, config: dict | None = None, **record) -> Path:
    """Create a finished run of 100 steps and one hour, with this final accuracy and a better one before."""
    rows = [
        {"step": 50, "loss": 1.0, "test/accuracy": accuracy + 0.01, "seconds": 1800.0},
        {"step": 100, "loss": 0.5, "test/accuracy": accuracy, "seconds": 3600.0},
    ]
    return workdir(path, config or {}, rows, **({"hardware": "8 x TPU v5 lite"} | record))


def many(folder: Path, count: int, points: int) -> None:
    """Create a sweep of learning rate, width and seed: `count` runs of `points` rows with eleven metrics, a tenth unfinished."""
    draw = random.Random(0)
    for index in range(count):
        lr, width, seed = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)[index % 5], 32 * (1 + index // 5 % 10), index // 50
        config = {"seed": seed, "steps": 50 * points, "optim": {"lr": lr}, "model": {"type": "vit.ViT", "width": width}}
        reached = 0.5 + 0.3 * math.exp(-((math.log10(lr) + 2.7) ** 2)) + 0.02 * math.log(width) + draw.gauss(0, 0.01)
        rows = []
        for point in range(1, points + 1 - (points // 3 if index % 10 == 9 else 0)):
            share = 1 - math.exp(-4 * point / points)
            row = {"step": 50 * point, "seconds": 12.0 * point, "loss": 2.4 * math.exp(-4 * reached * point / points)}
            row["loss"] += abs(draw.gauss(0, 0.05))
            row |= {"accuracy": share * reached * (1 + draw.gauss(0, 0.03)), "lr": lr * math.cos(1.5 * point / points)}
            for name in ("grad_norm", "param_norm", "update_norm", "images_per_second", "data_wait", "mfu"):
                row[name] = 1 + abs(draw.gauss(0, 0.1))
            if point % 10 == 0:
                row |= {
                    "test/accuracy": share * reached,
                    "test/loss": 2.4 - 2 * share * reached,
                    "test/num_examples": 360,
                }
            rows.append(row)
        workdir(folder / f"lr={lr},width={width},seed={seed}", config, rows, hardware="1 x NVIDIA H200")
