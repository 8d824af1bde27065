# SPDX-License-Identifier: Apache-2.0
"""Files, drop-ins, and every way in which one can be wrong: file, line, key, and what was expected."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.config import kata, layers
from kata_fsm.config.lines import line_at, lines_of
from kata_fsm.config.settings import SECTIONS, Qemu, Settings, create_timeout_s, hypervisor_settings, kernel_modules
from kata_fsm.errors import UsageError


def test_lines_of_keys_in_every_form_of_toml() -> None:
    text = (
        'top = 1 # [no.table]\n\n[ hypervisor . qemu ]\npath = """\n[inside]\nx = 1\n"""\n'
        "list = [\n  'a', # ]\n  \"]\",\n]\nlast = '''\n'''\n[\"agent\".kata]\na.b = { c = 1 }\n  d=2"
    )
    lines = lines_of(text)
    places = {".".join(path): line for path, line in lines.items()}
    assert places == {
        "top": 1,
        "hypervisor.qemu": 3,
        "hypervisor.qemu.path": 4,
        "hypervisor.qemu.list": 8,
        "hypervisor.qemu.last": 12,
        "agent.kata": 14,
        "agent.kata.a.b": 15,
        "agent.kata.d": 16,
    }
    assert line_at(lines, ("agent", "kata", "a", "b", "c")) == 15
    assert line_at(lines, ("nothing",)) == 0


def test_drop_ins_go_over_the_main_file_in_order(etc: Any) -> None:
    etc.write("[hypervisor.qemu]\ndefault_memory = 300\ndefault_vcpus = 1\nkernel_params = 'a'\n")
    etc.write("[hypervisor.qemu]\n\ndefault_memory = 400\n", "config.d/20-memory.toml")
    etc.write("[hypervisor.qemu]\ndefault_memory = 500\nkernel_params = 'b'\n", "config.d/10-first")
    etc.write("[", "config.d/.hidden")
    etc.write("[", "config.d/20-memory.toml~")
    found = etc.load()
    assert (found.qemu.default_memory, found.qemu.kernel_params) == (400, "b")
    directory = f"{etc.directory}/config.d"
    assert found.drop_ins == (f"{directory}/10-first", f"{directory}/20-memory.toml")
    assert str(found.origin_of("hypervisor.qemu.default_memory")) == f"{directory}/20-memory.toml:3"
    assert str(found.origin_of("hypervisor.qemu.default_vcpus")) == f"{etc.file}:3"
    assert str(found.origin_of("hypervisor.qemu.path")) == "default"


def test_a_link_has_drop_ins_at_both_ends(etc: Any) -> None:
    real = etc.write("[hypervisor.qemu]\ndefault_memory = 300\n", "share/configuration-qemu.toml")
    etc.write("[hypervisor.qemu]\ndefault_memory = 400\nkernel_params = 'real'\n", "share/config.d/a")
    etc.write("[hypervisor.qemu]\ndefault_memory = 500\n", "config.d/a")
    etc.file.symlink_to(real)
    found = etc.load()
    assert (found.origin, found.qemu.default_memory, found.qemu.kernel_params) == (str(real), 500, "real")


def test_a_broken_drop_in_is_fatal_and_named(etc: Any) -> None:
    etc.write("")
    etc.write("a = = 1\n", "config.d/bad")
    with pytest.raises(UsageError, match=r"config\.d/bad:1` is not TOML: Invalid value \(at line 1, column 5\)"):
        etc.load()


def test_the_first_file_of_the_search_order_wins(etc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = etc.write("", "etc.toml"), etc.write("", "usr.toml")
    monkeypatch.setattr(layers, "DEFAULT_PATHS", (str(first), str(second)))
    monkeypatch.delenv("KATA_CONF_FILE", raising=False)
    assert layers.find(None) == str(first)
    first.unlink()
    assert layers.find(None) == str(second)
    monkeypatch.setenv("KATA_CONF_FILE", str(etc.write("", "env.toml")))
    assert layers.find(None) == str(etc.directory / "env.toml")
    assert layers.find(str(second)) == str(second)
    with pytest.raises(UsageError, match="does not exist"):
        layers.find("/no/such/file")
    with pytest.raises(UsageError, match="is not a file"):
        layers.find(str(etc.directory))
    monkeypatch.delenv("KATA_CONF_FILE")
    second.unlink()
    assert layers.find(None) is None


QEMU = "[hypervisor.qemu]\n"
WRONG = {
    "a = = 1": "toml:1` is not TOML: Invalid value (at line 1, column 5)",
    "a = 1\nb = [1,\n2\n\n": "toml:3` is not TOML: Unclosed array (at end of document)",
    "a = 1\nb = '\udcff'": "toml:2` is not TOML: it is not UTF-8",
    QEMU + "default_memory = '2G'": ":2`: `hypervisor.qemu.default_memory`: expected `int`, got `str`",
    QEMU + "default_vcpus = nan": ":2`: `hypervisor.qemu.default_vcpus`: `nan` is no number of processors",
    QEMU + "path = {a = 1}": ":2`: `hypervisor.qemu.path`: expected `str`, got `table`",
    QEMU + "msize_9p.a = 1": ":2`: `hypervisor.qemu.msize_9p`: expected `int`, got `table`",
    "[runtime.enable_debug]\nx = 1": ":2`: `runtime.enable_debug`: expected `bool`, got `table`",
    "[runtime]\ninternetworking_model = 'x'": "invalid enum value 'x', legal are `macvtap`, `none`, `tcfilter`",
    QEMU
    + "[[hypervisor.qemu.guest_extension_images]]\nname = 'coco'": "guest_extension_images`: `[{'name': 'coco'}]` can",
    QEMU + "\nenable_debug = 1": ":3`: `hypervisor.qemu.enable_debug`: expected `bool`, got `int`",
    QEMU + "enable_annotations = ['a', 1]": ":2`: `hypervisor.qemu.enable_annotations[1]`: expected `str`, got `int`",
    QEMU + "enable_annotations = ['(']": ":2`: `hypervisor.qemu.enable_annotations`: `(` is no regular expression",
    QEMU + "msize_9p = 'x'": ":2`: `hypervisor.qemu.msize_9p`: expected `int`, got `str`",
    QEMU + "enable_iommu = 1": ":2`: `hypervisor.qemu.enable_iommu`: expected `bool`, got `int`",
    QEMU + "pflashes = [1]": ":2`: `hypervisor.qemu.pflashes`: expected `array of str`, got `array`",
    QEMU + "kernel = 'vmlinux'": ":2`: `hypervisor.qemu.kernel`: `vmlinux` is not an absolute path",
    QEMU + "kernel = '/no/such'": ":2`: `hypervisor.qemu.kernel`: `/no/such` does not exist",
    QEMU + "kernel = '/etc'": ":2`: `hypervisor.qemu.kernel`: `/etc` is not a file",
    QEMU + "path = '/etc/passwd'": ":2`: `hypervisor.qemu.path`: `/etc/passwd` is not executable",
    QEMU + "default_memory = 0": ":2`: `hypervisor.qemu.default_memory`: expected `int` >= 1",
    QEMU + "default_memory = 64": ":2`: `hypervisor.qemu.default_memory`: `64` MiB, legal is 128 to",
    QEMU + "machine_type = 'virt'": ":2`: `hypervisor.qemu.machine_type`: `virt` is not supported, `q35` and `microvm`",
    QEMU + "image = '/a'\ninitrd = '/b'": ":2`: `hypervisor.qemu.image`: `image` and `initrd` are both set",
    QEMU
    + "image = '/a'": ":2`: `hypervisor.qemu.image`: guest images on a disk are not supported, and there is no `/a`",
    QEMU + "confidential_guest = true": ":2`: `hypervisor.qemu.confidential_guest`: `true` cannot be had: confidential",
    QEMU + "guest_hook_path = '/h'": ":2`: `hypervisor.qemu.guest_hook_path`: `/h` cannot be had: hooks in the guest",
    QEMU + "virtio_fs_cache = 'some'": ":2`: `hypervisor.qemu.virtio_fs_cache`: invalid enum value 'some'",
    QEMU + "virtio_fs_queue_size = 100": ":2`: `hypervisor.qemu.virtio_fs_queue_size`: `100`, legal are powers of two",
    QEMU + "virtio_fs_extra_args = ['-o', 'source=/']": "`source=/` is not yours to choose",
    QEMU + "cpu_features = 'a b'": ":2`: `hypervisor.qemu.cpu_features`: `a b` is no list",
    QEMU + "machine_accelerators = 'a;b'": ":2`: `hypervisor.qemu.machine_accelerators`: `a;b` is no list",
    QEMU
    + "entropy_source = '/etc/passwd'": ":2`: `hypervisor.qemu.entropy_source`: `/etc/passwd` is not a character device",
    "[agent.kata]\nkernel_modules = ['-r x']": ":2`: `agent.kata.kernel_modules`: `-r x` is no module's name and",
    "[agent.kata]\ncreate_container_timeout = 0": ":2`: `agent.kata.create_container_timeout`: expected `int` >= 1",
    QEMU
    + "file_mem_backend = '/etc/passwd'": ":2`: `hypervisor.qemu.file_mem_backend`: `/etc/passwd` is not a directory",
    QEMU
    + "default_memory = 2048\ndefault_maxmemory = 1024": ":2`: `hypervisor.qemu.default_memory`: `default_memory` is "
    "`2048`, more than the `1024` of `default_maxmemory`",
    QEMU + "default_maxmemory = 128": ":2`: `hypervisor.qemu.default_maxmemory`: `default_memory` is `256`, more than",
    QEMU
    + "default_vcpus = 2.5\ndefault_maxvcpus = 2": ":2`: `hypervisor.qemu.default_vcpus`: `default_vcpus` is `2.5`",
    QEMU + "pcie_root_port = 33": ":2`: `hypervisor.qemu.pcie_root_port`: `33`, legal is up to 32",
    QEMU + "default_maxvcpus = -1": ":2`: `hypervisor.qemu.default_maxvcpus`: expected `int` >= 0",
    QEMU
    + "rx_rate_limiter_max_rate = 7": "`hypervisor.qemu.rx_rate_limiter_max_rate`: `7` bits per second, legal is 0 or",
    QEMU + "enable_hugepages = true\nfile_mem_backend = '/tmp'": "the guest's memory is of huge pages or a file",
    "[hypervisor.clh]\nconfidential_guest = true": ":2`: `hypervisor.clh.confidential_guest`: `true` cannot be had",
    QEMU + "hot_plug_vfio = 'root-port'\ncold_plug_vfio = 'bridge-port'": "not both",
    "[factory]\nenable_template = true\nvm_cache_number = 2": ":2`: `factory.enable_template`: `true` contradicts",
    "[runtime]\ndisable_new_netns = true\ninternetworking_model = 'tcfilter'": ":2`: `runtime.disable_new_netns`",
    "runtime = 1": ":1`: `runtime` is not a table",
    "[agent]\nkata = 1": ":2`: `agent.kata` is not a table",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_with_its_place(etc: Any, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        etc.load(text)
    assert str(caught.value).startswith((f"`{etc.file}:", f"configuration file `{etc.file}:"))
    assert WRONG[text] in str(caught.value)


def test_what_reaches_into_the_machine_the_share_and_the_agent(etc: Any) -> None:
    found = etc.load(
        QEMU
        + "cpu_features = 'pmu=off'\nvirtio_fs_cache = 'metadata'\nvirtio_fs_extra_args = ['--announce-submounts', '-d']\n"
        "[agent.kata]\nkernel_modules = ['dummy numdummies=3', 'veth']\ncreate_container_timeout = 90\n"
        "[runtime]\ncreate_container_timeout = 1200\n"
    )
    made = hypervisor_settings(found)
    assert (made["cpu_features"], made["virtiofsd_cache"], made["virtiofsd_arguments"]) == ("pmu=off", "auto", ["-d"])
    assert made["kernel_params"] == ["agent.create_container_timeout=120"]
    assert create_timeout_s(found) == 120
    assert kernel_modules(found) == [
        {"name": "dummy", "parameters": ["numdummies=3"]},
        {"name": "veth", "parameters": []},
    ]
    assert [warning.partition("`: ")[2] for warning in found.warnings] == [
        "`hypervisor.qemu.virtio_fs_cache`: `metadata` is taken for `auto`",
        "`runtime.create_container_timeout`: `1200` is taken for `120`",
    ]


def test_an_initrd_larger_than_the_memory_is_refused(etc: Any) -> None:
    path = etc.there("initrd")
    os.truncate(path, 200 << 20)
    text = f"{QEMU}initrd = '{path}'\ndefault_memory = "
    with pytest.raises(UsageError, match=r"toml:3`.*`200` MiB do not hold the initrd `.*` of 200 MiB"):
        etc.load(text + "200")
    assert etc.load(text + "201").qemu.default_memory == 201


def test_unknown_keys_and_sections_warn_with_what_was_meant(etc: Any) -> None:
    found = etc.load(
        "[hypervisor.qemu]\ndefault_memroy = 1\nenable_iomu = true\nzzz = 1\n"
        "[runtimes]\nx = 1\n[agent.kata]\nenable_debg = 1\n[hypervisor.qmeu]\npath = '/x'\n[runtime.foo]\nx = 1\n"
        "[hypervisor.qemu.factory]\nenable_templat = true\n"
    )
    assert [warning.partition("toml")[2] for warning in found.warnings] == [
        ":2`: `hypervisor.qemu.default_memroy` is not known, did you mean `default_memory`",
        ":3`: `hypervisor.qemu.enable_iomu` is not known, did you mean `enable_iommu`",
        ":4`: `hypervisor.qemu.zzz` is not known",
        ":14`: `hypervisor.qemu.factory.enable_templat` is not known, did you mean `enable_template`",
        ":10`: `hypervisor.qmeu.path` is not known, did you mean `[hypervisor.qemu]`",
        ":6`: `runtimes.x` is not known, did you mean `[runtime]`",
        ":8`: `agent.kata.enable_debg` is not known, did you mean `enable_debug`",
        ":12`: `runtime.foo.x` is not known",
    ]


def test_what_has_no_effect_is_noted_unless_it_is_a_default(etc: Any) -> None:
    found = etc.load("[hypervisor.qemu]\nmsize_9p = 8192\nuse_vsock = true\nshared_fs = 'virtio-9p'\n")
    assert [warning.partition("toml")[2] for warning in found.warnings] == [
        ":3`: `hypervisor.qemu.use_vsock` has no effect here because the agent is reached through a virtio-serial port",
        ":4`: `hypervisor.qemu.shared_fs` has no effect here because directories reach the guest by virtio-fs",
    ]
    assert [one.key.rpartition(".")[2] for one in found.ignored] == ["msize_9p", "use_vsock", "shared_fs"]


def _value(value: Any) -> str:
    from kata_fsm.config.document import toml_value

    return toml_value(value)


def test_every_key_of_kata_with_its_default_loads_without_a_word(etc: Any) -> None:
    lines = []
    for section in ("hypervisor.qemu", "agent.kata", "runtime", "factory", *kata.OTHER):
        lines.append(f"[{section}]")
        for name, known in kata.keys_of(section).items():
            lines.append(f"{name} = {_value(known.silent[0])}")
    assert len(lines) > 145
    found = etc.load("\n".join(lines))
    assert (found.warnings, found.qemu) == ((), Qemu())


@pytest.mark.parametrize("section", [f"hypervisor.{name}" for name in kata.HYPERVISORS[1:]])
def test_a_file_for_another_vmm_loads_and_says_so(etc: Any, section: str) -> None:
    keys = {name: known.silent[0] for name, known in kata.HYPERVISOR.items()}
    text = f"[{section}]\n" + "\n".join(f"{name} = {_value(value)}" for name, value in keys.items())
    found = etc.load(f"{text}\npath = '/no/such'\ndefault_memory = 2048\nimage = '/x'\n")
    assert found.qemu == Qemu()
    (warning,) = found.warnings
    assert warning.endswith(f"`[{section}]` has no effect here because no VMM but QEMU is used")


def test_no_key_is_both_honoured_and_noted() -> None:
    for path, type_ in SECTIONS.items():
        assert not set(type_.__struct_fields__) & set(kata.keys_of(".".join(path)))


# The shapes of the files that Kata ships, in words of our own: the same sections and keys, and paths that exist.
SHAPES = {
    "of 1.13": """
        [hypervisor.qemu]
        path = "{qemu}"
        kernel = "{kernel}"
        image = "{image}"
        machine_type = "pc"
        enable_annotations = [".*"]
        valid_hypervisor_paths = ["{qemu}"]
        kernel_params = ""
        firmware = ""
        machine_accelerators=""
        cpu_features="pmu=off"
        default_vcpus = 1
        default_maxvcpus = 0
        default_bridges = 1
        default_memory = 2048
        disable_block_device_use = false
        shared_fs = "virtio-fs"
        virtio_fs_daemon = "{daemon}"
        valid_virtio_fs_daemon_paths = ["{daemon}"]
        virtio_fs_cache_size = 0
        virtio_fs_extra_args = []
        virtio_fs_cache = "auto"
        block_device_driver = "virtio-scsi"
        enable_iothreads = false
        enable_vhost_user_store = false
        vhost_user_store_path = "/var/run/kata-containers/vhost-user"
        valid_file_mem_backends = [""]
        [factory]
        [proxy.kata]
        path = "/usr/libexec/kata-containers/kata-proxy"
        [shim.kata]
        path = "/usr/libexec/kata-containers/kata-shim"
        [agent.kata]
        kernel_modules=[]
        [netmon]
        path = "/usr/libexec/kata-containers/kata-netmon"
        [runtime]
        internetworking_model="tcfilter"
        disable_guest_seccomp=true
        sandbox_cgroup_only=false
        experimental=[]
    """,
    "of today": """
        [hypervisor.qemu]
        path = "{qemu}"
        kernel = "{kernel}"
        image = "{image}"
        rootfs_type = "ext4"
        machine_type = "q35"
        enable_annotations = ["enable_iommu", "virtio_fs_extra_args", "kernel_params"]
        valid_hypervisor_paths = ["{qemu}"]
        seccompsandbox = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"
        cpu_features = "pmu=off"
        default_vcpus = 1.0
        default_maxvcpus = 0
        default_memory = 2048
        default_maxmemory = 0
        disable_block_device_use = false
        shared_fs = "virtio-fs"
        virtio_fs_daemon = "{daemon}"
        valid_virtio_fs_daemon_paths = ["{daemon}"]
        virtio_fs_queue_size = 1024
        virtio_fs_extra_args = ["--thread-pool-size=1", "--announce-submounts"]
        virtio_fs_cache = "auto"
        block_device_aio = "io_uring"
        hot_plug_vfio = "no-port"
        cold_plug_vfio = "no-port"
        pcie_root_port = 0
        valid_entropy_sources = ["/dev/urandom", "/dev/random", ""]
        disable_selinux = false
        disable_guest_selinux = true
        [factory]
        vm_cache_endpoint = "/var/run/kata-containers/cache.sock"
        [agent.kata]
        kernel_modules = []
        dial_timeout = 45
        cdh_api_timeout = 50
        [runtime]
        internetworking_model = "tcfilter"
        disable_guest_seccomp = true
        sandbox_cgroup_only = true
        static_sandbox_resource_mgmt = false
        vfio_mode = "guest-kernel"
        disable_guest_empty_dir = false
        experimental = []
        create_container_timeout = 60
        dan_conf = "/run/kata-containers/dans"
        kubelet_root_dir = "/var/lib/kubelet"
    """,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_configuration_of_kata_loads(etc: Any, shape: str) -> None:
    names = ("qemu", "kernel", "image", "daemon")
    paths = {name: etc.there(name) for name in names}
    text = SHAPES[shape].replace("{", "{{").replace("}", "}}")
    for name in names:
        text = text.replace("{{" + name + "}}", paths[name])
    found = etc.load(text)
    assert (found.qemu.path, found.qemu.virtio_fs_daemon, found.qemu.kernel) == (paths["qemu"], paths["daemon"], "")
    assert hypervisor_settings(found)["memory_mib"] == 2048
    assert found.runtime.disable_guest_seccomp
    said = [re.findall(r"`([^`]*)`", warning)[1] for warning in found.warnings]
    machine = ["hypervisor.qemu.machine_type"] if shape == "of 1.13" else []
    assert said == [*machine, "hypervisor.qemu.image"]


def test_without_any_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kata_fsm.config.load import load

    monkeypatch.setattr(layers, "DEFAULT_PATHS", (str(tmp_path / "none"),))
    monkeypatch.delenv("KATA_CONF_FILE", raising=False)
    assert load(None) == Settings()
