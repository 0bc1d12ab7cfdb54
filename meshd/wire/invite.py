"""Invites: one line of text that carries all a machine needs to join, signed by the issuer that will admit it.

A checksum tells a cut or mistyped line from a forged one; signature and delegation are checked before anything
touches the network. Whoever holds the text may join with it, so it is as secret as the terms are generous.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

from meshd.core import limits
from meshd.core.errors import BadInput, ClockWrong, InviteExpired, InviteInvalid, NotMember, ProtocolViolation
from meshd.core.trust import Invite
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey
from meshd.wire.signing import Domain, Signed
from meshd.wire.trust import open_delegation
from meshd.wire.typed import from_wire, to_wire

PREFIX: Final = "mesh-invite-1."
MAX_INVITE_CHARACTERS: Final = 1500
"""Fits a chat message, a terminal line and a QR code of moderate size."""

ID_BYTES: Final = 16
SECRET_BYTES: Final = 32
_CHECKSUM_BYTES: Final = 8
_HINT: Final = "copy the whole line again, or ask for a new invite"


def format_invite(invite: Invite, issuer: NodeKey, delegation: bytes) -> str:
    """The text of ``invite``, signed by ``issuer``, whose signed ``delegation`` goes with it.

    Raises BadInput when the text would be longer than MAX_INVITE_CHARACTERS (give fewer addresses) or the issuer is
    not the one that the invite names.
    """
    if issuer.verify_key != invite.issuer_key:
        raise BadInput("the invite names another issuer", param="issuer")
    if len(invite.id) != ID_BYTES or len(invite.secret) != SECRET_BYTES:
        raise BadInput(f"an invite has an id of {ID_BYTES} bytes and a secret of {SECRET_BYTES}", param="invite")
    signed = issuer.sign(Domain.INVITE, encode(to_wire(invite)))
    body = encode([signed.payload, signed.signature, delegation])
    text = PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")
    if len(text) > MAX_INVITE_CHARACTERS:
        raise BadInput("the invite is too long", param="bootstrap", hint="give fewer or shorter addresses")
    return text


def parse_invite(text: str, now_s: float) -> Invite:
    """The invite in ``text`` (white space around it and line breaks within are forgiven), at wall time ``now_s``.

    Raises InviteInvalid (cut, mistyped, tampered with, no invite at all), InviteExpired, ClockWrong.
    """
    body = _body(text)
    try:
        match decode(body, MAX_INVITE_CHARACTERS):
            case [bytes() as payload, bytes() as signature, bytes() as delegation]:
                invite = from_wire(Invite, decode(payload, MAX_INVITE_CHARACTERS))
                granted = open_delegation(delegation, invite.org.root_key)
                Signed(payload, signature).verify(granted.issuer_key, Domain.INVITE)
            case _:
                raise ProtocolViolation("not an invite")
    except (ProtocolViolation, NotMember):
        raise InviteInvalid("the invite was not made by the organisation it names", hint=_HINT) from None
    if granted.issuer_key != invite.issuer_key or len(invite.id) != ID_BYTES or len(invite.secret) != SECRET_BYTES:
        raise InviteInvalid("the invite was not made by the organisation it names", hint=_HINT)
    if granted.not_before - now_s > limits.CLOCK_SKEW_S:
        raise ClockWrong("the invite's issuer is not valid yet", hint="set this machine's clock, then try again")
    if now_s >= min(invite.expires_at, granted.not_after):
        raise InviteExpired("the invite expired", hint="ask for a new invite, or set this machine's clock")
    return invite


def _body(text: str) -> bytes:
    line = "".join(text[: 2 * MAX_INVITE_CHARACTERS].split())
    if not line.startswith(PREFIX):
        raise InviteInvalid("this is not an invite", hint=f"an invite begins with {PREFIX}")
    if len(line) > MAX_INVITE_CHARACTERS:
        raise InviteInvalid("the invite is too long", hint=_HINT)
    encoded = line[len(PREFIX) :]
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InviteInvalid("the invite is damaged", hint=_HINT) from None
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    canonical = base64.urlsafe_b64encode(raw).decode().rstrip("=") == encoded
    if not canonical or not hmac.compare_digest(_checksum(body), checksum):
        raise InviteInvalid("the invite is damaged or incomplete", hint=_HINT)
    return body


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES, person=b"mesh-invite-1").digest()
