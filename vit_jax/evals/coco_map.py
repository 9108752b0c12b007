"""Compute COCO's average precision and recall of boxes with pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.data.source import BoxLabels, Source
from vit_jax.data.sources.coco import Coco
from vit_jax.evals.evaluator import Arrays, Evaluator, Measured
from vit_jax.types import BatchSize, Megabytes, Threads, UserError

# The numbers of pycocotools' COCOeval, in its order.
NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def as_results(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    image_id: Any,
    category_ids: Sequence[int | None],
) -> list[dict[str, Any]]:
    """Return the boxes of an image of (height, width) in COCO's results format: (left, top, width, height) in pixels.

    boxes: [n, 4] as (left, top, right, bottom), fractions of the image. category_ids: per class, None to leave it out.
    """
    pixels = boxes.astype(np.float64) * np.array([size[1], size[0]] * 2, np.float64)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [left, top, right - left, bottom - top],
            "score": float(score),
        }
        for (left, top, right, bottom), score, label in zip(pixels.tolist(), scores, labels.tolist(), strict=True)
        if category_ids[label] is not None
    ]


def coco_numbers(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return COCO's twelve metrics of results against annotations in its format; -1 if a metric is undefined."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UserError(
            "coco_map.CocoMap needs pycocotools, which is not installed: pip install 'vit_jax[coco]'."
        ) from None
    if not results:
        return dict.fromkeys(NAMES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco = COCO()
        coco.dataset = dict(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


class CocoMap(Evaluator):
    """`ap` (mean over IoUs 0.5 to 0.95), `ap50`, `ap75`, `ap` of small, medium and large boxes, six `ar`, and `loss`.

    Only the 100 boxes of an image with the largest scores count; crowd boxes are handled as in COCO. preprocess may
    resize and pad images, but not crop or flip them, since boxes are compared in the pixels of the original images.
    """

    needs = ("boxes", "box_scores", "box_labels", "loss")

    def __init__(
        self,
        source: Source,
        preprocess: str,
        batch_size: BatchSize = 8,
        threads: Threads = 2,
        cache_mb: Megabytes = 2048,
    ):
        super().__init__(source, preprocess, batch_size, threads, cache_mb)
        inner = getattr(source, "source", source)  # of a source with classes matched to a model's
        if not isinstance(inner, Coco):
            raise UserError(
                f"coco_map.CocoMap measures boxes of source type='coco.Coco'; found {type(inner).__name__}."
            )
        self._coco = inner
        names = next(field.class_names for field in source.fields.values() if isinstance(field, BoxLabels))
        ids = dict(zip(inner.class_names, inner.category_ids, strict=True))
        self._category_ids = [ids.get(name) for name in names]

    def measure(self, batch: Mapping[str, jax.Array], outputs: Mapping[str, jax.Array]) -> Measured:
        """See Evaluator."""
        return Measured({key: outputs[key] for key in self.needs})

    def result(self, measured: Mapping[str, Arrays]) -> dict[str, float]:
        """See Evaluator."""
        rows, coco = measured[""], self._coco
        results = []
        for row, index in enumerate(rows["index"].tolist()):
            boxes, scores, labels = (rows[key][row] for key in ("boxes", "box_scores", "box_labels"))
            results += as_results(boxes, scores, labels, coco.sizes[index], coco.image_ids[index], self._category_ids)
        numbers = coco_numbers(ground_truth(coco, rows["index"].tolist()), results)
        return numbers | {"loss": float(rows["loss"].mean(dtype=np.float64)), "num_examples": len(rows["index"])}


def ground_truth(coco: Coco, indices: Sequence[int]) -> dict[str, Any]:
    """Return the annotations of these images in COCO's format."""
    images = [
        {"id": coco.image_ids[i], "height": coco.sizes[i][0], "width": coco.sizes[i][1], "file_name": coco.name(i)}
        for i in indices
    ]
    annotations = []
    for i in indices:
        found = coco.annotations[i]
        for box, label, area, crowd, number in zip(*(x.tolist() for x in found), strict=True):
            annotations.append(
                {
                    "id": number,
                    "image_id": coco.image_ids[i],
                    "category_id": coco.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": i, "name": name} for i, name in zip(coco.category_ids, coco.class_names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
