# SPDX-License-Identifier: Apache-2.0
"""One thread, one epoll: callbacks for descriptors, timers, and tasks.

A task is a generator. It yields a `Wait`, which names what may change (`Notice`s) and for how long it will wait, and it is
resumed with True when one of them was notified or with False when the time was up. A notice has no memory: a task
looks at the state first and waits only when it must, and looks again when it wakes:

    while process.exit is None:
        yield process.changed.wait()

So a slow `crun create` is a task asleep, and every other call goes on. Nothing here blocks except `epoll_wait`.
"""

from __future__ import annotations

import select
from _heapq import heapify, heappop, heappush
from time import monotonic

from .report import say_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    Steps = Generator["Wait", bool, Any]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
URGENT = select.EPOLLPRI
HANGUP = select.EPOLLHUP
BROKEN = select.EPOLLERR
EDGE = select.EPOLLET

_TIMER_GARBAGE_MAX = 64  # cancelled timers kept in the heap before it is rebuilt


class Notice:
    """Something that may change. `notify` wakes every task that waits for it now."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[Task, None] = {}  # in the order of arrival

    def notify(self) -> None:
        """Wake them all; each looks for itself whether its turn has come."""
        if self.waiting:
            for task in list(self.waiting):
                task.wake(True)

    def wait(self, timeout_s: float | None = None) -> Wait:
        """What a task yields to wait for this notice alone."""
        return Wait((self,), timeout_s)


class Wait:
    """What a task yields: wake me at any of `notices`, or after `timeout_s` seconds (None is never)."""

    __slots__ = ("notices", "timeout_s")

    def __init__(self, notices: tuple[Notice, ...] = (), timeout_s: float | None = None) -> None:
        self.notices = notices
        self.timeout_s = timeout_s


def pause(seconds: float) -> Wait:
    """What a task yields to sleep."""
    return Wait((), seconds)


class Timer:
    """One future call. `cancel` may be called at any time, also after it fired."""

    __slots__ = ("_timers", "callback", "due", "order")

    def __init__(self, timers: _Timers, due: float, order: int, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.due = due
        self.order = order
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)

    def cancel(self) -> None:
        """Do not fire."""
        if self.callback is not None:
            self.callback = None
            self._timers.cancelled()


class _Timers:
    """A heap of timers that does not keep the cancelled ones for long."""

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._order = 0
        self._garbage = 0

    def add(self, due: float, callback: Callable[[], None]) -> Timer:
        self._order += 1
        timer = Timer(self, due, self._order, callback)
        heappush(self._heap, timer)
        return timer

    def cancelled(self) -> None:
        self._garbage += 1
        if self._garbage > _TIMER_GARBAGE_MAX and self._garbage * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer.callback is not None]
            heapify(self._heap)
            self._garbage = 0

    def delay(self, now: float) -> float:
        """Seconds until the next one is due; -1, epoll's "for ever", when there is none."""
        while self._heap and self._heap[0].callback is None:
            heappop(self._heap)
            self._garbage -= 1
        return max(0.0, self._heap[0].due - now) if self._heap else -1.0

    def due(self, now: float) -> list[Callable[[], None]]:
        """Those whose time has come, taken out."""
        fired: list[Callable[[], None]] = []
        while self._heap and self._heap[0].due <= now:
            timer = heappop(self._heap)
            if timer.callback is None:
                self._garbage -= 1
            else:
                fired.append(timer.callback)
                timer.callback = None
        return fired


class Task:
    """A running generator. `done` is called once, with its result or its error, unless the task was cancelled."""

    __slots__ = ("_done", "_loop", "_notices", "_steps", "_timer", "finished")

    def __init__(self, loop: Loop, steps: Steps, done: Callable[[Any, Exception | None], None]) -> None:
        self._loop = loop
        self._steps = steps
        self._done = done
        self._notices: tuple[Notice, ...] = ()
        self._timer: Timer | None = None
        self.finished = False

    def wake(self, notified: bool) -> None:
        """Resume in this turn of the loop. A task that was woken already is in nobody's list any more."""
        self._forget()
        self._loop.resume(self, notified)

    def cancel(self) -> None:
        """Stop here: the generator's `finally` clauses run, `done` is not called."""
        if not self.finished:
            self.finished = True
            self._forget()
            self._steps.close()

    def step(self, notified: bool | None) -> None:
        """Run to the next wait. None starts the generator."""
        if self.finished:
            return
        try:
            wait = next(self._steps) if notified is None else self._steps.send(notified)
        except StopIteration as stop:
            self.finished = True
            self._done(stop.value, None)
        except Exception as error:
            self.finished = True
            self._done(None, error)
        else:
            self._notices = wait.notices
            for notice in wait.notices:
                notice.waiting[self] = None
            if wait.timeout_s is not None:
                self._timer = self._loop.call_later(wait.timeout_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self.wake(False)

    def _forget(self) -> None:
        for notice in self._notices:
            notice.waiting.pop(self, None)
        self._notices = ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Loop:
    """See the head of this file."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers = _Timers()
        self._ready: list[tuple[Task, bool]] = []

    def watch(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` whenever `fd` has one of `mask`. Callbacks must bear a call without need."""
        self._epoll.register(fd, mask)
        self._watched[fd] = callback

    def change(self, fd: int, mask: int) -> None:
        """Another mask for one that is watched. What is there already is reported, once again."""
        self._epoll.modify(fd, mask)

    def unwatch(self, fd: int) -> None:
        """Stop; must come before the descriptor is closed. Does nothing for one that is not watched."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `delay_s` seconds from now."""
        return self._timers.add(monotonic() + delay_s, callback)

    def start(self, steps: Steps, done: Callable[[Any, Exception | None], None]) -> Task:
        """Run a generator up to its first wait, now; `done(result, error)` is called when it ends."""
        task = Task(self, steps, done)
        task.step(None)
        return task

    def resume(self, task: Task, notified: bool) -> None:
        """For Task: step it soon, never from inside whoever notified."""
        self._ready.append((task, notified))

    def turn(self) -> None:
        """Wait for the next thing to happen, and handle all that has happened."""
        delay = 0.0 if self._ready else self._timers.delay(monotonic())
        for fd, events in self._epoll.poll(delay):
            callback = self._watched.get(fd)  # an earlier callback of this turn may have closed it
            if callback is not None:
                try:
                    callback(events)
                except Exception as error:
                    say_error(f"descriptor {fd}", error)
                    self.unwatch(fd)  # rather than fail again at once, for ever
        for fire in self._timers.due(monotonic()):
            try:
                fire()
            except Exception as error:
                say_error("timer", error)
        ready, self._ready = self._ready, []
        for task, notified in ready:
            try:
                task.step(notified)
            except Exception as error:
                say_error("task", error)

    def close(self) -> None:
        """Give the epoll descriptor back (tests; the guest's loop has no end)."""
        self._epoll.close()
