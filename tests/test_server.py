"""The process in its container: settings, the port, the model's own HTTP on it, signals, processes
that the model forks."""

from __future__ import annotations

import concurrent.futures
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from conftest import (
    LIVE_APPS,
    ROOT,
    Process,
    free_port,
    running,
    start_container,
    start_script,
    text_of,
    web,
)

import openwhisk


def test_a_client_has_a_minute() -> None:
    assert openwhisk.Handler.timeout == 60


def test_a_client_that_goes_on_reading_gets_all(stack: str) -> None:
    """The minute is a second here, and the client slower than that."""
    code, port = "import openwhisk; openwhisk.Handler.timeout = 1; openwhisk.main()", free_port()
    env = {"PORT": str(port), "PYTHONPATH": str(ROOT)}
    container = Process(stack, "-c", code, cwd=LIVE_APPS / "flask_app", port=port, env=env)
    with running(container.wait_ready()), socket.socket() as client:
        container.post("/init", {"value": {}})
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /bytes/12000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        received, started = 0, time.monotonic()
        while True:
            data = client.recv(1_000_000, socket.MSG_WAITALL)
            received += len(data)
            if not data:
                break
            time.sleep(0.2)
    assert received > 12_000_000
    assert time.monotonic() - started > 2


class TestSettings:
    @pytest.mark.stacks(2)
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("PORT", "http"),
            ("PORT", "0"),
            ("PORT", "65536"),
            ("PORT", "-1"),
            ("RESULT_LIMIT", "1 MB"),
            ("RESULT_LIMIT", "-1"),
            ("PREDICT_PATH", "model/predict"),
            ("WSGI_APP", "app.py"),
            ("WSGI_APP", "app:"),
            ("WSGI_APP", "app:create_app("),
            ("CORS", "https://a.example, https://b.example"),
            ("PORT", "²"),
        ],
    )
    def test_should_be_named_when_they_make_no_sense(
        self, stack: str, name: str, text: str
    ) -> None:
        process = Process(
            stack, str(ROOT / "openwhisk.py"), cwd=LIVE_APPS / "recorder", env={name: text}
        )
        assert process.popen.wait(timeout=30) == 1
        error = process.rest(process.err)
        assert (
            error.startswith(f"{name} must be ")
            and repr(text) in error
            and "Traceback" not in error
        )

    def test_should_say_so_when_the_port_is_taken(self, stack: str, flask_app: Process) -> None:
        process = Process(
            stack,
            str(ROOT / "openwhisk.py"),
            cwd=LIVE_APPS / "recorder",
            env={"PORT": str(flask_app.port)},
        )
        assert process.popen.wait(timeout=30) == 1
        assert str(flask_app.port) in process.rest(process.err)


def test_the_version_is_that_of_the_changelog(stack: str) -> None:
    told = subprocess.check_output([stack, "openwhisk.py", "--version"], cwd=ROOT, text=True)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and told.strip() == newest[1]


def test_what_the_model_has_registered_at_exit_is_run(stack: str) -> None:
    """For a while: not longer than the container has."""
    with running(start_container(stack, LIVE_APPS / "started", HOW="simple")) as process:
        process.post("/init", {"value": {}})
        assert process.stop() == 0
        assert "at exit" in process.rest(process.out)


