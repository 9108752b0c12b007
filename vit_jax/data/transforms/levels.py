"""Define the levels 0 to 10 of each operation of a policy, in one table per code base.

A table maps the name of an operation to an operation of `pixels` and the function from level to value. The caller draws
the sign (1 or -1) of operations with two directions.
"""

from collections.abc import Callable, Mapping

Level = Callable[[float, int], float]
Levels = Mapping[str, tuple[str, Level]]


def _enhance(level: float, sign: int) -> float:
    """Return a factor from 0.1, which removes most colour, contrast, brightness or sharpness, to 1.9."""
    return level / 10 * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    """Return a factor; its distance from 1 grows with the level."""
    return max(0.1, 1 + sign * level / 10 * 0.9)


def _signed(maximum: float) -> Level:
    return lambda level, sign: sign * level / 10 * maximum


def _rising(maximum: float, start: float = 0.0) -> Level:
    return lambda level, sign: start + level / 10 * maximum // 1


def _falling(maximum: float) -> Level:
    return lambda level, sign: maximum - level / 10 * maximum // 1


def _levels(enhance: Level, **others: Level) -> dict[str, tuple[str, Level]]:
    """Return the operations common to all code bases, and the given ones."""
    levels = {name: (name, enhance) for name in ("Color", "Contrast", "Brightness", "Sharpness")}
    levels |= {name: (name, lambda level, sign: 0.0) for name in ("AutoContrast", "Equalize", "Invert")}
    levels |= {name: (name, _signed(0.3)) for name in ("ShearX", "ShearY")}
    levels["Rotate"] = "Rotate", _signed(30.0)
    return levels | {name: (name, level) for name, level in others.items()}


def tensorflow(translate: float, scale: float = 1.0) -> Levels:
    """Return the levels of AutoAugment's TensorFlow code, including above 10; big_vision's randaug uses that code.

    `translate` is the distance in pixels at level 10; `scale` multiplies all distances. Two overflows in that code are
    reproduced because models were trained with them: a threshold of 256 wraps to 0, so that Solarize inverts at levels
    10 and 20 (google-research/big_vision issue 110), and Posterize keeps at least one bit, as a shift by 8 becomes one
    by 7.
    """
    levels = _levels(
        _enhance,
        Posterize=lambda level, sign: min(8.0, max(1.0, level / 10 * 4 // 1)),
        Solarize=lambda level, sign: level / 10 * 256 // 1 % 256,
        SolarizeAdd=_rising(110.0),
        TranslateX=_signed(scale * translate),
        TranslateY=_signed(scale * translate),
        Cutout=lambda level, sign: scale * _rising(40.0)(level, sign),
    )
    renamed = {"Contrast": "ContrastFromSize", "ShearX": "ShearXFromPixel", "ShearY": "ShearYFromPixel"}
    return {name: (renamed.get(name, name), level) for name, (_, level) in levels.items()}


def timm(increasing: bool) -> Levels:
    """Return the levels of timm's RandAugment; if `increasing`, a higher level never changes an image less."""
    posterize, solarize = (_falling(4.0), _falling(256.0)) if increasing else (_rising(4.0), _rising(256.0))
    levels = _levels(
        _enhance_increasing if increasing else _enhance,
        Posterize=posterize,
        Solarize=solarize,
        SolarizeAdd=_rising(110.0),
    )
    return levels | {f"Translate{axis}": (f"Translate{axis}Share", _signed(0.45)) for axis in "XY"}


def original() -> Levels:
    """Return timm's levels for the ImageNet policy of the AutoAugment paper: Posterize keeps at least four bits."""
    return _levels(_enhance, Posterize=_rising(4.0, 4.0), Solarize=_rising(256.0))


def cifar10() -> Levels:
    """Return the levels of AutoAugment's code for CIFAR-10, 32 x 32 pixels, with shifts of up to 10 pixels."""
    return _levels(
        _enhance,
        Posterize=_falling(4.0),
        Solarize=_falling(256.0),
        TranslateX=_signed(10.0),
        TranslateY=_signed(10.0),
    )
