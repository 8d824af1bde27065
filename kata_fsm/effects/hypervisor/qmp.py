# SPDX-License-Identifier: Apache-2.0
"""QMP for trio: `qemu.qmp`, which is asyncio inside, run on an event loop in a thread of its own.

Why this bridge. Measured per command: a loop in a thread 0.74 ms, `trio-asyncio` 0.81 ms, qemu.qmp's own blocking
client in a thread 0.63 ms (0.54 ms for qemu.qmp on a bare asyncio loop). A sandbox sends a dozen commands in its life,
so the figures do not decide; the rest does. The blocking client hears events only while a command runs, and events
(the guest panicked, the guest shut down) are evidence. `trio-asyncio` replaces the process-wide event loop policy and
wants to be wrapped around the whole program. A thread is started with the first connection, imports asyncio and
qemu.qmp (60 ms and more) while QEMU boots, and ends with `aclose`. Nothing but `Monitor` crosses the border: commands
go over with `run_coroutine_threadsafe`, replies, events and the end of the connection come back with `run_sync_soon`,
in order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from kata_fsm import errors, limits

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def _tell(token: trio.lowlevel.TrioToken, call: Callable[..., object], *args: object) -> None:
    """Call something in trio's thread; if trio has ended there is nobody to tell."""
    try:
        token.run_sync_soon(call, *args)
    except trio.RunFinishedError:
        pass


