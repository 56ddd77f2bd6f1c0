"""results.py: a caller who was told to wait gets the model's own answer, of that model only."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BASE,
    FLASK,
    LIVE_APPS,
    ROOT,
    Answer,
    Process,
    WebAction,
    free_port,
    needs,
    request,
    running,
    serving,
    start_container,
    web_action,
)
from test_fidelity import EVERY_CASE, compare

import devserver
import results

pytestmark = pytest.mark.stacks(1)  # what answers belongs to no stack
RECORDED = {
    recorded["name"]: recorded
    for recorded in json.loads((ROOT / "tests/recordings/activations.json").read_text())
}
ID = "a56ba8571c974c74aba8571c970c746a"
NEVER = "0123456789abcdef0123456789abcdef"
KEY = devserver.KEY
JSON = {"Content-Type": "application/json"}


class Api(BaseHTTPRequestHandler):
    """OpenWhisk's, which answers as recorded, or as a test wants it."""

    reply: tuple[int, bytes] = (404, b"")
    location = ""  # to which it redirects
    asked, body = "", b""

    def do_POST(self) -> None:
        Api.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        Api.asked = f"{self.path} {self.headers['Authorization']}"
        status, body = Api.reply
        if Api.location and self.path != "/elsewhere":
            status, body = 302, b""
        self.send_response(status)
        self.send_header("Location", Api.location)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with serving(Api) as server:
        monkeypatch.setenv("__OW_API_HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("__OW_API_KEY", "user:key")
        monkeypatch.setenv("__OW_ACTION_NAME", "/guest/sink-results")
        yield server


def replies(status: int, body: Any) -> None:
    Api.reply = status, body if isinstance(body, bytes) else json.dumps(body).encode()


def result(path: str = "/" + ID, model: str = "sink", **args: Any) -> dict[str, Any]:
    return results.main({"__ow_method": "get", "__ow_path": path, "MODEL": model, **args})


def error_of(answer: dict[str, Any]) -> str:
    text: str = json.loads(answer["body"])["error"]
    return text


@pytest.mark.parametrize("name", ["JSON", "binary body", "404", "model refuses, 400"])
def test_it_is_the_models_own_answer(api: ThreadingHTTPServer, name: str) -> None:
    recorded = RECORDED[name]
    replies(recorded["status"], recorded["body"])
    assert result() == recorded["body"]["response"]["result"]
    assert Api.asked == f"/api/v1/namespaces/_/activations/{ID} Basic dXNlcjprZXk="


def test_its_key_goes_to_the_api_and_nowhere_else(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies(200, RECORDED["JSON"]["body"])
    monkeypatch.setattr(Api, "location", f"http://localhost:{api.server_port}/elsewhere")
    assert result()["statusCode"] == 200
    assert Api.asked == "/elsewhere None"
    assert capsys.readouterr() == ("", "")


def test_it_leaves_cors_to_the_controller(api: ThreadingHTTPServer) -> None:
    own = {"Access-Control-Expose-Headers": "X-One", "X-One": "1"}
    answer = {"statusCode": 204, "headers": {"Access-Control-Allow-Origin": "a", **own}}
    replies(200, {**RECORDED["JSON"]["body"], "response": {"result": answer}})
    assert result()["headers"] == own
    replies(200, {**RECORDED["JSON"]["body"], "response": {"result": {"statusCode": 204}}})
    assert result() == {"statusCode": 204}


def test_it_is_an_answer_with_an_error_status_too(api: ThreadingHTTPServer) -> None:
    body = RECORDED["model fails, 500"]["body"]
    replies(200, body)
    assert result() == body["response"]["result"]["error"]


def test_it_is_what_openwhisk_says_where_the_model_has_no_answer(api: ThreadingHTTPServer) -> None:
    body = RECORDED["load failure"]["body"]
    replies(200, body)
    answer = result(model="noimport")
    assert answer["statusCode"] == 502
    assert error_of(answer) == body["response"]["result"]["error"]
    replies(200, {**body, "response": {"status": "whisk internal error"}})
    assert error_of(result(model="noimport")) == "The activation ended without an answer."
    cut = {"error": "The truncated response was: " + "x" * 1_048_576}
    replies(200, {**body, "response": {"result": cut}})
    assert error_of(result(model="noimport")) == cut["error"][:1000]


def test_it_is_of_an_action_in_the_same_package(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies(200, RECORDED["in a package"]["body"])
    assert result()["statusCode"] == 202
    monkeypatch.setenv("__OW_ACTION_NAME", "/guest/models/sink-results")
    assert result()["statusCode"] == 200


def test_an_id_of_another_action_is_like_one_that_never_was(api: ThreadingHTTPServer) -> None:
    replies(404, RECORDED["unknown id"]["body"])
    unknown = result()
    assert (unknown["statusCode"], unknown["headers"]["Retry-After"]) == (202, "5")
    assert "there never was such" in error_of(unknown)
    replies(200, RECORDED["JSON"]["body"])
    assert result(model="another") == unknown
    body = RECORDED["JSON"]["body"]
    replies(200, {**body, "annotations": []})
    assert result() == unknown
    replies(200, {**body, "annotations": body["annotations"][::-1]})
    assert result()["statusCode"] == 200


@pytest.mark.parametrize(
    "path", ["", "/", "/xyz", "/" + ID.upper(), "/" + ID + "\n", f"/{ID}/logs", "/..%2F" + ID[5:]]
)
def test_an_id_that_is_none_is_refused(api: ThreadingHTTPServer, path: str) -> None:
    answer = result(path)
    assert answer["statusCode"] == 400
    assert "sink-results/ID" in error_of(answer)


def test_the_id_of_a_call_of_its_own_is_refused(api: ThreadingHTTPServer) -> None:
    """Which is in the header of an answer to a POST, where it would never be another one's."""
    own = [{"key": "path", "value": "guest/sink-results"}]
    replies(200, {**RECORDED["JSON"]["body"], "annotations": own})
    answer = result()
    assert answer["statusCode"] == 400
    assert "id of a call of sink-results itself" in error_of(answer)


@pytest.mark.parametrize(
    ("accept", "takes"),
    [
        ("image/png", False),
        ("text/html, image/*;q=0.8", False),
        ("image/png, */*;q=0.1", True),
        ("application/*", True),
        ("application/problem+json", True),
    ],
)
def test_a_caller_who_takes_no_json_is_told_to_wait_without(
    api: ThreadingHTTPServer, accept: str, takes: bool
) -> None:
    """OpenWhisk would make a 406 of it."""
    headers = {"accept": accept}
    replies(404, RECORDED["unknown id"]["body"])
    answer = result(__ow_headers=headers)
    assert (answer["statusCode"], answer["body"] != "") == (202, takes)
    Api.asked = ""
    replies(202, {"activationId": ID})
    answer = result(__ow_method="post", __ow_headers=headers)
    assert (answer["statusCode"], Api.asked != "") == (202 if takes else 406, takes)
    assert takes or "the model was not called" in error_of(answer)


def test_a_post_calls_the_model_without_waiting(api: ThreadingHTTPServer) -> None:
    replies(202, {"activationId": ID})
    answer = result("/model/predict", __ow_method="post", __ow_body="eA==", INSECURE="1")
    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (202, "5")
    assert json.loads(answer["body"]) == {"activationId": ID}
    assert Api.asked == "/api/v1/namespaces/_/actions/sink?blocking=false Basic dXNlcjprZXk="
    assert json.loads(Api.body) == {
        "__ow_method": "post",
        "__ow_path": "/model/predict",
        "__ow_body": "eA==",
    }
    answer = result(__ow_method="post", __ow_body="ä\ud800")
    assert (answer["statusCode"], Api.body) == (
        202,
        b'{"__ow_method": "post", "__ow_path": "/%s", "__ow_body": "\xc3\xa4\\ud800"}'
        % ID.encode(),
    )
    replies(404, RECORDED["unknown id"]["body"])
    assert error_of(result(__ow_method="post")) == "OpenWhisk's API answered with status 404."
    for status, words in ((413, "too large"), (429, "in this minute")):
        replies(status, {"error": "Too much"})
        answer = result(__ow_method="post")
        assert (answer["statusCode"], words in error_of(answer)) == (status, True)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, RECORDED["wrong key"]["body"], "status 401"),
        (500, b"<html>", "status 500"),
        (200, b"<html>", "can't be asked"),
        (200, [1], "something else than a record"),
        (200, {"response": 1}, "something else than a record"),
    ],
)
def test_an_api_that_does_not_tell_is_a_502(
    api: ThreadingHTTPServer, status: int, body: Any, words: str
) -> None:
    replies(status, body)
    answer = result()
    assert answer["statusCode"] == 502
    assert words in error_of(answer)
    assert "key" not in json.dumps(answer)


