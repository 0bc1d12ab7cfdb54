"""Who is who: organisation, issuer delegation, node certificate, invite. Statements only; `wire` signs and verifies."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput
from meshd.core.ids import NodeId, parse_node_id

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}")
_ROLES = frozenset({"member", "admin"})


def parse_name(text: str, *, param: str = "name") -> str:
    """``text`` when it can name an organisation, node or site; BadInput otherwise."""
    if not _NAME.fullmatch(text):
        raise BadInput(
            f"not a usable name: {text[:40]!r}",
            param=param,
            hint="1 to 63 letters, digits, spaces, and . _ -",
        )
    return text


@dataclass(frozen=True, slots=True)
class Organisation:
    """An organisation: its name and root key. ``id`` on the wire is the root key itself."""

    name: str
    root_key: bytes

    def __post_init__(self) -> None:
        parse_name(self.name, param="organisation")
        if len(self.root_key) != 32:
            raise BadInput("a root key has 32 bytes", param="root_key")


@dataclass(frozen=True, slots=True)
class Delegation:
    """The root key's statement that ``issuer_key`` may issue node certificates until ``not_after`` (wall s)."""

    org: bytes
    issuer_key: bytes
    max_clearance: DataClass
    not_before: float
    not_after: float
    serial: int


@dataclass(frozen=True, slots=True)
class Certificate:
    """The organisation's statement about a node, made by the issuer of ``delegation``. Times are wall clock (s).

    Site, region and clearance are attested here and nowhere else.
    """

    org: bytes
    node: NodeId
    name: str
    site: str
    region: Region
    clearance: DataClass
    labels: tuple[str, ...]
    roles: tuple[str, ...]
    not_before: float
    not_after: float
    serial: int

    def __post_init__(self) -> None:
        parse_node_id(self.node)
        parse_name(self.name)
        parse_name(self.site, param="site")
        if self.not_after <= self.not_before:
            raise BadInput("a certificate must end after it begins", param="not_after")
        if not set(self.roles) <= _ROLES:
            raise BadInput("unknown role", param="roles", hint="roles are member and admin")
        if len(self.labels) > 16 or any(not 1 <= len(x) <= 64 for x in self.labels):
            raise BadInput("at most 16 labels of 1 to 64 characters", param="labels")


@dataclass(frozen=True, slots=True)
class InviteTerms:
    """What an invite grants to whoever shows its secret in time."""

    site: str
    region: Region
    clearance: DataClass
    expires_at: float
    uses: int = 1
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse_name(self.site, param="site")
        if not 1 <= self.uses <= 10_000:
            raise BadInput("an invite admits 1 to 10000 machines", param="uses")


@dataclass(frozen=True, slots=True)
class Invite:
    """What a machine needs to join: the organisation, who to ask (host:port), whom to meet, and the secret."""

    org: Organisation
    issuer_key: bytes
    enrol_addresses: tuple[str, ...]
    bootstrap: tuple[str, ...]
    id: bytes
    secret: bytes = field(repr=False)
    expires_at: float = 0.0
