"""Make text from outside, such as names of files, classes and runs, safe to show in each kind of output.

Names may contain anything: line breaks, terminal escapes, bytes that are not UTF-8, markup, formulas.
"""

import json
import re
from typing import Any

# A spreadsheet evaluates a cell that begins with one of these, including full-width characters.
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
# Punctuation that Markdown, or Markdown with formulas, interprets; _ only at the ends of words.
MARKDOWN = re.compile(r"[\\|`*~$\[\]#]|(?<![^\W_])_|_(?![^\W_])")


def line(text: object) -> str:
    """Return text as one line of valid Unicode, with escapes such as \\n and \\x1b in place of unprintable characters."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def lines(text: object) -> str:
    """Return text like `line`, but keep its line breaks and tabs: a message of several lines."""
    return "".join(part if part in ("\n", "\t") else line(part) for part in re.split(r"([\n\t])", str(text)))


def is_rate(name: str) -> bool:
    """Return whether a metric is a fraction that is shown in percent: test/accuracy, test/mean_accuracy, fewshot/shot5."""
    return re.search(r"(^|/)(accuracy|mean_accuracy|shot\d+)$", name) is not None


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def csv_cell(value: Any) -> Any:
    """Return a value for a cell of a CSV file: numbers as they are, and text that no spreadsheet evaluates."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = line(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", text, flags=re.ASCII | re.IGNORECASE) is not None


def markdown(text: object) -> str:
    """Return text for a heading, list or table cell in Markdown that is parsed neither as markup nor as HTML."""
    shown = MARKDOWN.sub(r"\\\g<0>", " ".join(line(text).split()))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def html_json(values: Any) -> str:
    """Return JSON for a <script> element, with single-line strings and <, > and & escaped."""
    text = json.dumps(_each_line(values), separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _each_line(values: Any) -> Any:
    if isinstance(values, str):
        return line(values)
    if isinstance(values, dict):
        return {line(key): _each_line(value) for key, value in values.items()}
    return [_each_line(value) for value in values] if isinstance(values, list | tuple) else values


def cut(text: object, most: int) -> str:
    """Return text like `line`, of at most this many characters."""
    text = line(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def picture(text: object) -> str:
    """Return text for a Matplotlib figure: $ begins no formula, and _ does not hide a label from the legend."""
    shown = line(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
