# SPDX-License-Identifier: Apache-2.0
"""Goal: keys of the configuration file that reach into a sandbox are in force in a real one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.testing.bundle import config
from tests.support.kata import Kata

SLEEP = ("/bin/sleep", "1000")
TUNED = """
[hypervisor.qemu]
cpu_features = "x2apic=off"
machine_accelerators = "graphics=off"
entropy_source = "/dev/random"
virtio_fs_cache = "never"
virtio_fs_queue_size = 256
virtio_fs_extra_args = ["--thread-pool-size=2", "--announce-submounts"]
enable_debug = true
[agent.kata]
kernel_modules = ["virtio_mem", "dm_no_such_module x=1"]
create_container_timeout = 100
"""


def configured(kata: Kata, text: str) -> None:
    path = kata.base / "configuration.toml"
    path.write_text(text)
    kata.env["KATA_CONF_FILE"] = str(path)


def line_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def test_keys_of_the_share_the_processor_and_the_agent(kata: Kata) -> None:
    configured(kata, TUNED)
    refused = kata("run", "--bundle", str(kata.bundle("b1", *SLEEP)), "c1", check=False)
    assert refused.returncode == 1
    assert "`modprobe dm_no_such_module` ended with status" in refused.stderr
    configured(kata, TUNED.replace(', "dm_no_such_module x=1"', ""))
    kata.detached("c2", kata.bundle("b2", *SLEEP))
    qemu = line_of(kata.processes("qemu-system")[0])
    assert qemu[qemu.index("-cpu") + 1].endswith(",x2apic=off")
    assert qemu[qemu.index("-machine") + 1].endswith(",graphics=off")
    assert "rng-random,id=entropy,filename=/dev/random" in qemu
    daemon = line_of(kata.processes("virtiofsd", "source=")[0])
    assert "--thread-pool-size=2" in daemon
    assert ",cache=none," in daemon[daemon.index("-o", daemon.index("-o") + 1) + 1]
    said = kata("exec", "c2", "/bin/cat", "/proc/cmdline", "/proc/modules").stdout
    assert "agent.create_container_timeout=100" in said.splitlines()[0].split()
    assert "virtio_mem" in [line.split()[0] for line in said.splitlines()[1:]]
    assert "x2apic" not in kata("exec", "c2", "/bin/cat", "/proc/cpuinfo").stdout
    calls = kata("logs", "c2", "--source", "agent").stdout
    assert all(
        f": {call}: ok\n" in calls for call in ("CreateSandbox", "CreateContainer", "StartContainer", "ExecProcess")
    )
    created = next(record for record in kata.story("c2") if "create_sandbox" in json.dumps(record))
    assert "virtiofsd_cache" in json.dumps(created)
    kata("delete", "--force", "c2")


def memory_of(kata: Kata) -> tuple[str, dict[str, int]]:
    """QEMU's argument about its memory, and the KiB in its status."""
    (pid,) = kata.processes("qemu-system")
    (backend,) = (word for word in line_of(pid) if word.startswith("memory-backend-"))
    rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return backend, {row[0].rstrip(":"): int(row[1]) for row in rows if row[2:] == ["kB"]}


@pytest.fixture
def huge_pages() -> Iterator[Path]:
    """300 MiB of huge pages, given back afterwards."""
    count, before = Path("/proc/sys/vm/nr_hugepages"), ""
    try:
        before = count.read_text()
        count.write_text("150")
    except OSError as error:
        pytest.skip(f"no huge pages here: {error}")
    if int(count.read_text()) < 150:
        count.write_text(before)
        pytest.skip("the host has no huge pages left")
    yield count
    count.write_text(before)


def test_memory_of_huge_pages(kata: Kata, huge_pages: Path) -> None:
    configured(kata, "[hypervisor.qemu]\nenable_hugepages = true\ndefault_memory = 257\n")
    kata.detached("h1", kata.bundle("b1", *SLEEP))
    backend, taken = memory_of(kata)
    assert backend.startswith("memory-backend-memfd,id=mem,size=258M,share=on,hugetlb=on,prealloc=on")
    assert taken["HugetlbPages"] == 258 << 10
    kata(
        "exec", "h1", "/bin/dd", "if=/dev/zero", "of=/tmp/x", "bs=1M", "count=40"
    )  # through the share, into that memory
    refused = kata("create", "--bundle", str(kata.bundle("b2", *SLEEP)), "h2", check=False)
    assert "not enough huge pages: the guest's memory takes `129` of `2` MiB, " in refused.stderr
    assert refused.returncode == 1
    kata("delete", "--force", "h1")
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free"))
    assert int(free.split()[1]) >= 129


