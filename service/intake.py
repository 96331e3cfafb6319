"""From a request to a job: what may be asked, and the way it becomes a record exactly once."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from model_store.engine import MAX_SIDE, MIN_SIDE
from model_store.errors import InfiniteTalkError
from model_store.registry import PHOTOS_ONLY
from service.addresses import LONGEST_URL, require_url
from service.job import Input, Job, ReferenceKind, job_folder
from service.ledger import Ledger
from service.media import sniff
from service.settings import JobClass, Settings
from service.storage import ObjectMissing
from service.tracing import current_traceparent
from service.uploads import Upload, Uploads

IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_WIDEST_ASPECT = 4.0
_PIECE = 1 << 20
_NOUNS = {"image": "picture", "video": "video", "audio": "audio"}
"""Form fields and the nouns that codes about their content begin with, everywhere the same."""
_PICTURES = {sniff.JPEG, sniff.PNG, sniff.WEBP}
_VIDEOS = {sniff.MP4, sniff.WEBM}


def _parse_json(value: object) -> object:
    # Forms have no objects: they carry them as JSON text.
    return json.loads(value) if isinstance(value, str) else value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


Text = Annotated[str, StringConstraints(max_length=512)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class VideoOptions(BaseModel):
    """What may be chosen; everything is optional but, for new pictures and voices, the consent."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = Field(None, max_length=4000, description="What the scene is, in words, for engines that read one.")
    model: str | None = Field(None, max_length=64, description="The engine that performs.", examples=["portrait"])
    size: str | None = Field(
        None, pattern=r"^\d{3,4}x\d{3,4}$", description="Width x height in pixels, both even.", examples=["720x1280"]
    )
    resolution: Literal["480p", "720p", "1080p"] | None = Field(
        None, description="Length of the short side; 720p unless `size` is given."
    )
    aspect_ratio: str | None = Field(
        None, pattern=r"^\d{1,2}:\d{1,2}$", description="Aspect of the frame; the picture's own by default.", examples=["9:16"]
    )
    seconds: float | None = Field(None, ge=0.3, description="Length; the speech's own by default, and never more.")
    seed: int | None = Field(None, ge=0, lt=2**32, description="The same seed gives the same video; 0 by default.")
    expressiveness: float | None = Field(None, ge=0, le=2, description="0 speaks with a still head, 1 is natural, 2 theatrical.")
    options: Annotated[dict[Name, str | int | float | bool] | None, BeforeValidator(_parse_json)] = Field(
        None, max_length=32, description="Settings of one engine by name; as JSON text in a form."
    )
    metadata: Annotated[dict[Name, Text] | None, BeforeValidator(_parse_json)] = Field(
        None, max_length=16, description="Your own notes, given back with the video; as JSON text in a form."
    )
    webhook_url: str | None = Field(None, max_length=LONGEST_URL, description="Called, signed, when the video has ended.")
    job_class: JobClass | None = Field(None, description="`batch` runs when nothing interactive waits.")
    start_within_seconds: float | None = Field(None, gt=0, description="Give up if nobody has begun by then.")
    max_run_seconds: float | None = Field(None, gt=0, description="Give up after this much engine time.")
    consent: bool | None = Field(
        None, description="You have the consent of the person shown and of the person heard, or need none. Must be true."
    )


class VideoChanges(VideoOptions):
    """What a remix may change."""

    image: Annotated[str | None, BeforeValidator(_empty_is_none)] = Field(
        None, max_length=64, description="Id of an uploaded file."
    )
    video: Annotated[str | None, BeforeValidator(_empty_is_none)] = Field(
        None, max_length=64, description="Id of an uploaded file: a video to be dubbed, in place of `image`."
    )
    audio: Annotated[str | None, BeforeValidator(_empty_is_none)] = Field(
        None, max_length=64, description="Id of an uploaded file."
    )


class VideoRequest(VideoChanges):
    """What a new video is asked for with. `image` or `video`, and `audio`, are ids of uploaded files, or parts of the form."""


