"""Files made to hurt, sent through the API: each job ends with a clear code, memory stays bounded, and the next job runs."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import httpx
import numpy as np
import psutil
import pytest
import soundfile
from servers import Client, Deployment

API_MIB, WORKER_MIB, ENGINE_MIB = 400, 400, 1500
"""Resident memory that no process may ever have had. An engine process is about 200 MiB when idle."""


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("besieged"), {"INFINITETALK_MAX_VIDEO_SECONDS": "60"})
    try:
        deployment.worker()
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


def png(width: int, height: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def wav(seconds: float = 1.0, claimed: int | None = None, rate: int = 16_000) -> bytes:
    samples = np.sin(np.arange(round(seconds * rate)) * 0.2).astype(np.float32) * 0.3
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="PCM_16")
    data = bytearray(buffer.getvalue())
    if claimed is not None:
        data[4:8] = data[40:44] = struct.pack("<I", claimed)
    return bytes(data)


def box(name: bytes, *parts: bytes, size: int | None = None) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body) if size is None else size) + name + body


def m4a(tables: bytes) -> bytes:
    sound = b"\0" * 6 + b"\0\1" + b"\0" * 8 + b"\0\2\0\x10\0\0\0\0" + struct.pack(">I", 44_100 << 16)
    stbl = box(b"stbl", box(b"stsd", b"\0\0\0\0\0\0\0\1", box(b"mp4a", sound)), tables)
    mdhd = box(b"mdhd", bytes(12), struct.pack(">II", 44_100, 2**31), b"\x55\xc4\0\0")
    hdlr = box(b"hdlr", bytes(8), b"soun", bytes(12), b"\0")
    trak = box(b"trak", box(b"tkhd", bytes(84)), box(b"mdia", mdhd, hdlr, box(b"minf", box(b"smhd", bytes(8)), stbl)))
    return box(b"ftyp", b"M4A \0\0\0\0M4A mp42") + box(b"moov", box(b"mvhd", bytes(100)), trak) + box(b"mdat", bytes(5000))


PICTURES: dict[str, Callable[[], bytes]] = {
    "a PNG that claims 50,000 x 50,000": lambda: png(50_000, 50_000, bytes(1000)),
    "a PNG that claims 2^31 - 1": lambda: png(2**31 - 1, 2**31 - 1, bytes(1000)),
    "a PNG that is really 60 million pixels, which are allowed": lambda: png(10_000, 6_000, bytes(30_001) * 6_000),
    "a comment of 200 MB in a PNG": lambda: png(
        100, 100, bytes(301) * 100, (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))
    ),
    "a profile of 200 MB in a PNG": lambda: png(
        100, 100, bytes(301) * 100, (b"iCCP", b"p\0\0" + zlib.compress(bytes(200_000_000), 9))
    ),
    "a JPEG of nothing but markers": lambda: b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + b"\xff\xe1\xff\xff" * 400_000,
}

RECORDINGS: dict[str, Callable[[], bytes]] = {
    "a WAV that claims 2 GB": lambda: wav(claimed=2**31 - 1),
    "a WAV that claims 4 GB": lambda: wav(claimed=2**32 - 1),
    "a WAV of 64 channels at 4 GHz": lambda: wav()[:22] + struct.pack("<HIIHH", 64, 2**32 - 1, 2**32 - 1, 128, 16) + wav()[36:],
    "an ID3 tag of 256 MB": lambda: b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(2_000_000),
    "an MP4 box of 2 GB": lambda: box(b"ftyp", b"M4A \0\0\0\0M4A mp42") + box(b"moov", bytes(1_000_000), size=2**31 - 1),
    "an MP4 table of 2^32 - 1 sizes": lambda: m4a(box(b"stsz", bytes(4), struct.pack(">II", 0, 2**32 - 1), bytes(1000))),
    "an MP4 table of 2^32 - 1 times": lambda: m4a(box(b"stts", bytes(4), struct.pack(">I", 2**32 - 1), bytes(1000))),
    "a thousand boxes in boxes": lambda: box(b"ftyp", b"M4A \0\0\0\0M4A mp42") + nested(1000),
    "a FLAC whose comment claims 2 GB": lambda: (
        b"fLaC\0\0\0\x22" + bytes(34) + b"\x84\x00\x10\x00" + struct.pack("<I", 2**31 - 1) + bytes(4092)
    ),
    "an OGG page again and again": lambda: (b"OggS\0\2" + bytes(20) + b"\1\x1e\1vorbis" + bytes(23)) * 40_000,
}


VIDEOS: dict[str, Callable[[], bytes]] = {
    "an MP4 that claims 60,000 x 60,000": lambda: mp4(60_000, 60_000),
    "an MP4 that is really 35 million pixels, which are allowed": lambda: film(8192, 4320),
    "an MP4 box of 2 GB": lambda: box(b"ftyp", b"isom\0\0\0\0isommp42") + box(b"moov", bytes(1_000_000), size=2**31 - 1),
    "an MP4 table of 2^32 - 1 sizes": lambda: mp4(
        640, 480, box(b"stsz", bytes(4), struct.pack(">II", 0, 2**32 - 1), bytes(1000))
    ),
    "a thousand boxes in boxes": lambda: box(b"ftyp", b"isom\0\0\0\0isommp42") + nested(1000),
}


def mp4(width: int, height: int, tables: bytes = b"") -> bytes:
    picture = bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HH", width, height) + bytes(50)
    stbl = box(b"stbl", box(b"stsd", b"\0\0\0\0\0\0\0\1", box(b"avc1", picture)), tables)
    mdhd = box(b"mdhd", bytes(12), struct.pack(">II", 90_000, 2**31), b"\x55\xc4\0\0")
    hdlr = box(b"hdlr", bytes(8), b"vide", bytes(12), b"\0")
    trak = box(b"trak", box(b"tkhd", bytes(84)), box(b"mdia", mdhd, hdlr, box(b"minf", box(b"vmhd", bytes(12)), stbl)))
    return box(b"ftyp", b"isom\0\0\0\0isommp42") + box(b"moov", box(b"mvhd", bytes(100)), trak) + box(b"mdat", bytes(5000))


def film(width: int, height: int) -> bytes:
    """Two black frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
        container.mux(stream.encode())
    return buffer.getvalue()


