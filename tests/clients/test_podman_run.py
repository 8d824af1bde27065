# SPDX-License-Identifier: Apache-2.0
"""Goal: what people say to `podman run` is what the workload in the virtual machine gets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kata_fsm.oci.hosting import with_room
from tests.support.engines import Podman, Typist
from tests.support.kata import wait_until
from tests.support.loops import loop


def feature(*names: str, refused: bool = False) -> pytest.MarkDecorator:
    return pytest.mark.feature("podman", *names, refused=refused)


@feature("run, attached", "run --rm", "exit code", "stdin (-i)")
def test_attached(podman: Podman) -> None:
    script = "echo to-stdout; echo to-stderr >&2; uname -r; tr a-z A-Z; exit 7"
    done = podman.run("--rm", "-i", command=["sh", "-c", script], check=False, stdin="typed\n")
    assert done.returncode == 7
    first, kernel, typed = done.stdout.split()
    assert (first, typed) == ("to-stdout", "TYPED")
    assert kernel != os.uname().release  # a kernel of its own: this was a virtual machine
    assert done.stderr == "to-stderr\n"
    assert podman("ps", "-aq").stdout == ""


@feature("--env", "--user", "--workdir", "--hostname", "--tmpfs", "--ulimit", "--sysctl", "--shm-size", "--init")
def test_settings_of_the_process(podman: Podman) -> None:
    script = (
        "echo $WORD; id -u; id -g; pwd; hostname; grep -c ' /scratch tmpfs .*size=2048k' /proc/mounts; ulimit -n;"
        "cat /proc/sys/net/ipv4/ip_default_ttl; df -k /dev/shm | tail -n 1 | awk '{print $2}'; cat /proc/1/comm"
    )
    done = podman.run(
        *(
            "--rm",
            "--env=WORD=a  b",
            "--user=1000:1001",
            "--workdir=/tmp",
            "--hostname=box",
            "--tmpfs=/scratch:size=2m",
        ),
        *("--ulimit=nofile=77:77", "--sysctl=net.ipv4.ip_default_ttl=42", "--shm-size=3m", "--init"),
        command=["sh", "-c", script.replace("$WORD", '"$WORD"')],
    )
    *settings, init = done.stdout.splitlines()
    assert settings == ["a  b", "1000", "1001", "/tmp", "box", "1", "77", "42", "3072"]
    assert init in ("catatonit", "dev-init", "podman-init")


@feature("--dns, --dns-search", "--add-host", "/etc/hosts", "--network ns:PATH")
def test_name_service_files(podman: Podman, namespace: str) -> None:
    done = podman.run(
        *(
            "--rm",
            f"--network=ns:{namespace}",
            "--hostname=box",
            "--dns=192.0.2.53",
            "--dns-search=example.org",
            "--add-host=peer:192.0.2.9",
        ),
        command=["cat", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"],
    )
    words = [line.split() for line in done.stdout.splitlines()]
    assert ["nameserver", "192.0.2.53"] in words
    assert ["search", "example.org"] in words
    assert ["192.0.2.9", "peer"] in words
    assert words[-1] == ["box"]


@feature("--read-only", "--cap-drop, --cap-add", "--security-opt no-new-privileges", "seccomp profile", "masked paths")
def test_confinement(podman: Podman) -> None:
    script = (
        "touch /new 2>&1; grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status;"
        "head -c 1 /proc/kcore 2>/dev/null | wc -c; echo 1 2>&1 >/proc/sysrq-trigger"
    )
    done = podman.run(
        *("--rm", "--read-only", "--cap-drop=all", "--cap-add=chown", "--security-opt=no-new-privileges"),
        command=["sh", "-c", script],
        check=False,
    )
    said = done.stdout + done.stderr
    assert "touch: /new: Read-only file system" in said
    assert "CapEff:\t0000000000000001" in said
    assert "NoNewPrivs:\t1" in said
    assert "Seccomp:\t2" in said
    assert "\n0\n" in said
    assert "can't create /proc/sysrq-trigger: Read-only file system" in said


@feature("--memory", "--cpus", "--pids-limit", "machine sized by the limits")
def test_limits_hold_in_the_guest(podman: Podman) -> None:
    script = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max cpu.max pids.max; nproc; tail /dev/zero"
    options = ("--memory=64m", "--cpus=1.5", "--pids-limit=50")
    done = podman.run("--name=limited", *options, command=["sh", "-c", script], check=False)
    assert done.stdout.split()[:4] == [str(64 << 20), "150000", "100000", "50"]
    assert done.stdout.split()[4] == str(min(2, os.cpu_count() or 1))
    assert done.returncode == 137
    assert podman.inspect("limited")["State"]["ExitCode"] == 137


def limited(pid: int, file: str) -> str:
    """A file of the cgroup that a process is in, in the hierarchy of its controller (cgroup v1)."""
    controller = file.split(".")[0]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return Path(f"/sys/fs/cgroup/{controller}{path}/{file}").read_text().strip()
    return ""


@feature("limits of the machine on the host", "--cpuset-cpus, --cpuset-mems", "--cpu-shares", "update: of processors")
def test_limits_hold_on_the_host(podman: Podman) -> None:
    if not Path("/sys/fs/cgroup/cpuset/cpuset.cpus").exists():
        pytest.skip("this host has cgroups of version 2, whose files have other names")
    options = ("--memory=64m", "--cpus=0.5", "--cpu-shares=300", "--cpuset-cpus=0", "--cpuset-mems=0")
    podman.run("-d", "--name=box", *options, command=["sleep", "1000"])
    qemu = podman.kata.process("qemu-system")

    def found() -> list[str]:
        return [limited(qemu, name) for name in ("cpuset.cpus", "cpuset.mems", "cpu.shares", "cpu.cfs_quota_us")]

    assert found() == ["0", "0", "300", str(with_room(50000))]
    memory = int(limited(qemu, "memory.limit_in_bytes"))
    assert 600 << 20 < memory < 4 << 30, "the machine's memory, and room"
    assert "Cpus_allowed_list:\t0\n" in Path(f"/proc/{qemu}/status").read_text()
    every = Path("/sys/fs/cgroup/cpuset/cpuset.cpus").read_text().strip()
    podman("update", "--memory=96m", "--cpus=0.7", f"--cpuset-cpus={every}", "--cpu-shares=400", "box")
    assert found() == [every, "0", "400", str(with_room(70000))]
    assert int(limited(qemu, "memory.limit_in_bytes")) == memory, "the machine is as large as before"
    assert podman("exec", "box", "echo", "alive").stdout == "alive\n"


@feature("--volume, host directory", "--volume :ro", "volume, named", "--volume, one file", "--mount type=bind")
def test_volumes(podman: Podman, tmp_path: Path) -> None:
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "given").write_text(f"{name}\n")
    (tmp_path / "file").write_text("one file\n")
    script = (
        "cat /rw/given /ro/given /file /more/given; echo back >/rw/back; echo kept >/named/kept;"
        "touch /ro/x 2>&1; touch /more/x 2>&1; true"
    )
    binds = (f"-v={tmp_path}/rw:/rw", f"-v={tmp_path}/ro:/ro:ro", f"-v={tmp_path}/file:/file", "-v=store:/named")
    mount = f"--mount=type=bind,source={tmp_path}/rw,destination=/more,ro"
    done = podman.run("--rm", *binds, mount, command=["sh", "-c", script])
    assert done.stdout.splitlines() == [
        *("rw", "ro", "one file", "rw"),
        "touch: /ro/x: Read-only file system",
        "touch: /more/x: Read-only file system",
    ]
    assert (tmp_path / "rw" / "back").read_text() == "back\n"
    again = podman.run("--rm", "-v=store:/named:ro", command=["cat", "/named/kept"])
    assert again.stdout == "kept\n"


@feature("run -it", "terminal size", "detach keys, attach")
def test_terminal(podman: Podman) -> None:
    options = ("--network=none", "-it", "--name=tty", "--detach-keys=ctrl-q")
    typist = Typist(podman, "run", *options, "localhost/bb:latest", rows=31, columns=97)
    typist.read_until("# ")
    typist.type(f"{typist.sized}; stty size; tty; test -t 2 && echo a-terminal\r")
    typist.read_until(r"31 97\r\n/dev/\S+\r\na-terminal\r\n")
    typist.type("\x11")
    assert typist.close() == 0
    assert podman.inspect("tty")["State"]["Status"] == "running"
    again = Typist(podman, "attach", "tty")
    again.type("echo still $((40+2)); exit 5\r")
    again.read_until("still 42")
    assert again.close() == 0
    assert podman("wait", "tty").stdout == "5\n"


@feature("failure: no such program (127)", "failure: not executable (126)")
@pytest.mark.parametrize(
    ("program", "code"), [("/no/such", 127), ("no-such", 127), ("/etc/passwd", 126), ("/etc", 126)]
)
def test_what_cannot_be_run(podman: Podman, program: str, code: int) -> None:
    """libpod/define/exec_codes.go: the runtime's words decide, "permission denied" and "no such file or directory"."""
    done = podman.run("--rm", command=[program], check=False)
    assert done.returncode == code, done.stderr
    assert program in done.stderr


