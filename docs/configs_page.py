"""Write docs/reference/configs.md from vit_jax/config/schema.py: python docs/configs_page.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections.config_dict import FieldReference

from vit_jax.config import schema

PAGE = Path(__file__).parent / "reference" / "configs.md"
HEAD = """# Configs

Every top-level key with its reason, as in `vit_jax/config/schema.py`; `configs/common.py` returns a config of the defaults.
`--config.KEY=VALUE` sets any of them, and any argument of a [part](parts.md); None means unset. A workdir accepts other values
of the keys marked "yes" when its run resumes.

| key | what | may change |
| --- | --- | --- |
"""


def defaults(name: str, value: Any) -> Iterator[str]:
    """Yield a line for each key inside a default, one level deep; a placeholder is None."""
    for key, inner in value.items() if isinstance(value, dict) and value else [("", value)]:
        shown = None if isinstance(inner, FieldReference) else inner
        yield f"    {name}{'.' if key else ''}{key} = {shown!r}\n"


def page() -> str:
    """Return the text of the page."""
    rows = []
    for name, key in schema.KEYS.items():
        reason = key.reason.replace("|", "\\|")
        rows.append(f"| `{name}` | {reason} | {'yes' if key.may_change else ''} |\n")
    shown = [line for name, key in schema.KEYS.items() for line in defaults(name, key.default)]
    return HEAD + "".join(rows) + "\n## Defaults\n\n" + "".join(shown)


if __name__ == "__main__":
    PAGE.write_text(page())
