"""Run the server: a page, a JSON API, and the requests it refuses."""

import asyncio
import contextlib
import dataclasses
import hmac
import importlib.resources
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from vit_jax.data.source import UnreadableImage
from vit_jax.printable import line
from vit_jax.search.nearest import Searcher
from vit_jax.serve.answers import as_answer, read_photograph
from vit_jax.serve.engine import MOST_TEXTS, Engine, Slots
from vit_jax.serve.openapi import description
from vit_jax.types import UserError

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
RETRY_AFTER = "1"
MOST_LETTERS = 200  # of a label to compare a photograph with
HEAD_SECONDS = 10.0  # in which a client must send the head of its first request
Body = AsyncGenerator[bytes, None]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of the server.

    queue: photographs being processed or waiting. bytes: of a photograph. pixels: of a photograph, checked before
    decoding. seconds: to receive a photograph, and again to answer. hosts: names allowed in the Host header besides
    addresses. token: None requires no token.
    """

    queue: int = 64
    bytes: int = 20 * 2**20
    pixels: int = 40_000_000
    seconds: float = 20.0
    hosts: tuple[str, ...] = ("localhost",)
    token: str | None = None


def make_app(engine: Engine, limits: Limits, searcher: Searcher | None = None, name: str = "") -> ASGIApp:
    """Return the application, which starts and stops the engine."""
    api = Api(engine, limits, searcher, name)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()
        for pool in (api.decoders, api.answerers):
            pool.shutdown(wait=False, cancel_futures=True)

    routes = [Route(path, api.page) for path in FILES]
    routes += [
        Route("/healthz", api.health),
        Route("/openapi.json", api.openapi),
        Route("/api/info", api.info),
        Route("/api/predict", api.predict, methods=["POST"]),
    ]
    handlers: Any = {HTTPException: refused, Exception: failed}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    return Guard(app, limits)


class Guard:
    """Refuses requests for other hosts, from other sites or without the token, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        reason = self._refusal(Request(scope))
        if reason is None:
            await self._app(scope, receive, with_headers)
            return
        status, text = reason
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        await JSONResponse({"error": text}, status, headers)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> tuple[int, str] | None:
        host = request.headers.get("host", "")
        if not self._is_known(host):
            return 403, "The Host header names another machine; start the server with --allow_host=NAME."
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "Another site may not ask this server."
        if self._limits.token is None or request.url.path in (*FILES, "/healthz"):
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._limits.token.encode()):
            return 401, "Send the token of the server as Authorization: Bearer TOKEN."
        return None

    def _is_known(self, host: str) -> bool:
        """Return whether a Host is an address, which no other site can claim, or one of the names."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._limits.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._limits.token is not None or address.is_loopback


class Api:
    """Handles the requests of the API."""

    def __init__(self, engine: Engine, limits: Limits, searcher: Searcher | None, name: str):
        self._engine, self._limits, self._searcher, self._name = engine, limits, searcher, name
        self._uploads, self._slots = Slots(4 * limits.queue), Slots(limits.queue)
        # Apart, so that an answer does not wait for the photographs that came after it.
        self.decoders, self.answerers = ThreadPoolExecutor(4, "decoder"), ThreadPoolExecutor(2, "answerer")
        folder = importlib.resources.files("vit_jax.serve")
        self._files = {path: (folder.joinpath(file).read_bytes(), kind) for path, (file, kind) in FILES.items()}

    async def page(self, request: Request) -> Response:
        """Return the page or one of its files."""
        data, kind = self._files[request.url.path]
        return Response(data, media_type=kind)

    async def health(self, request: Request) -> Response:
        """Return whether the server is up, and how many photographs are being processed."""
        return JSONResponse({"status": "ok", "at_work": self._slots.taken, "queue": self._slots.most})

    async def openapi(self, request: Request) -> Response:
        """Return the description of the API."""
        return JSONResponse(description(self._limits.token is not None))

    async def info(self, request: Request) -> Response:
        """Return the model's facts shown on the page."""
        loaded = self._engine.loaded
        return JSONResponse({
            "model": self._name,
            "image_shape": loaded.image_shape,
            "classes": len(loaded.class_names),
            "attention": self._engine.has_attention,
            "texts": MOST_TEXTS if self._engine.compares_texts else 0,
            "index": 0 if self._searcher is None else len(self._searcher.index.names),
            "max_bytes": self._limits.bytes,
        })  # fmt: skip

    async def predict(self, request: Request) -> Response:
        """Answer a photograph, or explain why it is refused."""
        options = {name: number(request, name, *range_) for name, range_ in
                   {"top": (1, 100, 5), "attention": (0, 1, 0), "neighbours": (0, 50, 0)}.items()}  # fmt: skip
        texts = texts_of(request, self._engine)
        async with slot(self._uploads):
            data = await self._photograph(request)
        async with slot(self._slots):
            try:
                async with asyncio.timeout(self._limits.seconds):
                    return JSONResponse(await self._answer(data, options, texts))
            except TimeoutError:
                raise busy() from None
            except UnreadableImage as error:
                raise HTTPException(422, f"The photograph cannot be read: {error}.") from None

    async def _answer(self, data: bytes, options: dict[str, int], texts: tuple[str, ...]) -> dict[str, Any]:
        run, engine = asyncio.get_running_loop().run_in_executor, self._engine
        image = await run(self.decoders, read_photograph, data, engine.loaded, self._limits.pixels)
        outputs = await engine.predict(image, bool(options["attention"]))
        grid = engine.grid if "patches" in outputs else None
        rest = (bool(options["attention"]), grid, options["top"], self._searcher, options["neighbours"])
        answer = await run(self.answerers, as_answer, engine.loaded, outputs, image, *rest)
        if texts:
            try:
                probs = await run(self.answerers, engine.match, outputs, texts)
            except UserError as error:
                raise HTTPException(400, str(error)) from None
            answer["texts"] = [
                {"label": line(text), "probability": round(float(p), 6)} for text, p in zip(texts, probs, strict=True)
            ]
        return answer

    async def _photograph(self, request: Request) -> bytes:
        """Return the photograph of a request: the whole body, or a part of a form."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in ("application/octet-stream", "multipart/form-data"):
            raise HTTPException(
                415, "Send the bytes of a photograph as image/jpeg or the like, or a form with the part `image`."
            )
        length = request.headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length[:20]) > 2 * self._limits.bytes:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for part in request.stream():
                    size += len(part)
                    # Up to twice the limit is read and dropped, because a client that is still sending would not see
                    # the answer.
                    if size > 2 * self._limits.bytes:
                        raise self._too_large()
                    if size <= self._limits.bytes:
                        parts.append(part)
        except TimeoutError:
            raise HTTPException(408, "The photograph came too slowly.", {"connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(400, "The client left.") from None
        if size > self._limits.bytes:
            raise self._too_large()
        data = b"".join(parts)
        return data if kind != "multipart/form-data" else await part_of_form(request, data)

    def _too_large(self) -> HTTPException:
        text = f"The photograph has more than {self._limits.bytes:,} bytes."
        return HTTPException(413, text, {"connection": "close"})


async def part_of_form(request: Request, data: bytes) -> bytes:
    """Return the file in the part `image` of a form."""

    async def once() -> Body:
        yield data
        yield b""

    try:
        async with contextlib.AsyncExitStack() as stack:
            form = await MultiPartParser(request.headers, once(), max_files=1, max_fields=8).parse()
            stack.push_async_callback(form.close)
            found = form.get("image")
            if found is None or isinstance(found, str):
                raise HTTPException(400, "The form has no file as its part `image`.")
            return await found.read()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        raise HTTPException(400, f"The form cannot be read ({type(error).__name__}).") from None


def number(request: Request, name: str, least: int, most: int, default: int) -> int:
    """Return an integer from the query string."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and least <= int(text) <= most):
        raise HTTPException(400, f"{name} is not a whole number from {least} to {most}.")
    return int(text)