class Bridge:
    """A thread with an asyncio loop. `start` returns at once; `run` awaits a coroutine over there."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Start the thread if it does not run. It imports what it needs by itself."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="qmp", daemon=True)
            self._thread.start()

    def _main(self) -> None:
        try:
            import asyncio
            import logging

            import qemu.qmp  # noqa: F401  (imported here, so that nobody waits for it elsewhere)

            logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)  # its errors reach us as exceptions
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._ready.set()
        await self._stop.wait()

    async def run(self, call: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Await `call(*args)` on the asyncio side. Cancelling here cancels there."""
        import asyncio

        self.start()
        if not self._ready.is_set():
            await trio.to_thread.run_sync(self._ready.wait, abandon_on_cancel=True)
        if self._loop is None:
            raise errors.EffectError("qmp", f"the QMP thread cannot run: {self._failure}")
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        future = asyncio.run_coroutine_threadsafe(call(*args), self._loop)
        future.add_done_callback(lambda _: _tell(token, done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    async def aclose(self) -> None:
        """End the loop and the thread."""
        if self._thread is None:
            return
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._ready.wait)
            if self._loop is not None and self._stop is not None and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            await trio.to_thread.run_sync(self._thread.join)
        self._thread, self._loop = None, None
        self._ready.clear()


class Monitor:
    """The QMP connection of one sandbox: connects when needed, again if it was lost, one at a time.

    `seen` holds the latest events as {"event", "data"}, `events` is the same as a channel (what nobody takes from it is
    dropped, never waited for), `lost` is set when an established connection has ended.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: deque[dict[str, Any]] = deque(maxlen=limits.QMP_EVENTS_MAX)
        self._send, self.events = trio.open_memory_channel[dict[str, Any]](limits.QMP_EVENTS_MAX)
        self.lost = trio.Event()
        self.connections = 0
        self._bridge = Bridge()
        self._client: Any = None
        self._ending: asyncio.Task[None] | None = None  # these two belong to the asyncio side
        self._please_end: asyncio.Event | None = None
        self._lock = trio.Lock()

    def warm(self) -> None:
        """Start importing, to overlap with something else."""
        self._bridge.start()

    @property
    def connected(self) -> bool:
        """Whether a connection is up, as far as we have heard."""
        return self._client is not None

    async def connect(self, *, limit_s: float = limits.QMP_CONNECT_TIMEOUT_S) -> None:
        """Connect and negotiate, if not connected. Retries until QEMU listens. Raises TimeoutExceeded, EffectError."""
        async with self._lock:
            if self._client is not None:
                return
            with trio.move_on_after(limit_s) as scope:
                token = trio.lowlevel.current_trio_token()
                self.lost = trio.Event()
                self._client = await self._retrying(token)
            if scope.cancelled_caught:
                raise errors.TimeoutExceeded("qmp", f"QEMU's monitor `{self.path}` did not answer within {limit_s:g} s")
            self.connections += 1

    async def _retrying(self, token: trio.lowlevel.TrioToken) -> Any:
        while True:
            try:
                return await self._bridge.run(self._connect, token)
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(limits.QMP_RETRY_S)
            except (OSError, EOFError) as error:
                raise errors.EffectError(
                    "qmp", f"QEMU's monitor `{self.path}` hung up: {error or 'end of file'}"
                ) from error

    # --- on the asyncio side ---

    async def _connect(self, token: trio.lowlevel.TrioToken) -> Any:
        import asyncio

        from qemu.qmp import ConnectError, QMPClient

        def hand_over(event: Any) -> bool:
            """Hand each event to trio, and tell the client to keep none: it would keep every one for ever."""
            _tell(token, self._heard, {"event": str(event["event"]), "data": dict(event.get("data") or {})})
            return False

        await self._drop_last()  # a connection whose maker was cancelled in the last moment would shut us out
        client = QMPClient("qemu")
        client.events.event_filter = hand_over
        try:
            await client.connect(self.path)
        except ConnectError as error:
            if isinstance(error.exc, OSError | EOFError):
                raise error.exc from error
            raise errors.EffectError("qmp", f"QEMU's monitor `{self.path}` does not speak QMP: {error}") from error
        self._please_end = asyncio.Event()
        self._ending = asyncio.get_running_loop().create_task(self._end(client, token, self._please_end))
        return client

    async def _drop_last(self) -> None:
        """Disconnect whatever was connected last, if it still is."""
        if self._ending is not None and self._please_end is not None:
            self._please_end.set()
            await self._ending

    async def _end(self, client: Any, token: trio.lowlevel.TrioToken, please_end: asyncio.Event) -> None:
        """Wait until the other side hangs up or ours wants to, and disconnect: here alone, for it cannot be done twice."""
        import asyncio

        from qemu.qmp import Runstate

        asked = asyncio.create_task(please_end.wait())
        try:
            while client.runstate is Runstate.RUNNING and not asked.done():
                changed = asyncio.create_task(client.runstate_changed())
                await asyncio.wait({asked, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            await client.disconnect()
        except (OSError, EOFError):
            pass  # it hung up
        finally:
            asked.cancel()
            _tell(token, self._gone, client)

    @staticmethod
    async def _execute(client: Any, name: str, arguments: Mapping[str, object] | None) -> Any:
        return await client.execute(name, arguments)

    @staticmethod
    async def _pass(client: Any, name: str, arguments: Mapping[str, object], fd: int) -> Any:
        client.send_fd_scm(fd)  # QEMU keeps what comes with its bytes for the command that asks for it
        return await client.execute(name, arguments)

    # --- back in trio ---

    def _heard(self, event: dict[str, Any]) -> None:
        self.seen.append(event)
        try:
            self._send.send_nowait(event)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _gone(self, client: Any) -> None:
        if self._client is client:
            self._client = None
        self.lost.set()

    async def command(
        self, name: str, arguments: Mapping[str, object] | None = None, *, limit_s: float = limits.QMP_COMMAND_TIMEOUT_S
    ) -> Any:
        """Execute one QMP command and answer its `return`. Connects if need be.

        Raises QmpRefused when QEMU says no, TimeoutExceeded when it says nothing within `limit_s` seconds (connecting
        included), EffectError when it hangs up.
        """
        with trio.move_on_after(limit_s):
            await self.connect(limit_s=limit_s)
            return await self._command(name, arguments, self._execute, name, arguments)
        raise errors.TimeoutExceeded("qmp", f"QEMU did not answer `{name}` within {limit_s:g} s")

    async def pass_fd(self, name: str, fd: int, *, limit_s: float = limits.QMP_COMMAND_TIMEOUT_S) -> None:
        """Give QEMU a copy of `fd`, to be called `name` by a following command of this connection. Raises as `command`."""
        await self._give("getfd", {"fdname": name}, fd, limit_s)

    async def add_fd(self, opaque: str, fd: int, *, limit_s: float = limits.QMP_COMMAND_TIMEOUT_S) -> int:
        """Give QEMU a copy of `fd` that it can open as `/dev/fdset/NUMBER`; the number. `opaque` says what it is. Raises as
        `command`."""
        answer = await self._give("add-fd", {"opaque": opaque}, fd, limit_s)
        return int(answer["fdset-id"])

    async def _give(self, name: str, arguments: Mapping[str, object], fd: int, limit_s: float) -> Any:
        with trio.move_on_after(limit_s):
            await self.connect(limit_s=limit_s)
            return await self._command(name, arguments, self._pass, name, arguments, fd)
        raise errors.TimeoutExceeded("qmp", f"QEMU did not answer `{name}` within {limit_s:g} s")

    async def _command(self, name: str, arguments: Mapping[str, object] | None, call: Any, *args: Any) -> Any:
        from qemu.qmp import ExecInterruptedError, ExecuteError, StateError

        try:
            return await self._bridge.run(call, self._client, *args)
        except ExecuteError as error:
            description = str(error)
            raise QmpRefused(
                "qmp", f"QEMU refused `{name}`: {description}", evidence={"arguments": arguments}
            ) from error
        except (ExecInterruptedError, StateError, OSError, EOFError, AttributeError) as error:
            raise errors.EffectError("qmp", f"QEMU hung up during `{name}`") from error

    async def aclose(self) -> None:
        """Disconnect, if connected, and end the thread. QEMU goes on."""
        with trio.CancelScope(shield=True):
            if self._ending is not None:
                await self._bridge.run(self._drop_last)
            self._client = self._ending = None
            await self._bridge.aclose()


class QmpRefused(errors.EffectError):
    """QEMU answered a command with an error."""
