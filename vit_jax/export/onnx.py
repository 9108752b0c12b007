"""Write programs as ONNX with jax2onnx, and run them with onnxruntime."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax.export.program import Program
from vit_jax.types import UserError

FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
MOST_BYTES = 2**31 - 2**24  # of a protobuf message, without the program itself
QUIET = 3  # onnxruntime's log level for errors


def need_extra() -> None:
    """Raise UserError if the libraries are not installed."""
    try:
        with quiet():
            import jax2onnx  # noqa: F401
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'--to=onnx needs {error.name or "jax2onnx"}; install it with `pip install -e ".[onnx]"`.'
        ) from None


def write(program: Program, path: Path) -> None:
    """Write a program for any number of images; weights too large for a protobuf go to a separate file."""
    import jax2onnx
    import onnx

    names = tuple(program.outputs)
    images: Any = jax.ShapeDtypeStruct(("B", *program.image_shape), np.uint8)  # type: ignore[arg-type]
    with quiet():
        made = jax2onnx.to_onnx(
            lambda images: tuple(program.function(images)[name] for name in names),
            [images], input_names=["images"], output_names=list(names), model_name="vit_jax",
        )  # fmt: skip
    beside: dict[str, Any] = (
        {"save_as_external_data": True, "location": f"{path.name}.data"} if program.size >= MOST_BYTES else {}
    )
    onnx.save(made, str(path), **beside)


def quantize(path: Path, out: Path) -> None:
    """Write a copy with int8 matrices, whose activations are quantized to int8 at run time."""
    with quiet():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        external = path.with_name(f"{path.name}.data").exists()
        quantize_dynamic(str(path), str(out), weight_type=QuantType.QInt8, use_external_data_format=external)


def run(path: Path, images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Return the outputs of a written program on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' log messages and warnings about plug-ins and shapes, which do not matter here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
