# SPDX-License-Identifier: Apache-2.0
"""Global options, errors, the launcher, and what the hot verbs may cost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kata_fsm import __version__
from kata_fsm.cli import launcher
from kata_fsm.cli.durations import seconds_of
from kata_fsm.cli.main import VERBS
from kata_fsm.errors import UsageError

FORBIDDEN = (
    "argparse",
    "json",
    "re",
    "typing",
    "enum",
    "msgspec",
    "trio",
    "qemu",
    "pyroute2",
    "signal",
    "socket",
    "site",
)


@pytest.mark.parametrize("name", ["KATA_FSM_RUN", "KATA_FSM_STATE", "KATA_FSM_JOURNAL"])
def test_a_relative_place_is_refused(command: Any, name: str) -> None:
    command.environment[name] = "here"
    done = command("list")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{name}: `here` is not an absolute path\n")


def test_version_parses_for_go_runc(command: Any) -> None:
    lines = command("--version").stdout.splitlines()
    assert lines[0] == f"kata-fsm version {__version__}"
    assert [line.partition(": ")[0] for line in lines[1:]] in (["commit", "spec"], ["spec"])
    assert re.fullmatch(r"spec: 1\.0\.2\S*", lines[-1])
    assert len(command("version").stdout.splitlines()) == 3


def test_default_paths_and_usage(command: Any) -> None:
    for option in ("--show-default-config-paths", "--kata-show-default-config-paths"):
        assert command(option).stdout.splitlines() == [
            "/etc/kata-containers/configuration.toml",
            "/usr/share/defaults/kata-containers/configuration.toml",
        ]
    nothing = command()
    assert (nothing.returncode, nothing.stdout) == (0, command("--help").stdout)
    assert all(f"   {verb} " in nothing.stdout for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bogus",), 'Invalid command "bogus"'),
        (("--log-format", "xml", "list"), 'unknown log-format "xml"'),
        (("--nope", "list"), "flag provided but not defined: `--nope` (see `kata-fsm --help`)"),
        (("--log",), "flag needs an argument: `--log`"),
        (("state",), "Missing container ID (usage: kata-fsm state [--no-recover] ID)"),
        (("state", "a", "b"), "Expecting only one container ID, got 2: ['a', 'b']"),
        (("list", "-f", "xml"), "invalid format option: `xml` is none of `table`, `json`"),
        (("start",), "start: the following arguments are required: ID (see `kata-fsm start --help`)"),
        (("kill", "x", "NOPE"), "Signal NOPE is not supported (legal are numbers and names like `SIGTERM`)"),
        (("create", "a/b"), "container id `a/b` contains `/`, legal are letters, digits and `_+.-` (use another id)"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(command: Any, words: tuple[str, ...], message: str) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message + "\n")


def test_the_log_gets_the_same_line(command: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    message = command("--log", str(log), "--log-format", "json", "kill", "nobody").stderr.strip()
    entry = json.loads(log.read_text())
    assert (entry["level"], entry["msg"], entry["command"]) == ("error", message, "kill")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", entry["time"])
    text = tmp_path / "log.txt"
    command("--log", str(text), "kill", "nobody")
    assert re.match(r'time="20[^"]+Z" level=error msg="Container ID \(nobody\) does not exist', text.read_text())
    assert (text.stat().st_mode & 0o777) == 0o640


def test_the_log_gets_it_also_when_stderr_takes_nothing(command: Any, tmp_path: Path) -> None:
    """containerd's CRI makes a pod's sandbox with a stderr that is open for reading only, and reads the log."""
    log = tmp_path / "log.json"
    argv = [str(command.path), "--log", str(log), "--log-format", "json", "kill", "nobody"]
    with open("/dev/null", "rb") as unwritable:
        done = subprocess.run(argv, env=command.environment, stdout=unwritable, stderr=unwritable, check=False)
    assert done.returncode == 1
    assert "does not exist" in json.loads(log.read_text())["msg"]


def test_state_prints_the_document_and_nothing_else(command: Any) -> None:
    document = command.add("one")
    done = command("state", "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, document, "")
    missing = command("state", "two")
    assert missing.returncode == 1
    assert "Container ID (two) does not exist" in missing.stderr


def test_list_in_all_its_forms(command: Any) -> None:
    assert command("list", "--format=json").stdout == "null\n"
    assert command("list").stdout == "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    command.add("one")
    command.add("a-rather-long-name", status="running")
    assert command("list", "-q").stdout == "a-rather-long-name\none\n"
    rows = json.loads(command("list", "-f", "json").stdout)
    assert [(row["id"], row["status"], row["owner"], row["pid"]) for row in rows] == [
        ("a-rather-long-name", "running", "#0", 5),
        ("one", "stopped", "#0", 0),
    ]
    table = command("list").stdout.splitlines()
    assert {line.index(word) for line, word in zip(table, ("PID", "5", "0"), strict=True)} == {21}


def test_roots_are_namespaces(command: Any) -> None:
    command.add("one")
    assert command("--root", "/elsewhere", "list", "-q").stdout == ""


def test_an_orphan_is_recovered_first_unless_told_not_to(command: Any) -> None:
    document = command.add("one", status="running", live=True)
    assert command("state", "--no-recover", "one").stdout == document
    assert command("list", "--no-recover", "-q").stdout == "one\n"
    # A supervisor that reports a failure instead of recovering.
    text = command.path.read_text()
    report = """{"error": {"family": "world", "message": "cannot recover", "exit": 1}}"""
    hook = f"if sys.argv[1] == 'supervisor':\n    import os\n    os.write(3, {report.encode()!r})\n    sys.exit(1)\n"
    command.path.write_text(text.replace("from kata_fsm", hook + "from kata_fsm", 1))
    assert command("state", "one").stderr == "cannot recover\n"
    listed = command("list", "-q")
    assert (listed.returncode, listed.stdout) == (0, "one\n")
    assert listed.stderr == "WARNING: sandbox `one` could not be recovered: cannot recover\n"


def loaded_by(command: Any, *words: str) -> set[str]:
    argv = [os.path.realpath(sys.executable), "-IS", "-X", "importtime", str(command.path), "--root", str(command.root)]
    done = subprocess.run([*argv, *words], env=command.environment, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("words", [("state", "one"), ("list",), ("list", "-f", "json"), ("list", "-q")])
def test_hot_verbs_import_next_to_nothing(command: Any, words: tuple[str, ...]) -> None:
    command.add("one")
    loaded = loaded_by(command, *words)
    assert "journal.peek" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in FORBIDDEN]
    ours = {name for name in loaded if name.startswith(("kata_fsm.", "journal."))}
    assert len(ours) <= 15, sorted(ours)


def test_starts_without_any_environment_from_anywhere(command: Any) -> None:
    done = subprocess.run([command.path, "--version"], env={}, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kata-fsm version")


def test_a_long_interpreter_path_is_started_by_the_shell(command: Any, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / "it's here"
    deep.mkdir(parents=True)
    (deep / "python").symlink_to(os.path.realpath(sys.executable))
    command.path.write_text(launcher.text(str(deep / "python"), launcher.search_path()))
    assert command.path.read_text().startswith("#!/bin/sh\n")
    done = subprocess.run([command.path, "--version"], env={}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kata-fsm version")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help(command: Any, verb: str) -> None:
    done = command(verb, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout


def test_durations() -> None:
    assert [seconds_of(text) for text in ("5s", "1m30s", "250ms", "0", "-1s")] == [5.0, 90.0, 0.25, 0.0, -1.0]
    for wrong in ("", "5", "s", "5x", "1s2"):
        with pytest.raises(UsageError, match="is no duration"):
            seconds_of(wrong)


def test_spec_writes_once_and_features_are_json(command: Any, tmp_path: Path) -> None:
    assert command("spec", "--bundle", str(tmp_path)).returncode == 0
    written = tmp_path / "config.json"
    assert json.loads(written.read_text())["process"]["args"] == ["sh"]
    assert (written.stat().st_mode & 0o777) == 0o640
    assert command("spec", "--bundle", str(tmp_path)).stderr == f"File {written} exists. Remove it first\n"
    assert json.loads(command("features").stdout)["ociVersionMax"] == "1.3.0"


def test_delete_force_of_an_unknown_id_is_no_error(command: Any) -> None:
    assert command("delete", "--force", "nobody").returncode == 0
    assert command("delete", "nobody").returncode == 1


def test_broken_bundles_leave_nothing(command: Any, bundle: Any, tmp_path: Path) -> None:
    directory = bundle(process={"cwd": "/", "args": [5]})
    done = command("create", "--bundle", directory, "x")
    assert (done.returncode, done.stderr) == (1, "config.json: `process.args[0]`: expected `str`, got `int`\n")
    done = command("create", "--bundle", str(tmp_path / "none"), "x")
    assert done.stderr == f"Invalid bundle path '{tmp_path}/none': no such file or directory\n"
    terminal = bundle()
    config = Path(terminal) / "config.json"
    config.write_text(config.read_text().replace('"terminal": false', '"terminal": true'))
    done = command("create", "--bundle", terminal, "x")
    assert "cannot allocate tty" in done.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "state").exists()


def test_a_taken_id_is_refused(command: Any, bundle: Any) -> None:
    command.add("taken")
    done = command("create", "--bundle", bundle(), "taken")
    assert done.stderr.startswith("ID already in use, unique ID should be provided (container `taken` is `stopped`")


def test_closed_standard_descriptors_are_no_harm(command: Any) -> None:
    """Whatever is opened next would take their numbers."""
    command.add("box")
    shell = ["/bin/sh", "-c", f"exec {command.path} --root {command.root} list <&- >&- 2>&-"]
    assert subprocess.run(shell, env=command.environment, timeout=30, check=False).returncode == 0
