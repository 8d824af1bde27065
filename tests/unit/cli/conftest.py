# SPDX-License-Identifier: Apache-2.0
"""The installed command, and a journal with containers in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from journal import Journal, NewRecord, Stamp
from kata_fsm.cli import launcher
from kata_fsm.oci.names import container_key
from kata_fsm.oci.status import list_row, state_document

LIMIT_S = 120.0
STUB = Path(__file__).parent / "stub_supervisor.py"
STAMP = Stamp(wall_ns=1, mono_ns=1, boot_id="boot")


class Command:
    """`kata-fsm` as installed, in an environment of its own with next to nothing in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "kata-fsm"
        self.root = directory / "root"
        self.path.write_text(launcher.text(os.path.realpath(sys.executable), launcher.search_path()))
        self.path.chmod(0o755)
        self.environment = {"KATA_FSM_RUN": str(directory / "run"), "KATA_FSM_STATE": str(directory / "state")}

    def __call__(self, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
        argv = [str(self.path), "--root", str(self.root), *words]
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, **how)

    def add(
        self,
        container_id: str,
        *,
        status: str = "stopped",
        live: bool = False,
        uid: str = "0123456789ab",
        bundle: str = "/b",
        **fields: Any,
    ) -> str:
        """Put one container's projection into the journal; answers its state document."""
        (self.directory / "state").mkdir(exist_ok=True)
        words = {"container_id": container_id, "status": status, "pid": 5, "bundle": bundle}
        document = state_document(**words)
        row = list_row(**words, rootfs="/b/rootfs", created="2026-11-23T11:02:07.000000001Z", uid=0)
        stream = f"{container_id}@{uid}"
        value = {"stream": stream, "uid": uid, "sandbox": container_id, "key": container_id, "live": live}
        value |= {"oci": document, "list": row, **fields}
        with Journal.open(self.environment["KATA_FSM_STATE"] + "/journal") as journal:
            record = NewRecord(kind="note", type="test", body={})
            key = container_key(str(self.root), container_id)
            projections = {key: json.dumps(value).encode()}
            journal.append(stream, [record], stamp=STAMP, expected_rev=0, projections=projections)
        return document


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def stubbed(command: Command) -> Any:
    """The command with its supervisor role replaced."""
    text = command.path.read_text()
    play = f"import runpy\n    del sys.argv[1]\n    runpy.run_path({str(STUB)!r}, run_name='__main__')"
    hook = f"if sys.argv[1] == 'supervisor':\n    {play}\n"
    command.path.write_text(text.replace("from kata_fsm", hook + "from kata_fsm", 1))
    state = command.directory / "state"
    state.mkdir(exist_ok=True)
    command.plan = lambda **plan: (state / "stub.json").write_text(json.dumps(plan))  # type: ignore[attr-defined]
    command.plan()  # type: ignore[attr-defined]
    return command


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., str]:
    """Makes a bundle directory from the example, changed by keyword at the top level."""

    def make(**changes: Any) -> str:
        from kata_fsm.oci.example import example

        directory = tmp_path / "bundle"
        (directory / "rootfs").mkdir(parents=True, exist_ok=True)
        document = example()
        document["process"]["terminal"] = False
        (directory / "config.json").write_text(json.dumps({**document, **changes}))
        return str(directory)

    return make
