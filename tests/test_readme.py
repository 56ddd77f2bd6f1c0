"""The README, the pages beside it and each --help say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Process, documented, free_port, run, running

import openwhisk

README = (ROOT / "README.md").read_text()
BEHAVIOUR = (ROOT / "docs/behaviour.md").read_text()
SCRIPTS = {name: (ROOT / name).read_text() for name in ("build.sh", "deploy.sh")}
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def variables_of(script: str) -> dict[str, str]:
    """The environment variables that the script reads, and their defaults."""
    return dict(re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", SCRIPTS[script]))


def test_the_table_lists_every_setting() -> None:
    rows = re.findall(
        r"^\| `(OPENWHISK_[A-Z_]+)` \| (?:`([A-Z_]+)`)? ?\| (?:`(.*?)`)? ?\| .* \| (yes)? ?\|$",
        BEHAVIOUR,
        re.MULTILINE,
    )
    defaults = {name: default for name, (default, _, _) in openwhisk.SETTINGS.items()}
    assert {name: default for name, _, default, _ in rows} == defaults
    assert tuple(name for name, *_, bound in rows if bound) == openwhisk.BOUND
    for name, variable, _, bound in rows:
        scripts = [script for script in SCRIPTS if variable in variables_of(script)]
        assert not variable or scripts
        assert not bound or f"--param {name} " in SCRIPTS["deploy.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_help_lists_every_variable_of_a_script(script: str) -> None:
    text, variables = run(ROOT / script, "--help"), variables_of(script)
    assert set(re.findall(r"^  ([A-Z_]{3,})  ", text, re.MULTILINE)) == set(variables)
    for name in {"REGISTRY", "TAG", "TIMEOUT", "DOCKER", "MEMORY", "WSK"} & set(variables):
        shown = re.search(rf"^  {name} .*\(default: ([^;)]*)", text, re.MULTILINE)
        assert shown and shown[1] == variables[name]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_option_that_a_script_does_not_have_is_a_sentence(script: str) -> None:
    done = subprocess.run([ROOT / script, "--pull"], capture_output=True, text=True)
    assert (done.returncode, "there is no option --pull" in done.stderr) == (1, True)


def test_the_pages_name_no_other_variable() -> None:
    known = {*variables_of("build.sh"), *variables_of("deploy.sh")}
    known |= {"UVICORN_ROOT_PATH", "LLAMA_ARG_PORT"}
    assert set(re.findall(r"\b([A-Z_]{3,})=", README + BEHAVIOUR)) <= known


def test_the_change_is_that_of_the_dockerfile() -> None:
    lines = re.findall(r"^\+(.*)", README, re.MULTILINE)
    assert len(lines) == 2
    assert set(lines) <= set((ROOT / "Dockerfile").read_text().splitlines())


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    local = README.replace("https://openwhisk.example.com", "http://127.0.0.1:3233")
    commands = re.findall(r"^\$ (.*)", local, re.MULTILINE)
    assert len(commands) == 5
    assert [command for command in commands if command not in tests] == []


def test_the_changelog_is_of_this_version() -> None:
    latest = re.search(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert latest and latest[1] == openwhisk.__version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    for path, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings]
        assert not heading or heading in slugs, f"{path}#{heading}"


def test_the_development_server_prints_the_url(recorder: Process) -> None:
    command = ".venv/bin/python devserver.py http://127.0.0.1:8080 --action max-ocr --web raw"
    port = str(free_port())
    arguments = command.replace("8080", str(recorder.port)).split()[1:]
    with running(Process(sys.executable, *arguments, "--port", port, cwd=ROOT)) as server:
        assert server.out.get(timeout=60).replace(port, "3233") == documented(command)


def test_the_table_lists_every_stack() -> None:
    table = BEHAVIOUR.partition("| Python |")[2].partition("\n\n")[0]
    listed = []
    for row in table.splitlines()[2:]:
        python, flask, werkzeug, rest, maxfw = (cell.strip() for cell in row.split("|")[1:6])
        packages = f"flask=={flask} werkzeug=={werkzeug} {rest.replace(' ', '==')} maxfw=={maxfw}"
        listed.append((python, set(packages.split())))
    stacks = list((ROOT / "requirements" / "stacks").glob("*.txt"))
    for file in stacks:
        python, pins = file.stem.partition("-")[0], set(file.read_text().split())
        assert [row for row in listed if row[0] == python and row[1] <= pins], file.stem
    assert len(listed) == len(stacks)
