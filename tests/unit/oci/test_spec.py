# SPDX-License-Identifier: Apache-2.0
"""Reading and judging config.json: every complaint names the field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.errors import SpecError
from kata_fsm.oci.check import check, unknown_capabilities
from kata_fsm.oci.example import example
from kata_fsm.oci.features import CAPABILITIES
from kata_fsm.oci.sandbox import place_of
from kata_fsm.oci.spec import load


def bundle(tmp_path: Path, document: object) -> str:
    (tmp_path / "rootfs").mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return str(tmp_path)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with one field set; `...` removes it."""
    document = example()
    at: Any = document
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    for part in parents:
        at = at[part] if isinstance(at, list) else at.setdefault(part, {})
    if value is ...:
        del at[last]
    elif isinstance(at, list) and last == len(at):
        at.append(value)
    else:
        at[last] = value
    return document


def test_the_example_is_legal(tmp_path: Path) -> None:
    loaded = load(bundle(tmp_path, example()))
    check(loaded)
    assert loaded.rootfs == str(tmp_path / "rootfs")
    assert loaded.terminal


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", ..., "config.json: `ociVersion`: is missing"),
        ("ociVersion", "0.9", "config.json: `ociVersion`: `0.9` is not supported"),
        ("process", ..., "config.json: `process`: is missing"),
        ("process/args", ["sh", 5], "config.json: `process.args[1]`: expected `str`, got `int`"),
        ("process/args", [], "config.json: `process.args`: is empty"),
        ("process/args", ["a\0b"], "config.json: `process.args[0]`: contains a NUL byte"),
        ("process/cwd", ..., "config.json: `process.cwd`: is missing"),
        ("process/cwd", "tmp", "config.json: `process.cwd`: `tmp` is not an absolute path"),
        ("process/user/uid", -1, "config.json: `process.user.uid`: expected `int` >= 0"),
        ("process/rlimits/0/type", "NOFILE", "config.json: `process.rlimits[0].type`: `NOFILE` is no resource limit"),
        ("process/rlimits/0/soft", 4096, "config.json: `process.rlimits[0]`: soft limit 4096 is above"),
        ("root", ..., "config.json: `root`: is missing"),
        ("root/path", "nowhere", "nowhere` does not exist"),
        ("hostname", "x" * 65, "config.json: `hostname`: longer than 64 bytes"),
        ("mounts/0/destination", "/a/../b", "config.json: `mounts[0].destination`: `/a/../b` contains `..`"),
        ("mounts/0/type", "nfs", "config.json: `mounts[0].type`: `nfs` cannot be mounted in the guest"),
        ("mounts/7", {"destination": "/x", "type": "bind"}, "config.json: `mounts[7].source`: is missing"),
        (
            "mounts/7",
            {"destination": "/x", "type": "bind", "source": "/", "options": ["idmap"]},
            "config.json: `mounts[7].options`: id-mapped mounts are not supported",
        ),
        (
            "hooks",
            {"createContainer": [{"path": "x"}]},
            "config.json: `hooks.createContainer[0].path`: `x` is not an absolute path",
        ),
        ("hooks", {"poststop": [{"path": "x"}]}, "config.json: `hooks.poststop[0].path`: `x` is not an absolute path"),
        (
            "hooks",
            {"prestart": [{"path": "/x", "timeout": 0}]},
            "config.json: `hooks.prestart[0].timeout`: `0` is not above",
        ),
        ("linux/namespaces/0/type", "pids", "config.json: `linux.namespaces[0].type`: `pids` is no namespace"),
        ("linux/namespaces/0", {"type": "user", "path": "/proc/1/ns/user"}, "config.json: `linux.namespaces[0].path`"),
        ("linux/seccomp", {"listenerPath": "/x"}, "config.json: `linux.seccomp.listenerPath`"),
        ("linux/intelRdt", {"closID": "x"}, "config.json: `linux.intelRdt`"),
        (
            "linux/resources/memory",
            {"limit": "1g"},
            "config.json: `linux.resources.memory.limit`: expected `int | null`",
        ),
        (
            "linux/resources/memory",
            {"limit": 10, "swap": 5},
            "config.json: `linux.resources.memory.swap`: `5` is below",
        ),
        ("vm", {"kernel": {}}, "config.json: `vm`: is not supported"),
        ("process/cwd", "/a\0b", "config.json: `process.cwd`: contains a NUL byte"),
        ("mounts", [{"destination": "/a\0", "type": "tmpfs"}], "config.json: `mounts[0].destination`: contains a NUL"),
        ("unknown", {"a": [{"b\0": 1}]}, "config.json: `unknown.a[0]`: contains a NUL byte"),
        (
            "linux/resources/memory",
            {"limit": 1 << 63},
            "config.json: `linux.resources.memory.limit`: expected `int` <=",
        ),
        (
            "linux/resources/cpu",
            {"shares": 1 << 64},
            "config.json: `linux.resources.cpu.shares`: does not fit into 64 bits",
        ),
        ("unknown", json.loads("[" * 80 + "]" * 80), "nested more than 64 levels deep"),
        (
            "process/rlimits",
            [{"type": "RLIMIT_FOO", "soft": 1, "hard": 1}],
            "config.json: `process.rlimits[0].type`: `RLIMIT_FOO` is no resource limit",
        ),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    directory = bundle(tmp_path, changed(path, value))
    with pytest.raises(SpecError) as caught:
        check(load(directory))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[]", "not a JSON object"), ("\xff", "not JSON")])
