"""What a level from 0 to 10 means to each operation of a policy: one table per code base, as they differ.

A table maps the name of an operation to the operation of `pixels` that it is and to the value it takes at a level.
Where an operation goes either way, the caller draws the sign (1 or -1).
"""

from collections.abc import Callable, Mapping

Level = Callable[[float, int], float]
Levels = Mapping[str, tuple[str, Level]]


def _enhance(level: float, sign: int) -> float:
    """0.1 takes nearly all colour, contrast, light or sharpness away, 1 changes nothing, 1.9 is the most."""
    return level / 10 * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int) -> float:
    """Away from 1, either way, as the level rises."""
    return max(0.1, 1 + sign * level / 10 * 0.9)


def _signed(most: float) -> Level:
    return lambda level, sign: sign * level / 10 * most


def _whole(most: float, start: float = 0.0) -> Level:
    return lambda level, sign: start + level / 10 * most // 1


def _falling(most: float) -> Level:
    return lambda level, sign: most - level / 10 * most // 1


def _levels(enhance: Level, **others: Level) -> dict[str, tuple[str, Level]]:
    """The operations that all have, and others."""
    levels = {name: (name, enhance) for name in ("Color", "Contrast", "Brightness", "Sharpness")}
    levels |= {name: (name, lambda level, sign: 0.0) for name in ("AutoContrast", "Equalize", "Invert")}
    levels |= {name: (name, _signed(0.3)) for name in ("ShearX", "ShearY")}
    levels["Rotate"] = "Rotate", _signed(30.0)
    return levels | {name: (name, level) for name, level in others.items()}


def tensorflow(translate: float) -> Levels:
    """As AutoAugment's TensorFlow code reads levels, above 10 too; big_vision's randaug is that code.

    `translate` is the distance in pixels at level 10. Two overflows of that code are kept, since models were trained
    with them: a threshold of 256 wraps to 0, so that Solarize inverts at levels 10 and 20 (google-research/big_vision
    issue 110), and keeping no bits keeps one, as a shift by 8 is one by 7.
    """
    levels = _levels(
        _enhance,
        Posterize=lambda level, sign: min(8.0, max(1.0, level / 10 * 4 // 1)),
        Solarize=lambda level, sign: level / 10 * 256 // 1 % 256,
        SolarizeAdd=_whole(110.0),
        TranslateX=_signed(translate),
        TranslateY=_signed(translate),
        Cutout=_whole(40.0),
    )
    renamed = {"Contrast": "ContrastFromSize", "ShearX": "ShearXFromPixel", "ShearY": "ShearYFromPixel"}
    return {name: (renamed.get(name, name), level) for name, (_, level) in levels.items()}


def timm(increasing: bool) -> Levels:
    """As timm's RandAugment reads levels from 0 to 10; if `increasing`, a higher level never changes an image less."""
    posterize, solarize = (_falling(4.0), _falling(256.0)) if increasing else (_whole(4.0), _whole(256.0))
    levels = _levels(
        _enhance_increasing if increasing else _enhance,
        Posterize=posterize,
        Solarize=solarize,
        SolarizeAdd=_whole(110.0),
    )
    return levels | {f"Translate{axis}": (f"Translate{axis}Share", _signed(0.45)) for axis in "XY"}


def original() -> Levels:
    """As timm reads the ImageNet policy of AutoAugment's paper: at least four bits are kept."""
    return _levels(_enhance, Posterize=_whole(4.0, 4.0), Solarize=_whole(256.0))


def cifar10() -> Levels:
    """As AutoAugment's code for CIFAR-10 reads levels, for images of 32 x 32 pixels: shifts of up to 10."""
    return _levels(
        _enhance,
        Posterize=_falling(4.0),
        Solarize=_falling(256.0),
        TranslateX=_signed(10.0),
        TranslateY=_signed(10.0),
    )
