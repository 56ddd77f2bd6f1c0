"""devserver.py beyond the recordings: limits, time-outs, other URLs and methods, its command
line."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    ROOT,
    Answer,
    Process,
    free_port,
    request,
    running,
    serving,
    start_container,
    web_action,
)

import devserver

ACTIVATION_ID = "x-openwhisk-activation-id"


class Container(BaseHTTPRequestHandler):
    """A container whose answers to POST /run a test sets: bytes, a status, or what to do."""

    init_status = 200
    data = b"{}"
    status = 200
    sized = True
    drops = 0
    released = threading.Event()
    lock, waiting, most = threading.Lock(), 0, 0
    message: dict[str, Any]

    def do_POST(self) -> None:
        Container.message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/init":
            self.reply(self.init_status, b'{"error": "no weights"}')
        elif self.drops:
            Container.drops -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            with self.lock:
                Container.waiting += 1
                Container.most = max(Container.most, Container.waiting)
            self.released.wait(60)
            with self.lock:
                Container.waiting -= 1
            self.reply(self.status, self.data)

    def reply(self, status: int, data: bytes) -> None:
        self.send_response(status)
        if self.sized:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in ("init_status", "data", "status", "sized", "drops"):
        monkeypatch.setattr(Container, name, getattr(Container, name))
    Container.released.set()
    with serving(Container) as server:
        monkeypatch.setattr(server, "handle_error", lambda *_: None)  # of clients that went away
        yield server.server_port
        Container.released.set()


@pytest.fixture
def action(container: int) -> Iterator[int]:
    with web_action(container) as port:
        yield port


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def error_of(answer: Answer) -> str:
    body = answer.json
    assert set(body) == {"code", "error"}
    assert body["code"] == answer.header("x-request-id")
    return str(body["error"])


def test_init_is_sent_once_with_the_activations_environment(container: int) -> None:
    with web_action(container, package="models", action="ocr"):
        value = Container.message["value"]
    assert (value["name"], value["binary"], value["main"]) == ("ocr", False, "main")
    assert value["env"]["__OW_ACTION_NAME"] == "/guest/models/ocr"
    assert {"__OW_ACTIVATION_ID", "__OW_DEADLINE", "__OW_NAMESPACE", "__OW_TRANSACTION_ID"} < set(
        value["env"]
    )


def test_a_message_names_the_action_in_its_package(container: int) -> None:
    with web_action(container, package="models") as port:
        request(port, "GET", "/api/v1/web/guest/models/rec/x")
        assert Container.message["action_name"] == "/guest/models/rec"
        assert Container.message["value"]["__ow_path"] == "/x"


@pytest.mark.parametrize(
    "path",
    ["/", BASE + "x", "/api/v1/web/guest/other/rec", "/api/v1/web/guest/default", BASE + "/../x"],
)
def test_other_paths_do_not_exist(action: int, path: str) -> None:
    answer = request(action, "GET", path)
    assert answer.status == 404
    assert error_of(answer) == "The requested resource does not exist."


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("/a/./b", "/a/b"),
        ("/a/..", "/"),
        ("/a/%2E%2e/b", "/b"),
        ("/%41%7e/%e9", "/A~/%EF%BF%BD"),
        ("/a/b/../../../c", None),
    ],
)
def test_paths_are_normalized(action: int, sent: str, path: str | None) -> None:
    answer = request(action, "GET", BASE + sent)
    assert answer.status == (204 if path else 404)
    assert path is None or Container.message["value"]["__ow_path"] == path


def test_other_methods_are_not_allowed(action: int) -> None:
    answer = request(action, "TRACE", BASE)
    assert answer.status == 405
    assert "HTTP method not allowed" in error_of(answer)


def test_a_preflight_is_answered_by_the_controller(action: int) -> None:
    answer = request(action, "OPTIONS", BASE, None, {"Access-Control-Request-Headers": "x-mine"})
    assert answer.status == 200
    assert answer.header("access-control-allow-headers") == "x-mine"


def test_a_body_over_the_limit_is_refused(action: int) -> None:
    assert request(action, "POST", BASE, b"x" * 1_048_576).status == 204
    answer = request(action, "POST", BASE, b"x" * 1_048_577)
    assert answer.status == 413
    assert error_of(answer) == "Request larger than allowed: 1048577 > 1048576 bytes."


MALFORMED = {
    "HTTP message must not contain more than one Content-Type header": [
        ("Content-Type", "text/plain"),
        ("Content-Type", "text/html"),
    ],
    "HTTP message must not contain more than one Content-Length header": [
        ("Content-Length", "1"),
        ("Content-Length", "2"),
    ],
    "Illegal `Content-Length` header value": [("Content-Length", "x")],
    "A chunked request must not contain a Content-Length header": [
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
    ],
    "Illegal character in chunk start": [("Transfer-Encoding", "chunked")],
    "Illegal character 'ÿ' in header value": [("X-A", "a\xff")],
    "Illegal character '\\u0080' in header value": [("X-A", "\x80")],
}


@pytest.mark.parametrize("sentence", MALFORMED)
def test_a_malformed_request_is_refused(
    action: int, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = request(action, "POST", BASE, None, MALFORMED[sentence], raw=b"zz\r\n")
    assert answer.status == 400
    assert answer.header("content-type") == "text/plain; charset=UTF-8"
    assert answer.body.decode() == sentence
    assert capfd.readouterr() == ("", "")


def test_equal_headers_count_as_one(action: int) -> None:
    headers = [("Content-Type", "text/plain"), ("Content-Type", "text/plain")]
    assert request(action, "POST", BASE, b"x", headers).status == 204


def assert_gets_at_once(most: int, port: int, path: str) -> None:
    """How many of four activations."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        Container.released.clear()
        Container.waiting, Container.most = 0, 0
        answers = [pool.submit(request, port, "GET", path) for _ in range(4)]
        wait_until(lambda: Container.waiting == most)
        Container.released.set()
        assert [answer.result().status for answer in answers] == [204] * 4
        assert Container.most == most


