"""Base class for objectives that train a headless backbone and modules of their own."""

import dataclasses
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.tasks import task
from vit_jax.tasks.task import Batch, Task, Weights
from vit_jax.types import Params, Pixels, Rng, UserError


@dataclasses.dataclass(frozen=True)
class Headless(Task):
    """An objective with the parameters {"backbone": ...} and parameters of its own.

    `predict` returns the `features` [b, d] of whole images and, for a network in stages, `tokens` [b, patches, d].
    """

    model: nn.Module
    mean: task.Scale = (0.485, 0.456, 0.406)
    std: task.Scale = (0.229, 0.224, 0.225)

    def __post_init__(self):
        task.check_scale(self.mean, self.std)

    def init_backbone(self, rng: Rng, shape: tuple[int, ...]) -> Params:
        """Return the initial parameters of the backbone; raises UserError if it has other variables too."""
        variables = task.init_variables(self.model, rng, shape)
        if others := set(variables) - {"params", *task.SOWN}:
            raise UserError(
                f"task.{type(self).__name__} trains networks without {', '.join(sorted(others))}; use a model such as vit.ViT."
            )
        return variables["params"]

    def normalize(self, images: Any) -> Any:
        """Normalise images for the network."""
        return task.normalize(images, self.mean, self.std)

    def tokens(
        self, backbone: Params, images: Pixels, rng: Rng | None = None, **options: Any
    ) -> Float[Array, "b patches d"]:
        """Return the encoded tokens of the patches; in training mode with `rng`, of masked images with `masked`."""
        found = task.features(self.model, {"params": backbone}, self.normalize(images), rng, **options)
        return found["tokens"][:, found["prefix"] :]

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """See Task."""
        module, variables = self.backbone(weights)
        out, sown, _ = task.apply(module, variables, self.normalize(batch["image"]))
        return task.sown_outputs(module, sown) | {"features": out}

    def backbone(self, weights: Weights) -> tuple[nn.Module, Weights]:
        """See Task."""
        return self.model, {"params": weights["params"]["backbone"]}
