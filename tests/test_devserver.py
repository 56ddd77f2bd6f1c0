"""devserver.py does what no recorded request shows: limits, time, refusals, its command line."""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import BASE, ROOT, Answer, Process, free_port, request, running, serving, web_action

import devserver

ID, JSON = "x-openwhisk-activation-id", {"Content-Type": "application/json"}
KEY = {"Authorization": "Basic " + base64.b64encode(devserver.KEY.encode()).decode()}
ACTIVATIONS = json.loads((ROOT / "tests/recordings/activations.json").read_text())
RECORDED = {recorded["name"]: recorded for recorded in ACTIVATIONS}
UNAUTHORIZED = "Authentication is possible but has failed or not yet been provided."
Own = type["Container"]


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.0 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class Container(BaseHTTPRequestHandler):
    """Gives its answers one by one, and the last again and again. Each test has its own."""

    port = 0
    init, run, paths = list[bytes](), list[bytes](), list[str]()
    message: Any = None  # the last one
    released = threading.Event()  # every answer waits for that

    def __init_subclass__(cls) -> None:
        cls.init, cls.run, cls.paths = [http(b"{}")], [http(b"{}")], []
        cls.released = threading.Event()
        cls.released.set()

    def do_POST(self) -> None:
        type(self).message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.paths.append(self.path)
        self.released.wait(60)
        answers = self.init if self.path == "/init" else self.run
        with suppress(OSError):  # of a client who waits no longer
            self.wfile.write(answers.pop(0) if answers[1:] else answers[0])


@pytest.fixture
def container() -> Iterator[Own]:
    own: Own = type("Own", (Container,), {})
    with serving(own) as server:
        own.port = server.server_port
        yield own
        own.released.set()


@pytest.fixture
def action(container: Own) -> Iterator[int]:
    with web_action(container.port) as port:
        yield port


def error_of(answer: Answer) -> str:
    body = answer.json
    assert body == {"code": answer.header("x-request-id"), "error": body["error"]}
    return str(body["error"])


REFUSED = {  # method, path, headers: status, and words of the body
    f"TRACE {BASE}": (405, "HTTP method not allowed, supported methods: GET, DELETE, POST, PUT, "),
    f"GET {BASE}x": (404, devserver.NOT_FOUND),
    f"GET {BASE}-results": (404, devserver.NOT_FOUND),
    f"GET {BASE}/a/../../x": (404, devserver.NOT_FOUND),
    "GET /api/v1/web/guest/other/rec": (404, devserver.NOT_FOUND),
    f"GET {BASE}?a=%zz": (400, "Illegal query: Invalid input, expected HEXDIG"),
    f"POST {BASE} Content-Type:a/b Content-Type:a/c": (400, "more than one Content-Type header"),
    f"POST {BASE} Content-Length:1 Content-Length:2": (400, "more than one Content-Length header"),
    f"POST {BASE} Content-Length:x": (400, "Illegal Content-Length or chunk"),
    f"POST {BASE} Content-Length:4 Transfer-Encoding:chunked": (
        400,
        "not contain a Content-Length",
    ),
    f"POST {BASE} Transfer-Encoding:chunked": (400, "Illegal Content-Length or chunk"),
}
PATHS = {"/a/./b": "/a/b", "/a/..": "/", "/a/%2E%2e/b": "/b", "/../rec/x": "/x", "/...": "/..."}
PATHS |= {extension + "/x": "/x" for extension in (".http", ".json", ".html", ".svg", ".text")}
UNEXPECTED = "Unexpected %s at input index %d (line %d, position %d), expected JSON Value:\n%s"
MALFORMED = {
    '{"a": NaN}': UNEXPECTED % ("character 'N'", 6, 1, 7, '{"a": NaN}\n      ^\n'),
    "{no}": UNEXPECTED % ("character 'n'", 1, 1, 2, "{no}\n ^\n"),
    "[1": UNEXPECTED % ("end-of-input", 2, 1, 3, "[1\n  ^\n"),
    "[\né\x01": UNEXPECTED % ("character 'Ã'", 2, 2, 1, "é?\n^\n"),
    '"\x01"': UNEXPECTED % ("character '\\u0001'", 1, 1, 2, '"?"\n ^\n'),
    "[" * 99_999: "JSON input nested too deeply",
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused(case: str, action: int) -> None:
    method, path, *lines = case.split()
    headers = [(line.split(":")[0], line.split(":")[1]) for line in lines]
    answer = request(action, method, path, None, headers, raw=b"zz\r\n" if lines else None)
    status, sentence = REFUSED[case]
    assert answer.status == status and sentence in answer.body.decode()


def test_limits_are_of_what_is_larger(action: int, container: Own) -> None:
    container.run = [http(b'{"body": "%s"}' % (b"x" * 1_048_564))]
    assert request(action, "POST", BASE, b"x" * 1_048_576).status == 200
    answer = request(action, "POST", BASE, b"x" * 1_048_577)
    assert answer.status == 413 and "allowed: 1048577 > 1048576 bytes." in error_of(answer)


@pytest.mark.parametrize("sent", PATHS)
def test_a_path_is_without_dots_and_extension(sent: str, action: int, container: Own) -> None:
    assert request(action, "GET", BASE + sent).status == 204
    assert container.message["value"]["__ow_path"] == PATHS[sent]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: repr(body[:4]))
