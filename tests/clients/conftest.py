# SPDX-License-Identifier: Apache-2.0
"""Real engines, installed and started by the tests, with real virtual machines behind them.

A test is skipped only when its engine's packages cannot be installed; with KATA_FSM_NO_SKIP set (as continuous integration
does) that is a failure.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_fsm.testing.bundle import make_rootfs
from tests.support.containerd import Containerd
from tests.support.cri import Cri
from tests.support.docker import Docker
from tests.support.engines import Podman, clean, enclosed, installed, require_packages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="session")
def podman_service(rootfs: Path) -> Iterator[Podman]:
    require_packages("podman", "conmon", "netavark", "aardvark-dns", "iptables")
    with enclosed(Podman, rootfs) as podman:
        yield podman


@pytest.fixture
def podman(podman_service: Podman) -> Iterator[Podman]:
    """podman without containers, on a host of its own; after the test nothing of any may be left there."""
    with clean(podman_service, "libpod-", podman_service.clean_up):
        yield podman_service


@pytest.fixture(scope="session")
def containerd_service(rootfs: Path) -> Iterator[Containerd]:
    require_packages("containerd")
    with enclosed(Containerd, rootfs) as containerd:
        yield containerd


@pytest.fixture
def containerd(containerd_service: Containerd) -> Iterator[Containerd]:
    """containerd without containers; after the test nothing of any may be left on the host."""
    with clean(containerd_service, "default/box", containerd_service.clean_up):
        yield containerd_service


@pytest.fixture(scope="session")
def cri_service(rootfs: Path) -> Iterator[Cri]:
    require_packages("containerd", "containernetworking-plugins")
    with installed(Cri, rootfs) as cri:
        yield cri


@pytest.fixture
def cri(cri_service: Cri) -> Iterator[Cri]:
    """containerd's CRI without pods; after the test nothing of any may be left on the host, nor in its network."""
    before = cri_service.links()
    with clean(cri_service, cri_service.parent.strip("/"), cri_service.clean_up):
        yield cri_service
    assert cri_service.links() - {"kf0"} == before - {"kf0"}


@pytest.fixture(scope="session")
def docker_service(rootfs: Path) -> Iterator[Docker]:
    require_packages("docker.io", "iptables")
    with enclosed(Docker, rootfs) as docker:
        yield docker


@pytest.fixture
def docker(docker_service: Docker) -> Iterator[Docker]:
    """dockerd without containers; after the test nothing of any may be left on its host."""
    with clean(docker_service, f"/{docker_service.cgroup}/", docker_service.clean_up):
        yield docker_service


@pytest.fixture
def namespace(podman: Podman) -> Iterator[str]:
    """A network namespace made on podman's host, with nothing but `lo`."""
    name = f"kf-test-{os.getpid()}"
    subprocess.run([*podman.prefix, "ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run([*podman.prefix, "ip", "netns", "delete", name], check=True)
