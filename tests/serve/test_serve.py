"""The server: answers, limits, hostile bodies, and its page in Chromium, if installed.

To look at the page: VIT_JAX_PICTURES=DIR python -m pytest tests/serve leaves screenshots there.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from tests.conftest import environment
from tests.explain.helpers import network
from tests.reports.browser import CHROMIUM, Browser
from vit_jax.__main__ import main as vit
from vit_jax.data.photographs import crops
from vit_jax.search.build import add_folder
from vit_jax.search.embed import Embedder
from vit_jax.search.index import Index
from vit_jax.search.nearest import Searcher
from vit_jax.serve import app as serving
from vit_jax.serve import engine as engines
from vit_jax.serve.app import Limits, make_app
from vit_jax.serve.engine import Engine
from vit_jax.serve.openapi import description

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@contextlib.contextmanager
def served(app):
    """Run a server in a thread and give its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=serving.Protocol, lifespan="on", log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def ask(port, method="GET", path="/", body=None, **headers):
    """Return status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def post(port, data, query="", kind="image/jpeg", **headers):
    status, headers, content = ask(port, "POST", f"/api/predict{query}", data, Content_Type=kind, **headers)
    return status, json.loads(content), headers


def as_file(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model, its index of six photographs, and where those are."""
    loaded = dataclasses.replace(network(registers=1).loaded, names_known=True)
    folder = tmp_path_factory.mktemp("secret_folder")
    for number, pixels in enumerate(crops(6, (40, 50, 3))):
        Image.fromarray(pixels).save(folder / f"{number}<b>.png")
    embedder = Embedder("model", loaded, "features")
    index = Index.create(tmp_path_factory.mktemp("index"), embedder.about)
    add_folder(index, embedder, str(folder), sorted(path.name for path in folder.iterdir()), lambda _: None)
    return loaded, index, folder


@pytest.fixture(scope="module")
def port(parts):
    loaded, index, _ = parts
    limits = Limits(queue=16, bytes=2**20, pixels=1_000_000, seconds=3.0)
    with served(make_app(Engine("model", loaded, "features"), limits, Searcher(index), "model")) as port:
        yield port


def without_attention(loaded):
    """An engine that compiles in a second."""
    engine = Engine("model", loaded)
    engine.has_attention = False
    return engine


@pytest.fixture
def photo():
    return crops(1, (40, 60, 3))[0]


def test_classes_are_those_of_the_model(port, parts, photo):
    status, found, _ = post(port, as_file(photo), "?top=3")
    assert status == 200
    expected = parts[0].top(photo, k=3)
    assert [item["label"] for item in found["classes"]] == [name for name, _ in expected]
    np.testing.assert_allclose([x["probability"] for x in found["classes"]], [p for _, p in expected], atol=1e-5)
    assert set(found) == {"classes"}


def test_attention_is_that_of_the_last_block(port, parts, photo):
    _, found, _ = post(port, as_file(photo), "?attention=1")
    rows, columns = found["attention"]["grid"]
    maps = {key: np.frombuffer(base64.b64decode(found["attention"][key]), np.uint8) for key in ("head", "patches")}
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["image"].partition(",")[2]))))
    np.testing.assert_array_equal(seen, parts[0].preprocess(photo))
    weights = network(registers=1).attention(lambda blocks, _: blocks[-1].mean(axis=1), seen[None])[0]

    def levels(row):
        return 255 * (row - row.min()) / np.ptp(row)

    assert (rows, columns) == (4, 4)
    np.testing.assert_allclose(maps["head"], levels(weights[0, 2:]), atol=1)
    np.testing.assert_allclose(maps["patches"].reshape(16, 16)[5], levels(weights[7, 2:]), atol=1)


def test_a_photograph_of_the_index_is_its_own_neighbour(port, parts):
    folder = parts[2]
    _, found, _ = post(port, (folder / "3<b>.png").read_bytes(), "?neighbours=2", "application/octet-stream")
    first = found["neighbours"][0]
    assert (first["name"], first["cosine"]) == ("3<b>.png", pytest.approx(1, abs=1e-5))
    assert Image.open(io.BytesIO(base64.b64decode(first["thumbnail"].partition(",")[2]))).size == (50, 40)
    assert len(found["neighbours"]) == 2


def test_a_form_is_a_body_too(port, photo):
    data = as_file(photo)
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../a.png"\r\n\r\n' + data + b"\r\n--x--\r\n"
    )
    assert post(port, form, kind="multipart/form-data; boundary=x")[1] == post(port, data)[1]


