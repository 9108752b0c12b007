"""Time the train step and predictions of a config without its data, and report the results."""

import dataclasses
import json
import statistics
from typing import Any

import jax

from vit_jax import sharding
from vit_jax.chips import chip_of
from vit_jax.config.factory import call
from vit_jax.inference import Predictor
from vit_jax.perf.peer import Peer
from vit_jax.perf.prediction import OurPrediction
from vit_jax.perf.stand_in import stand_in_config
from vit_jax.perf.step import Program, Training, compile_training, figures, peak_memory, random_batch
from vit_jax.perf.turns import ratio
from vit_jax.train.build import build_parts
from vit_jax.types import UserError


class Composed:
    """The computations of training for a plain config; its data need not be available."""

    def __init__(self, config: dict[str, Any], num_classes: int | None):
        self.config, self.spec, _ = stand_in_config(config, num_classes)
        self.mesh = call("mesh", sharding.make_mesh, self.config["mesh"])
        sharding.check_batch(self.config["batch_size"], self.mesh)
        self.batch_size = self.config["batch_size"]
        self.parts = build_parts(self.config, self.spec)
        self.task = self.parts.task
        self.dtype = getattr(self.task.model, "dtype", "float32")
        self.program: Program | None = None

    def training(self) -> Training:
        """Compile the train step and run it once, on random bytes."""
        resident = random_batch(self.parts.batch, len(self.spec.class_names), self.mesh)
        if self.parts.parallel == "jit":
            self.program, training = compile_training(self.parts, self.mesh, resident)
            return training
        return Training(self.parts.compile(self.mesh), jax.jit(self.parts.init)(None), resident)

    def flops(self) -> tuple[float, dict[str, int]]:
        """Return the FLOPs of a step; see Parts.model_flops."""
        return self.parts.model_flops()

    @property
    def image_shape(self) -> Any:
        """(h, w, c) of the training images."""
        return self.spec.layout["image"].shape

    def prediction(self, batch_size: int) -> OurPrediction:
        """Return predictions with random weights."""

        def weights() -> Any:
            return self.parts.init(None).evaluated(self.task)[""]

        init = jax.jit(weights, out_shardings=sharding.everywhere(self.mesh))
        return OurPrediction(Predictor(self.task, self.mesh), init(), batch_size, self.image_shape)

    def peer(self, name: str, dtype: str | None, predictions: int | None = None) -> Peer:
        """Return a peer that trains the same model at the same batch size, or predicts `predictions` images at once."""
        if self.mesh.size > 1:
            raise UserError(f"--peer={name} is compared on one device; found {self.mesh.size}. Hide the other devices.")
        fields = {field.name: getattr(self.task.model, field.name) for field in dataclasses.fields(self.task.model)}
        return Peer(
            name,
            training=predictions is None,
            batch_size=predictions or self.batch_size,
            image_shape=self.image_shape,
            num_classes=len(self.spec.class_names),
            model={key: value for key, value in fields.items() if _is_plain(value)},
            dtype=dtype or self.dtype,
            platform=jax.default_backend(),
        )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def step_figures(
    composed: Composed, training: Training, peer: Peer | None, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Return the results for a step, and for the peer if there is one; `lines` is the same as text."""
    devices = list(composed.mesh.devices.flat)
    needed, uncounted = composed.flops()
    program = composed.program
    result = {"device": devices[0].device_kind, "devices": len(devices), "batch_size": composed.batch_size}
    result |= {"dtype": composed.dtype} | figures(seconds["ours"], composed.batch_size, needed, devices)
    measured = peak_memory(devices)
    result["memory_bytes"] = measured or (program and program.memory)
    result["memory_from"] = "device" if measured else "compiler"
    result["trace_seconds"] = program and program.trace_seconds
    result["compile_seconds"] = program and program.compile_seconds
    result["first_run_seconds"] = training.first_seconds
    started = (program.trace_seconds + program.compile_seconds) if program else 0.0
    result["first_step_seconds"] = started + training.first_seconds
    result["compiled_before"] = program and program.cached
    if uncounted:
        result["uncounted_calls"] = uncounted
    if peer is not None:
        one = statistics.median(seconds["peer"])
        ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True))
        result["peer"] = {
            "about": peer.about,
            "images_per_second": composed.batch_size / one,
            "ms_per_step": 1e3 * one,
            "memory_bytes": peer.memory,
            "first_step_seconds": peer.first_seconds,
        }
        result["of_peer"] = ratio(seconds["ours"], seconds["peer"])
        result["of_peer_lowest"], result["of_peer_highest"] = ratios[0], ratios[-1]
    return result | {"lines": lines_of(result, devices)}


def lines_of(result: dict[str, Any], devices: list[Any]) -> list[str]:
    """Format the results for a step as text."""
    chip, rate = chip_of(devices), result["tflops_per_second"]
    speed = f"{rate:.1f} TFLOP/s" if rate >= 1 else f"{1e3 * rate:.2f} GFLOP/s"
    if chip is None:
        share = f"MFU unknown, as the peak of {result['device']} is not in vit_jax/chips.py"
    else:
        share = f"MFU {result['mfu']:.1%} of {len(devices)} x {chip.flops / 1e12:.0f} TFLOP/s in bfloat16"
    memory = result["memory_bytes"]
    source = "peak on a device" if result["memory_from"] == "device" else "planned by the compiler"
    begun = f"first step {result['first_step_seconds']:.2f} s"
    if result["compile_seconds"] is not None:
        found = "found in the compilation cache" if result["compiled_before"] else "compiled"
        begun += f": traced in {result['trace_seconds']:.2f}, {found} in {result['compile_seconds']:.2f}"
        begun += f", run in {result['first_run_seconds']:.2f}"
    lines = [
        f"{result['images_per_second']:.1f} images/s, {result['ms_per_step']:.2f} ms for a step of {result['batch_size']} "
        f"images, {result['dtype']}, {result['devices']} x {result['device']}",
        f"{speed}, {share}",
        f"memory {memory / 2**20:,.1f} MiB, {source}" if memory else "memory unknown",
        begun,
    ]
    if "uncounted_calls" in result:
        lines.append(f"note: FLOPs of {', '.join(result['uncounted_calls'])} are not counted")
    if "peer" in result:
        peer = result["peer"]
        lines.append(
            f"{result['of_peer']:.3f} times as fast as {peer['about']} ({result['of_peer_lowest']:.3f} to "
            f"{result['of_peer_highest']:.3f} by round): {peer['images_per_second']:.1f} images/s, {peer['ms_per_step']:.2f} "
            f"ms for a step, first step {peer['first_step_seconds']:.2f} s"
        )
    return lines
