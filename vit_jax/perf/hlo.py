"""What a compiled program does, read from its text: traffic between devices, and bytes moved in loops."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from typing import Any

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2}  # the others say their bits
SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)(?:e\w+)?\[([\d,]*)\](\{[^}]*\})?")
INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ((?:\(.*?\)|[^ (]+)(?:\{[^}]*\})?) ([\w\-]+)\((.*)$")
TILE = re.compile(r"T\(([\d,]+)\)")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
INDEX = re.compile(r"\bindex=(\d+)")
SLICES = ("dynamic-slice", "slice", "gather")
# Of what is made of an array by these, a slice takes a slice of the array.
AS_IT_IS = ("bitcast", "convert", "copy", "pad", "reshape", "transpose")
# They move nothing, or what they call is looked into.
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; size is that of its output in bytes, and in_memory of what of it is in main memory."""

    name: str
    kind: str
    size: float
    in_memory: float
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        branches = [name.lstrip("%") for found in BRANCHES.findall(self.rest) for name in found.split(", ")]
        return CALLED.findall(self.rest) + branches


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What each device exchanges with others in a step by one kind of operation: how often, and bytes of the arrays."""

    kind: str
    count: int
    size: float
    sent: float


def size_of(shape: str) -> tuple[float, float]:
    """The bytes of a shape, or of all in a tuple, and of those that lie in the device's main memory (memory space 0).

    In memory an array takes whole tiles, as many as its last dimensions in the order of the layout need.
    """
    total = in_memory = 0.0
    for kind, dims_text, layout in SHAPE.findall(shape):
        each = BYTES.get(kind) or int(re.sub(r"\D", "", kind)) / 8
        dims = [int(dim) for dim in dims_text.split(",") if dim]
        total += each * math.prod(dims)
        if "S(" not in layout:
            in_memory += each * math.prod(_padded(dims, layout))
    return total, in_memory


def _padded(dims: list[int], layout: str) -> list[int]:
    """The dimensions that an array has in memory, the one that changes fastest first."""
    order = re.match(r"\{([\d,]+)", layout)
    stored = [dims[int(axis)] for axis in order[1].split(",")] if order else dims[::-1]
    tile = TILE.search(layout)
    for place, edge in enumerate(reversed(tile[1].split(",")) if tile else ()):
        if place < len(stored):
            stored[place] = -(-stored[place] // int(edge)) * int(edge)
    return stored


def planned_memory(compiled: Any) -> int | None:
    """The bytes that a compiled function needs on each device: inputs, outputs and temporaries; None where it is not told."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    whole = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return whole - plan.alias_size_in_bytes


