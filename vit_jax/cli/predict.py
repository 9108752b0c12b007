"""Predict classes, numbers, masks or boxes of images, or compare them with texts: vit predict --model=REF FILE_OR_FOLDER..."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.cli.command import Parser, number_flag, output_folder, path_flag
from vit_jax.printable import line
from vit_jax.types import BatchSize, Fraction, Units, UserError

EXAMPLES = """
vit predict --model=workdirs/photos photo.jpg more_photos/ --top=3
vit predict --model=workdirs/scenes street/ --out=masks
vit predict --model=workdirs/detector street/ --annotations=val.json --least_score=0.3
vit predict --model=hf:timm/vit_base_patch16_224.augreg_in21k_ft_in1k photo.jpg --json
vit predict --model=hf:google/siglip-base-patch16-224 --texts "a cat" "a dog" photo.jpg
"""


def main(argv: Sequence[str]) -> int:
    """Print each image's most probable classes, texts or numbers, or write its mask; exit code 1 if one could not be read."""
    flags = make_parser().parse(argv)
    texts, places = texts_and_places(flags.texts or [], flags.images)
    paths = list(find_images(places))

    from vit_jax import inference
    from vit_jax.explain import pictures

    loaded = inference.load(flags.model, trust=flags.trust)
    for note in loaded.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    kind = pictures.predicts(loaded)
    for flag, value, other in (("out", flags.out, "images"), ("annotations", flags.annotations, "pixels")):
        if value is not None and kind in ("images", other):
            raise UserError(f"--{flag}={value} is not for {flags.model}, which predicts {kind}; leave it out.")
    if kind == "images":
        return predict_images(loaded, flags, paths, texts)
    out, rows = output_folder("--out", flags.out or "predictions"), min(flags.batch_size, len(paths))
    if kind == "pixels":
        return show_written(pictures.write_pixels(loaded, paths, rows, out), flags.json)
    return show_written(
        pictures.write_boxes(loaded, paths, rows, out, flags.annotations, flags.least_score), flags.json
    )


def show_written(written: Iterator[tuple[str, dict[str, Any]]], as_json: bool) -> int:
    """Print the pixel or box predictions of each image, and where they are stored; return the exit code."""
    failed = False
    for path, result in written:
        if "unreadable" in result:
            failed = True
            print(f"unreadable: {line(path)}: {line(result['unreadable'])}", file=sys.stderr)
        else:
            print(json.dumps({"path": path, **result}) if as_json else line(f"{path}: {in_words(result)}"), flush=True)
    return 1 if failed else 0


def in_words(result: dict[str, Any]) -> str:
    """Return the predictions for an image in one line."""
    if "boxes" in result:
        found = ", ".join(f"{box['label']} {box['score']:.0%}" for box in result["boxes"][:5])
        return f"{len(result['boxes'])} boxes{': ' * bool(found)}{found}; {result['picture']}"
    if "classes" in result:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in list(result["classes"].items())[:5])
        return f"{shares}; {result['mask']}"
    return f"{result['least']:g} to {result['most']:g}; {result['numbers']}"


