"""results.py: a caller who was told to wait gets the model's own answer, of that model only."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import BASE, ROOT, Answer, Process, WebAction, needs, request, serving, web_action
from test_fidelity import EVERY_CASE, compare

import devserver
import results

pytestmark = pytest.mark.stacks(1)  # what answers belongs to no stack
ACTIVATIONS = json.loads((ROOT / "tests/recordings/activations.json").read_text())
RECORDED = {recorded["name"]: recorded["body"] for recorded in ACTIVATIONS}
RECORD, UNLOADED = RECORDED["JSON"], RECORDED["load failure"]["response"]
ID, CUT = "a56ba8571c974c74aba8571c970c746a", "The truncated response was: " + "x" * 1_048_576
NO_ANSWERS = {  # the record's response, what the caller is told
    "it did not load": (UNLOADED, UNLOADED["result"]["error"]),
    "no result": ({"status": "whisk internal error"}, "The activation ended without an answer."),
    "its answer was cut": ({"result": {"error": CUT}}, CUT[:1000]),
}
NO_IDS = ["", "/", "/xyz", "/" + ID.upper(), "/" + ID + "\n", f"/{ID}/logs", "/..%2F" + ID[5:]]
NO_JSON = ["image/png", "text/html, image/*;q=0.8"]
ACCEPTS = [*NO_JSON, "image/png, */*;q=0.1", "application/*", "application/problem+json"]
METHODS = {name: details.get("method", "GET") for name, (_, details) in EVERY_CASE.items()}
NO_RECORDS = [  # status, body, what the caller is told
    (401, RECORDED["wrong key"], "status 401"),
    (200, b"<html>", "can't be asked"),
    (200, [1], "something else than a record"),
    (200, {"response": 1}, "something else than a record"),
]


class Api(BaseHTTPRequestHandler):
    """OpenWhisk's, which answers as recorded, or as a test wants it."""

    status, reply = 404, b""
    location = ""  # to which it redirects
    asked, body = "", b""

    def do_POST(self) -> None:
        Api.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        Api.asked = f"{self.path} {self.headers['Authorization']}"
        is_moved = Api.location and self.path != "/elsewhere"
        self.send_response(302 if is_moved else Api.status)
        self.send_header("Location", Api.location)
        self.end_headers()
        self.wfile.write(b"" if is_moved else Api.reply)

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
    Api.status, Api.reply = status, body if isinstance(body, bytes) else json.dumps(body).encode()


def result(path: str = "/" + ID, model: str = "sink", **args: Any) -> dict[str, Any]:
    return results.main({"__ow_method": "get", "__ow_path": path, "MODEL": model, **args})


def error_of(answer: dict[str, Any]) -> tuple[int, str]:
    return answer["statusCode"], json.loads(answer["body"])["error"]


# ---- The answer ----


@pytest.mark.parametrize("name", ["JSON", "binary body", "model fails, 500"])
def test_it_is_the_models_own_answer(api: ThreadingHTTPServer, name: str) -> None:
    replies(200, RECORDED[name])
    own = RECORDED[name]["response"]["result"]
    assert result() == own.get("error", own)
    assert Api.asked == f"/api/v1/namespaces/_/activations/{ID} Basic dXNlcjprZXk="


def test_it_leaves_cors_to_the_controller(api: ThreadingHTTPServer) -> None:
    own = {"Access-Control-Expose-Headers": "X-One", "X-One": "1"}
    answer = {"statusCode": 204, "headers": {"Access-Control-Allow-Origin": "a", **own}}
    replies(200, {**RECORD, "response": {"result": answer}})
    assert result()["headers"] == own
    replies(200, {**RECORD, "response": {"result": {"statusCode": 204}}})
    assert result() == {"statusCode": 204}


