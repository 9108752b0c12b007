"""Resolve references to published models: a path, hf:OWNER/NAME[@revision], or a name of the original repository."""

import contextlib
import dataclasses
import difflib
import os
import re
from pathlib import Path

from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.types import UserError

# Weights in a folder, in order of preference.
WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.pth",
)
SUFFIXES = (".safetensors", ".npz", ".pth")


# How timm and the hub itself refer to a model on the hub.
_HUB = re.compile(r"(?:hf[-_]hub:|https?://huggingface\.co/)([\w.-]+/[\w.-]+?)(?:/(?:tree|resolve)/([\w.-]+).*|/)?")
# A timm name: an architecture, optionally with the tag of its weights.
_TIMM = re.compile(r"((?:vit|deit3?|beit|beitv2|eva02|mixer|flexivit|swin|swinv2)_[a-z0-9_]+)(?:\.([a-z0-9_]+))?")
# A size in other libraries' notation: B16, vit-b-16, ViT-B/16, R50-ViT-B-16.
_SIZE = re.compile(
    r"(?:(r\d*)[-_+/]*)?(?:vit[-_/]?)?(mu|ti|tiny|s|small|m|b|base|l|large|so400m|h|huge|g)[-_/]?(\d+)", re.I
)
_LETTERS = {
    "tiny": "Ti",
    "small": "S",
    "base": "B",
    "large": "L",
    "huge": "H",
    "ti": "Ti",
    "mu": "mu",
    "so400m": "So400m",
}


def as_ours(reference: str) -> str:
    """Convert a reference in the notation of timm, transformers or the hub's pages to this library's.

    `local-dir:PATH` becomes a path; `hf-hub:OWNER/NAME`, the address of a model's page, and a timm name with a tag
    become hub references. Other references and existing paths are returned unchanged.
    """
    if os.path.lexists(os.path.expanduser(reference)):
        return reference
    if reference.startswith("local-dir:"):
        return reference.removeprefix("local-dir:")
    if match := _HUB.fullmatch(reference):
        return f"hf:{match[1]}" + (f"@{match[2]}" if match[2] else "")
    match = _TIMM.fullmatch(reference)
    if match and match[2] and f".{match[2]}" not in SUFFIXES:
        return f"hf:timm/{reference}"
    return reference


def is_published(path: Path) -> bool:
    """Return whether a folder contains another library's model; training runs do not count, whatever they contain."""
    return not (path / "checkpoints").is_dir() and any(
        p.name in WEIGHTS or p.suffix in SUFFIXES for p in path.iterdir()
    )


def read(reference: str) -> Pretrained:
    """Read a published model; raises UserError if it is missing, damaged or of an unsupported network."""
    from vit_jax.pretrained import (
        big_vision_towers,
        google,
        huggingface,
        huggingface_towers,
        mae,
        open_clip,
        swin,
        timm,
        upernet,
        yolos,
    )
    from vit_jax.pretrained.tensors import read_arrays

    place = locate(reference)
    arrays, config, notes = read_arrays(place)
    libraries = (big_vision_towers, open_clip, huggingface_towers, upernet, yolos, mae, google, swin, timm, huggingface)
    for library in libraries:
        if library.matches(arrays, config):
            found = library.read(arrays, config, reference)
            folder = place if place.is_dir() else place.parent
            return dataclasses.replace(found, notes=(*notes, *found.notes), folder=folder)
    examples = ", ".join(sorted(arrays)[:4])
    raise UserError(
        f"{reference} contains {len(arrays)} arrays ({examples}, ...) of an unknown model; expected a ViT, DeiT, hybrid, "
        "Mixer, Swin, CLIP or SigLIP saved by the original repository, big_vision, timm, open_clip or transformers."
    )


def locate(reference: str) -> Path:
    """Return the file or folder of a reference, downloading it if necessary.

    A reference that is neither a path nor on the hub is looked up in the folder VIT_JAX_MODELS, with or without .npz,
    then among the original repository's names in `hub.ORIGINAL`.
    """
    path = Path(os.path.expanduser(reference))
    if os.path.lexists(path):
        return path
    from vit_jax.pretrained import hub

    if reference.startswith("hf:"):
        return hub.download(reference.removeprefix("hf:"))
    folder = os.environ.get("VIT_JAX_MODELS")
    for name in (reference, f"{reference}.npz") if folder else ():
        if (path := Path(os.path.expanduser(folder or "")) / name).is_file():
            return path
    model = hub.find(reference)
    if model is None:
        raise UserError(
            f"No model at {reference!r}{_hint(reference)}; expected a path (a workdir, DIR@STEP, a .npz, .safetensors or .pth "
            "file, a folder of timm or transformers), hf:OWNER/NAME, a name of the original repository such as ViT-B_16, or a "
            "size with random weights such as S/16."
        )
    failures = []
    for place in model.places:
        try:
            return hub.download(place.removeprefix("hf:"))
        except UserError as error:
            failures.append(str(error))
    raise UserError(
        f"{reference} could not be downloaded:\n  "
        + "\n  ".join(failures)
        + "\nGo online, or set VIT_JAX_MODELS to a folder "
        f"with {model.name.rpartition('/')[2]}.npz."
    )


def _hint(reference: str) -> str:
    """Return a hint at the likely meaning of a reference that was not found, for its error message."""
    from vit_jax.pretrained import hub

    if match := _TIMM.fullmatch(reference):
        places = sorted({place for model in hub.ORIGINAL.values() for place in model.places})
        tagged = [place for place in places if place.startswith(f"hf:timm/{match[1]}.")] or [f"hf:timm/{match[1]}.TAG"]
        return f" (an architecture of timm has several weights: {' or '.join(tagged)})"
    if match := _SIZE.fullmatch(reference):
        stem, letter, patch = match.groups()
        letter = _LETTERS.get(letter.lower(), letter.upper() if letter != "g" else letter)
        stem = f"{stem.upper()}+" if stem else ""
        known = [f"the published {name}" for name in (f"{stem}ViT-{letter}_{patch}",) if hub.find(name)]
        return f" (did you mean {' or '.join([*known, f'the size {stem}{letter}/{patch} with random weights'])}?)"
    folder = Path(os.path.expanduser(reference)).parent
    with contextlib.suppress(OSError, ValueError):  # no folder, or a name that none can have
        beside = [str(path) for path in folder.iterdir() if path.is_dir() or path.suffix in SUFFIXES]
        if close := difflib.get_close_matches(str(folder / Path(reference).name), beside, n=2, cutoff=0.8):
            return f" (did you mean {' or '.join(close)}?)"
    owner, _, name = reference.partition("/")
    is_name = re.fullmatch(r"[A-Za-z][\w.-]*/[\w.-]*[A-Za-z][\w.-]*", reference) and Path(name).suffix not in SUFFIXES
    if is_name and not os.path.isdir(owner):
        return f" (did you mean hf:{reference} on the hub?)"
    return ""
