# SPDX-License-Identifier: Apache-2.0
"""Watching the pod's network namespace, for those who move interfaces in and out and tell nobody (`docker network connect`).

Off unless `[netmon] enable_netmon` asks for it, as in Kata. What is found is compared with what was found before, not with
what the guest has: so our own taps are no news, and what somebody took away from the guest by hand stays away until the
namespace itself changes. The change is the one that `network rescan` asks for.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
import trio

from journal import JournalError
from kata_fsm.effects.network.model import Network, from_facts
from kata_fsm.errors import KataFsmError
from kata_fsm.limits import NETWORK_PAUSE_S, NETWORK_QUIET_S, NETWORK_UNQUIET_S
from kata_fsm.machines.vocab import Facts

if TYPE_CHECKING:
    from kata_fsm.effects.network.news import News
    from kata_fsm.supervisor.wiring import Wiring


async def watch(wiring: Wiring, facts: Callable[[], Facts], rescan: Callable[[], Awaitable[object]]) -> None:
    """Have `rescan` done after each change, until cancelled. `facts`: what is recorded of the pod's network now."""
    try:
        news = await wiring.network_news(str(facts().get("netns") or ""))
    except OSError as error:
        print(f"supervisor: the network is not watched: {error.strerror or error}", file=sys.stderr, flush=True)
        return
    if news is None:
        return
    told = ""
    try:
        seen = _bare(from_facts(facts()), facts())
        while True:
            try:
                found = _bare(await wiring.network_found(from_facts(facts())), facts())
                if found != seen:
                    seen = found  # what cannot be given to the guest is tried again when it has changed
                    await rescan()
                    await trio.sleep(NETWORK_PAUSE_S)
                told = ""
            except (KataFsmError, JournalError) as error:
                if str(error) != told:
                    told = str(error)
                    print(f"supervisor: watching the network: {told}", file=sys.stderr, flush=True)
            await _settled(news)
    finally:
        news.close()


async def _settled(news: News) -> None:
    """Wait for news, and then until there are none for a while."""
    await news.some()
    with trio.move_on_after(NETWORK_UNQUIET_S):
        while True:
            with trio.move_on_after(NETWORK_QUIET_S) as quiet:
                await news.some()
            if quiet.cancelled_caught:
                return


def _bare(network: Network, facts: Facts) -> Network:
    """Without what is ours: slots and queues, and routes where they were set by hand."""
    interfaces = tuple(msgspec.structs.replace(each, slot=0, queues=0) for each in network.interfaces)
    given = facts.get("routes_given")
    return Network(interfaces, () if given else network.routes, () if given else network.neighbours)
