# SPDX-License-Identifier: Apache-2.0
"""Goal: sets of processors are read as the kernel reads them, and nothing else passes for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_fsm.oci import cpusets


@pytest.mark.parametrize(
    ("text", "numbers", "shortest"),
    [
        ("0", {0}, "0"),
        ("0-3", {0, 1, 2, 3}, "0-3"),
        ("3,1", {1, 3}, "1,3"),
        ("0-1,2-2,5 , 7-8\n", {0, 1, 2, 5, 7, 8}, "0-2,5,7-8"),
        ("1,1,0-1", {0, 1}, "0-1"),
    ],
)
def test_a_list(text: str, numbers: set[int], shortest: str) -> None:
    assert cpusets.parse(text) == numbers
    assert cpusets.text_of(frozenset(numbers)) == shortest


@pytest.mark.parametrize(
    "text", ["", ",", "0,", "a", "-1", "1-", "3-1", "0-3:1/2", "0x1", "0..3", "0-99999999", "65536"]
)
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError):  # which one is told by the field's message
        cpusets.parse(text)


def test_none() -> None:
    assert cpusets.text_of(frozenset()) == ""


def test_what_the_host_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = cpusets.of_host("cpus")
    assert cpus is None or 0 in cpus
    monkeypatch.setattr(cpusets, "_ONLINE", {"cpus": str(tmp_path / "cpus"), "mems": str(tmp_path / "mems")})
    assert cpusets.of_host("cpus") is None
    assert cpusets.of_host("mems") == {0}, "a kernel without NUMA has one node"
    (tmp_path / "mems").write_text("0-1\n")
    assert cpusets.of_host("mems") == {0, 1}
    (tmp_path / "cpus").write_text("?")
    assert cpusets.of_host("cpus") is None
