"""The argument of a recipe: the text after the colon in --config=configs/RECIPE.py:KEY=VALUE,KEY=VALUE. Not a recipe itself."""


def parse(arg: str, **known: tuple | str | int | float) -> dict:
    """The values of "KEY=VALUE,KEY=VALUE", with those of `known` where none is given.

    A tuple in `known` holds the words to choose from, the default first; for a number, a number is expected. The path of a
    folder may have commas. Raises ValueError for an unknown key and for what is not expected of a known one.
    """
    given: dict[str, str] = {}
    key = ""
    for part in arg.split(",") if arg else ():
        if given.get(key, "").startswith("folder:") and part.partition("=")[0] not in known:
            given[key] += f",{part}"
            continue
        key, equals, value = part.partition("=")
        if key not in known or not equals or not value:
            raise ValueError(f"found {part!r}, expected KEY=VALUE with a key of {', '.join(known)}")
        given[key] = value
    return {key: _value(key, given.get(key), default) for key, default in known.items()}


def _value(key: str, text: str | None, default: tuple | str | int | float) -> str | int | float:
    if isinstance(default, tuple):
        if text is not None and text not in default:
            raise ValueError(f"found {key}={text}, expected {' or '.join(default)}")
        return default[0] if text is None else text
    if text is None:
        return default
    try:
        return type(default)(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"found {key}={text}, expected {kind}") from None
