"""The platform's contract, against the live process over sockets: /init, /run, logs, errors, signals."""

from __future__ import annotations

import base64
import concurrent.futures
import functools
import gzip
import io
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import LIVE_APPS, ROOT, SENTINEL, Process, free_port, running, start_container

import openwhisk

EVERY_ID = {
    "action_name": "/guest/models/rec",
    "action_version": "0.0.1",
    "activation_id": "a1",
    "deadline": "9999999999999",
    "namespace": "guest",
    "transaction_id": "t1",
    "api_key": "k",
}


@pytest.fixture(scope="module")
def max_app(stack: str) -> Iterator[Process]:
    with running(start_container(stack, LIVE_APPS / "max_app")) as process:
        yield process


@pytest.fixture
def flask_app(stack: str) -> Iterator[Process]:
    env = {"SECRET": "secret", "LC_ALL": "C"}  # as in MAX images, whose old Pythons then take stdout to be ASCII
    with running(start_container(stack, LIVE_APPS / "flask_app", **env)) as process:
        process.post("/init", {"value": {}})
        yield process


def web(path: str = "", method: str = "get", body: str = "", query: str = "", **headers: str) -> dict[str, Any]:
    """The value of a web action's POST /run, --web raw."""
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return {"__ow_method": method, "__ow_path": path, "__ow_query": query, "__ow_headers": headers, "__ow_body": body}


def text_of(result: dict[str, Any]) -> str:
    return str(result["body"])