@pytest.mark.parametrize(("response", "error"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_it_is_what_openwhisk_says_where_the_model_has_no_answer(
    api: ThreadingHTTPServer, response: Any, error: str
) -> None:
    replies(200, {**RECORD, "response": response})
    assert error_of(result()) == (502, error)


# ---- Of which activation ----


def test_it_is_of_an_action_in_the_same_package(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies(200, RECORDED["in a package"])
    assert result()["statusCode"] == 202
    monkeypatch.setenv("__OW_ACTION_NAME", "/guest/models/sink-results")
    assert result()["statusCode"] == 200


def test_an_id_of_another_action_is_like_one_that_never_was(api: ThreadingHTTPServer) -> None:
    replies(404, RECORDED["unknown id"])
    unknown = result()
    assert (unknown["statusCode"], unknown["headers"]["Retry-After"]) == (202, "5")
    assert "there never was such" in error_of(unknown)[1]
    replies(200, RECORD)
    assert result(model="another") == unknown
    replies(200, {**RECORD, "annotations": []})
    assert result() == unknown
    replies(200, {**RECORD, "annotations": RECORD["annotations"][::-1]})
    assert result()["statusCode"] == 200


@pytest.mark.parametrize("path", NO_IDS)
def test_an_id_that_is_none_is_refused(api: ThreadingHTTPServer, path: str) -> None:
    status, error = error_of(result(path))
    assert (status, "sink-results/ID" in error) == (400, True)


def test_the_id_of_a_call_of_its_own_is_refused(api: ThreadingHTTPServer) -> None:
    """Which is in the header of an answer to a POST, where it would never be another one's."""
    replies(200, {**RECORD, "annotations": [{"key": "path", "value": "guest/sink-results"}]})
    status, error = error_of(result())
    assert (status, "id of a call of sink-results itself" in error) == (400, True)


# ---- A call that does not wait ----


@pytest.mark.parametrize("accept", ACCEPTS)
def test_a_caller_who_takes_no_json_is_told_to_wait_without(
    api: ThreadingHTTPServer, accept: str
) -> None:
    """OpenWhisk would make a 406 of it."""
    headers, takes = {"accept": accept}, accept not in NO_JSON
    replies(404, RECORDED["unknown id"])
    answer = result(__ow_headers=headers)
    assert (answer["statusCode"], answer["body"] != "") == (202, takes)
    Api.asked = ""
    replies(202, {"activationId": ID})
    answer = result(__ow_method="post", __ow_headers=headers)
    assert (answer["statusCode"], Api.asked != "") == (202 if takes else 406, takes)
    assert takes or "the model was not called" in error_of(answer)[1]


def test_a_post_calls_the_model_without_waiting(api: ThreadingHTTPServer) -> None:
    replies(202, {"activationId": ID})
    answer = result("/model/predict", __ow_method="post", __ow_body="ä\ud800", INSECURE="1")
    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (202, "5")
    assert json.loads(answer["body"]) == {"activationId": ID}
    assert Api.asked == "/api/v1/namespaces/_/actions/sink?blocking=false Basic dXNlcjprZXk="
    sent = '{"__ow_method": "post", "__ow_path": "/model/predict", "__ow_body": "ä\\ud800"}'
    assert Api.body.decode() == sent


@pytest.mark.parametrize(
    ("status", "told", "words"),
    [(404, 502, "API answered with status 404."), (413, 413, "large"), (429, 429, "minute")],
)
def test_a_post_that_the_api_refuses_is_a_sentence(
    api: ThreadingHTTPServer, status: int, told: int, words: str
) -> None:
    replies(status, {"error": "Too much"})
    answer, error = error_of(result(__ow_method="post"))
    assert (answer, words in error) == (told, True)


# ---- The API, and the owner's key for it ----


@pytest.mark.parametrize(("status", "body", "words"), NO_RECORDS)
def test_an_api_that_does_not_tell_is_a_502(
    api: ThreadingHTTPServer, status: int, body: Any, words: str
) -> None:
    replies(status, body)
    told, error = error_of(result())
    assert (told, words in error, "key" in error) == (502, True, False)


def test_an_api_that_is_down_or_slow_is_a_502_and_the_log_says_why(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    down = (502, "OpenWhisk's API can't be asked at the moment.")
    monkeypatch.setenv("__OW_API_HOST", "127.0.0.1:9")  # https, where no scheme stands
    assert error_of(result()) == down
    log = "".join(capsys.readouterr())
    assert f"activations/{ID}: <urlopen error" in log
    assert "user:key" not in log and "dXNlcjprZXk" not in log
    monkeypatch.setattr(results, "API_SECONDS", 0.1)
    monkeypatch.setattr(Api, "do_GET", lambda handler: threading.Event().wait(1))
    monkeypatch.setenv("__OW_API_HOST", f"http://127.0.0.1:{api.server_port}")
    assert error_of(result()) == down


def test_the_owners_key_goes_to_the_api_and_nowhere_else(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies(200, RECORD)
    monkeypatch.setattr(Api, "location", f"http://localhost:{api.server_port}/elsewhere")
    assert result()["statusCode"] == 200
    assert Api.asked == "/elsewhere None"
    assert capsys.readouterr() == ("", "")


def test_the_owners_key_goes_through_no_proxy(
    api: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{api.server_port}")
    monkeypatch.setenv("__OW_API_HOST", "http://127.0.0.1:9")
    Api.asked = ""
    assert (result()["statusCode"], Api.asked) == (502, "")


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
    replies(200, RECORD)
    assert (result()["statusCode"], result(INSECURE="1")["statusCode"]) == (502, 200)


@pytest.mark.stacks(2)
def test_it_runs_on_old_pythons(stack: str) -> None:
    code = "import results; print(results.main({'MODEL': 'm', '__ow_path': '/x'})['statusCode'])"
    assert subprocess.check_output([stack, "-c", code], cwd=ROOT, text=True) == "400\n"


# ---- The whole way ----


class Patient(WebAction):
    """A web action whose callers ask its results for the answer, until it is there."""

    def request(self, *args: Any, **options: Any) -> Answer:
        told = super().request(*args, **options)
        return self.answer(told.header("x-openwhisk-activation-id"))

    def answer(self, activation_id: str | None, **headers: str) -> Answer:
        path = f"{self.base}-results/{activation_id}"
        while True:
            answer = request(self.port, "GET", path, None, headers)
            if not answer.header("retry-after"):  # a model's own 202 has none
                return answer
            time.sleep(0.02)


class Hasty(Patient):
    """A web action whose callers POST to its results instead."""

    def request(self, method: str, path: str, *args: Any, **options: Any) -> Answer:
        told = request(self.port, method, f"{self.base}-results{path}", *args, **options)
        return self.answer(told.json["activationId"])


@contextlib.contextmanager
def keeping_results(container: Process, **options: Any) -> Iterator[Patient]:
    action = web_action(container.port, keeps_results=True, **options)
    with action as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("__OW_API_HOST", f"http://127.0.0.1:{port}")
        patch.setenv("__OW_API_KEY", devserver.KEY)
        patch.setenv("__OW_ACTION_NAME", "/guest/rec-results")
        yield Patient(f"http://127.0.0.1:{port}{BASE}")


@pytest.fixture(scope="module")
def patient(max_app: Process) -> Iterator[Patient]:
    with keeping_results(max_app) as patient:
        yield patient


@pytest.mark.parametrize("case", [name for name in METHODS if METHODS[name] != "HEAD"])
def test_the_answer_is_that_of_the_models_own_server(case: str, own: int, patient: Patient) -> None:
    compare(*EVERY_CASE[case], own, patient, patient.base)


@pytest.mark.parametrize("case", [name for name in METHODS if METHODS[name] not in ("GET", "HEAD")])
def test_a_post_is_the_callers_own_request(case: str, own: int, patient: Patient) -> None:
    hasty = Hasty(f"http://127.0.0.1:{patient.port}{patient.base}")
    compare(*EVERY_CASE[case], own, hasty, patient.base)


def test_nobody_but_the_owner_sets_a_parameter(patient: Patient) -> None:
    """INSECURE would spare the certificate of the API, to which the owner's key goes."""
    path = "/seen/x?INSECURE=1&MODEL=another&OPENWHISK_PREDICT_PATH=/p"
    told = request(patient.port, "POST", f"{patient.base}-results{path}", b"a")
    seen = patient.answer(told.json["activationId"]).json
    assert seen["args"].keys() == {"INSECURE", "MODEL", "OPENWHISK_PREDICT_PATH"}


def test_a_model_that_takes_longer_than_callers_may_wait(flask_app: Process) -> None:
    secret = {"X-Require-Whisk-Auth": "s3cret"}
    with keeping_results(flask_app, wait=1.0, secret="s3cret") as patient:
        told = request(patient.port, "GET", BASE + "/sleep/3.0", None, secret)
        assert (told.status, told.json["error"]) == (202, "Response not yet ready.")
        activation_id = told.header("x-openwhisk-activation-id")
        path = f"{BASE}-results/{activation_id}"
        assert request(patient.port, "GET", path).status == 401
        assert request(patient.port, "GET", path, None, secret).status == 202
        answer = patient.answer(activation_id, **secret)
        assert (answer.status, answer.body) == (200, b"awake")
        head = request(patient.port, "HEAD", path, None, secret)
        assert (head.status, head.header("content-length"), head.body) == (200, "5", b"")