def test_many_at_once_get_their_own_answers(port, parts):
    photos = crops(12, (30, 30, 3))
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda x: post(port, as_file(x), "?top=1"), photos))
    expected = [top[0] for top in parts[0].top(list(photos), k=1)]
    assert [status for status, _, _ in found] == [200] * 12
    for (_, answer, _), (label, probability) in zip(found, expected, strict=True):
        assert answer["classes"][0]["label"] == label
        assert answer["classes"][0]["probability"] == pytest.approx(probability, abs=1e-5)


def test_images_that_wait_go_in_one_batch(parts, monkeypatch):
    engine = without_attention(parts[0])
    engine.start()
    sizes, run, gate = [], engine._run, threading.Event()
    monkeypatch.setattr(
        engine, "_run", lambda images, attention: (gate.wait(30), sizes.append(len(images)), run(images, attention))[2]
    )
    images = crops(6, parts[0].image_shape)
    jobs = [engines.Job(image, False, concurrent.futures.Future()) for image in images]
    for job in jobs:
        engine._jobs.put(job)
    gate.set()
    rows = np.stack([job.answer.result(30)["probs"] for job in jobs])
    engine.stop()
    assert len(sizes) <= 3
    assert set(sizes) <= set(engines.SIZES)
    np.testing.assert_allclose(rows, parts[0].predict({"image": images})["probs"], atol=1e-6)


def test_a_full_queue_says_when_to_come_again(parts, photo, monkeypatch):
    engine, gate = without_attention(parts[0]), threading.Event()
    with served(make_app(engine, Limits(queue=2))) as port:
        run = engine._run
        monkeypatch.setattr(engine, "_run", lambda *x: (gate.wait(30), run(*x))[1])
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            waiting = [threads.submit(post, port, as_file(photo)) for _ in range(2)]
            while json.loads(ask(port, path="/healthz")[2])["at_work"] < 2:
                time.sleep(0.01)
            status, found, headers = post(port, as_file(photo))
            assert (status, headers["retry-after"]) == (503, "1")
            assert "full" in found["error"]
            gate.set()
            assert [job.result()[0] for job in waiting] == [200, 200]
        assert post(port, as_file(photo))[0] == 200


def test_an_answer_does_not_wait_for_photographs_that_came_later(parts, photo, monkeypatch):
    engine, decoded, gate, entered = without_attention(parts[0]), threading.Event(), threading.Event(), []
    first, real = as_file(photo), serving.read_photograph

    def reading(data, *rest):
        if data != first:
            entered.append(data)
            assert gate.wait(30)
        return real(first, *rest)

    with served(make_app(engine, Limits(queue=16))) as port:
        run = engine._run
        monkeypatch.setattr(serving, "read_photograph", reading)
        monkeypatch.setattr(engine, "_run", lambda *x: (decoded.set(), gate.is_set() or busy.wait(30), run(*x))[2])
        busy = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(9) as threads:
            answer = threads.submit(post, port, first)
            assert decoded.wait(30)
            later = [threads.submit(post, port, as_file(255 - photo)) for _ in range(8)]
            while len(entered) < 4:  # all decoders are at work
                time.sleep(0.01)
            busy.set()
            try:
                assert answer.result(20)[0] == 200
            finally:
                gate.set()
            assert [job.result()[0] for job in later] == [200] * 8


def test_a_batch_that_fails_does_not_end_the_server(parts, photo, monkeypatch, caplog):
    engine = without_attention(parts[0])
    with served(make_app(engine, Limits())) as port:
        with monkeypatch.context() as patch:
            patch.setattr(engine, "_run", lambda *_: [][0])
            status, found, headers = post(port, as_file(photo))
        assert (status, found) == (500, {"error": "The server failed; its log says why."})
        assert "content-security-policy" in headers
        assert post(port, as_file(photo))[0] == 200


def bomb(side):
    """A PNG with many pixels in its header."""
    data = bytearray(as_file(np.zeros((8, 8, 3), np.uint8)))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


