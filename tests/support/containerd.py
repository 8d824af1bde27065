# SPDX-License-Identifier: Apache-2.0
"""A private containerd, driven by `ctr` through its runc shim with the command of this checkout as the runtime."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.enclosure import Enclosure
from tests.support.engines import PATH, Engine, end
from tests.support.kata import wait_until

IMAGE = "localhost/bb:latest"


def image_archive(rootfs: Path, archive: Path, *, name: str = IMAGE, command: Sequence[str] = ("sh",)) -> None:
    """An image of one layer in Docker's archive format (moby/image/spec/v1.2.md), which ctr imports."""
    work = archive.parent / "image"
    work.mkdir()
    subprocess.run(["tar", "-C", str(rootfs), "-cf", str(work / "layer.tar"), "."], check=True)
    layer = hashlib.sha256((work / "layer.tar").read_bytes()).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": [f"PATH={PATH}"], "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    }
    (work / "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    (work / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(archive, "w") as tar:
        for name in ("manifest.json", "config.json", "layer.tar"):
            tar.add(work / name, name)


class Containerd(Engine):
    """The daemon, started by us and ended by `close`."""

    def __init__(self, base: Path, rootfs: Path, enclosure: Enclosure | None = None) -> None:
        super().__init__(base, rootfs, enclosure)
        settings = base / "config.toml"
        settings.write_text(self.settings())
        self.start(settings)
        image_archive(rootfs, base / "image.tar")
        self("image", "import", "--snapshotter=native", str(base / "image.tar"))

    def start(self, settings: Path) -> None:
        """Start the daemon and wait until it answers."""
        with (self.base / "containerd.log").open("ab") as log:
            self.daemon = subprocess.Popen(self.daemon_argv(settings), env=self.env, stdout=log, stderr=log)
        wait_until(lambda: self("version", check=False).returncode == 0, "containerd answers")

    def settings(self) -> str:
        """containerd's configuration."""
        return (
            f'version = 2\nroot = "{self.base}/cr"\nstate = "{self.base}/cs"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self.base}/c.sock"\n'
            f'[plugins."io.containerd.internal.v1.opt"]\npath = "{self.base}/opt"\n'
        )

    def daemon_argv(self, settings: Path) -> list[str]:
        """How the daemon is started."""
        return [*self.prefix, "/usr/bin/containerd", "-c", str(settings)]

    def command(self, *args: str) -> list[str]:
        """ctr with the private socket."""
        return ["/usr/bin/ctr", "--address", f"{self.base}/c.sock", *args]

    def run_argv(self, name: str, *options: str, command: Sequence[str]) -> list[str]:
        """The words of `ctr run` with our runtime."""
        ours = ("--runtime=io.containerd.runc.v2", f"--runc-binary={self.runtime}", f"--runc-root={self.base}/rr")
        return ["run", "--snapshotter=native", *ours, *options, IMAGE, name, *command]

    def run(self, name: str, *options: str, command: Sequence[str], check: bool = True, stdin: str = ""):  # type: ignore[no-untyped-def]
        """`ctr run` to its end."""
        return self(*self.run_argv(name, *options, command=command), check=check, stdin=stdin)

    def status(self, name: str) -> str:
        """The task's status by `ctr task ls`; empty without a task."""
        for line in self("task", "ls").stdout.splitlines():
            words = line.split()
            if words and words[0] == name:
                return words[2]
        return ""

    def clean_up(self) -> None:
        """Remove whatever a test left."""
        for name in self("task", "ls", "-q", check=False).stdout.split():
            self("task", "delete", "--force", name, check=False)
        for name in self("container", "ls", "-q", check=False).stdout.split():
            self("container", "delete", name, check=False)

    def close(self) -> None:
        """End the daemon."""
        end(self.daemon)
