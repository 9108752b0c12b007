"""Top-1 accuracy and loss."""

import math

from vit_jax.evals.evaluator import Evaluator, Predict


class Classification(Evaluator):
    """`accuracy`, `loss` (mean of the task's loss per example) and `num_examples`; `unreadable` counts skipped files."""

    def __call__(self, predict: Predict) -> dict[str, float]:
        """See Evaluator; the sums are exact, so the result does not depend on how the examples are batched."""
        correct, losses = 0, []
        for out in self.outputs(predict):
            correct += int((out["logits"].argmax(axis=1) == out["label"]).sum())
            losses += out["loss"].tolist()
        result = {
            "accuracy": correct / len(losses),
            "loss": math.fsum(losses) / len(losses),
            "num_examples": len(losses),
        }
        return result | ({"unreadable": len(self.data.unreadable)} if self.data.unreadable else {})
