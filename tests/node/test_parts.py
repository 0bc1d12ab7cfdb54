"""The small parts: timer, receipts, the owner's limits, the node's own ad, task streams."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from meshd.core.ad import OfferState
from meshd.core.engine import EngineLimits, ModelFile
from meshd.core.errors import BadInput, HomeUnusable, NotFound, Overloaded, Truncated
from meshd.core.ids import AttemptId, ModelDigest, job_id
from meshd.core.receipt import Receipt
from meshd.core.share import Share
from meshd.node import streams as streaming
from meshd.node.guest import Guest, limits_of
from meshd.node.receipts import GATHER_S, WAITING_RECEIPTS, WRITE_TIMEOUT_S, ReceiptKeeper
from meshd.node.streams import TaskStreams, loopback_pair
from meshd.node.timer import STUCK_PAUSE_S, Timer
from meshd.testing.fakes import fake_certificate, fake_node
from meshd.testing.network import FakeNetwork
from meshd.wire.ads import open_ad
from meshd.wire.protocols import TASK
from meshd.wire.receipt import receipt_id
from tests.node.mesh import MODEL, ROOT, Setup, mesh_of, run_job, text_of
from tests.node.stores import Disk, MemoryLedger, MemorySettings

pytestmark = pytest.mark.mock_clock
A, B = fake_node(1), fake_node(2)

# -- the timer


class Alarm:
    """A deadline, and when it was met; ``stays``: being met does not move it."""

    def __init__(self, at_s: float | None, *, stays: bool = False) -> None:
        self.at_s, self.met_s, self._stays = at_s, list[float](), stays
        self.timer = Timer(lambda: self.at_s, self._met)

    def _met(self) -> None:
        self.met_s.append(trio.current_time())
        if not self._stays:
            self.at_s = None


@asynccontextmanager
async def running(alarm: Alarm) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.timer.run)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


async def test_a_timer_wakes_at_the_deadline_and_once() -> None:
    alarm = Alarm(5.0)
    async with running(alarm):
        await trio.sleep_until(20.0)
    assert alarm.met_s == [5.0]


async def test_a_deadline_that_moves_earlier_counts_after_a_poke() -> None:
    alarm = Alarm(50.0)
    async with running(alarm):
        alarm.at_s = 3.0
        alarm.timer.poke()
        await trio.sleep_until(60.0)
    assert alarm.met_s == [3.0]


async def test_a_deadline_that_moves_later_needs_no_poke_and_is_met_when_it_comes() -> None:
    alarm = Alarm(5.0)
    async with running(alarm):
        await trio.sleep_until(4.0)
        alarm.at_s = 9.0
        await trio.sleep_until(20.0)
    assert alarm.met_s == [9.0]


async def test_a_timer_without_a_deadline_gets_one_by_a_poke() -> None:
    alarm = Alarm(None)
    async with running(alarm):
        await trio.sleep_until(10.0)
        alarm.at_s = 4.0  # past already
        alarm.timer.poke()
        await trio.sleep_until(11.0)
    assert alarm.met_s == [10.0]


async def test_a_deadline_that_nobody_moves_is_no_busy_loop() -> None:
    alarm = Alarm(1.0, stays=True)
    async with running(alarm):
        await trio.sleep_until(2.0)
    assert 10 < len(alarm.met_s) <= math.ceil(1.0 / STUCK_PAUSE_S) + 1


# -- receipts


def receipt(number: int) -> tuple[Receipt, bytes]:
    """Some receipt and its bytes."""
    attempt = AttemptId(job_id(number.to_bytes(16, "big")), 1)
    made = Receipt(attempt, A, B, "m", None, 1, 0, 0, bytes(32), bytes(32), 1.0, 2.0, "stop", 1)
    return made, number.to_bytes(4, "big")


@asynccontextmanager
async def keeping(disk: Disk) -> AsyncIterator[tuple[ReceiptKeeper, MemoryLedger]]:
    ledger = MemoryLedger(disk)
    keeper = ReceiptKeeper(ledger)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        yield keeper, ledger
        nursery.cancel_scope.cancel()


async def test_keep_returns_when_the_receipt_is_on_disk_and_not_before() -> None:
    disk, ids = Disk(), list[str]()
    async with keeping(disk) as (keeper, ledger), trio.open_nursery() as nursery:
        disk.hold()

        async def keep() -> None:
            ids.append(await keeper.keep(*receipt(1)))

        nursery.start_soon(keep)
        await trio.testing.wait_all_tasks_blocked()
        assert ids == [] and ledger.receipts == []
        disk.free()
        await trio.testing.wait_all_tasks_blocked()
        assert ids == [receipt_id(receipt(1)[1])] and len(ledger.receipts) == 1


async def test_receipts_that_wait_together_are_written_together_in_order() -> None:
    disk = Disk()
    async with keeping(disk) as (keeper, ledger):
        disk.hold()
        for number in range(100):
            keeper.keep_soon(*receipt(number))
        await trio.testing.wait_all_tasks_blocked()
        disk.free()
        await trio.sleep(2 * GATHER_S)
        assert ledger.signed == [receipt(n)[1] for n in range(100)]
        assert len(ledger.batches) == 1


async def test_who_waits_for_a_receipt_does_not_wait_for_others_to_gather() -> None:
    async with keeping(Disk()) as (keeper, ledger):
        keeper.keep_soon(*receipt(1))
        began_s = trio.current_time()
        await keeper.keep(*receipt(2))
        assert trio.current_time() - began_s < GATHER_S
        assert ledger.batches == [2]


async def test_receipts_being_gathered_are_written_when_the_node_stops() -> None:
    disk = Disk()
    async with keeping(disk) as (keeper, ledger):
        keeper.keep_soon(*receipt(1))
        await trio.testing.wait_all_tasks_blocked()
    assert ledger.signed == [receipt(1)[1]]


async def test_a_broken_disk_is_said_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    async with keeping(disk) as (keeper, ledger):
        disk.broken = True
        await keeper.keep(*receipt(1))
        assert "cannot keep 1 receipts" in caplog.text
        disk.broken = False
        await keeper.keep(*receipt(2))
        assert len(ledger.receipts) == 1


async def test_a_disk_that_hangs_holds_up_an_answer_only_so_long(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    async with keeping(disk) as (keeper, _):
        disk.hold()
        began_s = trio.current_time()
        await keeper.keep(*receipt(1))
        assert trio.current_time() - began_s == pytest.approx(WRITE_TIMEOUT_S)
        assert "longer than" in caplog.text


async def test_a_full_queue_drops_only_what_nobody_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    keeper = ReceiptKeeper(MemoryLedger(Disk()))
    for number in range(WAITING_RECEIPTS):
        keeper.keep_soon(*receipt(number))
    assert caplog.text == ""
    keeper.keep_soon(*receipt(0))
    assert "not kept" in caplog.text
    with trio.move_on_after(1) as waiting:
        await keeper.keep(*receipt(1))
    assert waiting.cancelled_caught


async def test_what_waits_and_what_is_being_written_when_the_node_stops_is_written() -> None:
    disk = Disk()
    ledger = MemoryLedger(disk)
    keeper = ReceiptKeeper(ledger)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        disk.hold()
        keeper.keep_soon(*receipt(1))
        await trio.testing.wait_all_tasks_blocked()
        keeper.keep_soon(*receipt(2))
        keeper.keep_soon(*receipt(3))
        nursery.cancel_scope.cancel()
        disk.free()
    assert ledger.signed == [receipt(n)[1] for n in (1, 2, 3)]


async def test_an_answer_is_not_lost_with_the_disk() -> None:
    async with mesh_of("alone") as mesh:
        alone = mesh.nodes["alone"]
        alone.disk.broken = True
        job = mesh.job()
        assert (await run_job(alone, job)).text == text_of(job)


# -- the owner's limits


@pytest.mark.parametrize(
    ("share", "threads", "wanted"),
    [
        (Share(), 8, EngineLimits(8)),
        (Share(enabled=True, cpu=1.0), 8, EngineLimits(8)),
        (Share(enabled=True, cpu=0.5), 8, EngineLimits(4)),
        (Share(enabled=True, cpu=0.5, memory_bytes=2**30), 2, EngineLimits(1, 1.0, 2**30)),
        (Share(enabled=True, cpu=0.5), 1, EngineLimits(1, 0.5)),
        (Share(enabled=True, cpu=0.3), 8, EngineLimits(3, 0.8)),
        (Share(enabled=True, cpu=0.01), 4, EngineLimits(1, 0.04)),
    ],
)
def test_what_a_share_means_for_the_engine(share: Share, threads: int, wanted: EngineLimits) -> None:
    limits = limits_of(share, threads)
    assert (limits.threads, limits.memory_bytes) == (wanted.threads, wanted.memory_bytes)
    assert limits.duty == pytest.approx(wanted.duty)
    if share.enabled:
        assert limits.threads * limits.duty == pytest.approx(share.cpu * threads)


async def test_a_bad_limit_changes_nothing_and_a_good_one_is_kept_on_disk() -> None:
    disk = Disk()
    settings = MemorySettings(Share(), disk)
    guest = Guest(Share(), settings)
    for bad in ({"cpu": 0.0}, {"cpu": 1.5}, {"cpu": math.nan}, {"memory_bytes": 1}):
        with pytest.raises(BadInput):
            await guest.change(draining=True, enabled=True, **bad)
        assert guest.share == settings.share == Share() and not guest.draining
    disk.broken = True
    with pytest.raises(HomeUnusable):
        await guest.change(enabled=True)
    assert guest.share == Share()
    disk.broken = False
    assert await guest.change(enabled=True, cpu=0.25) == settings.share == Share(enabled=True, cpu=0.25)


async def test_why_a_node_takes_no_work_is_said_in_words() -> None:
    guest = Guest(Share(), MemorySettings(Share(), Disk()))
    assert guest.state(4)[0] is OfferState.NOT_SHARING
    await guest.change(enabled=True)
    assert guest.state(4) == (OfferState.OPEN, "") and guest.state(0)[0] is OfferState.BUSY
    await guest.change(draining=True)
    assert guest.state(4)[0] is OfferState.DRAINING
    await guest.change(paused=True)
    assert guest.state(4)[0] is OfferState.PAUSED and "owner" in guest.state(4)[1]


async def test_sharing_less_reaches_the_engine_that_runs() -> None:
    async with mesh_of("alone") as mesh:
        alone = mesh.nodes["alone"]
        view = await alone.service.share(0.25, 2**30)
        assert view.threads == 1 and alone.engine.limits == EngineLimits(1, 1.0, 2**30)
        with pytest.raises(BadInput):
            await alone.service.share(7.0, None)
        assert alone.engine.limits == EngineLimits(1, 1.0, 2**30)


# -- the ad


async def test_an_ad_tells_as_many_models_as_fit_and_the_node_runs_them_all() -> None:
    files = tuple(ModelFile("m" * 190 + f"{n:03}", ModelDigest(f"{n:064x}"), f"{n}", 10) for n in range(32))
    async with mesh_of(Setup("many", models=files)) as mesh:
        many = mesh.nodes["many"]
        ad, _ = open_ad(many.node, many.presence.sealed_ad(), ROOT.verify_key, many.wall())
        assert 10 < len(ad.models) < 32
        assert len(many.presence.candidate().ad.models) == 32
        job = mesh.job(model=files[-1].name)
        assert (await run_job(many, job)).text == text_of(job)


async def test_a_model_can_be_added_and_removed_while_the_node_runs() -> None:
    async with mesh_of(Setup("alone", models=())) as mesh:
        alone = mesh.nodes["alone"]
        alone.models._store._files = {MODEL.path: MODEL}  # type: ignore[attr-defined]
        view = await alone.service.add_model(MODEL.path, None)
        assert view.name == MODEL.name
        assert (await run_job(alone, mesh.job())).tokens == 20
        await alone.service.remove_model(MODEL.name)
        assert alone.engine.loaded() == () and alone.service.mesh_models() == ()
        with pytest.raises(NotFound):
            await alone.service.remove_model(MODEL.name)


# -- task streams


async def test_streams_are_reused_bounded_and_forgotten_with_their_connection() -> None:
    async with FakeNetwork() as network:
        a, b = (network.transport(fake_certificate(n)) for n in (A, B))

        async def wait(stream: object) -> None:
            await trio.sleep_forever()

        b.serve(TASK, wait)
        await a.dial(B, b.addresses(), 1.0)
        pool = TaskStreams(a, lambda stream: None)
        lent = [await pool.acquire(B, 1.0) for _ in range(streaming.MAX_STREAMS_PER_PEER)]
        with pytest.raises(Overloaded):
            await pool.acquire(B, 1.0)
        for stream in lent[2:]:
            await pool.release(B, stream)
        assert len(pool._idle[B]) == streaming.MAX_IDLE_PER_PEER
        assert await pool.acquire(B, 1.0) in lent
        await pool.forget(B)
        assert not pool._idle
        await pool.release(B, lent[0])
        assert not pool._idle.get(B), "a stream of the lost connection is not reused"
        await pool.discard(B, lent[1])
        assert pool._lent == {} and pool._open[B] == 1, "the one that was lent again is still out"


async def test_a_loopback_stream_carries_frames_in_order_and_ends() -> None:
    ours, theirs = loopback_pair(A)
    for number in range(10):
        await ours.send(number, bytes([number]))
    assert [await theirs.receive(10) for _ in range(10)] == [(n, bytes([n])) for n in range(10)]
    await ours.close()
    with pytest.raises(Truncated):
        await theirs.receive(10)
    await theirs.send(1, b"")
    await theirs.abort()
    with pytest.raises(Truncated):
        await ours.send(1, b"")
