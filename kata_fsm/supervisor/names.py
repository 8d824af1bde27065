# SPDX-License-Identifier: Apache-2.0
"""Names on Docker's networks: a container's `resolv.conf` names 127.0.0.11, where dockerd answers inside the pod's network
namespace on the host. Nothing of the guest's gets there by itself, so each question is taken from the agent and asked there.

dockerd forwards what it does not know from that same namespace, whose incoming frames are the guest's now: such an answer
never comes. After a silence the host's own name servers are asked, which are those that dockerd would have asked by default.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from kata_fsm.effects import netns
from kata_fsm.effects.agent.client import EXTENSION, AgentCallError
from kata_fsm.effects.network.namespace import RESOLVER
from kata_fsm.errors import EffectError
from kata_fsm.limits import NAME_ANSWER_S, NAME_QUESTIONS_MAX, NAME_SILENCE_S, RETRY_S

if TYPE_CHECKING:
    from kata_fsm.effects.agent.link import Link

_PORT = 53
_DATAGRAM_BYTES = 4096
_RESOLV_CONF = "/etc/resolv.conf"
_SERVERS_MAX = 3  # MAXNS of resolv.conf(5)


async def relay(link: Link, namespace: str) -> None:
    """Take questions and bring answers until cancelled. `namespace`: the path of the pod's."""
    from kata_wire import messages

    request = messages.extension.TakeQuestionRequest(address=RESOLVER)
    free = trio.Semaphore(NAME_QUESTIONS_MAX)  # what cannot be asked yet stays in the guest
    async with trio.open_nursery() as nursery:
        while True:
            await free.acquire()
            try:
                question = await link.call(EXTENSION, "TakeQuestion", request, timeout_s=None)
            except AgentCallError as error:
                print(f"supervisor: names on Docker's network will not be known: {error}", file=sys.stderr, flush=True)
                return
            except EffectError:
                free.release()
                await trio.sleep(RETRY_S)  # between two connections
                continue
            nursery.start_soon(_serve, link, namespace, question.number, question.data, free)


async def _serve(link: Link, namespace: str, number: int, data: bytes, free: trio.Semaphore) -> None:
    from kata_wire import messages

    try:
        answer = await ask(namespace, data)
        if answer:
            request = messages.extension.GiveAnswerRequest(number=number, data=answer)
            await link.call(EXTENSION, "GiveAnswer", request)
    except EffectError:
        pass  # it is asked again
    finally:
        free.release()


async def ask(namespace: str, data: bytes) -> bytes:
    """The answer of dockerd, or after its silence that of the host's name servers; empty when nobody answers."""
    answer = await _asked(lambda: netns.inside(namespace, lambda: _socket(RESOLVER)), data, NAME_SILENCE_S)
    for server in [] if answer else name_servers():
        answer = await _asked(lambda server=server: _socket(server), data, NAME_ANSWER_S)  # type: ignore[misc]
        if answer:
            break
    return answer


def _socket(server: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.connect((server, _PORT))
    except OSError:
        made.close()
        raise
    return made


async def _asked(connect: Callable[[], socket.socket], data: bytes, limit_s: float) -> bytes:
    """What one server answers within the limit; empty for nothing."""
    try:
        with trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(connect)) as asked:
            with trio.move_on_after(limit_s):
                await asked.send(data)
                return await asked.recv(_DATAGRAM_BYTES)
    except OSError:
        pass  # refused, or the namespace is going
    return b""


def name_servers(path: str = _RESOLV_CONF) -> list[str]:
    """Of the host, as resolv.conf(5) has them."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    found = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [address for address in found if _is_address(address)][:_SERVERS_MAX]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
