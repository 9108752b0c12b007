"""SigLIP's loss with a caption loss, self-distillation and masked prediction (SigLIP 2, arXiv:2502.14786, section 2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vit_jax.layers.decoder import Decoder
from vit_jax.tasks import task
from vit_jax.tasks.caption import caption_losses
from vit_jax.tasks.dino import Head
from vit_jax.tasks.pretraining import moving_average
from vit_jax.tasks.siglip import Siglip
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState
from vit_jax.types import Count, Fraction, Images, Params, Rng, Units, UserError


@dataclasses.dataclass(frozen=True)
class Siglip2(Siglip):
    """Add a captioning loss to the sigmoid loss and, for the last `late` fraction of the steps, two more terms.

    The captioning loss is described in section 2.2. The late terms are self-distillation, in which the student's pooled
    `crops` match the teacher's output for the whole image, and masked prediction, in which masked patches match the
    teacher's patches (section 2.3; as in SILC, arXiv:2310.13355, and TIPS, arXiv:2410.16512). The teacher is a running
    average of the image tower, and starts as a copy of it when these terms begin. Batches contain `views` [b, 1, h, w,
    c] and `crops` [b, n, h2, w2, c], as views(1, n, ...) makes them, and `text`. The network has mask_token=True, and
    posemb_grid if crops are smaller.
    """

    steps: int = 1
    late: Fraction = 0.2
    caption_weight: float = 1.0
    parallel: Fraction = 0.5
    pad: int = 0
    decoder_width: Units = 768
    decoder_depth: Count = 6
    decoder_mlp_dim: Units = 3072
    decoder_heads: Count = 12
    late_weight: float = 0.25
    distill_weight: float = 1.0
    masked_weight: float = 2.5
    mask_ratio: Fraction = 0.5
    outputs: Units = 16384
    hidden: Units = 2048
    bottleneck: Units = 256
    momentum: float = 0.999
    temperatures: tuple[float, float] = (0.04, 0.1)
    any_shape = False

    def __post_init__(self):
        super().__post_init__()
        self.need_mask_token()
        self.need_stages()
        if min(self.temperatures) <= 0 or not 0 <= self.momentum < 1:
            raise UserError(
                f"task.temperatures={self.temperatures} and task.momentum={self.momentum}; expected numbers above 0 and a share in "
                "[0, 1)."
            )

    @property
    def decoder(self) -> Decoder:
        """The caption decoder."""
        sizes = (self.decoder_width, self.decoder_depth, self.decoder_mlp_dim, self.decoder_heads)
        return Decoder(self.text.vocab_size, *sizes)  # type: ignore[union-attr]

    @property
    def head(self) -> Head:
        """The projection head of self-distillation and, with separate weights, of masked prediction."""
        return Head(self.hidden, self.bottleneck, self.outputs)

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task; raises UserError without a view and crops."""
        if "views" not in spec or "crops" not in spec:
            raise UserError(
                f"task.Siglip2 reads a view and crops of each image; found {', '.join(spec)}: put views(1, 8, view='resize(224)', "
                "crop='random_resized_crop(96, 0.05)|flip') into data.preprocess."
            )
        image = jax.ShapeDtypeStruct(spec["views"].shape[1:], "uint8")
        params = dict(super().init(rng, {"image": image, "text": spec["text"]}))
        found = jax.eval_shape(lambda p: self._features(p, jnp.zeros((1, *image.shape))), params["backbone"])
        text = jnp.zeros((1, spec["text"].shape[-1]), jnp.int32)
        inputs = (text, jnp.zeros(found["patches"].shape), jnp.zeros(1, bool))
        params["decoder"] = self.decoder.init(task.stream(rng, "decoder"), *inputs)["params"]
        for name, key in (("head", "pooled"), ("patch_head", "patches")):
            params[name] = self.head.init(task.stream(rng, name), jnp.zeros(found[key].shape))["params"]
        return params

    def init_state(self, params: Params) -> TaskState:
        """See Task."""
        zeros = {name: jnp.zeros((1, self.outputs)) for name in ("center", "patch_center")}
        return {"teacher": self._taught(params), "is_late": jnp.zeros(()), **zeros}

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; draws the masked patches, and the captions whose tokens are all predicted at once."""
        images = batch["views"][:, 0]
        rows, columns = self.model.grid(images.shape[1:3])  # type: ignore[attr-defined]
        draws = jax.random.uniform(task.stream(rng, "mask"), (len(images), rows * columns))
        count = max(1, round(self.mask_ratio * rows * columns))
        masked = jnp.argsort(jnp.argsort(draws, axis=1), axis=1) < count
        parallel = jax.random.bernoulli(task.stream(rng, "parallel"), self.parallel, (len(images),))
        return {"image": images, "crops": batch["crops"], "text": batch["text"], "masked": masked, "parallel": parallel}

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; stats: the means of the teacher's scores, for both centres."""
        images = self.normalize(batch["image"])
        seen = self._features(params["backbone"], images, task.stream(rng, "dropout"))
        encoded = {
            "image": self.projected(params, seen["pooled"]),
            "text": self.embed_texts(params, batch["text"], task.stream(rng, "text")),
        }
        pairs, aux = self.loss_of(params, encoded, batch)
        captions = caption_losses(
            self.decoder, params["decoder"], batch["text"], seen["patches"], batch["parallel"], self.pad,
            task.stream(rng, "decoder"),
        ).mean()  # fmt: skip

        def late() -> tuple[Array, Array, dict[str, Array]]:
            return self._late(params, state, images, batch, rng)

        def early() -> tuple[Array, Array, dict[str, Array]]:
            return jnp.zeros(()), jnp.zeros(()), {name: state[name] for name in ("center", "patch_center")}

        distilled, masked, centers = jax.lax.cond(state["is_late"] > 0, late, early)
        more = self.late_weight * (self.distill_weight * distilled + self.masked_weight * masked)
        metrics = {"loss_pairs": pairs, "loss_captions": captions, "loss_distilled": distilled, "loss_masked": masked}
        return pairs + self.caption_weight * captions + more, Aux({**aux.metrics, **metrics}, centers)

    def update(self, params: Params, state: TaskState, stats: Any, step: Array) -> TaskState:
        """See Task."""
        begins = (1 - self.late) * self.steps
        student = self._taught(params)
        average = moving_average(state["teacher"], student, self.momentum)
        teacher = jax.tree.map(lambda a, b: jnp.where(state["is_late"] > 0, a, b), average, student)
        centers = {name: moving_average(state[name], mean, 0.9) for name, mean in stats.items()}
        return {"teacher": teacher, "is_late": jnp.asarray(step + 1 >= begins, jnp.float32), **centers}

    def _late(
        self, params: Params, state: TaskState, images: Images, batch: Batch, rng: Rng
    ) -> tuple[Array, Array, dict[str, Array]]:
        """Return the losses of self-distillation and of masked prediction, and the means of the teacher's scores."""
        teacher, b = state["teacher"], len(images)
        whole = self._features(teacher["backbone"], images)
        scores = {name: self._scores(teacher[name], whole[key]) for name, key in HEADS.items()}
        crops = self.normalize(rearrange(batch["crops"], "b n h w c -> (b n) h w c"))
        small = self._features(params["backbone"], crops, task.stream(rng, "crops"))["pooled"]
        student = rearrange(self._scores(params["head"], small), "(b n) k -> b n k", b=b)
        hidden = self._features(params["backbone"], images, task.stream(rng, "masked"), batch["masked"])["patches"]
        sharp, soft = self.temperatures
        target = jax.lax.stop_gradient(jax.nn.softmax((scores["head"] - state["center"]) / sharp))
        distilled = -(target[:, None] * jax.nn.log_softmax(student / soft)).sum(axis=-1).mean()
        wanted = jax.lax.stop_gradient(jax.nn.softmax((scores["patch_head"] - state["patch_center"][None]) / sharp))
        losses = -(wanted * jax.nn.log_softmax(self._scores(params["patch_head"], hidden) / soft)).sum(axis=-1)
        masked = jnp.mean(losses, axis=1, where=batch["masked"]).mean()
        centers = {"center": scores["head"].mean(axis=0, keepdims=True)}
        return (
            distilled,
            masked,
            centers | {"patch_center": scores["patch_head"].mean(axis=1).mean(axis=0, keepdims=True)},
        )

    def _features(
        self, backbone: Params, images: Images, rng: Rng | None = None, masked: Bool[Array, "b n"] | None = None
    ) -> dict[str, Array]:
        options = {} if masked is None else {"masked": masked}
        found = task.features(self.model, {"params": backbone}, images, rng, **options)
        return {"pooled": found["pooled"], "patches": found["tokens"][:, found["prefix"] :]}

    def _scores(self, head: Params, features: Float[Array, "... d"]) -> Float[Array, "... k"]:
        scores: Any = self.head.apply({"params": head}, features)
        return scores

    def _taught(self, params: Params) -> Params:
        return {name: params[name] for name in ("backbone", *HEADS)}


# The features that each head reads.
HEADS = {"head": "pooled", "patch_head": "patches"}
