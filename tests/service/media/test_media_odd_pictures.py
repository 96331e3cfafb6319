"""Pictures of every kind, and everything that is none: each gives the pixels a viewer shows, or a clear error."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from model_store.errors import InfiniteTalkError
from service.media import picture
from service.media.picture import load_picture, thumbnail

pytestmark = pytest.mark.filterwarnings("error")

WIDTH, HEIGHT = 120, 80
RED, BLUE, WHITE = (200, 30, 40), (30, 40, 200), (255, 255, 255)


def scene() -> Image.Image:
    """Red on the left, blue on the right, wider than high."""
    image = Image.new("RGB", (WIDTH, HEIGHT), RED)
    image.paste(BLUE, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit(colour: int) -> bytes:
    """A 16-bit PNG, made by hand: colour type 0 grey, 2 RGB, 6 RGBA. Every 8-bit value v stands as v * 257."""
    pixels = np.asarray(scene())
    if colour == 0:
        pixels = np.asarray(scene().convert("L"))[..., None]
    if colour == 6:
        pixels = np.dstack([pixels, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    rows = (pixels.astype(">u2") * 257).astype(">u2")
    return png(WIDTH, HEIGHT, 16, colour, b"".join(b"\0" + row.tobytes() for row in rows))


def cut_out() -> Image.Image:
    """The scene with its right half transparent."""
    image = scene().convert("RGBA")
    image.paste((0, 0, 0, 0), (WIDTH // 2, 0, WIDTH, HEIGHT))
    return image


def swapped_profile() -> bytes:
    """sRGB with red and blue exchanged: a picture that obeys it shows red where blue is stored."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def turned(orientation: int) -> bytes:
    """The scene stored as a camera held otherwise would, with the tag that says how to turn it upright."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return saved(scene().transpose(back), "JPEG", quality=95, exif=exif(orientation))


def palette_with_transparency() -> bytes:
    image = scene().quantize(8)
    image.info["transparency"] = image.getpixel((WIDTH - 1, 0))
    return saved(image, "PNG", transparency=image.info["transparency"])


def animated(kind: str) -> bytes:
    return saved(scene(), kind, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), WHITE)] * 3, lossless=True)


def grey(image: Image.Image) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    values = np.asarray(image.convert("L"))
    return (int(values[0, 0]),) * 3, (int(values[0, -1]),) * 3


SCENE = (RED, BLUE)
DAMAGED_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12" + b"\xff" * 40
GOOD: dict[str, tuple[Callable[[], bytes], tuple[tuple[int, ...], tuple[int, ...]]]] = {
    "JPEG": (lambda: saved(scene(), "JPEG", quality=95), SCENE),
    "progressive JPEG": (lambda: saved(scene(), "JPEG", quality=95, progressive=True), SCENE),
    "grey JPEG": (lambda: saved(scene().convert("L"), "JPEG", quality=95), grey(scene())),
    "CMYK JPEG": (lambda: saved(scene().convert("CMYK"), "JPEG", quality=95), SCENE),
    "PNG": (lambda: saved(scene(), "PNG"), SCENE),
    "16-bit grey PNG": (lambda: sixteen_bit(0), grey(scene())),
    "16-bit RGB PNG": (lambda: sixteen_bit(2), SCENE),
    "16-bit RGBA PNG": (lambda: sixteen_bit(6), SCENE),
    "grey PNG with alpha": (lambda: saved(cut_out().convert("LA"), "PNG"), (grey(scene())[0], WHITE)),
    "palette PNG": (lambda: saved(scene().quantize(8), "PNG"), SCENE),
    "palette PNG with transparency": (palette_with_transparency, (RED, WHITE)),
    "black and white PNG": (
        lambda: saved(scene().convert("L").point(lambda v: 255 * (v > 70)).convert("1"), "PNG"),
        (WHITE, (0, 0, 0)),
    ),
    "PNG with alpha": (lambda: saved(cut_out(), "PNG"), (RED, WHITE)),
    "animated PNG": (lambda: animated("PNG"), SCENE),
    "WebP": (lambda: saved(scene(), "WEBP", quality=95), SCENE),
    "lossless WebP": (lambda: saved(scene(), "WEBP", lossless=True), SCENE),
    "WebP with alpha": (lambda: saved(cut_out(), "WEBP", lossless=True), (RED, WHITE)),
    "animated WebP": (lambda: animated("WEBP"), SCENE),
    "two-picture JPEG (MPO)": (lambda: saved(scene(), "MPO", save_all=True, append_images=[scene()], quality=95), SCENE),
    "colour profile": (lambda: saved(scene(), "PNG", icc_profile=swapped_profile()), (RED[::-1], BLUE[::-1])),
    "damaged colour profile": (lambda: saved(scene(), "PNG", icc_profile=b"not a profile" * 20), SCENE),
    "profile of another colour space": (
        lambda: saved(scene().convert("CMYK"), "JPEG", quality=95, icc_profile=swapped_profile()),
        SCENE,
    ),
    "damaged EXIF": (
        lambda: saved(scene(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12" + b"\xff" * 40),
        SCENE,
    ),
    "data after the end": (lambda: saved(scene(), "JPEG", quality=95) + b"trailing" * 1000, SCENE),
    **{f"turned by EXIF {n}": ((lambda n=n: turned(n)), SCENE) for n in range(2, 9)},
}


@pytest.mark.parametrize("name", GOOD)
def test_is_shown_as_a_viewer_shows_it(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, (left, right) = GOOD[name]
    data = make()
    pixels = load_picture(data)
    assert (pixels.shape, pixels.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    for place, colour in ((WIDTH // 4, left), (WIDTH * 3 // 4, right)):
        np.testing.assert_allclose(pixels[HEIGHT // 2, place], colour, atol=12)
    path = tmp_path / "photo.mp3"  # by content, not by name
    path.write_bytes(data)
    assert np.array_equal(load_picture(path), pixels)
    assert capfd.readouterr() == ("", "")


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is huge."""
    return png(width, height, 8, 2, bytes(100))


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(saved(scene(), "JPEG"))
    frame = data.index(b"\xff\xc0") + 5
    data[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    data = bytearray(saved(cut_out(), "WEBP"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def text_bomb() -> bytes:
    """A PNG with a compressed comment of 100 MB."""
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
    return png(WIDTH, HEIGHT, 8, 2, bytes((WIDTH * 3 + 1) * HEIGHT), comment)


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))

BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zero bytes": ("picture_empty", lambda: b""),
    "a text": ("picture_unsupported", lambda: b"This is not a picture.\n" * 20),
    "random bytes": ("picture_unsupported", lambda: np.random.default_rng(9).bytes(5_000)),
    "a GIF": ("picture_unsupported", lambda: saved(scene(), "GIF")),
    "a TIFF": ("picture_unsupported", lambda: saved(scene(), "TIFF")),
    "a BMP": ("picture_unsupported", lambda: saved(scene(), "BMP")),
    "an AVIF": ("picture_unsupported", lambda: saved(scene(), "AVIF")),
    "an SVG": ("picture_unsupported", lambda: b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "a PDF": ("picture_unsupported", lambda: saved(scene(), "PDF")),
    "an MP4": ("picture_unsupported", lambda: b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99)),
    "a web page": ("picture_unsupported", lambda: b"<!DOCTYPE html><html><body>404</body></html>"),
    "half a JPEG": ("picture_damaged", lambda: halved(saved(NOISE, "JPEG"))),
    "half a PNG": ("picture_damaged", lambda: halved(saved(NOISE, "PNG"))),
    "half a WebP": ("picture_damaged", lambda: halved(saved(NOISE, "WEBP"))),
    "three bytes of a JPEG": ("picture_damaged", lambda: b"\xff\xd8\xff"),
    "a PNG signature alone": ("picture_damaged", lambda: b"\x89PNG\r\n\x1a\n"),
    "a WebP header alone": ("picture_damaged", lambda: b"RIFF\x10\0\0\0WEBPVP8 "),
    "a PNG with broken data": (
        "picture_damaged",
        lambda: png(WIDTH, HEIGHT, 8, 2, b"")[:41] + b"\x13\x37" * 40 + b"IEND",
    ),
    "a JPEG with garbage after its header": ("picture_damaged", lambda: saved(NOISE, "JPEG")[:200] + b"\xff" * 3_000),
    "a PNG bomb": ("picture_too_large", lambda: bomb(50_000, 50_000)),
    "a PNG bomb beyond 32 bits": ("picture_too_large", lambda: bomb(2**31 - 1, 2**31 - 1)),
    "a JPEG bomb": ("picture_too_large", lambda: jpeg_of_size(65_500, 65_500)),
    "a WebP bomb": ("picture_too_large", lambda: webp_of_size(16_384, 16_384)),
    "a bomb in a PNG comment": ("picture_damaged", text_bomb),
    "a picture of 63 pixels": ("picture_too_small", lambda: saved(Image.new("RGB", (200, 63)), "PNG")),
    "a picture of one pixel": ("picture_too_small", lambda: saved(Image.new("RGB", (1, 1)), "WEBP")),
    "a PNG of no pixels": ("picture_damaged", lambda: bomb(0, 0)),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, make = BAD[name]
    path = tmp_path / "photo.png"
    path.write_bytes(make())
    with pytest.raises(InfiniteTalkError) as raised:
        load_picture(path)
    error = raised.value
    assert (error.code, error.param) == (code, "image")
    cause, cure = error.message.split(": ", 1)
    assert cause
    assert cure.endswith(".")
    assert "\n" not in error.message
    assert capfd.readouterr() == ("", "")


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # One pixel more than the limit, and cut short, which decoding would find out.
    monkeypatch.setattr(picture, "MAX_PIXELS", 200 * 200 - 1)
    for kind in ("JPEG", "PNG", "WEBP"):
        with pytest.raises(InfiniteTalkError) as raised:
            load_picture(saved(NOISE, kind)[:-50])
        assert raised.value.code == "picture_too_large"


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    huge = tmp_path / "huge.png"
    huge.write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(huge, picture.MAX_BYTES + 1)
    for path, code in (
        (tmp_path / "missing.png", "picture_not_found"),
        (tmp_path, "picture_unreadable"),
        (tmp_path / "pipe", "picture_unreadable"),
        (huge, "picture_too_large"),
    ):
        with pytest.raises(InfiniteTalkError) as raised:
            load_picture(path)
        assert raised.value.code == code


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    data = GOOD["damaged EXIF"][0]()
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load_picture(data) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_a_thumbnail_is_a_small_jpeg_of_the_frame() -> None:
    frame = np.asarray(scene().resize((1280, 720), Image.Resampling.NEAREST))
    image = Image.open(io.BytesIO(thumbnail(frame)))
    assert (image.format, image.size) == ("JPEG", (480, 270))
    np.testing.assert_allclose(np.asarray(image)[100, 100], RED, atol=6)
