# SPDX-License-Identifier: Apache-2.0
"""Settings, image and QEMU's command line: pure, complete, and with errors that name the field."""

import json

import msgspec
import pytest

from kata_fsm import errors
from kata_fsm.effects.hypervisor import argv, host, image, settings, tsc
from kata_fsm.effects.hypervisor.settings import HypervisorSettings
from kata_fsm.world import Paths

IMAGE = image.Image("/img/vmlinux", "/img/initrd", image.Parameters(("quiet",), ("emu",), ("real",)), "6.1")


def values(line: list[str], option: str) -> list[str]:
    return [line[at + 1] for at, word in enumerate(line) if word == option]


def build(accel: str = "tcg", **changes: object) -> list[str]:
    return argv.build(HypervisorSettings(**changes), Paths("0123456789ab"), IMAGE, accel, "web,1")


def test_the_whole_command_line(monkeypatch):
    monkeypatch.setenv("KATA_FSM_RUN", "/r")
    monkeypatch.setenv("KATA_FSM_STATE", "/s,s")
    line = build()
    assert line[0] == "/usr/bin/qemu-system-x86_64"
    assert values(line, "-name") == ["sandbox-web,,1,debug-threads=on"]
    assert values(line, "-uuid") == ["6b617461-6673-8000-8000-0123456789ab"]
    assert values(line, "-m") == ["256"]
    assert values(line, "-object")[0] == "memory-backend-memfd,id=mem,size=256M,share=on"
    assert values(line, "-chardev") == [
        "file,id=console,path=/s,,s/logs/0123456789ab/console.log,append=on",
        "socket,id=agent,path=/r/sandboxes/0123456789ab/agent.sock,server=on,wait=off",
        "socket,id=qmp,path=/r/sandboxes/0123456789ab/qmp.sock,server=on,wait=off",
    ]
    assert values(line, "-sandbox") == [argv.SECCOMP]
    assert [device for device in values(line, "-device") if "root-port" in device] == [
        f"pcie-root-port,id=rp{number},chassis={number + 1},slot={number + 1}" for number in range(4)
    ]
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(line)
    assert argv.digest(line) == argv.digest(build())
    assert argv.digest(line) != argv.digest(build(vcpus=2))


def test_accelerators_differ_in_processor_and_kernel_parameters():
    emulated, real = build("tcg", kernel_params=("mine",)), build("kvm", kernel_params=("mine",))
    assert values(emulated, "-accel") == ["tcg,tb-size=128"]
    assert values(emulated, "-cpu") == ["max,la57=off"]
    assert values(emulated, "-append") == ["quiet emu mine"]
    assert values(real, "-accel") == ["kvm"]
    assert values(real, "-cpu") == ["host,pmu=off"]
    assert values(real, "-append") == ["quiet real mine"]
    assert values(build(cpu="qemu64"), "-cpu") == ["qemu64"]
    assert values(build(cpu_features="pmu=off,vmx=off"), "-cpu") == ["max,la57=off,pmu=off,vmx=off"]


def test_where_the_memory_comes_from():
    def memory(**changes: object) -> tuple[str, bool]:
        line = build(**changes)
        (balloon,) = (device for device in values(line, "-device") if "balloon" in device)
        return values(line, "-object")[0], "free-page-reporting=on" in balloon

    own = "memory-backend-memfd,id=mem,size=256M,share=on"
    assert memory() == (own, True)
    assert memory(prealloc=True) == (own + ",prealloc=on,prealloc-threads=1", False)
    assert memory(hugepages=True, vcpus=2) == (own + ",hugetlb=on,prealloc=on,prealloc-threads=2", False)
    file = "memory-backend-file,id=mem,size=256M,share=on,mem-path=/m,,m"
    assert memory(memory_directory="/m,m") == (file, True)
    assert memory(memory_directory="/m,m", prealloc=True) == (file + ",prealloc=on,prealloc-threads=1", False)


def test_further_options_of_machine_and_entropy():
    line = build(machine_options="graphics=off", entropy_source="/dev/random")
    assert values(line, "-machine") == ["q35,memory-backend=mem,vmport=off,graphics=off"]
    assert "rng-random,id=entropy,filename=/dev/random" in values(line, "-object")


def test_a_microvm_has_pci_express_and_is_told_its_clock() -> None:
    tuned = msgspec.structs.replace(IMAGE, parameters=image.Parameters(("quiet",), ("emu", "nolapic_timer"), ("real",)))
    settings_ = HypervisorSettings(machine="microvm")
    line = argv.build(settings_, Paths("0123456789ab"), tuned, "tcg", "web", tsc_khz=2445351)
    assert values(line, "-machine") == ["microvm,memory-backend=mem,pcie=on,rtc=on,isa-serial=on"]
    assert values(line, "-append") == ["quiet emu pcie_ports=native tsc_early_khz=2445351"]
    assert values(build("kvm", machine="microvm"), "-append") == ["quiet real pcie_ports=native"]
    assert values(build(), "-machine") == ["q35,memory-backend=mem,vmport=off"]


