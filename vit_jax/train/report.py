"""The pictures that a finished run leaves in report/."""

from pathlib import Path

from vit_jax.evals.evaluator import Evaluator, Predict
from vit_jax.train.metrics import read_rows
from vit_jax.viz.curves import draw_curves
from vit_jax.viz.predictions import Prediction, draw_predictions


def write_report(
    workdir: Path, evaluator: Evaluator | None, predict: Predict, class_names: tuple[str, ...], shown: int = 48
) -> None:
    """curves.png, and predictions.png: images of an evaluator of classes, the surest mistakes first, then the least sure."""
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    draw_curves(read_rows(workdir / "metrics.jsonl"), folder / "curves.png")
    if evaluator is None:
        return
    wrong: list[Prediction] = []
    right: list[Prediction] = []
    mistakes = total = 0
    for out in evaluator.outputs(predict):
        predicted = out["probs"].argmax(axis=1)
        total += len(predicted)
        mistakes += int((predicted != out["label"]).sum())
        for image, label, guess, probs in zip(out["image"], out["label"], predicted, out["probs"], strict=True):
            item = Prediction(image, class_names[label], class_names[guess], float(probs[guess]))
            (right if label == guess else wrong).append(item)
        # Only what can be shown is kept, so that a large test set fits into memory.
        wrong = sorted(wrong, key=lambda item: -item.prob)[:shown]
        right = sorted(right, key=lambda item: item.prob)[:shown]
    title = f"{mistakes:,} of {total:,} images are mistaken" + (f"; the surest {shown}" if mistakes > shown else "")
    draw_predictions((wrong + right)[:shown], title, folder / "predictions.png")
