"""./demo.sh on a fresh clone: what it prints works as printed, and it leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import (
    LIVE_APPS,
    ROOT,
    Process,
    documented,
    free_port,
    request,
    running,
    start_container,
    web_action,
)
from playwright.sync_api import BrowserContext

pytestmark = pytest.mark.stacks(1)  # what this asks for has nothing to do with the others
CURL = "curl -F image=@assets/receipt.png http://127.0.0.1:3233/api/v1/web/guest/default/max-ocr"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git has, or would take, in a folder of their own."""
    folder = tmp_path_factory.mktemp("clone")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(
        None,
        subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(
            "\0"
        ),
    ):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def demo(clone: Path, port: int) -> Iterator[Process]:
    with running(Process("./demo.sh", cwd=clone, env={"PORT": str(port)})) as demo:
        yield demo


@pytest.fixture(scope="module")
def said(demo: Process) -> str:
    return demo.until("Ctrl-C", demo.out, seconds=900)


def test_the_demo_reads_the_text_in_a_picture(clone: Path, port: int, said: str) -> None:
    curl = re.search(r"^ +(curl .*)", said, re.MULTILINE)
    assert curl
    answer = subprocess.run(
        curl[1], shell=True, cwd=clone, check=True, capture_output=True, text=True
    ).stdout
    assert said.replace(str(port), "3233") == documented("./demo.sh")
    assert curl[1].replace(str(port), "3233") == CURL
    assert answer == documented(
        CURL.replace("http://127.0.0.1:3233", "https://openwhisk.example.com")
    )


LATER = """\
$ url=http://127.0.0.1:3233/api/v1/web/guest/default/max-ocr
$ id=$(curl -sS -o answer -w '%header{x-openwhisk-activation-id}' -F image=@assets/receipt.png $url)
$ while [ "$(curl -sS -o answer -w '%{http_code}' $url-results/$id)" = 202 ]; do sleep 5; done
$ cat answer
"""


def test_the_demo_keeps_answers_for_later(clone: Path, port: int, said: str) -> None:
    shown = (ROOT / "docs/behaviour.md").read_text().partition(LATER)[2].partition("```")[0]
    script = LATER.replace("$ ", "").replace("3233", str(port))
    assert subprocess.check_output(["bash", "-ec", script], cwd=clone, text=True) == shown
    called = script.replace("-o answer -w '%header{x-openwhisk-activation-id}'", "")
    called = called.replace(".png $url)", ".png $url-results)").replace("$id)", "${id:18:32})")
    assert subprocess.check_output(["bash", "-ec", called], cwd=clone, text=True) == shown


def test_the_demo_reads_the_text_in_a_browser(
    clone: Path, port: int, said: str, browser: BrowserContext, pytestconfig: pytest.Config
) -> None:
    url = f"http://127.0.0.1:{port}/api/v1/web/guest/default/max-ocr"
    assert f"Its Swagger UI is at {url}/\n" in said
    page = browser.new_page()
    page.goto(url)
    assert page.url == url + "/"
    page.locator("#operations-tag-model").click()
    operation = page.locator("#operations-model-predict")
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(clone / "assets" / "receipt.png")
    operation.get_by_role("button", name="Execute").click()
    response = operation.locator(".live-responses-table")
    response.get_by_text("CAFE SERVERLESS").wait_for()
    assert '"Total 7.60"' in response.inner_text()
    if pytestconfig.getoption("--screenshot"):
        response.scroll_into_view_if_needed()
        page.screenshot(path=pytestconfig.getoption("--screenshot"))


def test_ctrl_c_stops_the_demo(port: int, demo: Process, said: str) -> None:
    demo.popen.send_signal(signal.SIGINT)
    assert demo.popen.wait(timeout=30) == 130
    with pytest.raises(ConnectionRefusedError):
        request(port, "GET", "/")
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.popen.pid, 0)


def test_a_models_web_app_works_in_a_browser(stack: str, browser: BrowserContext) -> None:
    with (
        running(start_container(stack, LIVE_APPS / "max_app")) as container,
        web_action(container.port) as port,
    ):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/api/v1/web/guest/default/rec/app/")
        page.get_by_text("person, vélo").wait_for()
        assert page.title() == "é A model's web app"