class Program:
    """The computations of a compiled program, by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        here: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith(("%", "ENTRY")) and line.endswith("{"):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0].split("(")[0]
                here = self.computations[name] = {}
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif match := INSTRUCTION.match(line):
                root, name, shape, kind, rest = match.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
                here[name] = Instruction(name, kind, *size_of(shape), operands, rest, bool(root))

    def collectives(self, devices: int) -> list[Traffic]:
        """The exchanges between devices, by kind; what is in a loop counts as often as it runs.

        Bytes sent are those of ring algorithms: of n devices each sends (n - 1) / n of an array to gather, scatter or
        transpose it, and twice that to reduce it everywhere.
        """
        found: dict[str, Traffic] = {}
        for instruction, times in self._walk(self.entry, 1):
            kind = instruction.kind.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            # The output of most starts holds the operands too.
            size = instruction.size
            if instruction.kind.endswith("-start") and kind != "all-reduce":
                size = max(size - self._inputs(instruction), size / 2)
            n = _group_size(instruction.rest, devices)
            size = size * n if kind == "reduce-scatter" else size
            share = 1.0 if kind == "collective-permute" else (2.0 if kind == "all-reduce" else 1.0) * (n - 1) / n
            old = found.get(kind, Traffic(kind, 0, 0.0, 0.0))
            found[kind] = Traffic(kind, old.count + times, old.size + times * size, old.sent + times * size * share)
        return sorted(found.values(), key=lambda traffic: -traffic.sent)

    def kernels(self) -> int:
        """How many calls of kernels there are, whose traffic inside nobody counts."""
        return sum(
            times for one, times in self._walk(self.entry, 1) if "tpu_custom_call" in one.rest or "cudnn" in one.rest
        )

    def moved(self, loops: bool = True) -> float:
        """The bytes read from and written to main memory, by the sizes of inputs and outputs.

        What is in a loop counts as often as it runs, or once; what stays in memory nearer to the processor does not count.
        """
        walk = self._walk(self.entry, 1, into_fusions=False)
        return math.fsum(self._moved(one) * (times if loops else 1) for one, times in walk)

    def _walk(self, name: str, times: int, into_fusions: bool = True) -> Iterable[tuple[Instruction, int]]:
        for instruction in self.computations.get(name, {}).values():
            yield instruction, times
            if instruction.kind in ("while", "conditional", "call", "async-start") or (
                into_fusions and instruction.kind == "fusion"
            ):
                trips = self._trips(instruction) if instruction.kind == "while" else 1
                for called in instruction.called:
                    yield from self._walk(called, times * trips, into_fusions)

    def _trips(self, loop: Instruction) -> int:
        """How often a while loop runs; once where it is not known.

        Where the compiler does not say it, a loop whose condition is a comparison with one constant counts up to that from 0.
        """
        if known := TRIPS.search(loop.rest):
            return int(known[1])
        match = CONDITION.search(loop.rest)
        inside = [one for one, _ in self._walk(match[1], 1)] if match else []
        bounds = [
            int(found[1]) for one in inside if one.kind == "constant" and (found := re.match(r"(\d+)\)", one.rest))
        ]
        compared = [one for one in inside if one.kind == "compare"]
        return bounds[0] if len(bounds) == len(compared) == 1 and "direction=LT" in compared[0].rest else 1

    def _inputs(self, instruction: Instruction) -> float:
        here = self._homes[id(instruction)]
        return math.fsum(here[name].size for name in instruction.operands if name in here)

    @functools.cached_property
    def _homes(self) -> dict[int, dict[str, Instruction]]:
        return {id(one): here for here in self.computations.values() for one in here.values()}

    def _moved(self, instruction: Instruction) -> float:
        """The bytes that an instruction reads and writes; of arrays that are sliced or updated only the part."""
        if instruction.kind in FREE or instruction.kind.endswith("-start"):
            return 0.0
        if instruction.kind.endswith("-done"):  # a prefetch into faster memory, or back
            return instruction.size
        here = self._homes[id(instruction)]
        sizes = [here[name].in_memory if name in here else 0.0 for name in instruction.operands]
        if instruction.kind in SLICES:
            return 2.0 * instruction.in_memory
        if instruction.kind == "dynamic-update-slice":
            return 2.0 * sizes[1]
        if instruction.kind != "fusion" or not instruction.called:
            return math.fsum(sizes) + instruction.in_memory
        inside = self._inside(instruction)
        read = [min(size, self._used(one, inside)) for one, size in zip(_parameters(inside), sizes, strict=False)]
        return (
            math.fsum(read)
            + instruction.in_memory
            - math.fsum(self._left_alone(one, inside) for one in _outputs(inside))
        )

    def _used(self, value: Instruction, inside: dict[str, Instruction], in_place: bool = True) -> float:
        """How much of a fusion's input it reads: of one that is only sliced the slices, of one that is only updated nothing.

        in_place: what the computation gives may be the memory of its input.
        """
        users = [one for one in inside.values() if value.name in one.operands]
        read = 0.0
        for one in users:
            first = one.operands[0] == value.name
            same = in_place and _is_parameter(value, inside) and _is_output(one, inside)
            if one.kind in SLICES and first:
                read += one.in_memory
            elif one.kind in AS_IT_IS:
                read += self._used(one, inside, in_place) * (
                    value.size / one.size if one.kind == "convert" and one.size else 1.0
                )
            elif one.kind == "dynamic-update-slice" and first and same:
                pass
            elif one.kind == "fusion" and (called := self._inside(one)):  # fusions are nested
                places = [place for place, name in enumerate(one.operands) if name == value.name]
                read += math.fsum(self._used(_parameters(called)[place], called, same) for place in places)
            else:
                return math.inf
        return read if users else math.inf

    def _left_alone(self, made: Instruction, inside: dict[str, Instruction]) -> float:
        """How much of an output of a fusion it does not write, as that is an input of which it updates a part in place."""
        while made.kind == "bitcast":
            made = inside[made.operands[0]]
        index = None
        if made.kind == "get-tuple-element" and (found := INDEX.search(made.rest)):
            index, made = int(found[1]), inside[made.operands[0]]
        if made.kind == "fusion":
            called = self._inside(made)
            outputs = _outputs(called) if index is None else _outputs(called)[index : index + 1]
            return math.fsum(self._left_alone(one, called) for one in outputs)
        if made.kind == "dynamic-update-slice" and _is_parameter(inside[made.operands[0]], inside):
            return made.in_memory - inside[made.operands[1]].in_memory
        return 0.0

    def _inside(self, fusion: Instruction) -> dict[str, Instruction]:
        """What a fusion computes; empty where that is not told."""
        return self.computations.get(fusion.called[0], {}) if fusion.called else {}


def _outputs(inside: dict[str, Instruction]) -> list[Instruction]:
    """The root of a computation, or what its tuple is made of."""
    roots = [one for one in inside.values() if one.is_root]
    return [inside[name] for root in roots for name in (root.operands if root.kind == "tuple" else (root.name,))]


def _is_parameter(value: Instruction, inside: dict[str, Instruction]) -> bool:
    """Whether it is the very memory of an input."""
    while value.kind == "bitcast":
        value = inside[value.operands[0]]
    return value.kind == "parameter"


def _is_output(value: Instruction, inside: dict[str, Instruction]) -> bool:
    """Whether it goes nowhere but out of the computation."""
    users = [one for one in inside.values() if value.name in one.operands]
    within = ("bitcast", "tuple", "get-tuple-element")
    return all(one.kind in within and _is_output(one, inside) for one in users) and (value.is_root or bool(users))


def _parameters(inside: dict[str, Instruction]) -> list[Instruction]:
    """The parameters of a computation, in their order."""
    found = [one for one in inside.values() if one.kind == "parameter"]
    return sorted(found, key=lambda one: int(one.rest.split(")")[0]))


def _group_size(rest: str, devices: int) -> int:
    """How many devices take part in an exchange together."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    return devices
