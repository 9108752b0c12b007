"""Know before you launch: vit plan --config=FILE.py[:ARG] [--topology=v5e:4x8,...] [--mesh=fsdp=-1] [--fit] [--json]."""

import contextlib
import dataclasses
import itertools
import json
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vit_jax.cli.command import Parser, number_flag, split_overrides
from vit_jax.config.factory import near
from vit_jax.printable import line
from vit_jax.types import Units, UserError

TICK_SECONDS, MOST_SECONDS = 5.0, 60.0  # between progress messages while a step is compiled: at first, and at most
EXAMPLES = """
vit plan --config=configs/vit_s16_i1k.py --num_classes=1000
vit plan --config=configs/scaling_vit.py --topology=v5e:4x8,v5p:4x4x4 --mesh=fsdp=-1 --fit
"""


def main(argv: Sequence[str]) -> int:
    """Compile the train step ahead of time, and print its cost on each chip; nothing is run."""
    overrides, rest = split_overrides(argv)
    parser = Parser(prog="vit plan", description=__doc__, examples=EXAMPLES, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="a file with get_config()")
    parser.add_argument("--config.KEY", metavar="VALUE", help="another value for a key of the config")
    parser.add_argument(
        "--topology", metavar="NAMES", help="TPU slices, such as v5e:2x4,v5p:4x4x4; default: this machine"
    )
    parser.add_argument(
        "--mesh",
        action="append",
        default=[],
        metavar="AXES",
        help="instead of the config's mesh: data=-1 or fsdp=8,tensor=4",
    )
    parser.add_argument("--num_classes", type=number_flag(Units), help="number of classes, if the data set is not here")
    parser.add_argument("--fit", action="store_true", help="if it does not fit, try changes until it does")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each plan")
    flags = parser.parse(rest)

    from vit_jax import sharding
    from vit_jax.config.load import load
    from vit_jax.perf import plan as plans
    from vit_jax.perf.stand_in import stand_in_config

    config, spec, note = stand_in_config(load(flags.config, overrides).to_dict(), flags.num_classes)
    if note:
        print(f"note: {line(note)}", file=sys.stderr)
    names = flags.topology.split(",") if flags.topology else [None]
    slices = {name: local_devices() if name is None else plans.devices_of(name) for name in names}
    meshes = [axes_of(text, config["mesh"]) for text in flags.mesh] or [config["mesh"]]
    for name, mesh in itertools.product(names, meshes):  # so that a mistake in the last one shows at once
        sharding.check_batch(config["batch_size"], sharding.make_mesh(slices[name], **mesh))
    rows: list[tuple[str, Any, dict[str, Any]]] = []

    def add(name: str | None, config: dict[str, Any], changes: dict[str, Any]) -> Any:
        one = compile_plan(plans, config, spec, slices[name], name)
        rows.append((name or "here", one, changes))
        print(json.dumps(as_dict(*rows[-1])) if flags.json else as_text(*rows[-1], flags.fit), flush=True)
        return one

    for name, mesh in itertools.product(names, meshes):
        here = config | {"mesh": mesh}
        one = add(name, here, {})
        for what, changes in plans.remedies(one, here) if flags.fit and one.fits is False else ():
            print(f"does not fit; with {what}:", file=sys.stderr, flush=True)
            if add(name, plans.with_changes(here, changes), changes).fits:
                break
    if not flags.json and len(rows) > 1:
        print("\n" + table(rows))
    return 0


def compile_plan(plans: Any, config: dict[str, Any], spec: Any, devices: Sequence[Any], name: str | None) -> Any:
    """Return the plan of one step, after printing that it is being compiled."""
    axes = ",".join(f"{axis}={size}" for axis, size in config["mesh"].items() if size not in (None, 1)) or "data=1"
    print(f"compiling for {name or 'this machine'}, {axes} ...", end=" ", file=sys.stderr, flush=True)
    with ticking():
        one = plans.plan(config, spec, devices)
    print(f"{one.compile_seconds:.0f} s", file=sys.stderr, flush=True)
    return one


@contextlib.contextmanager
def ticking() -> Iterator[None]:
    """Print the elapsed seconds, every few seconds at first and every minute later."""
    begin, done = time.monotonic(), threading.Event()

    def tick() -> None:
        pause = TICK_SECONDS
        while not done.wait(pause):
            print(f"{time.monotonic() - begin:.0f} s ...", end=" ", file=sys.stderr, flush=True)
            pause = min(1.5 * pause, MOST_SECONDS)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def local_devices() -> list[Any]:
    """Return the devices of this machine."""
    import jax

    return list(jax.devices())