class TestInit:
    def test_should_answer_ok_again_and_again(self, flask_app: Process) -> None:
        for _ in range(3):
            answer = flask_app.post("/init", {"value": {"name": "rec", "binary": False, "main": "main"}})
            assert (answer.status, answer.json) == (200, {"ok": True})

    def test_should_export_the_platforms_names_only(self, flask_app: Process) -> None:
        env = {"__OW_API_HOST": "http://host", "__OW_NAMESPACE": "guest", "SECRET_TOO": "x", "PATH": "/evil"}
        flask_app.post("/init", {"value": {"env": env}})
        seen = json.loads(text_of(flask_app.run(web("/environment"))))
        assert seen["__OW_API_HOST"] == "http://host"
        assert seen["__OW_NAMESPACE"] == "guest"
        assert set(seen) & {"SECRET", "SECRET_TOO"} == {"SECRET"}

    def test_should_wait_until_the_model_is_loaded(self, stack: str, tmp_path: Path) -> None:
        loaded = tmp_path / "loaded"
        with (
            running(start_container(stack, LIVE_APPS / "slow", LOADED_WHEN=str(loaded))) as process,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            process.until("loading", process.out)
            inits = [pool.submit(process.post, "/init", {"value": {}}) for _ in range(2)]
            run = pool.submit(process.run, web("/"))
            own = process.request("GET", "/")
            assert (own.status, own.header("retry-after")) == (503, "1")
            assert own.json == {"error": "The model is not loaded; the log says more."}
            assert not run.done()
            assert not any(init.done() for init in inits)
            loaded.touch()
            assert [init.result().json for init in inits] == [{"ok": True}] * 2
            assert text_of(run.result()) == "loaded"

    def test_should_name_the_timeout_when_the_deadline_comes_before_the_model(self, stack: str, tmp_path: Path) -> None:
        with running(start_container(stack, LIVE_APPS / "slow", LOADED_WHEN=str(tmp_path / "never"))) as process:
            deadline = str(int(time.time() * 1000) + 1500)
            answer = process.post("/init", {"value": {"env": {"__OW_DEADLINE": deadline}}})
            assert answer.status == 502
            assert "--timeout" in answer.json["error"]
            result = process.run(web("/"), deadline=deadline)
            assert result["error"]["statusCode"] == 503

    @pytest.mark.parametrize(
        ("app", "env", "words"),
        [
            ("broken", {}, ["app.py in ", "OSError: no weights"]),
            ("", {}, ["app.py in ", "FileNotFoundError"]),
            ("runless", {}, ["app.py in ", "run()", "WSGI_APP"]),
            ("recorder", {"WSGI_APP": "nowhere:app"}, ["WSGI_APP=nowhere:app", "ModuleNotFoundError", "nowhere"]),
            ("recorder", {"WSGI_APP": "app:nothing"}, ["WSGI_APP=app:nothing", "AttributeError", "nothing"]),
            ("recorder", {"WSGI_APP": "app:json"}, ["WSGI_APP=app:json", "TypeError", "not callable"]),
        ],
    )
    def test_should_say_why_the_model_did_not_load(
        self, stack: str, app: str, env: dict[str, str], words: list[str]
    ) -> None:
        with running(start_container(stack, LIVE_APPS / app, **env)) as process:
            answer = process.post("/init", {"value": {}})
            assert answer.status == 502
            assert all(word in answer.json["error"] for word in words), answer.json
            assert "Traceback" in process.until(SENTINEL, process.err)
            assert process.until(SENTINEL, process.out) == SENTINEL + "\n"
            result = process.run(web())
            assert result["error"]["statusCode"] == 503
            assert "weights" not in json.dumps(result)
            assert process.request("GET", "/").status == 503


class TestRun:
    def test_should_serve_the_bare_url_with_the_predict_path(self, recorder: Process, stack: str) -> None:
        assert json.loads(text_of(recorder.run(web(method="post"))))["PATH_INFO"] == "/model/predict"
        with running(
            start_container(stack, LIVE_APPS / "recorder", WSGI_APP="app:app", PREDICT_PATH="/v1/x")
        ) as process:
            assert json.loads(text_of(process.run(web(query="a=1"))))["PATH_INFO"] == "/v1/x"

    @pytest.mark.parametrize(
        ("name", "base"),
        [
            ("/guest/ocr", "/api/v1/web/guest/default/ocr"),
            ("/guest/models/ocr", "/api/v1/web/guest/models/ocr"),
            ("/a b@c.d_e/ocr", "/api/v1/web/a b@c.d_e/default/ocr"),
        ],
    )
    def test_should_mount_the_app_at_the_web_actions_path(self, recorder: Process, name: str, base: str) -> None:
        assert json.loads(text_of(recorder.run(web("/x"), action_name=name)))["SCRIPT_NAME"] == base

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            ({"host": "h.example"}, ("http", "h.example", "h.example", "80")),
            ({"host": "h.example:3233"}, ("http", "h.example:3233", "h.example", "3233")),
            ({"host": "[::1]:81"}, ("http", "[::1]:81", "[::1]", "81")),
            (
                {"host": "h", "x_forwarded_proto": "https", "x_forwarded_host": "f.example"},
                ("https", "f.example", "f.example", "443"),
            ),
            (
                {"host": "h", "x_forwarded_proto": "https,http", "x_forwarded_host": "f:8443, g"},
                ("https", "f:8443", "f", "8443"),
            ),
            ({}, ("http", "localhost", "localhost", "80")),
        ],
    )
    def test_should_take_scheme_and_host_from_the_headers(
        self, recorder: Process, headers: dict[str, str], expected: tuple[str, ...]
    ) -> None:
        seen = json.loads(text_of(recorder.run(web("/urls", **headers))))
        assert tuple(seen[key] for key in ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT")) == expected

    def test_should_pass_user_and_client_on(self, recorder: Process) -> None:
        seen = json.loads(text_of(recorder.run({**web("/x", x_forwarded_for="1.2.3.4, 5.6.7.8"), "__ow_user": "me"})))
        assert (seen["REMOTE_USER"], seen["REMOTE_ADDR"]) == ("me", "1.2.3.4")

    def test_should_prefer_a_header_with_dashes(self, recorder: Process) -> None:
        value = web("/x")
        value["__ow_headers"] = {"x_a": "under", "x-a": "dash", "content_type": "x", "accept-encoding": "gzip"}
        seen = json.loads(text_of(recorder.run(value)))
        assert seen["HTTP_X_A"] == "dash"
        assert "HTTP_ACCEPT_ENCODING" not in seen

    def test_should_give_the_app_the_activations_ids(self, flask_app: Process) -> None:
        seen = json.loads(text_of(flask_app.run(web("/ids"), **EVERY_ID)))
        assert seen == {"openwhisk." + name: text for name, text in EVERY_ID.items()}
        environment = json.loads(text_of(flask_app.run(web("/environment"), **EVERY_ID)))
        assert {f"__OW_{name.upper()}": text for name, text in EVERY_ID.items()}.items() <= environment.items()

    def test_should_run_activations_at_once_and_apart(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            runs = [pool.submit(flask_app.run, web(f"/together/{name}"), activation_id=f"id {name}") for name in "abcd"]
        assert [json.loads(text_of(run.result())) for run in runs] == [
            {"name": name, "activation": f"id {name}"} for name in "abcd"
        ]

    def test_should_send_a_browser_at_the_bare_url_to_the_ui(self, flask_app: Process) -> None:
        result = flask_app.run(web(accept="text/html,*/*"))
        assert (result["statusCode"], result["headers"]) == (302, {"Location": "/api/v1/web/guest/default/rec/"})
        assert flask_app.run(web(accept="*/*"))["statusCode"] in (404, 405)
        assert flask_app.run(web("/model/predict", accept="text/html"))["statusCode"] in (404, 405)
        assert flask_app.run(web(accept="text/html", method="delete"))["statusCode"] == 405

    def test_should_post_a_plain_invocations_parameters(self, flask_app: Process) -> None:
        assert flask_app.run({"a": 1, "b": ["é"]}) == {"seen": {"a": 1, "b": ["é"]}}
        assert flask_app.run({}) == {"seen": {}}
        assert flask_app.run({"error": 1}) == {"error": {"message": "bad input"}}
        assert flask_app.run({"text": 1})["body"] == "just text"
        assert json.loads(flask_app.run({"list": 1})["body"]) == [1, 2]
        assert flask_app.run({"nan": 1})["statusCode"] == 200

    def test_should_make_requests_again_under_web_true(self, recorder: Process) -> None:
        value = {
            "__ow_method": "get",
            "__ow_path": "/x",
            "__ow_headers": {"content-type": "application/json"},
            "a": "1",
        }
        seen = json.loads(text_of(recorder.run(value)))
        assert (seen["QUERY_STRING"], seen["body"]) == ("a=1", "")
        seen = json.loads(text_of(recorder.run({**value, "__ow_method": "post"})))
        assert (seen["QUERY_STRING"], base64.b64decode(seen["body"])) == ("", b'{"a": "1"}')
        seen = json.loads(text_of(recorder.run({**value, "__ow_method": "post", "__ow_body": [1]})))
        assert (seen["QUERY_STRING"], base64.b64decode(seen["body"])) == ("a=1", b"[1]")

    def test_should_serve_the_whole_of_wsgi(self, flask_app: Process) -> None:
        assert text_of(flask_app.run(web("/write"))) == "written, returned"


class TestResult:
    def test_should_repeat_headers_and_leave_malformed_ones_out(self, flask_app: Process) -> None:
        assert flask_app.run(web("/header"))["headers"]["X-Good"] == ["a", "b"]
        assert flask_app.run(web("/split"))["headers"] == {"Content-Type": "text/plain", "X-Kept": "d"}
        log = flask_app.until("X Name", flask_app.err)
        assert "'X-Split' is left out" in log

    def test_should_count_a_server_error_as_a_failed_activation(self, flask_app: Process) -> None:
        assert flask_app.run(web("/model/predict", "post", base64.b64encode(b"not JSON").decode()))["statusCode"] == 400
        result = flask_app.run(web("/status/700"))
        assert result["error"]["statusCode"] == 500
        assert "700" in result["error"]["body"]

    def test_should_answer_an_exception_with_a_sentence_and_log_the_traceback(self, flask_app: Process) -> None:
        for path, words in (
            ("/raise", "RuntimeError: secret"),
            ("/raise-late", "RuntimeError: secret"),
            ("/exit", "SystemExit: secret"),
        ):
            result = flask_app.run(web(path))
            assert result["error"]["statusCode"] == 500
            assert "secret" not in result["error"]["body"]
            assert json.loads(result["error"]["body"])["error"]
            assert words in flask_app.until(SENTINEL, flask_app.err)

    def test_should_keep_to_the_limit(self, flask_app: Process, stack: str) -> None:
        assert flask_app.run(web("/bytes/700000"))["statusCode"] == 200
        result = flask_app.run(web("/bytes/800000"))
        assert result["error"]["statusCode"] == 500
        error = json.loads(result["error"]["body"])["error"]
        assert "1048576" in error and "RESULT_LIMIT" in error and "--compressed" in error
        for limit, status in (("0", 200), ("2000000", 200), ("1000", 500)):
            with running(start_container(stack, LIVE_APPS / "flask_app", RESULT_LIMIT=limit)) as process:
                result = process.run(web("/bytes/800000"))
                assert result.get("error", result)["statusCode"] == status
                assert process.run(web("/bytes/800000", "head")).get("error", {}).get("statusCode", 200) == status

    @pytest.mark.parametrize("kind", ["text/html", "application/json", "text/javascript", "image/png"])
    def test_should_show_the_headers_of_a_get_to_a_head(self, max_app: Process, kind: str) -> None:
        get, head = (max_app.run(web("/encoded", method, query="type=" + quote(kind))) for method in ("get", "head"))
        assert head["headers"] == get["headers"]
        assert head["headers"]["Content-Type"].startswith(kind)

    def test_should_leave_the_origin_to_the_controller(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "max_app", CORS_ENABLE="true")) as process:
            headers = process.run(web("/model/labels", origin="https://x.example"))["headers"]
        assert "access-control-allow-origin" not in {name.lower() for name in headers}

    def test_should_compress_what_the_controller_can_carry(self, flask_app: Process) -> None:
        for kind, sent in (
            ("application/octet-stream",) * 2,
            ("application/json",) * 2,
            ("image/svg+xml",) * 2,
            ("application/javascript", "text/javascript"),
            ("text/javascript; charset=utf-8", "text/javascript"),
        ):
            result = flask_app.run(web("/bytes/2000000", query="type=" + quote(kind), accept_encoding="gzip, br"))
            assert result["headers"] == {"Content-Type": sent, "Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            assert gzip.decompress(base64.b64decode(result["body"])) == b"7" * 2000000
        for path, query, accepted in (
            ("/bytes/500000", "type=text/html", "gzip"),
            ("/bytes/500000", "", "identity"),
            ("/bytes/500000", "", "gzip;q=0"),
            ("/bytes/500000", "random", "gzip"),
            ("/bytes/999", "", "gzip"),
        ):
            assert "Content-Encoding" not in flask_app.run(web(path, query=query, accept_encoding=accepted))["headers"]

    def test_should_weaken_the_etag_of_what_it_compresses(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "max_app")) as process:
            query = "times=200000&type=application/json"
            plain = process.run(web("/etag", query=query.replace("200000", "2")))
            result = process.run(web("/etag", query=query, accept_encoding="gzip"))
        assert plain["headers"]["ETag"] == '"abc"'
        assert result["headers"]["ETag"] == 'W/"abc"'
        assert gzip.decompress(base64.b64decode(result["body"])) == b"cached" * 200_000

    def test_should_carry_text_in_any_charset(self, recorder: Process, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "max_app")) as process:

            def result(kind: str, body: bytes) -> tuple[str, str]:
                got = process.run(web("/type", query=f"type={quote(kind)}&hex={body.hex()}"))
                return got["headers"]["Content-Type"], got["body"]

            assert result("text/plain; charset=iso-8859-1", b"caf\xe9")[1] == "café"
            assert result("text/plain; charset=utf-16", "é".encode("utf-16"))[1] == "é"
            assert result("application/json; charset=latin1", b'"\xe9"')[1] == '"é"'
            exact = base64.b64encode(b"\xff\xfe\xe9").decode()
            for kind in ("text/plain", "text/html; charset=utf-8", "text/plain; charset=nonsense", "garbage", ""):
                assert result(kind, b"\xff\xfe\xe9") == ("application/octet-stream", exact)
            assert result("application/json", b"\xff\xfe\xe9") == ("application/json", exact)
            assert result("application/pdf; charset=utf-8", b"\xff\xfe\xe9") == ("application/pdf", exact)


