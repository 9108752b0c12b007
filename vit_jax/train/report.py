"""The pictures that a finished run leaves in report/."""

from pathlib import Path

from vit_jax import distributed as processes
from vit_jax.evals.evaluator import Evaluator, Predict
from vit_jax.train.metrics import read_rows
from vit_jax.viz.curves import draw_curves
from vit_jax.viz.predictions import Prediction, draw_predictions


def write_report(
    workdir: Path, evaluator: Evaluator | None, predict: Predict, class_names: tuple[str, ...], shown: int = 48
) -> None:
    """curves.png, and predictions.png: images of an evaluator of classes, the surest mistakes first, then the least sure."""
    folder = workdir / "report"
    if processes.is_first():
        folder.mkdir(exist_ok=True)
        draw_curves(read_rows(workdir / "metrics.jsonl"), folder / "curves.png")
    if evaluator is None:
        return
    wrong: list[tuple[int, int, int, float]] = []  # index, label, predicted class, its probability
    right: list[tuple[int, int, int, float]] = []
    mistakes = total = 0
    for out in evaluator.outputs(predict):
        predicted = out["probs"].argmax(axis=1)
        total += len(predicted)
        mistakes += int((predicted != out["label"]).sum())
        for index, label, guess, probs in zip(out["index"], out["label"], predicted, out["probs"], strict=True):
            item = (int(index), int(label), int(guess), float(probs[guess]))
            (right if label == guess else wrong).append(item)
    title = f"{mistakes:,} of {total:,} images are mistaken" + (f"; the surest {shown}" if mistakes > shown else "")
    if processes.is_first():
        chosen = (sorted(wrong, key=lambda item: -item[3]) + sorted(right, key=lambda item: item[3]))[:shown]
        pictures = [
            Prediction(evaluator.data.image(index), class_names[label], class_names[guess], prob)
            for index, label, guess, prob in chosen
        ]
        draw_predictions(pictures, title, folder / "predictions.png")