def test_malformed_json_is_refused(body: str, container: Own) -> None:
    with web_action(container.port, "true") as port:
        answer = request(port, "POST", BASE, body.encode(), JSON)
    words = "The request content was malformed:\n" + MALFORMED[body]
    assert (answer.status, error_of(answer)[: len(words)]) == (400, words)


@pytest.mark.parametrize("web", ["raw", "true"])
def test_nobody_overrides_a_bound_parameter(web: str, container: Own) -> None:
    with web_action(container.port, web, parameters={"A": "bound"}) as port:
        assert request(port, "GET", BASE + "?B=/x").status == 204
        assert request(port, "GET", BASE + "?A=/x").status == (204 if web == "raw" else 400)
    assert container.message["value"]["A"] == "bound"


def test_all_but_a_preflight_need_the_secret(container: Own) -> None:
    asked = {"Access-Control-Request-Headers": "x-mine"}
    with web_action(container.port, secret="s3cret") as port:
        preflight = request(port, "OPTIONS", BASE, None, asked)
        refused = request(port, "GET", BASE, None, {"X-Require-Whisk-Auth": "wrong"})
        answer = request(port, "GET", BASE, None, {"X-Require-Whisk-Auth": "s3cret"})
    assert (preflight.status, preflight.header("access-control-allow-headers")) == (200, "x-mine")
    assert (refused.status, error_of(refused)) == (401, UNAUTHORIZED)
    assert (answer.status, container.paths) == (204, ["/init", "/run"])


def test_init_is_sent_once(container: Own) -> None:
    with web_action(container.port, action="models/rec") as port:
        value = container.message["value"]
        assert request(port, "GET", "/api/v1/web/guest/models/rec").status == 204
    assert container.paths == ["/init", "/run"]
    assert (value["name"], value["binary"], value["main"]) == ("rec", False, "main")
    names = {"__OW_" + name.upper() for name in container.message.keys() - {"value"}}
    assert value["env"].keys() == {"__OW_API_HOST"} | names
    assert value["env"]["__OW_ACTION_NAME"] == "/guest/models/rec"
    assert container.message["action_name"] == "/guest/models/rec"


def test_init_waits_until_the_container_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    own: Own = type("Own", (Container,), {})
    with serving(own, bind_and_activate=False) as server:
        server.server_bind()
        monkeypatch.setattr("time.sleep", lambda seconds: server.server_activate())
        with web_action(server.server_port):
            assert own.paths == ["/init"]


def test_a_dropped_connection_is_tried_again(container: Own) -> None:
    """At first it is dropped by a port that Docker publishes."""
    container.init, container.run = ([b"", b"", http(b"{}")] for _ in range(2))
    with web_action(container.port) as port:
        assert request(port, "GET", BASE).status == 204
    assert container.paths == ["/init"] * 3 + ["/run"] * 3


