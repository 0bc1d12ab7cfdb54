"""Who this node is: its key, its organisation, its certificate, and whom to meet first."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshd.core.errors import AlreadyDone, HomeUnusable, MeshError, NotEnrolled
from meshd.core.trust import Certificate, Organisation
from meshd.store.files import read_private, write_atomic
from meshd.store.home import Home
from meshd.store.keyfile import load_key
from meshd.wire.keys import NodeKey
from meshd.wire.trust import open_chain


@dataclass(frozen=True, slots=True)
class Membership:
    """What enrolment leaves behind. ``bootstrap``: multiaddrs of members to meet first."""

    org: Organisation
    proof: bytes = field(repr=False)
    bootstrap: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity:
    """Everything a daemon needs to say who it is. ``certificate`` is what ``membership.proof`` holds; whether it is
    valid *now* is judged where it is shown."""

    key: NodeKey
    membership: Membership
    certificate: Certificate


def save_membership(home: Home, membership: Membership) -> None:
    """Keep ``membership`` (the last step of joining), or a renewed one of the same organisation.

    Raises AlreadyDone when the home belongs to another organisation, HomeUnusable when it cannot be written.
    """
    old = load_membership(home)
    if old is not None and old.org.root_key != membership.org.root_key:
        raise AlreadyDone(
            f"this home is a member of {old.org.name}", hint="use another --home DIR for another organisation"
        )
    text = {
        "organisation": membership.org.name,
        "root_key": membership.org.root_key.hex(),
        "bootstrap": list(membership.bootstrap),
        "proof": base64.b64encode(membership.proof).decode(),
    }
    write_atomic(home.membership, json.dumps(text, indent=1).encode() + b"\n")


def load_membership(home: Home) -> Membership | None:
    """The home's membership; None before it joined. Raises HomeUnusable when the file is damaged."""
    data = read_private(home.membership)
    if data is None:
        return None
    try:
        return _parse(json.loads(data))
    except (ValueError, KeyError, TypeError, MeshError):
        raise _damaged(home.membership) from None


def load_identity(home: Home) -> Identity:
    """The home's identity. Raises NotEnrolled before it joined, HomeUnusable when key or certificate are damaged."""
    membership, key = load_membership(home), load_key(home.node_key)
    if membership is None:
        raise NotEnrolled(f"{home.path} has joined no organisation", hint="mesh org init NAME, or mesh join")
    if key is None:
        raise HomeUnusable(f"{home.node_key} is missing", hint="restore it from a backup, or join again elsewhere")
    try:
        certificate = open_chain(membership.proof, membership.org.root_key).certificate
    except MeshError:
        raise _damaged(home.membership) from None
    if certificate.node != key.node:
        raise HomeUnusable("key and certificate belong to different nodes", hint="was a part of the home copied?")
    return Identity(key, membership, certificate)


def _parse(text: Mapping[str, object]) -> Membership:
    bootstrap = text["bootstrap"]
    if not isinstance(bootstrap, list):
        raise TypeError("bootstrap must be a list")
    return Membership(
        org=Organisation(str(text["organisation"]), bytes.fromhex(str(text["root_key"]))),
        proof=base64.b64decode(str(text["proof"]), validate=True),
        bootstrap=tuple(str(a) for a in bootstrap),
    )


def _damaged(path: Path) -> HomeUnusable:
    return HomeUnusable(f"{path} is damaged", hint="restore it from a backup, or join again with a new home")
