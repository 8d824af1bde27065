# SPDX-License-Identifier: Apache-2.0
"""Doing the plans of several sandboxes side by side, each in a process of its own with a limit on its time.

A process rather than a thread, because supervisors are forked; and because whatever one of them runs into, its end is
certain and the others' are not touched.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from typing import Any

import msgspec

from kata_fsm.cli import client
from kata_fsm.cli.context import Context
from kata_fsm.errors import KataFsmError
from kata_fsm.limits import RECOVER_ONE_S, RECOVER_SIDE_BY_SIDE
from kata_fsm.survey.plan import UNANSWERING, Plan
from kata_fsm.world import WORLD

_REPLY_BYTES = 65536

Work = Callable[[], dict[str, Any]]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of one sandbox: the state that it is in now, or `error` and what to do about it."""

    stream: str
    ok: bool
    state: str = ""
    said: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""


def recover_all(context: Context, plans: list[Plan], reason: str) -> list[Outcome]:
    """Do `plans`; one outcome each, in their order."""
    works: list[Work] = [lambda plan=plan: _recover(context, plan, reason) for plan in plans]  # type: ignore[misc]
    results = side_by_side(works)
    return [_outcome(plan, result) for plan, result in zip(plans, results, strict=True)]


def _recover(context: Context, plan: Plan, reason: str) -> dict[str, Any]:
    if plan.kind == UNANSWERING:
        client.end_silent(plan.stream)
    return client.ask_for(context, plan.sandbox, plan.stream, plan.sandbox, "recover", reason=reason)


def resolve(context: Context, plan: Plan, reason: str) -> Outcome:
    """Force one sandbox to its end."""

    def work() -> dict[str, Any]:
        client.end_silent(plan.stream)
        return client.ask_for(context, plan.sandbox, plan.stream, plan.sandbox, "resolve", reason=reason)

    return _outcome(plan, side_by_side([work])[0])


def _outcome(plan: Plan, reply: dict[str, Any]) -> Outcome:
    if "error" in reply:
        return Outcome(plan.stream, False, error=str(reply["error"]), hint=str(reply.get("hint") or ""))
    state = str(reply.get("state"))
    said = [f"given up: {each['what']}: {each['why']}" for each in reply.get("given_up", [])]
    if reply.get("stuck"):
        why = "; ".join(f"{each['what']}: {each['why']}" for each in reply["stuck"])
        hint = (
            f"remove what holds it and `recover --apply` again, or end it all the same with "
            f"`recover resolve {plan.sandbox} --to failed --reason TEXT`"
        )
        return Outcome(plan.stream, False, state, tuple(said), f"a clean-up fails: {why}", hint)
    if reply.get("under_way"):
        why = f"still under way after the time that one sandbox gets: {', '.join(reply['under_way'])}"
        return Outcome(plan.stream, False, state, tuple(said), why, "it goes on by itself; look again with `recover`")
    return Outcome(plan.stream, True, state, tuple(said))


# --- processes --------------------------------------------------------------------------------------------------------


def side_by_side(
    works: list[Work], *, at_once: int = RECOVER_SIDE_BY_SIDE, limit_s: float = RECOVER_ONE_S
) -> list[Any]:
    """The answers of `works`, each run in a child process, `at_once` at a time; one that fails, or takes longer than
    `limit_s` seconds, answers {"error", "hint"}."""
    answers: list[Any] = [None] * len(works)
    running: dict[int, _Child] = {}
    waiting = list(enumerate(works))[::-1]
    while waiting or running:
        while waiting and len(running) < at_once:
            at, work = waiting.pop()
            child = _Child(at, work, limit_s)
            running[child.fd] = child
        for fd in _ready(running):
            child = running.pop(fd)
            answers[child.at] = child.finish()
    return answers


class _Child:
    def __init__(self, at: int, work: Work, limit_s: float) -> None:
        self.at = at
        self.data = b""
        self.limit_s = limit_s
        self.deadline_ns = WORLD.mono_ns() + int(limit_s * 1e9)
        self.late = False
        self.fd, writer = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, writer)
        os.close(writer)

    def finish(self) -> Any:
        if self.late:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        os.waitpid(self.pid, 0)
        if self.late:
            why = f"it did not come to an end within {self.limit_s:g} s"
            return {"error": why, "hint": "its supervisor goes on with it; look again with `recover`"}
        try:
            return msgspec.json.decode(self.data)
        except msgspec.DecodeError:
            return {"error": "the process that saw to it ended without an answer"}


def _run(work: Work, writer: int) -> None:
    """In the child: work, answer, leave."""
    try:
        try:
            answer = work()
        except KataFsmError as error:
            answer = {"error": error.message, "hint": error.hint}
        except Exception as error:  # nothing of one may reach the others
            answer = {"error": f"{type(error).__name__}: {error}"}
        data = memoryview(msgspec.json.encode(answer))
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _ready(running: dict[int, _Child]) -> list[int]:
    """Wait until children have ended or are late; their descriptors."""
    poller = select.poll()
    for fd in running:
        poller.register(fd, select.POLLIN)
    first_ns = min(child.deadline_ns for child in running.values())
    done = []
    for fd, _ in poller.poll(max(0, (first_ns - WORLD.mono_ns()) // 1_000_000 + 1)):
        data = os.read(fd, _REPLY_BYTES)
        running[fd].data += data
        if not data:
            done.append(fd)
    for fd, child in running.items():
        if fd not in done and WORLD.mono_ns() >= child.deadline_ns:
            child.late = True
            done.append(fd)
    return done