def fails(clone: Path, words: str, **env: str) -> None:
    demo = Process("./demo.sh", cwd=clone, env=env)
    assert demo.popen.wait(timeout=120) == 1
    assert words in demo.rest(demo.err)
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.popen.pid, 0)


def test_the_demo_says_that_a_port_is_busy(clone: Path, said: str, recorder: Process) -> None:
    fails(clone, f"Port {recorder.port} is busy", PORT=str(recorder.port))


@pytest.mark.parametrize("text", ["none", "0"])
def test_the_demo_says_what_is_no_port(clone: Path, said: str, text: str) -> None:
    fails(clone, f"Port {text} is busy or no port", PORT=text)


def test_the_demos_port_is_3233(clone: Path, said: str) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a port that is busy already
            stack.enter_context(socket.create_server(("127.0.0.1", 3233)))
        fails(clone, "Port 3233 is busy", PORT="")


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("print('no weights'); os._exit(7)", "no weights"),
        ("raise OSError('no weights')", "OSError"),
    ],
)
def test_the_demo_says_that_the_model_died(
    clone: Path, demo: Process, said: str, tmp_path: Path, code: str, word: str
) -> None:
    ignore = shutil.ignore_patterns(".venv")
    shutil.copytree(clone, tmp_path / "clone", ignore=ignore)
    (tmp_path / "clone" / ".venv").symlink_to(clone / ".venv")
    (tmp_path / "clone" / "examples" / "ocr" / "app.py").write_text("import os\n" + code)
    started = time.monotonic()
    fails(tmp_path / "clone", word, PORT=str(free_port()))
    fails(tmp_path / "clone", "The model has ended", PORT=str(free_port()))
    assert time.monotonic() - started < 30


SLOW = """
import sys, time
print("http://a.exam", end="", flush=True)
time.sleep(1.5)
print("ple", flush=True)
time.sleep(60)
"""


def test_the_demo_waits_for_the_whole_url(clone: Path, said: str, tmp_path: Path) -> None:
    shutil.copytree(clone, tmp_path / "clone", ignore=shutil.ignore_patterns(".venv"))
    (tmp_path / "clone" / ".venv").symlink_to(clone / ".venv")
    (tmp_path / "clone" / "devserver.py").write_text(SLOW)
    env = {"PORT": str(free_port())}
    with running(Process("./demo.sh", cwd=tmp_path / "clone", env=env)) as demo:
        assert "receipt.png http://a.example\n" in demo.until("Ctrl-C", demo.out)


@pytest.fixture
def bare(clone: Path, tmp_path: Path) -> Path:
    """A clone in which nothing is installed."""
    return shutil.copytree(clone, tmp_path / "bare", ignore=shutil.ignore_patterns(".venv"))


def path_of(folder: Path, python: str) -> str:
    """A PATH whose python3 is this script."""
    (folder / "python3").write_text(f"#!/bin/sh\n{python}\n")
    (folder / "python3").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


NO_VENV = f'[ "$2" = venv ] && exit 1\nexec {shutil.which("python3")} "$@"'
PYTHONS = {"install its venv module": NO_VENV, "is too old": "exit 1"}


@pytest.mark.parametrize("words", PYTHONS)
def test_the_demo_says_what_is_wrong_with_python(bare: Path, tmp_path: Path, words: str) -> None:
    fails(bare, words, PATH=path_of(tmp_path, PYTHONS[words]))


def test_the_demo_says_that_there_is_no_network(bare: Path) -> None:
    pip = {"INDEX_URL": "http://127.0.0.1:9/", "RETRIES": "0", "CONFIG_FILE": os.devnull}
    pip |= {"EXTRA_INDEX_URL": "", "FIND_LINKS": ""}
    fails(bare, "is there a network?", **{f"PIP_{name}": text for name, text in pip.items()})


@pytest.mark.parametrize(
    ("python", "option", "words"),
    [
        pytest.param("exit 1", "--all", "need Python 3.11 or newer", id="old"),
        pytest.param(f'exec {sys.executable} "$@"', "--al", "no option but --all", id="option"),
    ],
)
def test_the_tests_say_what_they_need(
    bare: Path, tmp_path: Path, python: str, option: str, words: str
) -> None:
    env = {**os.environ, "PATH": path_of(tmp_path, python)}
    done = subprocess.run(["bash", "test.sh", option], cwd=bare, env=env, capture_output=True)
    assert done.returncode == 1 and words in done.stderr.decode()
