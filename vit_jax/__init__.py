"""Vision Transformers in JAX: pretrain, fine-tune, evaluate, understand and scale.

import vit_jax as vj

model = vj.load("hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
model.top("photo.jpg")
vj.ViT.from_variant("B/16", num_classes=10)
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# The module of each public name; names are imported on first use, so that importing vit_jax does not import jax.
_HOMES = {
    "load": "vit_jax.inference", "Loaded": "vit_jax.inference", "ViT": "vit_jax.models.vit", "Mixer": "vit_jax.models.mixer",
    "fit": "vit_jax.train.fit", "load_config": "vit_jax.config.load", "Task": "vit_jax.tasks.task", "Source": "vit_jax.data.source",
    "Evaluator": "vit_jax.evals.evaluator", "UserError": "vit_jax.types",
}  # fmt: skip
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a name of the library on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vit_jax' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    value = getattr(importlib.import_module(_HOMES[name]), name.removesuffix("_config"))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
