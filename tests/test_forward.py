"""An image's own server behind forward.py: what it is told, what it answers, what becomes of it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    Process,
    WebAction,
    free_port,
    has_ended,
    loaded,
    running,
    start_container,
    text_of,
    web,
    web_action,
)
from test_fidelity import EVERY_CASE, ROOT_CASES, Case, compare, json_body, multipart, sent

import forward

pytestmark = pytest.mark.stacks(2)  # it needs little of a stack
ENDED = "The model's server has ended; the log says how."
NO_ANSWER = "The model's server gave no valid answer; the log says why."
NOT_READY = "The model's server ended before it was ready; see the log."


def forwarded(stack: str, app: str, command: list[str], port: int, **env: str) -> Process:
    """The server's command behind openwhisk.py and forward.py."""
    env = {"OPENWHISK_UPSTREAM_PORT": str(port), **env}
    return start_container(stack, LIVE_APPS / app, *command, **env)


@contextlib.contextmanager
def beside(stack: str, app: str, command: list[str], **env: str) -> Iterator[tuple[int, WebAction]]:
    """The port of the server, whose command lacks it, and the web action of another one."""
    own_port, port = free_port(), free_port()
    own = Process(*command, str(own_port), cwd=LIVE_APPS / app, port=own_port, env=env)
    container = forwarded(stack, app, [*command, str(port)], port, **env)
    with running(own), running(container):
        assert container.post("/init", {"value": {}}, seconds=240).json == {"ok": True}
        own.wait_ready(240)
        with web_action(container.port) as web_port:
            yield own_port, WebAction(f"http://127.0.0.1:{web_port}{BASE}")


@pytest.fixture(scope="module")
def max_server(stack: str) -> Iterator[tuple[int, WebAction]]:
    """It does not know its path: at the root of a host."""
    command = [stack, "app.py", "--port"]
    with beside(stack, "max_app", command, OPENWHISK_BASE_PATH="/") as found:
        yield found


ALL_CASES = {**EVERY_CASE, **ROOT_CASES}


@pytest.mark.parametrize("case", ALL_CASES)
def test_the_web_action_answers_as_the_server(case: str, max_server: tuple[int, WebAction]) -> None:
    compare(*ALL_CASES[case], *max_server, "")


# ---- Servers of others ----

UVICORN = [sys.executable, "-m", "uvicorn", "main:app", "--port"]
UVICORN_CASES: dict[str, Case] = {
    "file": ("/predict?threshold=0.25", multipart()),
    "JSON": ("/text", json_body({"text": "é", "count": 2})),
    "picture": ("/picture", {}),
    "stream": ("/stream", {}),
    "redirect to its own address": ("/moved?to=http://model.example.com/app/?a=1", {}),
    "redirect of a slash too many": ("/seen/", {"method": "POST"}),
    "target": ("/seen/a%2Fb%20c//%C3%A9;x=1?a=%26+&b", {"headers": {"X-One": "1"}}),
    "PUT": ("/seen/a", sent(b"\x00\xff", "a/b", "PUT")),
    "schema": ("/openapi.json", {}),
}


@pytest.fixture(scope="module")
def uvicorn(stack: str) -> Iterator[tuple[int, WebAction]]:
    with beside(stack, "fastapi_app", UVICORN) as found:
        yield found


@pytest.mark.parametrize("case", UVICORN_CASES)
def test_uvicorn_with_fastapi(case: str, uvicorn: tuple[int, WebAction]) -> None:
    own, action = uvicorn
    compare(*UVICORN_CASES[case], own, action, action.base)


def test_uvicorns_docs_page_works_if_it_is_told_its_path(stack: str) -> None:
    with beside(stack, "fastapi_app", UVICORN, UVICORN_ROOT_PATH=BASE) as (_, action):
        assert f"url: '{BASE}/openapi.json'" in action.request("GET", "/docs").body.decode()
        assert action.request("GET", "/openapi.json").json["servers"] == [{"url": BASE}]


