"""Every speed as a ratio, to a peer and to another commit, in one run: make bench [AGAINST=COMMIT], or

    python experiments/speed_202611/bench.py [--against=COMMIT] [--rounds=3] [--only=REGEX]

Each row is measured in turns: this checkout, the other commit in a checkout of its own under build/, and the peer. A ratio above 1
means that this checkout is faster. COMMIT is the last tag where none is given; without tags only peers are compared. Needs a quiet
machine: the spread over the rounds says how quiet it was.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
STEP = ["--config=configs/vit_s16_i1k.py", "--num_classes=1000", "--rounds=2", "--peer=timm", "--json"]
# Random weights as timm's users get them from the hub, which both sides load.
TIMM_WRITES = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from vit_jax.perf.timm_peer import import_timm
model = import_timm().create_model("vit_small_patch16_224")
keys = ("input_size", "mean", "std", "crop_pct", "interpolation", "num_classes")
about = {"architecture": "vit_small_patch16_224", "pretrained_cfg": {key: model.pretrained_cfg[key] for key in keys}}
Path(sys.argv[1]).mkdir()
(Path(sys.argv[1]) / "config.json").write_text(json.dumps(about | {"num_classes": 1000}))
save_file(model.state_dict(), Path(sys.argv[1]) / "model.safetensors")
"""
# What a user of timm writes to get the same: the five most likely classes of a photograph, and the loss of a first step.
TIMM_PREDICTS = """
import sys, torch
from vit_jax.perf.timm_peer import import_timm
timm = import_timm()
from PIL import Image
model = timm.create_model("vit_small_patch16_224", checkpoint_path=sys.argv[2] + "/model.safetensors").eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
with torch.inference_mode():
    print(model(transform(Image.open(sys.argv[1]).convert("RGB"))[None]).softmax(1).topk(5))
"""
TIMM_STEPS = """
import torch
from vit_jax.perf.timm_peer import import_timm
timm = import_timm()
from sklearn.datasets import load_digits
model = timm.models.vision_transformer.VisionTransformer(8, 2, 1, 10, "avg", 64, 6, 4, 2.0)
images = torch.tensor(load_digits().images[:128, None] / 16).float()
loss = torch.nn.functional.cross_entropy(model(images), torch.tensor(load_digits().target[:128]))
loss.backward()
torch.optim.AdamW(model.parameters()).step()
print(loss.item())
"""


def run(tree: Path, *command: str, cache: str = "") -> str:
    """Run a command in a checkout and return its output."""
    environment = os.environ | {"PYTHONPATH": str(tree)} | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed in {tree}:\n{done.stderr[-2000:]}")
    return done.stdout


def seconds(tree: Path, *command: str, cache: str = "") -> float:
    """Return the seconds of a whole process."""
    begin = time.perf_counter()
    run(tree, *command, cache=cache)
    return time.perf_counter() - begin


def beside(tree: Path, *command: str) -> float:
    """Return the seconds of timm's process, which runs beside this checkout only."""
    return seconds(ROOT, *command) if tree == ROOT else math.nan


def step(tree: Path, *flags: str) -> tuple[float, float]:
    """Return seconds a training step of S/16, and of timm in the same process's turns."""
    found = json.loads(run(tree, sys.executable, "-m", "vit_jax", "bench", "step", *STEP, "--steps=3", *flags))
    return found["ms_per_step"] / 1e3, found["peer"]["ms_per_step"] / 1e3


def predictions(tree: Path, size: int) -> tuple[float, float]:
    """Return seconds for predictions of a batch by S/16, and by timm."""
    flags = [*STEP, f"--batch_size={size}", "--steps=5"]
    (row,) = json.loads(run(tree, sys.executable, "-m", "vit_jax", "bench", "inference", *flags))["rows"]
    return size / row["images_per_second"], size / row["peer_images_per_second"]


def measurements(folder: Path) -> dict[str, Callable[[Path], tuple[float, float]]]:
    """Return the rows of the table: a name, and the seconds of a checkout and of its peer."""
    photo, model = str(folder / "photo.jpg"), str(folder / "timm_s16")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)).save(photo)
    python, digits = sys.executable, ["-m", "vit_jax.main", "--config=configs/digits.py", "--config.steps=1"]

    def first_step(tree: Path, cache: str) -> float:
        with tempfile.TemporaryDirectory() as workdir:
            run_to = [f"--workdir={workdir}/run", "--config.evals={}"]
            return seconds(tree, python, *digits, *run_to, cache=cache or f"{workdir}/cache")

    def importing(tree: Path) -> tuple[float, float]:
        timm = "from vit_jax.perf.timm_peer import import_timm; import_timm()"
        return seconds(tree, python, "-m", "vit_jax", "--help"), beside(tree, python, "-c", timm)

    def predicting(tree: Path) -> tuple[float, float]:
        if not Path(model).exists():
            run(ROOT, python, "-c", TIMM_WRITES, model)
        ours = seconds(
            tree, python, "-m", "vit_jax", "predict", f"--model={model}", photo, cache=f"{folder}/{tree.name}"
        )
        return ours, beside(tree, python, "-c", TIMM_PREDICTS, photo, model)

    return {
        "train step S/16, batch 8, float32": lambda tree: step(tree, "--batch_size=8"),
        "train step S/16, batch 8, bfloat16": lambda tree: step(tree, "--batch_size=8", "--config.model.dtype=bfloat16"),
        "predictions S/16, batch 1": lambda tree: predictions(tree, 1),
        "predictions S/16, batch 8": lambda tree: predictions(tree, 8),
        "`vit --help`, beside `import timm`": importing,
        "`vit predict` of a photograph, compiled before": predicting,
        "digits run to its first step, compiled before": lambda tree: (
            first_step(tree, f"{folder}/{tree.name}"), beside(tree, python, "-c", TIMM_STEPS)
        ),
        "digits run to its first step, cold": lambda tree: (
            first_step(tree, ""), beside(tree, python, "-c", TIMM_STEPS)
        ),
    }  # fmt: skip


def checkout(commit: str) -> Path:
    """Return a checkout of a commit under build/."""
    full = subprocess.run(
        ["git", "rev-parse", f"{commit}^{{commit}}"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    tree = ROOT / "build" / "against" / full[:12]
    if not tree.exists():
        subprocess.run(["git", "worktree", "prune"], cwd=ROOT, check=True)
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", str(tree), full], cwd=ROOT, check=True)
    return tree


def shown(ratios: list[float]) -> str:
    """Return the median of ratios with the lowest and the highest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Print the table, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="", metavar="COMMIT", help="default: the last tag")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose names match")
    flags = parser.parse_args()
    tags = subprocess.run(
        ["git", "tag", "--sort=-creatordate"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    against = flags.against or next(iter(tags), "")
    trees = {"now": ROOT} | ({against: checkout(against)} if against else {})
    print(f"| what | now | timm / now | {against or 'no tag'} / now |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, measure in measurements(Path(folder)).items():
            if not re.search(flags.only, name):
                continue
            if "compiled before" in name:
                for tree in trees.values():
                    measure(tree)
            rounds: list[dict[str, tuple[float, float]]] = []
            for number in range(flags.rounds):
                order = list(trees)[:: -1 if number % 2 else 1]
                rounds.append({which: measure(trees[which]) for which in order})
            now = statistics.median(row["now"][0] for row in rounds)
            peer = shown([row["now"][1] / row["now"][0] for row in rounds])
            other = shown([row[against][0] / row["now"][0] for row in rounds]) if against else ""
            print(f"| {name} | {now:.3g} s | {peer} | {other} |", flush=True)


if __name__ == "__main__":
    main()
