# SPDX-License-Identifier: Apache-2.0
"""Goal: hooks run when the specification says so, in its namespaces, with the state on stdin, and fail as it says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.effects import mounts
from kata_fsm.testing.bundle import config
from tests.support.kata import Kata, wait_until


def hook(script: str, *words: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script, "hook", *words], **more}


def writer(log: Path, kind: str) -> dict[str, Any]:
    """A hook that appends its kind, the state it was given and the network namespace of the pid in it."""
    script = (
        'state=$(cat); pid=$(echo "$state" | sed -n \'s/.*"pid": \\([0-9]*\\).*/\\1/p\'); '
        'echo "$0 $1 $WORD|$state|$(readlink /proc/$$/ns/net)|$(readlink /proc/$pid/ns/net)" >>"$2"'
    )
    return hook(script, kind, str(log), env=["WORD=given", "PATH=/usr/bin:/bin"])


def lines(log: Path) -> list[list[str]]:
    return [line.split("|") for line in log.read_text().splitlines()]


def test_each_at_its_time(kata: Kata, tmp_path: Path) -> None:
    log = tmp_path / "log"
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    given: dict[str, Any] = {kind: [writer(log, kind)] for kind in kinds}
    given["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "cat >/state; uname -r >/where"]}]
    bundle = kata.bundle("b", "/bin/sh", "-c", "cat /where; sleep 1000", hooks=given, annotations={"a": "b"})
    kata("create", "--bundle", str(bundle), "c1")
    assert [line[0] for line in lines(log)] == [
        "hook prestart given",
        "hook createRuntime given",
        "hook createContainer given",
    ]
    assert not (bundle / "rootfs" / "where").exists()
    pid = json.loads(kata("state", "c1").stdout)["pid"]
    for words, text, own, its in lines(log):
        state = json.loads(text)
        assert (state["id"], state["status"], state["pid"]) == ("c1", "creating", pid)
        assert (state["bundle"], state["annotations"]) == (str(bundle), {"a": "b"})
        ours = os.readlink("/proc/self/ns/net")  # the runtime's namespace
        assert its != ours  # the sandbox's
        assert own == (its if "createContainer" in words else ours)
    kata("start", "c1")
    where = bundle / "rootfs" / "where"
    wait_until(lambda: where.exists() and where.read_text(), "the hook in the container")
    assert where.read_text().strip() != os.uname().release
    assert json.loads(lines(log)[3][1])["status"] == "running"
    kata("kill", "c1", "KILL")
    wait_until(lambda: kata.status("c1") == "stopped", "the container is stopped")
    assert len(lines(log)) == 4
    kata("delete", "c1")
    assert lines(log)[4][0] == "hook poststop given"
    assert json.loads(lines(log)[4][1])["status"] == "stopped"


@pytest.mark.parametrize("kind", ["createRuntime", "createContainer"])
def test_a_failed_one_before_the_start_undoes_everything(kata: Kata, tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    failing = hook("echo for this reason >&2; exit 3")
    bundle = kata.bundle(
        "b",
        "/bin/true",
        hooks={kind: [failing, writer(log, "never")], "poststop": [writer(log, "poststop")]},
    )
    done = kata("create", "--bundle", str(bundle), "c1", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"hook `hooks.{kind}[0]` (`/bin/sh`) exited with code 3: for this reason" in done.stderr
    assert [line[0] for line in lines(log)] == ["hook poststop given"]
    assert kata("state", "c1", check=False).returncode == 1


def test_one_in_the_containers_namespaces_sees_its_files(kata: Kata, tmp_path: Path) -> None:
    """As `ldconfig -r` of a GPU's hook needs them: the root file system with the volumes in it. A link in there leads
    nowhere else, what is written the guest has, and what is mounted is the hook's own."""
    volume, own = tmp_path / "volume", tmp_path / "own"
    volume.mkdir()
    own.mkdir()
    (volume / "of-the-volume").touch()
    script = """
        set -e; cat >/dev/null
        touch rootfs/etc/written rootfs/srv/data/written-there
        ls rootfs/srv/data >rootfs/seen
        mount -t tmpfs none "$1"; touch "$1/mine"
    """
    bundle = kata.bundle(
        "b",
        "/bin/sh",
        "-c",
        "cat /seen; ls /etc/written /link/data/written-there",
        hooks={"createContainer": [hook(script, str(own))]},
        mounts=[*config([])["mounts"], {"destination": "/link/data", "type": "bind", "source": str(volume)}],
    )
    rootfs = bundle / "rootfs"
    (rootfs / "srv").mkdir()
    (rootfs / "link").symlink_to("/srv")
    done = kata("run", "--bundle", str(bundle), "c1")
    assert done.stdout.split() == ["of-the-volume", "written-there", "/etc/written", "/link/data/written-there"]
    assert not [mount for top in (bundle, own) for mount in mounts.below(str(top))]
    assert not Path("/srv/data").exists()
    assert not list(own.iterdir())


