"""Captioning as pretraining: predict the caption of an image, token by token and all at once (CapPa, arXiv:2306.07915)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vit_jax.data.source import Fields, Tokens
from vit_jax.layers.decoder import Decoder
from vit_jax.tasks import task
from vit_jax.tasks.pretraining import Pretraining
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState
from vit_jax.types import Count, Fraction, Params, Rng, Units, UserError


@dataclasses.dataclass(frozen=True)
class Caption(Pretraining):
    """Predict each token of a caption from the encoded patches and the preceding tokens (section 3).

    The loss is the mean cross-entropy. For a share `parallel` of the examples all tokens are masked and predicted from
    the image only (section 3.2; 0 is Cap). The decoder has half the depth of the paper's encoder, and no biases. Tokens
    after the first padding token, of id `pad`, do not count. After training only the encoder is used.
    """

    mean: task.Scale = 0.5
    std: task.Scale = 0.5
    fields: Fields | None = None
    parallel: Fraction = 0.75
    pad: int = 0
    decoder_width: Units = 768
    decoder_depth: Count = 6
    decoder_mlp_dim: Units = 3072
    decoder_heads: Count = 12
    decoder_dropout: float = 0.0
    vocab_size: Units | None = None
    decomposable = True

    def __post_init__(self):
        super().__post_init__()
        self.need_stages()
        tokens = (self.fields or {}).get("text")
        known = self.vocab_size or (tokens.vocab_size if isinstance(tokens, Tokens) else 0)
        if not known or (isinstance(tokens, Tokens) and tokens.vocab_size > known):
            raise UserError(
                f"task.Caption predicts token ids; found task.vocab_size={self.vocab_size} and {tokens} as 'text': end "
                "data.preprocess in tokenize(NAME, length), and leave vocab_size unset or at least as large as the tokenizer's."
            )

    @property
    def decoder(self) -> Decoder:
        """The caption decoder."""
        sizes = (self.decoder_width, self.decoder_depth, self.decoder_mlp_dim, self.decoder_heads)
        assert self.vocab_size is not None
        return Decoder(self.vocab_size, *sizes, self.decoder_dropout)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        params: dict[str, Any] = {"backbone": self.init_backbone(rng, spec["image"].shape)}
        images = jax.ShapeDtypeStruct((1, *spec["image"].shape), "uint8")
        patches = jax.eval_shape(lambda x: self.tokens(params["backbone"], x), images)
        text = jnp.zeros((1, spec["text"].shape[-1]), jnp.int32)
        inputs = (text, jnp.zeros(patches.shape), jnp.zeros(1, bool))
        return params | {"decoder": self.decoder.init(task.stream(rng, "decoder"), *inputs)["params"]}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws the captions whose tokens are all predicted at once."""
        drawn = jax.random.bernoulli(task.stream(rng, "parallel"), self.parallel, (len(batch["text"]),))
        return {"image": batch["image"], "text": batch["text"], "parallel": drawn}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task."""
        patches = self.tokens(params["backbone"], batch["image"], task.stream(rng, "dropout"))
        losses = caption_losses(
            self.decoder, params["decoder"], batch["text"], patches, batch["parallel"], self.pad, task.stream(rng, "decoder")
        )  # fmt: skip
        return losses.mean(), Aux({"perplexity": jnp.exp(losses.mean())})


def caption_losses(
    decoder: Decoder,
    params: Params,
    text: Int[Array, "b n"],
    patches: Float[Array, "b m e"],
    parallel: Bool[Array, "b"],
    pad: int,
    rng: Rng,
) -> Float[Array, "b"]:
    """Return the mean cross-entropy of each caption's tokens, up to its first padding token, in training mode."""
    logits: Any = decoder.apply({"params": params}, text, patches, parallel, train=True, rngs={"dropout": rng})
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_probs, text[:, :, None], axis=2)[:, :, 0]
    is_padding = (text == pad).astype(jnp.int32)
    counts = jnp.cumsum(is_padding, axis=1) - is_padding == 0
    return jnp.where(counts, losses, 0.0).sum(axis=1) / counts.sum(axis=1)
