"""The finished video: fragments and the original recording joined into one MP4, and MP4 files read back."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from model_store.engine import FPS, Picture
from model_store.errors import InfiniteTalkError
from service.media.files import output_error, written_whole
from service.media.fragments import LEAD_FRAMES, TIMESCALE
from service.media.sound import SoundEncoder, SoundTrack

SYNTHETIC_NOTICE = (
    "AI-generated (synthetic media): the people in this video were made to speak by software. "
    "Digital source type: http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
)
"""What every video says about itself, in its comment and description."""

_TICKS = TIMESCALE // FPS


def write_video(
    init_segment: bytes,
    fragments: Iterable[bytes],
    audio: Path,
    output: Path,
    *,
    start: float = 0.0,
    title: str = "AI-generated talking video",
    comment: str = "",
) -> int:
    """Join fragments and the original recording into one MP4, its index (``moov``) first; pictures are not encoded again.

    The sound is the recording from ``start`` on, AAC at its own rate and channels
    (:class:`~service.media.sound.SoundTrack`), cut or filled with silence to exactly the length of the pictures; both begin
    at 0. It is decoded and encoded as a stream: memory does not grow with length. The same fragments and recording give the
    same bytes. The title, comment and description tags say that the video is synthetic (:data:`SYNTHETIC_NOTICE`).

    Args:
        init_segment: :attr:`service.media.fragments.ChunkEncoder.init_segment`.
        fragments: of all chunks in order; each is asked for when it is needed.
        audio: the recording as the user gave it.
        output: where the video goes. It is written beside it under a hidden name and renamed at the end; whatever is raised, by
            ``fragments`` too, leaves nothing behind and an earlier file as it was.
        start: second of the recording at which the speech began.
        title, comment: tags; the notice is added to the comment.

    Returns:
        Number of frames.

    Raises:
        InfiniteTalkError: ``no_space``, ``output_not_writable`` (``param="output"``), or what the recording causes.
    """
    track = SoundTrack(audio, start)
    with written_whole(output) as temporary:
        try:
            return _join(init_segment, fragments, track, temporary, title, f"{comment} {SYNTHETIC_NOTICE}".strip())
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise output_error(output, OSError(error.errno or 0, error.strerror or str(error))) from error


def read_video_frames(path: Path) -> Iterator[Picture]:
    """The frames of a video as RGB uint8 ``[H, W, 3]``, in order, decoded with its own colour tags.

    Raises:
        InfiniteTalkError: ``video_damaged`` with ``param="video"`` when it cannot be decoded.
    """
    try:
        with av.open(f"file:{path.resolve()}", "r", options={"protocol_whitelist": "file"}) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                yield frame_pixels(frame)
    except (av.FFmpegError, IndexError) as error:
        raise InfiniteTalkError(
            "video_damaged", f"{path.name!r} is not a video that can be decoded: make it again.", param="video"
        ) from error


def frame_pixels(frame: VideoFrame) -> Picture:
    """A decoded frame as RGB uint8 ``[H, W, 3]``, by its own colour tags."""
    space = frame.colorspace if frame.colorspace in Colorspace.__members__.values() else Colorspace.DEFAULT
    pixels = frame.to_ndarray(format="rgb24", src_colorspace=space, dst_color_range=ColorRange.JPEG)
    return pixels.astype(np.uint8, copy=False)


def _join(init: bytes, fragments: Iterable[bytes], track: SoundTrack, path: Path, title: str, comment: str) -> int:
    frames = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update(title=title, comment=comment, description=comment)
        with av.open(io.BytesIO(init), "r", format="mp4") as template:
            picture: VideoStream = container.add_stream_from_template(template.streams.video[0])
        sound = container.add_stream("aac", rate=track.rate)
        track.configure(sound.codec_context)
        encoder = SoundEncoder(track, sound.codec_context)
        lead = LEAD_FRAMES * _TICKS
        for fragment in fragments:
            with av.open(io.BytesIO(init + fragment), "r", format="mp4") as part:
                for packet in part.demux(part.streams.video[0]):
                    if packet.pts is None or packet.dts is None:  # the end of the fragment
                        continue
                    packet.pts -= lead
                    packet.dts -= lead
                    packet.stream = picture
                    container.mux(packet)
                    frames += 1
            _mux_sound(container, sound, encoder.advance(frames))
        _mux_sound(container, sound, encoder.finish(frames))
    return frames


def _mux_sound(container: av.container.OutputContainer, stream: AudioStream, packets: Iterator[Packet[AudioStream]]) -> None:
    for packet in packets:
        packet.stream = stream
        container.mux(packet)
