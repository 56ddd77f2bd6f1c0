"""The README says what the code does."""

from __future__ import annotations

import re

from conftest import ROOT

import openwhisk

README = (ROOT / "README.md").read_text()


def test_the_table_lists_every_environment_variable() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`|.*?) \|", README, re.MULTILINE)
    assert dict(rows) == {name: default for name, (default, _, _) in openwhisk.SETTINGS.items()}
