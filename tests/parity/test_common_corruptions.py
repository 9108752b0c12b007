"""Corruptions compared with other implementations.

They were also compared manually, with the same random numbers, with the code of ImageNet-C and CIFAR-10-C: every kind is
within 0.1 grey levels on average. That code's motion blur and snow need ImageMagick; compared with the package
imagecorruptions 1.1.2, which does not, motion_blur is within 0.01 levels and snow, whose flakes it rounds, within 0.4.
"""

import colorsys

import numpy as np
import pytest
from scipy import ndimage

from tests import peers
from vit_jax.evals.corruptions import blurs
from vit_jax.evals.corruptions.kinds import KINDS, _smoothing_matrix, corrupt

LEVEL = (1 + 1e-9) / 255
IMAGE = np.random.default_rng(0).integers(0, 256, (65, 72, 3), np.uint8)


def corrupted(kind, severity):
    return corrupt(IMAGE, kind, severity, np.random.default_rng(0)) / 255


@pytest.mark.parametrize("severity", [1, 5])
def test_defocus_equals_torchs_convolution(agrees, severity):
    kernel = peers.torch.from_numpy(blurs.disk(*KINDS["defocus_blur"][1][severity - 1]))
    planes = peers.torch.from_numpy(IMAGE / 255).permute(2, 0, 1)[:, None]
    reach = len(kernel) // 2
    wide = peers.torch.nn.functional.pad(planes, (reach,) * 4, mode="reflect")
    theirs = peers.torch.nn.functional.conv2d(wide, kernel[None, None])[:, 0].permute(1, 2, 0).numpy().clip(0, 1)
    agrees("corruption: defocus_blur", "torch's convolution", corrupted("defocus_blur", severity), theirs, LEVEL)


@pytest.mark.parametrize("severity", [1, 5])
def test_brightness_equals_colorsys(agrees, severity):
    amount = KINDS["brightness"][1][severity - 1]

    def brighter(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        return colorsys.hsv_to_rgb(hue, saturation, min(value + amount, 1))

    theirs = np.apply_along_axis(brighter, 2, IMAGE / 255)
    agrees("corruption: brightness", "Python's colorsys", corrupted("brightness", severity), theirs, LEVEL)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.13, 1.3, 2.5, 4.5])
def test_magnification_equals_scipys_zoom(agrees, factor):
    parts = [slice((side - (seen := int(np.ceil(side / factor)))) // 2, (side - seen) // 2 + seen) for side in (65, 72)]
    theirs = ndimage.zoom(IMAGE[tuple(parts)] / 255, (factor, factor, 1), order=1)
    top, left = (theirs.shape[0] - 65) // 2, (theirs.shape[1] - 72) // 2
    theirs = theirs[top : top + 65, left : left + 72]
    agrees("corruption: zoom_blur", "scipy's zoom", blurs.magnify(IMAGE / 255, factor), theirs, 1e-9)


@pytest.mark.parametrize("sigma", [0.5, 7.0, 60.0])
def test_elastic_smoothing_equals_scipys_gaussian_filter(agrees, sigma):
    plane = IMAGE[:, :, 0] / 255
    ours = _smoothing_matrix(65, sigma) @ plane @ _smoothing_matrix(72, sigma).T
    theirs = ndimage.gaussian_filter(plane, sigma, mode="reflect", truncate=3)
    agrees("corruption: elastic_transform", "scipy's gaussian_filter", ours, theirs, 1e-9)
