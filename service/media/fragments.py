"""Chunks of frames as H.264 fragments: encoded once, playable while more are made, joined into the MP4 without a second encoding.

Timeline: the fragments' clock begins :data:`LEAD_FRAMES` frames before the first picture, which leaves room to reorder B-frames
with decode times from 0 and composition offsets from 0 up: no edit list, nothing that players read in two ways. Audio segments
(:mod:`service.media.sound`) share the clock, and :func:`service.media.video.write_video` takes the lead off again.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property

import av
import cv2
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from model_store.engine import FPS, MAX_SIDE, Frames

LEAD_FRAMES = 2
"""Frames between the clock's zero and the first picture: how far x264 reorders B-frames with the settings below."""

TIMESCALE = 12_800
"""Ticks a second of the video track: 512 a frame."""

_ENCODER = {
    # veryfast at crf 18: on a moving 720p portrait 45.2 dB (luma) at 0.9 Mb/s for 11 ms of one core a frame; superfast needs
    # 8 ms but 1.5 Mb/s for the same 45.4 dB, faster and medium more than twice the time for under 0.6 dB. Two steps finer
    # than that, and each keyframe finer still: pictures fade a little between keyframes, and the fresh one must not pop.
    "preset": "veryfast",
    "crf": "16",
    "profile": "high",
    # A fixed number, since x264's bytes depend on it.
    "threads": "2",
    # One keyframe a chunk, at its start; chroma is averaged over 2x2 pixels, and says so.
    "x264-params": "keyint=infinite:scenecut=0:open-gop=0:chromaloc=1",
}
_CPU_AVX_512F = 13  # OpenCV's number for it (cv::CpuFeatures), which its Python module does not name
if cv2.checkHardwareSupport(_CPU_AVX_512F):
    # x264's AVX-512 code for macroblock-tree reads past its rows: with widths that are no multiple of 256 the same frames gave
    # other bytes in up to one run of ten. Up to AVX2 it agrees with the plain C code.
    _ENCODER["x264-params"] += ":asm=MMX2,SSE2Fast,LZCNT,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,AVX2"

_RISE = ((20, 14, 1.5), (13, 8, 2.2), (7, 1, 4.0))
"""Frames before a chunk's end, first and last, and how many times the usual bits they get.

x264 spends least on the frames that none refers to, the last ones, and the fresh keyframe after them pops. With these the
largest difference at a joint falls from 1.23 levels to 0.76 (512x512, small face; 0.84 is the largest elsewhere), for half as
many bytes again.
"""

MOVFLAGS = "+empty_moov+default_base_moof+frag_custom+skip_trailer"
"""FFmpeg's flags for one fragment without trailer after an init segment."""

_TIME_BASE = Fraction(1, FPS)


class ChunkEncoder:
    """Turns chunks of frames into fragments (``moof`` + ``mdat``) of one track: H.264 High, yuv420p, BT.709, 25 fps.

    Every chunk is a closed group of pictures with one keyframe at its start and is encoded on its own: the same frames at
    the same place give the same bytes, whatever came before, and all fragments of one size share one :attr:`init_segment`.

    Args:
        width, height: of every frame; even.
    """

    def __init__(self, width: int, height: int) -> None:
        if width % 2 or height % 2 or not 0 < min(width, height) <= max(width, height) <= MAX_SIDE:
            raise ValueError(f"frames of {width}x{height} cannot be encoded")
        self.width = width
        self.height = height
        self._reformatter = VideoReformatter()

    @cached_property
    def init_segment(self) -> bytes:
        """``ftyp`` + ``moov``, to be played before any fragment."""
        return self._mux(1, None)

    @property
    def codec(self) -> str:
        """The track's codec for playlists and MIME types (RFC 6381), such as ``avc1.64001f``."""
        place = self.init_segment.index(b"avcC") + 5
        return f"avc1.{self.init_segment[place : place + 3].hex()}"

    def encode_chunk(self, frames: Frames, first_frame: int, index: int) -> bytes:
        """Encode one chunk.

        Args:
            frames: uint8 RGB ``[T, height, width, 3]``, T at least 1.
            first_frame: number of the chunk's first frame in the whole video (:attr:`model_store.engine.Chunk.start`).
            index: number of the chunk, for the fragment's sequence number.

        Returns:
            One fragment, whose decode time is ``first_frame`` in units of a frame.
        """
        if frames.shape[1:] != (self.height, self.width, 3) or not len(frames):
            raise ValueError(f"frames are {frames.shape}, expected [T, {self.height}, {self.width}, 3]")
        data = self._mux(index + 1, frames)
        if not data.startswith(self.init_segment):
            raise RuntimeError("the encoder's headers changed between chunks")
        return at_decode_time(data[len(self.init_segment) :], first_frame * TIMESCALE // FPS)

    def _mux(self, sequence: int, frames: Frames | None) -> bytes:
        buffer = io.BytesIO()
        muxer = {"movflags": MOVFLAGS, "fragment_index": str(sequence), "use_editlist": "0", "write_tmcd": "0"}
        with av.open(buffer, "w", format="mp4", options=muxer) as container:
            options = {
                **_ENCODER,
                "x264-params": f"{_ENCODER['x264-params']}:zones={_zones(0 if frames is None else len(frames))}",
            }
            stream = container.add_stream("libx264", rate=FPS, options=options)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            context = stream.codec_context
            context.time_base = _TIME_BASE
            context.color_range = ColorRange.MPEG
            context.colorspace = Colorspace.ITU709
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
            container.start_encoding()
            if frames is not None:
                for number, packet in enumerate(self._packets(stream, frames)):
                    packet.dts = number
                    container.mux(packet)
        return buffer.getvalue()

    def _packets(self, stream: VideoStream, frames: Frames) -> Iterator[Packet[VideoStream]]:
        for time, pixels in enumerate(frames, LEAD_FRAMES):
            # Without an exact rounding and every chroma sample, swscale is off by up to 25 levels at coloured edges.
            picture = self._reformatter.reformat(
                VideoFrame.from_ndarray(pixels, "rgb24"),
                format="yuv420p",
                src_colorspace=Colorspace.ITU709,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP,
            )
            picture.pts, picture.time_base = time, _TIME_BASE
            yield from stream.encode(picture)
        yield from stream.encode(None)


def _zones(frames: int) -> str:
    """x264's zones for a chunk: its keyframe at a fixed quantiser, and the rise of quality towards its end."""
    rise = [f"{frames - first},{frames - last},b={bits}" for first, last, bits in _RISE if first < frames]
    return "/".join(["0,0,q=6", *rise])


def at_decode_time(fragment: bytes, time: int) -> bytes:
    """The fragment with its base media decode time (``tfdt``, 64 bits) set, in ticks of its track; the muxer says 0."""
    place = fragment.index(b"tfdt") + 8
    return fragment[:place] + struct.pack(">Q", time) + fragment[place + 8 :]


def boxes(data: bytes) -> Iterator[tuple[str, int, int]]:
    """The top-level boxes of an ISO media file: name, offset and size of each (ISO/IEC 14496-12)."""
    offset = 0
    while offset + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, offset)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, offset + 8)
        yield data[offset + 4 : offset + 8].decode("latin-1"), offset, size or len(data) - offset
        offset += size or len(data)