# ---- A request ----


@pytest.fixture
def port() -> int:
    return free_port()


def loaded_server(stack: str) -> contextlib.AbstractContextManager[Process]:
    port = free_port()
    return loaded(forwarded(stack, "server", [sys.executable, "server.py", str(port)], port))


@pytest.fixture(scope="module")
def shared(stack: str) -> Iterator[Process]:
    """For tests that leave it as it was."""
    with loaded_server(stack) as container:
        yield container


@pytest.fixture
def server(stack: str) -> Iterator[Process]:
    """For tests that end it, count its requests, or read its log."""
    with loaded_server(stack) as container:
        yield container


def told(container: Process, path: str = "/", **headers: str) -> dict[str, Any]:
    """What the server says that it was asked."""
    told: dict[str, Any] = json.loads(text_of(container.run(web(path, **headers))))
    return told


def error_of(result: dict[str, Any]) -> tuple[int, str]:
    answer = result["error"]
    return answer["statusCode"], json.loads(answer["body"])["error"]


def test_the_request_keeps_who_asked_and_has_the_base_path(shared: Process) -> None:
    names = {"host": "a.example", "x_forwarded_for": "192.0.2.1", "x_forwarded_proto": "https"}
    hearsay = {"x_forwarded_prefix": "//evil.example", "te": "trailers", "upgrade": "websocket"}
    seen = told(shared, "/a%2Fb?x=%26", connection="x-one", x_one="1", **names, **hearsay)
    assert seen["path"] == "/a%2Fb?x=%26"
    assert seen["headers"] == [
        ["connection", "close"],
        ["host", "a.example"],
        ["x-forwarded-for", "192.0.2.1"],
        ["x-forwarded-prefix", BASE],
        ["x-forwarded-proto", "https"],
        ["x-one", "1"],
    ]


def test_each_request_has_a_connection_of_its_own(shared: Process) -> None:
    peers = [told(shared)["peer"] for _ in range(5)]
    assert len(set(peers)) == 5


def test_a_request_is_sent_once_whatever_comes(server: Process) -> None:
    assert error_of(server.run(web("/drop", "post"))) == (502, NO_ANSWER)
    assert told(server)["posts"] == 1
    assert "RemoteDisconnected" in server.until("gave no valid answer", server.err)


def test_a_body_that_looks_like_a_request_is_a_body(server: Process) -> None:
    body = "GET /exit HTTP/1.1\r\nHost: x\r\n\r\n"
    headers = {"content_type": "text/plain", "connection": "content-length, host"}
    assert text_of(server.run(web("/x", "post", body, **headers))) == "MzE="
    assert told(server)["posts"] == 1


def test_an_answer_before_the_body_is_read_comes_through(shared: Process) -> None:
    body = "x" * 5_000_000
    result = shared.run(web("/refused", "post", body, content_type="text/plain"))
    assert (result["statusCode"], result["body"]) == (413, "dG9vIGxhcmdl")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/there?a=/b#c", BASE + "/there?a=/b#c"),
        ("there", "there"),
        (BASE + "/there", BASE + "/there"),
        (BASE, BASE),
        ("//b.example/there", "//b.example/there"),
        ("app:/there", "app:/there"),
        ("/../../there", BASE + "/there"),
        ("/%2e%2E/there", BASE + "/there"),
        ("/%2E\\..\\there", BASE + "/there"),
        (BASE + "/../other", BASE + "/api/v1/web/guest/default/other"),
        ("http://localhost:PORT//b.example/there", BASE + "/b.example/there"),
        ("http://a.example/there", f"http://a.example{BASE}/there"),
        ("http://127.0.0.1:PORT/there", BASE + "/there"),
        ("http://0.0.0.0:PORT/there", BASE + "/there"),
    ],
)
def test_a_redirect_of_the_servers_own_stays_below_the_base_path(
    shared: Process, place: str, expected: str
) -> None:
    place = place.replace("PORT", told(shared)["env"]["PORT"])
    result = shared.run(web("/moved?" + place, host="a.example"))
    assert result["headers"]["Location"] == expected
    assert result["headers"]["X-Place"] == place