@dataclass(frozen=True)
class Given:
    """The files of a request, each a part of it or the id of an uploaded one; a remix may leave all to its source."""

    image: Upload | str | None = None
    video: Upload | str | None = None
    audio: Upload | str | None = None

    @property
    def reference(self) -> Upload | str | None:
        """What performs."""
        return self.image if self.video is None else self.video


@dataclass(frozen=True)
class Submission:
    """A job and whether this request created it."""

    job: Job
    created: bool


@dataclass(frozen=True)
class Intake:
    """Turns requests into jobs. Methods are blocking and may be called from several threads."""

    settings: Settings
    ledger: Ledger
    uploads: Uploads

    def submit(
        self,
        tenant: str,
        request: VideoOptions,
        given: Given,
        idempotency_key: str | None = None,
        source: Job | None = None,
    ) -> Submission:
        """Store the inputs and write the record, once for each tenant and key.

        Args:
            tenant: whose job.
            request: what is asked.
            given: its files; what is None is the source's.
            idempotency_key: makes repeating the request harmless.
            source: the job whose inputs and choices stand where the request says nothing (a remix).

        Raises:
            InfiniteTalkError: the request cannot become a job; ``idempotency_conflict`` if the key has been used for another.
        """
        kind = _kind(given, source)
        self._require_sense(request, given, kind, source)
        old_reference, old_audio = (source.reference, source.audio) if source else (None, None)
        reference_origin, audio_origin = _origin(given.reference, old_reference), _origin(given.audio, old_audio)
        fingerprint = _fingerprint(request, kind, reference_origin, audio_origin, source)
        video_id = self.ledger.video_id(tenant, idempotency_key)
        standing = self.ledger.job(tenant, video_id)
        if standing is not None:
            return _same(standing, fingerprint)
        if self.ledger.is_deleted(tenant, video_id):
            raise InfiniteTalkError(
                "video_being_deleted",
                "The video of that Idempotency-Key is being deleted: wait a few seconds, or use another key.",
            )
        self.ledger.announce(tenant, video_id)
        folder = job_folder(tenant, video_id)
        job = self._job(
            tenant,
            video_id,
            fingerprint,
            request,
            kind,
            self._store(folder, kind, given.reference, old_reference, reference_origin),
            self._store(folder, "audio", given.audio, old_audio, audio_origin),
            source,
        )
        standing = self.ledger.create(job)
        if standing.token == job.token:
            return Submission(job, created=True)
        kept = {standing.reference.key, standing.audio.key}
        self.ledger.store.delete(*({job.reference.key, job.audio.key} - kept))
        return _same(standing, fingerprint)

    def _require_sense(self, request: VideoOptions, given: Given, kind: ReferenceKind, source: Job | None) -> None:
        if given.image is not None and given.video is not None:
            raise InfiniteTalkError(
                "reference_ambiguous", "image and video are given: send the one that is to perform.", param="video"
            )
        if source is None or given.reference is not None or given.audio is not None:
            wanted = (
                ("image", given.reference, "a picture, or as video one to be dubbed,"),
                ("audio", given.audio, "a recording"),
            )
            for name, file, what in wanted:
                if file is None and source is None:
                    raise InfiniteTalkError(
                        f"{name}_required",
                        f"{name} is missing: send {what} as a form part, or the id of an uploaded file.",
                        param=name,
                    )
            if not request.consent:
                raise InfiniteTalkError(
                    "consent_required",
                    "consent is missing: set it to true if the person shown and the person heard have agreed, or need not.",
                    param="consent",
                )
        if request.model is not None and request.model not in self.settings.engines:
            raise InfiniteTalkError(
                "engine_unknown",
                f"There is no model {request.model!r} here: choose {', '.join(self.settings.engines)}.",
                param="model",
            )
        engine = request.model or (source.engine if source else self.settings.engines[0])
        if kind == "video" and engine in PHOTOS_ONLY:
            raise InfiniteTalkError(
                "video_not_supported",
                f"The model {engine} animates photos: send an image, or choose a model that dubs videos, such as infinitetalk.",
                param="video" if given.video is not None else "model",
            )
        if request.size and (request.resolution or request.aspect_ratio):
            raise InfiniteTalkError(
                "size_ambiguous",
                "size and resolution or aspect_ratio are given: keep one way of choosing the frame.",
                param="size",
            )
        if request.webhook_url is not None:
            require_url(request.webhook_url, self.settings.webhook_allow_private)
        _size(request.size)
        _aspect(request.aspect_ratio)
        if request.seconds is not None and request.seconds > self.settings.max_video_seconds:
            raise InfiniteTalkError(
                "seconds_invalid",
                f"seconds is {request.seconds:g}: at most {self.settings.max_video_seconds:g} are made.",
                param="seconds",
            )
        if request.max_run_seconds is not None and request.max_run_seconds > self.settings.max_run_seconds:
            raise InfiniteTalkError(
                "max_run_seconds_invalid",
                f"max_run_seconds is {request.max_run_seconds:g}: at most {self.settings.max_run_seconds:g} are given.",
                param="max_run_seconds",
            )

    def _job(
        self,
        tenant: str,
        video_id: str,
        fingerprint: str,
        request: VideoOptions,
        kind: ReferenceKind,
        reference: Input,
        audio: Input,
        source: Job | None,
    ) -> Job:
        now = time.time()
        given = {
            "engine": request.model,
            "job_class": request.job_class,
            "prompt": request.prompt,
            "seed": request.seed,
            "expressiveness": request.expressiveness,
            "seconds": request.seconds,
            "options": request.options,
            "metadata": request.metadata,
            "max_run_seconds": request.max_run_seconds,
        }
        chosen: dict[str, Any] = {"engine": self.settings.engines[0], "job_class": "interactive"}
        if source is not None:
            chosen = {name: getattr(source, name) for name in given}
        if request.size or request.resolution or request.aspect_ratio or source is None:
            chosen["size"] = _size(request.size)
            chosen["resolution"] = request.resolution or "720p"
            chosen["aspect_ratio"] = _aspect(request.aspect_ratio)
        else:
            chosen.update(size=source.size, resolution=source.resolution, aspect_ratio=source.aspect_ratio)
        chosen.setdefault("max_run_seconds", self.settings.max_run_seconds)
        chosen.update({name: value for name, value in given.items() if value is not None})
        return Job(
            id=video_id,
            tenant=tenant,
            created_at=now,
            expires_at=now + self.settings.retention_seconds,
            fingerprint=fingerprint,
            reference=reference,
            reference_kind=kind,
            audio=audio,
            start_before=now + request.start_within_seconds if request.start_within_seconds else None,
            webhook_url=request.webhook_url,
            traceparent=current_traceparent(),
            remixed_from=source.id if source else None,
            **chosen,
        )

    def _store(self, folder: str, name: str, given: Upload | str | None, inherited: Input | None, origin: str) -> Input:
        key = f"{folder}inputs/{name}-{hashlib.sha256(origin.encode()).hexdigest()[:16]}"
        largest = {
            "image": self.settings.max_image_bytes,
            "video": self.settings.max_video_bytes,
            "audio": self.settings.max_audio_bytes,
        }[name]
        tenant = folder.split("/")[1]
        if isinstance(given, Upload):
            _require_size(name, given.size, largest)
            given.file.seek(0)
            _require_kind(name, given.file.read(sniff.HEAD_BYTES))
            given.file.seek(0)
            self.ledger.store.upload(key, given.file, given.size, given.content_type)
            return Input(key=key, bytes=given.size, filename=given.filename, content_type=given.content_type, origin=origin)
        if isinstance(given, str):
            record = self.uploads.ready(tenant, given, name)
            _require_size(name, record.bytes, largest)
            _require_kind(name, self.uploads.head(record, sniff.HEAD_BYTES))
            self._copy(self.uploads.content_key(record), key, name)
            return Input(key=key, bytes=record.bytes, filename=record.filename, content_type=record.content_type, origin=origin)
        if inherited is None:
            raise RuntimeError("neither an input nor one to inherit")
        self._copy(inherited.key, key, name)
        return inherited.model_copy(update={"key": key, "origin": origin})

    def _copy(self, source: str, target: str, param: str) -> None:
        try:
            self.ledger.store.copy(source, target)
        except ObjectMissing:
            raise InfiniteTalkError("file_not_found", "The file has just been deleted: upload it again.", param=param) from None


