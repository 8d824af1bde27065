# SPDX-License-Identifier: Apache-2.0
"""Goal: a kubelet's calls, served by containerd with the command as its runtime: a pod is one virtual machine."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kata_fsm.oci.hosting import with_room
from tests.support.cri import Container, Cri, exit_code, messages
from tests.support.kata import exists, wait_until
from tests.support.loops import loop
from tests.support.websocket import RESIZE, STDERR, STDIN, STDOUT

SLEEP = ("sleep", "1000")
MACHINE_BYTES = 64 << 20  # less than any machine that has booted holds
MACHINE_NS = 500_000_000  # and less processor time than its boot takes
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def feature(*names: str, refused: bool = False) -> pytest.MarkDecorator:
    return pytest.mark.feature("cri", *names, refused=refused)


def machines(cri: Cri) -> int:
    return len(cri.kata.processes("qemu-system"))


@feature("pod: one virtual machine", "init containers", "exec sync", "exec sync: exit code", "logs", "host name", "DNS")
def test_a_pod_is_one_machine(cri: Cri) -> None:
    pod = cri.pod("one")
    (pod.logs / "given").write_text("of the host\n")
    shared = messages().Mount(container_path="/shared", host_path=str(pod.logs))
    for number in (1, 2):
        first = pod.run(f"init{number}", "sh", "-c", f"echo init {number} | tee -a /shared/order", mounts=[shared])
        assert first.wait() == 0
        assert first.lines() == [("stdout", f"init {number}")]
    script = "cat /shared/given; echo to-stderr >&2; printf half; exec sleep 1000"
    main = pod.run("main", "sh", "-c", script, mounts=[shared])
    side = pod.run("side", *SLEEP)
    assert machines(cri) == 1
    assert main.shell(BOOT_ID) == side.shell(BOOT_ID)
    assert main.shell("uname -r") != os.uname().release + "\n"
    assert main.shell("cat /shared/order") == "init 1\ninit 2\n"
    assert side.shell("hostname") == "one\n"
    assert "nameserver 10.213.0.1" in side.shell("cat /etc/resolv.conf")
    assert side.exec("sh", "-c", "echo out; echo err >&2; exit 5") == (5, "out\n", "err\n")
    main.stop()
    wanted = {("stdout", "of the host"), ("stderr", "to-stderr"), ("stdout", "half")}
    wait_until(lambda: set(main.lines()) == wanted, f"the log holds {wanted}")
    failed = pod.create("bad", "/no/such")
    assert "/no/such" in failed.refused_start()


@feature("block volume (volumeDevices)", "block volume shared by containers")
def test_a_block_volume(cri: Cri) -> None:
    """As a kubelet asks for it: the node below its directory is a link of its own to the host's device."""
    with loop(cri.base) as disk:
        disk.write(0, b"from the host")
        pod = cri.pod("block")
        device = messages().Device(container_path="/dev/xvda", host_path=disk.node, permissions="mrw")
        one, two = (pod.run(name, *SLEEP, devices=[device]) for name in ("one", "two"))
        assert one.shell("head -c 13 /dev/xvda") == "from the host"
        one.shell("printf 'from the one!' | dd of=/dev/xvda conv=notrunc,fsync")
        assert disk.read(0, 13) == b"from the one!"
        one.stop()
        one.remove()
        assert two.shell("head -c 13 /dev/xvda") == "from the one!"
        assert disk.holders() == cri.kata.processes("qemu-system")
        two.stop()
        two.remove()
        assert machines(cri) == 1
        wait_until(lambda: not disk.holders(), "the machine has let the device go")


