"""What can be done to a home without its daemon: create an organisation, join one, look, rotate the token.

Each returns the fields of the JSON object that `mesh` reads; each raises only MeshErrors.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import trio

from meshd.core.classes import DataClass, Region
from meshd.core.errors import AlreadyDone, BadInput, MeshError
from meshd.net.enrolment import knock
from meshd.store.home import Home, create_home, open_home
from meshd.store.identity import Identity, Membership, load_identity, load_membership, save_membership
from meshd.store.keyfile import api_token, node_key, rotate_api_token
from meshd.store.org import Founder, create_organisation
from meshd.wire.enrol import EnrolClient
from meshd.wire.invite import parse_invite

MAX_STDIN_BYTES = 65_536
MIN_PASSPHRASE = 8


def read_stdin() -> str:
    """What was piped in, bounded; secrets come this way and never as arguments, which others can see."""
    return sys.stdin.buffer.read(MAX_STDIN_BYTES).decode("utf-8", "replace")


def org_init(path: Path, name: str, founder: dict[str, str]) -> dict[str, Any]:
    """Create organisation ``name``; the passphrase for its root key is the first line of standard input."""
    passphrase = read_stdin().split("\n", 1)[0].rstrip("\r")
    if len(passphrase) < MIN_PASSPHRASE:
        raise BadInput(f"a passphrase has at least {MIN_PASSPHRASE} characters", param="passphrase")
    who = Founder(
        name=founder["node_name"],
        site=founder["site"],
        region=Region(founder["region"]),
        clearance=DataClass.parse(founder["clearance"], param="clearance"),
    )
    home = create_home(path)
    identity = create_organisation(home, name, who, passphrase, time.time())
    api_token(home)
    return _who(identity)


def join(path: Path, name: str) -> dict[str, Any]:
    """Join the organisation of the invite on standard input, as node ``name``.

    Asking again with the same invite and name is safe: a machine whose answer got lost gets the same certificate.
    """
    invite = parse_invite(read_stdin(), time.time())
    home = create_home(path)
    member = load_membership(home)
    if member is not None:
        raise _already(home, member)
    client = EnrolClient(invite, node_key(home), name, os.urandom(32))
    answer = trio.run(knock, invite.enrol_addresses, client.request(time.time()))
    proof, _ = client.finish(answer, time.time())
    save_membership(home, Membership(invite.org, proof, invite.bootstrap))
    api_token(home)
    return _who(load_identity(home))


def _already(home: Home, member: Membership) -> MeshError:
    return AlreadyDone(
        f"{home.path} is a member of {member.org.name}", hint="use another --home DIR to join as another"
    )


def org_show(path: Path) -> dict[str, Any]:
    """The organisation and this node's place in it."""
    return _who(load_identity(open_home(path)))


def token_show(path: Path) -> dict[str, Any]:
    """The token of the local API."""
    return {"token": api_token(open_home(path))}


def token_rotate(path: Path) -> dict[str, Any]:
    """A new token; the old one is of no use from now on."""
    return {"token": rotate_api_token(open_home(path))}


def _who(identity: Identity) -> dict[str, Any]:
    certificate, org = identity.certificate, identity.membership.org
    return {
        "node": certificate.node,
        "node_name": certificate.name,
        "name": org.name,
        "root_key": org.root_key.hex(),
        "site": certificate.site,
        "region": str(certificate.region),
        "clearance": str(certificate.clearance),
        "roles": list(certificate.roles),
        "certificate_serial": certificate.serial,
        "certificate_not_after": certificate.not_after,
    }
