"""Members on the same LAN, found by multicast DNS. Hints only: anybody on the LAN can send them, so all that follows
from one is a dial, which ends in the membership check.

Zeroconf runs in threads of its own. They hand each hint over through the trio token into a bounded queue and touch
nothing else; a hint too many is dropped, for a member announces itself again.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio
from zeroconf import InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from meshd.core.errors import BadInput
from meshd.core.ids import NodeId, parse_node_id
from meshd.net.addresses import Endpoint, expand, parse

SERVICE: Final = "_meshd._tcp.local."

MAX_HINTS: Final = 64
"""Hints waiting to be read; a LAN with more members repeats itself soon enough."""

MAX_ADDRESSES: Final = 8
_RESOLVE_MS = 2000

log = logging.getLogger("meshd.net")


@dataclass(frozen=True, slots=True)
class Hint:
    """Somebody says that ``node`` listens at ``addresses``. Unproven."""

    node: NodeId
    addresses: tuple[str, ...]


@asynccontextmanager
async def local_discovery(
    org_root_key: bytes, node: NodeId, addresses: Sequence[str], interfaces: Sequence[str] = ()
) -> AsyncIterator[AsyncIterator[Hint]]:
    """Announce ``node`` at ``addresses`` and yield the hints about other members, until the block is left.

    ``interfaces``: IPv4 addresses of the interfaces to use (all when empty). Only a hash of the organisation's key is
    announced; who knows the key can recognise it. Raises BadInput when no interface can be used.
    """
    send, receive = trio.open_memory_channel[Hint](MAX_HINTS)
    mark = _mark(org_root_key)
    listener = _Listener(mark, node, trio.lowlevel.current_trio_token(), send)
    zeroconf = await trio.to_thread.run_sync(_start, mark, node, tuple(addresses), tuple(interfaces), listener)
    try:
        yield receive
    finally:
        listener.stopped = True
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(zeroconf.close)


def _mark(org_root_key: bytes) -> str:
    return hashlib.sha256(b"meshd/mdns/1" + org_root_key).hexdigest()[:16]


def _start(
    mark: str, node: NodeId, addresses: tuple[str, ...], interfaces: tuple[str, ...], listener: ServiceListener
) -> Zeroconf:
    """Blocking: opens sockets and sends the first announcements."""
    chosen: Any = list(interfaces) or InterfaceChoice.All
    try:
        zeroconf = Zeroconf(interfaces=chosen, ip_version=IPVersion.V4Only)
    except OSError as error:
        raise BadInput(f"no interface for local discovery: {error}", param="interfaces") from error
    if info := _announcement(mark, node, addresses):
        zeroconf.register_service(info, cooperating_responders=True)
    ServiceBrowser(zeroconf, SERVICE, listener)
    return zeroconf


def _announcement(mark: str, node: NodeId, addresses: tuple[str, ...]) -> ServiceInfo | None:
    """What to announce: one port and the IPv4 hosts that listen on it; None when there is none."""
    endpoints = [parse(a) for a in addresses]
    ports = [e.port for e in endpoints if "." in e.host]
    if not ports:
        return None
    hosts = {h for e in endpoints if e.port == ports[0] for h in expand(e.host) if "." in h}
    return ServiceInfo(
        SERVICE,
        f"{node}.{SERVICE}",
        addresses=[socket.inet_aton(h) for h in sorted(hosts)],
        port=ports[0],
        properties={"org": mark, "node": node},
        server=f"meshd-{node[-12:].lower()}.local.",
    )


class _Listener(ServiceListener):
    """Runs in zeroconf's thread."""

    def __init__(
        self, mark: str, own: NodeId, token: trio.lowlevel.TrioToken, send: trio.MemorySendChannel[Hint]
    ) -> None:
        self._mark = mark
        self._own = own
        self._token = token
        self._send = send
        self.stopped = False

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Somebody announced a service of our type."""
        info = None if self.stopped else zc.get_service_info(type_, name, _RESOLVE_MS)
        hint = _hint(info, self._mark) if info else None
        if hint is not None and hint.node != self._own and not self.stopped:
            try:
                self._token.run_sync_soon(self._hand_over, hint)
            except trio.RunFinishedError:
                self.stopped = True

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Its addresses changed."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """It said good-bye; connections tell better who is gone."""

    def _hand_over(self, hint: Hint) -> None:
        """Runs in trio."""
        try:
            self._send.send_nowait(hint)
        except trio.WouldBlock:
            log.debug("too many local hints waiting, %s is dropped", hint.node)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.stopped = True


def _hint(info: ServiceInfo, mark: str) -> Hint | None:
    """What the announcement says, when it is one of our organisation and makes sense."""
    properties = info.decoded_properties
    if properties.get("org") != mark or not info.port:
        return None
    try:
        node = parse_node_id(properties.get("node") or "")
    except BadInput:
        return None
    hosts = info.parsed_addresses(IPVersion.V4Only)[:MAX_ADDRESSES]
    return Hint(node, tuple(Endpoint(h, info.port).multiaddr() for h in hosts)) if hosts else None
