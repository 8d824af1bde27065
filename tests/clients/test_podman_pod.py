# SPDX-License-Identifier: Apache-2.0
"""Goal: the containers of a pod are in one virtual machine, and share what a pod shares."""

from __future__ import annotations

import pytest

from tests.support.engines import Podman
from tests.support.kata import wait_until

INFRA = ("--infra-image=localhost/bb:latest", "--infra-command=sleep 1000000")


def feature(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.feature("podman", *names)


@feature("pod: one virtual machine", "pod: shared network", "pod: shared host name", "pod stop, start", "pod rm")
def test_a_pod_is_one_machine(podman: Podman) -> None:
    podman("pod", "create", "--name=pod", "--network=none", "--hostname=podbox", *INFRA)
    podman.run("-d", "--pod=pod", "--name=server", command=["sh", "-c", "nc -l -p 8000 -e echo served; echo over"])
    podman.run("-d", "--pod=pod", "--name=other", command=["sleep", "1000"])
    assert len(podman.kata.processes("qemu-system")) == 1
    assert podman("exec", "other", "hostname").stdout == "podbox\n"
    asked = podman("exec", "other", "sh", "-c", "nc 127.0.0.1 8000 </dev/null")
    assert asked.stdout == "served\n"
    assert podman("wait", "server").stdout == "0\n"
    assert podman("logs", "server").stdout == "over\n"
    boot = "cat /proc/sys/kernel/random/boot_id"
    first = podman("exec", "other", "sh", "-c", boot).stdout
    again = podman.run("--rm", "--pod=pod", command=["sh", "-c", boot]).stdout
    assert first == again
    podman("pod", "stop", "-t=0", "pod")
    wait_until(lambda: not podman.kata.processes("qemu-system"), "the machine is gone")
    podman("pod", "start", "pod")
    assert podman("exec", "other", "echo", "back").stdout == "back\n"
    podman("pod", "rm", "-f", "-t=0", "pod")
    wait_until(lambda: not podman.kata.processes("qemu-system"), "the machine is gone")


@feature("pod: shared pid namespace", "pod: shared /dev/shm")
def test_what_a_pod_shares(podman: Podman) -> None:
    podman("pod", "create", "--name=pod", "--network=none", "--share=net,ipc,uts,pid", *INFRA)
    podman.run("-d", "--pod=pod", "--name=one", command=["sh", "-c", "echo note >/dev/shm/left; sleep 4321"])
    done = podman.run(
        "--rm", "--pod=pod", command=["sh", "-c", "cat /dev/shm/left; ps -o args | grep -c 'sleep 432[1]'"]
    )
    assert done.stdout.split()[0] == "note"
    assert int(done.stdout.split()[1]) >= 1
    podman("pod", "rm", "-f", "-t=0", "pod")
