"""Headless Chromium, controlled through two pipes with the DevTools protocol, with real mouse and keyboard events."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Browser:
    """A tab; `errors` are those of its console, scripts and network, `requests` are the URLs that it requested."""

    def __init__(self, profile: Path, width: int = 1400, height: int = 1000, dark: bool = False):
        here, its_output = os.pipe()
        its_input, self._out = os.pipe()
        self._in, self._buffer, self._count = here, b"", 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        flags += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "about:blank"]
        # The browser reads from file descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{its_input} 4>&{its_output}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(CHROMIUM), *flags],
            pass_fds=(its_input, its_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_input)
        os.close(its_output)
        self._session: str | None = None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method: str, seconds: float = 60, **parameters: Any) -> dict[str, Any]:
        """Return the answer to a command."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        deadline = time.monotonic() + seconds
        while True:
            answer = self._read(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has gone"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        kind, event = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.errors.append(str(event["exceptionDetails"]))
        elif kind == "Log.entryAdded" and event["entry"]["level"] in ("warning", "error"):
            self.errors.append(str(event["entry"]))
        elif kind == "Runtime.consoleAPICalled":
            self.errors.append(str(event["args"]))
        elif kind == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        return message

    def open(self, page: Path | str) -> float:
        """Open a page, a file or a URL, and return the seconds until its script has run and it is drawn."""
        begin = time.monotonic()
        self.run("window.left = true")
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        while self.run("window.left || document.readyState !== 'complete'"):
            time.sleep(0.02)
        self.drawn()
        return time.monotonic() - begin

    def drawn(self) -> None:
        """Block until changes are drawn."""
        wait = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
        self.call("Runtime.evaluate", expression=wait, awaitPromise=True)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def place(self, element: str) -> tuple[float, float]:
        """Scroll an element, given by an expression, into view and return its center."""
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        self.drawn()
        box = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Send a mouse event."""
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def click(self, element: str) -> float:
        """Click on the center of an element and return the seconds until changes are drawn."""
        x, y = self.place(element)
        begin = time.monotonic()
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.mouse(kind, x, y)
        self.drawn()
        return time.monotonic() - begin

    def type(self, element: str, text: str) -> None:
        """Type into an element."""
        self.click(element)
        self.call("Input.insertText", text=text)
        self.drawn()

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save a PNG of the viewport, or of the whole page."""
        shot = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **(self._whole() if whole else {})
        )
        path.write_bytes(base64.b64decode(shot["data"]))

    def _whole(self) -> dict[str, Any]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}}

    def close(self) -> None:
        """Close the browser."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)