def test_an_api_that_is_down_or_slow_is_a_502_and_the_log_says_why(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("__OW_API_HOST", f"127.0.0.1:{free_port()}")  # https, where no scheme stands
    assert "can't be asked" in error_of(result())
    log = "".join(capsys.readouterr())
    assert f"activations/{ID}: <urlopen error" in log
    assert "user:key" not in log and "dXNlcjprZXk" not in log
    monkeypatch.setattr(results, "API_SECONDS", 0.1)
    monkeypatch.setattr(Api, "do_GET", lambda handler: threading.Event().wait(1))
    monkeypatch.setenv("__OW_API_HOST", f"http://127.0.0.1:{api.server_port}")
    assert "can't be asked" in error_of(result())


def test_a_certificate_that_nobody_vouches_for_is_refused_unless_allowed(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs("openssl")
    subject = ["-subj", "/CN=localhost", "-days", "1", "-nodes", "-newkey", "rsa:2048"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run(["openssl", "req", "-x509", *subject, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    api.socket = context.wrap_socket(api.socket, server_side=True)
    monkeypatch.setenv("__OW_API_HOST", f"https://127.0.0.1:{api.server_port}")
    replies(200, RECORDED["JSON"]["body"])
    assert result()["statusCode"] == 502
    assert result(INSECURE="1")["statusCode"] == 200


def test_it_runs_on_old_pythons(stack: str) -> None:
    code = "import results; print(results.main({'MODEL': 'm', '__ow_path': '/x'})['statusCode'])"
    assert subprocess.check_output([stack, "-c", code], cwd=ROOT, text=True) == "400\n"


# ---- The whole way ----


class Patient(WebAction):
    """A web action whose callers do not wait, and ask for the answer until it is there."""

    def request(
        self, method: str, path: str, body: Any = None, headers: Any = None, chunks: Any = None
    ) -> Answer:
        headers = dict(headers or {})
        if "Accept" in headers:  # the 202 is JSON, and has no id for who does not take that
            headers["Accept"] += ", application/json;q=0.1"
        told = super().request(method, path, body, headers, chunks)
        return self.answer(told.header("x-openwhisk-activation-id"))

    def answer(self, activation_id: str | None) -> Answer:
        path = f"{self.base}-results/{activation_id}"
        while True:
            answer = request(self.port, "GET", path)
            if not answer.header("retry-after"):  # a model's own 202 has none
                return answer


class Hasty(Patient):
    """A web action whose callers POST to its results instead."""

    def request(self, method: str, path: str, *args: Any, **options: Any) -> Answer:
        told = request(self.port, method, f"{self.base}-results{path}", *args, **options)
        return self.answer(told.json["activationId"])


@pytest.fixture(scope="module")
def patient(max_app: Process) -> Iterator[Patient]:
    with web_action(max_app.port, wait=0.0, keeps_results=True) as port:
        yield Patient(f"http://127.0.0.1:{port}{BASE}")


@pytest.mark.parametrize(
    "case",
    [
        name
        for name, (_, details) in EVERY_CASE.items()
        if details.get("method") != "HEAD"  # the 202's own
    ],
)
def test_the_answer_is_that_of_the_models_own_server(case: str, own: int, patient: Patient) -> None:
    compare(*EVERY_CASE[case], own, patient, at_root=True)


@pytest.mark.parametrize(
    "case",
    [
        name
        for name, (_, details) in EVERY_CASE.items()
        if details.get("method", "GET") not in ("GET", "HEAD")
    ],
)
def test_a_post_is_the_callers_own_request(case: str, own: int, patient: Patient) -> None:
    hasty = Hasty(f"http://127.0.0.1:{patient.port}{patient.base}")
    compare(*EVERY_CASE[case], own, hasty, at_root=True)


def test_nobody_but_the_owner_sets_a_parameter(patient: Patient) -> None:
    """INSECURE would spare the certificate of the API, to which the owner's key goes."""
    for path in (f"/{NEVER}?INSECURE=1&MODEL=another", "/seen/x?PREDICT_PATH=/model/labels"):
        answer = request(patient.port, "POST", f"{patient.base}-results{path}", b'{"a": 1}', JSON)
        assert answer.status == 202
    seen = patient.answer(answer.json["activationId"]).json
    assert seen["args"] == {"PREDICT_PATH": ["/model/labels"]}


def test_a_model_that_takes_longer_than_callers_may_wait(stack: str) -> None:
    port = free_port()
    container = start_container(stack, LIVE_APPS / "flask_app", **FLASK)
    command = [sys.executable, "devserver.py", f"http://127.0.0.1:{container.port}"]
    options = ["--port", str(port), "--action", "rec", "--wait", "1", "--results"]
    secret = {"X-Require-Whisk-Auth": "s3cret"}
    with (
        running(container),
        running(Process(*command, *options, "--secret", "s3cret", cwd=ROOT, port=port)) as server,
    ):
        server.wait_ready()
        url = BASE + "/sleep/3.0"
        told = request(port, "GET", url, None, secret)
        assert (told.status, told.json["error"]) == (202, "Response not yet ready.")
        path = f"{BASE}-results/{told.header('x-openwhisk-activation-id')}"
        assert request(port, "GET", path).status == 401
        asked: list[Answer] = []
        while not asked or asked[-1].status == 202:
            asked.append(request(port, "GET", path, None, secret))
        assert len(asked) > 1
        assert (asked[-1].status, asked[-1].body) == (200, b"awake")
        head = request(port, "HEAD", path, None, secret)
        assert (head.status, head.header("content-length"), head.body) == (200, "5", b"")
        assert request(port, "OPTIONS", path).header("access-control-allow-origin") == "*"
        assert request(port, "GET", f"{BASE}-results/{NEVER}", None, secret).status == 202
        assert request(port, "GET", f"{BASE}-results/xyz", None, secret).status == 400
        assert request(port, "GET", f"{BASE}-result/{NEVER}", None, secret).status == 404
        called = request(
            port, "POST", f"{BASE}-results/model/predict", b'{"a": 1}', {**secret, **JSON}
        )
        assert (called.status, called.header("retry-after")) == (202, "5")
        path = f"{BASE}-results/{called.json['activationId']}"
        while (answer := request(port, "GET", path, None, secret)).status == 202:
            pass
        assert (answer.status, answer.json) == (200, {"seen": {"a": 1}})
        key = {"Authorization": "Basic " + base64.b64encode(KEY.encode()).decode()}
        for other in ("actions/other", "triggers/x", "actions"):
            assert request(port, "POST", devserver.API + other, b"{}", key).status == 404
