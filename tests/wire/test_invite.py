"""Invites: refused before any network when cut, changed, forged or late."""

from __future__ import annotations

import string
from dataclasses import replace

import pytest

from meshd.core.errors import BadInput, ClockWrong, InviteExpired, InviteInvalid
from meshd.core.trust import Organisation
from meshd.wire.invite import MAX_INVITE_CHARACTERS, PREFIX, format_invite, parse_invite
from meshd.wire.trust import issue_delegation
from tests.wire.samples import DAY_S, DELEGATION, ISSUER, NOW_S, ROOT, STRANGER, delegation_of, invite_of

TEXT = format_invite(invite_of(), ISSUER, DELEGATION)


def test_comes_back() -> None:
    assert parse_invite(TEXT, NOW_S) == invite_of()
    assert len(TEXT) < 1200


def test_line_breaks_and_space_are_forgiven() -> None:
    wrapped = "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))
    assert parse_invite(f"  {wrapped}\r\n", NOW_S) == invite_of()


@pytest.mark.parametrize("cut", [0, 1, 5, len(PREFIX), 100, len(TEXT) // 2, len(TEXT) - 1])
def test_a_cut_invite(cut: int) -> None:
    with pytest.raises(InviteInvalid):
        parse_invite(TEXT[:cut], NOW_S)


def test_every_changed_character_is_noticed() -> None:
    alphabet = string.ascii_letters + string.digits + "-_"
    for at in range(len(TEXT)):
        other = alphabet[(alphabet.find(TEXT[at]) + 1) % len(alphabet)]
        with pytest.raises(InviteInvalid):
            parse_invite(TEXT[:at] + other + TEXT[at + 1 :], NOW_S)


@pytest.mark.parametrize("text", ["", "hello", PREFIX, PREFIX + "====", PREFIX + "ä" * 40, PREFIX + "A" * 9000, "\0"])
def test_garbage(text: str) -> None:
    with pytest.raises(InviteInvalid):
        parse_invite(text, NOW_S)


def test_a_forger_without_the_issuers_key() -> None:
    with pytest.raises(BadInput):
        format_invite(invite_of(), STRANGER, DELEGATION)
    forged = format_invite(replace(invite_of(), issuer_key=STRANGER.verify_key), STRANGER, DELEGATION)
    with pytest.raises(InviteInvalid):
        parse_invite(forged, NOW_S)


def test_an_issuer_of_another_organisation() -> None:
    foreign = replace(invite_of(), org=Organisation("Example Org", STRANGER.verify_key))
    with pytest.raises(InviteInvalid):
        parse_invite(format_invite(foreign, ISSUER, DELEGATION), NOW_S)


def test_times() -> None:
    parse_invite(TEXT, NOW_S + DAY_S - 1)
    with pytest.raises(InviteExpired):
        parse_invite(TEXT, NOW_S + DAY_S)
    with pytest.raises(ClockWrong):
        parse_invite(TEXT, NOW_S - 2 * DAY_S)


def test_an_expired_issuer_invites_nobody() -> None:
    short = issue_delegation(delegation_of(ends_s=NOW_S + 5), ROOT)
    with pytest.raises(InviteExpired):
        parse_invite(format_invite(invite_of(), ISSUER, short), NOW_S + 6)


def test_too_many_addresses_are_refused_when_made() -> None:
    crowded = replace(invite_of(), bootstrap=("/ip4/10.0.0.1/tcp/4001/p2p/" + ISSUER.node,) * 12)
    with pytest.raises(BadInput):
        format_invite(crowded, ISSUER, DELEGATION)
    assert len(TEXT) < MAX_INVITE_CHARACTERS


def test_the_secret_is_not_shown() -> None:
    assert "ssss" not in repr(parse_invite(TEXT, NOW_S))
