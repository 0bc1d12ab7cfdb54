"""Members that break the protocol: declined or cut off, one stream at a time, and the node lives."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from meshd.core import limits
from meshd.core.errors import Truncated, Unreachable
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import ModelDigest
from meshd.core.receipt import Receipt
from meshd.core.task import DeclineReason, EndReason
from meshd.node.ports import FrameStream
from meshd.testing.fakes import FAKE_DIGEST, fake_node
from meshd.testing.network import FakeStream
from meshd.wire import frames
from meshd.wire.protocols import TASK, ControlFrame, TaskFrame
from meshd.wire.receipt import OutputHash, sign_receipt
from meshd.wire.secretstream import push_stream
from meshd.wire.task import open_task
from tests.helpers import until
from tests.node.mesh import WALL_S, Mesh, MeshNode, all_idle, client, mesh_of, run_job, text_of
from tests.node.rogue import FAR_S, Rogue, answer_to, last_word, up_writer

pytestmark = pytest.mark.mock_clock


async def lives(mesh: Mesh) -> None:
    """Every node still does its work."""
    app = mesh.nodes["app"]
    job = mesh.job()
    assert (await run_job(app, job)).text == text_of(job)
    await all_idle(list(mesh.nodes.values()))


async def aborted(stream: FakeStream) -> None:
    """The other side cut this stream off."""
    with pytest.raises(Truncated):
        while True:
            await stream.receive(limits.MAX_TASK_BYTES)


# -- at the worker


async def test_a_replayed_offer_is_declined_and_what_it_repeats_goes_on() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=10.0) as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        first, second = await rogue.task_stream(worker), await rogue.task_stream(worker)
        offer = rogue.offer(worker.node)
        assert await answer_to(first, offer) == "accepted"
        assert await answer_to(second, offer) == DeclineReason.REPLAYED
        said = await last_word(first)
        assert isinstance(said, frames.Finished) and said.reason is FinishReason.STOP
        assert await answer_to(first, offer) == DeclineReason.REPLAYED, "also after its end, and on the same stream"
        await lives(mesh)


async def test_an_app_that_vanishes_after_a_replay_leaves_no_engine_running() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1.0) as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        first, second = await rogue.task_stream(worker), await rogue.task_stream(worker)
        offer = rogue.offer(worker.node)
        assert await answer_to(first, offer) == "accepted"
        assert await answer_to(second, offer) == DeclineReason.REPLAYED
        await until(lambda: worker.engine.running, 1)
        await first.abort()
        await until(worker.idle, 1)


async def test_offers_that_are_not_for_here_or_now_are_declined_with_the_reason() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker, rogue = mesh.nodes["app"], mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream = await rogue.task_stream(worker)
        assert await answer_to(stream, rogue.offer(app.node)) == DeclineReason.WRONG_RECIPIENT
        assert await answer_to(stream, rogue.offer(worker.node, life_s=-10)) == DeclineReason.EXPIRED
        assert await answer_to(stream, rogue.offer(worker.node, life_s=FAR_S)) == DeclineReason.EXPIRED
        assert await answer_to(stream, rogue.offer(worker.node, model="other")) == DeclineReason.NO_MODEL
        other = Rogue(mesh, "other")
        assert await answer_to(stream, other.offer(worker.node)) == DeclineReason.BAD_TASK, "another's, passed on"
        assert worker.engine.started == 0
        assert await answer_to(stream, rogue.offer(worker.node, number=2)) == "accepted", "the stream is still good"
        await lives(mesh)


async def test_a_later_attempt_fences_off_the_earlier_and_never_the_other_way() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=5.0, slots=1) as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        streams = [await rogue.task_stream(worker) for _ in range(3)]
        assert await answer_to(streams[0], rogue.offer(worker.node, number=2)) == "accepted"
        assert await answer_to(streams[1], rogue.offer(worker.node, number=1)) == DeclineReason.WRONG_ATTEMPT
        assert await answer_to(streams[2], rogue.offer(worker.node, number=3)) == "accepted"
        fenced, finished = await last_word(streams[0]), await last_word(streams[2])
        assert isinstance(fenced, frames.Ended) and fenced.reason is EndReason.CANCELLED
        assert isinstance(finished, frames.Finished)
        assert worker.engine.most_running == 1
        await lives(mesh)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "grown", "noise"])
async def test_a_damaged_offer_is_declined(damage: str) -> None:
    async with mesh_of(client(), "worker") as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        offer, chance = bytearray(rogue.offer(worker.node)), random.Random(damage)
        match damage:
            case "cut":
                del offer[chance.randrange(len(offer)) :]
            case "flip":
                offer[chance.randrange(len(offer))] ^= 1
            case "empty":
                offer.clear()
            case "grown":
                offer += b"\0"
            case "noise":
                offer[:] = chance.randbytes(3000)
        stream = await rogue.task_stream(worker)
        assert await answer_to(stream, bytes(offer)) == DeclineReason.BAD_TASK
        assert worker.engine.started == 0
        await lives(mesh)


@pytest.mark.parametrize("kind", [0, TaskFrame.ACCEPT, TaskFrame.DECLINE, 5, 255])
async def test_a_frame_out_of_turn_ends_the_stream(kind: int) -> None:
    async with mesh_of(client(), "worker") as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream = await rogue.task_stream(worker)
        await stream.send(kind, b"")
        await aborted(stream)
        running = await rogue.task_stream(worker)
        assert await answer_to(running, rogue.offer(worker.node)) == "accepted"
        await running.send(kind, b"")
        await aborted(running)
        await until(worker.idle, 1)
        await lives(mesh)


@pytest.mark.parametrize("size", [0, 10, 500, limits.MAX_TASK_FRAME_BYTES + 1])
async def test_sealed_noise_in_a_running_attempt_ends_it_and_its_engine(size: int) -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1.0) as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream = await rogue.task_stream(worker)
        assert await answer_to(stream, rogue.offer(worker.node)) == "accepted"
        await until(lambda: worker.engine.running, 1)
        await stream.send(TaskFrame.SEALED, random.Random(size).randbytes(size))
        await aborted(stream)
        await until(lambda: worker.idle() and worker.ledger.receipts, 1)
        assert [r.finish for r in worker.ledger.receipts] == ["cancelled"]


async def test_a_submitter_that_speaks_like_a_worker_is_cut_off() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1.0) as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream = await rogue.task_stream(worker)
        assert await answer_to(stream, rogue.offer(worker.node)) == "accepted"
        await stream.send(TaskFrame.SEALED, up_writer().seal(frames.Heartbeat()))
        await aborted(stream)
        await until(worker.idle, 1)


async def test_an_oversized_offer_is_never_read() -> None:
    async with mesh_of(client(), "worker") as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream = await rogue.task_stream(worker)
        await stream.send(TaskFrame.OFFER, bytes(limits.MAX_TASK_BYTES + 1))
        await aborted(stream)
        await lives(mesh)


async def test_a_silent_submitter_loses_its_lease() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=0.5) as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream, began_s = await rogue.task_stream(worker), trio.current_time()
        assert await answer_to(stream, rogue.offer(worker.node)) == "accepted"
        said = await last_word(stream)
        assert isinstance(said, frames.Ended) and said.reason is EndReason.LEASE_LAPSED
        assert trio.current_time() - began_s == pytest.approx(limits.LEASE_S, abs=0.1)
        await until(worker.idle, 1)


async def test_streams_of_noise_do_not_disturb_anybody() -> None:
    async with mesh_of(client(), "worker") as mesh:
        worker, rogue, chance = mesh.nodes["worker"], Rogue(mesh), random.Random(7)
        for turn in range(60):
            await rogue.meet(worker)
            try:
                stream = await (rogue.task_stream if turn % 2 else rogue.control)(worker)
                for _ in range(chance.randrange(1, 6)):
                    await stream.send(chance.randrange(8), chance.randbytes(chance.choice([0, 1, 40, 2000])))
            except (Truncated, Unreachable):
                continue
        await lives(mesh)


# -- on the control stream


BAD_CONTROL = {
    "unknown kind": (77, b""),
    "noise": (ControlFrame.HELLO, b"\xc1" * 50),
    "a ping that is none": (ControlFrame.HEARTBEAT, b"\x80"),
    "oversized": (ControlFrame.ADS, bytes(limits.MAX_CONTROL_FRAME_BYTES + 1)),
}


@pytest.mark.parametrize("what", BAD_CONTROL)
async def test_bad_control_frames_cost_the_connection_of_who_sent_them(what: str) -> None:
    async with mesh_of(client(), "worker") as mesh:
        worker, rogue = mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(worker)
        stream = await rogue.control(worker)
        await stream.send(*BAD_CONTROL[what])
        await until(lambda: rogue.node not in worker.transport.connected(), 1)
        assert mesh.nodes["app"].node in worker.transport.connected()
        await lives(mesh)


async def test_ads_that_lie_change_nothing() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker, rogue = mesh.nodes["app"], mesh.nodes["worker"], Rogue(mesh)
        await rogue.meet(app)
        stream = await rogue.control(app)
        forged = bytearray(worker.presence.sealed_ad())
        forged[40] ^= 1
        lies = (bytes(forged), b"noise", rogue.ad(issued_in_s=60.0), rogue.ad(issued_in_s=-60.0))
        before = dict(app.neighbours._values)
        await stream.send(*frames.encode_control(frames.Hello(app.wall(), "rogue", ads=lies)))
        await stream.send(*frames.encode_control(frames.Ads(lies)))
        await until(lambda: app.neighbours._links[rogue.node].heard_at_s, 1)
        assert app.view.get(rogue.node) is None
        assert rogue.node not in app.neighbours._values and set(before) == set(app.neighbours._values)
        await lives(mesh)


# -- at the submitter

Handler = Callable[[FrameStream], Awaitable[None]]


async def rogue_worker(mesh: Mesh, app: MeshNode, handler: Handler) -> Rogue:
    """A worker that ``app`` prefers, and whose task streams are served by ``handler``."""
    rogue = Rogue(mesh)
    rogue.transport.serve(TASK, handler)
    await rogue.meet(app)
    stream = await rogue.control(app)
    await stream.send(*frames.encode_control(frames.Hello(app.wall(), "rogue", ads=(rogue.ad(),))))
    await until(lambda: app.view.get(rogue.node) is not None, 1)
    return rogue


def behaves(behaviour: str, rogue: list[Rogue]) -> Handler:
    """A task handler that does what ``behaviour`` says."""

    async def handle(stream: FrameStream) -> None:
        _, payload = await stream.receive(limits.MAX_TASK_BYTES)
        opened = open_task(payload, rogue[0].key, wall_now())
        writer = frames.SealedWriter(push_stream(opened.keys.down))
        if behaviour == "bad decline":
            await stream.send(TaskFrame.DECLINE, b"\xc1")
        elif behaviour == "no answer":
            await trio.sleep_forever()
        elif behaviour == "wrong kind":
            await stream.send(99, b"")
        else:
            await stream.send(TaskFrame.ACCEPT, b"")
            await _misbehave(behaviour, stream, writer)
        await trio.sleep_forever()

    return handle


def wall_now() -> float:
    """The wall clock of the tests."""
    return WALL_S + trio.current_time()


async def _misbehave(behaviour: str, stream: FrameStream, writer: frames.SealedWriter) -> None:
    async def say(message: frames.FromWorker) -> None:
        await stream.send(TaskFrame.SEALED, writer.seal(message))

    started = frames.Started(Opening(1), FAKE_DIGEST, "fake")
    match behaviour:
        case "noise":
            await stream.send(TaskFrame.SEALED, b"x" * 100)
        case "two accepts":
            await stream.send(TaskFrame.ACCEPT, b"")
        case "tokens before the start":
            await say(frames.Tokens((Token(0, 1, b"x"),)))
        case "a gap":
            await say(started)
            await say(frames.Tokens((Token(1, 1, b"x"),)))
        case "another model file":
            await say(frames.Started(Opening(1), None, "fake"))
        case "hang up":
            await stream.abort()
        case "too large":
            await stream.send(TaskFrame.SEALED, bytes(limits.MAX_TASK_FRAME_BYTES + 1))
        case "a submitter's word":
            await say(frames.Cancel())  # type: ignore[arg-type]
        case "silence":
            await say(started)


@pytest.mark.parametrize(
    "behaviour",
    [
        "bad decline",
        "no answer",
        "wrong kind",
        "noise",
        "two accepts",
        "tokens before the start",
        "a gap",
        "another model file",
        "hang up",
        "too large",
        "a submitter's word",
        "silence",
    ],
)
async def test_a_worker_that_breaks_the_protocol_loses_the_job_to_another(behaviour: str) -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, rogues = mesh.nodes["app"], list[Rogue]()
        rogues.append(await rogue_worker(mesh, app, behaves(behaviour, rogues)))
        job, began_s = mesh.job(), trio.current_time()
        got = await run_job(app, job)
        assert got.text == text_of(job) and got.tokens == 20
        assert trio.current_time() - began_s < limits.SUSPECT_AFTER_S + 1.5
        assert app.view.bans.score(rogues[0].node, trio.current_time()) > 0
        await all_idle(list(mesh.nodes.values()))


@pytest.mark.parametrize("receipt", [b"noise", b"", b"another's"])
async def test_an_answer_with_a_bad_receipt_counts_but_its_receipt_does_not(receipt: bytes) -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker, rogues = mesh.nodes["app"], mesh.nodes["worker"], list[Rogue]()
        await run_job(app, mesh.job())
        signed = worker.ledger.signed[0] if receipt == b"another's" else receipt

        async def handle(stream: FrameStream) -> None:
            _, payload = await stream.receive(limits.MAX_TASK_BYTES)
            writer = frames.SealedWriter(push_stream(open_task(payload, rogues[0].key, wall_now()).keys.down))
            await stream.send(TaskFrame.ACCEPT, b"")
            for said in (
                frames.Started(Opening(1), FAKE_DIGEST, "fake"),
                frames.Tokens((Token(0, 1, b"x"),)),
                frames.Finished(FinishReason.STOP, signed),
            ):
                await stream.send(TaskFrame.SEALED, writer.seal(said))
            await trio.sleep_forever()

        rogues.append(await rogue_worker(mesh, app, handle))
        got = await run_job(app, mesh.job())
        assert got.text == "x" and got.done is not None and got.done.receipt is None
        await until(lambda: len(app.ledger.receipts) == 1, 1, "the good receipt being kept")
        assert app.view.bans.score(rogues[0].node, trio.current_time()) > 0


LIES: dict[str, dict[str, Any]] = {
    "the truth": {},
    "another request": {"request_hash": bytes(32)},
    "another model": {"model": "better"},
    "another file": {"digest": ModelDigest("cd" * 32)},
    "more tokens": {"tokens": 2},
    "another output": {"output_hash": bytes(32)},
    "another submitter": {"submitter": fake_node(9)},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_receipt_that_its_worker_signed_counts_only_when_it_is_about_what_was_asked_and_came(lie: str) -> None:
    async with mesh_of(client()) as mesh:
        app, rogues = mesh.nodes["app"], list[Rogue]()

        async def handle(stream: FrameStream) -> None:
            _, payload = await stream.receive(limits.MAX_TASK_BYTES)
            opened, rogue, token = open_task(payload, rogues[0].key, wall_now()), rogues[0], Token(0, 1, b"x")
            header, hashed = opened.task.header, OutputHash()
            hashed.add([token])
            truth = Receipt(
                header.attempt, header.submitter, rogue.node, opened.task.job.model, FAKE_DIGEST, 1, 0, 1,
                opened.request_hash, hashed.digest(), 1.0, 2.0, "stop", 1,
            )  # fmt: skip
            signed = sign_receipt(replace(truth, **LIES[lie]), rogue.key)
            writer = frames.SealedWriter(push_stream(opened.keys.down))
            await stream.send(TaskFrame.ACCEPT, b"")
            for said in (
                frames.Started(Opening(1), FAKE_DIGEST, "fake"),
                frames.Tokens((token,)),
                frames.Finished(FinishReason.STOP, signed),
            ):
                await stream.send(TaskFrame.SEALED, writer.seal(said))
            await trio.sleep_forever()

        rogues.append(await rogue_worker(mesh, app, handle))
        got = await run_job(app, mesh.job())
        assert got.text == "x" and got.done is not None
        assert (got.done.receipt is not None) == (lie == "the truth")
