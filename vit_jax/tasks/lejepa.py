"""Views predict their mean, and embeddings are normally distributed, without a teacher (LeJEPA, arXiv:2511.08544)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vit_jax.tasks import task
from vit_jax.tasks.pretraining import Pretraining
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState
from vit_jax.types import Params, Rng, Units, UserError

# The Epps-Pulley statistic is integrated by the trapezoid rule on [0, 3], doubled, as its integrand is even (section
# 4.2).
KNOTS = jnp.linspace(0.0, 3.0, 17)


class Projector(nn.Module):
    """Two hidden layers that normalise by statistics of the batch; used only in training."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Map the features of all views of a batch to embeddings."""
        x = features
        for i in range(2):
            x = nn.Dense(self.hidden, name=f"dense_{i}")(x)
            scale = self.param(f"scale_{i}", nn.initializers.ones, (1, self.hidden))
            bias = self.param(f"bias_{i}", nn.initializers.zeros, (1, self.hidden))
            x = (x - x.mean(axis=0, keepdims=True)) / jnp.sqrt(x.var(axis=0, keepdims=True) + 1e-5)
            x = nn.relu(scale * x + bias)
        return nn.Dense(self.outputs, name="dense_2")(x)


def sigreg(embeddings: Float[Array, "b v k"], directions: Float[Array, "k m"]) -> Float[Array, ""]:
    """Return the mean Epps-Pulley statistic of each view's embeddings along directions of unit length.

    b * integral of |mean(exp(i t x)) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, 0 for a standard normal x (equation 8).
    """
    angles = (embeddings @ directions)[..., None] * KNOTS.reshape(1, 1, 1, -1)
    window = jnp.exp(-jnp.square(KNOTS) / 2.0)
    real, imaginary = jnp.cos(angles).mean(axis=0), jnp.sin(angles).mean(axis=0)
    errors = jnp.square(real - window.reshape(1, 1, -1)) + jnp.square(imaginary)
    steps = jnp.full(len(KNOTS), 2.0).at[jnp.array([0, -1])].set(1.0) * (KNOTS[1] - KNOTS[0])
    return len(embeddings) * (errors @ (steps * window)).mean()


@dataclasses.dataclass(frozen=True)
class Lejepa(Pretraining):
    """(1 - weight) * the squared distance of all views from the mean of the large views, plus weight * SIGReg.

    Batches contain `views` [b, v, h, w, c] and may contain `crops`. Each step draws `directions` random directions.
    SIGReg and the projector compare the examples of a batch, so gradients cannot be accumulated. weight is the one
    hyperparameter; the authors use 0.02 to 0.05, and 1,024 directions for large models.
    """

    weight: float = 0.02
    directions: Units = 256
    hidden: Units = 2048
    outputs: Units = 128
    decomposable = False

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.weight < 1 or self.directions < 1:
            raise UserError(
                f"task.weight={self.weight} and task.directions={self.directions}; expected a share between 0 and 1, and at "
                "least 1 direction."
            )

    @property
    def projector(self) -> Projector:
        """The network from features to embeddings."""
        return Projector(self.hidden, self.outputs)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task; raises UserError without at least two views."""
        if "views" not in spec or spec["views"].shape[0] < 2:
            raise UserError(
                f"task.Lejepa compares two views of an image; found examples of { {k: x.shape for k, x in spec.items()} }: give "
                "data.preprocess a last transform views(2, ...), such as views(2, view='random_resized_crop(224)|flip')."
            )
        shape = spec["views"].shape[1:]
        backbone = self.init_backbone(rng, shape)
        run = jax.eval_shape(lambda: task.apply(self.model, {"params": backbone}, jnp.zeros((2, *shape)))[0])
        projector = self.projector.init(task.stream(rng, "projector"), jnp.zeros(run.shape))["params"]
        return {"backbone": backbone, "projector": projector}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        features = [
            self._features(params, batch[key], task.stream(rng, name))
            for key, name in (("views", "dropout"), ("crops", "crops"))
            if key in batch
        ]
        joined = jnp.concatenate(features, axis=1)
        flat: Any = self.projector.apply({"params": params["projector"]}, rearrange(joined, "b v d -> (b v) d"))
        embeddings = rearrange(flat, "(b v) k -> b v k", b=len(joined))
        center = embeddings[:, : batch["views"].shape[1]].mean(axis=1, keepdims=True)
        apart = jnp.square(embeddings - center).mean()
        directions = jax.random.normal(task.stream(rng, "directions"), (self.outputs, self.directions))
        normal = sigreg(embeddings, directions / jnp.linalg.norm(directions, axis=0, keepdims=True))
        loss = (1.0 - self.weight) * apart + self.weight * normal
        return loss, Aux({"loss_views": apart, "sigreg": normal})

    def _features(self, params: Params, views: Array, rng: Rng) -> Float[Array, "b v d"]:
        images = self.normalize(rearrange(views, "b v h w c -> (b v) h w c"))
        return rearrange(
            task.apply(self.model, {"params": params["backbone"]}, images, rng)[0], "(b v) d -> b v d", b=len(views)
        )