def _kind(given: Given, source: Job | None) -> ReferenceKind:
    """What the reference is, once what is given has replaced the source's."""
    if given.reference is None and source is not None:
        return source.reference_kind
    return "image" if given.video is None else "video"


def _origin(given: Upload | str | None, inherited: Input | None) -> str:
    """What makes two inputs the same: their bytes, the file they name, or the video they come from."""
    if isinstance(given, Upload):
        digest = hashlib.sha256()
        given.file.seek(0)
        while piece := given.file.read(_PIECE):
            digest.update(piece)
        return digest.hexdigest()
    if isinstance(given, str):
        return given
    return inherited.origin if inherited else ""


def _fingerprint(request: VideoOptions, kind: ReferenceKind, reference: str, audio: str, source: Job | None) -> str:
    asked = request.model_dump(mode="json", exclude={"image", "video", "audio"}, exclude_none=True)
    asked.update({kind: reference, "audio": audio, "source": source.id if source else None})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _same(standing: Job, fingerprint: str) -> Submission:
    if standing.fingerprint != fingerprint:
        raise InfiniteTalkError(
            "idempotency_conflict",
            "This Idempotency-Key has been used for another request: repeat that one unchanged, or use a new key.",
            param="Idempotency-Key",
        )
    return Submission(standing, created=False)