@feature("container stop", "container stop: killed after its time", "container rm", "restart in a living pod")
def test_a_container_is_restarted_in_its_pod(cri: Cri) -> None:
    pod = cri.pod("again")
    side = pod.run("side", *SLEEP)
    boot = side.shell(BOOT_ID)
    crashed = pod.run("main", "sh", "-c", "exit 3")
    assert crashed.wait() == 3
    crashed.remove()
    polite = pod.run("main", "sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done", attempt=1)
    wait_until(lambda: polite.lines() == [("stdout", "up")], "it listens")
    polite.stop(60)
    assert polite.wait() == 7
    deaf = pod.run("main", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", attempt=2)
    deaf.stop(1)
    assert deaf.wait() == 137
    for each in (polite, deaf):
        each.remove()
    assert pod.run("main", *SLEEP, attempt=3).shell(BOOT_ID) == boot
    assert machines(cri) == 1


@feature("pod stop", "pod rm")
def test_a_pod_ends(cri: Cri) -> None:
    pod = cri.pod("ends")
    main = pod.run("main", *SLEEP)
    pod.stop()
    assert pod.status().state == messages().SANDBOX_NOTREADY
    assert main.wait() == 137
    wait_until(lambda: not machines(cri), "the machine is gone")
    pod.remove()
    again = cri.pod("ends")
    again.run("main", *SLEEP)
    again.stop()
    again.remove()


@feature("exec", "exec: exit code", "exec --tty", "exec --tty: size", "attach", "attach --tty")
def test_streams(cri: Cri) -> None:
    pod = cri.pod("streams")
    echo = pod.run("echo", "sh", "-c", "while read line; do echo got $line; echo err $line >&2; done", stdin=True)
    shell = pod.run("shell", "sh", stdin=True, tty=True)

    plain = echo.exec_streams("sh", "-c", "read line; echo out $line; echo err >&2; exit 4")
    plain.send(STDIN, b"words\n")
    assert exit_code(plain) == 4
    assert (plain.received[STDOUT], plain.received[STDERR]) == (b"out words\n", b"err\n")
    big = echo.exec_streams("dd", "if=/dev/zero", "bs=64k", "count=80")
    assert exit_code(big) == 0
    assert len(big.received[STDOUT]) == 80 << 16

    typed = echo.exec_streams("sh", tty=True)
    typed.read_until(STDOUT, b"# ")
    typed.send(RESIZE, b'{"Width":91,"Height":29}')
    typed.send(STDIN, b"while [ \"$(stty size)\" != '29 91' ]; do sleep 0.1; done; tty; exit 6\n")
    typed.read_until(STDOUT, b"/dev/pts/")
    assert exit_code(typed) == 6

    with closing(echo.attach()) as attached:
        attached.send(STDIN, b"one\n")
        attached.read_until(STDOUT, b"got one\n")
        attached.read_until(STDERR, b"err one\n")
    with closing(echo.attach()) as attached:  # one that went away has not ended it
        attached.send(STDIN, b"two\n")
        attached.read_until(STDOUT, b"got two\n")
    with closing(shell.attach(tty=True)) as attached:
        attached.send(STDIN, b"echo $((6 * 7)); exit 8\n")
        attached.read_until(STDOUT, b"42")
        attached.read_all()
    assert shell.wait() == 8
    wait_until(lambda: ("stdout", "got two") in echo.lines(), "the log has it too")


@feature("shared pid namespace", "pid namespace of another container")
def test_a_shared_pid_namespace(cri: Cri) -> None:
    pod = cri.pod("pids", shared_pids=True)
    one = pod.run("one", "sleep", "4321")
    two = pod.run("two", *SLEEP)
    seen = two.shell("ps -o pid,args")
    assert "sleep 4321" in seen
    assert re.search("^ *1 sleep 1000000000$", seen, re.MULTILINE)  # the pod's own, whose end would be everybody's
    one.stop()
    one.remove()
    again = pod.run("one", *SLEEP, attempt=1)
    assert "sleep 1000000000" in again.shell("ps -o args")
    assert two.status().state == messages().CONTAINER_RUNNING
    private = cri.pod("private")
    one = private.run("one", "sleep", "4321")
    assert "sleep 4321" not in private.run("two", *SLEEP).shell("ps -o args")
    debugging = private.run("debug", *SLEEP, looks_into=one)
    assert re.search("^ *1 sleep 4321$", debugging.shell("ps -o pid,args"), re.MULTILINE)


def limit(container: Container, name: str) -> str:
    """A limit that the guest's kernel keeps for a container, as the container sees it."""
    return container.shell(f"cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/{name}").strip()


@feature("limits", "update of limits", "stats of a container: of its shim", "stats of a pod")
def test_limits_and_stats(cri: Cri) -> None:
    pod = cri.pod("limits")
    main = pod.run("main", *SLEEP, limits={"memory_limit_in_bytes": 64 << 20, "cpu_quota": 50000, "cpu_period": 100000})
    assert limit(main, "memory.max") == str(64 << 20)
    of_host = Path(f"/sys/fs/cgroup/cpu{cri.parent}/limits/{pod.id}/cpu.cfs_quota_us")
    if of_host.exists():  # cgroup v1
        assert of_host.read_text() == f"{with_room(50000)}\n", "the pause container has no part in it"
    main.update(memory_limit_in_bytes=96 << 20, cpu_quota=70000, cpu_period=100000)
    assert limit(main, "memory.max") == str(96 << 20)
    assert limit(main, "cpu.max") == "70000 100000"
    if of_host.exists():
        assert of_host.read_text() == f"{with_room(70000)}\n"
    stats = main.stats()
    assert stats.memory.working_set_bytes.value > 0
    qemu = cri.kata.process("qemu-system")
    assert f"{cri.parent}/limits/{pod.id}" in Path(f"/proc/{qemu}/cgroup").read_text()
    whole = pod.stats()
    assert [each.attributes.id for each in whole.containers] == [main.id]
    assert whole.memory.working_set_bytes.value > MACHINE_BYTES
    assert whole.cpu.usage_core_nano_seconds.value > MACHINE_NS
    assert whole.network.default_interface.name == "eth0"


@feature("network: between pods", "network: from the host", "network: the pod's address")
def test_pods_reach_each_other(cri: Cri) -> None:
    script = "mkdir -p /tmp/www; echo served >/tmp/www/index.html; exec httpd -f -p 8000 -h /tmp/www"
    server, client = cri.pod("server"), cri.pod("client")
    served = server.run("web", "sh", "-c", script)
    asking = client.run("main", *SLEEP)
    address = server.status().network.ip
    assert re.match(r"10\.213\.0\.\d+\Z", address)
    assert f"inet {address}/24" in served.shell("ip -4 addr show eth0")
    assert "1 packets received" in asking.shell(f"ping -c 1 -w 30 {address}")
    wait_until(lambda: asking.exec("wget", "-q", "-O-", f"http://{address}:8000/")[1] == "served\n", "it is served")
    with closing(cri.connect(address, 8000)) as asked:
        asked.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in asked.recv(4096)


FORWARDED = r"""
mkdir -p /tmp/www/cgi-bin
dd if=/dev/urandom of=/tmp/www/file bs=64k count=64
printf '#!/bin/sh\necho; head -c $CONTENT_LENGTH | sha256sum\n' > /tmp/www/cgi-bin/digest
chmod 755 /tmp/www/cgi-bin/digest
nc -ll -p 9000 -e /bin/cat &
exec httpd -f -p 127.0.0.1:8000 -h /tmp/www
"""


@feature("port-forward")
def test_ports_are_forwarded(cri: Cri) -> None:
    """Channel 0 carries the port's data, 1 what went wrong; each begins with the port's number."""
    pod = cri.pod("forward")
    web = pod.run("web", "sh", "-c", FORWARDED)
    wait_until(
        lambda: web.exec("sh", "-c", "netstat -tln | grep :9000 && netstat -tln | grep :8000")[0] == 0, "it serves"
    )
    with closing(pod.forward(8000)) as forwarded:  # which listens at the guest's own localhost alone
        forwarded.send(0, b"GET /file HTTP/1.0\r\n\r\n")
        answer = forwarded.read_all()[0]
    body = answer.partition(b"\r\n\r\n")[2]
    assert len(body) == 64 << 16
    assert hashlib.sha256(body).hexdigest() in web.shell("sha256sum /tmp/www/file")
    data = random.Random(1).randbytes(3 << 20)
    with closing(pod.forward(8000)) as forwarded:
        forwarded.send(0, b"POST /cgi-bin/digest HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(data))
        for at in range(0, len(data), 32 << 10):
            forwarded.send(0, data[at : at + (32 << 10)])
        forwarded.read_until(0, hashlib.sha256(data).hexdigest().encode())
    with ExitStack() as stack:
        several = [stack.enter_context(closing(pod.forward(9000))) for _ in range(8)]
        for number, each in enumerate(several):
            each.send(0, b"said by %d." % number)
        for number, each in reversed(list(enumerate(several))):
            each.read_until(0, b"said by %d." % number)
        several[3].close()
        several[4].send(0, b"And once more.")
        several[4].read_until(0, b"And once more.")
    with closing(pod.forward(8001)) as forwarded:
        assert b"connection refused" in forwarded.read_all()[1]
    pod.stop()
    pod.remove()


@feature("host network", refused=True)
def test_the_hosts_network_is_refused(cri: Cri) -> None:
    with pytest.raises(pytest.fail.Exception, match="Host networking requested, not supported"):
        cri.pod("host", host_network=True)


@feature("recovery: virtual machine killed")
def test_a_killed_machine_is_told(cri: Cri) -> None:
    pod = cri.pod("dies")
    main = pod.run("main", *SLEEP)
    qemu = cri.kata.process("qemu-system")
    os.kill(qemu, signal.SIGKILL)
    assert main.wait() == 255  # nobody knows the true one
    wait_until(lambda: pod.status().state == messages().SANDBOX_NOTREADY, "the pod is not ready any more")
    pod.stop()
    pod.remove()


@feature("recovery: supervisor killed", "recovery: containerd restarted")
def test_recovery(cri: Cri) -> None:
    pod = cri.pod("kills")
    shared = messages().Mount(container_path="/shared", host_path=str(pod.logs))
    script = "while ! [ -e /shared/end ]; do sleep 0.1; done; echo over; exit 9"
    main = pod.run("main", "sh", "-c", script, mounts=[shared])
    supervisor = cri.kata.process(" supervisor ", pod.id)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not exists(supervisor), "the supervisor is gone")  # what it was asked before, it fails
    assert main.shell("echo alive") == "alive\n"
    cri.restart()
    assert main.shell("echo still") == "still\n"
    (pod.logs / "end").touch()  # by nobody in there, who would be killed with it
    assert main.wait() == 9
    assert main.lines() == [("stdout", "over")]
