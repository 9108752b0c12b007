"""Base class for objectives on images and texts: two towers that map both into one space."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from vit_jax.data.source import Fields, Tokens
from vit_jax.tasks import task
from vit_jax.tasks.pretraining import Pretraining
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState, Weights
from vit_jax.types import Params, Rng, Units, UserError


@dataclasses.dataclass(frozen=True)
class Towers(Pretraining):
    """Compare unit vectors of an image tower, `model`, and a text tower by scaled products.

    Parameters: {"backbone", "text", "log_scale"}, a "projection" of the image tower's vectors to `projection` numbers
    if it is set, and the objective's own. Without a projection both towers must give vectors of the same width. Batches
    contain `text` [b, n] and `image` [b, h, w, c], or the `features` [b, d] of a frozen tower for images of
    `image_shape`; for evaluation there may be several texts [b, k, n]. `predict` returns `image_embedding` [b, d] and
    `text_embedding` [b, d] or [b, k, d] for the inputs in the batch, and `features` [b, d] and `tokens` of the image
    tower.
    """

    model: nn.Module
    mean: task.Scale = 0.5
    std: task.Scale = 0.5
    text: nn.Module | None = None
    fields: Fields | None = None
    projection: Units | None = None
    projection_bias: bool = False
    image_shape: tuple[int, int, int] | None = None
    any_shape = True
    measured_by = "zeroshot"

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if self.text is None:
            raise UserError(
                f"task.{name} has no text tower; give task.text={{'type': 'text.TextTransformer', ...}}, see configs/siglip.py."
            )
        tokens = (self.fields or {}).get("text")
        if self.fields is not None and not isinstance(tokens, Tokens):
            found = ", ".join(f"{key!r}: {type(field).__name__}" for key, field in self.fields.items())
            raise UserError(
                f"task.{name} reads token ids as 'text'; found {found}: take a source with captions, such as pairs.Pairs, and "
                "end data.preprocess in tokenize(NAME, length)."
            )
        known = getattr(self.text, "vocab_size", 0)
        if isinstance(tokens, Tokens) and tokens.vocab_size > known:
            raise UserError(
                f"The tokenizer has {tokens.vocab_size} ids, but task.text.vocab_size={known}; expected at least as many: set it "
                f"to {tokens.vocab_size}, or take the tokenizer of the model."
            )

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task; raises UserError if the towers' vectors have different widths."""
        text = jnp.zeros((1, spec["text"].shape[-1]), jnp.int32)
        texts = self._text.init(task.stream(rng, "text"), text)
        params = {"text": texts["params"], "log_scale": jnp.asarray(self.first_log_scale, jnp.float32)}
        shape = self.image_shape if "features" in spec else spec["image"].shape
        if shape is None:
            raise UserError(
                f"task.{type(self).__name__} is trained on the features of a frozen tower; give task.image_shape=(HEIGHT, WIDTH, "
                "3), the images that the tower takes in use."
            )
        params["backbone"] = self.init_backbone(rng, shape)
        pooled = jax.eval_shape(
            lambda p: task.apply(self.model, {"params": p}, jnp.zeros((1, *shape)))[0], params["backbone"]
        )
        width = pooled.shape[1]
        if "features" in spec and spec["features"].shape != (width,):
            raise UserError(
                f"The examples have features of shape {spec['features'].shape}, the image tower gives ({width},); take the "
                "features of that tower."
            )
        out = jax.eval_shape(lambda p: self._text.apply({"params": p}, text), params["text"]).shape[1]
        if self.projection is not None:
            made = self._projection.init(task.stream(rng, "projection"), jnp.zeros((1, width)))
            params["projection"], width = made["params"], self.projection
        if width != out:
            raise UserError(
                f"The image tower gives vectors of {width} numbers, the text tower of {out}; make task.text.out_dim={width}, or "
                f"give task.projection={out}."
            )
        return params

    @property
    def config(self) -> dict[str, Any]:
        """The config of this task, including its text tower."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        kept = {
            key: value for key, value in own.items() if key not in ("model", "text", "fields") and value is not None
        }
        scales = {key: tuple(np.broadcast_to(own[key], 3).tolist()) for key in ("mean", "std")}
        tower = {f.name: getattr(self.text, f.name) for f in dataclasses.fields(self._text)}  # type: ignore[arg-type]
        text = {key: value for key, value in tower.items() if key not in ("parent", "name") and value is not None}
        return {"type": _type(self), **kept, **scales, "text": {"type": _type(self._text), **text}}

    @property
    def first_log_scale(self) -> float:
        """The logarithm of the initial scale of the products."""
        raise NotImplementedError

    def encode(self, params: Params, batch: Batch, rng: Rng) -> dict[str, Array]:
        """Return `image` and `text` [b, d] of unit length, in training mode; each row depends on one example only."""
        return {
            "image": self.embed_images(params, batch, task.stream(rng, "dropout")),
            "text": self.embed_texts(params, batch["text"], task.stream(rng, "text")),
        }

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        return self.loss_of(params, self.encode(params, batch, rng), batch)

    def loss_of(self, params: Params, encoded: dict[str, Array], batch: Batch) -> tuple[Float[Array, ""], Aux]:
        """Return the loss of encoded pairs."""
        raise NotImplementedError

    def embed_images(self, params: Params, batch: Batch, rng: Rng | None = None) -> Float[Array, "b d"]:
        """Return unit vectors of the images, or of the features of a frozen tower; in training mode with `rng`."""
        if "features" in batch:
            return self.projected(params, batch["features"])
        return self.projected(
            params, task.apply(self.model, self._backbone(params), self.normalize(batch["image"]), rng)[0]
        )

    def projected(self, params: Params, features: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """Return unit vectors in the space of both towers."""
        if "projection" in params:
            found: Any = self._projection.apply({"params": params["projection"]}, features)
            return unit(found)
        return unit(features)

    def embed_texts(self, params: Params, text: Int[Array, "b n"], rng: Rng | None = None) -> Float[Array, "b d"]:
        """Return unit vectors of the texts; in training mode with `rng`."""
        rngs = {} if rng is None else {"dropout": rng}
        found: Any = self._text.apply({"params": params["text"]}, text, train=rng is not None, rngs=rngs)
        return unit(found)

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """See Towers."""
        found: dict[str, Array] = {}
        params = weights["params"]
        if "image" in batch:
            found = super().predict(weights, batch)
        elif "features" in batch:
            found["features"] = batch["features"]
        if found:
            found["image_embedding"] = self.projected(params, found["features"])
        if "text" in batch:
            text = batch["text"].reshape(-1, batch["text"].shape[-1])
            found["text_embedding"] = self.embed_texts(params, text).reshape(*batch["text"].shape[:-1], -1)
        return found

    def match(self, params: Params, image: Float[Array, "b d"], text: Float[Array, "c d"]) -> Float[Array, "b c"]:
        """Return the probability of each text for each image; unless overridden, a softmax over all texts."""
        return jax.nn.softmax(jnp.exp(params["log_scale"]) * image @ text.T)

    @property
    def _text(self) -> nn.Module:
        assert self.text is not None
        return self.text

    @property
    def _projection(self) -> nn.Dense:
        assert self.projection is not None
        return nn.Dense(self.projection, use_bias=self.projection_bias)

    def _backbone(self, params: Params) -> Weights:
        return {"params": params["backbone"]}


def _type(part: Any) -> str:
    return f"{type(part).__module__.rpartition('.')[2]}.{type(part).__name__}"


def unit(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Return vectors divided by their length, in float32."""
    vectors = vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32))
    return vectors / jnp.sqrt(jnp.square(vectors).sum(axis=-1, keepdims=True) + 1e-16)


def same_text(text: Int[Array, "b n"], other: Int[Array, "c n"]) -> Bool[Array, "b c"]:
    """Return which texts are equal, by two sums of their ids modulo 2**32 with different random weights."""
    weights = jax.random.bits(jax.random.key(0), (text.shape[1], 2), jnp.uint32)
    left, right = (x.astype(jnp.uint32) @ weights for x in (text, other))
    return (left[:, None] == right[None]).all(axis=-1)


def retrieved(similarity: Float[Array, "b b"]) -> Float[Array, ""]:
    """Return the share of images whose own text is the nearest in the batch."""
    return jnp.mean(similarity.argmax(axis=1) == jnp.arange(len(similarity)))


def check_batch(name: str, size: int) -> None:
    """Raise UserError for a batch without negatives."""
    if size < 2:
        raise UserError(
            f"task.{name} compares the pairs of a batch, which has {size}; expected batch_size of at least 2."
        )
