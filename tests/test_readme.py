"""The README says what the code does."""

from __future__ import annotations

import re

from conftest import ROOT

import openwhisk

README = (ROOT / "README.md").read_text()


def test_the_table_lists_every_environment_variable() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`|.*?) \|", README, re.MULTILINE)
    assert dict(rows) == {name: default for name, (default, _, _) in openwhisk.SETTINGS.items()}


def test_the_table_lists_every_stack() -> None:
    table = README.partition("| Python |")[2].partition("\n\n")[0]
    listed = {}
    for row in table.splitlines()[2:]:
        pythons, flask, werkzeug, rest, maxfw = (cell.strip() for cell in row.split("|")[1:6])
        pins = f"flask=={flask} werkzeug=={werkzeug} {rest.replace(' ', '==')} maxfw=={maxfw}"
        listed.update(dict.fromkeys(pythons.split(", "), set(pins.split())))
    stacks = {file.stem: set(file.read_text().split()) for file in (ROOT / "requirements" / "stacks").glob("*.txt")}
    assert set(listed) == set(stacks)
    for python, wanted in listed.items():
        assert wanted <= stacks[python], python
