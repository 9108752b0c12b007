"""Parts of JPEG files that were made for it decode to the pixels of the whole file, and damage is never an error."""

import contextlib
import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from vit_jax.data import jpeg_parts
from vit_jax.data.decode import decode, decode_part
from vit_jax.data.photographs import crops
from vit_jax.data.prepare import Rewrite
from vit_jax.data.source import UnreadableImage

KINDS = {
    "420": {"subsampling": "4:2:0"},
    "422": {"subsampling": "4:2:2"},
    "444": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "gray": {},
    "restarts": {"restart_marker_rows": 1},
}
needs_tool = pytest.mark.skipif(not jpeg_parts.has_tool(), reason="needs jpegtran")


def jpeg(kind, size):
    pixels = crops(1, (*size, 3))[0]
    image = Image.fromarray(pixels[..., 0] if kind == "gray" else pixels)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **KINDS[kind])
    return file.getvalue()


def made_in_python(data: bytes) -> bytes:
    """A file with restart intervals by Pillow, and the list of their lengths."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.save(file, "JPEG", quality="keep", restart_marker_blocks=1)
    made = jpeg_parts._with_lengths(file.getvalue())
    assert made is not None
    return made


def boxes(size, count=60):
    """Boxes of any size and place, at the edges too."""
    rng = np.random.default_rng(0)
    yield size[1] - 1, 0, size[1], size[0]  # narrower than what libjpeg upsamples smoothly
    yield 0, size[0] - 1, size[1], size[0]
    for _ in range(count - 2):
        (top, bottom), (left, right) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in size)
        yield left, top, right, bottom


def check(data, whole):
    """Every box of a file decodes to its pixels; returns how many were cut out."""
    cut = 0
    for box in boxes(whole.shape[:2]):
        left, top, right, bottom = box
        for channels in (3, 1):
            found = decode_part(data, channels, lambda *_, box=box: box)
            np.testing.assert_array_equal(found, decode(data, channels)[top:bottom, left:right])
        cut += jpeg_parts.cut_out(data, box) is not None
    return cut


@pytest.mark.parametrize("size", [(40, 56), (97, 131), (16, 17)])
def test_every_box_has_the_pixels_of_the_whole_file(size):
    data = made_in_python(jpeg("420", size))
    assert check(data, decode(data)) == 60


@needs_tool
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(40, 56), (97, 131)])
def test_a_rewritten_file_has_the_same_pixels_and_can_be_cut(kind, size):
    data = jpeg(kind, size)
    made = Rewrite(fast_crops=True)(data)
    np.testing.assert_array_equal(decode(made), decode(data))
    assert check(made, decode(data)) == 60
    part, _ = jpeg_parts.cut_out(made, (0, 0, 8, 8))
    assert len(part) < len(made)


@needs_tool
def test_a_shrunk_file_can_be_cut():
    made = Rewrite(min_side=48, fast_crops=True)(jpeg("420", (97, 131)))
    assert decode(made).shape[0] == 48
    assert jpeg_parts.cut_out(made, (3, 4, 20, 30)) is not None


@needs_tool
def test_files_that_are_no_jpeg_are_unchanged():
    file = io.BytesIO()
    Image.fromarray(crops(1, (20, 20, 3))[0]).save(file, "PNG")
    assert Rewrite(fast_crops=True)(file.getvalue()) == file.getvalue()


@needs_tool
def test_rotated_and_cmyk_files_are_unchanged():
    """Training decodes them whole."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = crops(1, (40, 56, 3))[0]
    for image, options in ((Image.fromarray(pixels), {"exif": exif}), (Image.fromarray(pixels).convert("CMYK"), {})):
        file = io.BytesIO()
        image.save(file, "JPEG", **options)
        rewrite = Rewrite(fast_crops=True)
        assert rewrite(file.getvalue()) == file.getvalue()
        assert not rewrite.made


@needs_tool
def test_a_file_is_rewritten_once_and_again():
    made = Rewrite(fast_crops=True)(jpeg("420", (97, 131)))
    assert Rewrite(fast_crops=True)(made) == made


def test_other_files_are_not_cut():
    assert jpeg_parts.cut_out(jpeg("420", (40, 56)), (0, 0, 8, 8)) is None
    assert jpeg_parts.cut_out(jpeg("restarts", (40, 56)), (0, 0, 8, 8)) is None
    assert jpeg_parts.cut_out(b"", (0, 0, 8, 8)) is None


def test_damage_gives_pixels_or_the_whole_file_and_no_error():
    data, rng = made_in_python(jpeg("420", (97, 131))), np.random.default_rng(0)
    listed = data.index(jpeg_parts.ID)
    for i in range(400):
        damaged = bytearray(data)
        # Half of the damage is in the list of lengths and the frame.
        at = rng.integers(2, len(data), 4) if i % 2 else listed + rng.integers(0, 700, 4)
        for place in at:
            damaged[place] = rng.integers(256)
        with contextlib.suppress(UnreadableImage):
            assert decode_part(bytes(damaged), 3, lambda h, w: (w // 4, h // 5, w, h)).dtype == np.uint8
    for end in range(0, len(data), 97):
        assert jpeg_parts.cut_out(data[:end], (30, 20, 90, 70)) is None
