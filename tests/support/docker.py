# SPDX-License-Identifier: Apache-2.0
"""A private dockerd with a containerd of its own, in an enclosure, with the command of this checkout as its runtime."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.enclosure import Enclosure
from tests.support.engines import PATH, Engine
from tests.support.kata import LIMIT_S, wait_until

IMAGE = "bb:latest"


class Docker(Engine):
    """The daemon, started by us and ended by `close`. Everything of it is below `base`, and its cgroups in `cgroup`."""

    def __init__(self, base: Path, rootfs: Path, enclosure: Enclosure) -> None:
        super().__init__(base, rootfs, enclosure)
        self.cgroup = base.name
        settings = base / "daemon.json"
        settings.write_text(json.dumps(self._settings()))
        argv = [*self.prefix, "/usr/sbin/dockerd", f"--config-file={settings}"]
        with (base / "dockerd.log").open("wb") as log:
            self.daemon = subprocess.Popen(argv, env=self.env, stdout=log, stderr=log)
        try:
            wait_until(lambda: self("version", check=False).returncode == 0, "dockerd answers")
            archive = base / "image.tar"
            subprocess.run(["tar", "-C", str(rootfs), "-cf", str(archive), "."], check=True)
            self("import", '--change=CMD ["sh"]', f"--change=ENV PATH={PATH}", str(archive), IMAGE)
            archive.unlink()
        except BaseException:
            self.close()
            raise

    def _settings(self) -> dict[str, Any]:
        """daemon.json. Published ports and masquerading of IPv6 are experimental in Docker 20.10."""
        base = self.base
        return {
            "runtimes": {"kata-fsm": {"path": str(self.runtime)}},
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

    def clean_up(self) -> None:
        """Remove whatever a test left."""
        names = self("ps", "-aq", check=False).stdout.split()
        if names:
            self("rm", "-f", *names, check=False)
        self("volume", "prune", "--force", check=False)
        self("network", "prune", "--force", check=False)

    def close(self) -> None:
        """End the daemon, which ends its containerd."""
        self.daemon.terminate()
        try:
            self.daemon.wait(LIMIT_S)
        finally:
            self.daemon.kill()
            self.daemon.wait()
