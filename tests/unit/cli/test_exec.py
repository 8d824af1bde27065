# SPDX-License-Identifier: Apache-2.0
"""`exec`: what it sends, what it costs, and its options, which argparse would read in the same way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_fsm.cli.arguments import parser_of
from kata_fsm.cli.options import Values, parse, read
from kata_fsm.cli.verbs.exec import OPTIONS
from kata_fsm.errors import UsageError
from tests.unit.cli.test_main import FORBIDDEN

LIMIT_S = 30.0
_WORDS = st.sampled_from(
    [name for option in OPTIONS for name in option.names]
    + [f"{option.names[0]}=" for option in OPTIONS]
    + ["--env=A=B", "-eA=B", "-dt", "--cwd=/x", "--preserve-fds=3", "--preserve-fds=x", "--no-new-privs=1", "--bogus"]
    + ["box", "true", "A=B", "", "-", "--", "-1", "7", "a b", "-a b", "---", "--en", "-x"]
)


def by_argparse(argv: list[str]) -> dict[str, Any] | str:
    try:
        return vars(parser_of("exec", "", OPTIONS).parse_args(argv, namespace=Values()))
    except UsageError as error:
        return str(error)


@given(st.lists(_WORDS, max_size=7))
def test_what_is_read_at_once_is_read_as_argparse_would(argv: list[str]) -> None:
    found = read(OPTIONS, argv)
    assert found is None or vars(found) == by_argparse(argv)


def test_the_forms_that_programs_use_are_read_at_once() -> None:
    argv = [
        "--process",
        "/p.json",
        "--detach",
        "--pid-file=/pid",
        "-e",
        "A=B",
        "--env",
        "C=",
        "-t",
        "box",
        "ls",
        "--",
        "-l",
    ]
    found = read(OPTIONS, argv)
    assert found is not None
    assert (found.process, found.detach, found.pid_file, found.env) == ("/p.json", True, "/pid", ["A=B", "C="])
    assert (found.tty, found.preserve_fds, found.user, found.cap) == (True, 0, None, [])
    assert (found.id, found.command) == ("box", ["ls", "--", "-l"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus", "box"], "unrecognized arguments: --bogus"),
        ([], "the following arguments are required: ID, CMD"),
        (["--env"], "argument --env/-e: expected one argument"),
        (["--preserve-fds", "x", "box"], "argument --preserve-fds: invalid int value: 'x'"),
    ],
)
def test_mistakes_are_told_as_by_the_other_verbs(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=r"^exec: ") as caught:
        parse("exec", "", OPTIONS, argv)
    assert message in str(caught.value)


def add(command: Any, bundle: Any) -> None:
    command.add("box", status="running", bundle=bundle(), state="running", home={"netns": None, "cgroups": ["/none"]})


def test_the_shim_is_named_to_the_supervisor_and_cgroups_come_later(stubbed: Any, bundle: Any, tmp_path: Path) -> None:
    add(stubbed, bundle)
    done = stubbed("--log", str(tmp_path / "log"), "exec", "--env", "A=B", "box", "cat", "x", input="hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, "echo: hello", "")
    request = json.loads((tmp_path / "state" / "request.json").read_text())
    assert (request["container"], request["where"]) == ("box", "exec")
    assert (request["process"]["args"], request["process"]["env"][-1]) == (["cat", "x"], "A=B")
    assert sorted(request["shim"]) == ["pid", "start_ticks"]
    log = (tmp_path / "log").read_text()
    assert "cgroup `/none` does not take the shim" in log
    assert "exec: a warning" in log


def test_a_refusal_is_told_and_its_shim_is_gone(stubbed: Any, bundle: Any, tmp_path: Path) -> None:
    add(stubbed, bundle)
    stubbed.plan(refuse="exec: `cwd`: no")
    done = stubbed("exec", "box", "true")
    assert (done.returncode, done.stderr) == (1, "exec: `cwd`: no\n")
    pid = json.loads((tmp_path / "state" / "request.json").read_text())["shim"]["pid"]
    assert not Path(f"/proc/{pid}").exists()


def test_it_imports_next_to_nothing(stubbed: Any, bundle: Any) -> None:
    add(stubbed, bundle)
    argv = [os.path.realpath(sys.executable), "-IS", "-X", "importtime", str(stubbed.path), "--root", str(stubbed.root)]
    done = subprocess.run(
        [*argv, "exec", "box", "true"],
        env=stubbed.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "kata_fsm.cli.attached" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in (*FORBIDDEN, "collections", "ctypes", "hashlib")]
