import contextlib
import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from vit_jax.data.decode import decode, decode_part, exif_orientation, from_picture
from vit_jax.data.source import UnreadableImage
from vit_jax.types import UserError


def picture(height=24, width=36, channels=3):
    """A smooth image, so that lossy formats stay close, without symmetries."""
    y, x = np.mgrid[:height, :width]
    planes = [4 * x + 3 * y, 255 - 5 * x, 2 * x + 6 * y, 200 - 3 * y][:channels]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = Image.fromarray(picture())
GRAY = Image.fromarray(picture()[..., 0])
CMYK = Image.fromarray(picture(channels=4), "CMYK")
LOSSLESS = {"png": ("PNG", {}), "bmp": ("BMP", {}), "webp": ("WEBP", {"lossless": True}), "tiff": ("TIFF", {})}
JPEGS = {
    "baseline": {"quality": 95},
    "progressive": {"progressive": True},
    "444": {"subsampling": 0},
    "rgb": {"keep_rgb": True},
    "restarts": {"restart_marker_rows": 1},
}
TRUNCATED = {
    "jpeg": encode(RGB, "JPEG"),
    "progressive": encode(RGB, "JPEG", progressive=True),
    "gray jpeg": encode(GRAY, "JPEG"),
    "cmyk jpeg": encode(CMYK, "JPEG"),
    "png": encode(RGB, "PNG"),
    "webp": encode(RGB, "WEBP"),
    "bmp": encode(RGB, "BMP"),
}


