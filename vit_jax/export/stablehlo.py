"""Write programs as StableHLO, one file for CPU, GPU and TPU (jax.export)."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax import export

from vit_jax.export.program import Program
from vit_jax.types import UserError

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
MOST_BYTES = 2**31 - 2**20  # of a FlatBuffer, without the program itself


def write(program: Program, path: Path) -> None:
    """Write a program for any number of images, and any size if it resizes; raises UserError if it is too large."""
    if program.size >= MOST_BYTES:
        raise UserError(
            f"The weights take {program.size / 1e9:.1f} GB in {program.dtype}, and a StableHLO file of jax.export has less than "
            "2.1 GB; export in bfloat16, or to ONNX."
        )
    height, width, channels = program.image_shape
    sides = "h, w" if program.any_size else f"{height}, {width}"
    shape = export.symbolic_shape(f"b, {sides}, {channels}")
    made = export.export(jax.jit(program.function), platforms=PLATFORMS)(jax.ShapeDtypeStruct(shape, np.uint8))
    path.write_bytes(made.serialize())


def run(path: Path, images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the outputs of a written program; raises UserError if the file is not one."""
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers and MLIR raise any error on damaged bytes
        raise UserError(f"{path} is no exported program ({type(error).__name__}); export the model again.") from None
    return jax.device_get(program.call(images))
