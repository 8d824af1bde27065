# SPDX-License-Identifier: Apache-2.0
"""Questions for a name server that only the host can reach: Docker's, which listens at 127.0.0.11 in the pod's namespace
on the host, where `resolv.conf` sends every process of the guest. The host takes them, asks, and brings the answers."""

from __future__ import annotations

from _socket import AF_INET, SO_REUSEADDR, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, socket

from .errors import invalid, precondition
from .loop import READABLE, Notice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .agent import Agent
    from .loop import Loop, Wait

    Message = dict[str, Any]
    Steps = Generator[Wait, bool, Message]

_PORT = 53
_DATAGRAM_BYTES = 4096  # questions are short; answers with EDNS ask for at most this much
_KEPT_MAX = 256  # whoever asks asks again after some seconds, so old ones may go


class Questions:
    """The open port: what was asked and not taken, and who waits for an answer. Raises OSError when it cannot be opened."""

    def __init__(self, loop: Loop, address: str, port: int = _PORT) -> None:
        self.address = address
        self.asked: list[tuple[int, bytes]] = []  # oldest first
        self.changed = Notice()
        self._clients: dict[int, Any] = {}
        self._number = 0
        self.socket = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        try:
            self.socket.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)  # a workload may serve names on all addresses
            self.socket.bind((address, port))
        except OSError:
            self.socket.close()
            raise
        loop.watch(self.socket.fileno(), READABLE, self._on_readable)

    def _on_readable(self, events: int) -> None:
        try:
            data, client = self.socket.recvfrom(_DATAGRAM_BYTES)
        except OSError:
            return
        self._number = self._number % 0xFFFF_FFFF + 1
        self._clients[self._number] = client
        self.asked.append((self._number, data))
        while len(self._clients) > _KEPT_MAX:
            del self._clients[next(iter(self._clients))]
        del self.asked[:-_KEPT_MAX]
        self.changed.notify()

    def answer(self, number: int, data: bytes) -> None:
        """To whoever asked; nobody may wait any more."""
        client = self._clients.pop(number, None)
        if client is not None:
            try:
                self.socket.sendto(data, client)
            except OSError:
                pass  # it went away, or has no room: it asks again


def take_question(agent: Agent, request: Message) -> Steps:
    """Blocks until there is one; each is handed out once."""
    address = request.get("address", "")
    if not address.startswith("127."):
        raise invalid(f"`address` is `{address}`, legal is a loopback address")
    if agent.questions is None:
        try:
            agent.questions = Questions(agent.loop, address)
        except OSError as error:
            raise precondition(f"`{address}` port {_PORT} cannot be opened: {error.strerror}") from None
    questions = agent.questions
    if questions.address != address:
        raise precondition(f"the port is open at `{questions.address}`")
    while not questions.asked:
        yield questions.changed.wait()
    number, data = questions.asked.pop(0)
    return {"number": number, "data": data}


def give_answer(agent: Agent, request: Message) -> Message:
    """Bring an answer."""
    if agent.questions is not None:
        agent.questions.answer(request.get("number", 0), request.get("data", b""))
    return {}
