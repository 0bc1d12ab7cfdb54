"""Serves an ASGI application on loopback with hypercorn's trio connections.

The accept loop is ours, because hypercorn's own binds too late to name a taken port, has no bound on connections,
and shields every write from cancellation, so that one client that stops reading would keep the daemon from ending.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
from typing import Final, Protocol

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr
from starlette.applications import Starlette

from meshd.core.errors import BadInput, PortInUse

MAX_CONNECTIONS: Final = 1024
"""More are closed at once: each costs a task and buffers, and file descriptors are finite."""

IDLE_S: Final = 30.0
"""A connection without a request in progress, or with half a request head, is closed after this."""

WRITE_STALL_S: Final = 60.0
"""A client that reads nothing for so long is gone; its job is cancelled."""

FINISH_S: Final = 2.0
"""On shutdown, how long running answers may go on before they end in a typed error."""

CUT_S: Final = 2.5
"""On shutdown, when connections are cut whose client does not read how its answer ended."""

SHUTDOWN_S: Final = 2.8
"""On shutdown, when whatever still runs is cancelled."""

MAX_HEAD_BYTES: Final = 32 * 1024

_log = logging.getLogger("meshd.api")


class ToldUrl(Protocol):
    """What `trio.Nursery.start` gives its task, to report the URL with."""

    def started(self, value: str) -> None: ...


async def serve(
    app: Starlette,
    host: str,
    port: int,
    *,
    write_stall_s: float = WRITE_STALL_S,
    task_status: ToldUrl = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` (from `build_app`) until cancelled; ``task_status`` gets the URL once the port is bound.

    ``port`` 0 takes a free one. Raises BadInput when ``host`` is not a loopback address, PortInUse when the port is
    taken. Cancelled, it accepts nothing more, lets answers finish for FINISH_S, ends the rest with a typed error,
    and returns within 3 s.
    """
    listener = _listen(host, port)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_Server(app, listener, write_stall_s).run, stop)
        try:
            task_status.started(_url(listener))
            await trio.sleep_forever()
        finally:
            stop.set()


def _address(host: str) -> str:
    name = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        if ipaddress.ip_address(name).is_loopback:
            return name
    except ValueError:
        pass
    raise BadInput(
        f"the API serves only this machine, not {host[:60]!r}", param="host", hint="use 127.0.0.1, ::1 or localhost"
    )


def _listen(host: str, port: int) -> trio.SocketListener:
    address = _address(host)
    if not 0 <= port <= 65535:
        raise BadInput("port must be between 0 and 65535", param="port")
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {address} is in use",
                hint="stop the program that listens there, or configure another port (0: any free one)",
            ) from None
        raise BadInput(f"cannot listen on {address} port {port}: {error.strerror}", param="port") from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _url(listener: trio.SocketListener) -> str:
    address, port = listener.socket.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _config() -> Config:
    config = Config()
    config.errorlog = _log  # a logger of ours: hypercorn then installs no handler of its own
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_S
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    return config


class _Server:
    """The accept loop and what its connections share."""

    def __init__(self, app: Starlette, listener: trio.SocketListener, write_stall_s: float) -> None:
        self._app = app
        self._wrapped = ASGIWrapper(app)  # type: ignore[arg-type] # ASGI, typed twice
        self._listener = listener
        self._write_stall_s = write_stall_s
        self._config = _config()
        self._context = WorkerContext(None)
        self._open: set[_Connection] = set()

    async def run(self, stop: trio.Event) -> None:
        """Accept until ``stop``, then wind down. Shielded: the caller's cancellation arrives as ``stop``."""
        with trio.CancelScope(shield=True) as hard_end:
            async with trio.open_nursery() as helpers:
                async with trio.open_nursery() as connections:
                    connections.start_soon(self._accept, stop, connections)
                    await stop.wait()
                    hard_end.deadline = trio.current_time() + SHUTDOWN_S
                    await self._context.terminated.set()  # closes idle connections
                    helpers.start_soon(self._wind_down)
                helpers.cancel_scope.cancel()

    async def _accept(self, stop: trio.Event, connections: trio.Nursery) -> None:
        async with trio.open_nursery() as nursery:

            async def loop() -> None:
                await trio.serve_listeners(self._connection, [self._listener], handler_nursery=connections)

            nursery.start_soon(loop)
            await stop.wait()
            nursery.cancel_scope.cancel()

    async def _wind_down(self) -> None:
        await trio.sleep(FINISH_S)
        self._app.state.closing.close()
        await trio.sleep(CUT_S - FINISH_S)
        for connection in self._open:
            connection.cut()

    async def _connection(self, stream: trio.SocketStream) -> None:
        if len(self._open) >= MAX_CONNECTIONS:
            return
        connection = _Connection(self._wrapped, self._config, self._context, stream, self._write_stall_s)
        self._open.add(connection)
        try:
            await connection.run()
        except Exception:  # noqa: BLE001 - the door: a connection that breaks the HTTP library stays its own loss
            _log.exception("a connection to the API failed")
        finally:
            self._open.discard(connection)


class _Http11(H11Protocol):
    """HTTP/1.1 that stays what it is: no client of ours speaks HTTP/2 without TLS, so nobody may ask for it."""

    async def _check_protocol(self, event: h11.Request) -> None:
        return


class _Connection(TCPServer):
    """hypercorn's connection, speaking HTTP/1.1 only, with writes that end."""

    def __init__(
        self, app: ASGIWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream, stall_s: float
    ) -> None:
        super().__init__(app, config, context, {}, stream)  # type: ignore[arg-type] # SSL streams only, it says
        self.socket_stream = stream
        self.write_stall_s = stall_s

    async def run(self) -> None:
        """Speak HTTP/1.1 until either side ends the connection."""
        try:
            sock = self.socket_stream.socket
            client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as group:
                self._task_group = group
                self.protocol = _Http11(  # type: ignore[assignment] # hypercorn's own may turn into HTTP/2
                    self.app,
                    self.config,
                    self.context,
                    group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                await self.idle_task.restart(group, self._idle_timeout)
                await self._read_data()
                await self.idle_task.stop()  # else a closed connection keeps its place until the idle time is over
        except OSError:
            pass  # the client was gone before we looked
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Send one event's bytes; a write that cannot finish closes the connection, as half a chunk was sent."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        data = event.data
        if not self.send_lock.locked():
            data = data[self._write_now(data) :]
            if not data:
                await trio.lowlevel.cancel_shielded_checkpoint()  # other tasks get their turn between two writes
                return
        # Shielded: a cancelled write would leave half a chunk on the wire. Its end is the stall, or the server's
        # hard end, which closes the socket.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self.write_stall_s) as in_time:
            async with self.send_lock:
                try:
                    await self.stream.send_all(data)
                    return
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
        if in_time.cancelled_caught:
            self.cut()
        await self.protocol.handle(Closed())

    def _write_now(self, data: bytes) -> int:
        """How many bytes the kernel took at once: nearly always all, at a fraction of the cost of waiting for it."""
        try:
            return os.write(self.socket_stream.socket.fileno(), data)
        except OSError:  # full, closed or broken: the slow path finds out which
            return 0

    def cut(self) -> None:
        """Close the socket under whoever reads or writes it."""
        self.socket_stream.socket.close()
