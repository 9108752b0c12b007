"""Read TFRecord files, TFDS's default container, without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from vit_jax.types import UserError

REMEDY = "Copy the file again from its source, or prepare the dataset again."


def read_records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file in order; raises UserError naming the record if it is damaged.

    A record is its length (uint64), the length's checksum (uint32), its bytes and their checksum.
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
        raise UserError(f"{path} cannot be read ({error.strerror or error}). {REMEDY}") from error


def _check(data: bytes, length: int, path: Path, number: int) -> None:
    """Raise UserError unless `data` is `length` bytes and their checksum."""
    is_complete = len(data) == length + 4
    if not is_complete or _masked_crc(data[:length]) != int.from_bytes(data[length:], "little"):
        raise UserError(
            f"Record {number} of {path} {'has a wrong checksum' if is_complete else 'is cut off'}. {REMEDY}"
        )


def _masked_crc(data: bytes) -> int:
    """Compute TFRecord's checksum: CRC-32C rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
