"""What a file is, told by its first bytes and never by its name."""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 4096
"""How much of a file's beginning :func:`sniff` wants to see."""

_ID3_HEADER = 10


@dataclass(frozen=True)
class Kind:
    """A file format.

    Args:
        name: as people call it, with its article, to stand in a sentence ("This is a GIF picture").
        demuxer: FFmpeg's name of the reader, for sound and video; empty for everything else.
    """

    name: str
    demuxer: str = ""


JPEG, PNG, WEBP = Kind("a JPEG picture"), Kind("a PNG picture"), Kind("a WebP picture")
WAV, FLAC, OGG = Kind("a WAV file", "wav"), Kind("a FLAC file", "flac"), Kind("an OGG file", "ogg")
MP3, AAC = Kind("an MP3 file", "mp3"), Kind("an AAC file", "aac")
MP4, WEBM = Kind("an MP4 file", "mp4"), Kind("a WebM file", "matroska")
EMPTY, TEXT, UNKNOWN = Kind("an empty file"), Kind("a text file"), Kind("a file of an unknown kind")

_MAGIC = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF8", Kind("a GIF picture")),
    (b"II*\0", Kind("a TIFF picture")),
    (b"MM\0*", Kind("a TIFF picture")),
    (b"BM", Kind("a BMP picture")),
    (b"\0\0\1\0", Kind("an icon")),
    (b"8BPS", Kind("a Photoshop file")),
    (b"\xff\x0a", Kind("a JPEG XL picture")),
    (b"%PDF", Kind("a PDF document")),
    (b"PK\3\4", Kind("a ZIP archive")),
    (b"\x1f\x8b", Kind("a gzip archive")),
    (b"fLaC", FLAC),
    (b"OggS", OGG),
    (b"\x1aE\xdf\xa3", WEBM),
    (b"MThd", Kind("a MIDI file")),
    (b"#!AMR", Kind("an AMR file")),
    (b"caff", Kind("a CAF file")),
    (b"\x30\x26\xb2\x75", Kind("a Windows Media file")),
    (b"FLV\1", Kind("a Flash video")),
)
_RIFF = {b"WAVE": WAV, b"WEBP": WEBP, b"AVI ": Kind("an AVI video")}
_STILL_BRANDS = {b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"avif", b"avis"}
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}


def sniff(head: bytes) -> Kind:
    """The kind of a file whose first :data:`HEAD_BYTES` bytes (or all of them, when it is shorter) are ``head``."""
    if not head:
        return EMPTY
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] in {b"RIFF", b"RF64", b"BW64"}:
        return _RIFF.get(head[8:12], UNKNOWN)
    if head[:4] == b"FORM" and head[8:12] in {b"AIFF", b"AIFC"}:
        return Kind("an AIFF file")
    if head[4:8] in _MP4_BOXES:
        return Kind("a HEIC or AVIF picture") if head[8:12] in _STILL_BRANDS else MP4
    return _mpeg_audio(head) or _text(head) or UNKNOWN


def _mpeg_audio(head: bytes) -> Kind | None:
    if head.startswith(b"ID3"):
        if len(head) < _ID3_HEADER:
            return MP3
        size = 0
        for byte in head[6:10]:  # four "synchsafe" bytes of seven bits
            size = size << 7 | byte & 0x7F
        after = head[_ID3_HEADER + size :]
        if after.startswith(b"fLaC"):
            return FLAC
        return (_mpeg_audio(after) if after[:3] != b"ID3" else None) or MP3
    frame = head.lstrip(b"\0")  # some encoders pad the beginning
    if len(frame) < 2 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return None
    layer = frame[1] >> 1 & 3
    if layer == 0:
        return AAC if frame[1] & 0xF0 == 0xF0 else None
    return MP3


def _text(head: bytes) -> Kind | None:
    try:
        text = head[: len(head) // 4 * 4].decode()
    except UnicodeDecodeError as error:
        # The head may end in the middle of a character.
        if error.start < len(head) - 4 or not error.start:
            return None
        text = head[: error.start].decode()
    if any(ord(character) < 32 and character not in "\t\n\r\f" for character in text):
        return None
    lowered = text.lstrip("\ufeff \t\r\n").lower()
    if "<svg" in lowered:
        return Kind("an SVG drawing")
    return Kind("a web page") if lowered.startswith(("<!doctype html", "<html")) else TEXT
