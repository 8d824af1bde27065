# SPDX-License-Identifier: Apache-2.0
"""Whether a live sandbox's supervisor is there, told from the kernel's table of locks without touching the lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from kata_fsm.replay.liveness import how_it_stands, supervisor_pid
from kata_fsm.world import WORLD, Paths

UID = "0123456789ab"


@pytest.fixture
def lock_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KATA_FSM_RUN", str(tmp_path))
    path = Path(Paths(UID).supervisor_lock)
    path.parent.mkdir(parents=True)
    return path


def test_a_held_lock_names_its_holder(lock_path: Path) -> None:
    with open(lock_path, "w", encoding="ascii") as file:
        assert supervisor_pid(UID) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert supervisor_pid(UID) == os.getpid()
        assert f"its supervisor, pid {os.getpid()}, is at work" in how_it_stands(UID, WORLD.boot_id(), copied=False)


def test_without_a_lock_the_supervisor_is_gone(lock_path: Path) -> None:
    assert supervisor_pid(UID) is None
    assert "its supervisor is gone" in how_it_stands(UID, WORLD.boot_id(), copied=False)


def test_after_a_new_boot_nothing_can_be_there() -> None:
    assert "the host was started anew" in how_it_stands(UID, "another boot", copied=False)


def test_of_a_copy_nothing_is_asked() -> None:
    assert "when this journal was copied" in how_it_stands(UID, WORLD.boot_id(), copied=True)


def test_a_table_that_cannot_be_read_is_said(lock_path: Path, tmp_path: Path) -> None:
    lock_path.touch()
    with pytest.raises(OSError, match="No such file"):
        supervisor_pid(UID, str(tmp_path / "none"))
