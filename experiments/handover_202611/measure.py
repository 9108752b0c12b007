"""Measure search, ONNX and the server: python experiments/handover_202611/measure.py search|million|onnx|load ..."""

import argparse
import asyncio
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def timed(run, *arguments, repeats: int = 1) -> tuple[float, Any]:
    """Return the median seconds of a call, and its result."""
    seconds, found = [], None
    for _ in range(repeats):
        began = time.perf_counter()
        found = run(*arguments)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), found


def resident(process: int | str = "self") -> float:
    """Return the resident memory of a process in MB."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


# Search.


def search(flags: argparse.Namespace) -> dict[str, Any]:
    """Index the training images and their mirrors, and query with the test images, one at a time; resumes in --out."""
    from vit_jax import inference
    from vit_jax.search.embed import Embedder
    from vit_jax.search.index import Index, Shard

    embedder = Embedder(flags.model, inference.load(flags.model), "features")
    folder = Path(flags.out or tempfile.mkdtemp())
    index = Index.create(folder / "index", embedder.about)
    train, spent, done = paths_in(Path(flags.data, "train"), flags.limit), 0.0, 0
    for start in range(2000 * len(index.shards), len(train), 2000):
        images = [embedder.loaded.preprocess(path) for path in train[start : start + 2000]]
        seconds, vectors = timed(lambda: embedder([*images, *(image[:, ::-1] for image in images)]))  # noqa: B023
        names = [f"{start}/{i}.png" for i in range(len(vectors))]
        index.append(Shard("/cifar10", names, [""] * len(names), {}, ""), vectors)
        spent, done = spent + seconds, done + len(vectors)
    queries = embedder([embedder.loaded.preprocess(path) for path in paths_in(Path(flags.data, "test"), flags.limit)])
    return {"images_per_second": done / spent if done else None, **compare(index, queries, folder)}


def compare(index: Any, queries: np.ndarray, folder: Path) -> dict[str, Any]:
    """Return recall and speed of the graph against numpy, of a build that was killed and resumed, and of int8."""
    from vit_jax.search import nearest
    from vit_jax.search.index import Index

    build = nearest.write_graph(index)
    graph = nearest.Searcher(index)
    _, best = nearest.exact(index, queries, 10)
    whole = np.concatenate([np.asarray(part) for part in index.parts])

    def by_numpy(query: np.ndarray) -> np.ndarray:
        scores = whole @ query
        top = np.argpartition(-scores, 10)[:10]
        return top[np.argsort(-scores[top])]

    times: dict[str, list[float]] = {"numpy": [], "graph": []}
    for query in queries[:300]:  # in turns
        times["numpy"].append(timed(by_numpy, query)[0])
        times["graph"].append(timed(graph.vectors, query[None], 10)[0])
    found = graph.vectors(queries, 10)[1]
    # As if the process had been killed after 40 % of the shards.
    resumed = Index.create(folder / "resumed", index.about)
    for shard, part in zip(index.shards, index.parts, strict=True):
        if len(resumed.shards) == len(index.shards) * 2 // 5:
            resumed = Index.open(folder / "resumed")
            nearest.write_graph(resumed)
        resumed.append(shard, np.asarray(part))
    nearest.write_graph(resumed)
    again = nearest.Searcher(Index.open(folder / "resumed")).vectors(queries, 10)[1]
    small = nearest.new_graph(index, "i8")
    small.add(np.arange(len(whole)), whole)
    as_int8 = np.asarray(small.search(queries, 10).keys, np.int64)
    medians = {name: statistics.median(several) for name, several in times.items()}
    return {
        "vectors": len(index),
        "length": index.about.length,
        "queries": len(queries),
        "graph_build_s": build,
        "graph_mb": (index.folder / "graph.usearch").stat().st_size / 1e6,
        "recall_at_10": recall(found, best),
        "recall_at_10_resumed": recall(again, best),
        "recall_at_10_int8": recall(as_int8, best),
        "numpy_ms": 1e3 * medians["numpy"],
        "graph_ms": 1e3 * medians["graph"],
        "times_as_fast": medians["numpy"] / medians["graph"],
    }


def recall(found: np.ndarray, best: np.ndarray) -> float:
    """Return the share of the nearest that were found."""
    return float(np.mean([len({*a} & {*b}) / len(b) for a, b in zip(found.tolist(), best.tolist(), strict=True)]))


def paths_in(folder: Path, limit: int) -> list[Path]:
    """Return the files of a folder, evenly spread over its classes where there are more than `limit`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [paths[i * len(paths) // min(limit, len(paths))] for i in range(min(limit, len(paths)))]


def million(flags: argparse.Namespace) -> dict[str, Any]:
    """Build a graph of synthetic vectors, in clusters as features are."""
    from vit_jax.search import nearest
    from vit_jax.search.index import About, Index, Shard, unit

    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    centers = rng.standard_normal((1000, flags.length))
    index = Index.create(folder, About("synthetic", "features", "x", flags.length, 1))
    for start in range(0, flags.vectors, 50_000):
        count = min(50_000, flags.vectors - start)
        made = unit(centers[rng.integers(0, 1000, count)] + rng.standard_normal((count, flags.length)))
        index.append(Shard("/none", [f"{start + i}.png" for i in range(count)], [""] * count, {}, ""), made)
    before, seconds = resident(), nearest.write_graph(index)
    return {
        "vectors": flags.vectors,
        "length": flags.length,
        "graph_build_minutes": seconds / 60,
        "graph_mb": (folder / "graph.usearch").stat().st_size / 1e6,
        "resident_before_mb": before,
        "resident_mb": resident(),
    }


# ONNX.


def onnx(flags: argparse.Namespace) -> dict[str, Any]:
    """Time one model in jax, onnxruntime and timm with torch, in turns in one run."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads do not spin while the others compute
    import jax
    import timm
    import torch

    from vit_jax import inference
    from vit_jax.cli import convert
    from vit_jax.data.photographs import crops
    from vit_jax.export import onnx as form
    from vit_jax.export import stablehlo
    from vit_jax.export.export import distance
    from vit_jax.export.program import build
    from vit_jax.tasks.task import normalize

    folder = Path(tempfile.mkdtemp())
    loaded = inference.load(flags.model)
    program = build(flags.model, loaded, ["features"])
    form.write(program, folder / form.FILE)
    stablehlo.write(program, folder / stablehlo.FILE)
    form.quantize(folder / form.FILE, folder / form.INT8_FILE)
    convert.write(loaded, folder / "timm", "timm")
    theirs = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    torch.set_num_threads(os.cpu_count() or 1)
    result: dict[str, Any] = {
        "model": flags.model,
        "mb": {p.name: p.stat().st_size / 1e6 for p in folder.glob("model*")},
    }
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        for name, file in (("onnx", form.FILE), ("onnx_int8", form.INT8_FILE))
    }
    exported = jax.export.deserialize(bytearray((folder / stablehlo.FILE).read_bytes()))
    jitted, called = jax.jit(program.function), jax.jit(exported.call)
    for batch in (1, 8):
        images = crops(batch, loaded.image_shape)
        pixels = torch.from_numpy(
            np.asarray(normalize(images, loaded.task.mean, loaded.task.std)).transpose(0, 3, 1, 2).copy()
        )

        def in_torch(pixels: Any = pixels) -> Any:
            with torch.inference_mode():
                return theirs.forward_head(theirs.forward_features(pixels), pre_logits=True).numpy()

        runs = {
            "jax": lambda images=images: jax.device_get(jitted(images))["features"],
            "stablehlo": lambda images=images: jax.device_get(called(images))["features"],
            "timm": in_torch,
            **{name: lambda s=s, images=images: s.run(None, {"images": images})[0] for name, s in sessions.items()},
        }
        expected = {"features": runs["jax"]()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(flags.rounds):
            for name, run in runs.items():
                seconds[name].append(timed(run)[0])
        result[f"batch_{batch}"] = {
            name: {
                "ms": 1e3 * statistics.median(several),
                "difference": distance(expected, {"features": runs[name]()})["features"],
            }
            for name, several in seconds.items()
        }
    return result


# The server.


def load(flags: argparse.Namespace) -> dict[str, Any]:
    """Start the server, post photographs from many clients at once, and compare with the bare model."""
    from vit_jax import inference
    from vit_jax.data.photographs import crops

    loaded = inference.load(flags.model)
    reference = with_head(loaded) if loaded.has_untrained_head else flags.model
    command = [sys.executable, "-m", "vit_jax", "serve", f"--model={reference}", "--port=0", f"--queue={flags.queue}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(line.split()[-1] for line in server.stdout if "http://" in line)
    port = int(address.split(":")[2].split("/")[0])
    try:
        found = asyncio.run(clients(port, flags.clients, flags.seconds, server.pid))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    batch = crops(8, loaded.image_shape)
    loaded.predict({"image": batch})
    seconds, _ = timed(lambda: loaded.predict({"image": batch}), repeats=20)
    return {"model": flags.model, "queue": flags.queue, **found, "bare_images_per_second": 8 / seconds}


def with_head(loaded: Any) -> str:
    """Write a copy whose head is random, since the server computes no classes with a head of zeros; return its workdir."""
    import jax

    from vit_jax.cli import convert

    params = dict(jax.device_get(loaded.weights["params"]))
    head = {name: np.array(leaf) for name, leaf in params["head"].items()}
    head["kernel"] = 0.02 * np.random.default_rng(0).standard_normal(head["kernel"].shape, np.float32)
    out = Path(tempfile.mkdtemp()) / "model"
    convert.write(dataclasses.replace(loaded, weights={"params": params | {"head": head}}), out, "workdir")
    return str(out)


async def clients(port: int, count: int, seconds: float, process: int) -> dict[str, Any]:
    """Return statuses, latencies and memory of some clients that each post one photograph after another."""
    import io

    from PIL import Image

    from vit_jax.data.photographs import crops

    bodies = []
    for pixels in crops(16, (240, 320, 3)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        bodies.append(buffer.getvalue())
    statuses: dict[str, int] = {}
    latencies, memory = [], {}
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        body = bodies[number % len(bodies)]
        head = f"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                answer = await reader.read()
                writer.close()
                status = answer.split(b" ", 2)[1].decode() if answer else "lost"
                if status == "503":
                    assert b"retry-after" in answer.lower()
                    await asyncio.sleep(0.1)
            except OSError:
                status = "lost"
            statuses[status] = statuses.get(status, 0) + 1
            if status == "200":
                latencies.append(time.monotonic() - began)

    async def watch() -> None:
        for after in (min(10.0, seconds / 3), seconds - 1):
            await asyncio.sleep(max(0, end - seconds + after - time.monotonic()))
            memory[f"resident_mb_at_{after:.0f}_s"] = resident(process)

    await asyncio.gather(watch(), *(client(number) for number in range(count)))
    latencies.sort()
    return {
        "clients": count,
        "seconds": seconds,
        "statuses": statuses,
        "p50_ms": 1e3 * latencies[len(latencies) // 2],
        "p95_ms": 1e3 * latencies[int(len(latencies) * 0.95)],
        "images_per_second": statuses.get("200", 0) / seconds,
        **memory,
    }


def main() -> None:
    """Print the result of one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("search", "million", "onnx", "load"))
    parser.add_argument("--model", default="Ti/16")
    parser.add_argument("--data", help="a folder with train and test images in PNG files")
    parser.add_argument("--out", help="a folder in which search resumes")
    parser.add_argument("--limit", type=int, default=50_000, help="images of each split")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=64)
    flags = parser.parse_args()
    print(json.dumps({"search": search, "million": million, "onnx": onnx, "load": load}[flags.what](flags), indent=1))


if __name__ == "__main__":
    main()
