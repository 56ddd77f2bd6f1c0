"""An image's own server behind openwhisk.py and forward.py: what it answers, what becomes of it."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    ROOT,
    SENTINEL,
    Process,
    WebAction,
    free_port,
    has_ended,
    request,
    running,
    start_container,
    text_of,
    web,
    web_action,
)
from test_fidelity import EVERY_CASE, compare, json_body, multipart

pytestmark = pytest.mark.stacks(2)  # it needs the standard library only
FORWARD = {"WSGI_APP": "forward:app"}
# What the server of the MAX app would have to know its path for: links of its own making.
KNOWS_ITS_PATH = {"Swagger UI"}


def forwarded(stack: str, app: str, command: list[str], port: int, **env: str) -> Process:
    """The server's command behind openwhisk.py and forward.py."""
    env = {"UPSTREAM_PORT": str(port), **FORWARD, **env}
    return start_container(stack, LIVE_APPS / app, *command, **env)


@pytest.fixture(scope="module")
def max_server(stack: str) -> Iterator[WebAction]:
    port = free_port()
    command = [stack, "app.py", "--port", str(port)]
    with (
        running(forwarded(stack, "max_app", command, port)) as container,
        web_action(container.port) as web_port,
    ):
        yield WebAction(f"http://127.0.0.1:{web_port}{BASE}")


@pytest.mark.parametrize("case", EVERY_CASE)
def test_the_web_action_answers_as_the_server(case: str, own: int, max_server: WebAction) -> None:
    compare(*EVERY_CASE[case], own, max_server, at_root=case in KNOWS_ITS_PATH)


# ---- Servers of others ----

UVICORN_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "file": ("/predict?threshold=0.25", multipart()),
    "file of 700 kB": ("/predict", multipart(data=bytes(700_000))),
    "no file": ("/predict", {"method": "POST"}),
    "JSON": ("/text", json_body({"text": "é", "count": 2})),
    "JSON that breaks the schema": ("/text", json_body({"text": 1})),
    "malformed JSON": ("/text", {**json_body({}), "body": b"{"}),
    "picture": ("/picture", {}),
    "stream": ("/stream", {}),
    "cookies": ("/cookies", {}),
    "redirect to its root": ("/moved?to=/docs", {}),
    "redirect to another host": ("/moved?to=https://example.com/docs", {}),
    "redirect to its own address": ("/moved?to=http://model.example.com/docs?a=1", {}),
    "redirect of a slash too many": ("/text/", {"method": "POST"}),
    "not found": ("/nowhere", {}),
    "wrong method": ("/text", {}),
    "head": ("/picture", {"method": "HEAD"}),
    "target": ("/seen/a%2Fb%20c//%C3%A9;x=1?a=%26+&b", {"headers": {"X-One": "1"}}),
    "DELETE": ("/seen/a", {"method": "DELETE"}),
    "PUT": ("/seen/a", {"method": "PUT", "body": b"\x00\xff", "headers": {"Content-Type": "a/b"}}),
    "schema": ("/openapi.json", {}),
}


@pytest.fixture(scope="module")
def uvicorn_ports(stack: str) -> Iterator[tuple[int, WebAction]]:
    """Its own port, and its web action."""
    own_port, port = free_port(), free_port()
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port"]
    folder = LIVE_APPS / "fastapi_app"
    with (
        running(Process(*command, str(own_port), cwd=folder, port=own_port)) as own_server,
        running(forwarded(stack, "fastapi_app", [*command, str(port)], port)) as container,
        web_action(container.port) as web_port,
    ):
        own_server.wait_ready()
        yield own_port, WebAction(f"http://127.0.0.1:{web_port}{BASE}")


@pytest.mark.parametrize("case", UVICORN_CASES)
def test_uvicorn_with_fastapi(case: str, uvicorn_ports: tuple[int, WebAction]) -> None:
    compare(*UVICORN_CASES[case], *uvicorn_ports)


def test_uvicorns_docs_page_with_its_path(stack: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "main:app", "--port", str(port)]
    root = {"UVICORN_ROOT_PATH": BASE}
    with (
        running(forwarded(stack, "fastapi_app", command, port, **root)) as container,
        web_action(container.port) as web_port,
    ):
        assert (
            f"url: '{BASE}/openapi.json'" in request(web_port, "GET", BASE + "/docs").body.decode()
        )
        assert request(web_port, "GET", BASE + "/openapi.json").json["servers"] == [{"url": BASE}]


