"""Measuring with a function of the pixels in place of a model."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np

from vit_jax.evals import evaluator as evaluators
from vit_jax.evals.evaluator import Arrays, Evaluator

Model = Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]


def measured(evaluator: Evaluator, model: Model) -> tuple[dict[str, float], dict[str, Arrays]]:
    """Return the numbers of an evaluator and its rows, for a function of what a task would be shown."""

    def predict(weights, batch, needs=None, hidden=()):
        seen = {key: x for key, x in batch.items() if key not in {"mask", "index", *hidden}}
        outputs = model(seen)
        # In the dtype that models have.
        kept = {key: jnp.asarray(x, jnp.float32) for key, x in outputs.items() if needs is None or key in needs}
        return {key: jnp.asarray(x) for key, x in batch.items()}, kept

    return evaluators.evaluate(evaluator, predict, None)


def evaluate(evaluator: Evaluator, model: Model) -> dict[str, float]:
    """Return the numbers of an evaluator for a function of what a task would be shown."""
    return measured(evaluator, model)[0]
