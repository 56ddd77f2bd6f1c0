"""Runs the tests with the containers on each stack that is found in model images: nox -f
requirements/noxfile.py."""

import sys
from pathlib import Path

import nox

STACKS = Path(__file__).parent / "stacks"
TESTS = ["tests/test_contract.py", "tests/test_recordings.py", "tests/test_fidelity.py"]
nox.needs_version = ">=2025"
nox.options.default_venv_backend = "venv"


@nox.session(
    python=sorted(
        (file.stem for file in STACKS.glob("*.txt")), key=lambda version: int(version[2:])
    )
)
def stack(session: nox.Session) -> None:
    session.install("--quiet", "--upgrade", "pip<22" if session.python in ("3.6", "3.7") else "pip")
    session.install("--quiet", "-r", str(STACKS / f"{session.python}.txt"))
    session.chdir(STACKS.parent.parent)
    python = str(Path(session.bin) / "python")
    session.run(
        sys.executable, "-m", "pytest", "--stack", python, *TESTS, *session.posargs, external=True
    )