BAD = {
    "no body": (b"", "image/png", "", 422, "known format"),
    "text": (b"hello", "image/png", "", 422, "known format"),
    "a page": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "", 422, "known format"),
    "too many pixels": (bomb(1001), "image/png", "", 422, "1001 x 1001 pixels; at most 1,000,000"),
    "far too many pixels": (bomb(30_000), "image/png", "", 422, "far more than the 1,000,000 pixels"),
    "too many bytes": (b"x" * (2**20 + 1), "image/png", "", 413, "1,048,576 bytes"),
    "no photograph": (b"x=1", "application/x-www-form-urlencoded", "", 415, "image/jpeg"),
    "a form without a file": (b"--x--\r\n", "multipart/form-data; boundary=x", "", 400, "part `image`"),
    "a form without a boundary": (b"--x--\r\n", "multipart/form-data", "", 400, "form cannot be read"),
    "a wrong number": (b"x", "image/png", "?top=0", 400, "top is not a whole number"),
    "a huge number": (b"x", "image/png", "?top=" + "9" * 4000, 400, "top is not a whole number"),
    "half a character": (b"x", "image/png", "?neighbours=%ff", 400, "neighbours is not"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_said(kind, port):
    data, content_type, query, status, message = BAD[kind]
    found, answer, headers = post(port, data, query, content_type)
    assert found == status
    assert message in answer["error"]
    assert str(status) in description(False)["paths"]["/api/predict"]["post"]["responses"]
    assert "default-src 'none'" in headers["content-security-policy"]


def test_a_gigabyte_is_refused_before_it_is_sent(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000000000\r\n\r\n"
        )
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_a_gigabyte_in_chunks_is_cut_off(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_slow_clients_are_let_go(port, photo, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.3)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as slow,
        socket.create_connection(("127.0.0.1", port), timeout=10) as silent,
    ):
        slow.sendall(
            b"POST /api/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 999\r\n\r\nx"
        )
        silent.sendall(b"GET / HT")
        assert silent.recv(100) == b""  # closed
        assert post(port, as_file(photo))[0] == 200
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def mutated(seed):
    """A photograph in some format with bytes changed, cut, repeated, or another file's put before or behind."""
    rng = np.random.default_rng(seed)
    kind = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")[seed % 7]
    data = bytearray(as_file(crops(1, (24, 20, 3))[0], kind))
    for _ in range(int(rng.integers(1, 6))):
        at, way = int(rng.integers(0, len(data))), int(rng.integers(0, 5))
        if way == 0:
            data[at] = int(rng.integers(0, 256))
        elif way == 1:
            data[at : at + 4] = bytes(rng.integers(0, 2, 4) * 255)
        elif way == 2:
            data[at:] = data[at : at + int(rng.integers(0, 40))]
        elif way == 3:
            data[at:at] = data[: int(rng.integers(1, 60))]
        else:
            data = data + b"%PDF-1.4 <script>PK\x03\x04" if rng.random() < 0.5 else bytearray(b"GIF89a/*") + data
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("count", [40, pytest.param(320, marks=pytest.mark.torture)])
def test_no_mutated_image_makes_the_server_fail(count, port, photo):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    statuses = []
    for seed in range(count):
        connection.request("POST", "/api/predict", mutated(seed), {"Content-Type": "image/png"})
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()
    assert set(statuses) == {200, 422}
    assert 0.1 < statuses.count(422) / count < 0.9
    assert post(port, as_file(photo))[0] == 200


def test_no_answer_names_a_path_of_the_server(port, parts, photo):
    answers = [post(port, data, query, kind)[1] for data, kind, query, _, _ in BAD.values()]
    answers += [post(port, as_file(photo), "?neighbours=6&attention=1")[1]]
    answers += [
        ask(port, path=path)[2].decode()
        for path in ("/api/info", "/openapi.json", "/healthz", "/../../etc/passwd", "/page.py")
    ]
    text = json.dumps(answers)
    assert not re.search(r"secret_folder|/tmp|/root|/home|site-packages|\.py\b|Traceback", text)


def test_other_hosts_and_sites_are_refused(port, photo):
    assert ask(port, Host="rebound.example.com")[0] == 403
    assert ask(port, Host="192.168.1.2")[0] == 403
    assert ask(port, Host="[::1]:80")[0] == 200
    assert post(port, as_file(photo), Origin="http://elsewhere.example.com")[0] == 403
    assert post(port, as_file(photo), Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_a_token_is_asked_for_beyond_this_machine(parts, photo):
    limits = Limits(token="geheim", hosts=("localhost", "photos.example.org"))
    with served(make_app(without_attention(parts[0]), limits)) as port:
        assert ask(port)[0] == 200  # the page itself has no secrets
        status, _, headers = post(port, as_file(photo))
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert post(port, as_file(photo), Authorization="Bearer geheimx")[0] == 401
        assert post(port, as_file(photo), Authorization="Bearer geheim", Host="photos.example.org")[0] == 200
        assert post(port, as_file(photo), Authorization="Bearer geheim", Host="10.0.0.7:80")[0] == 200
        assert post(port, as_file(photo), Authorization="Bearer geheim", Host="elsewhere.example.org")[0] == 403
        assert json.loads(ask(port, path="/openapi.json", Authorization="Bearer geheim")[2])["security"] == [
            {"token": []}
        ]


def test_the_page_asks_for_nothing_outside_it(port):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, content = ask(port, path=path)
        assert (status, headers["content-type"].partition(";")[0]) == (200, kind)
        assert not re.search(rb"https?://|@import|url\(|eval\(|innerHTML|\son\w+=", content)
    assert ask(port, "POST", "/", b"")[0] == 405


def luminance(color):
    parts = [x / 255 for x in map(int, re.findall(r"\d+", color)[:3])]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def wait_for(browser, expression):
    deadline = time.monotonic() + 20
    while not browser.run(expression):
        assert time.monotonic() < deadline, browser.run("document.body.innerText")
        time.sleep(0.05)
    browser.drawn()


DROP = """
(text => { const data = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
data.items.add(new File([bytes], "photo.png", {type: "image/png"}));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})); })
"""


def drop(browser, data):
    browser.run(f"{DROP}({json.dumps(base64.b64encode(data).decode())})")


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_the_page_shows_classes_attention_and_neighbours(width, dark, port, photo, tmp_path):
    browser = Browser(tmp_path / "profile", width=width, height=900, dark=dark)
    try:
        browser.open(f"http://127.0.0.1:{port}/")
        wait_for(browser, "document.getElementById('model').textContent")
        drop(browser, as_file(photo))
        wait_for(browser, "document.getElementById('status').textContent.startsWith('Done')")
        assert browser.run("document.querySelectorAll('#classes tr').length") == 5
        assert browser.run("document.querySelectorAll('#neighbours img').length") == 6
        assert "<b>" in browser.run("document.getElementById('neighbours').innerText")
        box = browser.run(
            "(b => [b.x, b.y, b.width, b.height])(document.getElementById('map').getBoundingClientRect())"
        )
        browser.mouse("mouseMoved", box[0] + 0.6 * box[2], box[1] + 0.3 * box[3])
        wait_for(browser, "document.getElementById('patch').textContent.startsWith('Row 2, column 3')")
        if os.environ.get("VIT_JAX_PICTURES"):
            browser.picture(Path(os.environ["VIT_JAX_PICTURES"], f"serve_{width}.png"), whole=True)
        # By keyboard alone.
        browser.run("document.getElementById('seen').focus()")
        for key in ("ArrowDown", "ArrowRight", "Escape"):
            browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)
            browser.drawn()
            expected = {
                "ArrowDown": "Row 3, column 3",
                "ArrowRight": "Row 3, column 4",
                "Escape": "What the model reads.",
            }[key]
            assert browser.run("document.getElementById('patch').textContent").startswith(expected)
        shift_tab = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9, "modifiers": 8}
        browser.call("Input.dispatchKeyEvent", type="keyDown", **shift_tab)
        assert browser.run("document.activeElement.id") == "file"
        assert browser.run("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
        style = "(e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor])"
        for element in ("h1", "#drop span", "#seen-help", "#patch", "td", "figcaption", "#error", "#status"):
            assert contrast(*browser.run(f"{style}(document.querySelector('{element}'))")) >= 4.5, element
        assert browser.errors == []
        assert {url.split("/")[2] for url in browser.requests if url.startswith("http")} == {f"127.0.0.1:{port}"}
        drop(browser, b"no picture")
        wait_for(browser, "document.getElementById('error').textContent.includes('known format')")
        assert browser.run("document.getElementById('result').hidden")
    finally:
        browser.close()


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert vit(["serve", "--model=tests/workdirs/plain", f"--port={taken.getsockname()[1]}"]) == 2
    assert "another program uses it" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["\u2028", " ", "x" * 300, "1.2.3.4.5"])
def test_a_host_that_is_none_is_named(host, capsys):
    assert vit(["serve", "--model=tests/workdirs/plain", f"--host={host}", "--port=0"]) == 2
    assert "cannot be listened on" in capsys.readouterr().err


def test_the_index_of_another_model_is_refused(parts, capsys):
    assert vit(["serve", "--model=tests/workdirs/plain", f"--index={parts[1].folder}", "--port=0"]) == 2
    assert "other weights" in capsys.readouterr().err


def test_the_command_serves_until_ctrl_c():
    command = [sys.executable, "-m", "vit_jax", "serve", "--model=tests/workdirs/plain", "--port=0", "--host=0.0.0.0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        port, token = re.search(r":(\d+)/#token=(\S+)", process.stdout.readline()).groups()
        gray = as_file(np.full((8, 8), 100, np.uint8))
        assert post(int(port), gray)[0] == 401
        status, found, _ = post(int(port), gray, kind="image/png", Authorization=f"Bearer {token}")
        assert (status, len(found["classes"])) == (200, 5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in errors
    finally:
        process.kill()
