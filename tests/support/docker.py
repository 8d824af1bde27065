# SPDX-License-Identifier: Apache-2.0
"""A private dockerd with a containerd of its own, in an enclosure, with the command of this checkout as its runtime."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.enclosure import Enclosure
from tests.support.engines import PATH, Engine, end
from tests.support.kata import wait_until

IMAGE = "bb:latest"
_UP_S = 240.0  # a start with a container to be ended and made again takes 30 s under emulation, more with other work


class Docker(Engine):
    """The daemon, started by us and ended by `close`. Everything of it is below `base`, and its cgroups in `cgroup`."""

    def __init__(self, base: Path, rootfs: Path, enclosure: Enclosure) -> None:
        super().__init__(base, rootfs, enclosure)
        self.cgroup = base.name
        (base / "daemon.json").write_text(json.dumps(self._settings()))
        (base / "watching.toml").write_text("[netmon]\nenable_netmon = true\n")
        (base / "sparing.toml").write_text("[runtime]\nprivileged_without_host_devices = true\n")
        self.daemon = self._start()
        try:
            self._await_answer()
            archive = base / "image.tar"
            subprocess.run(["tar", "-C", str(rootfs), "-cf", str(archive), "."], check=True)
            self("import", '--change=CMD ["sh"]', f"--change=ENV PATH={PATH}", str(archive), IMAGE)
            archive.unlink()
        except BaseException:
            self.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        argv = [*self.prefix, "/usr/sbin/dockerd", f"--config-file={self.base}/daemon.json"]
        with (self.base / "dockerd.log").open("ab") as log:
            return subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)

    def _await_answer(self) -> None:
        try:
            wait_until(lambda: self("version", check=False).returncode == 0, "dockerd answers", _UP_S)
        except pytest.fail.Exception:
            pytest.fail(f"dockerd does not answer:\n{self.log()[-5000:]}")

    def kill_and_start_again(self) -> None:
        """dockerd is killed, and its containerd with it (by its death signal); then it is started again."""
        containerd = (self.base / "dx" / "containerd" / "containerd.pid").read_text().strip()
        self.daemon.kill()
        self.daemon.wait()
        # The next dockerd would wait in vain for one that has ended and is not yet reaped.
        wait_until(lambda: not os.path.exists(f"/proc/{containerd}"), "its containerd is reaped")
        self.daemon = self._start()
        self._await_answer()

    def _settings(self) -> dict[str, Any]:
        """daemon.json. Published ports and masquerading of IPv6 are experimental in Docker 20.10."""
        base = self.base
        return {
            "runtimes": {
                name: {"path": str(self.runtime), "runtimeArgs": ["--config", f"{base}/{name}.toml"]}
                for name in ("watching", "sparing")
            }
            | {"kata-fsm": {"path": str(self.runtime)}},
            "default-runtime": "kata-fsm",
            "data-root": f"{base}/dd",
            "exec-root": f"{base}/dx",
            "pidfile": f"{base}/d.pid",
            "hosts": [f"unix://{base}/d.sock"],
            "deprecated-key-path": f"{base}/key.json",
            "cgroup-parent": f"/{self.cgroup}",
            "bip": "10.92.0.1/24",
            "ipv6": True,
            "fixed-cidr-v6": "fd00:92::/64",
            "experimental": True,
            "ip6tables": True,
        }

    def command(self, *args: str) -> list[str]:
        """Docker's client with the private socket."""
        return ["/usr/bin/docker", f"--config={self.base}/dc", f"--host=unix://{self.base}/d.sock", *args]

    def run(self, *options: str, command: Sequence[str] = (), **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """`docker run` of the busybox image."""
        return self("run", *options, IMAGE, *command, **kwargs)

    def inspect(self, name: str) -> dict[str, Any]:
        """What `docker inspect` knows of a container."""
        found: list[dict[str, Any]] = json.loads(self("inspect", name).stdout)
        return found[0]

    def log(self) -> str:
        """What the daemon said."""
        return (self.base / "dockerd.log").read_text(errors="replace")

    def keeps(self, leak: str) -> bool:
        """dockerd's hold on its host's network, made at first use; itself and its containerd, when started again."""
        words = ("/dx/netns/default", "/dx/libnetwork/", "/usr/sbin/dockerd", "/dx/containerd/containerd.toml")
        return any(word in leak for word in words)

    def clean_up(self) -> None:
        """Remove whatever a test left."""
        names = self("ps", "-aq", check=False).stdout.split()
        if names:
            self("rm", "-f", *names, check=False)
        self("volume", "prune", "--force", check=False)
        self("network", "prune", "--force", check=False)

    def close(self) -> None:
        """End the daemon, which ends its containerd."""
        end(self.daemon)