def predict_images(loaded: Any, flags: Any, paths: Sequence[str], texts: Sequence[str]) -> int:
    """Print the classes, texts or numbers of each image; return the exit code."""
    from vit_jax.data.source import UnreadableImage

    embedding = loaded.embed_texts(texts) if texts else None
    if embedding is None and hasattr(loaded.task, "text"):
        raise UserError(f"{flags.model} compares images with texts; name them, such as --texts cat dog.")
    if embedding is None and loaded.has_untrained_head:
        raise UserError(
            f"{flags.model} cannot classify: it has {'an untrained head' if loaded.class_names else 'no head'}. "
            "Fine-tune it first: python -m vit_jax.main --config=configs/finetune.py:model=...,data=..."
        )
    failed = 0
    for start in range(0, len(paths), flags.batch_size):
        images, readable = [], []
        for path in paths[start : start + flags.batch_size]:
            try:
                images.append(loaded.preprocess(path))
                readable.append(path)
            except UnreadableImage as error:
                failed += 1
                print(f"unreadable: {line(path)}: {line(error)}", file=sys.stderr)
        if not images:
            continue
        # Padded to one shape, so that the model is compiled once.
        batch = np.zeros((min(flags.batch_size, len(paths)), *loaded.image_shape), np.uint8)
        batch[: len(images)] = images
        outputs = loaded(batch)
        names = texts or loaded.class_names
        if embedding is not None:
            outputs["probs"] = loaded.match(outputs["image_embedding"], embedding)
        for row, path in enumerate(readable):
            if "values" in outputs:
                numbers = dict(zip(loaded.class_names, outputs["values"][row].tolist(), strict=True))
                result: dict[str, Any] = {"values": numbers}
                text = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
            else:
                probs = outputs["probs"][row]
                best = np.argsort(-probs, kind="stable")[: flags.top]
                top = [{"label": names[i], "prob": float(probs[i])} for i in best]
                result = {"top": top}
                text = ", ".join(f"{item['label']} {item['prob']:.1%}" for item in top)
            print(json.dumps({"path": path, **result}) if flags.json else line(f"{path}: {text}"), flush=True)
    return 1 if failed else 0


def make_parser() -> Parser:
    """Return the flags of the command."""
    parser = Parser(prog="vit predict", description=__doc__, examples=EXAMPLES)
    parser.add_argument(
        "images", type=path_flag, nargs="*", metavar="FILE_OR_FOLDER", help="image files, or folders to search for them"
    )
    parser.add_argument(
        "--texts",
        nargs="+",
        metavar="TEXT",
        help="texts to compare with, by a model of images and texts; files may follow",
    )
    parser.add_argument(
        "--model", required=True, metavar="REF", help="any model reference, such as a workdir, DIR@STEP, hf:..."
    )
    parser.add_argument(
        "--top", type=number_flag(Units), default=5, help="how many classes to print for each image; default 5"
    )
    parser.add_argument(
        "--batch_size", type=number_flag(BatchSize), default=32, help="images predicted at once; default 32"
    )
    parser.add_argument(
        "--out",
        type=path_flag,
        metavar="DIR",
        help="a folder for predictions of pixels or boxes; default: predictions",
    )
    parser.add_argument(
        "--annotations",
        type=path_flag,
        metavar="FILE",
        help="for a detector: a file in COCO's format; boxes.json uses its ids",
    )
    parser.add_argument(
        "--least_score", type=number_flag(Fraction), default=0.5, help="least score of boxes to show; default 0.5"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each image")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    return parser


def texts_and_places(texts: list[str], places: list[str]) -> tuple[list[str], list[str]]:
    """Return the texts, and the image files and folders, which may follow the texts if there are no others.

    Raises UserError if either is missing.
    """
    count = len(texts)
    while texts and len(places) == count - len(texts) and is_place(texts[-1]):
        places, texts = [os.path.expanduser(texts[-1]), *places], texts[:-1]
    if not places or (count and not texts):
        raise UserError("Give image files or folders" + (" and texts." if count else ".") + " See --help.")
    return texts, places


def is_place(text: str) -> bool:
    """Return whether a text is a path that exists, or a path on an object store."""
    remote = text.startswith(("gs://", "s3://"))
    return remote or (bool(text) and not stores.is_too_long(text) and os.path.lexists(os.path.expanduser(text)))


def find_images(places: Sequence[str]) -> Iterator[str]:
    """Yield the given image files, and the image files in the given folders; raises UserError if one does not exist."""
    from vit_jax.data import files

    for place in places:
        left_out = files.LeftOut()
        if stores.is_remote(place) or os.path.isdir(place):
            names = files.find_images(place, left_out)
            files.report(place, left_out)
            if not names:
                others = f", but {left_out}" if left_out.counts else ""
                raise UserError(
                    f"Found no images in {place}{others}; expected files ending in {', '.join(files.ENDINGS)}."
                )
            yield from (stores.join(place, name) if name else place for name in names)
        elif os.path.lexists(place):
            yield place
        else:
            raise UserError(f"No file or folder at {place}; expected an image file, or a folder of them.")