def test_a_container_gets_one_activation_at_a_time(container: int) -> None:
    for concurrency in (1, 2):
        with web_action(container, concurrency=concurrency, timeout=30.0) as port:
            assert_gets_at_once(concurrency, port, BASE)


def test_a_client_waits_for_a_free_container_no_longer_than_for_others(container: int) -> None:
    with web_action(container, wait=0.5) as port, concurrent.futures.ThreadPoolExecutor() as pool:
        Container.released.clear()
        answers = [pool.submit(request, port, "GET", BASE) for _ in range(3)]
        assert [answer.result().status for answer in answers] == [202] * 3


def test_a_query_with_a_broken_escape_is_refused(action: int) -> None:
    assert request(action, "GET", BASE + "?a=%zz").status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b"{not",
            "Unexpected character 'n' at input index 1 (line 1, position 2), expected '\"':\n{not\n ^\n",
        ),
        (b'{"a"', "Unexpected end-of-input at input index 4 (line 1, position 5), expected ':':\n"),
        (
            b'{"a" 1}',
            "Unexpected character '1' at input index 5 (line 1, position 6), expected ':':\n",
        ),
        (
            b'{"a": [1, {"b": 2} 3]}',
            "Unexpected character '3' at input index 19 (line 1, position 20), expected ']':\n",
        ),
        (
            b'{"a": 1 "b"}',
            "Unexpected character '\"' at input index 8 (line 1, position 9), expected '}':\n",
        ),
        (
            b'{"a": 1,}',
            "Unexpected character '}' at input index 8 (line 1, position 9), expected '\"':\n",
        ),
        (
            b"[1, ]",
            "Unexpected character ']' at input index 4 (line 1, position 5), expected JSON Value:\n",
        ),
        (
            b'\n{"a',
            "Unexpected end-of-input at input index 4 (line 2, position 4), expected '\"':\n{\"a\n   ^\n",
        ),
        (
            b"{} x",
            "Unexpected character 'x' at input index 3 (line 1, position 4), expected end-of-input:\n",
        ),
        (
            b'{"a": NaN}',
            "Unexpected character 'N' at input index 6 (line 1, position 7), expected JSON Value:\n",
        ),
        (b"[" * 100_000, "JSON input nested too deeply"),
    ],
)
def test_malformed_json_is_refused_under_web_true(container: int, body: bytes, words: str) -> None:
    with web_action(container, "true") as port:
        answer = request(port, "POST", BASE, body, {"Content-Type": "application/json"})
    assert answer.status == 400
    assert error_of(answer).startswith("The request content was malformed:\n" + words)


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("text/plain; charset=latin1", "text/plain; charset=ISO-8859-1"),
        ("Text/Plain;charset=UTF8", "text/plain; charset=UTF-8"),
        ("text/plain; charset=x-mine; b=2; a=1", "text/plain; a=1; b=2; charset=x-mine"),
        ("image/svg+xml; charset=utf-8", "image/svg+xml"),
        ("multipart/form-data; boundary=x; charset=utf-8", "multipart/form-data; boundary=x"),
        ("application/vnd.acme+json; charset=utf-8", "application/vnd.acme+json; charset=UTF-8"),
    ],
)
def test_content_types_are_rendered_anew(action: int, sent: str, received: str) -> None:
    request(action, "POST", BASE, b"abc", {"Content-Type": sent})
    assert Container.message["value"]["__ow_headers"]["content-type"] == received