def png(width, height, depth, color, raw, *extra):
    """Build a PNG file of a kind that Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    chunks = [header, *(chunk(*e) for e in extra), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_decode_to_the_exact_pixels(kind):
    name, options = LOSSLESS[kind]
    np.testing.assert_array_equal(decode(encode(RGB, name, **options)), picture())


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_jpeg_decodes_as_in_pillow(options):
    data = encode(RGB, "JPEG", **options)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_gray_is_repeated_to_three_channels(kind):
    data = encode(GRAY, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.stack([expected] * 3, axis=-1))
    np.testing.assert_array_equal(decode(data, channels=1), expected[..., None])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_one_channel_is_luma(kind):
    luma = picture() @ [0.299, 0.587, 0.114]
    assert np.abs(decode(encode(RGB, kind, quality=95), channels=1)[..., 0] - luma).max() < 8


def inks_to_rgb(cmyk):
    inks = 255 - cmyk.astype(float)
    return inks[..., :3] * inks[..., 3:] / 255


def test_cmyk_jpeg_with_adobe_marker_is_inverted():
    data = encode(CMYK, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    assert np.abs(decode(data) - inks_to_rgb(picture(channels=4))).max() < 8


def test_cmyk_jpeg_without_adobe_marker_is_not_inverted():
    data = encode(CMYK, "JPEG", quality=100, subsampling=0)
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 16 :]
    assert b"Adobe" not in plain
    assert np.abs(decode(plain) - inks_to_rgb(255 - picture(channels=4))).max() < 8


def test_cmyk_tiff_is_converted():
    assert np.abs(decode(encode(CMYK, "TIFF")) - inks_to_rgb(picture(channels=4))).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparency_is_composited_over_white(mode):
    alpha = np.zeros((24, 36), np.uint8)
    alpha[:, 10:] = 255
    image = GRAY.convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        data = encode(image.quantize(256), "PNG")
        assert Image.open(io.BytesIO(data)).mode == "P"
    elif mode == "PA":
        data = encode(image, "WEBP", lossless=True)
    else:
        data = encode(image.convert(mode), "PNG")
    got = decode(data)
    assert (got[:, :10] == 255).all()
    assert np.abs(got[:, 10:].astype(int) - picture()[:, 10:, :1]).max() <= (12 if mode == "P" else 0)


def test_half_transparent_is_half_way_to_white():
    image = Image.new("RGBA", (2, 2), (100, 0, 200, 128))
    assert np.abs(decode(encode(image, "PNG"))[0, 0] - np.array([177.2, 127, 227.4])).max() <= 1


def test_colour_key_of_a_png_is_transparent():
    data = png(2, 1, 8, 2, bytes([0, 10, 20, 30, 1, 2, 3]), (b"tRNS", bytes([0, 10, 0, 20, 0, 30])))
    assert decode(data).tolist() == [[[255, 255, 255], [1, 2, 3]]]


def test_16_bit_gray_is_scaled_by_257():
    samples = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    data = png(7, 1, 16, 0, b"\0" + samples.astype(">u2").tobytes())
    assert decode(data, channels=1)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]
    assert decode(encode(Image.fromarray(samples), "PNG"))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_16_bit_colour_is_scaled():
    samples = np.array([[0, 257 * 7, 257 * 200]], np.uint16)
    assert decode(png(1, 1, 16, 2, b"\0" + samples.astype(">u2").tobytes())).tolist() == [[[0, 7, 200]]]


def test_float_and_deep_integer_samples():
    unit, byte = np.array([[0, 0.5, 1]], np.float32), np.array([[0, 100.4, 300]], np.float32)
    deep = np.array([[-5, 257, 70000]], np.int32)
    got = [decode(encode(Image.fromarray(a), "TIFF"), channels=1)[0, :, 0].tolist() for a in (unit, byte, deep)]
    assert got == [[0, 128, 255], [0, 100, 255], [0, 1, 255]]


def test_one_bit_is_black_and_white():
    bits = picture()[..., 0] > 90
    np.testing.assert_array_equal(decode(encode(Image.fromarray(bits), "PNG"))[..., 0], bits * 255)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    data = encode(RGB, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_is_upright(orientation):
    entry = struct.pack("<HHII", 0x0112, 3, 1, orientation)
    assert exif_orientation(b"II*\0" + struct.pack("<IH", 8, 1) + entry) == 1


def test_big_endian_orientation_is_read():
    entry = struct.pack(">HHIHHI", 0x0112, 3, 1, 6, 0, 0)
    assert exif_orientation(b"MM\0*" + struct.pack(">IH", 8, 1) + entry) == 6


def test_damaged_exif_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    for length in range(6, len(whole)):
        data = encode(RGB, "JPEG", exif=whole[:length])
        assert decode(data).shape in ((24, 36, 3), (36, 24, 3))


@pytest.mark.parametrize("data", TRUNCATED.values(), ids=TRUNCATED)
def test_every_truncation_raises(data):
    assert decode(data).shape == (24, 36, 3)
    for length in [*range(0, len(data) - 40, 7), *range(len(data) - 40, len(data))]:
        with pytest.raises(UnreadableImage):
            decode(data[:length])


def test_harmless_extra_bytes_in_a_jpeg_are_accepted():
    data = encode(RGB, "JPEG")
    np.testing.assert_array_equal(decode(data[:-2] + b"\0\1\2\3" + data[-2:]), decode(data))


def test_bytes_after_the_end_are_accepted():
    for kind in ("JPEG", "PNG"):
        data = encode(RGB, kind)
        np.testing.assert_array_equal(decode(data + b"\0" * 100), decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, world" * 20, "not an image"),
        (b"\xff\xd8" + b"nonsense" * 20, "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (png(20000, 20000, 8, 2, b""), "pixels"),
    ],
    ids=["empty", "text", "jpeg header only", "program", "bomb"],
)
def test_not_an_image_raises_with_a_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)


def test_jpeg_that_claims_a_huge_size_raises():
    data = bytearray(encode(RGB, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(UnreadableImage, match=r"60000 x 60000 pixels is more than"):
        decode(bytes(data))


def with_flipped_bytes():
    """Files of every kind, 60 times each, with three random bytes."""
    rng = np.random.default_rng(0)
    for data in TRUNCATED.values():
        for _ in range(60):
            damaged = bytearray(data)
            for at in rng.integers(len(data), size=3):
                damaged[at] = rng.integers(256)
            yield bytes(damaged)


def test_flipped_bytes_raise_only_unreadable_image():
    for damaged in with_flipped_bytes():
        with contextlib.suppress(UnreadableImage):
            assert decode(damaged).dtype == np.uint8


def test_other_channel_counts_are_an_error():
    with pytest.raises(UserError, match="channels=4"):
        decode(b"", channels=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "I;16", "CMYK"])
def test_an_opened_image_equals_its_decoded_file(mode):
    rng = np.random.default_rng(0)
    samples = (
        rng.integers(0, 65536, (6, 9)).astype(np.uint16)
        if mode == "I;16"
        else rng.integers(0, 256, (6, 9, 3), np.uint8)
    )
    picture = Image.fromarray(samples) if mode == "I;16" else Image.fromarray(samples).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(100)
    file = io.BytesIO()
    picture.save(file, "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(file) as opened:
        np.testing.assert_array_equal(from_picture(opened), decode(file.getvalue()))


def photo(height, width, mode="RGB"):
    """Noise over gradients, so that every block has coefficients of all kinds."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 90, (height, width, 3))
    shades = np.stack([x % 160, (2 * y) % 160, (x + y) % 160], axis=-1)
    return Image.fromarray((shades + noise).astype(np.uint8)).convert(mode)


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


