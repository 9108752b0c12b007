import numpy as np
import pytest

from vit_jax.data.fake import Fake
from vit_jax.evals.classification import Classification


@pytest.mark.parametrize("batch_size", range(1, 9))
def test_every_example_counts_once_whatever_the_batch(batch_size):
    source = Fake(num_examples=7, image_size=4, num_classes=3)
    seen = []

    def predict(batch):
        seen.append(len(batch["image"]))
        # The mean grey level decides, so that every image has an answer of its own.
        grey = batch["image"].astype(float).mean(axis=(1, 2, 3))
        return {"logits": np.eye(3)[grey.astype(int) % 3], "loss": grey.astype(np.float32)}

    result = Classification(source, "", batch_size)(predict)
    greys = [source.image(i).astype(float).mean() for i in range(7)]
    assert result["num_examples"] == 7
    assert result["accuracy"] == sum(int(g) % 3 == source.label(i) for i, g in enumerate(greys)) / 7
    assert result["loss"] == pytest.approx(np.mean(np.float32(greys)), rel=1e-6)
    assert set(seen) == {batch_size}  # one shape: compiled once
