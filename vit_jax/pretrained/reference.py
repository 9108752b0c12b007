"""References to published models: a path, hf:OWNER/NAME[@revision], or a name of the original repository."""

import dataclasses
import os
from pathlib import Path

from vit_jax.pretrained.pretrained import Pretrained
from vit_jax.types import UserError

# Weights in a folder, in order of preference.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.pth")
SUFFIXES = (".safetensors", ".npz", ".pth")


def is_published(path: Path) -> bool:
    """Return whether a folder contains another library's model; a training run is not one, whatever else it contains."""
    return not (path / "checkpoints").is_dir() and any(
        p.name in WEIGHTS or p.suffix in SUFFIXES for p in path.iterdir()
    )


def read(reference: str) -> Pretrained:
    """Read a published model; raise UserError if it is missing, damaged or of an unsupported network."""
    from vit_jax.pretrained import google, huggingface, timm
    from vit_jax.pretrained.tensors import read_arrays

    arrays, config, notes = read_arrays(locate(reference))
    for library in (google, timm, huggingface):
        if library.matches(arrays, config):
            found = library.read(arrays, config, reference)
            return dataclasses.replace(found, notes=(*notes, *found.notes))
    examples = ", ".join(sorted(arrays)[:4])
    raise UserError(
        f"{reference} contains {len(arrays)} arrays ({examples}, ...) of an unknown model; expected a ViT, DeiT, hybrid or "
        "Mixer saved by the original repository, big_vision, timm or transformers."
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
            f"No model at {reference!r}; expected a path (a workdir, DIR@STEP, a .npz, .safetensors or .pth file, a folder of "
            "timm or transformers), hf:OWNER/NAME, a name of the original repository such as ViT-B_16, or a size with random "
            "weights such as S/16."
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
