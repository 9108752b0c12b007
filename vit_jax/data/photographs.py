"""Two real photographs that ship with scikit-learn, for checks when the user gives no images."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def crops(count: int, image_shape: tuple[int, int, int]) -> UInt8[np.ndarray, "b h w c"]:
    """Return different crops of the photographs, resized to a model's image shape."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    height, width, channels = image_shape
    rng, made = np.random.default_rng(0), []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(rng.integers(min(photograph.size) // 2, min(photograph.size)))
        left, top = (int(rng.integers(0, free - side + 1)) for free in photograph.size)
        part = photograph.resize((width, height), box=(left, top, left + side, top + side))
        pixels = np.asarray(part if channels == 3 else part.convert("L"))
        made.append(pixels if channels == 3 else np.repeat(pixels[:, :, None], channels, axis=2))
    return np.stack(made)
