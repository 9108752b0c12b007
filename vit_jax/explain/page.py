"""Write the results of `vit explain` as one self-contained HTML file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from vit_jax.printable import lines

STYLE = """
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; background: #fff }
img { max-width: 100%; display: block; margin: 0.7em 0 }
table { border-collapse: collapse } td, th { padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid #ddd }
pre { overflow-x: auto } .note { color: #666 }
"""


def as_page(
    title: str,
    facts: Sequence[Sequence[str]],
    sections: Sequence[tuple[str, str, Sequence[Path]]],
    notes: Sequence[str],
    text: str = "",
) -> str:
    """Return the page: a fact table with header, sections (title, explanation, PNG files), preformatted text, notes."""
    rows = [
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * len(facts)], facts, strict=False)
    ]
    parts = [f"<table>{''.join(rows)}</table>"]
    parts += [f"<pre>{escape(text)}</pre>"] if text else []
    for heading, explanation, figures in sections:
        parts.append(f"<h2>{escape(heading)}</h2><p>{escape(explanation)}</p>")
        parts += [f'<img alt="{escape(heading)}" src="data:image/png;base64,{encoded(path)}">' for path in figures]
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    return document(title, "".join(parts))


def document(title: str, body: str, style: str = "") -> str:
    """Return a whole page: a title, also used as its first heading, and the body; style: CSS rules added to STYLE."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def escape(text: str) -> str:
    """Escape any text for HTML."""
    return html.escape(lines(text))


def encoded(path: Path) -> str:
    """Return a file encoded in base64."""
    return base64.b64encode(path.read_bytes()).decode()