# ---- An answer ----


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/hints", 200, "YWZ0ZXIgdGhlIGhpbnRz"),
        ("/no-content", 204, ""),
        ("/not-modified", 304, ""),
        ("/until-closed", 200, "YWxsIG9mIGl0"),
        ("/headers/90", 200, "bWFueQ=="),
    ],
)
def test_the_final_answer_is_whole(shared: Process, path: str, status: int, body: str) -> None:
    result = shared.run(web(path))
    assert (result["statusCode"], result["body"]) == (status, body)
    assert told(shared, "/next")["path"] == "/next"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short", "it lacks 90 bytes|IncompleteRead"),
        ("/short-chunks", "IncompleteRead"),
        ("/headers/120", "got more than 100 headers"),
        ("/bytes/70000000", "it has over 67108864 bytes"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_502(server: Process, path: str, reason: str) -> None:
    assert error_of(server.run(web(path))) == (502, NO_ANSWER)
    assert re.search(reason, server.until("gave no valid answer", server.err))
    assert told(server)["pid"]


def test_eight_callers_at_once_have_their_own_answers(shared: Process) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        paths = [f"/caller/{number}" for number in range(64)]
        assert list(pool.map(lambda path: told(shared, path)["path"], paths)) == paths


# ---- The server ----


def test_the_server_has_the_containers_environment_and_its_port(stack: str, port: int) -> None:
    command = ["/bin/sh", "-c", f"{sys.executable} server.py $PORT; true"]
    env = {"OPENWHISK_READY_PATH": "/", "OWN_KEY": "1"}
    with running(forwarded(stack, "server", command, port, **env)) as container:
        container.post("/init", {"value": {"env": {"__OW_API_KEY": "secret"}}})
        seen = told(container)["env"]
        assert (seen["PORT"], seen["OWN_KEY"]) == (str(port), "1")
        assert error_of(container.run(web("/exit"))) == (502, ENDED)
        seen = told(container)["env"]
        assert not re.search("OPENWHISK_[UR]|__OW", " ".join(seen))


@pytest.mark.parametrize(
    ("path", "how"), [("/exit", "ended with status 0"), ("/kill", "was ended by signal 9")]
)
def test_a_server_that_ends_is_a_502_and_started_anew(server: Process, path: str, how: str) -> None:
    pid = told(server)["pid"]
    assert error_of(server.run(web(path))) == (502, ENDED)
    assert told(server)["pid"] != pid
    server.until(how, server.err)


def test_callers_who_wait_for_one_start_share_its_failure(
    monkeypatch: pytest.MonkeyPatch, port: int, tmp_path: Path
) -> None:
    """Each try is a line in a file."""
    waiting = threading.Semaphore(0)

    class Start(concurrent.futures.Future[None]):
        def result(self, timeout: float | None = None) -> None:
            waiting.release()
            super().result(timeout)

    monkeypatch.setattr(forward, "Future", Start)
    script = f"echo >>{tmp_path}/tries; until test -e {tmp_path}/go; do sleep 0.05; done"
    server = forward.Forward(["sh", "-c", script], port)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(server.start) for _ in range(8)]
        shared = [waiting.acquire(timeout=60) for _ in range(7)]  # the eighth starts it
        (tmp_path / "go").touch()
        assert all(shared)
        assert {str(caller.exception()) for caller in callers} == {NOT_READY}
    assert (tmp_path / "tries").read_text() == "\n"


