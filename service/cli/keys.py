"""``infinitetalk keys``: who may use the service, and how much of it."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.app import Json, app
from service.cli.serve import require_service

if TYPE_CHECKING:
    from service.keys import Keys

keys = typer.Typer(help="Tenants' keys and limits, kept in the service's object store.", no_args_is_help=True)
app.add_typer(keys, name="keys")

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Name: up to 63 of a-z, 0-9 and -.")]
_LIMIT = "0 is no limit."


@keys.command()
def create(tenant: Tenant, json: Json = False) -> None:
    """Create a key. It is shown once and kept nowhere; from the first key on, every request needs one."""
    key, text = _keys().create(tenant)
    if json:
        print(json_module.dumps({"id": key.id, "tenant": key.tenant, "key": text}))
    else:
        print(f"{text}\nKey {key.id} of {key.tenant}. Keep it: it is not shown again.")


@keys.command("list")
def list_keys(json: Json = False) -> None:
    """List all keys, without their secrets."""
    found = _keys().all()
    if json:
        rows = [
            {"id": key.id, "tenant": key.tenant, "created_at": int(key.created_at), "revoked": not good} for key, good in found
        ]
        print(json_module.dumps(rows))
        return
    for key, good in found:
        when = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d %H:%M")
        print(f"{key.id}  {key.tenant:<24} {when}  {'good' if good else 'revoked'}")


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The 16 characters that `list` shows.")], json: Json = False
) -> None:
    """Make a key worthless, within seconds and for good."""
    revoked = _keys().revoke(key)
    print(json_module.dumps({"id": revoked.id, "revoked": True}) if json else f"Key {revoked.id} of {revoked.tenant} is revoked.")


@keys.command()
def limit(
    tenant: Tenant,
    requests_per_second: Annotated[int | None, typer.Option(min=0, metavar="N", help=_LIMIT)] = None,
    queued_jobs: Annotated[int | None, typer.Option(min=0, metavar="N", help=_LIMIT)] = None,
    running_jobs: Annotated[int | None, typer.Option(min=0, metavar="N", help=_LIMIT)] = None,
    seconds_per_day: Annotated[int | None, typer.Option(min=0, metavar="N", help=_LIMIT)] = None,
    json: Json = False,
) -> None:
    """Show a tenant's limits, after changing those that are given."""
    from service.limits import default_limits, read_limits, write_limits  # noqa: PLC0415 - as below
    from service.settings import load_settings  # noqa: PLC0415

    store = _keys().store
    given = {
        "requests_per_second": requests_per_second,
        "queued_jobs": queued_jobs,
        "running_jobs": running_jobs,
        "seconds_per_day": seconds_per_day,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    limits = read_limits(store, tenant) or default_limits(load_settings())
    if changes:
        limits = limits.model_copy(update=changes)
        write_limits(store, tenant, limits)
    if json:
        print(limits.model_dump_json())
        return
    for name, value in limits.model_dump().items():
        print(f"{name:<20} {value or 'no limit'}")


@keys.command("webhook-secret")
def webhook_secret(
    tenant: Tenant,
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; the old one signs beside it for a day.")] = False,
    json: Json = False,
) -> None:
    """Show what a tenant's webhooks are signed with."""
    store = _keys().store
    from service.webhooks import signing_secrets  # noqa: PLC0415 - as below

    secret = signing_secrets(store, tenant, rotate=rotate).current
    print(json_module.dumps({"tenant": tenant, "secret": secret}) if json else secret)


def _keys() -> Keys:
    require_service()
    from service.keys import Keys  # noqa: PLC0415 - the command line starts without the service's dependencies
    from service.settings import load_settings  # noqa: PLC0415
    from service.storage import open_store  # noqa: PLC0415

    return Keys(open_store(load_settings()))
