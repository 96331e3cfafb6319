"""Pictures in: JPEG, PNG and WebP, judged by content, to upright sRGB pixels; and small JPEG pictures out."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model_store.engine import Picture
from model_store.errors import InfiniteTalkError
from service.media import files, sniff

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded: 64 megapixels, 192 MB of RGB."""

MAX_BYTES = 200 * 2**20
"""The largest file that is read; an uncompressed picture of :data:`MAX_PIXELS` is smaller."""

MIN_SIDE = 64
"""The shortest side, in pixels, of a picture that can hold a usable face."""

GROUND = (255, 255, 255)
"""What lies behind transparent pixels: white, as on the page where a cut-out portrait is usually seen."""

THUMBNAIL_SIDE = 480
"""Longest side, in pixels, of a thumbnail."""

_DAMAGE = (OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error)
"""What Pillow's parsers run into in damaged files. MemoryError is the machine's trouble, and passes."""

_warning_lock = threading.Lock()
_SRGB = ImageCms.createProfile("sRGB")
_READABLE = "use a JPEG, PNG or WebP picture"


def load_picture(source: Path | bytes) -> Picture:
    """Decode a picture as a viewer would show it.

    EXIF orientation is applied, an embedded ICC profile converted to sRGB, transparency laid on :data:`GROUND`, 16-bit,
    greyscale, palette and CMYK pictures converted; of an animation the first frame is taken. The number of pixels is read from
    the header and checked before anything is decoded.

    Args:
        source: a file, or a file's bytes.

    Returns:
        RGB uint8 ``[H, W, 3]``.

    Raises:
        InfiniteTalkError: ``picture_not_found``, ``picture_unreadable``, ``picture_empty``, ``picture_unsupported`` (not JPEG,
            PNG or WebP), ``picture_damaged``, ``picture_too_large`` or ``picture_too_small``, all with ``param="image"``.
    """
    data = source if isinstance(source, bytes) else _read(source)
    kind = sniff.sniff(data[: sniff.HEAD_BYTES])
    if kind is sniff.EMPTY:
        raise _error("picture_empty", "The picture is an empty file (0 bytes): upload or export it again.")
    if kind not in {sniff.JPEG, sniff.PNG, sniff.WEBP}:
        raise _error("picture_unsupported", f"The picture is {kind.name}, which cannot be used: {_READABLE}.")
    with _quiet():
        try:
            with _open(data, kind) as image:
                _require_size(*image.size)
                return np.asarray(_to_rgb(image), np.uint8)
        except InfiniteTalkError:
            raise
        except Image.DecompressionBombError as error:
            raise _error("picture_too_large", f"The picture hides more data than it shows: {_READABLE} saved anew.") from error
        except _DAMAGE as error:
            raise _error("picture_damaged", f"The picture is {kind.name} that is damaged or cut short: save it again.") from error


def thumbnail(frame: Picture, side: int = THUMBNAIL_SIDE) -> bytes:
    """A JPEG of one frame (RGB uint8 ``[H, W, 3]``), its longest side at most ``side`` pixels."""
    image = Image.fromarray(frame)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def _error(code: str, message: str) -> InfiniteTalkError:
    return InfiniteTalkError(code, message, param="image")


def _read(path: Path) -> bytes:
    try:
        with files.open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise _error("picture_not_found", f"There is no picture {path.name!r} at that place: check the path.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise _error("picture_unreadable", f"The picture {path.name!r} cannot be read ({reason}): check the path.") from error
    if len(data) > MAX_BYTES:
        raise _error("picture_too_large", f"The picture's file is larger than {MAX_BYTES >> 20} MB: scale it down.")
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns about odd metadata that does not concern the user. The lock keeps threads from restoring
    # each other's filters.
    with _warning_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes, kind: sniff.Kind) -> ImageFile:
    # The plugins' own classes read the header only, and leave the pixel limit to us (Image.open has one of its own).
    if kind is sniff.JPEG:
        return JpegImageFile(io.BytesIO(data))
    if kind is sniff.PNG:
        return PngImageFile(io.BytesIO(data))
    # libwebp sets canvases aside as soon as it is opened, so the header is read here first.
    _require_size(*_webp_size(data))
    return WebPImageFile(io.BytesIO(data))


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height from the first chunk (RFC 9649)."""
    chunk, body = data[12:16], data[20:30]
    if len(body) < 10:
        raise ValueError("no header")
    if chunk == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no picture chunk")


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _error(
            "picture_too_large",
            f"The picture is {width}x{height} ({width * height / 1e6:.0f} megapixels), the limit is {MAX_PIXELS / 1e6:.0f}: "
            "scale it down (1080 pixels on the short side are plenty).",
        )
    if min(width, height) < MIN_SIDE:
        raise _error(
            "picture_too_small",
            f"The picture is {width}x{height}: use one of at least {MIN_SIDE} pixels on each side (512 or more look good).",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    profile = image.info.get("icc_profile")
    with suppress(Exception):  # damaged EXIF data says nothing about orientation, whatever the parser makes of it
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode not in {"RGB", "L", "CMYK"}:
        image = image.convert("RGB")
    image = _to_srgb(image, profile)
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, GROUND), alpha)
    return image


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling.
    values: NDArray[np.int64] = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip((values + 128) // 257, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        # A profile that does not fit its picture, or is damaged, is ignored, as browsers do.
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
            if converted is not None:
                return converted
    return image.convert("RGB")
