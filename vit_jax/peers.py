"""End all processes of a run together: tell every process why one of them ends, before a collective can hang.

The first process listens, and every other process keeps a connection to it. A closed connection means that a process
was killed: the system closes it at once, and TCP keepalive detects a lost machine within SILENCE seconds.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SILENCE = 20
LEAVE_SECONDS = 5.0  # for the other processes to read why the first one ends


class Peers:
    """Connections between this process, `index`, and the other processes of a run; the first process has index 0."""

    def __init__(self, index: int, count: int):
        self.index, self.count = index, count
        self._sockets: dict[int, socket.socket] = {}
        self._left_with: int | None = None  # the exit code, once this process is leaving
        self._lock = threading.Lock()

    def listen(self) -> int:
        """Accept connections from the other processes in a thread; return the port."""
        server = socket.create_server(("", 0), backlog=self.count)
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        return server.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        """Connect to the first process."""
        connection = socket.create_connection((host, port), timeout=60)
        connection.settimeout(None)
        connection.sendall(f"{self.index}\n".encode())
        self._follow(0, connection)

    def _accept(self, server: socket.socket) -> None:
        for _ in range(1, self.count):
            connection, _ = server.accept()
            index = int(connection.makefile("rb").readline())
            self._follow(index, connection)

    def _follow(self, index: int, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", SILENCE // 2), ("TCP_KEEPINTVL", SILENCE // 4), ("TCP_KEEPCNT", 2)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._sockets[index] = connection
        threading.Thread(target=self._read, args=(index, connection), daemon=True).start()

    def _read(self, index: int, connection: socket.socket) -> None:
        """Wait for the message of a process that leaves; without a message, the process was killed."""
        message: dict[str, Any] = {"process": index, "code": 1, "reason": "was killed, or its machine was lost"}
        with contextlib.suppress(OSError, ValueError):
            line = connection.makefile("rb").readline()
            if line:
                message = json.loads(line)
        if message["code"] == 0:
            return
        with self._lock:
            left_with = self._left_with
            if left_with is None:
                self._left_with = message["code"]
        if left_with == 0:  # JAX would wait for the process that has ended
            self._exit(0)
        if left_with is not None:
            return
        print(
            f"error: process {message['process']} of {self.count} {message['reason']}, so this one ends too. Checkpoints are safe; "
            "to resume, run the same command in all processes.",
            file=sys.stderr,
            flush=True,
        )
        self._tell(message)
        self._exit(message["code"])

    def _exit(self, code: int) -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in list(self._sockets.values()):
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")
        if self.index == 0 and message["code"]:
            time.sleep(1.0 if self._sockets else LEAVE_SECONDS)

    def leave(self, code: int, reason: str) -> None:
        """Tell the other processes that this one ends and, if `code` is not 0, why they have to end too."""
        with self._lock:
            if self._left_with is not None:
                threading.Event().wait()  # another thread is ending the process
            self._left_with = code
        self._tell({"process": self.index, "code": code, "reason": reason})


def forward(host: str, port: int) -> int:
    """Forward a local port to a port of another machine; return the local port.

    XLA aborts with a C++ stack trace when its connection to the first process closes; a connection to the local port
    stays open.
    """
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection((host, port), timeout=10)
            except OSError:
                near.close()  # the first process has not started yet: XLA tries again
                continue
            far.settimeout(None)
            _start(_copy, near, far, True)
            _start(_copy, far, near, False)

    _start(accept)
    return server.getsockname()[1]


def _start(target: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=target, args=args, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    if closes:
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
