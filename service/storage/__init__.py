"""Objects by key: one small protocol, in a local folder or on an S3 server."""

from __future__ import annotations

from service.settings import Settings
from service.storage.local import LocalStore
from service.storage.measured import measured
from service.storage.store import Entry, ObjectMissing, Store, StoreUnavailable

__all__ = ["Entry", "LocalStore", "ObjectMissing", "Store", "StoreUnavailable", "open_store"]


def open_store(settings: Settings) -> Store:
    """The store that the settings name."""
    if settings.s3_endpoint and settings.s3_access_key and settings.s3_secret_key:
        from service.storage.s3 import S3Store  # noqa: PLC0415 - its client takes long to import

        return measured(
            S3Store(
                settings.s3_endpoint,
                settings.s3_bucket,
                access_key=settings.s3_access_key.get_secret_value(),
                secret_key=settings.s3_secret_key.get_secret_value(),
                region=settings.s3_region,
            )
        )
    return measured(LocalStore(settings.data_dir / "objects"))