class TestOwnHttp:
    def test_should_go_straight_through_to_the_model(self, flask_app: Process) -> None:
        assert flask_app.request("GET", "/bytes/3").body == b"777"
        assert flask_app.request("POST", "/model/predict", b'{"a": 1}').json == {"seen": {"a": 1}}
        assert flask_app.request("GET", "/run").status == 404
        assert flask_app.request("GET", "/init").status == 404


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_should_stop_an_idle_container_with_status_0(
        self, flask_app: Process, number: int
    ) -> None:
        assert flask_app.stop(number) == 0

    def test_should_stop_though_clients_keep_connections_open(self, flask_app: Process) -> None:
        with (
            socket.create_connection(("127.0.0.1", flask_app.port)),
            socket.create_connection(("127.0.0.1", flask_app.port)) as half,
        ):
            half.sendall(b"POST /run HTTP/1.1\r\nContent-Length: 9")
            flask_app.popen.send_signal(signal.SIGTERM)
            assert flask_app.popen.wait(timeout=10) == 0

    def test_should_let_running_activations_finish(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            run = pool.submit(flask_app.run, web("/sleep/1.5"))
            flask_app.until("asleep", flask_app.out)
            flask_app.popen.send_signal(signal.SIGTERM)
            assert text_of(run.result()) == "awake"
        assert flask_app.popen.wait(timeout=10) == 0
        with pytest.raises(ConnectionRefusedError):
            flask_app.request("GET", "/")

    @pytest.mark.stacks(2)
    def test_should_not_wait_for_ever(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            run = pool.submit(flask_app.run, web("/sleep/30.0"))
            flask_app.until("asleep", flask_app.out)
            flask_app.popen.send_signal(signal.SIGTERM)
            assert flask_app.popen.wait(timeout=10) == 0
            assert isinstance(run.exception(), ConnectionError)

    def test_should_leave_other_signals_to_the_app(self, stack: str) -> None:
        app = LIVE_APPS / "recorder"
        with running(start_container(stack, app, WSGI_APP="app:app", SIGNALS="1")) as process:
            process.post("/init", {"value": {}})
            process.popen.send_signal(signal.SIGUSR1)
            process.until("SIGUSR1", process.out)
            assert process.stop() == 0

    def test_should_be_handled_whichever_thread_gets_it(self, stack: str, tmp_path: Path) -> None:
        lines = (
            "import signal, threading",
            "signal.signal(signal.SIGUSR1, lambda *_: print('SIGUSR1'))",
            "def app(environ, start_response):",
            "    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)",
            "    start_response('200 OK', [])",
            "    return []",
        )
        with running(start_script(stack, tmp_path, *lines, WSGI_APP="app:app")) as process:
            process.post("/init", {"value": {}})
            process.run(web("/"))
            process.until("SIGUSR1", process.out)

    def test_should_leave_the_model_loaded_whatever_their_handlers_raise(
        self, stack: str, tmp_path: Path
    ) -> None:
        """The two come at once, as the process is stopped meanwhile."""
        lines = (
            "import signal",
            "from flask import Flask",
            "def fail(*_):",
            "    print('fails')",
            "    raise RuntimeError",
            "signal.signal(signal.SIGUSR1, fail)",
            "signal.signal(signal.SIGUSR2, fail)",
            "app = Flask(__name__)",
            "app.add_url_rule('/', view_func=lambda: 'loaded')",
            "app.run()",
        )
        with running(start_script(stack, tmp_path, *lines)) as process:
            process.post("/init", {"value": {}})
            for number in (signal.SIGSTOP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT):
                process.popen.send_signal(number)
            process.until("fails", process.out)
            assert text_of(process.run(web("/"))) == "loaded"
            assert process.stop() == 0

    def test_should_let_the_models_own_handler_finish(self, stack: str, tmp_path: Path) -> None:
        lines = (
            "import signal, time",
            "def save(*_):",
            "    time.sleep(1)",
            "    print('saved')",
            "    raise SystemExit",
            "signal.signal(signal.SIGTERM, save)",
            "def app(environ, start_response):",
            "    start_response('200 OK', [])",
            "    return []",
        )
        with running(start_script(stack, tmp_path, *lines, WSGI_APP="app:app")) as process:
            process.post("/init", {"value": {}})
            assert process.stop() == 0
            assert process.rest(process.out) == "saved\n"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_should_stop_it_although_the_model_has_run_an_event_loop(
        self, stack: str, number: int
    ) -> None:
        container = start_container(stack, LIVE_APPS / "started", HOW="asyncio")
        with running(container) as process, concurrent.futures.ThreadPoolExecutor() as pool:
            process.post("/init", {"value": {}})
            run = pool.submit(process.run, web("/sleep"))
            process.until("asleep", process.out)
            process.popen.send_signal(number)
            assert text_of(run.result()) == "awake"
            assert process.popen.wait(timeout=10) == 0

    def test_should_stop_while_loading(self, stack: str, tmp_path: Path) -> None:
        with running(
            start_container(stack, LIVE_APPS / "slow", LOADED_WHEN=str(tmp_path / "never"))
        ) as process:
            process.until("loading", process.out)
            process.popen.send_signal(signal.SIGTERM)
            assert process.popen.wait(timeout=10) == 0

    def test_should_stop_while_loading_in_c(self, stack: str, tmp_path: Path) -> None:
        """Where no handler of Python's runs."""
        lines = (
            "import hashlib, threading",
            "threading.Timer(1, print, ['loading']).start()",
            "hashlib.pbkdf2_hmac('sha256', b'', b'', 2 ** 31 - 1)",
        )
        with running(start_script(stack, tmp_path, *lines)) as process:
            process.until("loading", process.out)
            process.popen.send_signal(signal.SIGTERM)
            assert process.popen.wait(timeout=10) == 0
