"""./demo.sh on a fresh clone: what it prints works as printed, and it leaves nothing running."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from conftest import ROOT, Process, free_port, request, running


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git has, or would take, in a folder of their own."""
    folder = tmp_path_factory.mktemp("clone")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(
        None, subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    ):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def test_the_demo_reads_the_text_in_a_picture(clone: Path) -> None:
    port = free_port()
    with running(Process("./demo.sh", cwd=clone, env={"PORT": str(port)})) as demo:
        said = demo.until("Ctrl-C", demo.out, seconds=900)
        curl = re.search(r"^ +(curl .*)", said, re.MULTILINE)
        assert curl
        answer = subprocess.run(curl[1], shell=True, cwd=clone, check=True, capture_output=True, text=True).stdout
        readme = (clone / "README.md").read_text()
        assert f"$ {curl[1]}\n{answer}".replace(str(port), "3233") in readme
        assert f"$ ./demo.sh\n{said}".replace(str(port), "3233") in readme
        ui = re.search(r"http://\S+/(?=\n)", said)
        assert ui
        with urllib.request.urlopen(ui[0]) as page:
            assert b"swagger-ui" in page.read()
        demo.popen.send_signal(signal.SIGINT)
        assert demo.popen.wait(timeout=30) == 130
    with pytest.raises(ConnectionRefusedError):
        request(port, "GET", "/")
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.popen.pid, 0)


def fails(clone: Path, words: str, **env: str) -> None:
    demo = Process("./demo.sh", cwd=clone, env=env)
    assert demo.popen.wait(timeout=120) == 1
    assert words in demo.rest(demo.err)
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.popen.pid, 0)


def test_the_demo_says_that_a_port_is_busy(clone: Path, recorder: Process) -> None:
    test_port = str(recorder.port)
    fails(clone, f"Port {test_port} is busy", PORT=test_port)
    fails(clone, "Port none is busy or no port", PORT="none")


def test_the_demo_says_what_is_missing(clone: Path, tmp_path: Path) -> None:
    shutil.copytree(clone, tmp_path / "clone", ignore=shutil.ignore_patterns(".venv"))
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    path = f"{python.parent}:{os.environ['PATH']}"
    real = shutil.which("python3")
    for script, words in (
        (f'[ "$2" = venv ] && exit 1\nexec {real} "$@"', "install its venv module"),
        ("exit 1", "is too old"),
    ):
        python.write_text("#!/bin/sh\n" + script + "\n")
        python.chmod(0o755)
        fails(tmp_path / "clone", words, PATH=path)
    no_network = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    fails(tmp_path / "clone", "is there a network?", **no_network, PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="")
