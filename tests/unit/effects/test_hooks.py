# SPDX-License-Identifier: Apache-2.0
"""Goal: hooks are run in order, once, with what they are told, and none holds anybody up."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from kata_fsm.effects import hooks
from kata_fsm.effects.protocols import Observed
from kata_fsm.errors import EffectError
from kata_fsm.machines.vocab import Intent
from kata_fsm.world import Paths


def sh(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], **more}


def kept(base: Path, **kinds: list[dict[str, Any]]) -> str:
    state = {"ociVersion": "1.0.2", "id": "box", "bundle": str(base), "annotations": {}}
    return hooks.keep(str(base), "box", {"state": state, **kinds})


class Nothing:
    """An effect without any effect."""

    async def perform(self, intent: Intent) -> dict[str, Any]:
        return {"done": True}

    async def probe(self, intent: Intent) -> Observed:
        return Observed(True)

    async def undo(self, intent: Intent) -> dict[str, Any]:
        return {}


async def test_what_they_are_told(tmp_path: Path) -> None:
    path = kept(tmp_path, poststart=[sh("cat >state; env >env; pwd >pwd", env=["A=b=c"])])
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert await hooks.run(path, "poststart", 42) == []
    state = json.loads((tmp_path / "state").read_text())
    assert (state["status"], state["pid"], state["id"]) == ("running", 42, "box")
    assert "A=b=c" in (tmp_path / "env").read_text().splitlines()
    assert (tmp_path / "pwd").read_text().strip() == str(tmp_path)


async def test_before_the_start_the_first_failure_ends_it(tmp_path: Path) -> None:
    path = kept(tmp_path, createRuntime=[sh("echo why; exit 7"), sh("touch never")], prestart=[sh("touch first")])
    intent = Intent("container.create", "box", {"hooks": {"file": path, "pid": 1}})
    with pytest.raises(EffectError, match=r"hook `hooks.createRuntime\[0\]` \(`/bin/sh`\) exited with code 7: why"):
        await hooks.Before(Nothing(), Paths("0123456789ab")).perform(intent)
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "never").exists()


async def test_after_it_failures_are_collected_and_the_rest_run(tmp_path: Path) -> None:
    path = kept(tmp_path, poststop=[sh("kill -9 $$"), {"path": "/no/such"}, sh("touch last")])
    intent = Intent("container.discard", "box", {"hooks": {"file": path, "pid": 1}})
    handler = hooks.After(Nothing(), "poststop")
    assert (await handler.probe(intent)).done is False
    result = await handler.perform(intent)
    first, second = result["poststop_failed"]
    assert first.endswith("was killed by signal 9")
    assert second.endswith("cannot be run: No such file or directory")
    assert (tmp_path / "last").exists()
    assert not Path(path).exists()
    assert (await handler.probe(intent)).done is True
    assert await handler.perform(intent) == {"done": True}  # again, without its hooks


async def test_none_is_run_twice(tmp_path: Path) -> None:
    path = kept(
        tmp_path, poststart=[sh("echo one >>log"), sh("echo two >>log; exec sleep 1000"), sh("echo three >>log")]
    )
    with trio.move_on_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hooks.run, path, "poststart", 1)
            while not (tmp_path / "log").exists() or "two" not in (tmp_path / "log").read_text():
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()  # as a supervisor's death would
    (failed,) = await hooks.run(path, "poststart", 1)
    assert "how it ended is not known" in failed
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"


async def test_what_a_hook_leaves_behind_holds_nobody_up(tmp_path: Path) -> None:
    path = kept(tmp_path, poststart=[sh("sleep 1000 & echo $! >left"), sh("sleep 1000 & wait", timeout=1)])
    with trio.fail_after(60):
        (failed,) = await hooks.run(path, "poststart", 1)
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert failed.endswith("did not end in `1` s and was killed")


async def test_without_any_it_is_the_effect_alone(tmp_path: Path) -> None:
    intent = Intent("container.start", "box", {})
    assert await hooks.After(Nothing(), "poststart").perform(intent) == {"done": True}
    assert await hooks.Before(Nothing(), Paths("0123456789ab")).perform(intent) == {"done": True}
    hooks.forget("")
