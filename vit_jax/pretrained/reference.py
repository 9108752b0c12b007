"""Where a published model is: a path, `hf:OWNER/NAME[@revision]`, or a name of the original repository."""

import os
from pathlib import Path

from vit_jax.pretrained import google, hub, huggingface, names, timm
from vit_jax.pretrained.files import SUFFIXES, WEIGHTS, read_arrays
from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.types import UserError

FORMATS = (google, timm, huggingface)


def read(reference: str) -> Pretrained:
    """The published model that a reference names; raises UserError where there is none, or it is damaged or of another kind."""
    path = locate(reference)
    arrays, config = read_arrays(path)
    for form in FORMATS:
        if form.fits(arrays, config):
            return form.read(arrays, config, reference)
    examples = ", ".join(sorted(arrays)[:4])
    raise UserError(
        f"{reference} holds no model that is known here: its {len(arrays)} arrays are named {examples}, ...; expected a ViT, "
        "DeiT, hybrid or Mixer as the original repository, big_vision, timm or transformers save it."
    )


def is_published(path: Path) -> bool:
    """Whether a folder holds weights of others; a training run into which a model was converted stays one."""
    return not (path / "checkpoints").is_dir() and any(
        p.name in WEIGHTS or p.suffix in SUFFIXES for p in path.iterdir()
    )


def locate(reference: str) -> Path:
    """The file or folder of a reference, downloaded where it must be.

    A name of the original repository, such as "ViT-B_16" or "augreg/B_16-i21k-....npz", is looked for in the folder
    VIT_JAX_MODELS and then in the places that names.py lists, in order.
    """
    path = Path(os.path.expanduser(reference))
    if os.path.lexists(path):
        return path
    if reference.startswith("hf:"):
        return hub.from_hub(reference.removeprefix("hf:"))
    places = names.places(reference)
    if places is None:
        raise UserError(
            f"No model at {reference!r}: expected a path (a workdir, DIR@STEP, a .npz, .safetensors or .pth file, a folder of "
            "timm or transformers), hf:OWNER/NAME, a name of the original repository such as ViT-B_16, or a size with random "
            "weights such as S/16."
        )
    tried = []
    if folder := os.environ.get("VIT_JAX_MODELS"):
        for name in (reference, f"{reference}.npz"):
            if (path := Path(os.path.expanduser(folder)) / name).exists():
                return path
        tried.append(f"no {reference} or {reference}.npz in VIT_JAX_MODELS={folder}")
    for place in places:
        try:
            return _fetch(place)
        except UserError as error:
            tried.append(str(error))
    reasons = "\n  ".join(tried)
    raise UserError(
        f"{reference} was found at none of its places:\n  {reasons}\n"
        "Set VIT_JAX_MODELS to a folder that holds it, or go online."
    )


def _fetch(place: str) -> Path:
    if place.startswith("hf:"):
        return hub.from_hub(place.removeprefix("hf:"))
    return hub.from_bucket(place.removeprefix("gs://"))