@pytest.mark.parametrize(
    ("extension", "result", "status", "kind", "body"),
    [
        (
            ".json",
            {"b": {}, "a": [1, {"c": None}]},
            200,
            "application/json",
            '{\n  "a": [1, {\n    "c": null\n  }],\n  "b": {\n\n  }\n}',
        ),
        (".html", {"body": "<b>"}, 200, "text/html; charset=UTF-8", "<b>"),
        (".html", {"html": "<i>"}, 200, "text/html; charset=UTF-8", "<i>"),
        (".html", {"html": 1}, 400, "application/json", "Response is not valid 'text/html'."),
        (".svg", {"svg": "<svg/>"}, 200, "image/svg+xml", "<svg/>"),
        (".text", {"text": "x"}, 200, "text/plain; charset=UTF-8", "x"),
        (".text", {"text": [1, 2]}, 200, "text/plain; charset=UTF-8", "[1, 2]"),
        (".text", {"error": "x"}, 200, "text/plain; charset=UTF-8", "x"),
        (".text", {}, 404, "application/json", "Response does not include requested property."),
        (
            ".json",
            {"error": "x"},
            400,
            "application/json",
            "Response is not valid 'application/json'.",
        ),
    ],
)
def test_an_extension_chooses_a_part_of_the_result(
    action: int, extension: str, result: Any, status: int, kind: str, body: str
) -> None:
    Container.data = json.dumps(result).encode()
    answer = request(action, "GET", BASE + extension + "/x?a=1")
    assert (answer.status, answer.header("content-type")) == (status, kind)
    assert (error_of(answer) if status > 200 else answer.body.decode()) == body
    assert Container.message["value"]["__ow_path"] == "/x"


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ({"statusCode": "404"}, 404),
        ({"statusCode": 404.5}, 400),
        ({"headers": {"x": None}}, 400),
        ({"headers": {"x": {}}}, 400),
        ({"body": {"a": 1}, "headers": {"content-type": "text/html"}}, 400),
        ({"statusCode": 204, "body": "x"}, 500),
        ({"body": "x", "headers": {"content-type": "image/png"}}, 400),
        ({"body": [1], "headers": {"content-type": "application/vnd.acme+json"}}, 200),
    ],
)
def test_a_result_that_is_no_response_is_an_error(action: int, result: Any, status: int) -> None:
    Container.data = json.dumps(result).encode()
    assert request(action, "GET", BASE).status == status


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"i\xb7\x1d"),
        ("application/json; charset=utf-8", b"i\xb7\x1d"),
        ("application/json; a=b", b"abcd"),
    ],
)
def test_json_is_decoded_from_base64_only_without_parameters(
    action: int, kind: str, body: bytes
) -> None:
    """As a real controller did on 2026-11-26."""
    Container.data = json.dumps({"body": "abcd", "headers": {"content-type": kind}}).encode()
    assert request(action, "GET", BASE).body == body


