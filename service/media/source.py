"""Videos in: a source video that an engine dubs, its frames read by time, two of them in memory at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from model_store.engine import MAX_SIDE, Picture
from model_store.errors import InfiniteTalkError
from service.media import files, sniff
from service.media.video import frame_pixels

MAX_PIXELS = 8192 * 4320
"""The largest frame that is decoded."""

MIN_SIDE = 64
"""The shortest side, in pixels, of a video that can hold a usable face."""

_FORWARD_SECONDS = 3.0
"""How far ahead frames are decoded one after another rather than found by seeking."""

_CURE = "use an MP4, MOV or WebM video that plays"
_KINDS = {sniff.MP4, sniff.WEBM}


def is_video(path: Path) -> bool:
    """Whether a file is a video by its first bytes; False also for what cannot be read."""
    try:
        with files.open_regular(path) as file:
            return sniff.sniff(file.read(sniff.HEAD_BYTES)) in _KINDS
    except OSError:
        return False


class VideoSource:
    """A :class:`model_store.engine.FrameSource` over a file, of any frame rate, also a changing one.

    A time shows the last frame that begins at or before it, the first and the last frame go on beyond the ends. Frames are
    upright (the file's rotation is applied), in square pixels, and no larger than an engine's largest output. ``frame_at`` is
    quick for times that move on and seeks for others; it may be called from several threads. Use as a context manager.

    Args:
        path: an MP4, MOV or WebM file, by its content.

    Raises:
        InfiniteTalkError: ``video_not_found``, ``video_unreadable``, ``video_unsupported``, ``video_damaged``,
            ``video_too_large``, ``video_too_small``, all with ``param="video"``.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._lock = threading.Lock()
        self._now: VideoFrame | None = None
        self._next: VideoFrame | None = None
        self._shown: tuple[Fraction, Picture] | None = None
        try:
            with files.open_regular(path) as file:
                kind = sniff.sniff(file.read(sniff.HEAD_BYTES))
        except FileNotFoundError as error:
            raise self._error("not_found", "is not at that place: check the path") from error
        except OSError as error:
            raise self._error("unreadable", f"cannot be read ({error.strerror or error}): check the path") from error
        if kind not in _KINDS:
            raise self._error("unsupported", f"is {kind.name}: {_CURE}")
        try:
            self._container = av.open(f"file:{path.resolve()}", "r", format=kind.demuxer, options={"protocol_whitelist": "file"})
        except av.FFmpegError as error:
            raise self._damaged() from error
        try:
            self._stream = self._picture_stream()
            self._time_base = self._stream.time_base or Fraction(1, 1000)
            self._frames = self._decode()
            self._now = self._following()
            if self._now is None:
                raise self._damaged()
            self._begin = self._time(self._now)
            self._next = self._following()
            self.seconds = self._length()
        except BaseException:
            self._container.close()
            raise

    seconds: float
    """Length of the picture."""

    def frame_at(self, seconds: float) -> Picture:
        # Frame times are multiples of the time base; half of one keeps 0.04 from being a hair before frame 1 of 25.
        moment = self._begin + Fraction(seconds) + self._time_base / 2
        with self._lock:
            if self._now is None or moment < self._time(self._now) or moment > self._time(self._now) + Fraction(_FORWARD_SECONDS):
                self._seek(moment)
            while self._next is not None and self._time(self._next) <= moment:
                self._now, self._next = self._next, self._following()
            assert self._now is not None
            time = self._time(self._now)
            if self._shown is None or self._shown[0] != time:
                self._shown = (time, self._upright(self._now))
            return self._shown[1]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._container.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _picture_stream(self) -> VideoStream:
        streams = [stream for stream in self._container.streams.video if not stream.disposition & stream.disposition.attached_pic]
        if not streams:
            raise self._error("unsupported", f"has no picture in it: {_CURE}")
        stream = streams[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise self._error("too_large", f"is {stream.width}x{stream.height}: scale it down, 1080 lines are plenty")
        if min(stream.width, stream.height) < MIN_SIDE:
            raise self._error("too_small", f"is {stream.width}x{stream.height}: use one of at least {MIN_SIDE} pixels a side")
        stream.thread_type = "AUTO"
        return stream

    def _decode(self) -> Iterator[VideoFrame]:
        for frame in self._container.decode(self._stream):
            if frame.pts is not None:
                yield frame

    def _following(self) -> VideoFrame | None:
        """The next frame, or None at the end; what is damaged ends the video there, unless nothing came before."""
        try:
            return next(self._frames, None)
        except av.FFmpegError as error:
            if self._now is None:
                raise self._damaged() from error
            return None

    def _seek(self, moment: Fraction) -> None:
        """Stand at a frame at or before the moment: the nearest from which can be decoded, else the first."""
        for target in (max(moment, self._begin), self._begin):
            self._container.seek(int(target / self._time_base), stream=self._stream, backward=True)
            self._frames = self._decode()
            self._now = None
            self._now = self._following()
            if self._now is not None and self._time(self._now) <= target:
                break
        if self._now is None:
            raise self._damaged()
        self._next = self._following()

    def _time(self, frame: VideoFrame) -> Fraction:
        assert frame.pts is not None
        return frame.pts * (frame.time_base or self._time_base)

    def _length(self) -> float:
        if self._stream.duration:
            return float(self._stream.duration * self._time_base)
        return (self._container.duration or 0) / av.time_base

    def _upright(self, frame: VideoFrame) -> Picture:
        pixels = frame_pixels(frame)
        height, width = pixels.shape[:2]
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        width_shown = width * float(aspect) if aspect > 0 else width
        scale = min(1.0, MAX_SIDE / max(width_shown, height))
        size = (max(2, round(width_shown * scale)), max(2, round(height * scale)))
        if size != (width, height):
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns))

    def _damaged(self) -> InfiniteTalkError:
        return self._error("damaged", f"is damaged or cut short: {_CURE}")

    def _error(self, code: str, what: str) -> InfiniteTalkError:
        return InfiniteTalkError(f"video_{code}", f"The video {self._name!r} {what}.", param="video")
