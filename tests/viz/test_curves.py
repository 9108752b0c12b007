"""Learning curves of many runs as a PNG file."""

import numpy as np
from PIL import Image

from vit_jax.viz.curves import draw_group_curves


def test_a_metric_with_a_single_value_is_visible(tmp_path):
    draw_group_curves({"accuracy": {"a": [[(400, 0.5)], [(400, 0.6)]]}}, tmp_path / "curves.png")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    blue = (pixels == (0x1F, 0x77, 0xB4)).all(axis=2)  # of the first group, whose line in the legend is at the bottom
    assert blue[: len(pixels) // 2].any()
