# SPDX-License-Identifier: Apache-2.0
"""`config`, and what `create` does with the configuration: said in the log, recorded, refused before anything is begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli

from kata_fsm.config import kata
from kata_fsm.config.settings import SECTIONS, Settings, effective

PREFIX = "io.katacontainers.config.hypervisor."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "configuration.toml"
    path.write_text("[hypervisor.qemu]\ndefault_memory = 512\nmsize_9p = 3\nenable_annotations = ['default_vcpus']\n")
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "10-x").write_text("[agent.kata]\n\ndial_timeout = 9\n")
    return path


def test_show_is_toml_with_every_value_and_its_origin(command: Any, file: Path) -> None:
    done = command("--config", str(file), "config", "show", "--origin")
    found = tomli.loads(done.stdout)
    keys = {".".join((*path, name)) for path, type_ in SECTIONS.items() for name in type_.__struct_fields__}
    shown = {f"hypervisor.qemu.{name}" for name in found["hypervisor"]["qemu"]}
    shown |= {f"agent.kata.{name}" for name in found["agent"]["kata"]}
    shown |= {f"{section}.{name}" for section in ("runtime", "netmon") for name in found[section]}
    assert shown == keys
    lines = done.stdout.splitlines()
    assert lines[:2] == [f"# {file}", f"# {file.parent}/config.d/10-x"]
    assert f"default_memory = 512  # {file}:2" in lines
    assert f"dial_timeout = 9  # {file.parent}/config.d/10-x:3" in lines
    assert "default_vcpus = 1  # default" in lines
    assert lines[-1] == f"# hypervisor.qemu.msize_9p = 3  # {file}:3: directories reach the guest by virtio-fs"
    assert done.stderr.startswith(f"warning: `{file}:3`: `hypervisor.qemu.msize_9p` has no effect here because ")


def test_json_holds_the_same(command: Any, file: Path) -> None:
    found = json.loads(command("--kata-config", str(file), "config", "--json").stdout)
    assert found["settings"]["hypervisor.qemu.default_memory"] == {
        "value": 512,
        "origin": "file",
        "where": str(file),
        "line": 2,
    }
    assert found["settings"].keys() == effective(Settings()).keys()
    assert (found["format"], found["file"], [one["key"] for one in found["ignored"]]) == (
        1,
        str(file),
        ["hypervisor.qemu.msize_9p"],
    )


def test_diff_says_what_is_not_the_default(command: Any, file: Path) -> None:
    assert command("--config", str(file), "config", "diff").stdout.splitlines() == [
        f"hypervisor.qemu.default_memory: 256 -> 512  # {file}:2",
        f'hypervisor.qemu.enable_annotations: [] -> ["default_vcpus"]  # {file}:4',
        f"agent.kata.dial_timeout: 60 -> 9  # {file.parent}/config.d/10-x:3",
    ]
    file.write_text("[hypervisor.qemu]\ndefault_memory = 256\n")
    (file.parent / "config.d" / "10-x").unlink()
    assert command("--config", str(file), "config", "diff").stdout == ""


def test_an_annotation_can_be_tried(command: Any, file: Path) -> None:
    words = ("--config", str(file), "config", "show", "--origin", "--annotation")
    done = command(*words, PREFIX + "default_vcpus=1")
    assert f"default_vcpus = 1  # {PREFIX}default_vcpus" in done.stdout
    done = command(*words, PREFIX + "default_memory=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"annotation {PREFIX}default_memory is not enabled (the gate is `enable_annotations`")


def test_the_schema_knows_every_key(command: Any) -> None:
    found = json.loads(command("config", "schema").stdout)
    qemu = found["$defs"]["Qemu"]["properties"]
    assert qemu.keys() == {*SECTIONS["hypervisor", "qemu"].__struct_fields__, *kata.HYPERVISOR, "factory"}
    assert qemu.pop("factory")["properties"].keys() == kata.FACTORY.keys()
    assert all(field["description"] for field in qemu.values())
    assert (
        found["$defs"]["Agent"]["properties"]["mem_agent"]["properties"].keys()
        == kata.OTHER["agent.kata.mem_agent"].keys()
    )
    assert qemu["default_memory"]["default"] == 256
    assert set(found["properties"]["hypervisor"]["properties"]) == set(kata.HYPERVISORS)


def test_create_says_which_files_it_read_and_records_what_it_accepted(
    stubbed: Any, bundle: Any, file: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    stubbed.plan(refuse="no")
    annotations = {PREFIX + "default_vcpus": "1"}
    words = ("--log", str(log), "--config", str(file), "create", "--bundle", bundle(annotations=annotations), "box")
    stubbed(*words)
    assert f'msg="configuration: `{file}`, `{file.parent}/config.d/10-x`"' in log.read_text()
    assert "level=warning" in log.read_text()
    recorded = json.loads((tmp_path / "state" / "request.json").read_text())["sandbox"]
    assert recorded["config_annotations"] == annotations
    assert (recorded["config_origin"], recorded["hypervisor"]["vcpus"]) == (str(file), 1)


def test_no_key_commands_the_terminal(command: Any, file: Path) -> None:
    file.write_text('[hypervisor.qemu]\n"\\u001b[31mred" = 1\n')
    for verb in (["config", "show", "--origin"], ["config", "diff"], ["check", "--verbose"]):
        done = command("--config", str(file), *verb)
        assert "\x1b" not in done.stdout + done.stderr
        assert "hypervisor.qemu.\\e[31mred" in done.stdout + done.stderr


@pytest.mark.parametrize("by", ["flag", "file"])
def test_debug_says_what_the_machine_is_made_with(
    stubbed: Any, bundle: Any, file: Path, tmp_path: Path, by: str
) -> None:
    log, words = tmp_path / "log", ["--debug"] if by == "flag" else []
    with file.open("a") as opened:
        opened.write("[runtime]\nenable_debug = true\n" if by == "file" else "")
    stubbed.plan(refuse="no")
    done = stubbed("--log", str(log), *words, "--config", str(file), "create", "--bundle", bundle(), "box")
    assert ("warning: " in done.stderr) == (by == "flag")  # without it stderr is the container's alone
    (line,) = (one for one in log.read_text().splitlines() if "the machine's settings: " in one)
    assert "level=debug" in line
    assert " container=box " in line
    shown = stubbed(*words, "--config", str(file), "config", "show", "--origin").stdout
    where = "--debug" if by == "flag" else f"{file}:{len(file.read_text().splitlines())}"
    assert f"enable_debug = true  # {where}" in shown.splitlines()


def test_a_refused_annotation_fails_the_create_before_anything_is_begun(
    command: Any, bundle: Any, file: Path, tmp_path: Path
) -> None:
    directory = bundle(annotations={PREFIX + "path": "/bin/sh"})
    done = command("--config", str(file), "create", "--bundle", directory, "box")
    assert (done.returncode, done.stderr.partition(" (")[0]) == (1, f"annotation {PREFIX}path is not enabled")
    file.write_text("[hypervisor.qemu]\nkernel = 'x'\n")
    done = command("--config", str(file), "create", "--bundle", bundle(), "box")
    message = f"`{file}:2`: `hypervisor.qemu.kernel`: `x` is not an absolute path\n"
    assert (done.returncode, done.stderr) == (1, message)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "state").exists()


def test_the_pieces_for_engines_are_well_formed() -> None:
    engines = Path(__file__).parents[3] / "configs" / "engines"
    for path in engines.iterdir():
        text = path.read_text()
        assert "kata-fsm" in text
        if path.suffix in (".toml", ".conf"):
            assert "/usr/local/bin/kata-fsm" in str(tomli.loads(text))
        elif path.suffix == ".json":
            assert json.loads(text)["runtimes"]["kata-fsm"]["path"] == "/usr/local/bin/kata-fsm"
