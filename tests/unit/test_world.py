# SPDX-License-Identifier: Apache-2.0
"""What tells one host from another."""

from __future__ import annotations

from pathlib import Path

import pytest

from journal import Journal, JournalForeign
from kata_fsm import world
from kata_fsm.recovery import journal_owner, stamp_of
from kata_fsm.world import World

MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The places where a host's identity is looked for, all absent."""
    found = [tmp_path / name for name in ("machine-id", "dbus", "product_uuid")]
    monkeypatch.setattr(world, "HOST_ID_FILES", tuple(str(path) for path in found))
    return found


def test_a_host_is_known_by_its_machine_id_and_does_not_show_it(files: list[Path]) -> None:
    files[0].write_text(MACHINE_ID)
    name = World().host_id()
    assert name.startswith("host-")
    assert len(name) == 5 + 32
    assert MACHINE_ID.strip() not in name
    assert World().host_id() == name
    files[0].write_text(MACHINE_ID.replace("3", "4"))
    assert World().host_id() != name


@pytest.mark.parametrize(
    "useless", [None, "", "\n", "uninitialized\n", "0" * 32, "ffffffff-ffff-ffff-ffff-ffffffffffff"]
)
def test_without_one_the_next_best_is_taken(files: list[Path], useless: str | None) -> None:
    if useless is not None:
        files[0].write_text(useless)
        files[1].write_text(useless)
    assert World().host_id() == ""
    assert journal_owner(World()) is None, "a made-up identity would prove nothing"
    files[2].write_text("0DE1C5D6-0000-4000-8000-0123456789AB\n")
    by_firmware = World().host_id()
    assert by_firmware
    files[1].write_text(MACHINE_ID)
    assert World().host_id() not in ("", by_firmware)


def test_a_journal_of_another_host_cannot_be_written(files: list[Path], tmp_path: Path) -> None:
    files[0].write_text(MACHINE_ID)
    Journal.open(tmp_path / "journal", owner=journal_owner(World())).close()
    Journal.open(tmp_path / "journal", owner=journal_owner(World())).close()
    files[0].write_text(MACHINE_ID.replace("3", "4"))
    with pytest.raises(JournalForeign, match="belongs to `host-"):
        Journal.open(tmp_path / "journal", owner=journal_owner(World()))
    with Journal.open(tmp_path / "journal", read_only=True) as journal:
        assert journal.head().seq == 1
    assert stamp_of(World()).boot_id == World().boot_id()
