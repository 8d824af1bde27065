# SPDX-License-Identifier: Apache-2.0
"""Kata's configuration keys that this runtime does not honour, each with what is said about it.

Names and defaults are those of Kata 1.13 and of its present runtimes, in Go and in Rust. A value that is one of Kata's own
defaults asks for nothing and is passed over in silence; any other is noted with the reason, or refused where it asks for a
protection that would silently be missing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

HYPERVISORS = ("qemu", "clh", "firecracker", "acrn", "stratovirt", "dragonball", "openvmm", "remote")
"""Every `[hypervisor.X]` that Kata knows. Only the first one exists here."""

SECTIONS = (
    *(f"hypervisor.{name}" for name in HYPERVISORS),
    *(f"hypervisor.{name}.factory" for name in HYPERVISORS),
    *("agent.kata", "agent.kata.mem_agent", "proxy.kata", "shim.kata", "netmon", "runtime", "factory"),
)


class Known(NamedTuple):
    """A key: the values with nothing to say about them (the first one gives its type), and why it has no effect."""

    silent: tuple[Any, ...]
    why: str
    unsafe: bool = False

    @property
    def type_name(self) -> str:
        """The key's type in the words of an error message."""
        words = {bool: "bool", int: "int", str: "str", list: "array of str", tuple: "array of table"}
        return words[type(self.silent[0])]

    def fits(self, value: object) -> bool:
        """Whether the value has the key's type; a number may have a fraction, an array holds strings, or else tables."""
        kind = type(self.silent[0])
        if kind in (list, tuple):
            return isinstance(value, list) and all(isinstance(one, str if kind is list else dict) for one in value)
        return isinstance(value, kind if kind is not int else (int, float)) and isinstance(value, bool) == (
            kind is bool
        )


def _keys(why: str, unsafe: bool = False, **defaults: Any) -> dict[str, Known]:
    return {
        name: Known(value if isinstance(value, tuple) else (value,), why, unsafe) for name, value in defaults.items()
    }


_CONFIDENTIAL = "confidential guests are not built: the host could read the guest's memory"
_DISK = "guest images on a disk are not supported, the guest's root is an initrd"
_GROW = "a sandbox keeps the memory and processors that it booted with"
_BLOCK = "block devices are those that a container names, each a virtio-blk disk with the host's sector size"
_BLOCK_RATES = "QEMU limits no input and output of disks"
_NO_RATES = "QEMU limits no traffic; `rx_rate_limiter_max_rate` and `tx_rate_limiter_max_rate` do"
_VFIO = "of the host's devices only block devices are passed to guests"