FAILED, NO_TYPE = devserver.FAILED, "type in header did not match generated content type."
TIMES: dict[str, tuple[Any, str, int, str]] = {
    "wait": ({"wait": 0.1}, "*/*", 202, "Response not yet ready."),
    "wait, without JSON": ({"wait": 0.1}, "image/png", 406, "with these types:\napplication/json"),
    "the action's limit": ({"timeout": 0.2}, "*/*", 400, FAILED),
}
EXITED, LARGE = ("action developer error", devserver.EXITED), b'{"body": "%s"}' % (b"x" * 1_048_565)
RESULTS = {  # the container's answer, what the caller is told, the record's status and error
    "500": (http(b"{}", 500), FAILED, EXITED),
    "201": (http(b"{}", 201), FAILED, EXITED),
    "no JSON": (http(b"{"), FAILED, EXITED),
    "NaN": (http(b'{"a": NaN}'), FAILED, EXITED),
    "no length": (b"HTTP/1.0 200 x\r\n\r\n{}", FAILED, EXITED),
    "over the limit": (http(LARGE), devserver.NOT_HTTP, ("application error", "1048577 > 1048576")),
    "no header": (http(b'{"headers": {"x": null}}'), devserver.NOT_HTTP, ("success", "")),
    "no text": (http(b'{"body": 1, "headers": {"content-type": "a/b"}}'), NO_TYPE, ("success", "")),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_client_and_an_activation_have_a_time_limit(case: str, container: Own) -> None:
    options, accept, status, sentence = TIMES[case]
    with web_action(container.port, **options) as port:
        container.released.clear()
        answer = request(port, "GET", BASE, None, {"Accept": accept})
    assert answer.status == status and sentence in error_of(answer)
    told = [answer.header(name) for name in ("access-control-allow-origin", ID)]
    assert [text is None for text in told] == [status == 406] * 2


@pytest.mark.parametrize("case", RESULTS)
def test_a_result_is_refused(case: str, action: int, container: Own) -> None:
    data, sentence, (status, error) = RESULTS[case]
    container.run = [data]
    answer = request(action, "GET", BASE)
    assert answer.status == 400 and sentence in error_of(answer)
    kept = record(action, answer.header(ID)).json["response"]
    assert (kept["status"], kept["success"]) == (status, status == "success")
    assert error in kept["result"].get("error", "")


def record(port: int, activation_id: str | None) -> Answer:
    return request(port, "GET", f"{devserver.API}activations/{activation_id}", None, KEY)


@pytest.mark.parametrize("name", ["JSON", "binary body", "model fails, 500"])
def test_a_record_is_as_recorded_in_what_results_py_reads(name: str, container: Own) -> None:
    recorded = RECORDED[name]["body"]
    container.run = [http(json.dumps(recorded["response"]["result"]).encode())]
    with web_action(container.port, action="sink") as port:
        activation_id = request(port, "GET", "/api/v1/web/guest/default/sink").header(ID)
        seen = record(port, activation_id).json
    del recorded["response"]["size"]
    own = {"activationId": activation_id, "annotations": recorded["annotations"][:1]}
    assert seen == {name: {**recorded, **own}[name] for name in seen}
    assert seen["annotations"][0]["value"] == "guest/sink" and seen["response"]["result"]


@pytest.mark.parametrize("name", [name for name in RECORDED if RECORDED[name]["status"] >= 400])
def test_the_api_refuses_as_recorded(name: str, action: int) -> None:
    recorded = RECORDED[name]
    headers = {"wrong key": {"Authorization": "Basic eDp5"}, "no key": {}}.get(name, KEY)
    answer = request(action, "GET", recorded["path"], None, headers)
    assert (answer.status, error_of(answer)) == (recorded["status"], recorded["body"]["error"])


def test_the_last_100_records_are_kept(action: int) -> None:
    ids = [request(action, "GET", BASE).header(ID) for _ in range(101)]
    assert [record(action, one).status for one in ids[:2]] == [404, 200]


@pytest.mark.parametrize("most", [1, 2])
def test_it_serves_the_url_that_it_prints_so_many_activations_at_once(
    most: int, container: Own
) -> None:
    port, path = free_port(), "/api/v1/web/guest/models/x"
    options = f"--port {port} --web true --action models/x --param A b --wait 0.5"
    command = f"devserver.py http://127.0.0.1:{container.port} {options} --concurrency {most}"
    with running(Process(sys.executable, *command.split(), cwd=ROOT)) as process:
        assert process.out.get(timeout=60) == f"http://127.0.0.1:{port}{path}\n"
        container.released.clear()
        answers = [request(port, "GET", path + "/y?q=1") for _ in range(3)]
        assert [answer.status for answer in answers] == [202] * 3
    assert container.paths == ["/init"] + ["/run"] * most  # while no activation ends
    value = container.message["value"]
    assert (value["__ow_path"], value["q"], value["A"]) == ("/y", "1", "b")


HERE = "http://127.0.0.1:{port}"
WRONG = {  # the container's answer, the arguments, what is said
    "no container": (b"", HERE + " --timeout 0.1", "No container answers at h.*: start it first"),
    "no HTTP": (b"SSH-2.0-x\r\n", HERE + " --timeout 0.1", "No container answers .*SSH-2.0-x"),
    "no weights": (http(b"no weights", 502), HERE, ".* failed to initialize: no weights"),
    "no URL": (b"", "http://a:port", "No container answers at http://a:port"),
    "port taken": (b"", HERE + " --port {port}", "Port .* is in use"),
    "no port": (b"", HERE + " --port 65536", "Invalid value for '--port': 65536"),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_says_what_is_wrong(case: str, container: Own) -> None:
    answer, arguments, sentence = WRONG[case]
    container.init = [answer]
    arguments = f"--port {free_port()} " + arguments.format(port=container.port)
    done = CliRunner().invoke(devserver.main, arguments)
    assert done.exit_code and re.search(sentence, done.output), done.output
