# SPDX-License-Identifier: Apache-2.0
"""A supervisor's insides, its guest, and everything around them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio

from journal import Journal
from kata_fsm.effects.agent import link
from kata_fsm.supervisor import session, watch
from kata_fsm.world import Paths
from tests.support import house as houses
from tests.support.agent_peer import AgentPeer
from tests.support.held import pod as pod
from tests.support.stage import UID, Stage
from tests.support.stage import opened as opened_journal


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
def journal(tmp_path: Path) -> Iterator[Journal]:
    with opened_journal(tmp_path / "journal") as journal:
        yield journal


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying again is a matter of milliseconds."""
    monkeypatch.setattr(session, "RETRY_S", 0.002)
    monkeypatch.setattr(watch, "RETRY_S", 0.002)
    monkeypatch.setattr(link, "VM_DEATH_NOTICE_S", 0.002)


@pytest.fixture
async def peer(paths: Paths, nursery: trio.Nursery) -> AgentPeer:
    made = AgentPeer(paths.agent_sock)
    await nursery.start(made.run)
    return made


@pytest.fixture
async def _no_shim_is_left(nursery: trio.Nursery) -> AsyncIterator[None]:
    yield
    for shim in list(houses.ShimPeer.alive):
        await shim.aclose()


@pytest.fixture
async def house(
    paths: Paths, journal: Journal, stage: Stage, peer: AgentPeer, _quick: None, _no_shim_is_left: None
) -> AsyncIterator[houses.House]:
    async with houses.opened(paths, journal, stage) as house:
        yield house


@pytest.fixture
def another(paths: Paths, journal: Journal, stage: Stage, peer: AgentPeer, _quick: None, _no_shim_is_left: None) -> Any:
    """`async with another() as house`: a supervisor, as often as one is needed."""

    def another() -> AbstractAsyncContextManager[houses.House]:
        return houses.opened(paths, journal, stage)

    return another
