"""What augmentation does to one picture: a table of functions of a picture and one value, with nothing drawn.

Pictures are Pillow's, of mode L or RGB, and so are the routines. `TONES` change colours in place; `MATRICES` move pixels.
"""

import math
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageFilter, ImageOps, ImageStat

Picture = Image.Image
Colour = tuple[int, int, int]
Matrix = tuple[float, float, float, float, float, float]

_ALL_VALUES = Image.frombytes("L", (256, 1), bytes(range(256)))


def apply(name: str, picture: Picture, value: float, fill: Colour, resample: Image.Resampling) -> Picture:
    """The operation `name` with its value: a factor, threshold, number of bits, degrees, share or number of pixels.

    Where pixels move, `resample` reads between them and `fill` is what comes into view; a grey picture takes its mean.
    """
    if name in TONES:
        return TONES[name](picture, value)
    matrix = MATRICES[name](value, *picture.size)
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample, fillcolor=_colour_of(picture, fill)
    )


def cutout(picture: Picture, reach: int, centre: tuple[int, int], fill: Colour) -> Picture:
    """Fills the square from `reach` before the centre (column, row) to `reach` after it, that one excluded."""
    column, row = centre
    changed = picture.copy()
    changed.paste(_colour_of(picture, fill), (column - reach, row - reach, column + reach, row + reach))
    return changed


def grayscale(picture: Picture) -> Picture:
    """Replaces every colour by its brightness (ITU-R 601-2)."""
    return picture.convert("L").convert(picture.mode)


def posterize(picture: Picture, bits: float) -> Picture:
    """Keeps the upper `bits` of the 8: all are the picture itself, none is black."""
    mask = 256 - 2 ** (8 - int(bits))
    return picture.point([value & mask for value in range(256)] * len(picture.getbands()))


def solarize_add(picture: Picture, addition: float, threshold: int = 128) -> Picture:
    """Brightens the values below the threshold."""
    table = [min(255, value + int(addition)) if value < threshold else value for value in range(256)]
    return picture.point(table * len(picture.getbands()))


def brightness(picture: Picture, factor: float) -> Picture:
    """Blends with black."""
    return _blend_with(picture, 0, factor)


def contrast(picture: Picture, factor: float) -> Picture:
    """Blends with the mean of the grey picture."""
    return _blend_with(picture, int(ImageStat.Stat(picture.convert("L")).mean[0] + 0.5), factor)


def contrast_from_size(picture: Picture, factor: float) -> Picture:
    """Blends with a grey that is the number of pixels / 256, at most 255: 196 at 224 x 224 pixels.

    The mean of the grey picture was meant; models were trained with this in AutoAugment's TensorFlow code.
    """
    return _blend_with(picture, min(255, picture.width * picture.height // 256), factor)


def _blend_with(picture: Picture, grey: int, factor: float) -> Picture:
    # Every value once, then by table: twice as fast as blending pictures, and the same.
    table = Image.blend(Image.new("L", _ALL_VALUES.size, grey), _ALL_VALUES, factor).tobytes()
    return picture.point(list(table) * len(picture.getbands()))


def shift_hue(picture: Picture, turn: float) -> Picture:
    """Turns the hue by a share of the circle, in whole steps of 1/255; grey pictures stay as they are."""
    if picture.mode == "L":
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(step + int(turn * 255)) % 256 for step in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert(picture.mode)


def gaussian_blur(picture: Picture, radius: float) -> Picture:
    """Blurs with a standard deviation of `radius` pixels, as three box filters approximate it."""
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

# (value, width, height) -> the place in the picture that each new pixel shows, from the upper left corner of the image.
MATRICES: dict[str, Callable[[float, int, int], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": lambda shear, width, height: (1, shear, 0, 0, 1, 0),
    "ShearY": lambda shear, width, height: (1, 0, 0, shear, 1, 0),
    # From the centre of the first pixel: where TensorFlow has its origin.
    "ShearXFromPixel": lambda shear, width, height: (1, shear, -shear / 2, 0, 1, 0),
    "ShearYFromPixel": lambda shear, width, height: (1, 0, 0, shear, 1, -shear / 2),
    "TranslateX": lambda pixels, width, height: (1, 0, pixels, 0, 1, 0),
    "TranslateY": lambda pixels, width, height: (1, 0, 0, 0, 1, pixels),
    "TranslateXShare": lambda share, width, height: (1, 0, share * width, 0, 1, 0),
    "TranslateYShare": lambda share, width, height: (1, 0, 0, 0, 1, share * height),
}
