"""Live processes: the container (openwhisk.py with an app), the app's own server, and devserver.py before it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import make_server

ROOT = Path(__file__).parent.parent
LIVE_APPS = Path(__file__).parent / "live_apps"
BASE = "/api/v1/web/guest/default/rec"  # the path of web_action's URL
SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background would have it ignored

import devserver  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stack", default=sys.executable, help="the Python that runs the containers (default: this one)")
    parser.addoption("--screenshot", help="where test_demo.py puts its picture of the browser")


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--stack"))


def documented(command: str) -> str:
    """What the README shows that the command prints."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    shown = dict(part.split("\n", 1) for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:])
    return shown[command]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Process:
    """A program under test; its output arrives line by line, and `until` waits for a line."""

    def __init__(self, *command: str, cwd: Path, port: int = 0, env: dict[str, str] | None = None) -> None:
        self.port = port
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", **(env or {})}
        self.popen = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.out: queue.Queue[str] = queue.Queue()
        self.err: queue.Queue[str] = queue.Queue()
        for stream, lines in ((self.popen.stdout, self.out), (self.popen.stderr, self.err)):
            threading.Thread(target=self.read, args=(stream, lines), daemon=True).start()

    @staticmethod
    def read(stream: Any, lines: queue.Queue[str]) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    def until(self, text: str, lines: queue.Queue[str], seconds: float = 60) -> str:
        """All lines up to the one that holds the text."""
        seen = ""
        while text not in seen:
            line = lines.get(timeout=seconds)
            assert line, f"the program ended before it printed {text!r}; it printed {seen!r}"
            seen += line
        return seen

    def rest(self, lines: queue.Queue[str]) -> str:
        """All lines up to the end of the program."""
        return "".join(iter(lambda: lines.get(timeout=60), ""))

    def wait_ready(self, seconds: float = 60) -> Process:
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except ConnectionRefusedError:
                assert self.popen.poll() is None, f"the program ended: {self.rest(self.err)}"
                assert time.monotonic() < deadline, "the program does not listen"
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = 60,
    ) -> Answer:
        return request(self.port, method, path, body, headers, seconds)

    def post(self, path: str, message: Any, seconds: float = 60) -> Answer:
        """POST /init or /run as the invoker does; checks what it demands of every answer."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        answer = self.request("POST", path, body, {"Content-Type": "application/json"}, seconds)
        assert answer.header("content-length") == str(len(answer.body))
        assert isinstance(answer.json, dict)
        return answer

    def run(self, value: Any, **fields: Any) -> dict[str, Any]:
        """The result of an activation."""
        answer = self.post("/run", {"action_name": "/guest/rec", **fields, "value": value})
        assert answer.status == 200
        result: dict[str, Any] = answer.json
        return result


class Answer:
    """An HTTP response as its client has it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.getheaders(), response.read()

    def header(self, name: str) -> str | None:
        return next((text for key, text in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    seconds: float = 60,
    chunks: bytes | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_accept_encoding=True, skip_host="Host" in dict(headers or {}))
        for name, text in headers.items() if isinstance(headers, dict) else headers or []:
            connection.putheader(name, text)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body if chunks is None else [chunks], encode_chunked=chunks is not None)
        return Answer(connection.getresponse())


@contextlib.contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()


def start_container(stack: str, app: Path, **env: str) -> Process:
    port = free_port()
    return Process(stack, str(ROOT / "openwhisk.py"), cwd=app, port=port, env={"PORT": str(port), **env}).wait_ready()


@contextlib.contextmanager
def web_action(container_port: int, web: str = "raw", **options: Any) -> Iterator[int]:
    """devserver.py before the container, in this process; gives its port."""
    settings = {"namespace": "guest", "package": "default", "action": "rec", "timeout": 60.0, **options}
    action = devserver.WebAction(f"http://127.0.0.1:{container_port}", raw=web == "raw", **settings)
    action.init()
    server = make_server("127.0.0.1", 0, action, threaded=True, request_handler=devserver.Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def recorder(stack: str) -> Iterator[Process]:
    with running(start_container(stack, LIVE_APPS / "recorder", WSGI_APP="app:app")) as process:
        assert process.post("/init", {"value": {}}).json == {"ok": True}
        yield process