@pytest.mark.parametrize(
    ("accept", "status"),
    [("application/json", 406), ("image/*", 200), ("*/*;q=0", 406), ("x", 200), ("a/b, */*", 200)],
)
def test_a_type_that_the_caller_does_not_accept_is_a_406(
    action: int, accept: str, status: int
) -> None:
    Container.data = b'{"body": "aaaa", "headers": {"content-type": "image/png"}}'
    answer = request(action, "GET", BASE, None, {"Accept": accept})
    words = "Resource representation is only available with these types:\nimage/png"
    assert answer.status == status
    assert status == 200 or answer.json["error"] == words
    own = [answer.header(name) for name in ("access-control-allow-origin", ACTIVATION_ID)]
    assert [text is None for text in own] == [status == 406] * 2


@pytest.mark.parametrize("text", ["a/b; c=d", "a/b; c=d;", "a/b;", "a/b; ;", "a", "a/b; c"])
def test_a_malformed_type_is_a_binary_one(recorder: Process, text: str) -> None:
    """As a real controller did on 2026-11-30."""
    with web_action(recorder.port) as port:
        seen = request(port, "POST", BASE + "/x", b"x", {"Content-Type": text}).json
    wanted = text if text == "a/b; c=d" else "application/octet-stream"
    assert seen["CONTENT_TYPE"] == wanted


def test_a_202_is_of_json(container: int) -> None:
    with web_action(container, wait=0.1) as port:
        Container.released.clear()
        answer = request(port, "GET", BASE, None, {"Accept": "image/png"})
    words = "Resource representation is only available with these types:\napplication/json"
    assert (answer.status, error_of(answer)) == (406, words)
    assert answer.header(ACTIVATION_ID) is None


def test_a_head_has_the_headers_of_the_body(action: int) -> None:
    Container.data = b'{"body": "abc", "headers": {"content-type": "text/plain"}}'
    answer = request(action, "HEAD", BASE)
    assert (answer.header("content-length"), answer.body) == ("3", b"")


def test_a_result_over_the_limit_is_an_error(action: int) -> None:
    Container.data = json.dumps({"body": "x" * 1_048_576}).encode()
    answer = request(action, "GET", BASE)
    assert answer.status == 400
    assert error_of(answer) == "Response is not valid 'message/http'."
    answer = request(action, "GET", BASE + ".text")
    assert (
        answer.body
        == b"The action produced a response that exceeded the allowed length: 1048588 > 1048576 bytes."
    )


@pytest.mark.parametrize(
    ("status", "sized", "data"),
    [
        (500, True, b"{}"),
        (201, True, b"{}"),
        (200, False, b"{}"),
        (200, True, b"no JSON"),
        (200, True, b'{"a": NaN}'),
    ],
)
def test_an_answer_that_is_no_result_is_an_error(
    action: int, status: int, sized: bool, data: bytes
) -> None:
    Container.status, Container.sized, Container.data = status, sized, data
    answer = request(action, "GET", BASE)
    assert answer.status == 400
    assert error_of(answer) == "There was an error processing your request."
    assert answer.header(ACTIVATION_ID)


def test_a_dropped_connection_is_tried_again(action: int) -> None:
    Container.drops = 2
    assert request(action, "GET", BASE).status == 204
    assert Container.drops == 0


def test_the_client_waits_no_longer_than_the_controller(container: int) -> None:
    with web_action(container, wait=0.2) as port:
        Container.released.clear()
        answer = request(port, "GET", BASE)
    assert answer.status == 202
    assert error_of(answer) == "Response not yet ready."
    assert answer.header(ACTIVATION_ID)


def test_an_activation_takes_no_longer_than_its_time_limit(container: int) -> None:
    with web_action(container, timeout=0.2) as port:
        Container.released.clear()
        answer = request(port, "GET", BASE)
    assert answer.status == 400
    assert error_of(answer) == "There was an error processing your request."