@feature("--network host", "--device, of characters", "--privileged with the host's devices", refused=True)
@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--network=host", "Host networking requested"),
        ("--device=/dev/loop-control", "cannot be given to the guest"),
        ("--privileged", "cannot be given to the guest"),
    ],
)
def test_a_refusal_reaches_the_caller(podman: Podman, option: str, told: str) -> None:
    done = podman.run("--rm", option, command=["true"], check=False)
    assert done.returncode != 0
    assert told in done.stderr


@feature("--device, a block device", "--device :r")
def test_a_block_device(podman: Podman) -> None:
    with loop(podman.base) as disk:
        disk.write(0, b"from the host")
        script = "head -c 13 /dev/xvda; printf 'from the guest' >/dev/xvda"
        assert (
            podman.run("--rm", f"--device={disk.node}:/dev/xvda", command=["sh", "-c", script]).stdout
            == "from the host"
        )
        assert disk.read(0, 14) == b"from the guest"
        script = "head -c 14 /dev/xvda; printf gone >/dev/xvda"
        done = podman.run("--rm", f"--device={disk.node}:/dev/xvda:r", command=["sh", "-c", script], check=False)
        assert (done.returncode, done.stdout) == (1, "from the guest")
        assert "not permitted" in done.stderr
        assert disk.read(0, 14) == b"from the guest"
        assert disk.holders() == []


