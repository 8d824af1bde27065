# SPDX-License-Identifier: Apache-2.0
"""What `recover` asks of a supervisor. That it has started is most of it: it has looked at the world by then, and whatever
was outstanding runs again. What is left is to wait, to try again what had failed, and to free what a former boot left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from kata_fsm.errors import CallerError
from kata_fsm.limits import RECOVER_ATTEMPTS, RECOVER_RETRY_S, RECOVER_SETTLE_S
from kata_fsm.machines import Pod, outstanding, sandbox
from kata_fsm.machines.vocab import ResolveSandbox
from kata_fsm.recovery import expiry, retries, stuck, unread
from kata_fsm.snapshots import born
from kata_fsm.supervisor.channel import Channel
from kata_fsm.supervisor.requests import Reply, Request, text_in

if TYPE_CHECKING:
    from kata_fsm.supervisor.server import Server


def _at_rest(pod: Pod) -> bool:
    return not outstanding(pod) and bool(stuck(pod) or not unread(pod))


async def recover(server: Server, _: Channel, request: Request) -> Reply:
    """Come to rest. `reason` is recorded with every command that this needs, and a note says that somebody asked."""
    runtime, reason, actor = server.runtime, text_in(request, "reason"), request.get("actor")
    await runtime.note("note", "recover", {"reason": reason, "by": actor})
    with trio.move_on_after(RECOVER_SETTLE_S):
        if born(runtime.journal, runtime.stream) != runtime.world.boot_id():
            for command in expiry(runtime.pod):
                await runtime.submit(command, actor)
        await runtime.until(_at_rest)
        for attempt in range(RECOVER_ATTEMPTS):
            if not stuck(runtime.pod):
                break
            await trio.sleep(RECOVER_RETRY_S if attempt else 0)
            for command in retries(runtime.pod, reason):
                await runtime.submit(command, actor)
            await runtime.until(_at_rest)
    return _reply(runtime.pod)


async def resolve(server: Server, _: Channel, request: Request) -> Reply:
    """Force the sandbox to its end; what fails once more is given up."""
    runtime = server.runtime
    if runtime.pod.sandbox.state in (sandbox.ABSENT, sandbox.DELETED):
        raise CallerError(f"the sandbox is `{runtime.pod.sandbox.state}`: there is nothing to resolve")
    await runtime.submit(ResolveSandbox(text_in(request, "reason")), request.get("actor"))
    with trio.move_on_after(RECOVER_SETTLE_S):
        await runtime.until(lambda pod: pod.sandbox.state in sandbox.ENDED and _at_rest(pod))
    return _reply(runtime.pod)


def _reply(pod: Pod) -> Reply:
    gave_up = [
        {"what": f"{machine} `{subject}`" if subject else machine, "why": unit.facts["left"]}
        for machine, subject, unit in pod.units()
        if unit.facts.get("left")
    ]
    return {
        "ok": True,
        "state": pod.sandbox.state,
        "cause": (pod.sandbox.facts.get("cause") or {}).get("kind"),
        "under_way": [
            *(f"{intent.kind} {intent.subject}".strip() for intent in outstanding(pod)),
            *(f"output of {subject}" for subject in unread(pod)),
        ],
        "stuck": [{"what": what, "why": why} for what, why in stuck(pod)],
        "given_up": gave_up,
    }