def test_malformed_json(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        load(bundle(tmp_path, text))


def test_bytes_that_no_text_has_are_placed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"hostname": "\xe9"}')
    with pytest.raises(SpecError, match="not UTF-8 at byte 14"):
        load(str(tmp_path))


def test_what_nests_deeper_than_a_reader_can_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nested more than 64 levels deep"):
        load(bundle(tmp_path, "[" * 200_000))


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(SpecError, match="is a pipe"):
        load(str(tmp_path))


def test_a_capability_that_the_guest_does_not_know_is_named(tmp_path: Path) -> None:
    loaded = load(bundle(tmp_path, changed("process/capabilities", {"bounding": ["CAP_KILL", "CAP_OF_TOMORROW"]})))
    check(loaded)
    assert loaded.spec.process is not None
    assert unknown_capabilities(loaded.spec.process) == ["`CAP_OF_TOMORROW` is not applied: the guest does not know it"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config\.json` cannot be read: No such file"):
        load(str(tmp_path))


def test_what_engines_send_for_unset_is_legal(tmp_path: Path) -> None:
    document = changed("hooks", {"prestart": [], "poststop": None})
    document["linux"]["resources"] = {"blockIO": {"weight": 0}, "cpu": {"shares": 0}, "memory": {"limit": 9, "swap": 9}}
    document["annotations"] = None
    document["process"]["capabilities"] = ["CAP_KILL"]
    document["something"] = {"new": 1}
    check(load(bundle(tmp_path, document)))


def test_all_capabilities_are_listed_once() -> None:
    assert len(CAPABILITIES) == len(set(CAPABILITIES)) == 41


@pytest.mark.parametrize(
    ("annotations", "kind", "sandbox"),
    [
        ({}, "single", "me"),
        ({"io.container.manager": "libpod"}, "single", "me"),
        ({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "me"}, "sandbox", "me"),
        ({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}, "container", "pod"),
        (
            {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "pod"},
            "container",
            "pod",
        ),
        ({"io.kubernetes.docker.type": "podsandbox"}, "sandbox", "me"),
        ({"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": "pod"}, "container", "pod"),
    ],
)
def test_where_a_container_belongs(annotations: dict[str, str], kind: str, sandbox: str) -> None:
    place = place_of("me", annotations)
    assert (place.kind, place.sandbox) == (kind, sandbox)


def test_a_container_must_name_its_sandbox() -> None:
    with pytest.raises(SpecError, match="Could not find sandbox ID"):
        place_of("me", {"io.kubernetes.cri.container-type": "container"})
    with pytest.raises(SpecError, match="Unknown container type pod"):
        place_of("me", {"io.kubernetes.cri.container-type": "pod"})