def test_gunicorn_with_two_workers(stack: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
    with running(forwarded(stack, "plain_flask", [*command, "service.api:app"], port)) as container:
        assert container.post("/init", {"value": {}}).json == {"ok": True}
        for _ in range(4):
            assert text_of(container.run(web("/hello"))) == "hello"
        assert container.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_command_of_the_shell_that_reads_its_port(stack: str) -> None:
    port = free_port()
    command = ["/bin/sh", "-c", f"{sys.executable} server.py $PORT; true"]
    with running(forwarded(stack, "server", command, port)) as container:
        assert container.post("/init", {"value": {}}).json == {"ok": True}
        told = json.loads(text_of(container.run(web("/"))))
        assert told["port"] == str(port)
        assert container.stop() == 0
        assert "ended in peace" in container.rest(container.out)  # though the shell did not wait
    assert has_ended(told["pid"])


# ---- What the server is told, and what becomes of it ----


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def server(stack: str, port: int) -> Iterator[Process]:
    command = [sys.executable, "server.py", str(port)]
    with running(forwarded(stack, "server", command, port, UPSTREAM_TIMEOUT="10")) as container:
        assert container.post("/init", {"value": {}}).json == {"ok": True}
        yield container


def told(container: Process, path: str = "/", **headers: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text_of(container.run(web(path, **headers))))
    return told


def error_of(result: dict[str, Any]) -> tuple[int, str]:
    answer = result["error"]
    return answer["statusCode"], json.loads(answer["body"])["error"]


class TestRequest:
    def test_should_keep_who_asked_and_name_the_base_path(self, server: Process) -> None:
        names = {"host": "a.example", "x_forwarded_for": "192.0.2.1", "x_forwarded_proto": "https"}
        headers = told(server, connection="x-secret", x_secret="1", te="trailers", **names)[
            "headers"
        ]
        assert headers == {
            "host": "a.example",
            "x-forwarded-for": "192.0.2.1",
            "x-forwarded-proto": "https",
            "x-forwarded-prefix": BASE,
        }

    def test_should_keep_its_length_and_who_asked_though_the_caller_drops_them(
        self, server: Process
    ) -> None:
        """Without the length, its body would be a request, and its answer the next caller's."""
        dropped = "close, content-length, host, x-forwarded-for, x-forwarded-prefix"
        body = b"GET /until-closed HTTP/1.1\r\nHost: evil\r\n\r\n"
        answer = server.request("POST", "/x", body, {"Connection": dropped})
        assert answer.body == str(len(body)).encode()
        names = {"host": "a.example", "x_forwarded_for": "192.0.2.1"}
        headers = told(server, connection=dropped, **names)["headers"]
        assert (headers["host"], headers["x-forwarded-for"]) == ("a.example", "192.0.2.1")
        assert headers["x-forwarded-prefix"] == BASE

    def test_should_go_over_a_connection_that_stays(self, server: Process) -> None:
        assert len({told(server)["peer"] for _ in range(5)}) == 1

    def test_should_not_be_sent_twice_if_it_may_have_had_an_effect(self, server: Process) -> None:
        before = told(server)["posts"]
        result = server.run(web("/drop", "post"))
        assert error_of(result) == (
            502,
            "The model's server closed the connection without an answer.",
        )
        assert told(server)["posts"] == before + 1
        server.until("gave no answer: ", server.err)

    def test_should_not_wait_for_a_body_that_the_server_refuses(self, server: Process) -> None:
        answer = server.request("POST", "/refused", bytes(5_000_000))
        assert (answer.status, answer.body) in ((413, b"too large"), (502, answer.body))
        assert told(server)["pid"]

    def test_should_pass_through_without_openwhisk(self, server: Process) -> None:
        assert server.request("POST", "/x", b"12345").body == b"5"
        answer = server.request("GET", "/x")
        assert [name for name, _ in answer.headers].count("Date") == 1
        assert (answer.header("x-kept"), answer.header("connection")) == ("yes", "close")
        assert "x-forwarded-prefix" not in answer.json["headers"]

    def test_should_end_with_a_caller_who_hangs_up(self, server: Process) -> None:
        posts = told(server)["posts"]
        with socket.create_connection(("127.0.0.1", server.port)) as caller:
            caller.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert told(server)["posts"] in (posts, posts + 1)

    def test_should_have_a_target_of_any_form(self, server: Process) -> None:
        assert server.request("GET", "http://a.example/x?a=1").json["path"] == "/x?a=1"

    def test_should_pass_through_in_chunks(self, server: Process) -> None:
        answer = request(
            server.port, "POST", "/x", None, {"Transfer-Encoding": "chunked"}, chunks=b"1234567"
        )
        assert answer.body == b"7"

    def test_should_not_see_the_address_at_which_the_server_listens(
        self, server: Process, port: int
    ) -> None:
        result = server.run(web(f"/moved/{port}", host="a.example", x_forwarded_proto="https"))
        assert result["headers"]["Location"] == f"https://a.example{BASE}/there"

    def test_should_keep_a_redirect_that_knows_the_base_path(self, server: Process) -> None:
        result = server.run(web("/moved" + BASE))
        assert result["headers"]["Location"] == BASE

    @pytest.mark.parametrize(
        ("place", "expected"),
        [
            ("http://[x", "http://[x"),
            ("http://a.example", f"http://a.example{BASE}/"),
            ("http://b.example", "http://b.example"),
            ("https://a.example/x", f"https://a.example{BASE}/x"),
        ],
    )
    def test_should_keep_a_redirect_of_any_form(
        self, server: Process, place: str, expected: str
    ) -> None:
        result = server.run(web(f"/moved/?{place}", host="a.example"))
        assert result["headers"]["Location"] == expected

    @pytest.mark.parametrize("name", ["localhost", "0.0.0.0", "[::1]"])
    def test_should_not_be_sent_to_the_server_by_any_of_its_names(
        self, server: Process, port: int, name: str
    ) -> None:
        """Nor from https to http."""
        for place in (f"http://{name}:{port}/x", "http://a.example/x"):
            value = web(f"/moved/?{place}", host="a.example", x_forwarded_proto="https")
            location = server.run(value)["headers"]["Location"]
            assert location == f"https://a.example{BASE}/x"

    def test_should_be_refused_for_a_websocket(self, server: Process) -> None:
        result = server.run(web("/", connection="Upgrade", upgrade="websocket"))
        assert error_of(result) == (
            501,
            "WebSocket connections are not forwarded: use the model's HTTP.",
        )


class TestResponse:
    def test_should_be_whole_or_a_502(self, server: Process) -> None:
        assert text_of(server.run(web("/until-closed"))) == "YWxsIG9mIGl0"
        assert error_of(server.run(web("/short")))[0] == 502
        assert error_of(server.run(web("/short-stream")))[0] == 500
        assert server.request("GET", "/large").body == b"x" * (1 << 25) + b"y"
        with pytest.raises(http.client.IncompleteRead):
            server.request("GET", "/large-short")

    def test_should_end_with_a_caller_who_takes_no_more(self, server: Process) -> None:
        pid = told(server)["pid"]
        assert "takes over 33554432 bytes" in error_of(server.run(web("/large")))[1]
        assert told(server)["pid"] == pid

    def test_should_be_the_final_one(self, server: Process) -> None:
        for _ in range(2):
            result = server.run(web("/hints"))
            assert (result["statusCode"], base64.b64decode(result["body"])) == (
                200,
                b"after the hints",
            )
            assert told(server, "/seen")["path"] == "/seen"

    def test_should_have_no_body_where_http_has_none(self, server: Process) -> None:
        pid = told(server)["pid"]
        assert server.run(web("/not-modified"))["statusCode"] == 304
        assert told(server)["pid"] == pid

    def test_should_end_a_server_that_hangs_halfway(self, server: Process) -> None:
        pid = told(server)["pid"]
        assert error_of(server.run(web("/stream-hangs")))[0] == 500
        server.until("did not answer for 10 s, and is killed.", server.err)
        assert told(server)["pid"] != pid


class TestOutput:
    def test_should_be_in_the_activations_log(self, server: Process) -> None:
        server.run(web("/print"))
        assert server.until(SENTINEL, server.out) == f"starting\nto stdout\n{SENTINEL}\n"
        assert server.until(SENTINEL, server.err).endswith(f"to stderr\n{SENTINEL}\n")

    def test_should_not_be_lost_after_the_answer(self, server: Process) -> None:
        server.run(web("/print-late"))
        assert "printed late" in server.until("printed late", server.out)


class TestServer:
    @pytest.mark.parametrize(
        ("path", "how"),
        [
            ("/exit", "ended with exit status 3"),
            ("/kill", "was ended by SIGKILL"),
            ("/kill-35", "was ended by signal 35"),
        ],
    )
    def test_should_be_started_anew_when_it_has_ended(
        self, server: Process, path: str, how: str
    ) -> None:
        pid = told(server)["pid"]
        sentence = "The model's server has ended; the log says how."
        assert error_of(server.run(web(path))) == (502, sentence)
        assert how in server.until(how, server.err)
        assert told(server)["pid"] != pid
        assert how not in server.until("Starting", server.err)

    def test_should_serve_one_connection_at_a_time_if_it_can_no_more(
        self, stack: str, port: int
    ) -> None:
        command = [sys.executable, "server.py", str(port)]
        env = {"UPSTREAM_TIMEOUT": "20", "ONE_BY_ONE": "1"}
        with (
            running(forwarded(stack, "server", command, port, **env)) as container,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            container.post("/init", {"value": {}})
            runs = [pool.submit(told, container, f"/{number}") for number in range(12)]
            assert [run.result()["path"] for run in runs] == [f"/{number}" for number in range(12)]

    def test_should_be_started_anew_when_it_has_ended_in_between(
        self, server: Process, port: int
    ) -> None:
        pid = told(server)["pid"]
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(("127.0.0.1", port)).close()
        assert told(server)["pid"] != pid
        assert "was ended by SIGKILL" in server.until("ended by SIGKILL", server.err)

    def test_should_be_started_anew_when_it_is_about_to_end(self, server: Process) -> None:
        pid = told(server)["pid"]
        assert told(server, "/end-soon") == {}
        assert told(server)["pid"] != pid

    def test_should_be_started_anew_though_what_has_started_it_goes_on(
        self, stack: str, port: int
    ) -> None:
        command = ["sh", "-c", f"{sys.executable} server.py {port} & sleep 600"]
        with running(forwarded(stack, "server", command, port)) as container:
            container.post("/init", {"value": {}})
            pid = told(container)["pid"]
            assert error_of(container.run(web("/kill")))[0] == 502
            assert told(container)["pid"] != pid
            assert "no longer listens" in container.until("no longer listens", container.err)

    def test_should_be_a_502_that_it_does_not_start_anew(
        self, stack: str, port: int, tmp_path: Path
    ) -> None:
        once = f"test ! -e {tmp_path}/1 && touch {tmp_path}/1 && exec {sys.executable} server.py {port}"
        with running(forwarded(stack, "server", ["sh", "-c", once], port)) as container:
            container.post("/init", {"value": {}})
            assert error_of(container.run(web("/exit")))[0] == 502
            sentence = "The model's server does not start; the log says why."
            assert error_of(container.run(web("/"))) == (502, sentence)
            assert "ended with exit status 1" in container.until("status 1", container.err)

    def test_should_be_ended_when_it_hangs(self, server: Process) -> None:
        pid = told(server)["pid"]
        assert error_of(server.run(web("/hang"))) == (
            502,
            "The model's server did not answer in time.",
        )
        assert "is killed" in server.until("is killed", server.err)
        assert told(server)["pid"] != pid

    def test_should_be_ended_in_whatever_group_it_hangs(self, stack: str, port: int) -> None:
        """As tini, dumb-init and supervisord start it."""
        alone = (
            "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True).wait()"
        )
        command = [sys.executable, "-c", alone, sys.executable, "server.py", str(port)]
        env = {"UPSTREAM_TIMEOUT": "10"}
        with running(forwarded(stack, "server", command, port, **env)) as container:
            container.post("/init", {"value": {}})
            pid = told(container)["pid"]
            assert error_of(container.run(web("/hang")))[0] == 502
            assert has_ended(pid)
            assert told(container)["pid"] != pid

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_should_end_with_the_container_and_all_that_it_started(
        self, stack: str, port: int, tmp_path: Path, number: int
    ) -> None:
        mark = tmp_path / "child"
        command = [sys.executable, "server.py", str(port)]
        container = forwarded(stack, "server", command, port, CHILD_PID=str(mark))
        with running(container):
            container.post("/init", {"value": {}})
            pids = [told(container)["pid"], int(mark.read_text())]
            assert container.stop(number) == 0
        assert all(map(has_ended, pids))

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            (["no-such-server"], "No such file or directory: 'no-such-server'"),
            (["sh", "-c", "exit 4"], "ended with exit status 4 before it listened on port"),
            (["sleep", "60"], "did not listen on port"),
            ([], "forward.py needs the server's command"),
        ],
    )
    def test_should_say_why_it_does_not_listen(
        self, stack: str, port: int, command: list[str], words: str
    ) -> None:
        with running(forwarded(stack, "server", command, port, UPSTREAM_TIMEOUT="1")) as container:
            answer = container.post("/init", {"value": {}})
            assert answer.status == 502
            assert words in answer.json["error"]

    def test_should_say_that_it_does_not_listen_in_the_actions_time(
        self, stack: str, port: int
    ) -> None:
        with running(forwarded(stack, "server", ["sleep", "60"], port)) as container:
            env = {"__OW_DEADLINE": str(int(time.time() * 1000) + 2000)}
            error = container.post("/init", {"value": {"env": env}}).json["error"]
            assert "time limit" in error and "wait_until_it_listens" in error

    @pytest.mark.parametrize(
        ("name", "text"),
        [("UPSTREAM_PORT", ""), ("UPSTREAM_PORT", "http"), ("UPSTREAM_TIMEOUT", "0")],
    )
    def test_should_be_refused_for_settings_that_make_no_sense(
        self, stack: str, port: int, name: str, text: str
    ) -> None:
        with running(forwarded(stack, "server", ["true"], port, **{name: text})) as container:
            error = container.post("/init", {"value": {}}).json["error"]
            assert f"{name} must be a number from 1 to" in error

    def test_should_not_be_the_container_itself(self, stack: str, port: int) -> None:
        env = {"PORT": str(port), **FORWARD, "UPSTREAM_PORT": str(port)}
        command = [stack, str(ROOT / "openwhisk.py"), "true"]
        process = Process(*command, cwd=LIVE_APPS / "server", port=port, env=env)
        with running(process.wait_ready()):
            error = process.post("/init", {"value": {}}).json["error"]
            assert "UPSTREAM_PORT must not be PORT" in error


