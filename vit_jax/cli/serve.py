"""Serve a model: vit serve --model=REF [--index=DIR] [--port=8000] opens a page to drop photographs on, and a JSON API."""

import argparse
import errno
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from vit_jax.cli.command import Parser, number_flag, path_flag
from vit_jax.printable import line
from vit_jax.types import Between, Count, UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLES = """
vit serve --model=workdirs/photos
vit serve --model=workdirs/photos --index=photos_index --port=9000
vit serve --model=workdirs/photos --host=0.0.0.0 --allow_host=photos.example.org
"""


def main(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    parser = Parser(prog="vit serve", description=__doc__, examples=EXAMPLES)
    parser.add_argument("--model", required=True, metavar="REF", help="any model reference")
    parser.add_argument(
        "--index", type=path_flag, metavar="DIR", help="an index of vit search: show similar pictures too"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; default: only this machine")
    parser.add_argument(
        "--port",
        type=number_flag(Annotated[int, Between(0, 65535)]),
        default=8000,
        help="default 8000; 0 takes a free one",
    )
    parser.add_argument(
        "--token", help="token that clients beyond this machine must send; default: a new one, which is printed"
    )
    parser.add_argument(
        "--allow_host", action="append", default=[], metavar="NAME", help="a name under which clients reach the server"
    )
    parser.add_argument(
        "--queue", type=number_flag(Count), default=64, help="photographs processed at once; default 64"
    )
    parser.add_argument(
        "--max_megabytes",
        type=number_flag(Annotated[int, Between(1, 1024)]),
        default=20,
        help="size limit of a photograph; default 20",
    )
    parser.add_argument("--trust", action="store_true", help="import code from outside vit_jax that the model names")
    flags = parser.parse(argv)
    try:
        from vit_jax.serve import app  # noqa: F401
    except ImportError as error:
        if (error.name or "").startswith("vit_jax"):
            raise
        raise UserError(f'vit serve needs {error.name}; install it with `pip install -e ".[serve]"`.') from None
    with listen(flags.host, flags.port) as listening:
        return serve(flags, listening)


def serve(flags: argparse.Namespace, listening: socket.socket) -> int:
    """Load the model and serve it until Ctrl-C."""
    from vit_jax import inference
    from vit_jax.search.embed import Embedder
    from vit_jax.search.index import Index
    from vit_jax.search.nearest import Searcher
    from vit_jax.serve import app
    from vit_jax.serve.engine import Engine

    index = None if flags.index is None else Index.open(Path(flags.index))
    loaded = inference.load(flags.model, trust=flags.trust)
    for note in loaded.notes:
        print(f"note: {line(note)}", file=sys.stderr)
    if index is not None:
        index.check(Embedder(flags.model, loaded, index.about.feature).about)
    token = flags.token
    if flags.host not in LOOPBACK and token is None:
        token = secrets.token_urlsafe(24)
    limits = app.Limits(
        flags.queue, flags.max_megabytes * 2**20, hosts=("localhost", flags.host, *flags.allow_host), token=token
    )
    engine = Engine(flags.model, loaded, None if index is None else index.about.feature)
    # Only the name, to keep paths of this machine private.
    made = app.make_app(engine, limits, None if index is None else Searcher(index), Path(flags.model).name)
    host, port = listening.getsockname()[:2]
    shown = flags.host if ":" not in host else f"[{flags.host}]"
    print("compiling ...", file=sys.stderr, flush=True)
    address = f"http://{shown}:{port}/" + (f"#token={token}" if token else "")
    app.run(made, listening, f"serving {line(flags.model)} at {address}")
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket, bound before anything is compiled; raises UserError if that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)
    except (OSError, TypeError, ValueError) as error:  # the last two for invalid host names
        made.close()
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        remedy = "another program uses it; give another --port, or 0 for a free one" if taken else str(error)
        raise UserError(f"--host={line(host)} --port={port} cannot be listened on: {remedy}.") from None
    return made