PARTS = {
    "444": ("RGB", {"subsampling": 0}),
    "422": ("RGB", {"subsampling": 1}),
    "420": ("RGB", {"subsampling": 2}),
    "gray": ("L", {}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "optimised": ("RGB", {"optimize": True, "quality": 30}),
    "progressive": ("RGB", {"progressive": True}),
    "rgb": ("RGB", {"keep_rgb": True}),
    "cmyk": ("CMYK", {}),
    "upright": ("RGB", {"exif": exif_of(1)}),
    "turned": ("RGB", {"exif": exif_of(6)}),
    "mirrored": ("RGB", {"exif": exif_of(2)}),
    "comment": ("RGB", {"comment": b"\xff\xda\xff\xc0"}),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (50, 61), (64, 48)])
@pytest.mark.parametrize("kind", PARTS)
def test_a_crop_equals_the_crop_of_the_whole_image(kind, size, channels):
    mode, options = PARTS[kind]
    data = encode(photo(*size, mode), "JPEG", **options)
    whole, rng = decode(data, channels), np.random.default_rng(1)
    for _ in range(12):
        (top, left) = (int(rng.integers(side)) for side in whole.shape[:2])
        bottom, right = int(rng.integers(top, whole.shape[0])) + 1, int(rng.integers(left, whole.shape[1])) + 1
        sizes = []
        got = decode_part(data, channels, lambda *size: sizes.append(size) or (left, top, right, bottom))
        np.testing.assert_array_equal(got, whole[top:bottom, left:right])
        assert sizes == [whole.shape[:2]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_crop_of_other_formats_equals_the_crop_of_the_whole_image(kind):
    data = encode(RGB, kind)
    np.testing.assert_array_equal(decode_part(data, 3, lambda *_: (3, 2, 9, 11)), decode(data)[2:11, 3:9])


def test_a_crop_of_a_jpeg_with_harmless_extra_bytes_equals_the_crop_of_the_whole_image():
    data = encode(RGB, "JPEG")
    extra = data[:-2] + b"\0\1\2\3" + data[-2:]
    np.testing.assert_array_equal(decode_part(extra, 3, lambda *_: (0, 0, 9, 7)), decode(data)[:7, :9])


def test_a_crop_needs_only_the_rows_down_to_it():
    data = encode(photo(256, 64), "JPEG")
    got = decode_part(data[: len(data) // 2], 3, lambda *_: (5, 3, 50, 40))
    np.testing.assert_array_equal(got, decode(data)[3:40, 5:50])


def test_flipped_bytes_of_a_crop_raise_only_unreadable_image():
    for damaged in with_flipped_bytes():
        with contextlib.suppress(UnreadableImage):
            assert decode_part(damaged, 3, lambda h, w: (0, 0, w, max(1, h // 2))).dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 600_000), (600_000, 1)])
def test_a_side_that_no_image_has_is_unreadable(size):
    with pytest.raises(UnreadableImage, match="side"):
        decode(png(size[1], size[0], 1, 0, b""))


@pytest.mark.parametrize("side", [16, 32_000])
def test_a_tile_larger_than_any_image_is_unreadable(side):
    tile = zlib.compress(bytes(16 * 16))
    tags = {
        256: 8,
        257: 8,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: side,
        323: side,
        324: 8 + 2 + 10 * 12 + 4,
        325: len(tile),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + tile
    if side == 16:
        assert decode(data).shape == (8, 8, 3)
        return
    with pytest.raises(UnreadableImage, match="pixels is more"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_is_explained_in_words(kind):
    rng, file = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(file, kind)
    reasons = set()
    for _ in range(150):
        data = bytearray(file.getvalue())
        for place in rng.integers(min(len(data), 400), size=3):
            data[place] = rng.integers(256)
        try:
            decode(bytes(data))
        except UnreadableImage as error:
            reasons.add(str(error))
    assert reasons
    assert all(" " in reason and re.search("[a-z]{4}", reason) for reason in reasons), reasons


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_samples_are_converted_in_blocks_as_at_once(dtype):
    samples = np.random.default_rng(0).integers(0, 65536, (700, 3)).astype(dtype)
    samples = samples if dtype == "uint16" else samples / 65535
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "TIFF")
    scale = 257 if dtype == "uint16" else 1 / 255
    np.testing.assert_array_equal(decode(file.getvalue(), 1)[:, :, 0], np.rint(samples.astype(np.float64) / scale))
