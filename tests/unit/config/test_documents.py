# SPDX-License-Identifier: Apache-2.0
"""What `configs/` and `docs/configuration.md` say is what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from kata_fsm.config import document
from kata_fsm.config.load import load
from kata_fsm.config.settings import BUILT_IN, Settings, hypervisor_settings
from kata_fsm.effects.hypervisor.settings import from_dict
from kata_fsm.limits import AGENT_CALL_TIMEOUT_S, BOOT_TIMEOUT_S, HOST_MEMORY_OVERHEAD_MIB

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", document.files())
def test_the_generated_files_are_up_to_date(path: str) -> None:
    """`python -m kata_fsm.config.document` writes them."""
    assert (ROOT / path).read_text(encoding="utf-8") == document.files()[path]


def test_every_key_is_described() -> None:
    assert [key for key, text in document.descriptions().items() if len(text) < 20] == []


@pytest.mark.parametrize("variant", document.VARIANTS)
def test_the_values_in_the_comments_are_what_the_handler_takes(variant: str, tmp_path: Path) -> None:
    """Every line uncommented comes to the same machine as no file at all, but for what the variant sets."""
    shipped = (ROOT / "configs" / variant).read_text(encoding="utf-8")
    lines = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in shipped.splitlines()]
    everything = tmp_path / "all.toml"
    everything.write_text("\n".join(lines[1:]))
    document_ = tomli.loads(everything.read_text())
    assert len(document_["hypervisor"]["qemu"]) > 15
    names = {"machine_type": "machine"}
    sets = {
        names.get(key.rpartition(".")[2], key.rpartition(".")[2]): value
        for key, value in document.VARIANTS[variant][2].items()
    }
    plain = from_dict({**hypervisor_settings(Settings()), **sets})
    assert from_dict(hypervisor_settings(load(str(everything)))) == plain
    assert from_dict(hypervisor_settings(load(str(ROOT / "configs" / variant)))) == plain
    assert load(str(everything)).warnings == ()


def test_built_in_values_are_those_of_the_handlers() -> None:
    plain = from_dict({})
    assert {
        "hypervisor.qemu.path": plain.qemu,
        "hypervisor.qemu.machine_type": plain.machine,
        "hypervisor.qemu.default_memory": plain.memory_mib,
        "hypervisor.qemu.default_vcpus": plain.vcpus,
        "hypervisor.qemu.pcie_root_port": plain.root_ports,
        "hypervisor.qemu.block_device_aio": plain.disk_aio,
        "hypervisor.qemu.virtio_fs_daemon": plain.virtiofsd,
        "hypervisor.qemu.virtio_fs_cache": plain.virtiofsd_cache,
        "hypervisor.qemu.virtio_fs_queue_size": plain.share_queue_size,
        "hypervisor.qemu.entropy_source": plain.entropy_source,
        "hypervisor.qemu.seccompsandbox": "on" if plain.seccomp else "off",
        "agent.kata.dial_timeout": BOOT_TIMEOUT_S,
        "agent.kata.create_container_timeout": AGENT_CALL_TIMEOUT_S,
        "runtime.create_container_timeout": AGENT_CALL_TIMEOUT_S,
        "runtime.host_memory_overhead": HOST_MEMORY_OVERHEAD_MIB,
    } == BUILT_IN
