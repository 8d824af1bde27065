# SPDX-License-Identifier: Apache-2.0
"""A peer that plays the agent, on a real unix socket, and connections to it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import trio

from kata_fsm.effects.agent.client import AgentClient
from kata_fsm.effects.agent.link import Link
from kata_fsm.world import WORLD, Paths
from tests.support.agent_peer import AgentPeer
from tests.support.stage import LIMIT_S, UID


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """Where a sandbox's sockets lie: short, as their names must be."""
    top = tempfile.mkdtemp(prefix="kfu-")
    monkeypatch.setenv("KATA_FSM_RUN", top + "/run")
    monkeypatch.setenv("KATA_FSM_STATE", top + "/state")
    made = Paths(UID)
    os.makedirs(made.base)
    os.makedirs(made.logs)
    yield made
    shutil.rmtree(top)


@pytest.fixture
async def peer(paths: Paths, nursery: trio.Nursery) -> AgentPeer:
    made = AgentPeer(paths.agent_sock)
    await nursery.start(made.run)
    return made


@pytest.fixture
async def client(peer: AgentPeer, nursery: trio.Nursery) -> AgentClient:
    """One established connection."""
    made = AgentClient(await trio.open_unix_socket(peer.path), os.urandom(16))
    nursery.start_soon(made.run)
    with trio.fail_after(LIMIT_S):
        await made.established.wait()
    return made


@pytest.fixture
async def link(paths: Paths, nursery: trio.Nursery) -> Link:
    return Link(paths, WORLD, nursery)
