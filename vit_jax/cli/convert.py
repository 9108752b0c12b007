"""Write a model for other libraries: vit convert --model=REF --out=PATH --to=npz|timm|hf|workdir."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import stores
from vit_jax.cli.command import Parser
from vit_jax.types import UserError

FORMATS = ("npz", "timm", "hf", "workdir")
TOLERANCE = 1e-3  # of the logits' standard deviation; rounding alone stays well below


def main(argv: Sequence[str]) -> int:
    """Writes it, reads it again, and prints how far the logits of both are apart; the exit code is 1 if they differ."""
    parser = Parser(prog="vit convert", description=__doc__)
    parser.add_argument("--model", required=True, metavar="REF", help="any model reference")
    parser.add_argument("--out", required=True, metavar="PATH", help="a new folder, or a new .npz file")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the original's file, or a folder of the others")
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    flags = parser.parse(argv)
    if stores.is_remote(flags.out):
        raise UserError(f"--out={flags.out} is on an object store; give a new path here, and copy it there then.")
    out = Path(os.path.expanduser(flags.out))
    if os.path.lexists(out):
        raise UserError(f"--out={flags.out} exists; give a new path.")
    if flags.to == "npz" and out.suffix != ".npz":
        raise UserError(f"--out={flags.out} is no .npz file, which --to=npz writes; give such a name.")

    from vit_jax import inference

    loaded = inference.load(flags.model, trust=flags.trust)
    for note in loaded.notes:
        print(f"note: {note}")
    for note in write(loaded, out, flags.to):
        print(f"note: {note}")
    size = sum(leaf.size for leaf in loaded.arrays.values())
    print(f"wrote {out}: {size:,} parameters, {loaded.spec['num_classes']} classes")
    return 0 if check(loaded, out, flags.to) else 1


def write(loaded: Any, out: Path, to: str) -> list[str]:
    """Writes a loaded model in a format; gives what that format cannot carry, a sentence each."""
    from vit_jax.checkpoint import workdir
    from vit_jax.pretrained import google, huggingface, timm
    from vit_jax.pretrained.preprocessing import from_spec

    params, (height, width, channels) = loaded.arrays, loaded.image_shape
    mean, std = (tuple(np.broadcast_to(getattr(loaded.task, key, 0.5), channels).tolist()) for key in ("mean", "std"))
    if to == "workdir":
        task = loaded.config.get("task") or {"type": "classify.Classify", "mean": mean, "std": std}
        config = {"model": loaded.spec, "task": task, "data": {}, "evals": {}}
        data = {"class_names": loaded.class_names, "image_shape": loaded.image_shape, "num_examples": 0}
        data |= {
            "names_known": loaded.names_known,
            "preprocess": loaded.preprocess_spec,
            "init": {"posemb": loaded.posemb},
        }
        workdir.write_model(out, config, data, params)
        return []
    preprocessing = from_spec(loaded.preprocess_spec, mean, std)
    notes = []
    if preprocessing is None:
        preprocessing = from_spec(f"resize(({height}, {width}))", mean, std)
        notes = [
            f"the preprocessing {loaded.preprocess_spec!r} cannot be said there; it is written as a resize to the size."
        ]
    writer: Callable[..., list[str]] = {"npz": google, "timm": timm, "hf": huggingface}[to].write
    return notes + writer(out, loaded.spec, params, preprocessing, loaded.class_names if loaded.names_known else None)


def check(loaded: Any, out: Path, to: str) -> bool:
    """Prints how far the logits of what was written are from those of the model, on random images, read by us and by them.

    The logits of an untrained head are the same whatever the network; then the features before it are compared.
    """
    images = np.random.default_rng(0).integers(0, 256, (2, *loaded.image_shape), np.uint8)
    what = "features" if loaded.has_untrained_head else "logits"
    expected = loaded(images)[what]
    scale = max(float(expected.std()), 1e-6)
    found = {"read again here": _reread(loaded, out, to)(images)[what]}
    right = True
    if to in ("timm", "hf") and what == "features":
        print("check: the head is untrained, so only what is read again here tells whether the network is the same")
    elif to in ("timm", "hf"):
        library = "timm" if to == "timm" else "transformers"
        opens = _opener(to, library)
        if opens is not None:
            import jax.numpy as jnp

            from vit_jax.tasks.task import normalize

            pixels = np.asarray(normalize(jnp.asarray(images), loaded.task.mean, loaded.task.std))
            try:
                found[f"by {library}"] = _logits(opens(out), pixels.transpose(0, 3, 1, 2))
            except Exception as error:  # whatever they raise for a folder that they cannot use
                right = False
                print(f"check: {library} cannot use it: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    for reader, values in found.items():
        difference = float(np.abs(values - expected).max())
        right &= difference <= TOLERANCE * scale
        print(f"check: {what} {reader} differ by at most {difference:.1e} (their standard deviation is {scale:.1e})")
    if not right:
        print(f"The copy does not give the same {what}; do not use it, and report this with the model's name.")
    return right


def _reread(loaded: Any, out: Path, to: str) -> Any:
    """What was written, read again; what a .npz does not carry is taken from the model: fields and normalisation."""
    from vit_jax import inference

    if to != "npz":
        return inference.load(out)
    again = inference.load(
        out, changes={key: loaded.spec[key] for key in ("mlp", "norm_eps", "stem") if key in loaded.spec}
    )
    return dataclasses.replace(again, task=dataclasses.replace(loaded.task, model=again.model))


def _opener(to: str, library: str) -> Callable[[Path], Any] | None:
    """What opens a folder in the other library; None, and a line that says so, where that cannot be imported."""
    try:
        if to == "timm":
            import timm

            return lambda out: timm.create_model(f"local-dir:{out}", pretrained=True)
        # transformers imports its models only when they are named.
        from transformers import AutoModelForImageClassification, ViTForImageClassification  # noqa: F401

        return lambda out: AutoModelForImageClassification.from_pretrained(str(out))
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:100]
        print(f"check: {library} cannot be imported here ({reason}), so it was not asked")
        return None


def _logits(model: Any, pixels: np.ndarray) -> np.ndarray:
    """The logits of a PyTorch model for normalised images [b, c, h, w]."""
    import torch

    with torch.no_grad():
        outputs = model.eval()(torch.from_numpy(pixels.copy()))
    return getattr(outputs, "logits", outputs).numpy()
