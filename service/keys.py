"""Who may ask: tenants' bearer keys in the object store, and tokens for players, which cannot send one.

A key is ``itk_<id>_<secret>``, 256 random bits, shown once. Only its SHA-256 is kept (a slow hash guards guessable passwords;
nobody guesses these). As long as no key exists, everything is the default tenant's, and only this machine is served.

=================================  ==============================================
object                             what it says
=================================  ==============================================
``keys/<id>/key.json``             :class:`Key`: whose, and the hash of its secret
``keys/<id>/revoked``              the key is worth nothing any more
``secrets/player``                 what tokens are signed with
=================================  ==============================================
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from pydantic import BaseModel, ConfigDict, Field

from model_store.errors import InfiniteTalkError
from service.job import DEFAULT_TENANT, TENANT
from service.storage import ObjectMissing, Store

REMEMBERED_SECONDS = 5.0
"""How long a key's standing is taken for granted: a revocation is felt everywhere within this time."""

_REMEMBERED_KEYS = 10_000
_KEY = re.compile(r"itk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_TOKEN = re.compile(r"([a-z0-9][a-z0-9-]{0,62})\.(\d{10,12})\.([0-9a-f]{64})")
_BEARER = re.compile(r"[Bb]earer +(\S{1,256}) *")
_PLAYER_SECRET = "secrets/player"


class Key(BaseModel):
    """What is kept of a key; ``digest`` is the SHA-256 of the whole key in hexadecimal digits."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    digest: str
    created_at: float = Field(default_factory=time.time)


@dataclass(frozen=True)
class Keys:
    """The keys of all tenants. Methods are blocking and may be called from several threads."""

    store: Store

    def create(self, tenant: str) -> tuple[Key, str]:
        """A new key of a tenant: what is kept of it, and the key itself, which is not; ``tenant_invalid``."""
        if not TENANT.fullmatch(tenant):
            raise InfiniteTalkError(
                "tenant_invalid", f"{tenant[:64]!r} is no tenant's name: use up to 63 of a-z, 0-9 and -.", param="tenant"
            )
        text = f"itk_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
        key = Key(id=text.split("_")[1], tenant=tenant, digest=_digest(text))
        self.store.put(f"keys/{key.id}/key.json", key.model_dump_json().encode(), "application/json")
        return key, text

    def all(self) -> list[tuple[Key, bool]]:
        """Every key and whether it is still good, oldest first."""
        found = [(key, not self._revoked(key.id)) for key_id in self.store.folders("keys/") if (key := self._read(key_id))]
        return sorted(found, key=lambda pair: pair[0].created_at)

    def any(self) -> bool:
        """Whether there has ever been a key: revoking the last one does not open the door."""
        return next(iter(self.store.folders("keys/")), None) is not None

    def revoke(self, key_id: str) -> Key:
        """Make a key worthless; ``key_not_found``."""
        key = self._read(key_id) if re.fullmatch(r"[0-9a-f]{16}", key_id) else None
        if key is None:
            raise InfiniteTalkError(
                "key_not_found", f"There is no key {key_id[:64]!r}: `infinitetalk keys list` shows them.", param="key"
            )
        self.store.put(f"keys/{key.id}/revoked", b"")
        return key

    def tenant(self, text: str) -> str | None:
        """Whose key it is; None if it is nobody's, or revoked."""
        match = _KEY.fullmatch(text)
        key = self._read(match[1]) if match else None
        if key is None or not hmac.compare_digest(key.digest, _digest(text)) or self._revoked(key.id):
            return None
        return key.tenant

    def player_secret(self) -> bytes:
        """What tokens are signed with, the same in every process; made at the first use."""
        while True:
            try:
                return self.store.get(_PLAYER_SECRET)
            except ObjectMissing:
                self.store.create(_PLAYER_SECRET, secrets.token_bytes(32), "application/octet-stream")

    def _read(self, key_id: str) -> Key | None:
        try:
            return Key.model_validate_json(self.store.get(f"keys/{key_id}/key.json"))
        except ObjectMissing:
            return None

    def _revoked(self, key_id: str) -> bool:
        return self.store.stat(f"keys/{key_id}/revoked") is not None


@dataclass
class Doorman:
    """Decides whose request it is. Methods are blocking and may be called from several threads.

    Args:
        keys: where keys are.
        token_seconds: how long a player's token is good, at least; twice that at most.
    """

    keys: Keys
    token_seconds: int
    _seen: OrderedDict[str, tuple[str | None, float]] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)
    _guarded: tuple[bool, float] = (False, 0.0)
    _secret: bytes | None = None

    def guarded(self) -> bool:
        """Whether a key is asked for."""
        known, until = self._guarded
        if not known and time.monotonic() >= until:
            known = self.keys.any()
            self._guarded = (known, time.monotonic() + REMEMBERED_SECONDS)
        return known

    def tenant(self, authorization: str | None) -> str:
        """Whose the request with that ``Authorization`` header is; ``key_required``, ``key_invalid``."""
        match = _BEARER.fullmatch(authorization or "")
        if not self.guarded():
            return DEFAULT_TENANT
        if match is None:
            raise InfiniteTalkError(
                "key_required", "There is no key: send the header `Authorization: Bearer <key>`.", param="Authorization"
            )
        tenant = self._remembered(match[1])
        if tenant is None:
            raise InfiniteTalkError(
                "key_invalid", "The key is unknown or has been revoked: send another, or have one created.", param="Authorization"
            )
        return tenant

    def token(self, tenant: str, video_id: str) -> str:
        """A token that lets whoever has it play that one video for a while; empty where no key is asked for."""
        if not self.guarded():
            return ""
        # Rounded, so that a playlist that is fetched again and again names the same addresses.
        until = (int(time.time()) // self.token_seconds + 2) * self.token_seconds
        return f"{tenant}.{until}.{self._signature(tenant, video_id, until)}"

    def holder(self, token: str, video_id: str) -> str:
        """Whose video a token opens; ``token_invalid`` if it is another's, forged or past its time."""
        match = _TOKEN.fullmatch(token)
        if (
            match
            and time.time() < int(match[2])
            and hmac.compare_digest(match[3], self._signature(match[1], video_id, int(match[2])))
        ):
            return match[1]
        raise InfiniteTalkError(
            "token_invalid", "The token is not for this video, or its time is up: ask for new links.", param="token"
        )

    def _signature(self, tenant: str, video_id: str, until: int) -> str:
        if self._secret is None:
            self._secret = self.keys.player_secret()
        return hmac.new(self._secret, f"{tenant}/{video_id}/{until}".encode(), hashlib.sha256).hexdigest()

    def _remembered(self, text: str) -> str | None:
        digest, now = _digest(text), time.monotonic()
        with self._lock:
            tenant, until = self._seen.get(digest, (None, 0.0))
        if now < until:
            return tenant
        tenant = self.keys.tenant(text)
        with self._lock:
            self._seen[digest] = (tenant, now + REMEMBERED_SECONDS)
            self._seen.move_to_end(digest)
            while len(self._seen) > _REMEMBERED_KEYS:
                self._seen.popitem(last=False)
        return tenant


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
