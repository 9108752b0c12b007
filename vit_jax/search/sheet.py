"""Write search results as one self-contained HTML contact sheet."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vit_jax.data.decode import decode
from vit_jax.data.files import read_file
from vit_jax.data.source import UnreadableImage
from vit_jax.explain.page import document, escape

SIDE = 160  # pixels of a thumbnail
MORE = """
.sheet { display: flex; flex-wrap: wrap; gap: 0.8em; padding: 0 } figure { margin: 0; width: 11em }
figcaption { font-size: 0.85em; overflow-wrap: anywhere } .gone { width: 10em; height: 10em; background: #ddd }
"""


def thumbnail(path: Path) -> str | None:
    """Return a small JPEG of an image file as a data URL; None if the file is no longer readable."""
    try:
        picture = Image.fromarray(decode(read_file(str(path))))
    except (UnreadableImage, OSError):
        return None
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def as_sheet(title: str, rows: Sequence[tuple[str, Sequence[tuple[Path, str]]]]) -> str:
    """Return the page: each row has a heading, and pictures with captions."""
    body = "".join(
        f'<h2>{escape(heading)}</h2><div class="sheet">{"".join(_figure(*item) for item in several)}</div>'
        for heading, several in rows
    )
    return document(title, body, MORE)


def _figure(path: Path, caption: str) -> str:
    url = thumbnail(path)
    gone = '<div class="gone">not readable any more</div>'
    picture = gone if url is None else f'<img alt="{escape(caption)}" src="{url}">'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
