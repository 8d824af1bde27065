# SPDX-License-Identifier: Apache-2.0
"""What a container's annotations may change, and which gate refuses what."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from kata_fsm.config.settings import create_timeout_s, hypervisor_settings, kernel_modules
from kata_fsm.errors import SpecError, UsageError

HYPERVISOR = "config__hypervisor__"


def gate(*patterns: str, more: str = "") -> str:
    listed = ", ".join(f"'{pattern}'" for pattern in patterns)
    return f"[hypervisor.qemu]\nenable_annotations = [{listed}]\n{more}"


def test_what_is_enabled_takes_the_place_of_the_files(etc: Any) -> None:
    text = gate("default_.*", "kernel_params", more="kernel_params = 'a'\n")
    given = {"default_memory": "512", "default_vcpus": "1.5", "kernel_params": "b c"}
    found = etc.load(text, **{HYPERVISOR + name: value for name, value in given.items()})
    assert (found.qemu.default_memory, found.qemu.default_vcpus, found.qemu.kernel_params) == (512, 1.5, "a b c")
    prefix = "io.katacontainers.config.hypervisor."
    assert found.annotations == {prefix + name: value for name, value in given.items()}
    assert str(found.origin_of("hypervisor.qemu.default_memory")) == prefix + "default_memory"


@pytest.mark.parametrize("patterns", [(), ("default",), ("memory",), ("efault_memory",), ("default_memory ",)])
def test_a_pattern_has_to_match_the_whole_name(etc: Any, patterns: tuple[str, ...]) -> None:
    """Kata searches: there `memory` enables `default_memory`."""
    with pytest.raises(SpecError) as caught:
        etc.load(gate(*patterns), config__hypervisor__default_memory="512")
    assert str(caught.value) == "annotation io.katacontainers.config.hypervisor.default_memory is not enabled"
    assert caught.value.hint is not None
    assert f"the gate is `enable_annotations` of `[hypervisor.qemu]` in `{etc.file}`" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "gate_name"),
    [
        ("path", "valid_hypervisor_paths"),
        ("virtio_fs_daemon", "valid_virtio_fs_daemon_paths"),
        ("kernel", "valid_kernel_paths"),
        ("initrd", "valid_initrd_paths"),
    ],
)
def test_a_path_has_to_be_found_by_its_list(etc: Any, key: str, gate_name: str) -> None:
    allowed, other = etc.there("qemu-1"), etc.there("other")
    text = gate(".*", more=f"{gate_name} = ['{etc.directory}/qemu-*']\n")
    assert getattr(etc.load(text, **{HYPERVISOR + key: allowed}).qemu, key) == allowed
    for path in (
        other,
        f"{etc.directory}/qemu-1/../other",
        f"{etc.directory}/./qemu-1",
        f"{etc.directory}/qemu-2",
        "qemu-1",
    ):
        with pytest.raises(SpecError, match="is not allowed") as caught:
            etc.load(text, **{HYPERVISOR + key: path})
        assert caught.value.hint is not None
        assert gate_name in caught.value.hint
    with pytest.raises(SpecError, match="is not allowed"):
        etc.load(gate(".*"), **{HYPERVISOR + key: allowed})


@pytest.mark.parametrize(
    "key",
    [
        "enable_annotations",
        "valid_file_mem_backends",
        "virtio_fs_extra_args",
        "seccompsandbox",
        "accel",
        "cpu",
        "guest_directory",
        "image",
    ],
)
def test_no_pattern_enables_what_no_annotation_may_change(etc: Any, key: str) -> None:
    with pytest.raises(SpecError, match="is not enabled"):
        etc.load(gate(".*"), **{HYPERVISOR + key: "off"})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("config_path", "/tmp/mine.toml", "a container does not choose its host's configuration"),
        ("config__agent__policy", "cGFja2FnZQ==", "the agent enforces no policy"),
        ("config__hypervisor__rootless", "true", "QEMU runs as root"),
        ("config__hypervisor__cc_init_data", "x", "confidential guests are not built"),
        ("config__runtime__experimental_force_guest_pull", "true", "images are not pulled inside the guest"),
        ("config__hypervisor__image_hash", "00", "there is no such file here"),
        ("config__hypervisor__default_memory", "2G", "`2G` is not a number"),
        ("config__runtime__disable_guest_seccomp", "yes", "`yes` is none of `true`, `false`"),
    ],
)
def test_what_must_not_be_ignored_is_refused(etc: Any, name: str, value: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        etc.load(gate(".*"), **{name: value})


def test_modules_of_the_guest_are_gated(etc: Any) -> None:
    given = {"config__agent__kernel_modules": "dummy numdummies=3; veth;"}
    with pytest.raises(SpecError, match="kernel_modules is not enabled"):
        etc.load(gate("kernel_modules"), **given)
    found = etc.load(gate(r"agent\.kernel_modules"), **given)
    assert [module["name"] for module in kernel_modules(found)] == ["dummy", "veth"]
    assert found.origin_of("agent.kata.kernel_modules").kind == "annotation"
    with pytest.raises(UsageError, match="`-r x` is no module's name"):
        etc.load(gate(".*"), config__agent__kernel_modules="-r x")


def test_where_the_memory_comes_from_is_gated(etc: Any) -> None:
    here = str(etc.directory)
    text = gate(
        "enable_mem_prealloc", "file_mem_backend", "pcie_root_port", more=f"valid_file_mem_backends = ['{here}']\n"
    )
    given = {
        HYPERVISOR + "file_mem_backend": here,
        HYPERVISOR + "enable_mem_prealloc": "true",
        HYPERVISOR + "pcie_root_port": "9",
    }
    found = hypervisor_settings(etc.load(text, **given))
    assert (found["memory_directory"], found["prealloc"], found["root_ports"]) == (here, True, 9)
    with pytest.raises(SpecError, match="`/tmp` is not allowed"):
        etc.load(text, **{HYPERVISOR + "file_mem_backend": "/tmp"})
    with pytest.raises(SpecError, match="is not enabled"):
        etc.load(text, **{HYPERVISOR + "enable_hugepages": "true"})


def test_settings_of_the_runtime_are_gated_too(etc: Any) -> None:
    name = {"config__runtime__disable_guest_seccomp": "true"}
    with pytest.raises(SpecError, match="is not enabled"):
        etc.load(gate("disable_guest_seccomp"), **name)
    assert etc.load(gate(r"runtime\.disable_guest_seccomp"), **name).runtime.disable_guest_seccomp


def test_the_processor_the_entropy_and_the_limit_of_a_creation(etc: Any) -> None:
    given = {
        "config__hypervisor__cpu_features": "pmu=off",
        "config__hypervisor__entropy_source": "/dev/random",
        "config__hypervisor__virtio_fs_cache": "none",
        "config__runtime__create_container_timeout": "90",
    }
    with pytest.raises(SpecError, match="`/dev/random` is not allowed"):
        etc.load(gate(".*"), **given)
    found = etc.load(gate(".*", more="valid_entropy_sources = ['/dev/*random']\n"), **given)
    assert (found.qemu.cpu_features, found.qemu.entropy_source, found.qemu.virtio_fs_cache) == (
        "pmu=off",
        "/dev/random",
        "none",
    )
    assert create_timeout_s(found) == 90
    with pytest.raises(SpecError, match="virtio_fs_extra_args is not enabled"):
        etc.load(gate(".*"), config__hypervisor__virtio_fs_extra_args='["-d"]')


def test_what_has_no_effect_is_noted(etc: Any) -> None:
    given = {
        "config__hypervisor__memory_slots": "4",
        "config__hypervisor__frobnicate": "4",
        "config__runtime__sandbox_cgroup_only": "true",
        "config__agent__enable_tracing": "true",
        "container__resource__swappiness": "60",
        "pkg__oci__bundle_path": "/b",
    }
    found = etc.load(gate(".*"), **given)
    assert found.annotations == {}
    assert [warning.split("`")[1].rpartition(".")[2] for warning in found.warnings] == [
        "enable_tracing",
        "frobnicate",
        "memory_slots",
        "sandbox_cgroup_only",
        "swappiness",
    ]
    assert "because it is not known" in found.warnings[1]


def test_a_hash_has_to_be_that_of_the_file(etc: Any) -> None:
    kernel = etc.there("kernel", b"the kernel")
    good = hashlib.sha512(b"the kernel").hexdigest()
    text = gate(".*", more=f"kernel = '{kernel}'\n")
    assert etc.load(text, config__hypervisor__kernel_hash=good).annotations
    with pytest.raises(SpecError, match="Invalid hash for"):
        etc.load(text, config__hypervisor__kernel_hash=good[:-1] + "z")
    etc.there("other", b"another")
    both = {"config__hypervisor__kernel": f"{etc.directory}/other", "config__hypervisor__kernel_hash": good}
    with pytest.raises(SpecError, match="Invalid hash for"):
        etc.load(text + f"valid_kernel_paths = ['{etc.directory}/*']\n", **both)


def test_an_accepted_value_is_judged_like_one_of_a_file(etc: Any) -> None:
    from kata_fsm.errors import UsageError

    with pytest.raises(UsageError, match=r"^`io\.katacontainers\.config\.hypervisor\.default_memory`: .* legal is 128"):
        etc.load(gate(".*"), config__hypervisor__default_memory="64")
