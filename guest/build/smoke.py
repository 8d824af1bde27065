# SPDX-License-Identifier: Apache-2.0
"""`python -m guest.build.smoke`: boots the image in a bare QEMU and says how long its agent takes to answer.

For whoever works on the image, and as the bare time that a benchmark compares the runtime with. Needs no root.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from guest.build import params
from guest.build.errors import BuildError
from guest.build.image import INITRD, MANIFEST, VMLINUX, Layout
from kata_wire.session import NONCE_BYTES, hello

QEMU = "qemu-system-x86_64"
MEMORY_MIB = 256
TIMEOUT_S = 60.0  # a boot takes 2 s here; a loaded machine may take ten times that
POLL_S = 0.002
CONSOLE_TAIL = 2000  # characters worth showing of a guest that did not answer
ROOT_PORTS = 4


def command(image: Path, directory: Path, memory_mib: int) -> list[str]:
    """The argv of QEMU; the agent's port is `directory`/agent.sock, the console `directory`/console.log."""
    parameters = json.loads((image / MANIFEST).read_bytes())["parameters"]
    argv = [QEMU, "-M", "q35,memory-backend=mem", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-accel", "tcg,tb-size=128", "-cpu", params.TCG_CPU, "-m", f"{memory_mib}M"]
    argv += ["-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on"]
    argv += ["-kernel", str(image / VMLINUX), "-initrd", str(image / INITRD)]
    argv += ["-append", " ".join(parameters["common"] + parameters["tcg"])]
    argv += ["-chardev", f"file,id=console,path={directory}/console.log", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=agent,path={directory}/agent.sock,server=on,wait=off"]
    argv += ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent.0"]
    for number in range(ROOT_PORTS):
        argv += ["-device", f"pcie-root-port,id=rp{number},bus=pcie.0,chassis={number + 1},slot={number + 1}"]
    return argv


def boot(image: Path, memory_mib: int = MEMORY_MIB) -> float:
    """Seconds from starting QEMU to the agent's answer. Raises BuildError with the console's end if there is none."""
    with tempfile.TemporaryDirectory(prefix="kata-fsm-smoke-") as name:
        directory = Path(name)
        start = time.monotonic()
        with subprocess.Popen(command(image, directory, memory_mib), stdin=subprocess.DEVNULL) as qemu:
            try:
                greet(directory / "agent.sock", qemu, start + TIMEOUT_S)
                return time.monotonic() - start
            except OSError as error:
                console = directory / "console.log"
                tail = console.read_text(errors="replace")[-CONSOLE_TAIL:] if console.exists() else ""
                raise BuildError(f"the agent did not answer: {error}; the console's end:\n{tail}") from error
            finally:
                qemu.kill()


def greet(path: Path, qemu: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Opens a session with the agent and waits for its echo. Raises OSError."""
    with connect(path, qemu, deadline) as port:
        greeting = hello(os.urandom(NONCE_BYTES))
        port.sendall(greeting)
        received = b""
        while greeting not in received:
            port.settimeout(max(deadline - time.monotonic(), POLL_S))
            data = port.recv(65536)
            if not data:
                raise OSError("the machine ended")
            received += data


def connect(path: Path, qemu: "subprocess.Popen[bytes]", deadline: float) -> socket.socket:
    """The agent's port, once QEMU has made its socket. Raises OSError."""
    while True:
        port = socket.socket(socket.AF_UNIX)
        try:
            port.connect(str(path))
            return port
        except OSError:
            port.close()
            if qemu.poll() is not None or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def main() -> int:
    """Boots a number of times; prints the median and the fastest."""
    parser = argparse.ArgumentParser(prog="python -m guest.build.smoke", description=__doc__)
    parser.add_argument("--image", type=Path, default=Layout().out, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    try:
        times = [boot(options.image, options.memory) for _ in range(options.count)]
    except (BuildError, OSError) as error:
        print(f"guest image: {error}", file=sys.stderr)
        return 1
    print(f"agent ready: median {statistics.median(times):.3f} s, best {min(times):.3f} s, {len(times)} boots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