NOT_OBJECTS = [b"", b"\xff", b"{", b"[]", b"null", b"1", b'"x"', b"[" * 100_000, b'{"value": ' + b'{"a":' * 50_000]
NOT_MESSAGES = [b"{}", b'{"value": null}', b'{"value": []}', b'{"value": 1}', b'{"value": {"a": NaN}}']
WRONG_VALUES: list[dict[str, Any]] = [
    *({"__ow_method": method} for method in (None, 1, "", "brew coffee")),
    *({"__ow_path": path} for path in (1, "x", "/\ud800")),
    {"__ow_headers": []},
    {"__ow_headers": {"a": 1}},
    {"__ow_headers": {"content-type": None}},
    *({"__ow_query": query} for query in (1, "\ud800")),
    *({"__ow_body": body} for body in (1, "!!!", "abc", "YWJ\nj")),
    {"__ow_user": 1},
]
WRONG_FIELDS: list[dict[str, Any]] = [
    *({"action_name": name} for name in (1, "x")),
    *({"activation_id": name} for name in (5, "a\0b")),
    {"namespace": "\ud800"},
    {"deadline": "soon"},
]
MALFORMED = [
    *NOT_OBJECTS,
    *NOT_MESSAGES,
    *(json.dumps({"value": {**web(), **wrong}}).encode() for wrong in WRONG_VALUES),
    *(json.dumps({"value": web("/ids"), **wrong}).encode() for wrong in WRONG_FIELDS),
]