def bringer(*commands: str) -> dict[str, Any]:
    """A hook that runs these words of `ip` in the network namespace of the pid in the state, as Docker's does by itself."""
    pid = "pid=$(sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p')"
    return hook("; ".join(["set -e", pid, *(f"nsenter -t $pid -n ip {words}" for words in commands)]))


def test_what_one_puts_into_the_namespace_is_the_guests(kata: Kata) -> None:
    brought = ("link add eth7 type veth peer name peer7", "addr add 192.0.2.7/24 dev eth7", "link set eth7 up")
    bundle = kata.bundle("b", "/bin/sh", "-c", "ip addr show eth7 >/had", hooks={"prestart": [bringer(*brought)]})
    kata.detached("c1", bundle)
    wait_until(lambda: kata.status("c1") == "stopped", "the container has ended")
    had = (bundle / "rootfs" / "had").read_text()
    assert "192.0.2.7/24" in had
    kata("delete", "c1")


def test_what_no_guest_can_have_is_an_error(kata: Kata) -> None:
    brought = ("link add v7 type vxlan id 4 dstport 4789", "link set v7 up")
    bundle = kata.bundle("b", "/bin/true", hooks={"createRuntime": [bringer(*brought)]})
    done = kata("create", "--bundle", str(bundle), "c1", check=False)
    assert done.returncode == 1
    assert "the network cannot be changed: interface `v7` cannot be given to the guest" in done.stderr
    assert kata("state", "c1", check=False).returncode == 1


def test_one_that_hangs_is_killed(kata: Kata) -> None:
    bundle = kata.bundle("b", "/bin/true", hooks={"prestart": [hook("sleep 1000", timeout=1)]})
    done = kata("create", "--bundle", str(bundle), "c1", check=False)
    assert done.returncode == 1
    assert "hook `hooks.prestart[0]` (`/bin/sh`) did not end in `1` s and was killed" in done.stderr


def test_failed_ones_after_the_start_are_only_told(kata: Kata) -> None:
    given = {"poststart": [hook("exit 4"), {"path": "/no/such"}], "poststop": [hook("exit 5")]}
    bundle = kata.bundle("b", "/bin/sleep", "1000", hooks=given)
    kata.detached("c1", bundle)
    assert kata.status("c1") == "running"
    kata("delete", "--force", "c1")
    told = (kata.base / "log").read_text()
    for words in ("poststart[0]` (`/bin/sh`) exited with code 4", "poststart[1]` (`/no/such`) cannot be run: No such"):
        assert words in told
    assert "poststop[0]` (`/bin/sh`) exited with code 5" in told


def test_none_is_run_twice(kata: Kata, tmp_path: Path) -> None:
    """The supervisor is killed while a poststart hook runs: the next one counts it as failed and goes on."""
    log = tmp_path / "log"
    over = tmp_path / "over"
    slow = hook('echo begun >>"$1"; until [ -e "$2" ]; do sleep 0.1; done', str(log), str(over))
    kata("create", "--bundle", str(kata.bundle("b", "/bin/sleep", "1000", hooks={"poststart": [slow]})), "c1")
    try:
        starting = kata.spawn("start", "c1")
        wait_until(log.exists, "the hook has begun")
        kata.kill("supervisor", "c1")
        with starting:
            pass
        wait_until(lambda: kata.status("c1") == "running", "another supervisor goes on")
        assert log.read_text() == "begun\n"
        assert "how it ended is not known" in kata("replay", "c1", "-o", "jsonl").stdout
    finally:
        over.touch()  # nobody else ends it
    kata("delete", "--force", "c1")
