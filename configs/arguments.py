"""The argument of a recipe: the text after the colon in --config=configs/RECIPE.py:KEY=VALUE,KEY=VALUE. Not a recipe itself."""


def parse(arg: str, **known: tuple | str | int | float) -> dict:
    """The values of "KEY=VALUE,KEY=VALUE", with those of `known` where none is given.

    A tuple in `known` holds the words to choose from, the default first; for a number, a number is expected. A value may be
    in quotes, 'sweep/lr=0.1,width=16', and a path needs them only where it contains a comma and one of the keys. Raises
    ValueError for an unknown key and for what is not expected of a known one.
    """
    given: dict[str, str] = {}
    key = ""
    for part in _split(arg) if arg else ():
        name, equals, value = part.partition("=")
        if name not in known and _goes_on(given.get(key, ""), known.get(key, 0), equals):
            given[key] += f",{part}"
            continue
        if name not in known or not equals or not value:
            raise ValueError(f"found {part!r}, expected KEY=VALUE with a key of {', '.join(known)}")
        key, given[name] = name, value
    given = {key: _unquoted(value) for key, value in given.items()}
    return {key: _value(key, given.get(key), default) for key, default in known.items()}


def _split(arg: str) -> list[str]:
    """The parts between commas outside quotes. A quote begins a value; elsewhere it is a character like others."""
    parts, quote = [""], ""
    for character in arg:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and parts[-1].endswith(("=", ":")):
            quote = character
        if character == "," and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if quote:
        raise ValueError(f"found {arg!r}, expected a second {quote} after the value that begins with one")
    return parts


def _unquoted(value: str) -> str:
    """The value without quotes, which may follow folder: or tfds:."""
    kind, colon, place = value.partition(":") if value[:1] not in "'\"" else ("", "", value)
    if not colon:
        kind, place = "", value
    is_quoted = len(place) > 1 and place[0] == place[-1] and place[0] in "'\""
    return kind + colon + place[1:-1] if is_quoted else value


def _goes_on(value: str, default: tuple | str | int | float, equals: str) -> bool:
    """Whether a path goes on after a comma: that of a folder or of a sweep's run, such as lr=0.1,width=16."""
    return isinstance(default, str) and bool(value) and (value.startswith("folder:") or "=" in value or not equals)


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
