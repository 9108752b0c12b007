"""Apply deterministic augmentation operations: functions of a picture and one value.

Pictures are Pillow images of mode L or RGB. `TONES` change colours, `MATRICES` move pixels.
"""

import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageFilter, ImageOps, ImageStat

Picture = Image.Image
Colour = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]

_ALL_VALUES = Image.frombytes("L", (256, 1), bytes(range(256)))


def apply(name: str, picture: Picture, value: float, fill: Colour, resample: Image.Resampling) -> Picture:
    """Apply the operation `name` with a value: a factor, threshold, number of bits or pixels, degrees or fraction.

    Operations that move pixels interpolate with `resample` and fill with `fill`, or with its mean in a grey picture.
    """
    if name in TONES:
        return TONES[name](picture, value)
    matrix = MATRICES[name](value, *picture.size)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=_colour_of(picture, fill)
    )


def cutout(picture: Picture, reach: int, centre: tuple[int, int], fill: Colour) -> Picture:
    """Fill the square from centre - reach to centre + reach, exclusive; the centre is (column, row)."""
    column, row = centre
    changed = picture.copy()
    changed.paste(_colour_of(picture, fill), (column - reach, row - reach, column + reach, row + reach))
    return changed


def grayscale(picture: Picture) -> Picture:
    """Replace every colour by its luma (ITU-R 601-2)."""
    return picture.convert("L").convert(picture.mode)


def posterize(picture: Picture, bits: float) -> Picture:
    """Keep the upper `bits` of 8; 0 gives black."""
    mask = 256 - 2 ** (8 - int(bits))
    return picture.point([value & mask for value in range(256)] * len(picture.getbands()))


def solarize_add(picture: Picture, addition: float, threshold: int = 128) -> Picture:
    """Add to values below the threshold, up to 255."""
    table = [min(255, value + int(addition)) if value < threshold else value for value in range(256)]
    return picture.point(table * len(picture.getbands()))


def brightness(picture: Picture, factor: float) -> Picture:
    """Blend with black."""
    return _blend_with(picture, 0, factor)


def contrast(picture: Picture, factor: float) -> Picture:
    """Blend with the mean of the grey picture."""
    return _blend_with(picture, int(ImageStat.Stat(picture.convert("L")).mean[0] + 0.5), factor)


def contrast_from_size(picture: Picture, factor: float) -> Picture:
    """Blend with a grey level equal to the number of pixels / 256, at most 255: 196 at 224 x 224 pixels.

    This is the behaviour of AutoAugment's TensorFlow code, used to train models; it intended the mean of the grey
    picture.
    """
    return _blend_with(picture, min(255, picture.width * picture.height // 256), factor)


def _blend_with(picture: Picture, grey: int, factor: float) -> Picture:
    # A table of all 256 values is twice as fast as blending pictures.
    table = Image.blend(Image.new("L", _ALL_VALUES.size, grey), _ALL_VALUES, factor).tobytes()
    return picture.point(list(table) * len(picture.getbands()))


def shift_hue(picture: Picture, turn: float) -> Picture:
    """Shift the hue by a fraction of the circle, in steps of 1/255; grey pictures are unchanged."""
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(step + int(turn * 255)) % 256 for step in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert(picture.mode)


def gaussian_blur(picture: Picture, radius: float) -> Picture:
    """Blur with a standard deviation of `radius` pixels, approximated by three box filters."""
    return picture.filter(ImageFilter.GaussianBlur(radius))


def _colour_of(picture: Picture, colour: Colour) -> Colour | int:
    return colour if picture.mode == "RGB" else round(sum(colour) / 3)


def _rotation(degrees: float, width: int, height: int) -> Matrix:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


TONES: dict[str, Callable[[Picture, float], Picture]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Invert": lambda picture, _: ImageOps.invert(picture),
    "Posterize": posterize,
    "Solarize": lambda picture, threshold: ImageOps.solarize(picture, int(threshold)),
    "SolarizeAdd": solarize_add,
    "Color": lambda picture, factor: ImageEnhance.Color(picture).enhance(factor),
    "Contrast": contrast,
    "ContrastFromSize": contrast_from_size,
    "Brightness": brightness,
    "Sharpness": lambda picture, factor: ImageEnhance.Sharpness(picture).enhance(factor),
    "Hue": shift_hue,
    "GaussianBlur": gaussian_blur,
}

# (value, width, height) -> affine map from output to input positions, with the origin in the upper left corner.
MATRICES: dict[str, Callable[[float, int, int], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": lambda shear, width, height: (1, shear, 0, 0, 1, 0),
    "ShearY": lambda shear, width, height: (1, 0, 0, shear, 1, 0),
    # TensorFlow's origin is the centre of the first pixel.
    "ShearXFromPixel": lambda shear, width, height: (1, shear, -shear / 2, 0, 1, 0),
    "ShearYFromPixel": lambda shear, width, height: (1, 0, 0, shear, 1, -shear / 2),
    "TranslateX": lambda pixels, width, height: (1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda pixels, width, height: (1, 0, 0, 0, 1, pixels),
    "TranslateXShare": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "TranslateYShare": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
}
