"""./demo.sh on a fresh clone: what it prints works as printed, and it leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Process, documented, free_port, needs, request, run, running
from playwright.sync_api import BrowserContext, Locator, Page

CURL = "curl -F image=@assets/receipt.png http://127.0.0.1:3233/api/v1/web/guest/default/max-ocr"
LATER = """\
$ url=http://127.0.0.1:3233/api/v1/web/guest/default/max-ocr
$ id=$(curl -sS -o answer -w '%header{x-openwhisk-activation-id}' -F image=@assets/receipt.png $url)
$ while [ "$(curl -sS -o answer -w '%{http_code}' $url-results/$id)" = 202 ]; do sleep 5; done
$ cat answer
"""
DEATHS = {  # the model's last line, and a word of the log
    "it ends": ("import os; print('no weights', flush=True); os._exit(7)", "no weights"),
    "it does not load": ("raise OSError('no weights')", "OSError"),
}
NO_VENV = f'[ "$2" = venv ] && exit 1\nexec {shutil.which("python3")} "$@"'
TOO_OLD = f'case "$*" in *"(3, %d)"*) exit 1; esac\nexec {shutil.which("python3")} "$@"'
PYTHONS = {"install its venv module": NO_VENV, "is too old": TOO_OLD % 9}
DEMANDS = {  # what test.sh says: python3, its option
    "need Python 3.11 or newer": (TOO_OLD % 11, "--all"),
    "no option but --all": (f'exec {sys.executable} "$@"', "--al"),
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The files that git has, or would take. With --all, ./demo.sh makes their .venv, too."""
    needs("git")
    folder = tmp_path_factory.mktemp("clone")
    if not pytestconfig.getoption("--all"):
        (folder / ".venv").symlink_to(ROOT / ".venv")
    listing = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listing.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def demo(clone: Path) -> Iterator[Process]:
    port = free_port()
    with running(Process("./demo.sh", cwd=clone, port=port, env={"PORT": str(port)})) as demo:
        yield demo


@pytest.fixture(scope="module")
def said(demo: Process) -> str:
    return demo.until("Ctrl-C", demo.out, seconds=900)


def in_bash(script: str, port: int, folder: Path) -> str:
    command = ["bash", "-ec", script.replace("3233", str(port))]
    return subprocess.check_output(command, cwd=folder, text=True)


def test_the_demo_prints_what_the_readme_shows_and_that_works(
    clone: Path, demo: Process, said: str, pytestconfig: pytest.Config
) -> None:
    printed, shown = said.replace(str(demo.port), "3233"), documented("./demo.sh")
    assert printed == shown[0 if pytestconfig.getoption("--all") else shown.index("Loading") :]
    assert f"    {CURL}\n" in printed
    elsewhere = CURL.replace("http://127.0.0.1:3233", "https://openwhisk.example.com")
    assert in_bash(CURL, demo.port, clone) == documented(elsewhere)


def test_the_demo_keeps_answers_for_later(clone: Path, demo: Process, said: str) -> None:
    shown = (ROOT / "docs/behaviour.md").read_text().partition(LATER)[2].partition("```")[0]
    assert in_bash(LATER.replace("$ ", ""), demo.port, clone) == shown


def predict(page: Page, picture: Path, text: str) -> Locator:
    """Swagger UI's table of a prediction's answer, when this text is in it."""
    page.locator("#operations-tag-model").click()
    operation = page.locator("[id^=operations-model-]", has_text="/model/predict").first
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(picture)
    operation.get_by_role("button", name="Execute").click()
    response = operation.locator(".live-responses-table")
    response.get_by_text(text).wait_for()
    return response


def test_the_demo_reads_the_text_in_a_browser(
    clone: Path, demo: Process, said: str, browser: BrowserContext, pytestconfig: pytest.Config
) -> None:
    url = f"http://127.0.0.1:{demo.port}/api/v1/web/guest/default/max-ocr"
    assert f"Its Swagger UI is at {url}/\n" in said
    page = browser.new_page()
    page.goto(url)
    assert page.url == url + "/"
    response = predict(page, clone / "assets" / "receipt.png", "CAFE SERVERLESS")
    assert '"Total 7.60"' in response.inner_text()
    if pytestconfig.getoption("--screenshot"):
        response.scroll_into_view_if_needed()
        page.screenshot(path=pytestconfig.getoption("--screenshot"))


def test_ctrl_c_stops_the_demo(demo: Process, said: str) -> None:
    demo.popen.send_signal(signal.SIGINT)
    assert demo.popen.wait(timeout=30) == 130
    with pytest.raises(ConnectionRefusedError):
        request(demo.port, "GET", "/")
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.popen.pid, 0)


def fails(clone: Path, *words: str, **env: str) -> None:
    demo = Process("./demo.sh", cwd=clone, env=env)
    assert demo.popen.wait(timeout=60) == 1
    told = demo.rest(demo.err)
    assert [one for one in words if one not in told] == []
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.popen.pid, 0)


@pytest.mark.parametrize(("text", "told"), [("none", "none"), ("0", "0"), ("", "3233")])
def test_the_demo_says_that_a_port_is_busy_or_no_port(
    clone: Path, said: str, text: str, told: str
) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a port that is busy already
            stack.enter_context(socket.create_server(("127.0.0.1", 3233)))
        fails(clone, f"Port {told} is busy or no port", PORT=text)


@pytest.fixture
def bare(clone: Path, tmp_path: Path) -> Path:
    """A clone in which nothing is installed."""
    return shutil.copytree(clone, tmp_path / "bare", ignore=shutil.ignore_patterns(".venv"))


@pytest.mark.parametrize(("line", "word"), DEATHS.values(), ids=DEATHS)
def test_the_demo_says_that_the_model_died(
    clone: Path, said: str, bare: Path, line: str, word: str
) -> None:
    (bare / ".venv").symlink_to(clone / ".venv")
    (bare / "examples/ocr/app.py").write_text(line)
    fails(bare, word, "The model has ended", PORT=str(free_port()))


def path_of(folder: Path, python: str) -> str:
    """A PATH whose python3 is this script."""
    (folder / "python3").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "python3").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("words", PYTHONS)
def test_the_demo_says_what_is_wrong_with_python(bare: Path, tmp_path: Path, words: str) -> None:
    fails(bare, words, PATH=path_of(tmp_path, PYTHONS[words]))


def test_the_demo_says_that_there_is_no_network(clone: Path, said: str, bare: Path) -> None:
    (bare / ".venv").symlink_to(clone / ".venv")
    (bare / "examples/ocr/requirements.txt").write_text("not-installed-yet")
    pip = {"INDEX_URL": "http://127.0.0.1:9/", "RETRIES": "0", "CONFIG_FILE": os.devnull}
    pip |= {"EXTRA_INDEX_URL": "", "FIND_LINKS": ""}
    fails(bare, "is there a network?", **{f"PIP_{name}": text for name, text in pip.items()})


@pytest.mark.parametrize("words", DEMANDS)
def test_the_tests_say_what_they_need(bare: Path, tmp_path: Path, words: str) -> None:
    python, option = DEMANDS[words]
    env = {**os.environ, "PATH": path_of(tmp_path, python)}
    done = subprocess.run(["bash", "test.sh", option], cwd=bare, env=env, capture_output=True)
    assert done.returncode == 1 and words in done.stderr.decode()