HYPERVISOR: dict[str, Known] = {
    **_keys("no VMM but QEMU is used", ctlpath="", valid_ctlpaths=[], jailer_path="", valid_jailer_paths=[]),
    **_keys("no VMM but QEMU is used", disable_seccomp=False, remote_hypervisor_timeout=600),
    **_keys("no VMM but QEMU is used", remote_hypervisor_socket=("", "/run/peerpod/hypervisor.sock")),
    **_keys("the guest's kernel is started directly", firmware="", firmware_volume="", pflashes=[]),
    **_keys(_GROW, memory_slots=10, memory_offset=0),
    **_keys(_GROW, enable_virtio_mem=False, enable_numa=False, numa_mapping=[]),
    **_keys("the guest has no swap", enable_guest_swap=False, guest_swap_path=("/run/kata-containers/swap", "")),
    **_keys("the guest has no swap", guest_swap_size_percent=100, guest_swap_create_threshold_secs=60),
    **_keys("devices are plugged into PCI Express root ports", default_bridges=1),
    **_keys("a root file system is always shared as a directory", disable_block_device_use=(False, True)),
    **_keys(
        _BLOCK,
        block_device_driver=("virtio-scsi", "virtio-blk", "virtio-mmio", "nvdimm", "virtio-blk-ccw"),
        block_device_logical_sector_size=0,
        block_device_physical_sector_size=0,
        block_device_num_queues=1,
        block_device_queue_size=128,
        queue_size=128,
        num_queues=1,
        enable_iothreads=False,
        indep_iothreads=0,
        enable_vhost_user_store=False,
        vhost_user_store_path=("/var/run/kata-containers/vhost-user", ""),
        valid_vhost_user_store_paths=(["/var/run/kata-containers/vhost-user"], []),
        vhost_user_reconnect_timeout_sec=0,
    ),
    **_keys(
        _BLOCK_RATES,
        disk_rate_limiter_bw_max_rate=0,
        disk_rate_limiter_bw_one_time_burst=0,
        disk_rate_limiter_ops_max_rate=0,
        disk_rate_limiter_ops_one_time_burst=0,
    ),
    **_keys("directories reach the guest by virtio-fs", shared_fs="virtio-fs", msize_9p=8192),
    **_keys("the share has no window in the guest's memory (DAX)", virtio_fs_cache_size=0),
    **_keys("nothing keeps the host from swapping the guest's memory out, but huge pages", enable_swap=(False, True)),
    **_keys("huge pages are those of hugetlbfs", hugepage_type=("hugetlbfs", "")),
    **_keys(
        "memory that the guest frees is given back, unless `enable_mem_prealloc` or `enable_hugepages` keeps it",
        reclaim_guest_freed_memory=(False, True),
    ),
    **_keys(_VFIO, enable_iommu=False, enable_iommu_platform=False, hotplug_vfio_on_root_bus=False),
    **_keys(_VFIO, hot_plug_vfio="no-port", cold_plug_vfio="no-port", pcie_switch_port=0),
    **_keys(_VFIO, default_gpus=0, default_gpu_model=""),
    **_keys(_DISK, disable_image_nvdimm=(False, True), rootfs_type=("ext4", "xfs", "erofs"), vm_rootfs_driver=""),
    **_keys("a NIC has as many queues as the guest has processors", network_queues=1),
    **_keys(_NO_RATES, net_rate_limiter_bw_max_rate=0, net_rate_limiter_bw_one_time_burst=0),
    **_keys(_NO_RATES, net_rate_limiter_ops_max_rate=0, net_rate_limiter_ops_one_time_burst=0),
    **_keys("hooks in the guest are not run", unsafe=True, guest_hook_path=""),
    **_keys("the agent is reached through a virtio-serial port", use_vsock=False),
    **_keys("whether guests run on KVM is tried, not guessed", disable_nesting_checks=False),
    **_keys("the machine has one monitor, ours; its command line is in the journal", extra_monitor_socket=""),
    **_keys("the guest's memory is not dumped", guest_memory_dump_path="", guest_memory_dump_paging=False),
    **_keys("the console is always a serial port", use_legacy_serial=False),
    **_keys("QEMU's own messages are always kept", hypervisor_loglevel=1, log_level=("info", "")),
    **_keys("the sandbox around QEMU is on, unless `seccompsandbox` says off", seccomp_sandbox=""),
    **_keys(
        "what a processor offers to guests is for `cpu_features` to say", disable_nested_virtualization=(False, True)
    ),
    **_keys("QEMU runs as root", unsafe=True, rootless=False),
    **_keys("processes keep the label that they were started with", disable_selinux=(False, True)),
    **_keys("the guest has no SELinux", unsafe=True, disable_guest_selinux=True),
    **_keys(
        _CONFIDENTIAL,
        unsafe=True,
        confidential_guest=False,
        sev_snp_guest=False,
        sev_guest_policy=0,
        snp_guest_policy=(0, 196608),
        snp_id_block="",
        snp_id_auth="",
        tdx_quote_generation_service_socket_port=(0, 4050),
        kernel_verity_params="",
        initdata="",
        guest_extension_images=((), []),
        root_hash="",
    ),
    **_keys(_CONFIDENTIAL, measurement_algo=("sha512", "sha384", "sha256", "")),
    **_keys(
        "what a machine takes beside its guest is measured; `runtime.host_memory_overhead` leaves it room on the host",
        overhead_vcpus=0,
        overhead_memory=0,
    ),
}

_FIXED_TIMES = "the limits of calls to the agent are fixed"

AGENT: dict[str, Known] = {
    **_keys("the agent is not traced", enable_tracing=False),
    **_keys("the agent is not traced", trace_mode=("dynamic", "static"), trace_type=("isolated", "collated")),
    **_keys("there is no debug console; `kata-fsm exec` reaches a container", debug_console_enabled=False),
    **_keys(_FIXED_TIMES, cdh_api_timeout=50, launch_process_timeout=0, dial_timeout_ms=10, reconnect_timeout_ms=3000),
    **_keys(_FIXED_TIMES, cdh_api_timeout_ms=50000),
    **_keys("`enable_debug` has it log its every step", log_level=("info", "")),
    **_keys("pipes of processes have the sizes that are fastest", container_pipe_size=0),
    **_keys(_VFIO, visible_cdi_devices=False),
}

