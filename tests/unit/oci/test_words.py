# SPDX-License-Identifier: Apache-2.0
"""Names, signals, resources, statistics, processes and redaction."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from kata_fsm import projections
from kata_fsm.errors import SpecError, UsageError
from kata_fsm.machines import container
from kata_fsm.oci import names, process, resources
from kata_fsm.oci.example import example
from kata_fsm.oci.redact import redacted
from kata_fsm.oci.signals import number_of
from kata_fsm.oci.stats import event_of
from kata_fsm.oci.status import list_row, oci_status, state_document


@pytest.mark.parametrize("good", ["a", "A.b_c+d-9", "x" * 200, "..."])
def test_legal_ids(good: str) -> None:
    assert names.check_id(good) == good


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("", "Missing container ID"),
        ("a/b", "contains `/`"),
        ("a b", "contains ` `"),
        ("a\n", r"contains `\n`"),
        ("é", "contains `é`"),
        ("-a", "must not begin with `-`"),
        ("..", "`.` or `..`"),
        ("x" * 2000, "has 2000 bytes, at most 200 are legal"),
    ],
)
def test_illegal_ids_are_named(bad: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.check_id(bad)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 200


def test_keys_agree_with_the_runtimes(tmp_path: Path) -> None:
    real = str(tmp_path / "real")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(real)
    assert names.container_key(real, "id") == projections.container_key(real, "id")
    assert names.container_key(str(tmp_path / "link"), "id") == projections.container_key(real, "id")
    assert names.sandbox_key("a@b") == projections.stream_key("a@b")


@pytest.mark.parametrize(
    ("word", "number"),
    [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("0", 0), ("RTMIN+3", signal.SIGRTMIN + 3), ("winch", 28)],
)
def test_signals(word: str, number: int) -> None:
    assert number_of(word) == number


@pytest.mark.parametrize("word", ["", "65", "-1", "SIGNOPE", "SIG_BLOCK", "TERM+1", "RTMAX+1", "²"])
def test_unknown_signals(word: str) -> None:
    with pytest.raises(UsageError, match="is not supported"):
        number_of(word)


@pytest.mark.parametrize(
    ("text", "count"), [("512m", 512 << 20), ("1.5G", 3 << 29), ("7", 7), ("2KiB", 2048), ("-1", -1)]
)
def test_sizes(text: str, count: int) -> None:
    assert resources.bytes_of(text) == count


def test_update_options_and_files(tmp_path: Path) -> None:
    document, warnings = resources.from_options({"memory": "64m", "cpu-share": "512", "kernel-memory": "5"})
    assert document == {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}}
    assert warnings == ["update: `--kernel-memory` has no effect"]
    document, _ = resources.from_options({"cpuset-cpus": "0", "cpuset-mems": "0", "blkio-weight": "300"})
    assert document == {"cpu": {"cpus": "0", "mems": "0"}, "blockIO": {"weight": 300}}
    with pytest.raises(UsageError, match="`--cpu-rt-period` cannot be honoured"):
        resources.from_options({"cpu-rt-period": "5"})
    for wrong in ({"cpuset-cpus": "0-"}, {"cpuset-cpus": "0,60000"}, {"cpuset-mems": "512"}, {"blkio-weight": "5"}):
        with pytest.raises(SpecError, match=r"update: `(cpu\.cpus|cpu\.mems|blockIO\.weight)`"):
            resources.from_options(wrong)
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"memory": {"limit": 5, "swap": 0}, "blockIO": {"weight": 10}, "cpu": {"cpus": ""}}))
    document, warnings = resources.from_file(str(file))
    assert document == {"memory": {"limit": 5}, "blockIO": {"weight": 10}}
    assert warnings == []
    file.write_text(json.dumps({"cpu": {"burst": 7}, "memory": {"useHierarchy": True}}))
    assert resources.from_file(str(file)) == ({"unified": {"cpu.max.burst": "7"}}, [])
    file.write_text(json.dumps({"memory": {"limit": "5"}}))
    with pytest.raises(SpecError, match=r"`memory\.limit`: expected"):
        resources.from_file(str(file))


def test_statistics_keep_what_is_always_present() -> None:
    event = event_of("id", {"cgroup_stats": {"cpu_stats": {"cpu_usage": {"total_usage": 5, "usage_in_usermode": 3}}}})
    assert (event["type"], event["id"]) == ("stats", "id")
    assert event["data"]["cpu"]["usage"] == {"total": 5, "kernel": 0, "user": 3}
    assert event["data"]["memory"]["usage"] == {"limit": 0, "failcnt": 0}
    assert event_of("id", {})["data"]["blkio"] == {}


def test_redaction_keeps_the_command_and_the_names_of_options() -> None:
    words = ["/bin/sh", "-c", "echo secret", "--password=x", "--user", "me", "-pxyz", "--", "-"]
    assert redacted(words) == ["/bin/sh", "-c", "***", "--password=***", "--user", "***", "-p***", "--", "-"]
    assert redacted([]) == []


def exec_options(**given: Any) -> argparse.Namespace:
    known: dict[str, Any] = {
        "process": None,
        "command": ["ls"],
        "tty": False,
        "env": [],
        "cwd": None,
        "user": None,
        "additional_gids": [],
        "cap": [],
        "no_new_privs": False,
    }
    return argparse.Namespace(**{**known, **given})


def test_an_exec_takes_the_containers_process_as_pattern() -> None:
    pattern = example()["process"]
    options = exec_options(
        env=["A=b"], cwd="/tmp", user="5:6", additional_gids=["7"], cap=["CAP_SYS_ADMIN"], no_new_privs=True, tty=True
    )
    document = process.from_options(options, pattern)
    assert document["args"] == ["ls"]
    assert document["env"][-1] == "A=b"
    assert document["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    assert (document["cwd"], document["terminal"], document["noNewPrivileges"]) == ("/tmp", True, True)
    assert document["capabilities"]["effective"][-1] == "CAP_SYS_ADMIN"
    assert document["rlimits"] == example()["process"]["rlimits"]
    assert process.check(document, where="exec") == []


def test_an_exec_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="user `root` is not a number"):
        process.from_options(exec_options(user="root"), example()["process"])
    with pytest.raises(UsageError, match="args cannot be empty"):
        process.from_options(exec_options(command=[]), example()["process"])
    with pytest.raises(UsageError, match="bundle is gone"):
        process.from_options(exec_options(), None)
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"args": ["x"], "cwd": 5}))
    options = exec_options(process=str(file))
    with pytest.raises(SpecError, match=r"process file `.*`: `cwd`: expected `str`, got `int`"):
        process.check(process.from_options(options, None), where=process.where(options))


def test_what_no_exec_can_have_is_refused_or_warned_about() -> None:
    wanted = {"args": ["x"], "cwd": "/", "scheduler": {"policy": "SCHED_FIFO"}}
    with pytest.raises(SpecError, match=r"^exec: `scheduler`: is not supported"):
        process.check(wanted, where="exec")
    wanted = {"args": ["x"], "cwd": "/", "selinuxLabel": "l", "tomorrow": 1, "scheduler": None}
    assert process.check(wanted, where="exec") == [
        "exec: `selinuxLabel` is not applied: the guest has no SELinux",
        "exec: `tomorrow` is not applied: this version does not know it",
    ]
    assert wanted == {"args": ["x"], "cwd": "/", "tomorrow": 1}


def test_every_state_but_none_and_deleted_has_a_status() -> None:
    words = {
        oci_status(state) for state in container.TABLE.states if state not in (container.ABSENT, container.DELETED)
    }
    assert words == {"creating", "created", "running", "paused", "stopped"}


def test_the_state_document_is_ready_to_print() -> None:
    text = state_document(container_id="x", status="running", pid=7, bundle="/b", annotations={"k": "v"})
    assert text.startswith('{\n  "ociVersion": ')
    assert not text.endswith("\n")
    assert json.loads(text)["pid"] == 7
    row = list_row(container_id="x", status="stopped", pid=7, bundle="/b", rootfs="/r", created="t", uid=0)
    assert (row["pid"], row["owner"]) == (0, "#0")


@pytest.mark.parametrize("word", ["CAP_SYS_ADMIN", "cap_sys_admin", "SYS_ADMIN"])
def test_capabilities_by_any_name(word: str) -> None:
    options = exec_options(cap=[word], command=["/bin/true"])
    document = process.from_options(options, {"cwd": "/", "capabilities": {"bounding": ["CAP_KILL"]}})
    assert document["capabilities"]["bounding"] == ["CAP_KILL", "CAP_SYS_ADMIN"]
    assert process.check(document, where="exec") == []


def test_a_capability_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no capability `CAP_BOGUS`"):
        process.from_options(exec_options(cap=["CAP_BOGUS"], command=["/bin/true"]), {"cwd": "/"})


@pytest.mark.parametrize("text", ["\uff19", "1e3", "", "-5", "4 x"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        resources.bytes_of(text)


def test_numbers_beyond_64_bits_are_refused_here_and_not_by_the_wire() -> None:
    with pytest.raises(SpecError, match=r"cpu\.shares`: does not fit into 64 bits"):
        resources.from_options({"cpu-share": "9" * 30})
