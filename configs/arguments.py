"""Parse a recipe's argument, after the colon in --config=configs/RECIPE.py:KEY=VALUE,KEY=VALUE. Not a recipe itself."""


def parse(arg: str, **known: tuple | str | int | float) -> dict:
    """Return the values in "KEY=VALUE,KEY=VALUE", with those in `known` as defaults.

    A tuple in `known` contains the allowed words, the default first; for a number, a number is expected. A value may be
    in quotes, 'sweep/lr=0.1,width=16', which a path only needs if it contains a comma and one of the keys. Raises
    ValueError for an unknown key and for an unexpected value of a known key.
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
    """Return the parts between commas outside quotes. Only a quote at the start of a value is special."""
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
    """Return the value without its quotes, which may follow folder: or tfds:."""
    kind, colon, place = value.partition(":") if value[:1] not in "'\"" else ("", "", value)
    if not colon:
        kind, place = "", value
    is_quoted = len(place) > 1 and place[0] == place[-1] and place[0] in "'\""
    return kind + colon + place[1:-1] if is_quoted else value


def _goes_on(value: str, default: tuple | str | int | float, equals: str) -> bool:
    """Return whether a path continues after a comma: a folder's, or a sweep run's, such as lr=0.1,width=16."""
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