RUNTIME: dict[str, Known] = {
    **_keys("what happened is in the journal: `kata-fsm replay timings`", enable_tracing=False),
    **_keys("what happened is in the journal", jaeger_endpoint="", jaeger_user="", jaeger_password=""),
    **_keys("QEMU always runs in a network namespace of its own or the pod's", disable_new_netns=False),
    **_keys(
        "a sandbox's processes are always in the engine's cgroup, as with `true`", sandbox_cgroup_only=(False, True)
    ),
    **_keys("there are no experimental features", experimental=[]),
    **_keys("what containers share is what their configuration says", enable_agent_pidns=False),
    **_keys(_VFIO, vfio_mode=("guest-kernel", "vfio")),
    **_keys("the guest has no SELinux", unsafe=True, guest_selinux_label=""),
    **_keys("directories are shared only as containers ask for them", sandbox_bind_mounts=[], shared_mounts=[]),
    **_keys("virtual processors are threads that the host's scheduler places", enable_vcpus_pinning=False),
    **_keys(_GROW, static_sandbox_resource_mgmt=(False, True)),
    **_keys("directories of the host reach the guest by virtio-fs", disable_guest_empty_dir=(True, False)),
    **_keys("volumes are not encrypted", unsafe=True, emptydir_mode=("shared-fs", "block-plain")),
    **_keys("devices of a directly attachable network are not read", dan_conf=("/run/kata-containers/dans", "")),
    **_keys("Python's own profilers serve", enable_pprof=False),
    **_keys("images are not pulled inside the guest", unsafe=True, experimental_force_guest_pull=False),
    **_keys("the kubelet is not asked", pod_resource_api_sock="", kubelet_root_dir=("/var/lib/kubelet", "")),
    **_keys("there is one runtime, one hypervisor, one agent", name=("virt_container", ""), agent_name=("kata", "")),
    **_keys("there is one runtime, one hypervisor, one agent", hypervisor_name=("qemu", "")),
    **_keys("every verb takes --debug", log_level=("info", "")),
    **_keys("descriptors are not passed to the guest", use_passfd_io=(False, True), passfd_listener_port=1027),
    **_keys("what is left of a failure is in the journal and the logs, and is always kept", keep_abnormal=False),
}

FACTORY: dict[str, Known] = {
    **_keys("templates are not built yet: each sandbox boots", enable_template=False),
    **_keys("templates are not built yet: each sandbox boots", template_path=("/run/vc/vm/template", "")),
    **_keys("there is no cache of virtual machines yet", vm_cache_number=0),
    **_keys(
        "there is no cache of virtual machines yet",
        vm_cache_endpoint=("/var/run/kata-containers/cache.sock", ""),
    ),
}

_PROCESS = "the shim, the supervisor and the agent's connection are parts of `kata-fsm`"

OTHER: dict[str, dict[str, Known]] = {
    "agent.kata.mem_agent": _keys(
        "the guest's memory is in the care of its kernel, and what is freed is given back",
        mem_agent_enable=False,
        memcg_disable=False,
        memcg_swap=False,
        memcg_swappiness_max=50,
        memcg_period_secs=600,
        memcg_period_psi_percent_limit=1,
        memcg_eviction_psi_percent_limit=1,
        memcg_eviction_run_aging_count_min=3,
        compact_disable=False,
        compact_period_secs=600,
        compact_period_psi_percent_limit=1,
        compact_psi_percent_limit=5,
        compact_sec_max=300,
        compact_order=9,
        compact_threshold=1024,
        compact_force_times=(9223372036854775807,),
    ),
    "proxy.kata": _keys(_PROCESS, path=("/usr/libexec/kata-containers/kata-proxy", ""), enable_debug=False),
    "shim.kata": _keys(
        _PROCESS, path=("/usr/libexec/kata-containers/kata-shim", ""), enable_debug=False, enable_tracing=False
    ),
    "netmon": _keys(
        "the supervisor watches the network itself",
        path=("/usr/libexec/kata-containers/kata-netmon", ""),
        enable_debug=False,
    ),
}


def keys_of(section: str) -> dict[str, Known]:
    """The keys of a section that are known and not honoured; empty for an unknown section."""
    if section.startswith("hypervisor."):
        return (FACTORY if section.endswith(".factory") else HYPERVISOR) if section in SECTIONS else {}
    return {"agent.kata": AGENT, "runtime": RUNTIME, "factory": FACTORY, **OTHER}.get(section, {})
