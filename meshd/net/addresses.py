"""Multiaddrs as this program uses them: TCP over IPv4, IPv6 or a DNS name, nothing else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

import ifaddr

from meshd.core.errors import BadInput
from meshd.core.ids import NodeId, parse_node_id

_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]{1,255})/tcp/([0-9]{1,5})(?:/p2p/([^/]{1,64}))?")


class Endpoint(NamedTuple):
    """Where to connect, and who should be there (None: not said)."""

    host: str
    port: int
    node: NodeId | None = None

    def multiaddr(self) -> str:
        """The endpoint as a multiaddr, without the node."""
        kind = {4: "ip4", 6: "ip6"}.get(_ip_version(self.host), "dns")
        return f"/{kind}/{self.host}/tcp/{self.port}"


def parse(address: str) -> Endpoint:
    """The endpoint in ``address``. Raises BadInput for anything but ``/ip4|ip6|dns/HOST/tcp/PORT[/p2p/NODE]``."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > 65535:
        raise BadInput(f"not a TCP multiaddr: {address[:80]!r}", param="addresses")
    kind, host = match[1], match[2]
    if kind in ("ip4", "ip6") and _ip_version(host) != int(kind[2]):
        raise BadInput(f"not an {kind} address: {host[:40]!r}", param="addresses")
    return Endpoint(host, int(match[3]), parse_node_id(match[4]) if match[4] else None)


def parse_all(addresses: Iterable[str]) -> tuple[Endpoint, ...]:
    """The endpoints in ``addresses``; what is none is left out, for addresses come from other nodes."""
    found = []
    for address in addresses:
        try:
            found.append(parse(address))
        except BadInput:
            continue
    return tuple(dict.fromkeys(found))


def expand(host: str) -> tuple[str, ...]:
    """``host``, or every address of this machine's interfaces when it is a wildcard (loopback only if alone)."""
    if host not in ("0.0.0.0", "::"):
        return (host,)
    hosts = _interface_hosts()
    outside = tuple(h for h in hosts if not ipaddress.ip_address(h).is_loopback)
    return outside or ("127.0.0.1",)


def _interface_hosts() -> tuple[str, ...]:
    """IPv4 addresses of this machine's interfaces."""
    return tuple(str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4)


def _ip_version(host: str) -> int:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0