@feature("--privileged, without the host's devices")
def test_a_privileged_container_of_the_guest(podman: Podman) -> None:
    """All of root's powers, none of the host's devices, and that is said."""
    config = podman.base / "sparing.toml"
    config.write_text("[runtime]\nprivileged_without_host_devices = true\n")
    script = (
        "mkdir /m && mount -t tmpfs none /m && umount /m && echo mounts;"
        "echo 1 >/proc/sys/vm/overcommit_memory && echo sets;"
        "mkdir /sys/fs/cgroup/mine && rmdir /sys/fs/cgroup/mine && echo groups;"
        "grep -c Seccomp:.*0 /proc/self/status; grep CapBnd /proc/self/status; cat /sys/block/*/serial; ls /dev"
    )
    with loop(podman.base):
        done = podman.run("--name=mighty", "--privileged", command=["sh", "-c", script], config=config)
        said = done.stdout.split()
        assert said[:4] == ["mounts", "sets", "groups", "1"]
        bounding = next(
            line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
        )
        assert said[4:6] == bounding.split()
        assert "null" in said
        assert [name for name in said if name.startswith(("loop", "vd", "kmsg"))] == []
    (made,) = [each for each in podman.kata.story(podman.inspect("mighty")["Id"]) if each["what"] == "create_sandbox"]
    assert "/dev/loop-control" in str(made["detail"])


@feature("run -d", "logs", "logs -f", "wait", "inspect", "start again")
def test_detached(podman: Podman) -> None:
    container = podman.run("-d", "--name=once", command=["sh", "-c", "echo out; echo err >&2; exit 9"]).stdout.strip()
    assert podman("wait", "once").stdout == "9\n"
    assert podman("logs", "-f", "once").stdout == "out\n"
    assert podman("logs", "once").stderr == "err\n"
    state = podman.inspect("once")
    assert state["Id"] == container
    assert (state["State"]["Status"], state["State"]["ExitCode"], state["OCIRuntime"]) == (
        "exited",
        9,
        str(podman.runtime),
    )
    done = podman("start", "-a", "once", check=False)
    assert done.returncode == 9
    assert done.stdout == "out\n"
    podman("rm", "once")
    wait_until(lambda: not podman.kata.processes("qemu-system"), "the machines are gone")


@feature("--hooks-dir")
def test_hooks(podman: Podman) -> None:
    """Of every kind: those of the host write into a log, and the container's find its files on either side."""
    hooks, log = podman.base / "hooks", podman.base / "hooked"
    hooks.mkdir()
    telling = f'cat >/dev/null; echo "$0 $(readlink /proc/self/ns/net)" >>{log}'
    scripts = dict.fromkeys(("prestart", "createRuntime", "poststart", "poststop"), telling)
    find = """root=$(sed -n 's/.*"root":{"path":"\\([^"]*\\)".*/\\1/p' config.json)"""
    scripts["createContainer"] = f"{telling}; {find}; ls $root/given >$root/found"
    scripts["startContainer"] = "cat >/state; ls /given >>/found"
    for stage, script in scripts.items():
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script, stage]}
        stated = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": [stage]}
        (hooks / f"{stage}.json").write_text(json.dumps(stated))
    given = podman.base / "given"
    given.mkdir()
    (given / "file").touch()
    words = ("--network=none", f"--volume={given}:/given", "localhost/bb:latest", "cat", "/found")
    done = podman(f"--hooks-dir={hooks}", "run", "--rm", *words)
    assert done.stdout == "file\nfile\n"
    told = dict(line.split() for line in log.read_text().splitlines())
    assert list(told) == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    its = told.pop("createContainer")  # the pod's network namespace; the others have podman's
    assert len(set(told.values()) - {its}) == 1
    assert its not in told.values()