def test_waiting_for_the_container_is_part_of_an_activations_time(container: int) -> None:
    place: Any = {"namespace": "guest", "package": "default", "action": "rec"}
    url = f"http://127.0.0.1:{container}"
    action = devserver.WebAction(url, raw=True, timeout=0.1, **place)
    with action.free, pytest.raises(devserver.RefusedError, match="There was an error processing"):
        action.run({})


# ---- What a real one does only if asked to ----


def test_bound_parameters_are_in_both_modes_and_nobody_overrides_them(container: int) -> None:
    bound = {"PREDICT_PATH": "/analyze"}
    with web_action(container, parameters=bound) as port:
        request(port, "GET", BASE + "?PREDICT_PATH=/x")
        value = Container.message["value"]
        assert (value["PREDICT_PATH"], value["__ow_query"]) == ("/analyze", "PREDICT_PATH=/x")
    with web_action(container, "true", parameters=bound) as port:
        request(port, "GET", BASE + "?a=1")
        assert Container.message["value"]["PREDICT_PATH"] == "/analyze"
        answer = request(port, "GET", BASE + "?PREDICT_PATH=/x")
        assert answer.status == 400
        assert error_of(answer).startswith("Request defines parameters that are not allowed")


def test_custom_options_are_the_actions(container: int) -> None:
    with web_action(container, custom_options=True) as port:
        answer = request(port, "OPTIONS", BASE)
        assert Container.message["value"]["__ow_method"] == "options"
        names = {name.lower() for name, _ in answer.headers}
        assert not any(name.startswith("access-control") for name in names)


def test_a_secret_is_asked_of_all_but_a_preflight(container: int) -> None:
    with web_action(container, custom_options=True, secret="s3cret") as port:
        answer = request(port, "GET", BASE)
        assert answer.status == 401
        assert error_of(answer).startswith("Authentication is possible but has failed")
        assert request(port, "GET", BASE, None, {"X-Require-Whisk-Auth": "s3cret"}).status == 204
        assert request(port, "OPTIONS", BASE).status == 204


class TestActivations:
    """The API that keeps them: tests/recordings/activations.json."""

    AUTHORIZATION = {"Authorization": "Basic " + base64.b64encode(devserver.KEY.encode()).decode()}
    RECORDED = {
        recorded["name"]: recorded
        for recorded in json.loads((ROOT / "tests/recordings/activations.json").read_text())
    }

    def record(self, port: int, activation_id: str | None, part: str = "") -> Answer:
        path = f"/api/v1/namespaces/_/activations/{activation_id}{part}"
        return request(port, "GET", path, None, self.AUTHORIZATION)

    def test_should_be_as_recorded(self, recorder: Process) -> None:
        with web_action(recorder.port) as port:
            answer = request(port, "GET", BASE + "/x")
            activation_id = answer.header(ACTIVATION_ID)
            record = self.record(port, activation_id).json
            recorded = self.RECORDED["JSON"]["body"]
            assert record.keys() == recorded.keys()
            assert {**record["response"], "result": 0, "size": 0} == {
                **recorded["response"],
                "result": 0,
                "size": 0,
            }
            assert json.loads(record["response"]["result"]["body"]) == answer.json
            assert {"key": "path", "value": "guest/rec"} in record["annotations"]
            part = self.record(port, activation_id, "/result")
            assert part.json == record["response"]
            assert self.record(port, activation_id, "/logs").json == {"logs": []}
            assert self.record(port, activation_id, "/other").status == 404

    def test_should_have_no_record_while_they_run(self, container: int) -> None:
        with web_action(container, wait=0.1) as port:
            Container.released.clear()
            activation_id = request(port, "GET", BASE).header("x-openwhisk-activation-id")
            running = self.record(port, activation_id)
            assert running.status == self.RECORDED["still running"]["status"] == 404
            assert error_of(running) == self.RECORDED["still running"]["body"]["error"]
            Container.released.set()
            wait_until(lambda: self.record(port, activation_id).status == 200)

    def test_should_tell_of_failures(self, container: int) -> None:
        with web_action(container, timeout=0.2) as port:
            Container.released.clear()
            activation_id = request(port, "GET", BASE).header("x-openwhisk-activation-id")
            response = self.record(port, activation_id, "/result").json
            assert response["success"] is False
            assert "did not produce a valid response" in response["result"]["error"]

    def test_should_not_call_a_list_a_success(self, action: int) -> None:
        Container.data = b"[]"
        assert request(action, "GET", BASE).status == 500
        activation_id = Container.message["activation_id"]
        assert self.record(action, activation_id, "/result").json["success"] is False

    @pytest.mark.parametrize(
        "name", ["unknown id", "malformed id", "id with a slash", "wrong key", "no key"]
    )
    def test_should_be_refused_as_recorded(self, action: int, name: str) -> None:
        recorded = self.RECORDED[name]
        headers = self.AUTHORIZATION if "key" not in name else {}
        if name == "wrong key":
            headers = {"Authorization": "Basic eDp5"}
        answer = request(action, "GET", recorded["path"], None, headers)
        assert answer.status == recorded["status"]
        assert error_of(answer) == recorded["body"]["error"]

    def test_should_be_the_last_ones(self, action: int) -> None:
        first = request(action, "GET", BASE).header("x-openwhisk-activation-id")
        assert self.record(action, first).status == 200
        for _ in range(devserver.KEPT):
            last = request(action, "GET", BASE).header("x-openwhisk-activation-id")
        assert self.record(action, last).status == 200
        assert self.record(action, first).status == 404


