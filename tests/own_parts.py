"""Parts of a user's own, as they stand in a file beside a config; the tests write this file there."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.source import Image, Label, Source
from vit_jax.evals.evaluator import Evaluator, Measured
from vit_jax.tasks.supervised import Supervised
from vit_jax.tasks.task import Aux, Task, apply, normalize


class Conv(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(images))
        return nn.Dense(self.num_classes)(nn.relu(x).mean(axis=(1, 2)))


class Stripes(Source):
    """Horizontal or vertical stripes."""

    def __init__(self, split: str = "train", count: int = 64):
        self.fields = {"image": Image(), "label": Label(("across", "down"))}
        self.count, self.seed = count, ("train", "test").index(split)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng([self.seed, index])
        lines = rng.integers(0, 256, (8, 1, 1), np.uint8).repeat(8, axis=1)
        return {"image": lines if index % 2 == 0 else lines.swapaxes(0, 1), "label": index % 2}

    def name(self, index):
        return f"stripes/{index}"


def invert(prob: float = 0.5):
    def transform(example, rng):
        return {**example, "image": 255 - example["image"]} if rng.random() < prob else example

    return transform


@dataclasses.dataclass(frozen=True)
class Hinge(Task):
    model: Any
    class_names: tuple[str, ...] = ()
    margin: float = 1.0
    decomposable = True

    def loss(self, params, state, batch, rng):
        logits, _, _ = apply(self.model, {"params": params}, normalize(batch["image"], 0.5, 0.5), rng)
        signs = 2.0 * jax.nn.one_hot(batch["label"], len(self.class_names)) - 1.0
        accuracy = (logits.argmax(axis=1) == batch["label"]).mean()
        return jnp.maximum(0.0, self.margin - signs * logits).mean(), Aux({"accuracy": accuracy})

    def predict(self, weights, batch):
        return {"logits": apply(self.model, weights, normalize(batch["image"], 0.5, 0.5))[0]}


class Wrong(Evaluator):
    """The share of wrong classes."""

    def measure(self, batch, outputs):
        return Measured({"wrong": outputs["logits"].argmax(axis=1) != batch["label"]})

    def result(self, measured):
        return {"wrong": float(measured[""]["wrong"].mean())}


@dataclasses.dataclass(frozen=True)
class Focal(Supervised):
    """As in the guide: an objective for networks with batch statistics."""

    gamma: float = 2.0

    def loss(self, params, state, batch, rng):
        logits, _, collections = self.train_outputs(params, state, batch["image"], rng)
        logp = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(logp, batch["label"][:, None], axis=1)[:, 0]
        return -((1 - jnp.exp(picked)) ** self.gamma * picked).mean(), Aux({}, collections)

    def predict(self, weights, batch):
        logits, more = self.outputs(weights, batch["image"])
        return {"logits": logits, **more}
