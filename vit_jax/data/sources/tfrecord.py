"""Files of TFRecord, the container that TFDS writes by default, without TensorFlow."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vit_jax.types import UserError

POLYNOMIAL = np.uint32(0x82F63B78)  # Castagnoli's, bits reversed (RFC 3720, appendix B.4)
BLOCK = 256  # bytes at once: so that the table below fits the processor's cache
# From no checksum at all these bytes lead to one of all ones, with which it must begin.
PREFIX = bytes.fromhex("54641f64")
AGAIN = "copy the file again from where it came, or prepare the data set again."


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in order; raises UserError, which names the record, for one that is damaged.

    Each is its length (uint64), the length's checksum (uint32), its bytes and their checksum.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while header := file.read(12):
                _check(header, 8, path, number)
                length = int.from_bytes(header[:8], "little")
                data = file.read(length + 4)
                _check(data, length, path, number)
                yield data[:length]
                number += 1
    except OSError as error:
        raise UserError(f"Found no readable file at {path} ({error.strerror or error}): {AGAIN}") from error


def _check(data: bytes, length: int, path: Path, number: int) -> None:
    """Raises UserError unless `length` bytes and their checksum are there."""
    whole = len(data) == length + 4
    if not whole or _masked(crc32c(data[:length])) != int.from_bytes(data[length:], "little"):
        raise UserError(
            f"Found record {number} of {path} {'with a wrong checksum' if whole else 'cut off'}, expected a whole one: "
            f"{AGAIN}"
        )


def _masked(crc: int) -> int:
    """The checksum as TFRecord stores it: turned by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The checksum CRC-32C (RFC 3720): 0xE3069283 for the digits 123456789.

    It is linear: the checksum of a block is the sum, bit by bit without carry, of what each byte adds at its place.
    """
    table, carries = _tables()
    zeros = bytes(-(len(PREFIX) + len(data)) % BLOCK)  # which in front add nothing
    blocks = np.frombuffer(zeros + PREFIX + data, np.uint8).reshape(-1, BLOCK)
    parts = np.bitwise_xor.reduce(table.take(blocks + np.arange(0, 256 * BLOCK, 256)), axis=1)
    crc = 0
    for part in parts.tolist():  # the checksum so far acts like four bytes added to the first of the block
        crc = (
            part
            ^ carries[0][crc & 255]
            ^ carries[1][crc >> 8 & 255]
            ^ carries[2][crc >> 16 & 255]
            ^ carries[3][crc >> 24]
        )
    return crc ^ 0xFFFFFFFF


@functools.cache
def _tables() -> tuple[np.ndarray, list[list[int]]]:
    """What a byte adds at every place of a block, uint32 [BLOCK * 256], and the first four places of it as lists."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = np.where(last & 1, last >> 1 ^ POLYNOMIAL, last >> 1)
    places = [last]
    while len(places) < BLOCK:
        places.append(places[-1] >> 8 ^ last[places[-1] & 255])
    table = np.stack(places[::-1])
    return table.reshape(-1), table[:4].tolist()
