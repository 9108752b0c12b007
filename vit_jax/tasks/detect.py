"""Object detection by a plain ViT with detection tokens: YOLOS (arXiv:2106.00666), with the losses of DETR (arXiv:2005.12872)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vit_jax.data.source import Boxes, BoxLabels, Field, Fields
from vit_jax.layers.boxes import from_corners, generalized_iou, to_corners
from vit_jax.tasks import task
from vit_jax.tasks.headless import Headless
from vit_jax.tasks.task import Aux, Batch, Spec, TaskState, Weights
from vit_jax.types import Count, Images, Params, Rng, Tokens, UserError

Targets = dict[str, Array]  # terms of the loss, by name


class Perceptron(nn.Module):
    """Three linear layers with ReLUs between them."""

    outputs: int

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b n o"]:
        """Map tokens [b, n, d] to [b, n, outputs]."""
        for i in range(2):
            x = nn.relu(nn.Dense(x.shape[-1], kernel_init=nn.initializers.xavier_uniform(), name=f"dense_{i}")(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.xavier_uniform(), name="out")(x)


@dataclasses.dataclass(frozen=True)
class Detect(Headless):
    """Predict boxes and their classes with detection tokens after the patches, matched one to one to the true boxes.

    detection_tokens: their number, the most boxes that an image can have. between: also add learned positions after
    each block but the last, as in YOLOS of width S and above. Each step finds the match of lowest cost for each image:
    class_cost times the negative probability, plus box_cost times the L1 distance, minus giou_cost times the
    generalized IoU (DETR, equations 1 and 2). The loss is the cross-entropy of the classes, with weight no_object for
    tokens without a box, plus box_weight and giou_weight times the distances of matched boxes, divided by the counts of
    the whole batch as in DETR; `prepare` computes these counts, so that the loss is a mean over examples and the batch
    can be split.
    """

    fields: Fields | None = None
    spec: Spec | None = None
    detection_tokens: Count = 100
    between: bool = False
    class_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    no_object: float = 0.1
    decomposable = True
    measured_by = "coco_map"
    large = ("tokens", "box_logits", "box_outputs")

    def __post_init__(self):
        super().__post_init__()
        if not all(hasattr(self.model, stage) for stage in ("embed", "encode", "num_prefix", "grid")):
            raise UserError(
                f"task.Detect adds tokens, which {type(self.model).__name__} cannot take; use a model such as vit.ViT."
            )
        weights = ("class_cost", "box_cost", "giou_cost", "box_weight", "giou_weight", "no_object")
        if min(getattr(self, name) for name in weights) < 0:
            raise UserError(f"Found a number below 0 among {', '.join(f'task.{name}' for name in weights)}; raise it.")
        most = 0 if self.spec is None or self.keys[0] not in self.spec else self.spec[self.keys[0]].shape[0]
        if most > self.detection_tokens:
            raise UserError(
                f"Images have up to {most} boxes after pad_boxes, and there are task.detection_tokens={self.detection_tokens}; "
                "give at least as many tokens, or pad_boxes a smaller number."
            )

    @functools.cached_property
    def keys(self) -> tuple[str, str]:
        """The keys of the boxes and of their classes in an example; raises UserError unless there is one of each."""

        def one(kind: type[Field]) -> str:
            found = [key for key, field in (self.fields or {}).items() if isinstance(field, kind)]
            if len(found) != 1:
                raise UserError(
                    f"task.Detect learns boxes with classes; found examples with {', '.join(map(repr, self.fields or {}))}: take "
                    "source type='coco.Coco', or another task."
                )
            return found[0]

        return one(Boxes), one(BoxLabels)

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the boxes' classes."""
        return self.fields[self.keys[1]].class_names if self.fields else ()  # type: ignore[attr-defined]

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The heads that map detection tokens to classes and to boxes, by the names of their parameters."""
        return {"class_head": Perceptron(len(self.class_names) + 1), "box_head": Perceptron(4)}

    def init(self, rng: Rng, spec: Spec) -> Params:
        """See Task."""
        backbone = self.init_backbone(rng, spec["image"].shape)
        width, q = self.model.width, self.detection_tokens  # type: ignore[attr-defined]
        normal = nn.initializers.truncated_normal(0.02)
        params = {"backbone": backbone, "tokens": normal(task.stream(rng, "tokens"), (1, q, width))}
        if self.between:
            rows, columns = self.model.grid(spec["image"].shape[:2])  # type: ignore[attr-defined]
            n = self.model.num_prefix + rows * columns + q  # type: ignore[attr-defined]
            params["between"] = normal(task.stream(rng, "between"), (self.model.depth - 1, n, width))  # type: ignore[attr-defined]
        for name, head in self.heads.items():
            params[name] = head.init(task.stream(rng, name), jnp.zeros((1, 1, width)))["params"]
        return params

    def prepare(self, batch: Batch, rng: Rng, constants: Params) -> Batch:
        """See Task; converts boxes to shares of the image, and adds weights that divide by the counts of the batch."""
        boxes, labels = batch[self.keys[0]], batch[self.keys[1]]
        count, b = (labels >= 0).sum(axis=1), len(labels)
        weight = count + self.no_object * (self.detection_tokens - count)
        return {
            "image": batch["image"],
            "boxes": self._as_shares(boxes, batch["image"]),
            "labels": labels,
            "box_share": jnp.full(b, b / jnp.maximum(count.sum(), 1)),
            "class_share": jnp.full(b, b / weight.sum()),
        }

    def loss(self, params: Params, state: TaskState, batch: Batch, rng: Rng) -> tuple[Float[Array, ""], Aux]:
        """See Task; the metrics are the three parts of the loss."""
        logits, boxes, _ = self.outputs(params, self.normalize(batch["image"]), rng)
        parts = self.parts(logits, boxes, batch["boxes"], batch["labels"])
        shares = {"class_loss": "class_share", "box_loss": "box_share", "giou_loss": "box_share"}
        metrics = {name: (parts[name] * batch[share]).mean() for name, share in shares.items()}
        return self._total(metrics), Aux(metrics)

    def _total(self, parts: Targets) -> Array:
        return parts["class_loss"] + self.box_weight * parts["box_loss"] + self.giou_weight * parts["giou_loss"]

    def outputs(
        self, params: Params, images: Images, rng: Rng | None = None
    ) -> tuple[Float[Array, "b q classes"], Float[Array, "b q 4"], Tokens]:
        """Return detection tokens' logits and boxes (x, y, width, height; image shares), and all tokens, in float32."""
        q, train = self.detection_tokens, rng is not None

        def encode(model: Any, images: Images) -> Tokens:
            tokens = model.embed(images, train=train)
            added = jnp.tile(params["tokens"].astype(tokens.dtype), (images.shape[0], 1, 1))
            grid = model.grid((images.shape[1], images.shape[2]))
            options = {"between": params["between"]} if self.between else {}
            return model.encode(jnp.concatenate([tokens, added], axis=1), grid=grid, train=train, **options)

        rngs = {} if rng is None else {"dropout": rng}
        tokens: Any = self.model.apply({"params": params["backbone"]}, images, method=encode, rngs=rngs)
        tokens = tokens.astype(jnp.float32)
        logits, boxes = (head.apply({"params": params[name]}, tokens[:, -q:]) for name, head in self.heads.items())
        return logits, jax.nn.sigmoid(boxes), tokens  # type: ignore[arg-type,return-value]

    def match(
        self,
        logits: Float[Array, "q classes"],
        boxes: Float[Array, "q 4"],
        true_boxes: Float[Array, "m 4"],
        labels: Int[Array, " m"],
    ) -> Int[Array, " m"]:
        """Return a different token for each true box of an image, such that the sum of costs is lowest.

        Rows that are not boxes cost nothing, so they take the tokens that are left over.
        """
        q, m = len(boxes), len(labels)
        found = jnp.tile(boxes[None], (m, 1, 1))
        true = jnp.tile(true_boxes[:, None], (1, q, 1))
        cost = self.box_cost * jnp.abs(found - true).sum(axis=-1)
        cost = cost - self.giou_cost * generalized_iou(to_corners(found), to_corners(true))
        cost = cost - self.class_cost * jax.nn.softmax(logits)[:, jnp.maximum(labels, 0)].T
        cost = jax.lax.stop_gradient(jnp.where((labels >= 0)[:, None], cost, 0.0))
        rows, tokens = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(m, jnp.int32).at[rows].set(tokens)

    def parts(
        self,
        logits: Float[Array, "b q classes"],
        boxes: Float[Array, "b q 4"],
        true_boxes: Float[Array, "b m 4"],
        labels: Int[Array, "b m"],
    ) -> Targets:
        """Return the three parts of the loss of each example, summed over tokens and boxes: class_loss, box_loss, giou_loss."""
        matched = jax.vmap(self.match)(logits, boxes, true_boxes, labels)
        real, nothing = labels >= 0, logits.shape[-1] - 1

        def classes(tokens: Array, labels: Array) -> Array:
            at = jnp.where(labels >= 0, tokens, self.detection_tokens)  # indices beyond the last are dropped
            return jnp.full(self.detection_tokens, nothing).at[at].set(labels, mode="drop")

        targets = jax.vmap(classes)(matched, labels)
        xent = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        found = jnp.take_along_axis(boxes, matched[..., None], axis=1)
        distance = jnp.abs(found - true_boxes).sum(axis=-1)
        # Rows that are not boxes get a box with an area, which has a finite gradient.
        safe = jnp.where(real[..., None], true_boxes, 0.5)
        giou = generalized_iou(to_corners(found), to_corners(safe))
        return {
            "class_loss": (jnp.where(targets == nothing, self.no_object, 1.0) * xent).sum(axis=1),
            "box_loss": jnp.where(real, distance, 0.0).sum(axis=1),
            "giou_loss": jnp.where(real, 1.0 - giou, 0.0).sum(axis=1),
        }

    def predict(self, weights: Weights, batch: Batch) -> dict[str, Array]:
        """Return `boxes` [b, q, 4] as (left, top, right, bottom) in shares of the image, with `box_scores` and `box_labels`.

        A score is the highest probability of a class, as in DETR. Shares refer to the image without the padding of
        `pad`. `box_logits` [b, q, classes + 1] and `box_outputs` are the network's outputs; `features` [b, d] is the
        class token or, without one, the mean of all tokens.
        """
        images = self.normalize(batch["image"])
        logits, boxes, tokens = self.outputs(weights["params"], images)
        probs = jax.nn.softmax(logits)[..., :-1]
        corners = to_corners(boxes)
        if "image_size" in batch:
            size = jnp.asarray(images.shape[1:3], jnp.float32).reshape(1, 2) / batch["image_size"]
            corners = corners * jnp.tile(size[:, ::-1], (1, 2))[:, None]
        prefix = self.model.num_prefix  # type: ignore[attr-defined]
        found = {
            "boxes": corners,
            "box_scores": probs.max(axis=-1),
            "box_labels": probs.argmax(axis=-1),
            "box_logits": logits,
            "box_outputs": boxes,
            "features": tokens[:, 0] if prefix else tokens.mean(axis=1),
            "tokens": tokens[:, prefix : -self.detection_tokens],
        }
        if not all(key in batch for key in self.keys):
            return found
        labels = batch[self.keys[1]]
        parts = self.parts(logits, boxes, self._as_shares(batch[self.keys[0]], images), labels)
        count = (labels >= 0).sum(axis=1)
        weight = count + self.no_object * (self.detection_tokens - count)
        boxes_ = jnp.maximum(count, 1)
        own = {"class_loss": weight, "box_loss": boxes_, "giou_loss": boxes_}
        return found | {"loss": self._total({name: x / own[name] for name, x in parts.items()})}

    @staticmethod
    def _as_shares(boxes: Float[Array, "b m 4"], images: Array) -> Float[Array, "b m 4"]:
        size = jnp.array([images.shape[2], images.shape[1]] * 2, jnp.float32)
        return from_corners(boxes / size.reshape(1, 1, 4))
