"""Bytes held stable: what this version writes, every later version of the same domain writes and reads.

Sealed parts hold randomness and cannot be compared; their inputs before sealing, and one recorded sealing of each,
are held instead. To record anew after a deliberate change of format: ``python -m tests.wire.test_golden``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshd.core.errors import InviteUsed
from meshd.core.job import TaskKind
from meshd.wire import frames
from meshd.wire.ads import open_ad, seal_ad
from meshd.wire.codec import encode
from meshd.wire.enrol import EnrolClient, answer_admitted, answer_refused, open_request
from meshd.wire.invite import format_invite, parse_invite
from meshd.wire.receipt import open_receipt, sign_receipt
from meshd.wire.secretstream import pull_stream, push_stream
from meshd.wire.signing import Domain
from meshd.wire.task import open_task, seal_task
from meshd.wire.trust import verify_chain
from meshd.wire.typed import to_wire
from tests.wire.samples import (
    DELEGATION,
    ISSUER,
    KEYS,
    NOW_S,
    ROOT,
    SUBMITTER,
    WORKER,
    ad_of,
    certificate_of,
    invite_of,
    proof_of,
    receipt_of,
    task_of,
)
from tests.wire.test_frames import CONTROL, DECLINE, SEALED

GOLDEN = Path(__file__).parent / "golden"
REFUSAL = InviteUsed("the invite was used up")
CLIENT = EnrolClient(invite_of(), WORKER, "laptop-7", b"n" * 32)


def written() -> dict[str, dict[str, str]]:
    """Everything that is the same on every run."""
    control = {f"control {type(m).__name__}": frames.encode_control(m)[1] for m in CONTROL}
    sealed = {f"sealed {n} {type(m).__name__}": frames.encode_sealed(m) for n, m in enumerate(SEALED)}
    files: dict[str, dict[str, bytes]] = {
        "signatures": {d.name: WORKER.sign(d, b"payload").encode() for d in Domain},
        "trust": {
            "node": WORKER.node.encode(),
            "delegation": DELEGATION,
            "proof": proof_of(WORKER),
            "invite": format_invite(invite_of(), ISSUER, DELEGATION).encode(),
        },
        "ad": {"one model": seal_ad(ad_of(), WORKER, proof_of(WORKER))},
        "receipt": {"receipt": sign_receipt(receipt_of(), WORKER)},
        "task": {"header": encode(to_wire(task_of(2).header)), "job": encode(to_wire(task_of(2).job))},
        "frames": {**control, **sealed, "decline": frames.encode_decline(DECLINE)},
    }
    return {file: {name: data.hex() for name, data in held.items()} for file, held in files.items()}


def recorded() -> dict[str, str]:
    """What holds randomness: recorded once, and readable ever after."""
    push = push_stream(b"k" * 32)
    request = CLIENT.request(NOW_S)
    opened = open_request(request, ISSUER)
    held = {
        "task": seal_task(task_of(2), SUBMITTER, KEYS),
        "noop": seal_task(task_of(kind=TaskKind.NOOP), SUBMITTER, KEYS),
        "enrol request": request,
        "enrol admitted": answer_admitted(opened, ISSUER, proof_of(WORKER)),
        "enrol refused": answer_refused(opened, ISSUER, REFUSAL),
        "stream 1": push.seal(b"one"),
        "stream 2": push.seal(b"two", final=True),
    }
    return {name: data.hex() for name, data in held.items()}


def held(file: str) -> dict[str, str]:
    loaded: dict[str, str] = json.loads((GOLDEN / f"{file}.json").read_text())
    return loaded


@pytest.mark.parametrize("file", written())
def test_the_same_bytes_as_ever(file: str) -> None:
    assert written()[file] == held(file)


def test_old_documents_are_still_read() -> None:
    trust, ad, receipt = held("trust"), held("ad"), held("receipt")
    proof = bytes.fromhex(trust["proof"])
    assert verify_chain(proof, ROOT.verify_key, WORKER.node, NOW_S) == certificate_of(WORKER)
    assert parse_invite(bytes.fromhex(trust["invite"]).decode(), NOW_S) == invite_of()
    assert open_ad(None, bytes.fromhex(ad["one model"]), ROOT.verify_key, NOW_S)[0] == ad_of()
    assert open_receipt(bytes.fromhex(receipt["receipt"])) == receipt_of()


def test_old_sealed_messages_are_still_opened() -> None:
    old = {name: bytes.fromhex(data) for name, data in held("sealed").items()}
    assert open_task(old["task"], WORKER, NOW_S).task == task_of(2)
    assert open_task(old["noop"], WORKER, NOW_S).task == task_of(kind=TaskKind.NOOP)
    request = open_request(old["enrol request"], ISSUER)
    assert request.node == WORKER.node
    assert request.knows(invite_of().secret)
    assert CLIENT.finish(old["enrol admitted"], NOW_S)[1] == certificate_of(WORKER)
    with pytest.raises(InviteUsed):
        CLIENT.finish(old["enrol refused"], NOW_S)
    pull = pull_stream(b"k" * 32)
    assert (pull.open(old["stream 1"]), pull.open(old["stream 2"]), pull.finished) == (b"one", b"two", True)


def record() -> None:
    for file, data in {**written(), "sealed": recorded()}.items():
        (GOLDEN / f"{file}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    record()
