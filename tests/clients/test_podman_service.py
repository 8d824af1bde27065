# SPDX-License-Identifier: Apache-2.0
"""Goal: a container that is kept running, by podman's restart policies or by a unit of systemd's, comes back."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.engines import Podman
from tests.support.kata import wait_until
from tests.support.unit import Unit

IMAGE = "localhost/bb:latest"
SLEEP = ("sh", "-c", "echo up; exec sleep 100000")


def feature(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.feature("podman", *names)


def times_up(podman: Podman, name: str) -> int:
    return podman("logs", name, check=False).stdout.count("up\n")


def kill_machine(podman: Podman) -> None:
    os.kill(podman.kata.process("qemu-system"), signal.SIGKILL)


@feature("--restart on-failure:N", "--restart always", "--restart: machine killed")
def test_restart_policies(podman: Podman) -> None:
    podman.run("-d", "--name=fails", "--restart=on-failure:1", command=["sh", "-c", "echo up; exit 3"])
    wait_until(
        lambda: podman.inspect("fails")["RestartCount"] == 1 and podman.inspect("fails")["State"]["Status"] == "exited",
        "it has been tried again, once",
    )
    assert times_up(podman, "fails") == 2
    assert podman.inspect("fails")["State"]["ExitCode"] == 3
    podman.run("-d", "--name=always", "--restart=always", command=SLEEP)
    wait_until(lambda: times_up(podman, "always") == 1, "it runs")
    kill_machine(podman)
    wait_until(lambda: times_up(podman, "always") == 2, "it runs in another machine")
    podman("stop", "-t=0", "always")
    assert podman.inspect("always")["State"]["Status"] == "exited"
    wait_until(lambda: not podman.kata.processes("qemu-system"), "it stays stopped")


@feature("healthcheck run", "--health-cmd")
def test_health(podman: Podman) -> None:
    health = ("--health-cmd=test -e /well", "--health-interval=disable", "--health-retries=1")
    podman.run("-d", "--name=box", *health, command=SLEEP)
    done = podman("healthcheck", "run", "box", check=False)
    assert (done.returncode, done.stdout) == (1, "unhealthy\n")
    assert podman.inspect("box")["State"]["Health"]["Status"] == "unhealthy"
    podman("exec", "box", "touch", "/well")
    podman("healthcheck", "run", "box")
    assert podman.inspect("box")["State"]["Health"]["Status"] == "healthy"
    podman("rm", "-f", "-t=0", "box")


@feature("generate systemd", "generate systemd: machine killed")
def test_unit_that_starts_a_container(podman: Podman) -> None:
    podman("create", "--name=web", "--network=none", IMAGE, *SLEEP)
    unit = Unit(podman, podman("generate", "systemd", "--name", "--stop-timeout=0", "web").stdout)
    conmon = unit.start()
    wait_until(lambda: times_up(podman, "web") == 1, "it runs")
    assert conmon in podman.kata.processes("conmon")
    kill_machine(podman)
    unit.wait_for_end(conmon)
    unit.after_the_end()
    again = unit.start()
    wait_until(lambda: times_up(podman, "web") == 2, "it runs again")
    unit.stop()
    unit.wait_for_end(again)
    assert podman.inspect("web")["State"]["Status"] == "exited"


@feature("generate systemd --new", "generate systemd --new: conmon killed")
def test_unit_that_makes_a_container(podman: Podman) -> None:
    podman("create", "--name=web", "--network=none", IMAGE, *SLEEP)
    unit = Unit(podman, podman("generate", "systemd", "--new", "--name", "--stop-timeout=0", "web").stdout)
    podman("rm", "web")
    conmon = unit.start()
    assert conmon in podman.kata.processes("conmon")
    os.kill(conmon, signal.SIGKILL)
    unit.wait_for_end(conmon)
    unit.after_the_end()
    again = unit.start()
    assert again != conmon
    wait_until(lambda: times_up(podman, "web") == 1, "another one runs")
    unit.stop()
    assert podman("ps", "-aq").stdout == ""
    wait_until(lambda: not podman.kata.processes("qemu-system"), "the machines are gone")
    # Without its conmon, podman forgets a container and does not have its runtime delete it, ours as little as any other.
    for forgotten in podman.kata("list", "--quiet").stdout.split():
        podman.kata("delete", "--force", forgotten)
