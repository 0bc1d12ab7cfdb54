"""Addresses as they are told to others."""

from __future__ import annotations

from meshd.app.config import NetworkConfig
from meshd.core.ids import NodeId

_WILDCARDS = frozenset({"0.0.0.0", "::", "[::]"})


def host_port(text: str) -> tuple[str, int]:
    """Host and port of ``host:port``, which the configuration has checked."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def with_node(address: str, node: NodeId) -> str:
    """A multiaddr that also says who is there."""
    return f"{address}/p2p/{node}"


def enrol_addresses(network: NetworkConfig, port: int, listening: tuple[str, ...]) -> list[str]:
    """host:port of the enrolment listener, for an invite: as configured, else by the hosts that this node
    listens on."""
    if network.enrol_announce:
        return [network.enrol_announce]
    host, _ = host_port(network.enrol_listen)
    if host not in _WILDCARDS:
        return [f"{host}:{port}"]
    hosts = [address.split("/")[2] for address in listening]
    return [f"[{h}]:{port}" if ":" in h else f"{h}:{port}" for h in dict.fromkeys(hosts)][:4]
