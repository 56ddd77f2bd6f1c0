"""The README and each --help say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT, Process, documented, free_port, running

import openwhisk

README = (ROOT / "README.md").read_text()
FORWARD = (ROOT / "forward.py").read_text()


def help_of(*command: str) -> str:
    return subprocess.run(
        [*command, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


def variables_of(script: str) -> dict[str, str]:
    """The environment variables that the script reads, and their defaults; TMPDIR is the
    system's."""
    return dict(re.findall(r"\$\{(?!TMPDIR)([A-Z_]+):?-([^}]*)\}", (ROOT / script).read_text()))


def test_the_table_lists_every_environment_variable() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`|.*?) \|", README, re.MULTILINE)
    settings = {name: default for name, (default, _, _) in openwhisk.SETTINGS.items()}
    forward = re.findall(r'number\("(UPSTREAM_[A-Z]+)", "([0-9]*)"', FORWARD)
    assert dict(rows) == {**settings, **dict(forward)}
    assert len(forward) == 2


@pytest.mark.parametrize("script", ["build.sh", "deploy.sh"])
def test_the_help_lists_every_variable_of_a_script(script: str) -> None:
    text, variables = help_of(f"./{script}"), variables_of(script)
    listed = set(re.findall(r"^ +(?:-.*  )?([A-Z_]{3,})(?:=|  )", text, re.MULTILINE))
    assert listed | {"MODELS"} == set(variables)
    for name, default in variables.items():
        shown = re.search(rf"^ .*\b{name}\b.*\(default: ([^;)]*)", text, re.MULTILINE)
        assert not default or name in ("FORWARD", "PUSH") or (shown and shown[1] == default), name


def test_the_readme_names_no_other_variable() -> None:
    known = {*openwhisk.SETTINGS, *variables_of("build.sh"), *variables_of("deploy.sh")}
    known |= {"MODEL", *re.findall("UPSTREAM_[A-Z]+", FORWARD)}  # MODEL is a build argument
    assert set(re.findall(r"\b([A-Z_]{3,})=", README)) <= known
    assert "ARG MODEL\n" in (ROOT / "Dockerfile").read_text()


def test_every_command_is_run_by_a_test() -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    commands = re.findall(r"^\$ (.*)", README, re.MULTILINE)
    assert len(commands) >= 5
    assert [command for command in commands if command not in tests] == []


def test_the_development_server_prints_the_url(recorder: Process) -> None:
    command, port = (
        ".venv/bin/python devserver.py http://127.0.0.1:8080 --action max-ocr --web raw",
        str(free_port()),
    )
    options = re.findall("--[a-z]+", help_of(sys.executable, "devserver.py"))
    assert set(re.findall("--[a-z]+", command)) <= set(options)
    arguments = command.replace("8080", str(recorder.port)).split()[1:]
    with running(Process(sys.executable, *arguments, "--port", port, cwd=ROOT)) as server:
        assert server.out.get(timeout=60).replace(port, "3233") == documented(command)


def test_the_table_lists_every_stack() -> None:
    table = README.partition("| Python |")[2].partition("\n\n")[0]
    listed = []
    for row in table.splitlines()[2:]:
        python, flask, werkzeug, rest, maxfw = (cell.strip() for cell in row.split("|")[1:6])
        packages = f"flask=={flask} werkzeug=={werkzeug} {rest.replace(' ', '==')} maxfw=={maxfw}"
        listed.append((python, set(packages.split())))
    stacks = [
        (file.stem.partition("-")[0], set(file.read_text().split()))
        for file in (ROOT / "requirements" / "stacks").glob("*.txt")
    ]
    for python, pins in stacks:
        assert [row for row in listed if row[0] == python and row[1] <= pins], (python, pins)
    assert len(listed) == len(stacks)