def _require_size(name: str, size: int, largest: int) -> None:
    noun = _NOUNS[name]
    if size == 0:
        raise InfiniteTalkError(f"{noun}_empty", f"{name} has no content: send the file itself.", param=name)
    if size > largest:
        raise InfiniteTalkError(
            f"{noun}_too_large", f"{name} has {size} bytes, and {largest} are allowed: use a smaller one.", param=name
        )


def _require_kind(name: str, head: bytes) -> None:
    """Refuse at once what the engine process would refuse anyway, by its first bytes; nothing is decoded here."""
    kind = sniff.sniff(head)
    if name == "image" and kind not in _PICTURES:
        raise InfiniteTalkError("picture_unsupported", f"image is {kind.name}: use a JPEG, PNG or WebP picture.", param=name)
    if name == "video" and kind not in _VIDEOS:
        raise InfiniteTalkError("video_unsupported", f"video is {kind.name}: use an MP4, MOV or WebM video.", param=name)
    if name == "audio" and not kind.demuxer:
        raise InfiniteTalkError(
            "audio_unsupported", f"audio is {kind.name}: use a WAV, MP3, FLAC, OGG or M4A recording.", param=name
        )


def _size(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    width, height = (int(side) for side in size.split("x"))
    for side in (width, height):
        if side % 2 or not MIN_SIDE <= side <= MAX_SIDE:
            raise InfiniteTalkError(
                "size_invalid", f"size is {size}: use even sides from {MIN_SIDE} to {MAX_SIDE}.", param="size"
            )
    return width, height


def _aspect(aspect: str | None) -> tuple[int, int] | None:
    if aspect is None:
        return None
    wide, high = (int(side) for side in aspect.split(":"))
    if not wide or not high or not 1 / _WIDEST_ASPECT <= wide / high <= _WIDEST_ASPECT:
        raise InfiniteTalkError(
            "aspect_ratio_invalid", f"aspect_ratio is {aspect}: choose one from 1:4 to 4:1, such as 9:16.", param="aspect_ratio"
        )
    return wide, high