def nested(depth: int) -> bytes:
    data = b""
    for _ in range(depth):
        data = box(b"moov", data)
    return data


def ending(besieged: Deployment, reference: bytes, speech: bytes, kind: str = "image", **fields: str) -> str:
    """The code a submission or its job ends with; "completed" where there was nothing wrong with it."""
    files = {kind: ("reference", reference, "application/octet-stream"), "audio": ("voice.wav", speech, "audio/wav")}
    form = {"consent": "true", "size": "128x128", **fields}
    answer = httpx.post(f"{besieged.url}/v1/videos", data=form, files=files, timeout=60)
    if answer.status_code != 202:
        assert 400 <= answer.status_code < 500, answer.text
        return str(answer.json()["error"]["code"])
    client = Client(besieged.url, Path(), Path())
    video = client.wait(answer.json()["id"], "completed", "failed")
    return video["error"]["code"] if video["error"] else "completed"


def require_modest(besieged: Deployment) -> None:
    """No process of the deployment has ever been larger than it may be."""
    worker = next(process for process in besieged.processes if process.name == "worker")
    for root, most in ((besieged.api, API_MIB), (worker, WORKER_MIB)):
        assert peak_mib(root.pid) < most, root.name
        for child in psutil.Process(root.pid).children(recursive=True):
            assert peak_mib(child.pid) < (ENGINE_MIB if root is worker else API_MIB), child.cmdline()


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture(besieged: Deployment, name: str) -> None:
    code = ending(besieged, PICTURES[name](), wav())
    assert code == "completed" if "really" in name else code.startswith("picture_"), code
    require_modest(besieged)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_hostile_video(besieged: Deployment, name: str) -> None:
    code = ending(besieged, VIDEOS[name](), wav(), kind="video")
    assert code == "completed" if "really" in name else code.startswith("video_"), code
    require_modest(besieged)


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_hostile_recording(besieged: Deployment, name: str, picture: Path) -> None:
    code = ending(besieged, picture.read_bytes(), RECORDINGS[name]())
    # What a header claims beyond the data is no fault where the data are sound: players play them, too.
    assert code == "completed" if "WAV that claims" in name else code.startswith("audio_"), code
    require_modest(besieged)


def test_work_that_needs_too_much_memory_fails_alone(besieged: Deployment, picture: Path) -> None:
    image = picture.read_bytes()
    assert ending(besieged, image, wav(), options='{"allocate_gib": 8}') == "memory_exceeded"
    require_modest(besieged)
    assert ending(besieged, image, wav()) == "completed"
