"""Write the README of an exported model: its inputs and outputs, and a program that loads it."""

from collections.abc import Mapping
from typing import Any

from vit_jax.pretrained.pretrained import Preprocessing
from vit_jax.printable import markdown

LOAD = {
    "model.onnx": """session = onnxruntime.InferenceSession("{file}")
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {{"images": images}})))""",
    "model.stablehlo": """program = export.deserialize(bytearray(open("{file}", "rb").read()))
outputs = program.call(images)""",
}
PRINT = {
    "logits": 'print(facts["class_names"][result.argmax()])',
    "probs": 'print(facts["class_names"][result.argmax()])',
    "values": 'print(dict(zip(facts["class_names"], result.tolist())))',
    "pixel_outputs": "print(result.argmax(axis=-1))  # the class of each pixel",
    # The last class of a box is "no object".
    "boxes": 'print(result[np.asarray(outputs["box_logits"])[0].argmax(axis=-1) < len(facts["class_names"])])',
}
IMPORTS = {"model.onnx": "import onnxruntime", "model.stablehlo": "from jax import export"}


def text(facts: Mapping[str, Any], preprocessing: Preprocessing | None) -> str:
    """Return the README of an export; facts: the contents of export.json."""
    file, check = next(iter(facts["files"].items()))
    shape = " x ".join(map(str, facts["input"]["shape"]))
    lines = [
        f"# {markdown(facts['model'])}, exported by vit_jax",
        "",
        f"`{file}` takes `images`, uint8 of {shape}, and normalises them itself. It returns float32 arrays:",
        "",
        *(f"* `{name}`: {' x '.join(map(str, shape))}" for name, shape in facts["outputs"].items()),
        "",
        f"On {check['images']} images ({check['source']}) it differs from the model by at most "
        + ", ".join(f"{value:.1e} ({name})" for name, value in check["differences"].items())
        + ". `export.json` contains the same facts, the preprocessing and the class names.",
        "",
    ]
    for other, found in list(facts["files"].items())[1:]:
        same, cosine = found["agreement"]["same_largest"], found["agreement"]["mean_cosine"]
        lines += [
            f"`{other}` has int8 matrices. On {found['images']} images its largest output is the same for {same:.1%}, and the "
            f"mean cosine of its outputs with the model's is {cosine:.4f}.",
            "",
        ]
    lines += ["```python", *program(file, facts, preprocessing), "```", ""]
    if preprocessing is None and facts["preprocess"]["spec"]:
        lines += [
            f"Training images were prepared with `{facts['preprocess']['spec']}`; this code uses a resize instead.",
            "",
        ]
    return "\n".join(lines)


def program(file: str, facts: Mapping[str, Any], preprocessing: Preprocessing | None) -> list[str]:
    """Return the lines of a program that predicts photo.jpg."""
    inside, channels = facts["preprocess"]["inside"], facts["input"]["shape"][3]
    mode = "L" if channels == 1 else "RGB"
    numbers = [] if inside or preprocessing is None else pillow_lines(preprocessing)
    if preprocessing is None and not inside:
        height, width = facts["input"]["shape"][1:3]
        numbers = [f"image = image.resize(({width}, {height}), Image.Resampling.BILINEAR)"]
    expand = "np.asarray(image)[None, :, :, None]" if channels == 1 else "np.asarray(image)[None]"
    first = next(iter(facts["outputs"]))
    complete = bool(facts["class_names"]) and (first != "boxes" or "box_logits" in facts["outputs"])
    return [
        "import json",
        "",
        "import numpy as np",
        "from PIL import Image, ImageOps",
        IMPORTS[file],
        "",
        'facts = json.load(open("export.json", encoding="utf-8"))',
        f'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")',
        *numbers,
        f"images = {expand}",
        *LOAD[file].format(file=file).splitlines(),
        f'result = np.asarray(outputs["{first}"])[0]',
        PRINT[first] if first in PRINT and complete else "print(result.shape)",
    ]


def pillow_lines(preprocessing: Preprocessing) -> list[str]:
    """Return Pillow code for the resize and the crop, rounded as in the code of the model's authors."""
    method = f"Image.Resampling.{preprocessing.method.upper()}"
    size, (height, width), lines = preprocessing.resized, preprocessing.size, []
    if size is not None and not preprocessing.keep_ratio:
        rows, columns = (size, size) if isinstance(size, int) else size
        lines = [f"image = image.resize(({columns}, {rows}), {method})"]
    elif isinstance(size, tuple):
        lines = [
            f"ratio = min(image.height / {size[0]}, image.width / {size[1]})",
            f"image = image.resize((round(image.width / ratio), round(image.height / ratio)), {method})",
        ]
    elif size is not None and preprocessing.rule == "big_vision":
        lines = [
            f"scale = np.float32({size}) / np.float32(min(image.size))",
            "sides = [int(np.rint(np.float32(side) * scale)) for side in image.size]",
            f"image = image.resize(sides, {method})",
        ]
    elif size is not None:
        lines = [f"image = image.resize([{size} * side // min(image.size) for side in image.size], {method})"]
    if size is None or preprocessing.keep_ratio or size != preprocessing.size:
        half = "round(({} - {}) / 2)" if preprocessing.rule == "torchvision" else "({} - {}) // 2"
        lines += [
            f"left, top = {half.format('image.width', width)}, {half.format('image.height', height)}",
            f"image = image.crop((left, top, left + {width}, top + {height}))",
        ]
    return lines