class TestMessage:
    """Never anything but HTTP 200 with Content-Length and a JSON object (Process.post checks it)."""

    @pytest.mark.parametrize("message", MALFORMED)
    def test_should_be_answered_whatever_it_is(self, recorder: Process, message: bytes) -> None:
        answer = recorder.post("/run", message)
        assert answer.status == 200
        assert "Traceback" not in answer.body.decode()
        assert recorder.post("/init", message).status in (200, 502)
        assert recorder.run(web("/alive"))["statusCode"] == 200

    @pytest.mark.parametrize(
        "body", ["QUI", "QUI==", "QUI=QUI=", "QU\nI", "QUI!", " QUI=", "QUI=\n", "=QUI", "AA=A", "é" * 4, 10**11]
    )
    def test_should_be_refused_when_its_body_is_not_base64(self, recorder: Process, body: Any) -> None:
        result = recorder.run({**web("/x", "post", content_type="image/png"), "__ow_body": body})
        assert result["error"]["statusCode"] == 400

    @pytest.mark.parametrize("size", [*range(9), 1_000_000])
    def test_should_be_read_without_openssl_too(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        data = os.urandom(size)
        encoded = openwhisk.encode_base64(data)
        assert (encoded, openwhisk.decode_base64(encoded)) == (base64.b64encode(data), data)
        monkeypatch.setattr(openwhisk, "ENCODE", None)
        monkeypatch.setattr(openwhisk, "DECODE", None)
        assert (openwhisk.encode_base64(data), openwhisk.decode_base64(encoded)) == (encoded, data)
        with pytest.raises(ValueError, match="base64|padding"):
            openwhisk.decode_base64(encoded + b"QUI!")

    def test_should_be_served_when_it_is_5_mb(self, recorder: Process) -> None:
        data = os.urandom(5_000_000)
        value = web("/x", "post", base64.b64encode(data).decode(), content_type="image/png")
        result = recorder.run(value)
        assert result["error"]["statusCode"] == 500  # the recorder sends it all back

    @pytest.mark.parametrize("text", ['"', "é\\n", "plain"])
    def test_should_give_the_app_a_long_text(self, recorder: Process, text: str) -> None:
        long = text * 50_000
        raw = web("/x", "post", long, content_type="text/plain")
        for value in (raw, {name: raw[name] for name in raw if name != "__ow_query"}):
            seen = json.loads(text_of(recorder.run(value)))
            assert base64.b64decode(seen["body"]) == long.encode()

    def test_should_be_read_by_the_app_as_it_likes(self) -> None:
        data = os.urandom(100_000)

        def stream() -> io.BufferedReader:
            return io.BufferedReader(openwhisk.Base64Input(memoryview(base64.b64encode(data))), 65536)

        assert stream().read() == data
        assert b"".join(stream()) == data
        for size in (1, 2, 3, 4096, 65537):
            for read in (stream().read, stream().read1):
                assert b"".join(iter(functools.partial(read, size), b"")) == data

    def test_should_be_answered_when_its_length_lies(self, flask_app: Process) -> None:
        with socket.create_connection(("127.0.0.1", flask_app.port), timeout=30) as client:
            client.sendall(b"POST /run HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{}")
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")

    def test_should_not_be_waited_for_longer_than_a_minute(self, stack: str) -> None:
        """The minute is a second here."""
        code, port = "import openwhisk; openwhisk.Handler.timeout = 1; openwhisk.main()", free_port()
        env = {"PORT": str(port), "PYTHONPATH": str(ROOT), "WSGI_APP": "app:app"}
        head = b"POST /run HTTP/1.1\r\nContent-Length: 9\r\n"
        with running(Process(stack, "-c", code, cwd=LIVE_APPS / "recorder", port=port, env=env).wait_ready()):
            for sent, answer in ((b"", b""), (head, b""), (head + b"\r\n{", b"HTTP/1.1 200 OK\r\n")):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                    client.sendall(sent)
                    assert client.recv(17) == answer
                    while client.recv(65536):
                        pass

    def test_should_be_answered_in_http_1_1_over_a_connection_that_says_it_closes(self, flask_app: Process) -> None:
        with socket.create_connection(("127.0.0.1", flask_app.port), timeout=30) as client:
            body = json.dumps({"value": web("/print/x")}).encode()
            client.sendall(
                b"POST /run HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert answer.lower().count(b"connection: close") == 1


class TestLogs:
    def test_should_end_each_activation_with_the_sentinel_on_a_line_of_its_own(self, flask_app: Process) -> None:
        assert flask_app.until("loading", flask_app.out) == "loading\n"
        for query in ("", "end="):
            flask_app.run(web("/print/é", query=query))
            assert flask_app.until(SENTINEL, flask_app.out) == f"out é\n{SENTINEL}\n"
            assert flask_app.until(SENTINEL, flask_app.err) == f"err é\n{SENTINEL}\n"
        flask_app.post("/run", b"{")
        assert flask_app.until(SENTINEL, flask_app.out) == SENTINEL + "\n"

    def test_should_hold_nothing_but_what_the_app_prints(self, flask_app: Process) -> None:
        flask_app.request("GET", "/print/x")
        flask_app.request("GET", "/nowhere")
        with socket.create_connection(("127.0.0.1", flask_app.port)) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert client.recv(9)
        assert flask_app.stop() == 0
        assert flask_app.rest(flask_app.out) == "loading\nout x\n"
        assert flask_app.rest(flask_app.err) == "err x\n"

    def test_should_end_even_if_the_app_closes_stdout(self, flask_app: Process) -> None:
        flask_app.until("loading", flask_app.out)
        assert text_of(flask_app.run(web("/close-stdout"))) == "closed"
        assert flask_app.until(SENTINEL, flask_app.out) == SENTINEL + "\n"
        assert flask_app.run(web("/raise"))["error"]["statusCode"] == 500
        flask_app.until(SENTINEL, flask_app.err)
        assert "RuntimeError: secret" in flask_app.until(SENTINEL, flask_app.err)


class TestFaults:
    def test_should_be_told_from_the_model_that_ends_its_process(self, flask_app: Process) -> None:
        with pytest.raises(ConnectionError):
            flask_app.run(web("/os-exit"))
        assert flask_app.popen.wait(timeout=30) == 7

    def test_should_be_of_the_model_that_exits_while_it_loads(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "exits")) as process:
            answer = process.post("/init", {"value": {}})
            assert answer.status == 502
            assert answer.json["error"].endswith("SystemExit: no licence")

    def test_should_not_come_of_ten_megabytes_of_log(self, flask_app: Process) -> None:
        assert text_of(flask_app.run(web("/print-much"))) == "printed"
        assert len(flask_app.until(SENTINEL, flask_app.out)) > 10_000_000

    def test_should_not_come_of_a_pause(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            run = pool.submit(flask_app.run, web("/sleep/0.2"))
            flask_app.until("asleep", flask_app.out)
            flask_app.popen.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, flask_app.popen.pid, os.WSTOPPED)
            assert not run.done()
            flask_app.popen.send_signal(signal.SIGCONT)
            assert text_of(run.result()) == "awake"

    def test_should_be_told_when_the_disk_for_uploads_is_full(self, stack: str) -> None:
        """A file size limit of 0 stands for the full disk; uploads over 500 kB go to disk."""
        port, app = free_port(), LIVE_APPS / "flask_app"
        command = f'ulimit -f 0; exec "{stack}" "{ROOT / "openwhisk.py"}"'
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        with running(Process("sh", "-c", command, cwd=app, port=port, env={"PORT": str(port)}).wait_ready()) as process:
            for size, status in ((100, 200), (900_000, 500), (100, 200)):
                body = base64.b64encode(head + bytes(size) + b"\r\n--x--\r\n").decode()
                result = process.run(web("/upload", "post", body, content_type="multipart/form-data; boundary=x"))
                assert result.get("error", result)["statusCode"] == status
                assert "Errno" not in str(result)


class TestOwnHttp:
    def test_should_go_straight_through_to_the_model(self, flask_app: Process) -> None:
        assert flask_app.request("GET", "/bytes/3").body == b"777"
        assert flask_app.request("POST", "/model/predict", b'{"a": 1}').json == {"seen": {"a": 1}}
        assert flask_app.request("GET", "/run").status == 404
        assert flask_app.request("GET", "/init").status == 404


class TestApps:
    """WSGI apps that are not MAX's, with WSGI_APP."""

    def test_should_be_of_django(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "django_app", WSGI_APP="app:application")) as process:
            body = base64.b64encode(b'{"a": 1}').decode()
            headers = {"content_type": "application/json", "host": "h.example"}
            result = process.run(web("", "post", body, **headers))
            url = "http://h.example/api/v1/web/guest/default/rec/model/predict"
            assert json.loads(text_of(result)) == {"seen": {"a": 1}, "url": url}
            form = (
                b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
                b"Content-Type: image/png\r\n\r\n\xff\r\n--x--\r\n"
            )
            result = process.run(
                web("", "post", base64.b64encode(form).decode(), content_type="multipart/form-data; boundary=x")
            )
            assert (result["headers"]["Content-Type"], base64.b64decode(result["body"])) == ("image/png", b"\xff")

    def test_should_be_of_flask_and_of_no_framework(self, stack: str, recorder: Process) -> None:
        assert recorder.run(web("/x"))["statusCode"] == 200
        with running(start_container(stack, LIVE_APPS / "plain_flask", WSGI_APP="service.api:app")) as process:
            assert text_of(process.run(web("/hello"))) == "hello"

    @pytest.mark.parametrize("how", ["thread", "two", "simple"])
    def test_should_be_taken_however_it_is_run(self, stack: str, how: str) -> None:
        with running(start_container(stack, LIVE_APPS / "started", HOW=how)) as process:
            assert process.post("/init", {"value": {}}).json == {"ok": True}
            assert text_of(process.run(web("/"))) == "the model of " + str(LIVE_APPS / "started")

    def test_should_be_free_to_start_and_stop_processes(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "started", HOW="simple")) as process:
            assert text_of(process.run(web("/processes"))) == "-15 [1, 4]"
            assert text_of(process.run(web("/"))).startswith("the model")

    def test_should_meet_no_deprecation_of_ours(self, stack: str) -> None:
        env = {"PYTHONWARNINGS": "error", "WSGI_APP": "service.api:app"}
        with running(start_container(stack, LIVE_APPS / "plain_flask", **env)) as process:
            assert process.post("/init", {"value": {}}).json == {"ok": True}
            assert text_of(process.run(web("/hello", accept_encoding="gzip"))) == "hello"
            assert process.request("GET", "/hello").body == b"hello"
            assert process.stop() == 0
            assert process.rest(process.err) == SENTINEL + "\n"


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_should_stop_an_idle_container_with_status_0(self, flask_app: Process, number: int) -> None:
        assert flask_app.stop(number) == 0

    def test_should_stop_though_clients_keep_connections_open(self, flask_app: Process) -> None:
        with (
            socket.create_connection(("127.0.0.1", flask_app.port)),
            socket.create_connection(("127.0.0.1", flask_app.port)) as half,
        ):
            half.sendall(b"POST /run HTTP/1.1\r\nContent-Length: 9")
            flask_app.popen.send_signal(signal.SIGTERM)
            assert flask_app.popen.wait(timeout=5) == 0

    def test_should_let_running_activations_finish(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            run = pool.submit(flask_app.run, web("/sleep/1.5"))
            flask_app.until("asleep", flask_app.out)
            flask_app.popen.send_signal(signal.SIGTERM)
            assert text_of(run.result()) == "awake"
        assert flask_app.popen.wait(timeout=5) == 0
        with pytest.raises(ConnectionRefusedError):
            flask_app.request("GET", "/")

    def test_should_not_wait_for_ever(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            run = pool.submit(flask_app.run, web("/sleep/30.0"))
            flask_app.until("asleep", flask_app.out)
            flask_app.popen.send_signal(signal.SIGTERM)
            assert flask_app.popen.wait(timeout=10) == 0
            assert isinstance(run.exception(), ConnectionError)

    def test_should_leave_other_signals_to_the_app(self, stack: str) -> None:
        app = LIVE_APPS / "recorder"
        with running(start_container(stack, app, WSGI_APP="app:app", SIGNALS="1")) as process:
            process.post("/init", {"value": {}})
            process.popen.send_signal(signal.SIGUSR1)
            process.until("SIGUSR1", process.out)
            assert process.stop() == 0

    def test_should_stop_while_loading(self, stack: str, tmp_path: Path) -> None:
        with running(start_container(stack, LIVE_APPS / "slow", LOADED_WHEN=str(tmp_path / "never"))) as process:
            process.until("loading", process.out)
            process.popen.send_signal(signal.SIGTERM)
            assert process.popen.wait(timeout=5) == 0


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("PORT", "http"),
            ("PORT", "0"),
            ("PORT", "65536"),
            ("PORT", "-1"),
            ("RESULT_LIMIT", "1 MB"),
            ("RESULT_LIMIT", "-1"),
            ("PREDICT_PATH", "model/predict"),
            ("WSGI_APP", "app.py"),
            ("WSGI_APP", "app:"),
            ("PORT", "²"),
        ],
    )
    def test_should_be_named_when_they_make_no_sense(self, stack: str, name: str, text: str) -> None:
        process = Process(stack, str(ROOT / "openwhisk.py"), cwd=LIVE_APPS / "recorder", env={name: text})
        assert process.popen.wait(timeout=30) == 1
        error = process.rest(process.err)
        assert error.startswith(f"{name} must be ") and repr(text) in error and "Traceback" not in error

    def test_should_say_so_when_the_port_is_taken(self, stack: str, flask_app: Process) -> None:
        process = Process(
            stack, str(ROOT / "openwhisk.py"), cwd=LIVE_APPS / "recorder", env={"PORT": str(flask_app.port)}
        )
        assert process.popen.wait(timeout=30) == 1
        assert str(flask_app.port) in process.rest(process.err)