# ---- MLflow ----

IRIS = json_body({"inputs": [[5.1, 3.5, 1.4, 0.2]]})
MLFLOW_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ping": ("/ping", {}),
    "version": ("/version", {}),
    "prediction": ("/invocations", IRIS),
    "prediction at the bare URL": ("", IRIS),
    "malformed JSON": ("", {**IRIS, "body": b'{"inputs": [['}),
    "JSON without inputs": ("", json_body({})),
    "too few columns": ("", json_body({"inputs": [[5.1]]})),
    "CSV": (
        "",
        {
            "method": "POST",
            "body": b"a,b,c,d\n5.1,3.5,1.4,0.2\n",
            "headers": {"Content-Type": "text/csv"},
        },
    ),
    "picture": ("", multipart()),
    "wrong method": ("/invocations", {}),
}


@pytest.mark.only_on("3.11-mlflow", "MLflow, which takes 510 MB", "see CONTRIBUTING.md")
def test_mlflow_models_serve(stack: str, tmp_path: Path) -> None:
    model, own_port, port = str(tmp_path / "model"), free_port(), free_port()
    subprocess.run([stack, LIVE_APPS / "mlflow_model/make.py", model], check=True)
    command = [stack, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    env = {
        "PATH": f"{Path(stack).parent}:{os.environ['PATH']}",  # where MLflow looks for uvicorn
        "PREDICT_PATH": "/invocations",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    own = Process(*command, "-p", str(own_port), cwd=tmp_path, port=own_port, env=env)
    container = forwarded(stack, "mlflow_model", [*command, "-p", str(port)], port, **env)
    with running(own), running(container):
        assert container.post("/init", {"value": {}}, seconds=240).json == {"ok": True}
        own.wait_ready(240)
        with web_action(container.port) as web_port:
            action = WebAction(f"http://127.0.0.1:{web_port}{BASE}")
            for path, details in MLFLOW_CASES.values():
                compare(path, details, own_port, action, predict="/invocations")
            assert action.request("GET", "/ping").status == 200
            prediction = action.request("POST", "", IRIS["body"], IRIS["headers"])
            assert (prediction.status, prediction.json) == (200, {"predictions": [0]})
            malformed = action.request("POST", "", b'{"inputs": [[', IRIS["headers"])
            assert (malformed.status, malformed.json["error_code"]) == (400, "BAD_REQUEST")
        assert container.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
