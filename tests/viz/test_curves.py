"""Learning curves of many runs as a PNG file."""

import numpy as np
from PIL import Image

from vit_jax.viz.curves import draw_curves, draw_group_curves


def test_a_metric_with_a_single_value_is_visible(tmp_path):
    draw_group_curves({"accuracy": {"a": [[(400, 0.5)], [(400, 0.6)]]}}, tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    blue = (pixels == (0x1F, 0x77, 0xB4)).all(axis=2)  # of the first group, whose line in the legend is at the bottom
    assert blue[: len(pixels) // 2].any()


def test_without_accuracies_other_measures_are_drawn(tmp_path):
    rows = [{"step": step, "loss": 1.0, "test/miou": 0.1 * step, "test/num_examples": 4} for step in (1, 2, 3)]
    draw_curves(rows, tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    height, width = pixels.shape[:2]
    panel = pixels[: height // 2, width // 2 :]
    assert (panel == (0x1F, 0x77, 0xB4)).all(axis=2).any()