def texts_of(request: Request, engine: Engine) -> tuple[str, ...]:
    """Return the labels of the query string to compare a photograph with, each once."""
    texts = tuple(dict.fromkeys(text.strip() for text in request.query_params.getlist("text") if text.strip()))
    if texts and not engine.compares_texts:
        raise HTTPException(400, "The model compares no texts.")
    if len(texts) > MOST_TEXTS or any(len(text) > MOST_LETTERS for text in texts):
        raise HTTPException(400, f"Give at most {MOST_TEXTS} texts of at most {MOST_LETTERS} letters.")
    return texts


@contextlib.asynccontextmanager
async def slot(slots: Slots) -> AsyncIterator[None]:
    """Take a slot, or raise the answer that the queue is full."""
    if not slots.take():
        raise busy()
    try:
        yield
    finally:
        slots.free()


def busy() -> HTTPException:
    """Return the answer for a full queue."""
    return HTTPException(503, "The queue is full; try again in a moment.", {"retry-after": RETRY_AFTER})


async def refused(request: Request, error: HTTPException) -> Response:
    """Return a refusal as JSON."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def failed(request: Request, error: Exception) -> Response:
    """Return a server error without its details, which may contain paths."""
    logging.error("A request failed.", exc_info=error)
    return JSONResponse({"error": "The server failed; its log says why."}, 500)


class Protocol(H11Protocol):
    """Closes connections that send no request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_silent)

    def _close_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Announced(Server):
    """A server that prints its address once it accepts requests."""

    def __init__(self, config: Config, text: str):
        super().__init__(config)
        self._text = text

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print(self._text, flush=True)


def run(app: ASGIApp, listening: socket.socket, text: str) -> None:
    """Serve an application on a socket until Ctrl-C, and print `text` once it accepts requests."""
    config = Config(
        app, http=Protocol, lifespan="on", log_level="warning", access_log=False, server_header=False, ws="none",
        timeout_keep_alive=5, timeout_graceful_shutdown=5,
    )  # fmt: skip
    Announced(config, text).run(sockets=[listening])