def test_a_server_is_ready_when_its_path_is(stack: str, port: int, tmp_path: Path) -> None:
    command = [sys.executable, "server.py", str(port)]
    env = {"OPENWHISK_READY_PATH": "/health", "READY_FILE": str(tmp_path / "ready")}
    with running(forwarded(stack, "server", command, port, **env)) as container:
        container.until("starting", container.out)
        env = {"__OW_DEADLINE": str(int(time.time() * 1000) + 3000)}
        answer = container.post("/init", {"value": {"env": env}})
        error = "The model's server answers GET /health with 503."
        assert (answer.status, answer.json) == (502, {"error": error})
        (tmp_path / "ready").touch()
        assert container.post("/init", {"value": {}}).json == {"ok": True}


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["no-such-server", "--key=s3cret"], "can't be started; the log says why."),
        ([], "can't be started; the log says why."),
        (["sh", "-c", "exit 4 # s3cret"], "ended before it was ready; see the log."),
    ],
    ids=["no such command", "no command", "it ends"],
)
def test_a_server_that_does_not_start_is_told_without_its_command(
    stack: str, port: int, command: list[str], error: str
) -> None:
    with running(forwarded(stack, "server", command, port)) as container:
        answer = container.post("/init", {"value": {}})
        told = f"The model failed to load: ServerError: The model's server {error}"
        assert (answer.status, answer.json) == (502, {"error": told})


def test_a_server_that_does_not_listen_is_told_at_the_time_limit(stack: str, port: int) -> None:
    with running(forwarded(stack, "server", ["sleep", "60"], port)) as container:
        env = {"__OW_DEADLINE": str(int(time.time() * 1000) + 2000)}
        answer = container.post("/init", {"value": {"env": env}})
        error = f"The model's server does not listen on port {port}."
        assert (answer.status, answer.json) == (502, {"error": error})


def test_what_the_server_has_started_ends_with_it_and_it_with_the_container(
    stack: str, port: int, tmp_path: Path
) -> None:
    mark = tmp_path / "child"
    command = [sys.executable, "server.py", str(port)]
    with running(forwarded(stack, "server", command, port, CHILD_PID=str(mark))) as container:
        container.post("/init", {"value": {}})
        left_behind = int(mark.read_text())
        assert error_of(container.run(web("/exit"))) == (502, ENDED)
        pids = [told(container)["pid"], int(mark.read_text())]
        assert has_ended(left_behind)
        assert container.stop() == 0
        assert "ended in peace" in container.rest(container.out)
    assert all(map(has_ended, pids))


# ---- MLflow ----

IRIS = json_body({"inputs": [[5.1, 3.5, 1.4, 0.2]]})
MLFLOW_CASES: dict[str, Case] = {
    "ping": ("/ping", {}),
    "prediction": ("/invocations", IRIS),
    "malformed JSON": ("", sent(b'{"inputs": [[', "application/json")),
    "CSV": ("", sent(b"a,b,c,d\n5.1,3.5,1.4,0.2\n", "text/csv")),
    "picture": ("", multipart()),
}


@pytest.fixture(scope="module")
def mlflow(stack: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, WebAction]]:
    model = str(tmp_path_factory.mktemp("mlflow") / "model")
    subprocess.run([stack, LIVE_APPS / "mlflow_model/make.py", model], check=True)
    command = [stack, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    env = {
        "PATH": f"{Path(stack).parent}:{os.environ['PATH']}",  # where MLflow looks for uvicorn
        "OPENWHISK_PREDICT_PATH": "/invocations",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with beside(stack, "mlflow_model", [*command, "-p"], **env) as found:
        yield found


@pytest.mark.only_on("3.11-mlflow", "MLflow, which takes 510 MB", "see CONTRIBUTING.md")
@pytest.mark.parametrize("case", MLFLOW_CASES)
def test_mlflow_models_serve(case: str, mlflow: tuple[int, WebAction]) -> None:
    own, action = mlflow
    compare(*MLFLOW_CASES[case], own, action, action.base, predict="/invocations")
    prediction = action.request("POST", "", IRIS["body"], IRIS["headers"])
    assert (prediction.status, prediction.json) == (200, {"predictions": [0]})
