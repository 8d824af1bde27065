# SPDX-License-Identifier: Apache-2.0
"""The agent as a real process on the host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent_process import AgentProcess, Client


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent on a transport like the serial port. It must not have complained at the end."""
    running = AgentProcess(tmp_path, "serial")
    yield running
    said = running.stop()
    assert said == b"", said.decode()


@pytest.fixture
def client(agent: AgentProcess) -> Client:
    """Its first session."""
    return agent.client
