"""HTTP Live Streaming playlists (RFC 8216) for a video that is still being made: fragmented MP4, sound and picture apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_VERSION = 7  # EXT-X-MAP with fragmented MP4


@dataclass(frozen=True)
class Segment:
    """One line of a playlist: where the fragment is, and how many seconds it plays."""

    uri: str
    seconds: float


def media_playlist(init_uri: str, segments: Sequence[Segment], *, longest: float, ended: bool) -> str:
    """The playlist of one track; it only ever grows, so a player may begin at its start at any time.

    Args:
        init_uri: where the track's init segment is.
        segments: those that are ready, in order, from the first.
        longest: upper bound of all segments' seconds, those to come included; it must not change while the playlist grows.
        ended: no more segments follow.
    """
    lines = [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_VERSION}",
        f"#EXT-X-TARGETDURATION:{math.ceil(longest)}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        f"#EXT-X-PLAYLIST-TYPE:{'VOD' if ended else 'EVENT'}",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        "#EXT-X-START:TIME-OFFSET=0,PRECISE=YES",
        f'#EXT-X-MAP:URI="{init_uri}"',
    ]
    for segment in segments:
        lines += [f"#EXTINF:{segment.seconds:.5f},", segment.uri]
    if ended:
        lines.append("#EXT-X-ENDLIST")
    return "\n".join(lines) + "\n"


def master_playlist(
    video_uri: str, sound_uri: str, *, video_codec: str, sound_codec: str, width: int, height: int, bandwidth: int
) -> str:
    """The playlist that a player is given: the picture's track with the sound's beside it.

    Args:
        video_uri, sound_uri: where their :func:`media_playlist` s are.
        video_codec: :attr:`service.media.fragments.ChunkEncoder.codec`.
        sound_codec: :attr:`service.media.sound.SoundTrack.codec`.
        width, height: of a frame.
        bandwidth: peak bits a second of picture and sound together, roughly.
    """
    return (
        "#EXTM3U\n"
        f"#EXT-X-VERSION:{_VERSION}\n"
        "#EXT-X-INDEPENDENT-SEGMENTS\n"
        f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="sound",NAME="Speech",DEFAULT=YES,AUTOSELECT=YES,URI="{sound_uri}"\n'
        f'#EXT-X-STREAM-INF:BANDWIDTH={bandwidth},CODECS="{video_codec},{sound_codec}",RESOLUTION={width}x{height},'
        f'FRAME-RATE=25.000,AUDIO="sound"\n'
        f"{video_uri}\n"
    )
