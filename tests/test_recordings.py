"""What a real OpenWhisk did (tests/recordings) is what devserver.py does, and what openwhisk.py
serves.

With --openwhisk: what the real one does still.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    Answer,
    OpenWhisk,
    Process,
    WebAction,
    free_port,
    running,
    web_action,
)

import devserver

RECORDINGS = Path(__file__).parent / "recordings"
REQUESTS = json.loads((RECORDINGS / "requests.json").read_text())["cases"]
ACCEPTED = json.loads((RECORDINGS / "accept.json").read_text())["cases"]
RESPONSES = json.loads((RECORDINGS / "responses.json").read_text())["cases"]
MESSAGE = {"action_name", "action_version", "activation_id"}
MESSAGE |= {"deadline", "namespace", "transaction_id", "value"}
HOPS = {"connection", "date", "server", "x-openwhisk-activation-id", "x-request-id"}
HOPS |= {"access-control-allow-headers", "access-control-allow-methods"}
IS_JSON = re.compile(r"application/json$|[+]json$")


@pytest.fixture(scope="session")
def container() -> Iterator[Process]:
    port = free_port()
    command = (sys.executable, "app.py", str(port))
    with running(Process(*command, cwd=LIVE_APPS / "container", port=port)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="session", params=["raw", "true"])
def action(
    request: pytest.FixtureRequest, openwhisk: OpenWhisk | None
) -> Iterator[tuple[str, WebAction]]:
    """The container's, --web raw or true."""
    if openwhisk:
        yield request.param, openwhisk.recorder(request.param)
        return
    with web_action(request.getfixturevalue("container").port, request.param) as port:
        yield request.param, WebAction(f"http://127.0.0.1:{port}{BASE}")


def send(action: WebAction, recorded: dict[str, Any]) -> Answer:
    headers = [("Host", "openwhisk.example.com"), *map(tuple, recorded["headers"])]
    query = recorded["query"] and "?" + recorded["query"]
    path = recorded.get("extension", "") + recorded["path"] + query
    body = recorded["body_base64"] and base64.b64decode(recorded["body_base64"])
    if recorded["body_base64"] == "":
        body = b""
    if recorded.get("chunked"):
        headers.append(("Transfer-Encoding", "chunked"))
        return action.request(recorded["method"], path, None, headers, chunks=body)
    return action.request(recorded["method"], path, body, headers)


def received(action: WebAction, answer: Answer) -> dict[str, Any]:
    """The message of the activation; OpenWhisk may ask another container first."""
    deadline = time.monotonic() + 60
    while True:
        path = f"/last/{answer.header('x-openwhisk-activation-id')}"
        kept = action.request("GET", path)
        if kept.status == 200:
            message: dict[str, Any] = kept.json
            return message
        assert time.monotonic() < deadline, f"no container knows of {path}: {kept.body!r}"


def without_code(body: bytes) -> str:
    text = body.decode("latin-1")
    return re.sub(r'"code": ?"[0-9a-zA-Z]{32}"', '"code":"<transaction id>"', text)


def test_text_is_what_is_recorded_as_text() -> None:
    recorded = json.loads((RECORDINGS / "text_media_types.json").read_text())
    assert set(recorded["text"]) == devserver.TEXT


@pytest.mark.openwhisk
@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case["name"])
def test_a_request_becomes_the_recorded_value(
    case: dict[str, Any], action: tuple[str, WebAction]
) -> None:
    web, url = action
    recorded = case[f"web {web}"]
    if "client_error" in recorded:
        with pytest.raises(ConnectionResetError):
            send(url, case["request"])
        return
    answer = send(url, case["request"])
    if "value" in recorded:
        message = received(url, answer)
        assert message["value"] == recorded["value"]
        assert set(message) == MESSAGE
    elif case["request"]["method"] not in ("HEAD", "OPTIONS"):  # whose body is the recorder's own
        got = {"status": answer.status, "body": without_code(answer.body)}
        assert got == {name: recorded[name] for name in got}
    else:
        left_out = ("Content-Type", "Content-Length")
        headers = [pair for pair in recorded.get("headers", []) if pair[0] not in left_out]
        assert [pair for pair in map(list, answer.headers) if pair in headers] == headers


@pytest.mark.openwhisk
@pytest.mark.parametrize("action", ["raw"], indirect=True)
@pytest.mark.parametrize("case", RESPONSES, ids=lambda case: case["name"])
def test_a_result_becomes_the_recorded_response(
    case: dict[str, Any], action: tuple[str, WebAction]
) -> None:
    recorded, result = case["response"], json.dumps(case["result"]).encode()
    sent = "POST", "/result", result, {"Content-Type": "application/octet-stream"}
    if recorded["status"] == "connection reset":
        with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
            action[1].request(*sent)
        return
    answer = action[1].request(*sent)
    body = recorded["body"]
    expected = base64.b64decode(body["base64"]) if "base64" in body else body["text"].encode()
    headers = [[name, text] for name, text in answer.headers if name.lower() not in HOPS]
    got = answer.status, headers, without_code(answer.body)
    known = recorded["status"], recorded["headers"], without_code(expected)
    assert got == known


def accept_name(case: dict[str, Any]) -> str:
    asked = f"{case['accept']!r} {case.get('accept_charset', '')}".strip()
    return f"{asked} of {case.get('answer_status', '')}{case['answer_type'] or 'no type'}"


@pytest.mark.openwhisk
@pytest.mark.parametrize("action", ["raw"], indirect=True)
@pytest.mark.parametrize("case", ACCEPTED, ids=accept_name)
def test_a_type_that_the_caller_does_not_accept_is_a_406(
    case: dict[str, Any], action: tuple[str, WebAction]
) -> None:
    headers = {"content-type": case["answer_type"]} if case["answer_type"] else {}
    answered = {"statusCode": case.get("answer_status", 200), "headers": headers, "body": "aGk="}
    asked = {"Content-Type": "application/octet-stream", "Accept": case["accept"]}
    if "accept_charset" in case:
        asked["Accept-Charset"] = case["accept_charset"]
    answer = action[1].request("POST", "/result", json.dumps(answered).encode(), asked)
    assert (answer.status, answer.header("content-type")) == (case["status"], case["content_type"])
    if "arrives" in case and answer.status == 200:
        assert received(action[1], answer)["value"]["__ow_headers"]["accept"] == case["arrives"]


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
        elif "_" in name:
            assert "HTTP_" + key not in seen
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
