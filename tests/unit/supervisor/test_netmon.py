# SPDX-License-Identifier: Apache-2.0
"""A watched network: news of a real namespace, and what is made of them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from kata_fsm.effects.network.model import Interface, Network
from kata_fsm.effects.network.news import News
from kata_fsm.errors import EffectError, WorldError
from kata_fsm.supervisor import netmon
from kata_fsm.supervisor.wiring import Wiring
from tests.support.house import House, create_request, wait_for
from tests.support.house import Wiring as HouseWiring
from tests.support.stage import LIMIT_S, Stage, of_kind
from tests.unit.supervisor import test_networking
from tests.unit.supervisor.test_networking import ETH0

QUIET_S = 0.05


def interface(name: str, **changes: Any) -> Interface:
    return Interface(**{"index": 2, "name": name, "kind": "veth", "mac": "02:00:00:00:00:02", "mtu": 1500, **changes})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netmon, "NETWORK_QUIET_S", QUIET_S)
    monkeypatch.setattr(netmon, "NETWORK_PAUSE_S", 0.0)


def ip(pod: str, *words: str) -> None:
    subprocess.run(["nsenter", f"--net={pod}", "ip", *words], check=True)


@pytest.mark.parametrize(
    "words",
    [
        ("link", "add", "br0", "type", "bridge"),
        ("addr", "add", "10.1.0.1/24", "dev", "lo"),
        ("addr", "add", "fd00::1/64", "dev", "lo"),
        ("route", "add", "10.2.0.0/16", "dev", "lo"),
        ("-6", "route", "add", "fd01::/64", "dev", "lo"),
    ],
)
async def test_every_kind_of_change_is_news(pod: str, words: tuple[str, ...]) -> None:
    news = News(pod)
    with trio.move_on_after(QUIET_S) as silent:
        await news.some()
    assert silent.cancelled_caught
    ip(pod, *words)
    with trio.fail_after(LIMIT_S):
        await news.some()
    news.close()


def test_news_of_a_namespace_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        News(str(tmp_path / "none"))


class Watched:
    """A watch over a scripted namespace: `there` is what is found in it, `recorded` what the guest was given."""

    def __init__(self, pod: str) -> None:
        self.pod = pod
        self.there = Network((interface("eth0", slot=1),))
        self.recorded: dict[str, Any] = {"netns": pod, **self.there.to_facts()}
        self.rescans = 0
        self.looks = 0
        self.fails: Exception | None = None
        self.unscannable: Exception | None = None

    def look(self, _: Network) -> Network:
        self.looks += 1
        if self.unscannable is not None:
            raise self.unscannable
        return self.there

    async def rescan(self) -> None:
        self.rescans += 1
        if self.fails is not None:
            raise self.fails
        self.recorded.update(self.there.to_facts())

    async def run(self) -> None:
        wiring = HouseWiring()
        wiring.news, wiring.found = News, self.look
        await netmon.watch(cast(Wiring, wiring), lambda: self.recorded, self.rescan)

    async def poke(self, times: int = 1) -> None:
        """Something happens in the namespace, and has been looked at."""
        before = self.looks
        for _ in range(times):
            ip(self.pod, "link", "set", "lo", "mtu", "1400")
            ip(self.pod, "link", "set", "lo", "mtu", "65536")
        await wait_for(lambda: self.looks > before, "it was looked")


@pytest.fixture
async def watched(pod: str, nursery: trio.Nursery) -> Watched:
    made = Watched(pod)
    nursery.start_soon(made.run)
    await wait_for(lambda: made.looks == 1, "it was looked at first")
    return made


async def test_what_is_as_it_was_is_left_alone(watched: Watched) -> None:
    await watched.poke()
    assert watched.rescans == 0


async def test_a_burst_of_changes_is_one(watched: Watched) -> None:
    watched.there = Network((*watched.there.interfaces, interface("eth1", index=3)))
    await watched.poke(5)
    await wait_for(lambda: watched.rescans == 1, "the guest was given it")
    watched.there = Network(tuple(interface(each.name, index=each.index, slot=9) for each in watched.there.interfaces))
    await watched.poke()  # our own slots are no news
    assert watched.rescans == 1


async def test_what_changed_while_nobody_looked_is_found(pod: str, nursery: trio.Nursery) -> None:
    made = Watched(pod)
    made.there = Network()
    nursery.start_soon(made.run)
    await wait_for(lambda: made.rescans == 1, "the guest was given it")


async def test_routes_that_were_set_by_hand_stay(pod: str, nursery: trio.Nursery) -> None:
    made = Watched(pod)
    made.recorded.update(routes=[{"family": 4, "device": "eth0", "dest": "10.0.0.0/8"}], routes_given=True)
    nursery.start_soon(made.run)
    await wait_for(lambda: made.looks == 1, "it was looked at first")
    await made.poke()
    assert made.rescans == 0


@pytest.mark.parametrize("where", ["fails", "unscannable"])
async def test_what_cannot_be_given_is_told_once_and_tried_again_when_it_changes(
    watched: Watched, capfd: pytest.CaptureFixture[str], where: str
) -> None:
    error = EffectError("scan", "`tun0` cannot be given") if where == "unscannable" else WorldError("`tun0` cannot")
    setattr(watched, where, error)
    watched.there = Network()
    for _ in range(2):
        await watched.poke()
    assert watched.rescans == (1 if where == "fails" else 0)
    assert capfd.readouterr().err.count("watching the network: `tun0` cannot") == 1
    setattr(watched, where, None)
    watched.there = Network((interface("eth7"),))
    await watched.poke()
    await wait_for(lambda: watched.rescans == (2 if where == "fails" else 1), "the guest was given it")


async def test_a_namespace_that_cannot_be_watched(capfd: pytest.CaptureFixture[str]) -> None:
    made = Watched("/no/such")
    await made.run()
    assert capfd.readouterr().err == "supervisor: the network is not watched: No such file or directory\n"


@pytest.fixture
def attached(stage: Stage) -> None:
    stage.results["network.attach"] = {"netns": "/run/x/netns", "interfaces": [ETH0], "routes": [], "neighbours": []}


async def test_a_pod_that_wants_it_is_watched_and_the_change_is_recorded(
    house: House, stage: Stage, pod: str, attached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = create_request()
    request["sandbox"]["network_watched"] = True
    monkeypatch.setattr(test_networking, "create_request", lambda: request)
    house.wiring.news = lambda held: News(pod)
    house.wiring.found = lambda known: Network()
    await test_networking.created(house)
    await wait_for(lambda: ("network.change", "") in stage.begun, "the guest's network is changed")
    (body,) = of_kind(house.journal, "intent", "network.change")
    assert body["params"]["change"] == {"rescan": True}
    assert ("network", "") in house.watcher._tasks


async def test_others_are_not(house: House, stage: Stage, attached: None) -> None:
    await test_networking.created(house)
    await house.until("sandbox", "ready")
    assert ("network", "") not in house.watcher._tasks
