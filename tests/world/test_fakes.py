"""The fakes keep the ports' promises, faults included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from meshd.core import limits
from meshd.core.engine import EngineFinished, EngineLimits, EngineStarted, EngineTokens, ModelFile
from meshd.core.errors import (
    ContextOverflow,
    EngineFailed,
    FrameTooLarge,
    NotMember,
    Overloaded,
    Truncated,
    Unreachable,
)
from meshd.core.generation import FinishReason, Generation, Opening, Prompt
from meshd.core.peers import PeerDown, PeerUp
from meshd.node import ports
from meshd.testing.fakes import (
    FAKE_DIGEST,
    FakeEngine,
    FakeProbe,
    fake_answer,
    fake_certificate,
    fake_model,
    fake_node,
)
from meshd.testing.network import FakeDirectory, FakeNetwork, FakeStream, FakeTransport

pytestmark = pytest.mark.mock_clock
A, B, C = fake_node(1), fake_node(2), fake_node(3)
ECHO = "/echo/1"


def _promises(
    stream: FakeStream, transport: FakeTransport, directory: FakeDirectory, engine: FakeEngine, probe: FakeProbe
) -> tuple[ports.FrameStream, ports.Transport, ports.Directory, ports.Engine, ports.Probe]:
    """Checked by the type checker: each fake fits its port."""
    return stream, transport, directory, engine, probe


async def echo(stream: ports.FrameStream) -> None:
    while True:
        kind, payload = await stream.receive(1000)
        await stream.send(kind, payload)


async def pair(network: FakeNetwork) -> tuple[FakeTransport, FakeTransport]:
    a, b = (network.transport(fake_certificate(n)) for n in (A, B))
    b.serve(ECHO, echo)
    await a.dial(B, b.addresses(), 5.0)
    return a, b


async def raises(error: type[Exception], call: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(error):
        await call()


async def test_frames_there_and_back() -> None:
    async with FakeNetwork(latency_s=0.1) as network:
        a, _ = await pair(network)
        begun_s = trio.current_time()
        stream = await a.open_stream(B, ECHO, 1.0)
        await stream.send(7, b"hello")
        assert await stream.receive(1000) == (7, b"hello")
        assert trio.current_time() - begun_s == pytest.approx(0.3)
        await stream.send(7, b"x" * 500)
        await raises(FrameTooLarge, lambda: stream.receive(100))


async def test_peers_come_and_go() -> None:
    async with FakeNetwork() as network:
        a, b = (network.transport(fake_certificate(n)) for n in (A, B))
        news = b.events()
        assert await a.dial(None, b.addresses(), 1.0) == B
        assert await anext(news) == PeerUp(A, fake_certificate(A), outbound=False)
        assert a.connected() == (B,) and a.certificate_of(B) == fake_certificate(B)
        await a.drop(B)
        assert await anext(news) == PeerDown(A)
        assert a.connected() == () and a.certificate_of(B) is None


async def test_killed_node_breaks_streams_at_once() -> None:
    async with FakeNetwork() as network:
        a, b = await pair(network)
        stream = await a.open_stream(B, ECHO, 1.0)
        network.kill(B)
        await raises(Truncated, lambda: stream.receive(1000))
        await raises(Truncated, lambda: stream.send(1, b""))
        await raises(Unreachable, lambda: a.dial(B, b.addresses(), 1.0))
        again = network.transport(fake_certificate(B))
        assert again.addresses() == b.addresses() and await a.dial(B, b.addresses(), 1.0) == B


async def test_frozen_node_is_silent_and_wakes() -> None:
    async with FakeNetwork() as network:
        a, _ = await pair(network)
        stream = await a.open_stream(B, ECHO, 1.0)
        network.freeze(B)
        await stream.send(1, b"held")
        with trio.move_on_after(5) as waited:
            await stream.receive(1000)
        assert waited.cancelled_caught and a.connected() == (B,)
        await raises(Unreachable, lambda: a.open_stream(B, ECHO, 1.0))
        network.thaw(B)
        assert await stream.receive(1000) == (1, b"held")


async def test_receive_cancelled_while_a_frame_travels_loses_nothing() -> None:
    async with FakeNetwork(latency_s=1.0) as network:
        a, _ = await pair(network)
        stream = await a.open_stream(B, ECHO, 5.0)
        await stream.send(1, b"slow")
        with trio.move_on_after(1.5):
            await stream.receive(1000)
        assert await stream.receive(1000) == (1, b"slow")


async def test_cut_is_silent_and_heals() -> None:
    async with FakeNetwork() as network:
        a, b = await pair(network)
        c = network.transport(fake_certificate(C))
        await c.dial(A, a.addresses(), 1.0)
        stream = await a.open_stream(B, ECHO, 1.0)
        network.cut(A, C)
        await raises(Unreachable, lambda: c.dial(B, b.addresses(), 1.0))
        await stream.send(1, b"x")
        with trio.move_on_after(3) as waited:
            await stream.receive(1000)
        assert waited.cancelled_caught and network.flowing(A, C)
        network.heal()
        assert await stream.receive(1000) == (1, b"x")


async def test_abort_ends_a_receive_that_waits_for_a_frozen_peer() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        a, _ = await pair(network)
        stream = await a.open_stream(B, ECHO, 1.0)
        await stream.send(1, b"x")
        await trio.testing.wait_all_tasks_blocked()
        network.freeze(B)
        nursery.start_soon(raises, Truncated, lambda: stream.receive(1000))
        await trio.testing.wait_all_tasks_blocked()
        await stream.abort()


async def test_strangers_and_unknown_protocols_are_refused() -> None:
    async with FakeNetwork() as network:
        a, b = await pair(network)
        stranger = network.transport(fake_certificate(C, org=b"x" * 32))
        await raises(NotMember, lambda: stranger.dial(A, a.addresses(), 1.0))
        await raises(Unreachable, lambda: b.open_stream(A, ECHO, 1.0))
        await raises(Unreachable, lambda: a.open_stream(C, ECHO, 1.0))


async def test_directory_shows_what_connected_members_published() -> None:
    async with FakeNetwork() as network:
        alone = network.directory(network.transport(fake_certificate(C)).node)
        a, _ = await pair(network)
        await network.directory(A).publish(b"ad of a")
        assert await network.directory(B).lookup(A) == b"ad of a"
        assert network.directory(B).known() == (C, A) and network.directory(B).addresses_of(A) == a.addresses()
        await raises(Unreachable, lambda: alone.publish(b"ad of c"))
        assert await alone.lookup(A) is None and alone.known() == ()
        await trio.sleep(limits.AD_TTL_S)
        assert await network.directory(B).lookup(A) is None


REQUEST = Generation(Prompt(text="Tell me"), max_tokens=8)


async def produced(engine: FakeEngine, request: Generation = REQUEST, after: int = 0) -> list[object]:
    answer = fake_answer(request, engine.answer_tokens)
    async with engine.generate(FAKE_DIGEST, request, answer[:after]) as events:
        return [event async for event in events]


async def test_engine_answers_as_a_function_of_the_request() -> None:
    engine = FakeEngine(models=[fake_model()], stops=("\nUser:",))
    begun_s = trio.current_time()
    whole = await produced(engine)
    assert trio.current_time() - begun_s == pytest.approx(0.08)
    answer = fake_answer(REQUEST, engine.answer_tokens)
    assert whole == [
        EngineStarted(Opening(2, ("\nUser:",))),
        *(EngineTokens((t,)) for t in answer),
        EngineFinished(FinishReason.LENGTH),
    ]
    assert (await produced(engine, after=5))[1:] == whole[6:]
    assert (await produced(engine, after=8))[1:] == [EngineFinished(FinishReason.LENGTH)]
    assert (await produced(engine, Generation(Prompt(text="Tell me"))))[-1] == EngineFinished(FinishReason.STOP)


async def test_engine_slots_crash_hang_and_overflow() -> None:
    engine = FakeEngine(slots=1, models=[fake_model()], context_tokens=10)
    async with engine.generate(FAKE_DIGEST, REQUEST, ()) as events:
        assert isinstance(await anext(events), EngineStarted) and engine.slots_free(FAKE_DIGEST) == 0
        await raises(Overloaded, lambda: produced(engine))
        engine.hang()
        with trio.move_on_after(10) as waited:
            await anext(events)
        assert waited.cancelled_caught
        engine.crash()
        await raises(EngineFailed, lambda: anext(events))
    await raises(EngineFailed, lambda: produced(engine))
    engine.recover()
    assert engine.slots_free(FAKE_DIGEST) == 1 and len(await produced(engine)) == 10
    await raises(ContextOverflow, lambda: produced(engine, Generation(Prompt(text="x" * 100))))


async def test_engine_loads_and_unloads() -> None:
    engine = FakeEngine()
    assert engine.slots_free(FAKE_DIGEST) == 0
    file = ModelFile("fake", FAKE_DIGEST, "fake.gguf", 1)
    loaded = await engine.load(file, EngineLimits(2))
    assert engine.loaded() == (loaded,) == (await engine.load(file, EngineLimits(3)),)
    assert engine.limits == EngineLimits(3)
    await engine.unload(FAKE_DIGEST)
    assert engine.loaded() == ()


async def test_probe() -> None:
    assert FakeProbe(cpu_threads=2).machine().cpu_threads == 2