def test_memory_that_is_taken_at_once_from_a_directory(kata: Kata) -> None:
    directory = kata.base / "memory"
    directory.mkdir()
    configured(kata, f"[hypervisor.qemu]\nenable_mem_prealloc = true\nfile_mem_backend = '{directory}'\n")
    kata.detached("p1", kata.bundle("b1", *SLEEP))
    backend, taken = memory_of(kata)
    assert (
        backend == f"memory-backend-file,id=mem,size=256M,share=on,mem-path={directory},prealloc=on,prealloc-threads=1"
    )
    assert taken["RssFile"] + taken["RssShmem"] >= 256 << 10
    assert list(directory.iterdir()) == []  # the file has no name
    kata("delete", "--force", "p1")


def told(kata: Kata, words: str) -> list[dict[str, Any]]:
    """The lines of the log that hold `words`, each of which has to say what it belongs to."""
    lines = [json.loads(line) for line in (kata.base / "log").read_text().splitlines()]
    found = [line for line in lines if words in line["msg"]]
    assert [line for line in found if not {"sandbox", "container", "seq", "level", "time"} <= set(line)] == []
    return found


def test_no_limit_makes_a_machine_larger_than_the_ceiling(kata: Kata) -> None:
    configured(kata, "[hypervisor.qemu]\ndefault_maxmemory = 320\ndefault_maxvcpus = 1\n")
    linux = config(SLEEP)["linux"]
    linux["resources"] = {"memory": {"limit": 1 << 30}, "cpu": {"quota": 200_000, "period": 100_000}}
    bundle = kata.bundle("b", *SLEEP, linux=linux)
    kata("--log-format", "json", "create", "--bundle", str(bundle), "c1")
    qemu = line_of(kata.processes("qemu-system")[0])
    assert (qemu[qemu.index("-m") + 1], qemu[qemu.index("-smp") + 1]) == ("320", "1")
    (memory,) = told(kata, "`default_maxmemory` allows `320`")
    assert memory["msg"].startswith("limits ask for a machine of `1280` MiB")
    assert len(told(kata, "`default_maxvcpus` allows `1`")) == (1 if (os.cpu_count() or 1) > 1 else 0)
    kata("delete", "--force", "c1")


def test_a_note_is_said_once_for_a_pod_and_lines_name_their_record(kata: Kata) -> None:
    pod = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "p"}
    member = {**pod, "io.kubernetes.cri.container-type": "container"}
    note = "has no effect here because"

    def create(name: str, annotations: dict[str, str]) -> None:
        bundle = kata.bundle(name, *SLEEP, annotations=annotations)
        kata("--log-format", "json", "create", "--bundle", str(bundle), name)

    configured(kata, "[hypervisor.qemu]\ndefault_bridges = 2\nmemory_slots = 3\n")
    create("p", pod)
    first = told(kata, note)
    assert [(line["sandbox"], line["container"]) for line in first] == [("p", "p")] * 2
    create("m1", member)
    create("m2", member)
    assert len(told(kata, note)) == 2
    configured(kata, "[hypervisor.qemu]\ndefault_bridges = 2\n")
    create("m3", member)
    create("m4", member)
    changed = told(kata, note)[2:]
    assert [line["container"] for line in changed] == ["m3"]
    kata("start", "p")
    process = {"args": ["true"], "cwd": "/", "capabilities": {"bounding": ["CAP_OF_TOMORROW"]}}
    (kata.base / "process.json").write_text(json.dumps({**process, "env": ["PATH=/bin"]}))
    kata("--log-format", "json", "exec", "--process", str(kata.base / "process.json"), "p")
    (warned,) = told(kata, "CAP_OF_TOMORROW")
    refused = kata("--log-format", "json", "exec", "p", "/no/such/program", check=False)
    assert refused.returncode != 0
    (failed,) = [line for line in told(kata, "/no/such/program") if line["level"] == "error"]
    journal = kata("journal", "list", "-o", "json").stdout.splitlines()
    types = {record["seq"]: record["type"] for record in map(json.loads, journal)}
    named = [types[line["seq"]] for line in (first[0], changed[0], warned, failed)]
    assert named == ["create_sandbox", "create_container", "exec", "exec"]
    for name in ("m1", "m2", "m3", "m4", "p"):
        kata("delete", "--force", name)
