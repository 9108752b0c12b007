"""What a training config makes, to be timed without its data, and what the figures say."""

import dataclasses
import json
import statistics
from typing import Any

import jax

from vit_jax import inference, sharding
from vit_jax.chips import chip_of
from vit_jax.config.factory import build, call
from vit_jax.perf.peer import Peer
from vit_jax.perf.prediction import Prediction
from vit_jax.perf.spec import settle
from vit_jax.perf.step import Program, Training, compile_training, figures, peak_memory, random_batch
from vit_jax.perf.turns import ratio
from vit_jax.train.cost import model_flops
from vit_jax.train.run import batch_shapes, build_parts
from vit_jax.train.step import compile_step
from vit_jax.types import UserError


class Composed:
    """The parts of a plain training config, whose data need not be here."""

    def __init__(self, config: dict[str, Any], num_classes: int | None):
        self.config, self.spec, steps, _ = settle(config, num_classes)
        self.mesh = call("mesh", sharding.make_mesh, self.config["mesh"])
        sharding.check_batch(self.config["batch_size"], self.mesh)
        self.batch_size = self.config["batch_size"]
        self.task, self._init, self._make = build_parts(self.config, self.spec, steps)
        self.dtype = getattr(self.task.model, "dtype", "float32")
        self.program: Program | None = None

    def training(self) -> Training:
        """The train step, compiled and taken once, on random bytes."""
        batch, rules = batch_shapes(self.spec, self.batch_size), self.config["sharding"] or ()
        resident = random_batch(batch, len(self.spec.class_names), self.mesh)
        if self.config["parallel"] == "jit":
            self.program, training = compile_training(self._make, self._init, self.task, self.mesh, resident, rules)
            return training
        shapes, seed = jax.eval_shape(self._init, None), self.config["seed"]
        step = compile_step(self._make, self.task, self.mesh, shapes, batch, "pmap", seed=seed, rules=rules)
        return Training(step, jax.jit(self._init)(None), resident)

    def flops(self) -> tuple[float, dict[str, int]]:
        """Those of a step, see model_flops."""
        batch = batch_shapes(self.spec, self.batch_size)
        return model_flops(self.task, build(self.config["grad"], "grad"), jax.eval_shape(self._init, None), batch)

    def prediction(self, batch_size: int) -> Prediction:
        """Predictions with random weights."""
        places = sharding.everywhere(self.mesh)
        init = jax.jit(lambda: self.task.init(jax.random.key(0), self.spec.image_shape), out_shardings=places)
        return Prediction(inference.make_predict(self.task, self.mesh), init(), batch_size, self.spec.image_shape)

    def peer(self, name: str, dtype: str | None, predictions: int | None = None) -> Peer:
        """A peer of the same model at work on the same batch size, or on predictions of so many images."""
        if self.mesh.size > 1:
            raise UserError(f"--peer={name} is compared on one device; found {self.mesh.size}. Hide the others.")
        fields = {field.name: getattr(self.task.model, field.name) for field in dataclasses.fields(self.task.model)}
        return Peer(
            name,
            training=predictions is None,
            batch_size=predictions or self.batch_size,
            image_shape=self.spec.image_shape,
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


def report(
    composed: Composed, training: Training, peer: Peer | None, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """The figures of a step, and beside a peer those of the peer; `lines` say them in words."""
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
    """The figures of a step as text."""
    chip, rate = chip_of(devices), result["tflops_per_second"]
    speed = f"{rate:.1f} TFLOP/s" if rate >= 1 else f"{1e3 * rate:.2f} GFLOP/s"
    if chip is None:
        share = f"MFU unknown, as the peak of {result['device']} is not in vit_jax/chips.py"
    else:
        share = f"MFU {result['mfu']:.1%} of {len(devices)} x {chip.flops / 1e12:.0f} TFLOP/s in bfloat16"
    memory = result["memory_bytes"]
    source = "held at most by a device" if result["memory_from"] == "device" else "as planned by the compiler"
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
