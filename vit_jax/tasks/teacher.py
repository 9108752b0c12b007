"""A trained model that an objective learns from: the config's `teacher`."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vit_jax.tasks.task import Task, Weights
from vit_jax.types import Pixels, UserError


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model; it sees the same images as the student, resized if it takes another size."""

    task: Task
    weights: Weights
    image_shape: tuple[int, int, int]

    def predict(self, weights: Weights, images: Pixels, key: str) -> Array:
        """Return one of the outputs of the teacher's task for the student's images."""
        height, width, channels = self.image_shape
        if images.shape[3] != channels:
            raise UserError(f"The teacher takes {channels} channels; found training images of {images.shape[1:]}.")
        if images.shape[1:3] != (height, width):
            images = jax.image.resize(
                images.astype(jnp.float32), (images.shape[0], height, width, channels), "bilinear", antialias=True
            )
        found = self.task.predict(weights, {"image": images})
        if key not in found:
            raise UserError(
                f"The teacher, a model of {type(self.task).__name__}, gives {', '.join(found)}; expected {key}: name another "
                "teacher."
            )
        return jax.lax.stop_gradient(found[key])