def test_the_speed_of_the_time_stamp_counter_is_steady() -> None:
    first, second = tsc.host_khz(), tsc.host_khz()
    assert first > 100_000
    assert abs(first - second) < first // 1000


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"memory_mib": 64}, r"`memory_mib` is `64`: legal is 128 to"),
        ({"vcpus": 0}, r"`vcpus` is `0`: legal is 1 to"),
        ({"qemu": "qemu"}, r"`qemu` is `qemu`: legal is an absolute path"),
        ({"accel": "xen"}, r"invalid enum value 'xen' - at `\$.accel`"),
        ({"memory": 1}, r"unknown field `memory`"),
        ({"memory_mib": "1"}, r"expected `int`, got `str` - at `\$.memory_mib`"),
        ({"kernel_params": ["a\nb"]}, r"legal is one line"),
    ],
)
def test_bad_settings_name_the_field(raw, message):
    with pytest.raises(errors.UsageError, match=message):
        settings.from_dict(raw)


def test_settings_survive_a_record():
    wanted = HypervisorSettings(memory_mib=512, kernel_params=("a", "b"))
    assert settings.from_dict(json.loads(msgspec.json.encode(wanted))) == wanted


def test_image_from_its_manifest(tmp_path):
    with pytest.raises(errors.EffectError, match=f"there is no guest image: `{tmp_path}/manifest.json`: No such file"):
        image.load(HypervisorSettings(image=str(tmp_path)))
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"parameters": []}')
    with pytest.raises(errors.EffectError, match=r"is not an image's manifest: .* at `\$.parameters`"):
        image.load(HypervisorSettings(image=str(tmp_path)))
    manifest.write_text('{"kernel": "6.1", "parameters": {"common": ["a"], "tcg": ["b"], "kvm": []}, "more": 1}')
    with pytest.raises(errors.EffectError, match=r"the guest's kernel `.*/vmlinux` cannot be read"):
        image.load(HypervisorSettings(image=str(tmp_path)))
    for name in ("vmlinux", "initrd", "own"):
        (tmp_path / name).touch()
    loaded = image.load(HypervisorSettings(image=str(tmp_path)))
    assert loaded == image.Image(f"{tmp_path}/vmlinux", f"{tmp_path}/initrd", image.Parameters(("a",), ("b",)), "6.1")
    own = image.load(HypervisorSettings(kernel=f"{tmp_path}/own", image_params=False))
    assert own == image.Image(f"{tmp_path}/own", "", image.Parameters())


def test_memory_is_refused_early():
    now = {"MemTotal": 1000, "MemAvailable": 300, "SwapTotal": 0, "SwapFree": 0}
    host.check_memory(HypervisorSettings(memory_mib=900), "kvm", now=now)
    with pytest.raises(
        errors.EffectError, match=r"the guest's `1001` MiB of memory are more than the host's `1000` MiB"
    ):
        host.check_memory(HypervisorSettings(memory_mib=1001), "kvm", now=now)
    with pytest.raises(errors.EffectError, match="takes `352` MiB to boot, `300` MiB are available"):
        host.check_memory(HypervisorSettings(memory_mib=900), "tcg", now=now)
    assert host.memory()["MemTotal"] > 0


def test_memory_of_a_sort_is_refused_early(tmp_path):
    now = {"MemTotal": 9000, "MemAvailable": 300, "Hugepagesize": 2, "HugePages_Free": 200, "HugePages_Rsvd": 100}
    with pytest.raises(errors.EffectError, match="takes `964` MiB to boot, `300` MiB are available"):
        host.check_memory(HypervisorSettings(memory_mib=900, prealloc=True), "kvm", now=now)
    host.check_memory(HypervisorSettings(memory_mib=200, hugepages=True), "kvm", now=now)
    with pytest.raises(
        errors.EffectError, match="huge pages: the guest's memory takes `101` of `2` MiB, `100` are free"
    ):
        host.check_memory(HypervisorSettings(memory_mib=201, hugepages=True), "kvm", now=now)
    with pytest.raises(errors.EffectError, match="the host has no huge pages"):
        host.check_memory(HypervisorSettings(hugepages=True), "kvm", now={**now, "Hugepagesize": 0})
    plenty = {**now, "MemTotal": 1 << 40, "MemAvailable": 1 << 40}
    host.check_memory(HypervisorSettings(memory_directory=str(tmp_path)), "kvm", now=plenty)
    with pytest.raises(errors.EffectError, match=r"MiB free, the guest's memory takes `16777216`"):
        host.check_memory(HypervisorSettings(memory_mib=1 << 24, memory_directory=str(tmp_path)), "kvm", now=plenty)
    with pytest.raises(errors.EffectError, match=r"`/no/such` for the guest's memory: No such file"):
        host.check_memory(HypervisorSettings(memory_directory="/no/such"), "kvm", now=plenty)


def test_memory_of_huge_pages_is_whole_pages():
    size = host.memory().get("Hugepagesize", 0)
    assert host.fitted(HypervisorSettings(memory_mib=257)).memory_mib == 257
    if size > 1:
        assert host.fitted(HypervisorSettings(memory_mib=size * 200 + 1, hugepages=True)).memory_mib == size * 201


def test_a_run_directory_that_is_too_long(monkeypatch):
    monkeypatch.setenv("KATA_FSM_RUN", "/r" * 50)
    with pytest.raises(errors.EffectError, match=r"makes socket paths of `1[0-9]+` bytes, legal is up to `107`"):
        host.check_paths(Paths("0123456789ab"))