def axes_of(text: str, known: Iterable[str]) -> dict[str, int]:
    """Return the mesh of a flag such as "data=2,fsdp=4"; raises UserError for an axis that is not in `known`."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(axis and equals and size.removeprefix("-").isdecimal() for axis, equals, size in pairs):
        raise UserError(f"--mesh={text}: expected axes with sizes, such as data=-1 or data=2,fsdp=4.")
    axes = {axis: int(size) for axis, _, size in pairs}
    for axis in axes:
        if axis not in known:
            raise UserError(f"--mesh={text}: unknown axis {axis!r}{near(axis, known)}")
    return axes if -1 in axes.values() else {"data": -1} | axes


def flags_of(changes: dict[str, Any]) -> str:
    """Return changes as flags of a command line."""
    return " ".join(
        f'--config.{key}="{value}"' if isinstance(value, dict) else f"--config.{key}={value}"
        for key, value in changes.items()
    )


def as_dict(name: str, one: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a plan as a dictionary for JSON."""
    derived = {"fits": one.fits, "seconds": one.times, "images_per_second": one.images_per_second}
    return {"topology": name, "changes": changes, **dataclasses.asdict(one), **derived}


def as_text(name: str, one: Any, changes: dict[str, Any], tried: bool) -> str:
    """Return a plan in words."""
    chip = one.chip
    axes = ", ".join(f"{axis} {size}" for axis, size in one.mesh.items())
    lines = [
        f"\n{name}: {one.devices} x {chip.name if chip else 'device'}, {axes}; {one.batch_size} images a step"
        + (f"; with {flags_of(changes)}" if changes else ""),
        f"  memory      parameters {with_unit(one.params, 'B')}, optimiser {with_unit(one.optimizer, 'B')}, temporaries "
        f"{with_unit(one.temporaries, 'B')}; peak {with_unit(one.peak, 'B')}"
        + (f" of {with_unit(chip.memory, 'B')}" if chip else ""),
        f"  operations  {with_unit(one.flops, 'FLOP')}, of which the model's {with_unit(one.model_flops, 'FLOP')}",
    ]
    if one.moved is None:
        lines.append("  moved       unknown, since the compiler refuses a program of this size")
    else:
        inside = f", plus the traffic inside {one.kernels} kernels" if one.kernels else ""
        lines.append(
            f"  moved       {with_unit(one.moved, 'B')} from and to memory; {with_unit(one.accessed, 'B')} accessed by "
            f"XLA's count of operands{inside}"
        )
    lines += [
        f"  sent        {with_unit(traffic.size, 'B')} in {traffic.count} {traffic.kind}, {with_unit(traffic.sent, 'B')} sent"
        for traffic in one.traffic
    ]
    if one.times:
        parts = ", ".join(f"{part} {with_unit(seconds, 's')}" for part, seconds in one.times.items())
        best = max(one.times.values())
        lines.append(
            f"  at best     {with_unit(best, 's')} a step, {one.images_per_second:,.0f} images/s: the longest of {parts}, each at "
            "the chip's peak"
        )
    if one.fits is False:
        lines.append(f"  DOES NOT FIT: {with_unit(one.peak - chip.memory, 'B')} over the chip's memory")
        if not tried:
            lines.append(
                f"              mesh.fsdp shards the state of {with_unit(one.params + one.optimizer, 'B')}; model.remat, a "
                "smaller batch or microbatches (grad of type accumulate.Accumulate) reduce the rest; --fit tries them"
            )
    return "\n".join(lines)


PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"))


def with_unit(value: float, unit: str) -> str:
    """Return a quantity in three digits, such as 2.6 GB or 17.9 ms."""
    if math.isnan(value):
        return "unknown"
    for factor, prefix in PREFIXES[-2 if unit == "s" else 0 :]:
        if value >= 0.9995 * factor:  # which would be rounded to 1000 of the unit below
            number = value / factor
            return f"{number:,.0f} {prefix}{unit}" if number > 999 else f"{number:.3g} {prefix}{unit}"
    return f"{value * 1e6:.3g} µ{unit}" if value else f"0 {unit}"


def in_gb(size: float | None) -> str:
    """Return a number of bytes in GB, or "?"."""
    return "?" if size is None else f"{size / 1e9:.1f}"


def table(rows: Sequence[tuple[str, Any, dict[str, Any]]]) -> str:
    """Return the plans side by side, in Markdown."""
    lines = [
        "| slice | mesh | changes | peak GB | fits | TFLOP | GB accessed | GB moved | GB sent | images/s at best |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one, changes in rows:
        axes = " ".join(f"{axis}={size}" for axis, size in one.mesh.items())
        fits = {True: "yes", False: "no", None: "?"}[one.fits]
        best = f"{one.images_per_second:,.0f}" if one.images_per_second else "?"
        sent = sum(traffic.sent for traffic in one.traffic)
        lines.append(
            f"| {name} | {axes} | {flags_of(changes) or '-'} | {one.peak / 1e9:.2f} | {fits} | {one.flops / 1e12:.2f} | "
            f"{in_gb(one.accessed)} | {in_gb(one.moved)} | {sent / 1e9:.2f} | {best} |"
        )
    return "\n".join(lines)
