# SPDX-License-Identifier: Apache-2.0
"""Goal: a limit of rate holds for real traffic in both directions, and leaves the namespace as it was."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kata_fsm.testing.bundle import config
from tests.support import lab as laboratory
from tests.support.kata import LIMIT_S, Kata
from tests.support.lab import Lab, Namespace

OUTSIDE, PORT = "10.62.0.1", 9000
BYTES = 3 << 20
INWARD, OUTWARD = 8_000_000, 4_000_000
BURST = 0.15  # of the bytes may have passed at once, or be under way when it ends


@pytest.fixture
def lab(kata: Kata) -> Iterator[Lab]:
    with laboratory.opened() as made:
        yield made


def pod_of(lab: Lab) -> tuple[Namespace, Namespace]:
    pod, out = lab.namespace("pod"), lab.namespace("out")
    lab.wire(pod, "eth0", out, "far0")
    pod.address("eth0", "10.62.0.2/24")
    out.address("far0", f"{OUTSIDE}/24")
    pod.settle("eth0")
    return pod, out


def started(kata: Kata, lab: Lab, pod: Namespace, name: str, text: str) -> None:
    file = kata.base / f"{name}.toml"
    file.write_text(text)
    linux: dict[str, Any] = config(("/bin/sleep",))["linux"]
    for each in linux["namespaces"]:
        if each["type"] == "network":
            each["path"] = pod.path
    bundle = kata.bundle(name, "/bin/sleep", "1000", linux=linux)
    kata("--config", str(file), "create", "--bundle", str(bundle), name)
    kata("start", name)


def passed(kata: Kata, out: Namespace, name: str, *, inward: bool) -> float:
    """Bits per second at which a connection carries `BYTES` into the guest, or out of it."""

    def listening() -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(LIMIT_S)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # so little may come before it is looked at
        made.bind((OUTSIDE, PORT))
        made.listen(1)
        return made

    work = f"nc {OUTSIDE} {PORT} | wc -c" if inward else f"head -c {BYTES} /dev/zero | nc {OUTSIDE} {PORT}"
    with out.inside(listening) as listener, kata.spawn("exec", name, "/bin/sh", "-c", work) as verb:
        accepted, _ = listener.accept()
        began = time.monotonic()
        with accepted:
            accepted.settimeout(LIMIT_S)
            if inward:
                accepted.sendall(bytes(BYTES))
            else:
                received = 0
                while received < BYTES:
                    received += len(data := accepted.recv(1 << 16))
                    assert data, f"it ended after {received} of {BYTES} bytes"
                took = time.monotonic() - began
        said, _ = verb.communicate(timeout=LIMIT_S)
        if inward:
            assert said.split() == [str(BYTES)]
            took = time.monotonic() - began
    return BYTES * 8 / took


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
def test_the_rate_holds_both_ways(kata: Kata, lab: Lab, model: str) -> None:
    pod, out = pod_of(lab)
    before = pod.dump()
    runtime = f'[runtime]\ninternetworking_model = "{model}"\n'
    limits = f"rx_rate_limiter_max_rate = {INWARD}\ntx_rate_limiter_max_rate = {OUTWARD}\n"
    started(kata, lab, pod, "c1", f"[hypervisor.qemu]\n{limits}{runtime}")
    for inward, limit in ((True, INWARD), (False, OUTWARD)):
        rate = passed(kata, out, "c1", inward=inward)
        print(f"{model}: {'into' if inward else 'out of'} the guest {rate / 1e6:.2f} of {limit / 1e6:g} Mbit/s")
        assert rate < limit / (1 - BURST)  # how near it comes is the host's affair
    kata("delete", "--force", "c1")
    assert laboratory.changes(before, pod.dump()) == ""