class TestCommandLine:
    def devserver(self, *arguments: str) -> Process:
        return Process(sys.executable, str(ROOT / "devserver.py"), *arguments, cwd=ROOT)

    def test_should_print_the_url_and_serve_it(self, stack: str) -> None:
        port = free_port()
        with running(
            start_container(stack, LIVE_APPS / "recorder", WSGI_APP="app:app")
        ) as container:
            url = f"http://127.0.0.1:{container.port}"
            options = [
                "--port",
                str(port),
                "--web",
                "true",
                "--namespace",
                "me",
                "--package",
                "models",
                "--action",
                "x",
            ]
            with running(self.devserver(url, *options)) as process:
                assert (
                    process.out.get(timeout=60)
                    == f"http://127.0.0.1:{port}/api/v1/web/me/models/x\n"
                )
                seen = request(port, "POST", "/api/v1/web/me/models/x/a?b=1").json
                assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/api/v1/web/me/models/x", "/a")

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.0.0.1:1/"])
    def test_should_say_that_no_container_listens(self, url: str) -> None:
        self.fails(
            self.devserver(url, "--port", str(free_port()), "--timeout", "0.2"),
            "No container listens at " + url,
        )

    def test_should_wait_for_a_container_behind_a_port_that_docker_publishes(self) -> None:
        """Docker's proxy accepts connections before the container does, and closes them."""
        with socket.create_server(("127.0.0.1", 0)) as docker:
            url, port = f"http://127.0.0.1:{docker.getsockname()[1]}", free_port()
            with running(self.devserver(url, "--port", str(port))) as process:
                for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"):
                    with docker.accept()[0] as client:
                        while not client.recv(65536).endswith(b"}}"):
                            pass
                        client.sendall(answer)
                assert process.out.get(timeout=60).startswith(f"http://127.0.0.1:{port}/")

    def test_should_say_what_is_no_url_of_a_container(self) -> None:
        for url in ("127.0.0.1:8080", "http://127.0.0.1:port"):
            self.fails(self.devserver(url), f"'{url}' is not the URL of a container")

    def test_should_say_what_is_no_port(self) -> None:
        process = self.devserver("http://127.0.0.1:8080", "--port", "0")
        assert process.popen.wait(timeout=30) == 2
        assert "--port must be from 1 to 65535." in process.rest(process.err)

    def test_should_give_a_container_as_many_activations_as_it_is_told_to(
        self, container: int
    ) -> None:
        url, port = f"http://127.0.0.1:{container}", free_port()
        command = self.devserver(url, "--port", str(port), "--concurrency", "2")
        with running(command) as process:
            path = process.out.get(timeout=60).strip().partition(str(port))[2]
            assert_gets_at_once(2, port, path)

    def test_should_explain_its_options(self) -> None:
        """The defaults that stand there are those that it takes."""
        process = self.devserver("--help")
        assert process.popen.wait(timeout=30) == 0
        told = " ".join(process.rest(process.out).split())
        assert "of this server (default: 3233)" in told
        assert "'wsk action update' (default: raw)" in told
        assert "time limit in seconds (default: 60)" in told
        assert "container gets (default: 1)" in told
        assert "waits for an activation (default: 60.0)" in told

    def test_should_say_what_is_no_concurrency(self) -> None:
        process = self.devserver("http://127.0.0.1:8080", "--concurrency", "0")
        assert process.popen.wait(timeout=30) == 2
        assert "--concurrency must be 1 or more." in process.rest(process.err)

    def test_should_say_why_the_action_failed_to_initialize(self, container: int) -> None:
        Container.init_status = 502
        url = f"http://127.0.0.1:{container}"
        self.fails(
            self.devserver(url, "--port", str(free_port())),
            'failed to initialize: {"error": "no weights"}',
        )

    def test_should_say_that_the_container_does_not_answer(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            self.fails(
                self.devserver(url, "--port", str(free_port()), "--timeout", "0.2"),
                "did not answer POST /init",
            )

    def test_should_say_that_the_container_speaks_no_http(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            process = self.devserver(
                f"http://127.0.0.1:{other.getsockname()[1]}", "--port", str(free_port())
            )
            with other.accept()[0] as client:
                client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                self.fails(process, "did not answer POST /init: SSH-2.0-OpenSSH_9.2")

    def test_should_say_that_the_port_is_taken(self, container: int) -> None:
        url = f"http://127.0.0.1:{container}"
        self.fails(self.devserver(url, "--port", str(container)), "in use")

    def fails(self, process: Process, words: str) -> None:
        assert process.popen.wait(timeout=30) == 1
        error = process.rest(process.err)
        assert words in error
        assert "Traceback" not in error


def test_bytes_of_any_kind_reach_a_raw_action(action: int) -> None:
    chunked = request(
        action, "POST", BASE, None, {"Transfer-Encoding": "chunked"}, chunks=b"\0\xff"
    )
    assert chunked.status == 204
    assert base64.b64decode(Container.message["value"]["__ow_body"]) == b"\0\xff"


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("é".encode(), "é"),
        (b"caf\xe9 x", "caf\uffe9 x"),
        (b"a\xe9\xc3\xa9b", "a\uffe9\uffc3\uffa9b"),
        (b"\xf0\x9fxyz \xc0\x80", "\ufff0\uff9fxyz \uffc0\uff80"),
    ],
)
def test_bytes_of_a_header_are_utf_8_or_characters_of_their_own(
    action: int, sent: bytes, received: str
) -> None:
    assert request(action, "GET", BASE, None, {"X-A": sent.decode("latin-1")}).status == 204
    assert Container.message["value"]["__ow_headers"]["x-a"] == received


@pytest.mark.parametrize("sent", ["caf\xe9", "\xf0", "\xf0\x9f", "\xe9\xe9\xe9\xe9"])
def test_a_header_whose_last_character_is_cut_short_takes_the_next_along(
    action: int, sent: str
) -> None:
    headers = [("X-A", sent), ("X-B", "after"), ("X-C", "\xe9\xe9\xe9")]
    assert request(action, "GET", BASE, None, headers).status == 204
    seen = Container.message["value"]["__ow_headers"]
    expected = "".join(
        character if character < "\x80" else chr(ord(character) + 0xFF00) for character in sent
    )
    assert seen["x-a"] == expected + "\r\nX-B: after"
    assert "x-b" not in seen and seen["x-c"] == "\uffe9\uffe9\uffe9"
