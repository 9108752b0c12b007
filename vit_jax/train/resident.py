"""A task whose images lie on the devices."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from vit_jax.data.resident import ResidentData
from vit_jax.tasks.task import Batch, Task
from vit_jax.types import Params, Rng

# What the augmentation's key is made with; the task's own stays as it is.
AUGMENTATION = 1


@dataclasses.dataclass(frozen=True)
class Resident(Task):
    """Another task on batches that name their images: it fetches and augments them before the task prepares them."""

    task: Task
    data: ResidentData

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """See Task."""
        return self.task.model

    @property
    def per_example(self) -> bool:  # type: ignore[override]
        """See Task."""
        return self.task.per_example

    @property
    def constants(self) -> Params:
        """All training images, and the constants of the task."""
        return {"images": self.data.images, "task": self.task.constants}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task."""
        images: UInt8[Array, "n h w c"] = jnp.asarray(constants["images"])
        chosen = self.data.augmented(jax.random.fold_in(rng, AUGMENTATION), jnp.take(images, batch["index"], axis=0))
        return self.task.prepare({"image": chosen, "label": batch["label"]}, rng, constants["task"])

    def loss(self, params: Params, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], dict[str, Array]]:
        """See Task."""
        return self.task.loss(params, batch, rng)

    def predict(self, params: Params, batch: Batch) -> dict[str, Array]:
        """See Task."""
        return self.task.predict(params, batch)
