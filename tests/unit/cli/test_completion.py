# SPDX-License-Identifier: Apache-2.0
"""Completion and manual pages: they know what `--help` knows, and shells and roff take them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kata_fsm.cli import completion, grammar, manual
from kata_fsm.cli.main import VERBS

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def verbs() -> dict[str, grammar.Verb]:
    return {verb.name: verb for verb in grammar.verbs()}


def _names_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"version"}))
def test_no_option_of_the_help_is_missing(command: Any, verbs: dict[str, grammar.Verb], verb: str) -> None:
    """What a verb prints for `--help` and what completion and manual offer are the same options."""
    names = {name for option in verbs[verb].options for name in option.names if name.startswith("--")}
    names |= {name for part in verbs[verb].parts for option in part.options for name in option.names}
    said = command(verb, "--help").stdout
    listed = {name for line in said.splitlines() if re.match(r"  -", line) for name in _names_in(line.split("   ")[0])}
    usage = _names_in("".join(re.findall(r"\[-[^\]]*\]", said)))
    assert (listed | usage) - {"--help"} <= names


def test_every_global_option_is_there(command: Any) -> None:
    names = {name for option in grammar.global_options() for name in option.names}
    assert _names_in(command("--help").stdout.partition("GLOBAL OPTIONS")[2]) <= names


def test_the_parsers_work_again_afterwards(verbs: dict[str, grammar.Verb]) -> None:
    import argparse

    assert argparse.ArgumentParser().parse_args([]) == argparse.Namespace()


def complete(command: Any, script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    listed = " ".join(f"'{word}'" for word in ("kata-fsm", *words))
    lines = (
        f'PATH="{command.directory}:$PATH"; source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words)}; '
        '_kata_fsm; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", lines],
        env={**command.environment, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes(command: Any, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(command("completion", "bash").stdout)
    assert complete(command, script, "st") == ["start", "state"]
    assert complete(command, script, "--log-f") == ["--log-format"]
    assert complete(command, script, "--log-format", "") == ["text", "json"]
    assert complete(command, script, "--debug", "journal", "ver") == ["verify"]
    assert complete(command, script, "journal", "verify", "--q") == ["--quick"]
    assert complete(command, script, "config", "sh") == ["show"]
    assert complete(command, script, "delete", "--f") == ["--force"]
    assert complete(command, script, "logs", "--source", "ag") == ["agent"]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "c.toml").write_text("")
    assert complete(command, script, "--config", f"{tmp_path}/files/") == [f"{tmp_path}/files/c.toml"]


def test_bash_completes_containers(command: Any, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(command("completion", "bash").stdout)
    command.environment["KATA_FSM_RUN"] = str(command.root)  # the default namespace is the run directory
    command.add("web-1")
    assert complete(command, script, "delete", "we") == ["web-1"]
    assert complete(command, script, "create", "--no") == ["--no-pivot", "--no-new-keyring"]


@pytest.mark.parametrize(("shell", "words"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_the_shell_takes_it(command: Any, tmp_path: Path, shell: str, words: list[str]) -> None:
    done = command("completion", shell)
    assert done.returncode == 0
    for verb in VERBS:
        assert verb in done.stdout
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(done.stdout)
    checked = subprocess.run(
        [program, *words, str(script)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


OFFERED = {
    "kata-fsm stat": "state",
    "kata-fsm --log-format text journal ver": "verify",
    "kata-fsm --log-format js": "json",
    "kata-fsm journal verify --qu": "--quick",
    "kata-fsm network list-i": "list-ifaces",
    "kata-fsm config sch": "schema",
    "kata-fsm delete --fo": "--force",
    "kata-fsm delete we": "web-1",
}
"""A command line, and what it is completed to."""


@pytest.fixture
def at_hand(command: Any) -> dict[str, str]:
    """The environment of an interactive shell with the command in its PATH and one container."""
    command.environment["KATA_FSM_RUN"] = str(command.root)
    command.add("web-1")
    return {**command.environment, "PATH": f"{command.directory}:/usr/bin:/bin", "TERM": "dumb", "HOME": "/nonexistent"}


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes(command: Any, at_hand: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(command("completion", "fish").stdout)
    at_hand["HOME"] = str(tmp_path)
    for line, wanted in OFFERED.items():
        asked = ["fish", "-N", "-c", f"source {script}; complete -C '{line}'"]
        done = subprocess.run(asked, env=at_hand, capture_output=True, text=True, timeout=LIMIT_S, check=True)
        assert [one.partition("\t")[0] for one in done.stdout.splitlines()] == [wanted], line
        assert done.stderr == ""


_ZSH = """
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1=; fpath=($1 \\$fpath); autoload -U compinit; compinit -u -D; print -r -- RE''ADY"
zpty -r z seen '*READY*'
zpty -w -n z "$2"$'\t'
zpty -r -m z seen "*$3*" && print -r -- "completed to $3"
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(command: Any, at_hand: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "_kata-fsm").write_text(command("completion", "zsh").stdout)
    for line, wanted in OFFERED.items():
        asked = ["zsh", "-f", "-c", _ZSH, "zsh", str(tmp_path), line, wanted]
        done = subprocess.run(asked, env=at_hand, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.stdout.splitlines()[-1:] == [f"completed to {wanted}"], (line, done)


def test_the_shells_are_told_once() -> None:
    from kata_fsm.cli.verbs.completion import SHELLS

    assert completion.SHELLS == SHELLS


def test_there_is_a_page_for_every_verb_and_roff_takes_it(tmp_path: Path) -> None:
    manual.main(str(tmp_path))
    pages = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert pages.keys() == {"kata-fsm.8", *(f"kata-fsm-{verb}.8" for verb in VERBS)}
    assert "\\fB\\-\\-origin\\fR" in pages["kata-fsm-config.8"]
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    argv = [groff, "-man", "-z", "-ww", "-Tutf8", *(str(path) for path in sorted(tmp_path.iterdir()))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
