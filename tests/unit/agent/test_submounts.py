# SPDX-License-Identifier: Apache-2.0
"""Directories of the host that the agent holds: which, and that a dead file server does not hold up the agent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest.agent import submounts
from guest.agent.agent import Agent, Settings
from guest.agent.loop import Loop


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    settings = Settings()
    settings.procfs = str(tmp_path)
    settings.busybox = "/bin/false"
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(f"36 35 0:40 / {tmp_path}/held rw - virtiofs none rw\n")
    (tmp_path / "held").mkdir()
    handler = signal.getsignal(signal.SIGCHLD)
    yield Agent(Loop(), settings)
    signal.set_wakeup_fd(-1)  # an agent has its process for itself
    signal.signal(signal.SIGCHLD, handler)


def run(agent: Agent, task: Any) -> Any:
    """What a task comes to."""
    ended: list[Any] = []
    agent.loop.start(task, lambda value, error: ended.append((value, error)))
    while not ended:
        agent.loop.turn()
    value, error = ended[0]
    assert error is None
    return value


def test_which_directories_are_held() -> None:
    spec = {
        "root": {"path": "/shared/c1/rootfs"},
        "mounts": [
            {"destination": "/v", "source": "/shared/c1/v", "type": "bind"},
            {"destination": "/w", "source": "/shared/c1/v", "type": "bind"},
            {"destination": "/proc", "source": "proc", "type": "proc"},
            {"destination": "/run", "type": "tmpfs"},
            {"destination": "/x", "source": "/sharedish/x", "type": "bind"},
        ],
    }
    assert submounts.directories(spec, "/shared") == ["/shared/c1/rootfs", "/shared/c1/v"]
    assert submounts.directories({}, "/shared") == []


def test_each_is_walked_into_and_files_and_gaps_are_passed_over(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run(agent, submounts.hold(agent, [str(tmp_path / name) for name in ("missing", "file", "held")]))


def test_only_what_is_mounted_is_unmounted_after_the_server_has_answered(agent: Agent, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    spawn = agent.children.spawn

    def note(argv: list[str], *rest: Any) -> Any:
        asked.append(argv)
        return spawn(argv, *rest)

    agent.children.spawn = note  # type: ignore[method-assign,assignment]
    run(agent, submounts.let_go(agent, [str(tmp_path / "held"), str(tmp_path / "free")]))
    assert asked == [["/bin/false", "umount", "-l", str(tmp_path / "held")]]
    run(agent, submounts.let_go(agent, []))
    assert len(asked) == 1


def test_a_server_that_does_not_answer_holds_up_nobody_for_long(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    monkeypatch.setattr(submounts, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(submounts, "_ask", lambda *words: answers.wait())
    agent.children.spawn = lambda *words: pytest.fail("it was unmounted")  # type: ignore[method-assign,assignment]
    run(agent, submounts.hold(agent, [str(tmp_path)]))
    run(agent, submounts.let_go(agent, [str(tmp_path / "held")]))
    answers.set()
