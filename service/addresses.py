"""Which addresses on the network a tenant may make this service call: none but public ones."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from model_store.errors import InfiniteTalkError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

RESOLVE_SECONDS = 5.0
LONGEST_URL = 2048

# An IPv4 address in an IPv6 one: the translator on the way would call what is not seen here.
_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


def is_public(address: Address) -> bool:
    """Whether an address is one of the public Internet's, and no multicast or translated one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def require_url(url: str, allow_private: bool) -> None:
    """``webhook_url_invalid`` for what will never be called; names are looked up at every call, and judged then."""
    parts = urlsplit(url) if len(url) <= LONGEST_URL and url.isascii() and url.isprintable() else None
    try:
        port_fits = parts is not None and (parts.port is None or parts.port > 0)
    except ValueError:
        port_fits = False
    schemes = ("https", "http") if allow_private else ("https",)
    if parts is None or not port_fits or not parts.hostname or parts.scheme not in schemes or parts.username is not None:
        raise _invalid("give an https:// address without a user name")
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return
    if not allow_private and not is_public(address):
        raise _invalid("give a public address")


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name."""
    async with asyncio.timeout(RESOLVE_SECONDS):
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def callable_address(host: str, port: int, allow_private: bool, look_up: Resolve = resolve) -> str | None:
    """An address of ``host`` to connect to; None if any of its addresses is not public, for a name with both is a trap."""
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in await look_up(host, port)]
    if not addresses or (not allow_private and not all(map(is_public, addresses))):
        return None
    return str(addresses[0])


def _invalid(cure: str) -> InfiniteTalkError:
    return InfiniteTalkError("webhook_url_invalid", f"webhook_url cannot be called: {cure}.", param="webhook_url")
