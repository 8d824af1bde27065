# SPDX-License-Identifier: Apache-2.0
"""Goal: in the view, `/` is the container's, whatever links the guest has left, and nothing changes for anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata_fsm.effects import mounts

SCRIPT = """
import os, sys
from kata_fsm import spawn
from kata_fsm.cli import view
tree = sys.argv[1]
inside, home, _root = view.make(tree, [("m0", "/data"), ("m1", "/file"), ("m2", "/link/there")])
print(os.path.exists(tree + "/rootfs/mark"))
spawn.set_namespace(inside)
print(sorted(os.listdir("/")), os.listdir("/data"), open("/file").read(), os.listdir("/outside/there"))
print([name for name in os.listdir("/proc") if name.isdigit()] == [str(os.getpid())])
spawn.set_namespace(home)
print(os.path.exists(tree + "/rootfs/mark"))
"""


@pytest.fixture
def tree(tmp_path: Path):
    for name in ("rootfs", "m0", "m2"):
        (tmp_path / name).mkdir()
    for name in ("rootfs/mark", "m0/in-data", "m2/in-link"):
        (tmp_path / name).touch()
    (tmp_path / "m1").write_text("of the file")
    (tmp_path / "outside").mkdir()
    (tmp_path / "rootfs" / "link").symlink_to("/outside")  # the guest's /outside, never the host's
    (tmp_path / "rootfs" / "outside").mkdir()
    mounts.bind(f"{tmp_path}/rootfs", f"{tmp_path}/rootfs")
    yield tmp_path
    mounts.unmount_below(str(tmp_path))


def test_the_view(tree: Path) -> None:
    before = mounts.below(str(tree))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tree)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    at_home, inside, alone, again = done.stdout.splitlines()
    assert (at_home, alone, again) == ("True", "True", "True")
    assert inside == "['data', 'file', 'link', 'mark', 'outside', 'proc'] ['in-data'] of the file ['in-link']"
    assert mounts.below(str(tree)) == before
    assert not (tree / "outside" / "there").exists()
