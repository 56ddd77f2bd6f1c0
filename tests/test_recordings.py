"""What a real OpenWhisk did (tests/recordings) is what devserver.py does, and what openwhisk.py serves."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import pytest
from conftest import BASE, Answer, Process, request, web_action

RECORDINGS = Path(__file__).parent / "recordings"
REQUESTS = json.loads((RECORDINGS / "requests.json").read_text())["cases"]
RESPONSES = json.loads((RECORDINGS / "responses.json").read_text())["cases"]
IS_JSON = re.compile(r"application/json$|[+]json$")


class Container(BaseHTTPRequestHandler):
    """A container that keeps the last message it got and answers what it is told to."""

    message: dict[str, Any]
    result: Any = {}

    def do_POST(self) -> None:
        Container.message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.dumps(self.result).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def container() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Container)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=["raw", "true"])
def action(request: pytest.FixtureRequest, container: int) -> Iterator[tuple[str, int]]:
    with web_action(container, request.param) as port:
        yield request.param, port


def send(port: int, recorded: dict[str, Any]) -> Answer:
    headers = [("Host", "openwhisk.example.com"), *map(tuple, recorded["headers"])]
    path = BASE + recorded.get("extension", "") + recorded["path"] + (recorded["query"] and "?" + recorded["query"])
    body = None if recorded["body_base64"] is None else base64.b64decode(recorded["body_base64"])
    if recorded.get("chunked"):
        headers.append(("Transfer-Encoding", "chunked"))
        return request(port, recorded["method"], path, None, headers, chunks=body)
    return request(port, recorded["method"], path, body, headers)


def without_code(body: str) -> str:
    return re.sub(r'"code": ?"[0-9a-f]{32}"', '"code":"<transaction id>"', body)


@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case["name"])
def test_a_request_becomes_the_recorded_value(case: dict[str, Any], action: tuple[str, int]) -> None:
    web, port = action
    recorded = case[f"web {web}"]
    if "client_error" in recorded:
        with pytest.raises(ConnectionResetError):
            send(port, case["request"])
        return
    Container.result, Container.message = {}, {}
    answer = send(port, case["request"])
    if "value" in recorded:
        assert Container.message["value"] == recorded["value"]
        assert set(Container.message) == {
            "action_name",
            "action_version",
            "activation_id",
            "deadline",
            "namespace",
            "transaction_id",
            "value",
        }
        return
    if case["request"]["method"] not in ("HEAD", "OPTIONS"):  # of the recorder's own app
        assert answer.status == recorded["status"]
        assert without_code(answer.body.decode("latin-1")) == recorded["body"]
    else:
        headers = [pair for pair in recorded.get("headers", []) if pair[0] not in ("Content-Type", "Content-Length")]
        assert [pair for pair in map(list, answer.headers) if pair in headers] == headers


@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case["name"])
def test_a_result_becomes_the_recorded_response(case: dict[str, Any], container: int) -> None:
    with web_action(container) as port:
        Container.result, recorded = case["result"], case["response"]
        if recorded["status"] == "connection reset":
            with pytest.raises(ConnectionResetError):
                request(port, "GET", BASE)
            return
        answer = request(port, "GET", BASE)
    body = recorded["body"]
    expected = base64.b64decode(body["base64"]) if "base64" in body else body["text"].encode()
    left_out = {
        "date",
        "server",
        "x-request-id",
        "x-openwhisk-activation-id",
        "access-control-allow-methods",
        "access-control-allow-headers",
        "connection",
    }
    assert answer.status == recorded["status"]
    assert [[name, text] for name, text in answer.headers if name.lower() not in left_out] == recorded["headers"]
    assert without_code(answer.body.decode("latin-1")).encode("latin-1") == expected


VALUES = [
    pytest.param(case["request"], case[f"web {web}"]["value"], id=f"{web}-{case['name']}")
    for case in REQUESTS
    for web in ("raw", "true")
    if "value" in case[f"web {web}"]
]


@pytest.mark.parametrize(("sent", "value"), VALUES)
def test_a_recorded_value_gives_the_app_the_request(
    sent: dict[str, Any], value: dict[str, Any], recorder: Process
) -> None:
    seen = app_saw(recorder.run(value))
    path = "/b" if sent["path"] == "/a/../b" else sent["path"] or "/model/predict"
    assert seen["REQUEST_METHOD"] == sent["method"]
    assert seen["SCRIPT_NAME"] == BASE
    assert seen["PATH_INFO"] == unquote_to_bytes(path).decode("latin-1")
    for name, text in sent["headers"]:
        key = name.upper().replace("-", "_")
        if key == "CONTENT_TYPE":
            assert seen[key] == value["__ow_headers"]["content-type"]
        elif sent["headers"][-1][0].lower() == "x-one" or key not in ("X_ONE", "COOKIE"):
            assert seen["HTTP_" + key] == text
    body = base64.b64decode(sent["body_base64"] or "")
    got = base64.b64decode(seen["body"])
    if "__ow_query" in value:
        assert parse_qsl(seen["QUERY_STRING"], True) == parse_qsl(sent["query"], True)
        assert got == body or "\ufffd" in value["__ow_body"]
        return
    parameters = {name: text for name, text in value.items() if not name.startswith("__ow_")}
    kind = value["__ow_headers"].get("content-type", "")
    if "__ow_body" not in value and IS_JSON.search(kind):
        assert json.loads(got) == parameters
    elif "__ow_body" not in value and kind == "application/x-www-form-urlencoded":
        assert dict(parse_qsl(got.decode(), True)) == parameters
    else:
        assert dict(parse_qsl(seen["QUERY_STRING"], True)) == parameters
        assert (
            json.loads(got) == json.loads(body)
            if IS_JSON.search(kind)
            else got == body or "\ufffd" in value["__ow_body"]
        )


def app_saw(result: dict[str, Any]) -> dict[str, Any]:
    assert result["statusCode"] == 200
    seen: dict[str, Any] = json.loads(result["body"])
    return seen
