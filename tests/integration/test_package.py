# SPDX-License-Identifier: Apache-2.0
"""The wheel, in an environment of its own. The Debian package, installed over nothing but Debian's own packages: it checks,
it runs a container, it goes.

For the latter the root file system is this host's with a layer over it that is thrown away, and the checkout hidden: what
the package forgot cannot be found there. Where debootstrap is installed there is also one of nothing but Debian and what the
package says that it depends on: what it forgot to say is not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.kata import Kata

ROOT = Path(__file__).parents[2]
BUILD_S = 600.0
RUN_S = 300.0

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="installs a package"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds a Debian package"),
]

OUTSIDE = """
set -eu
mount -t tmpfs tmpfs "$1"; cd "$1"; mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root || exit 77
mount -t proc proc root/proc; mount --rbind /dev root/dev; mount --rbind /sys root/sys
mkdir package; cp "$2"/*.deb package/
for hidden in /run /tmp /var/lib /var/log "$3"; do
    case "$hidden" in /var/lib) hidden=/var/lib/kata-fsm; mkdir -p "root$hidden" ;; esac
    mount -t tmpfs tmpfs "root$hidden"
done
cp package/*.deb root/tmp/
mkdir -p root/tmp/b/rootfs/bin; cp /bin/busybox root/tmp/b/rootfs/bin/
chroot root /bin/sh -eu -c "$4"
find up -name '*kata*' ! -path '*/var/lib/dpkg/*' ! -path '*/var/lib/kata-fsm*' -type f
find root/var/lib/kata-fsm -maxdepth 1 -mindepth 1 -printf 'kept %f\\n'
"""

INSIDE = """
cd /
dpkg -i /tmp/*.deb >/tmp/dpkg.log 2>&1 || { cat /tmp/dpkg.log; exit 1; }
env -i /usr/bin/kata-fsm --version
env -i /usr/bin/kata-fsm check
env -i /usr/bin/kata-fsm env | sed -n 's/^Directory/guest/p'
grep -rho '/usr/[a-z/]*bin/kata-fsm' /usr/share/doc/kata-fsm/engines | sort -u
cd /tmp/b
env -i /usr/bin/kata-fsm spec
sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"\\/bin\\/busybox", "echo", "from the guest"/' config.json
env -i /usr/bin/kata-fsm run box </dev/null
env -i /usr/bin/kata-fsm journal verify
cd /
dpkg -r kata-fsm >/tmp/dpkg.log 2>&1 || { cat /tmp/dpkg.log; exit 1; }
"""


# A chroot's own root has to be a mount: a sandbox's processes get views of it.
CLEAN = """
set -eu
cd "$1"; mount --bind root root
mount -t proc proc root/proc; mount --rbind /dev root/dev; mount --rbind /sys root/sys; mount -t tmpfs tmpfs root/run
cp "$2"/*.deb root/tmp/
mkdir -p root/tmp/b/rootfs/bin; cp /bin/busybox root/tmp/b/rootfs/bin/
chroot root /bin/sh -eu -c "$4"
cd root
find . -xdev -name '*kata[-_]*' ! -path './var/lib/dpkg/*' ! -path './var/lib/kata-fsm*' ! -path './tmp/*' -type f
find var/lib/kata-fsm -maxdepth 1 -mindepth 1 -printf 'kept %f\\n'
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packages are."""
    out = tmp_path_factory.mktemp("dist")
    argv = ["sh", str(ROOT / "scripts" / "package"), str(out)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in out.iterdir()) == [".deb", ".whl"]
    return out


def installed(script: str, layer: Path, out: Path) -> list[str]:
    """What is said when the package is installed, used and removed in the root that `script` makes."""
    hidden = "/" + ROOT.parts[1]  # where checkouts are; the system's own directories are never it
    assert hidden not in ("/usr", "/bin", "/etc", "/var", "/lib")
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(layer), str(out), hidden]
    done = subprocess.run([*argv, INSIDE], capture_output=True, text=True, timeout=RUN_S, check=False)
    if done.returncode == 77:
        pytest.skip("no overlay can be mounted here")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def judge(lines: list[str]) -> None:
    assert lines[0].startswith("kata-fsm version ")
    assert any(line.startswith("System can currently create kata-fsm sandboxes") for line in lines)
    assert 'guest = "/usr/share/kata-fsm/guest"' in lines
    assert [line for line in lines if line.endswith("bin/kata-fsm")] == ["/usr/bin/kata-fsm"]
    assert "from the guest" in lines
    (verified,) = (at for at, line in enumerate(lines) if line.startswith("ok: "))
    assert sorted(lines[verified + 1 :]) == ["kept journal"]


def test_it_installs_runs_and_leaves_nothing_but_the_journal(built: Path, tmp_path: Path) -> None:
    judge(installed(OUTSIDE, tmp_path, built))


@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="debootstrap is not installed")
def test_it_needs_nothing_but_what_it_says(built: Path, tmp_path: Path) -> None:
    (package,) = built.glob("*.deb")
    said = subprocess.run(
        ["dpkg-deb", "-f", str(package), "Depends"], capture_output=True, text=True, check=True
    ).stdout
    names = dict.fromkeys(one.split()[0] for one in said.split(","))
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(names)}", "bookworm", str(tmp_path / "root")]
    made = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_S, check=False)
    assert made.returncode == 0, made.stdout[-2000:]
    judge(installed(CLEAN, tmp_path, built))
    shutil.rmtree(tmp_path / "root")


def test_the_wheel_works_in_an_environment_of_its_own(kata: Kata, tmp_path: Path) -> None:
    source, wheels, venv = tmp_path / "source", tmp_path / "wheels", tmp_path / "venv"
    source.mkdir()
    for name in ("kata_fsm", "journal", "kata_wire", "guest"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def ran(*argv: str) -> None:
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=BUILD_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    ran(str(ROOT / ".venv/bin/python"), "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(wheels), str(source))
    shutil.rmtree(source)
    (wheel,) = wheels.glob("kata_fsm-*.whl")
    ran("/usr/bin/python3", "-m", "venv", str(venv))
    ran(str(venv / "bin/pip"), "install", "-q", "--no-input", str(wheel))
    kata.command = venv / "bin" / "kata-fsm"
    configuration = tmp_path / "configuration.toml"
    configuration.write_text(f'[hypervisor.qemu]\nguest_directory = "{ROOT}/build/guest"\n')
    kata.env["KATA_CONF_FILE"] = str(configuration)
    version = kata("--version").stdout.splitlines()[0]
    assert version.startswith("kata-fsm version ")
    environment_of = json.loads(kata("env", "--json").stdout)
    assert environment_of["Runtime"]["Version"]["Version"]["Semver"] in version
    assert str(venv) in json.dumps(environment_of)
    assert str(ROOT) not in json.dumps(environment_of).replace(f"{ROOT}/build/guest", "")
    assert "System can currently create" in kata("check").stdout
    done = kata(
        "run", "--bundle", str(kata.bundle("b", "/bin/sh", "-c", "echo from the guest; exit 3")), "w1", check=False
    )
    assert (done.stdout, done.returncode) == ("from the guest\n", 3), done.stderr + kata.logs()
    assert kata("replay", "w1").stdout.startswith("sandbox w1")
