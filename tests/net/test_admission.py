"""Who gets in: members. Everybody else ends before any stream handler, and both sides learn why."""

from __future__ import annotations

import logging

import nacl.signing
import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as PLAIN_NOISE
from libp2p.security.noise.transport import Transport as PlainNoise
from libp2p.security.secio.transport import ID as SECIO
from libp2p.security.secio.transport import Transport as Secio
from libp2p.security.security_multistream import SecurityMultistream

from meshd.core.errors import ClockWrong, NotMember, Truncated
from meshd.net.mesh_net import MeshNet
from meshd.net.noise import PROTOCOL
from tests.helpers import until
from tests.net.members import ECHO, Clock, MemberGate, Org, gate_of, id_of, member, seed_of

ROGUE = Org(nacl.signing.SigningKey(bytes([1] * 32)))


def port_of(net: MeshNet) -> int:
    return int(net.transport.addresses()[0].rsplit("/", 1)[1])


async def negotiate(net: MeshNet, protocol: str, transport: object) -> None:
    """Dial ``net`` offering only ``protocol``; raises when it is refused."""
    socket = await trio.open_tcp_stream("127.0.0.1", port_of(net))
    async with socket:
        offer = SecurityMultistream({protocol: transport})  # type: ignore[dict-item]
        await offer.secure_outbound(RawConnection(TrioTCPStream(socket), True), ID.from_base58(net.transport.node))


async def test_only_our_own_security_protocol_is_spoken() -> None:
    keys = create_new_key_pair(seed_of(2))
    offers = {
        PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys),
        SECIO: Secio(keys),
        PLAIN_NOISE: PlainNoise(keys, new_x25519_pair().private_key),
    }
    async with member(1) as a:
        for protocol, transport in offers.items():
            with pytest.raises(BaseLibp2pError), trio.fail_after(5):
                await negotiate(a, protocol, transport)
        assert a.transport.connected() == ()


async def test_plain_noise_under_our_name_gets_no_further_than_the_proof() -> None:
    """It completes the encryption, and then has no certificate to show."""
    async with member(1) as a:
        noise = PlainNoise(create_new_key_pair(seed_of(2)), new_x25519_pair().private_key)
        await negotiate(a, PROTOCOL, noise)
        assert a.transport.connected() == ()


def strangers() -> dict[str, tuple[MemberGate, type[NotMember]]]:
    """What node 2 might show to an organisation it does not belong to."""
    ours = Org()
    return {
        "rogue": (MemberGate(ours, ROGUE.issue(id_of(2))), NotMember),
        "expired": (MemberGate(ours, ours.issue(id_of(2), ends=-1)), NotMember),
        "stolen": (MemberGate(ours, ours.issue(id_of(3))), NotMember),
        "garbage": (MemberGate(ours, b"no certificate"), NotMember),
        "empty": (MemberGate(ours, b""), NotMember),
        "oversize": (MemberGate(ours, bytes(5000)), NotMember),
        "early": (MemberGate(ours, ours.issue(id_of(2), begins=600)), ClockWrong),
    }


@pytest.mark.parametrize("what", strangers())
async def test_a_stranger_is_refused_and_both_sides_say_why(what: str, caplog: pytest.LogCaptureFixture) -> None:
    gate, error = strangers()[what]
    reached = []
    async with member(1) as a, member(2, gate) as stranger:

        async def reach(stream: object) -> None:
            reached.append(stream)

        a.transport.serve(ECHO, reach)
        with caplog.at_level(logging.WARNING, "meshd.net"):
            with pytest.raises(error) as caught:  # one that waits for a deadline instead ends as Unreachable
                await stranger.transport.dial(a.transport.node, a.transport.addresses(), 5)
            assert type(caught.value) is error
            await until(lambda: len(_lines(caplog)) >= 2, 10, "both sides logging")
        by_us = [line for line in _lines(caplog) if line.startswith(f"refused {id_of(2)}")]
        by_them = [line for line in _lines(caplog) if line.startswith(f"{id_of(1)} ") and "refused us" in line]
        assert len(by_us) == len(by_them) == 1 and len(_lines(caplog)) == 2
        assert not reached and a.transport.connected() == stranger.transport.connected() == ()
        assert a.directory.known() == ()


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "meshd.net"]


async def test_we_refuse_a_rogue_we_dial() -> None:
    async with member(1) as a, member(2, MemberGate(ROGUE, ROGUE.issue(id_of(2)))) as rogue:
        with pytest.raises(NotMember):
            await a.transport.dial(None, rogue.transport.addresses(), 5)
        assert a.transport.connected() == ()


async def test_a_renewed_certificate_counts_from_the_next_handshake() -> None:
    gate = MemberGate(Org(), Org().issue(id_of(2), ends=-1))
    async with member(1) as a, member(2, gate) as b:
        with pytest.raises(NotMember):
            await b.transport.dial(None, a.transport.addresses(), 5)
        gate.proof = Org().issue(id_of(2))
        assert await b.transport.dial(None, a.transport.addresses(), 5) == a.transport.node


async def test_a_connection_does_not_outlive_the_certificate_it_was_made_with() -> None:
    clock = Clock()
    gate = MemberGate(Org(), Org().issue(id_of(2), ends=600))
    judging = gate_of(1, Org(clock=clock))
    async with member(1, judging, recheck_interval_s=0.1) as a, member(2, gate, recheck_interval_s=3600) as b:
        node = await b.transport.dial(None, a.transport.addresses(), 5)
        stream = await b.transport.open_stream(node, ECHO, 5)
        await stream.send(1, b"still a member")
        assert await stream.receive(100) == (1, b"still a member")
        clock.ahead_s = 601
        with pytest.raises(Truncated), trio.fail_after(10):
            await stream.receive(100)
        await until(lambda: a.transport.connected() == b.transport.connected() == (), 10, "both ends letting go")
        with pytest.raises(NotMember):
            await b.transport.dial(None, a.transport.addresses(), 5)
        gate.proof = Org().issue(id_of(2))
        assert await b.transport.dial(None, a.transport.addresses(), 5) == node


async def test_half_open_flood() -> None:
    """Sockets that say nothing take no member's place, and are closed in time."""
    async with member(1, max_handshakes=8, handshake_timeout_s=2.0) as a, member(2) as b:
        mute = [await trio.open_tcp_stream("127.0.0.1", port_of(a)) for _ in range(40)]
        assert await b.transport.dial(None, a.transport.addresses(), 5) == a.transport.node
        with trio.fail_after(20):
            for socket in mute:
                while await socket.receive_some():
                    pass
                await socket.aclose()


async def test_a_proof_is_shown_to_nobody_before_encryption() -> None:
    gate = gate_of(1)
    async with member(1, gate) as a:
        socket = await trio.open_tcp_stream("127.0.0.1", port_of(a))
        async with socket:
            await socket.send_all(b"\x13/multistream/1.0.0\n")
            with trio.fail_after(5):
                assert gate.proof not in await socket.receive_some(4096)
