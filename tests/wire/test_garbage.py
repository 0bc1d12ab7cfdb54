"""Every decoder, fed random bytes and mutations of valid messages: typed errors only, never anything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.core.errors import MeshError
from meshd.core.generation import Opening
from meshd.wire import frames
from meshd.wire.ads import open_ad, seal_ad
from meshd.wire.enrol import EnrolClient, answer_admitted, open_request
from meshd.wire.invite import format_invite, parse_invite
from meshd.wire.keys import seal
from meshd.wire.receipt import open_receipt, sign_receipt
from meshd.wire.secretstream import pull_stream, push_stream
from meshd.wire.task import open_task, seal_task
from meshd.wire.trust import open_delegation, verify_chain
from tests.wire.samples import (
    DELEGATION,
    ISSUER,
    KEYS,
    NOW_S,
    ROOT,
    SUBMITTER,
    WORKER,
    ad_of,
    invite_of,
    proof_of,
    receipt_of,
    task_of,
    tokens_of,
)

PROOF = proof_of(WORKER)
CLIENT = EnrolClient(invite_of(), WORKER, "laptop-7", b"n" * 32)
REQUEST = CLIENT.request(NOW_S)
HELLO_KIND, HELLO = frames.encode_control(frames.Hello(NOW_S, "0.1.0", ads=(b"ad",)))
DECODERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "chain": (lambda d: verify_chain(d, ROOT.verify_key, WORKER.node, NOW_S), PROOF),
    "delegation": (lambda d: open_delegation(d, ROOT.verify_key), DELEGATION),
    "ad": (lambda d: open_ad(WORKER.node, d, ROOT.verify_key, NOW_S), seal_ad(ad_of(), WORKER, PROOF)),
    "task": (lambda d: open_task(d, WORKER, NOW_S), seal_task(task_of(2), SUBMITTER, KEYS)),
    "receipt": (open_receipt, sign_receipt(receipt_of(), WORKER)),
    "invite": (
        lambda d: parse_invite(d.decode("latin-1"), NOW_S),
        format_invite(invite_of(), ISSUER, DELEGATION).encode(),
    ),
    "enrol request": (lambda d: open_request(d, ISSUER), REQUEST),
    "enrol request, opened": (
        lambda d: open_request(seal(ISSUER.verify_key, d), ISSUER),
        ISSUER.unseal(REQUEST),
    ),
    "enrol answer": (
        lambda d: CLIENT.finish(d, NOW_S),
        answer_admitted(open_request(REQUEST, ISSUER), ISSUER, PROOF),
    ),
    "secret stream": (lambda d: pull_stream(b"k" * 32).open(d), push_stream(b"k" * 32).seal(b"hello")),
    "control": (lambda d: frames.decode_control(HELLO_KIND, d), HELLO),
    "decline": (
        frames.decode_decline,
        frames.encode_decline(frames.Decline(frames.DeclineReason.BUSY, 1.0, "full")),
    ),
    "sealed started": (frames.decode_sealed, frames.encode_sealed(frames.Started(Opening(3, ("x",)), None, "m"))),
    "sealed tokens": (frames.decode_sealed, frames.encode_sealed(frames.Tokens(tokens_of(4)))),
}
MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "double"]), st.floats(0, 1), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", DECODERS)
def test_the_sample_itself_is_good(name: str) -> None:
    decoder, sample = DECODERS[name]
    decoder(sample)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=600))
def test_random_bytes(name: str, data: bytes) -> None:
    _typed_or_fine(DECODERS[name][0], data)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(mutations=MUTATIONS)
def test_mutated_messages(name: str, mutations: list[tuple[str, float, bytes]]) -> None:
    decoder, data = DECODERS[name]
    for kind, place, extra in mutations:
        data = _mutate(data, kind, int(place * len(data)), extra)
    _typed_or_fine(decoder, data)


def _typed_or_fine(decoder: Callable[[bytes], object], data: bytes) -> None:
    try:
        decoder(data)
    except MeshError:
        return


def _mutate(data: bytes, kind: str, at: int, extra: bytes) -> bytes:
    if kind == "flip":
        return data[:at] + bytes(a ^ b for a, b in zip(data[at:], extra, strict=False)) + data[at + len(extra) :]
    if kind == "cut":
        return data[:at] + data[at + len(extra) :]
    if kind == "insert":
        return data[:at] + extra + data[at:]
    return data[:at] + data
