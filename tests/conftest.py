"""What the tests share: live processes, requests over sockets, the web actions in front of them.

Every app is a real process, on each Python that --stack names. Its web action is served by
devserver.py in this process or, with --openwhisk, by a real OpenWhisk.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import os
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from werkzeug.serving import make_server

ROOT = Path(__file__).parent.parent
LIVE_APPS = Path(__file__).parent / "live_apps"
BASE = "/api/v1/web/guest/default/rec"  # the path of a web action's URL behind devserver.py
SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
MARK = "OPENWHISK_TEST_RUN"  # in the environment of all processes that a run starts
# As in MAX images, whose old Pythons then take stdout to be ASCII.
FLASK = {"SECRET": "secret", "LC_ALL": "C"}
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
LOCKS: deque[socket.socket] = deque(maxlen=300)  # of the ports that were given last
PORTS = itertools.cycle(range(10_000 + 1_000 * WORKER + os.getpid() % 500, 11_000 + 1_000 * WORKER))
sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it

import devserver  # noqa: E402

quick = hypothesis.settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile("quick", quick)
hypothesis.settings.register_profile("thorough", quick, max_examples=800)
hypothesis.settings.load_profile("quick")


# ---- The run: its options, its stacks, what it leaves behind ----


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.addoption
    add("--stack", action="append", help="a Python that runs the apps; may be repeated")
    add("--all", action="store_true", help="with Docker, too, which takes minutes")
    add("--screenshot", help="where test_demo.py puts its picture of the browser")
    add("--openwhisk", metavar="URL", help="a real OpenWhisk, like http://127.0.0.1:3233")
    add("--wsk", default="wsk", help="its command line (default: %(default)s)")
    add("--registry", default="localhost:5000/me", help="for the images (default: %(default)s)")
    add("--base-image", help="with Python and a stack, for --openwhisk")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[MARK] = uuid.uuid4().hex
    config.addinivalue_line("markers", "openwhisk: runs against a real OpenWhisk, too")
    config.addinivalue_line(
        "markers", "only_on(stack, what, how): needs what is only on that stack"
    )
    config.addinivalue_line(
        "markers",
        "stacks(count): with the first stack alone (1), with the oldest (2), the newest (3)",
    )
    if config.getoption("--openwhisk") and not config.getoption("--base-image"):
        raise pytest.UsageError("--openwhisk needs --base-image: an image with Python and a stack.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stack" in metafunc.fixturenames:
        pythons = stacks(metafunc.config)
        only: Any = metafunc.definition.get_closest_marker("only_on")
        missing: Any = []
        if only:
            stack, what, how = only.args
            pythons = {name: pythons[name] for name in pythons if name.startswith(stack)}
            skip = pytest.mark.skip(reason=f"with {what}; {how}")
            missing = [pytest.param("", marks=skip, id="none")]
        elif count := metafunc.definition.get_closest_marker("stacks"):
            names = [next(iter(pythons)), "3.6-maxfw-1.1.3", "3.13"][: count.args[0]]
            pythons = {name: pythons[name] for name in names if name in pythons}
        found = [pytest.param(python, id=name) for name, python in pythons.items()]
        metafunc.parametrize("stack", found or missing, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # What takes longest goes first, and so the demo's tests stay with one worker, and one clone.
    first = ["test_demo.py", "test_generated.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else 2)
    for item in items:
        fixtures = getattr(item, "fixturenames", [])
        if config.getoption("--openwhisk") and not item.get_closest_marker("openwhisk"):
            item.add_marker(pytest.mark.skip(reason="they ask nothing of OpenWhisk"))
        elif "engine" in fixtures and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="with Docker; ./test.sh --all"))


def stacks(config: pytest.Config) -> dict[str, str]:
    """The Pythons that run the apps, by name."""
    pythons = config.getoption("--stack") or [sys.executable]
    names = {sys.executable: f"{sys.version_info[0]}.{sys.version_info[1]} here"}
    return {names.get(python, Path(python).parent.parent.name): python for python in pythons}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails on any process that is left, and ends it."""
    if hasattr(session.config, "workerinput"):
        return
    for pid in left_running():
        with contextlib.suppress(OSError):  # it may end by itself
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            os.kill(pid, signal.SIGKILL)
            print(f"\nThis run left a process behind, which is killed now: {pid} {command}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def left_running() -> list[int]:
    """The processes that this run has started, of all its workers, and what those have started."""
    mark, found, parents = f"{MARK}={os.environ[MARK]}".encode(), set[int](), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    found.discard(os.getpid())
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def needs(*programs: str) -> None:
    """Skips the test where one of the programs is not installed; in CI that fails."""
    packages = {"docker": "docker.io", "dockerd": "docker.io"}
    missing = [packages.get(name, name) for name in programs if not shutil.which(name)]
    if missing:
        reason = f"needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
        assert not os.environ.get("CI"), reason
        pytest.skip(reason)


def documented(command: str) -> str:
    """What the README shows that the command prints."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    parts = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return dict(part.split("\n", 1) for part in parts)[command]


# ---- Processes ----


def free_port() -> int:
    """None that another worker or run takes, nor one that the system gives to a client's end."""
    while True:
        port = next(PORTS)
        lock = socket.socket(socket.AF_UNIX)
        with socket.socket() as listener, contextlib.suppress(OSError):
            lock.bind(f"\0openwhisk-test-{port}")
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            LOCKS.append(lock)
            return port
        lock.close()


def wait_for_port(port: int, seconds: float = 60, process: Process | None = None) -> None:
    """Until something listens there; fails if the process ends before."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            ended = process and process.popen.poll() is not None
            assert not ended, f"the program ended: {process and process.rest(process.err)}"
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.02)


class Process:
    """A program under test; its output arrives line by line, and `until` waits for a line."""

    def __init__(
        self, *command: str, cwd: Path, port: int = 0, env: dict[str, str] | None = None
    ) -> None:
        self.port = port
        inherited = {name: os.environ[name] for name in os.environ if name[:5] != "__OW_"}
        fixed = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
        self.popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={**inherited, **fixed, **(env or {})},
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
        seen = [""]
        while text not in seen[-1]:
            seen.append(lines.get(timeout=seconds))
            assert seen[-1], f"the program ended before it printed {text!r}; it printed {seen}"
        return "".join(seen)

    def rest(self, lines: queue.Queue[str]) -> str:
        """All lines up to the end of the program."""
        return "".join(iter(lambda: lines.get(timeout=60), ""))

    def wait_ready(self, seconds: float = 60) -> Process:
        wait_for_port(self.port, seconds, self)
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(timeout=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def request(self, *what: Any, **options: Any) -> Answer:
        return request(self.port, *what, **options)

    def post(self, path: str, message: Any, seconds: float = 60) -> Answer:
        """POST /init or /run as the invoker does; checks what it demands of every answer."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        answer = self.request("POST", path, body, {"Content-Type": "application/json"}, seconds)
        assert answer.header("content-length") == str(len(answer.body))
        assert answer.header("content-type") == "application/json"
        assert isinstance(answer.json, dict)
        return answer

    def run(self, value: Any, **fields: Any) -> dict[str, Any]:
        """The result of an activation."""
        answer = self.post("/run", {"action_name": "/guest/rec", **fields, "value": value})
        assert answer.status == 200
        result: dict[str, Any] = answer.json
        return result


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or one whose parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def loaded(process: Process) -> Iterator[Process]:
    """A container's process, running, with its model loaded."""
    with running(process):
        assert process.post("/init", {"value": {}}).json == {"ok": True}
        yield process


def start_container(stack: str, app: Path, *arguments: str, **env: str) -> Process:
    """openwhisk.py with the app, as in a container, and ready to be asked."""
    port = free_port()
    env = {"OPENWHISK_LISTEN_PORT": str(port), **env}
    command = [stack, str(ROOT / "openwhisk.py"), *arguments]
    return Process(*command, cwd=app, port=port, env=env).wait_ready()


def start_script(stack: str, folder: Path, *lines: str, **env: str) -> Process:
    """openwhisk.py with an app.py of these lines."""
    (folder / "app.py").write_text("\n".join(lines))
    return start_container(stack, folder, **env)


@pytest.fixture(scope="session")
def recorder(stack: str) -> Iterator[Process]:
    container = start_container(stack, LIVE_APPS / "recorder", OPENWHISK_APP="app:app")
    with loaded(container) as process:
        yield process


@pytest.fixture
def flask_app(stack: str) -> Iterator[Process]:
    with loaded(start_container(stack, LIVE_APPS / "flask_app", **FLASK)) as process:
        yield process


def model_container(stack: str) -> contextlib.AbstractContextManager[Process]:
    """A model's, which is loaded."""
    return loaded(start_container(stack, LIVE_APPS / "max_app"))


@pytest.fixture(scope="session")
def max_app(stack: str) -> Iterator[Process]:
    with model_container(stack) as process:
        yield process


# ---- Requests and answers ----


def web(
    path: str = "", method: str = "get", body: str = "", query: str = "", **headers: str
) -> dict[str, Any]:
    """The value of a web action's POST /run, --web raw."""
    return {
        "__ow_method": method,
        "__ow_path": path,
        "__ow_query": query,
        "__ow_headers": {name.replace("_", "-"): text for name, text in headers.items()},
        "__ow_body": body,
    }


def answering(status: int, headers: list[list[str]], body: bytes = b"") -> str:
    """The query that makes the recorder answer so."""
    answer = {"status": status, "headers": headers, "body": base64.b64encode(body).decode()}
    return "answer=" + urllib.parse.quote(json.dumps(answer), safe="")


def text_of(result: dict[str, Any]) -> str:
    return str(result["body"])


class Answer:
    """An HTTP response as its client has it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers = response.status, response.getheaders()
        self.body = response.read()

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
    raw: bytes | None = None,
    host: str = "127.0.0.1",
    https: bool = False,
) -> Answer:
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    if https:
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    named = list(headers.items() if isinstance(headers, dict) else headers or [])
    with contextlib.closing(connection):
        has_host = "Host" in dict(named)
        connection.putrequest(method, path, skip_accept_encoding=True, skip_host=has_host)
        for name, text in named:
            connection.putheader(name, text)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        sent = body if chunks is None else [chunks]
        if raw is not None:
            sent = raw
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before its end
            connection.endheaders(sent, encode_chunked=chunks is not None)
        return Answer(connection.getresponse())


# ---- Web actions ----


class WebAction:
    """A web action's URL; its `request` takes the path behind it."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.host, self.base, self.https = parts.hostname or "", parts.path, parts.scheme == "https"
        self.port = parts.port or (443 if self.https else 80)

    def request(self, method: str, path: str, *what: Any, **options: Any) -> Answer:
        """As `request`; waits, if OpenWhisk takes no more requests in this minute."""
        place = {"host": self.host, "https": self.https, "seconds": 400, **options}
        while True:
            answer = request(self.port, method, self.base + path, *what, **place)
            if answer.status != 429 or b"Too many requests" not in answer.body:
                return answer
            print("OpenWhisk takes so many requests a minute (invokesPerMinute): waiting")
            time.sleep(5)


@contextlib.contextmanager
def served(server: Any) -> Iterator[Any]:
    """The server, which serves in this process."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serving(handler: Any, **options: Any) -> contextlib.AbstractContextManager[ThreadingHTTPServer]:
    """A server of the handler's, in this process."""
    return served(ThreadingHTTPServer(("127.0.0.1", 0), handler, **options))


@contextlib.contextmanager
def web_action(container_port: int, web: str = "raw", **options: Any) -> Iterator[int]:
    """devserver.py before the container, in this process; gives its port."""
    timeout = options.pop("timeout", 60.0)
    action = devserver.WebAction(f"http://127.0.0.1:{container_port}", web=web, **options)
    action.invoker.init()
    action.invoker.timeout = timeout  # from now on, so that a busy machine's /init is in time
    options = {"threaded": True, "request_handler": devserver.Handler}
    with served(make_server("127.0.0.1", 0, action, **options)) as server:
        yield server.port


class OpenWhisk:
    """A real one: images by build.sh, web actions by deploy.sh, in a package of their own."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.registry, self.base_image = map(config.getoption, ("--registry", "--base-image"))
        self.wsk = f"{config.getoption('--wsk')} --apihost {config.getoption('--openwhisk')}"
        self.package = "tests-" + os.environ[MARK][:8]
        self.folder, self.images, self.actions = folder, set[str](), set[str]()

    def image(self, app: str, *lines: str) -> str:
        """The live app in an image as a model's is; the lines are more of its Dockerfile."""
        name = "openwhisk-tests/" + app.replace("_", "-")
        base = (f"FROM {self.base_image}", "WORKDIR /app", "COPY . .", "ENV PYTHONHASHSEED=0")
        lines = (*base, *lines)
        dockerfile = self.folder / app
        dockerfile.write_text("\n".join([*lines, 'CMD ["python", "app.py"]', ""]))
        run("docker", "build", "-q", "-t", name, "-f", dockerfile, LIVE_APPS / app)
        self.images.add(name)
        return name

    def web_action(
        self,
        app: str,
        *lines: str,
        web: str = "raw",
        timeout: int = 300,
        bound: dict[str, str] | None = None,
    ) -> WebAction:
        """By build.sh and deploy.sh; of another kind, or time limit in seconds, by wsk."""
        model = app.replace("_", "-")
        image = f"{self.registry}/{model}"
        if model not in self.actions:
            self.image(app, *lines)
            run(ROOT / "build.sh", model, REGISTRY="openwhisk-tests", USERNAME=self.registry)
            settings = {"PACKAGE": self.package, "WSK": self.wsk}
            run(ROOT / "deploy.sh", model, USERNAME=self.registry, **settings)
            self.images.add(image)
            self.actions.add(model)
        if (web, timeout, bound) == ("raw", 300, None):
            return self.found(model)
        name = f"{model}-{web}-{timeout}" + "-bound" * bool(bound)
        return self.update(name, image, web, timeout, **(bound or {}))

    def update(self, action: str, image: str, web: str, timeout: int, **bound: str) -> WebAction:
        options = ["--docker", image, "--web", web, "--timeout", str(1000 * timeout)]
        for name, text in bound.items():
            options += ["--param", name, text]
        self.call("action", "update", f"{self.package}/{action}", *options, "--memory", "512")
        self.actions.add(action)
        return self.found(action)

    def recorder(self, web: str) -> WebAction:
        """The container that tells what it is sent."""
        image = f"{self.registry}/container"
        if image not in self.images:
            run("docker", "tag", self.image("container"), image)
            run("docker", "push", "-q", image)
            self.images.add(image)
        self.call("package", "update", self.package)
        return self.update("container-" + web, image, web, 60)

    def own_server(self, app: str, *lines: str) -> tuple[str, int]:
        """A container with the app's own server, on a port of this machine."""
        port = free_port()
        command = [self.image(app, *lines), "python", "app.py", "--port", str(port)]
        container = run("docker", "run", "-d", "--network", "host", *command).strip()
        return container, port

    def found(self, action: str) -> WebAction:
        lines = self.call("action", "get", f"{self.package}/{action}", "--url").splitlines()
        return WebAction(lines[1])

    def call(self, *arguments: str) -> str:
        return run(*self.wsk.split(), *arguments)

    def close(self) -> None:
        for action in self.actions:
            self.call("action", "delete", f"{self.package}/{action}")
        self.call("package", "delete", self.package)
        for image in self.images:
            run("docker", "rmi", "-f", image)


def run(*command: str | Path, **env: str) -> str:
    """What the command prints; fails with it if it fails."""
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, env={**os.environ, **env}, **options)
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


@pytest.fixture(scope="session")
def openwhisk(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenWhisk | None]:
    """The real one that --openwhisk names, or None."""
    if not pytestconfig.getoption("--openwhisk"):
        yield None
        return
    real = OpenWhisk(pytestconfig, tmp_path_factory.mktemp("openwhisk"))
    try:
        yield real
    finally:
        real.close()


@pytest.fixture(scope="session")
def own(stack: str, openwhisk: OpenWhisk | None) -> Iterator[int]:
    """The port of the model's own server."""
    if openwhisk:
        container, port = openwhisk.own_server("max_app")
        wait_for_port(port)
        yield port
        run("docker", "rm", "-f", container)
        return
    port = free_port()
    command = (stack, "app.py", "--port", str(port))
    with running(Process(*command, cwd=LIVE_APPS / "max_app", port=port)) as process:
        yield process.wait_ready().port


# ---- Browsers ----

CHROMIUM = ["--no-sandbox", "--disable-background-networking", "--disable-sync"]


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real one, headless."""
    needs("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=CHROMIUM
        )
        yield chromium.new_context(viewport={"width": 1100, "height": 1000})
        chromium.close()
