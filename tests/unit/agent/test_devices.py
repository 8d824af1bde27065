# SPDX-License-Identifier: Apache-2.0
"""Goal: a container's block devices have the numbers that this machine's kernel gave their disks."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from guest.agent import devices
from guest.agent.errors import RpcError

NULL = {"type": "c", "path": "/dev/null", "major": 1, "minor": 3}


def disk(sysfs: Path, name: str, serial: str, numbers: str) -> None:
    directory = sysfs / "block" / name
    directory.mkdir(parents=True)
    (directory / "serial").write_text(serial)
    (directory / "dev").write_text(numbers + "\n")


@pytest.fixture
def agent(tmp_path: Path) -> Any:
    (tmp_path / "bus/virtio/drivers/virtio_blk").mkdir(parents=True)
    return SimpleNamespace(settings=SimpleNamespace(sysfs=str(tmp_path)))


def block(path: str, major: int, minor: int) -> dict[str, Any]:
    return {"type": "b", "path": path, "major": major, "minor": minor}


def rule(kind: str, major: int, minor: int) -> dict[str, Any]:
    return {"allow": True, "type": kind, "major": major, "minor": minor, "access": "rw"}


def spec(*found: dict[str, Any], rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {"linux": {"devices": [NULL, *found], "resources": {"devices": rules}}}


def asked(serial: str, path: str, kind: str = "blk") -> dict[str, Any]:
    return {"id": serial, "type": kind, "container_path": path}


def test_devices_and_their_rules_get_this_machines_numbers(agent: Any, tmp_path: Path) -> None:
    """Also where one disk has here the numbers that the other has on the host."""
    disk(tmp_path, "vda", "7.1", "254:0")
    disk(tmp_path, "vdb", "254.0r", "254:16")
    disk(tmp_path, "sr0", "7.1", "11:0")
    given = spec(
        block("/dev/a", 7, 1),
        block("/dev/b", 254, 0),
        block("/dev/a2", 7, 1),
        rules=[rule("b", 7, 1), rule("b", 254, 0), rule("c", 7, 1), rule("b", 8, 0), {"allow": False}],
    )
    list(devices.give(agent, given, [asked("7.1", "/dev/a"), asked("254.0r", "/dev/b"), asked("7.1", "/dev/a2")]))
    linux = given["linux"]
    assert linux["devices"] == [
        NULL,
        block("/dev/a", 254, 0),
        block("/dev/b", 254, 16),
        block("/dev/a2", 254, 0),
    ]
    assert linux["resources"]["devices"] == [
        *(rule("b", 254, 0), rule("b", 254, 16), rule("c", 7, 1), rule("b", 8, 0), {"allow": False})
    ]


def test_a_disk_that_was_just_plugged_is_waited_for(agent: Any, tmp_path: Path) -> None:
    given = spec(block("/dev/a", 7, 1), rules=[])
    steps = devices.give(agent, given, [asked("7.1", "/dev/a")])
    next(steps)
    next(steps)
    disk(tmp_path, "vda", "7.1", "254:0")
    assert list(steps) == []
    assert given["linux"]["devices"][1]["major"] == 254


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (asked("7.1", "/dev/a", "scsi"), "of type `scsi`; legal is `blk`"),
        (asked("7.1", "/dev/null"), "no block device `/dev/null`"),
        (asked("7.1", "/dev/b"), "no block device `/dev/b`"),
        (asked("7.1", "/dev/a"), "the disk `7.1` for `/dev/a` did not appear in `10` s"),
    ],
)
def test_what_cannot_be_given_is_named(agent: Any, wanted: dict[str, Any], told: str) -> None:
    given = spec(block("/dev/a", 7, 1), rules=[rule("b", 7, 1)])
    before = copy.deepcopy(given)
    with pytest.raises(RpcError) as caught:
        list(devices.give(agent, given, [wanted]))
    assert told in caught.value.message
    assert given == before
