# SPDX-License-Identifier: Apache-2.0
"""Goal: keys of the configuration file that reach into a sandbox are in force in a real one."""

from __future__ import annotations

import json
from pathlib import Path

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
    created = next(record for record in kata.story("c2") if "create_sandbox" in json.dumps(record))
    assert "virtiofsd_cache" in json.dumps(created)
    kata("delete", "--force", "c2")
