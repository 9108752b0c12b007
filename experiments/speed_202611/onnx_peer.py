"""Predictions of S/16 beside onnxruntime's: python experiments/speed_202611/onnx_peer.py [flags of `vit bench inference`].

onnxruntime runs what `vit export --to=onnx` wrote, in float32 and from bytes too; both predict in turns.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EXPORTED = "VIT_JAX_EXPORTED"  # the variable of the environment that says where the program is


def make(*, batch_size: int, image_shape: tuple[int, int, int], threads: int, **_: Any) -> Callable[[int], None]:
    """onnxruntime as a peer (see vit_jax/perf/peer.py)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(os.environ[EXPORTED], options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *image_shape), np.uint8)

    def run(steps: int) -> None:
        for _ in range(steps):
            session.run(None, {"images": images})

    run.about = f"onnxruntime {onnxruntime.__version__}, float32"  # type: ignore[attr-defined]
    return run


def main(*flags: str) -> int:
    """Run the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        export = ["export", "--model=S/16", "--to=onnx", "--output=features", f"--out={folder}/exported"]
        subprocess.run([sys.executable, "-m", "vit_jax", *export], cwd=ROOT, check=True)
        command = ["bench", "inference", "--config=configs/vit_s16_i1k.py", "--num_classes=1000"]
        command += ["--batch_size=1,8", "--peer=experiments.speed_202611.onnx_peer:make", *flags]
        environment = os.environ | {EXPORTED: f"{folder}/exported/model.onnx"}
        return subprocess.run([sys.executable, "-m", "vit_jax", *command], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
