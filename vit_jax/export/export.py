"""Export a model: write the program, check it on real images, and explain how to load it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from vit_jax.data.photographs import crops
from vit_jax.export import onnx, readme, stablehlo
from vit_jax.export.program import Program, build
from vit_jax.inference import Loaded
from vit_jax.types import UserError

Format = Literal["stablehlo", "onnx"]
LARGEST = float(np.finfo(np.float32).max)
CHECKED = 7  # images, in one batch, and the first one by itself
# The largest difference that rounding explains, relative to the largest number if that is above 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2.0**-6}


@dataclasses.dataclass(frozen=True)
class Check:
    """How far the exported program is from the model on real images.

    differences: the largest difference of each output, at batch 1 and over all images. agreement: for int8, the
    fraction of images with the same largest output, and the mean cosine of the outputs.
    """

    images: int
    source: str
    differences: dict[str, float]
    tolerance: float | None
    agreement: dict[str, float] | None = None


def export(
    reference: str,
    loaded: Loaded,
    out: Path,
    to: Format,
    outputs: Sequence[str] = (),
    dtype: Literal["float32", "bfloat16"] = "float32",
    any_size: bool = False,
    int8: bool = False,
    images: UInt8[np.ndarray, "b h w c"] | None = None,
) -> dict[str, Check]:
    """Write the program, export.json and README.md into a folder; return the check of each file by name.

    images: real preprocessed images, by default parts of two photographs. Raises UserError for an unsupported
    combination; a failed check leaves its numbers in export.json.
    """
    if to == "onnx" and (dtype != "float32" or any_size):
        raise UserError(
            "ONNX takes float32 here, as onnxruntime has no bfloat16 on CPUs, and resizes outside; leave --dtype and --any_size "
            "out, or give --to=stablehlo."
        )
    if int8 and (to != "onnx" or images is None):
        raise UserError(
            "--int8 requires --to=onnx and your images, to measure its agreement; give image files or folders."
        )
    source = "given" if images is not None else "parts of two photographs of scikit-learn"
    images = crops(CHECKED, loaded.image_shape) if images is None else images
    program = build(reference, loaded, outputs, dtype, any_size)
    expected, checks = program(images), {}
    form: Any = onnx if to == "onnx" else stablehlo
    form.write(program, out / form.FILE)
    differences = compare(form, out / form.FILE, expected, images)
    checks[form.FILE] = Check(len(images), source, differences, TOLERANCE[dtype])
    if int8:
        onnx.quantize(out / onnx.FILE, out / onnx.INT8_FILE)
        found = onnx.run(out / onnx.INT8_FILE, images)
        checks[onnx.INT8_FILE] = Check(len(images), source, distance(expected, found), None, agreement(expected, found))
    facts = describe(reference, loaded, program, checks)
    (out / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(readme.text(facts, loaded.preprocessing), encoding="utf-8")
    return checks


def passed(check: Check) -> bool:
    """Return whether the exported program computes the same as the model; for int8, `agreement` tells how closely."""
    return check.tolerance is None or all(x <= check.tolerance for x in check.differences.values())


def compare(form: Any, path: Path, expected: dict[str, np.ndarray], images: np.ndarray) -> dict[str, float]:
    """Return the largest difference of each output, at batch 1 and for all images at once."""
    batches = [(form.run(path, images), expected)]
    batches.append((form.run(path, images[:1]), {name: x[:1] for name, x in expected.items()}))
    found = [distance(theirs, ours) for ours, theirs in batches]
    return {name: max(one[name] for one in found) for name in expected}


def distance(expected: Any, found: Any) -> dict[str, float]:
    """Return the largest difference of each output, relative to its largest number if that is above 1."""
    apart = {name: np.abs(found[name] - x).max() / max(1.0, np.abs(x).max()) for name, x in expected.items()}
    # JSON needs a finite number, even if one of them is not finite.
    return {name: float(np.nan_to_num(x, nan=LARGEST, posinf=LARGEST)) for name, x in apart.items()}


def agreement(expected: Any, found: Any) -> dict[str, float]:
    """Return the fraction of images with the same largest output, and the mean cosine, for the first output."""
    name = next(iter(expected))
    ours, theirs = (x[name].reshape(len(x[name]), -1) for x in (expected, found))
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return {
        "same_largest": float(np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1))),
        "mean_cosine": float(np.mean((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12))),
    }


def describe(reference: str, loaded: Loaded, program: Program, checks: dict[str, Check]) -> dict[str, Any]:
    """Return what a reader of the files needs to know, for export.json."""
    height, width, channels = loaded.image_shape
    preprocessing = loaded.preprocessing
    return {
        "model": reference,
        "files": {name: dataclasses.asdict(check) for name, check in checks.items()},
        "dtype": program.dtype,
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", *(["height", "width"] if program.any_size else [height, width]), channels],
        },
        "outputs": {name: ["batch", *shape] for name, shape in program.outputs.items()},
        "preprocess": {
            "spec": loaded.preprocess_spec,
            "inside": program.any_size,
            **({} if preprocessing is None else dataclasses.asdict(preprocessing)),
        },
        "class_names": list(loaded.class_names),
    }
