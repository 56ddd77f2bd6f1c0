"""From POST /run to what the app sees, for messages of OpenWhisk and for any others."""

from __future__ import annotations

import base64
import concurrent.futures
import functools
import io
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    LIVE_APPS,
    ROOT,
    Process,
    answering,
    free_port,
    request,
    running,
    start_container,
    start_script,
    text_of,
    web,
)

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
JSON = [["Content-Type", "application/json"]]


def test_caches_are_small() -> None:
    """As texts of callers are in them."""
    sizes = [openwhisk.media_type, openwhisk.quoted, openwhisk.environ_key, openwhisk.action_path]
    assert [cached.cache_info().maxsize for cached in sizes] == [8, 8, 128, 128]


class TestRun:
    def test_should_serve_the_bare_url_with_the_predict_path(
        self, recorder: Process, stack: str
    ) -> None:
        assert (
            json.loads(text_of(recorder.run(web(method="post"))))["PATH_INFO"] == "/model/predict"
        )
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
    def test_should_mount_the_app_at_the_web_actions_path(
        self, recorder: Process, name: str, base: str
    ) -> None:
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
            (
                {"host": "h", "x_forwarded_proto": "https , http", "x_forwarded_host": "f , g"},
                ("https", "f", "f", "443"),
            ),
            ({"host": "h", "x_forwarded_proto": "httpsx"}, ("http", "h", "h", "80")),
            ({}, ("http", "localhost", "localhost", "80")),
        ],
    )
    def test_should_take_scheme_and_host_from_the_headers(
        self, recorder: Process, headers: dict[str, str], expected: tuple[str, ...]
    ) -> None:
        seen = json.loads(text_of(recorder.run(web("/urls", **headers))))
        assert (
            tuple(
                seen[key] for key in ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT")
            )
            == expected
        )

    def test_should_pass_user_and_client_on(self, recorder: Process) -> None:
        seen = json.loads(
            text_of(
                recorder.run({**web("/x", x_forwarded_for="1.2.3.4, 5.6.7.8"), "__ow_user": "me"})
            )
        )
        assert (seen["REMOTE_USER"], seen["REMOTE_ADDR"]) == ("me", "5.6.7.8")

    def test_should_have_no_line_end_in_a_header(self, recorder: Process) -> None:
        """The controller takes the next one along after a byte that is not ASCII."""
        seen = json.loads(text_of(recorder.run(web("/x", x_a="\ufffd\r\nConnection: close"))))
        assert seen["HTTP_X_A"] == "\ufffd".encode().decode("latin-1")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("caf\uffe9 x", b"caf\xe9 x"),
            ("\uffe9\uffe8 é", b"\xe9\xe8 \xc3\xa9"),
            ("\ufff0\uff9fxy \uffed\uffa0\uff80", b"\xf0\x9fxy \xed\xa0\x80"),
            ("\uff80\uff81 日本", "\uff80\uff81 日本".encode()),
        ],
    )
    def test_should_have_the_bytes_of_a_header(
        self, recorder: Process, text: str, expected: bytes
    ) -> None:
        """The controller does not carry those that are not UTF-8."""
        seen = json.loads(text_of(recorder.run(web("/x", x_a=text))))
        assert seen["HTTP_X_A"].encode("latin-1") == expected

    def test_should_not_know_the_client_without_a_proxy(self, recorder: Process) -> None:
        assert json.loads(text_of(recorder.run(web("/x"))))["REMOTE_ADDR"] == ""

    def test_should_not_take_the_user_for_a_parameter(self, recorder: Process) -> None:
        value = {"__ow_method": "get", "__ow_path": "/x", "__ow_headers": {}, "__ow_user": "me"}
        seen = json.loads(text_of(recorder.run({**value, "a": "1"})))
        assert (seen["QUERY_STRING"], seen["REMOTE_USER"]) == ("a=1", "me")

    def test_should_join_names_as_the_models_own_server(
        self, recorder: Process, stack: str
    ) -> None:
        """X_A beside X-A: Werkzeug's server joins them or, since 2.3, leaves X_A out."""
        port, headers = free_port(), {"X-A": "dash", "X_A": "under"}
        app = Process(stack, "app.py", str(port), cwd=LIVE_APPS / "recorder", port=port)
        with running(app) as own:
            expected = own.wait_ready().request("GET", "/x", None, headers).json["HTTP_X_A"]
        value = {**web("/x"), "__ow_headers": {"x_a": "under", "x-a": "dash"}}
        joined = json.loads(text_of(recorder.run(value)))["HTTP_X_A"]
        assert joined == expected or (joined, expected) == ("dash,under", "under")  # 0.14: the last

    def test_should_prefer_a_header_with_dashes(self, recorder: Process) -> None:
        value = web("/x")
        value["__ow_headers"] = {
            "x_a": "under",
            "x-a": "dash",
            "content_type": "x",
            "accept-encoding": "gzip",
        }
        for names in (list, reversed):
            value["__ow_headers"] = {
                name: value["__ow_headers"][name] for name in names(list(value["__ow_headers"]))
            }
            seen = json.loads(text_of(recorder.run(value)))
            assert seen["HTTP_X_A"] in ("dash", "dash,under")
            assert "HTTP_ACCEPT_ENCODING" not in seen

    def test_should_give_the_app_the_activations_ids(self, flask_app: Process) -> None:
        seen = json.loads(text_of(flask_app.run(web("/ids"), **EVERY_ID)))
        assert seen == {"openwhisk." + name: text for name, text in EVERY_ID.items()}
        environment = json.loads(text_of(flask_app.run(web("/environment"), **EVERY_ID)))
        assert {
            f"__OW_{name.upper()}": text for name, text in EVERY_ID.items()
        }.items() <= environment.items()

    def test_should_give_child_processes_the_activations_ids(self, flask_app: Process) -> None:
        for number in ("1", "2"):
            ids = {**EVERY_ID, "activation_id": number}
            lines = text_of(flask_app.run(web("/spawn"), **ids)).splitlines()
            assert {f"__OW_{name.upper()}={text}" for name, text in ids.items()} <= set(lines)

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize("name", EVERY_ID)
    def test_should_take_no_id_that_is_none(self, flask_app: Process, name: str) -> None:
        """It would be in the way of every process that the model starts from then on."""
        for text in ("x" * 200_000, "x" * 8193, "a\0b", "\ud800", "a\nb", None, [1]):
            result = flask_app.run(web("/ids"), **{name: text})
            assert result["error"]["statusCode"] == 400
            assert "Traceback" not in result["error"]["body"]
            answer = flask_app.post("/init", {"value": {"env": {"__OW_" + name.upper(): text}}})
            assert answer.status == 502
        lines = text_of(flask_app.run(web("/spawn"))).splitlines()
        known = {"__OW_ACTION_NAME=/guest/rec"}
        assert {line for line in lines if line.startswith("__OW_")} <= known

    @pytest.mark.parametrize(
        ("sent", "text"),
        [
            ("x" * 8192, "x" * 8192),
            ("é" * 4096, "é" * 4096),
            ("a\tb", "a\tb"),
            ("caf\uffe9\r\nHost: x", "caf\uffe9"),
        ],
    )
    def test_should_take_an_id_that_a_caller_may_send(
        self, flask_app: Process, sent: str, text: str
    ) -> None:
        """As X-Request-ID, which becomes the transaction's."""
        ids = {**EVERY_ID, "transaction_id": sent}
        seen = json.loads(text_of(flask_app.run(web("/ids"), **ids)))
        assert seen["openwhisk.transaction_id"] == text
        ids["transaction_id"] = text
        lines = text_of(flask_app.run(web("/spawn"), **ids)).splitlines()
        assert f"__OW_TRANSACTION_ID={text}" in lines

    def test_should_leave_room_in_the_environment(self, flask_app: Process) -> None:
        names = [
            "__OW_" + "X" * 200_000,
            "__OW_A=B",
            "__OW_\0",
            "__OW_\ud800",
            "__OW_a\nb",
            "__OW_",
        ]
        many = {f"__OW_{'A' * (number % 40)}{chr(65 + number // 40)}": "x" for number in range(900)}
        for env in (dict.fromkeys(names, "x"), many):
            answer = flask_app.post("/init", {"value": {"env": env}})
            assert answer.status == (502 if env is many else 200)
        lines = text_of(flask_app.run(web("/spawn"))).splitlines()
        assert [line for line in lines if line.startswith("__OW_")] == [
            "__OW_ACTION_NAME=/guest/rec"
        ]

    @pytest.mark.stacks(2)
    def test_should_leave_room_in_the_environment_for_ever(self, flask_app: Process) -> None:
        for number in range(10):
            env = {f"__OW_{chr(65 + number)}{'A' * length}": "x" * 8192 for length in range(30)}
            answer = flask_app.post("/init", {"value": {"env": env}})
            assert answer.status == (200 if number < 3 else 502)
        assert "__OW_AA=x" in text_of(flask_app.run(web("/spawn")))

    def test_should_take_no_memory(self, stack: str) -> None:
        """As setenv() does, which keeps all that it is given: 80 MB here."""
        code = """if True:
            import openwhisk
            def size():
                return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
            openwhisk.export({"__OW_A": "x" * 8000})
            before = size()
            for number in range(10_000):
                openwhisk.export({"__OW_A": "%08000d" % number})
            print(size() - before)
        """
        grown = subprocess.check_output([stack, "-c", code], cwd=ROOT, text=True)
        assert int(grown) < 10_000  # kB

    @pytest.mark.stacks(2)
    def test_should_give_child_processes_ids_though_the_app_took_them_away(
        self, flask_app: Process
    ) -> None:
        for number in ("1", "2"):
            lines = text_of(flask_app.run(web("/spawn-anew"), activation_id=number)).splitlines()
            assert f"__OW_ACTIVATION_ID={number}" in lines

    def test_should_take_the_ids_of_an_init_that_comes_later(self, flask_app: Process) -> None:
        for number in ("1", "2"):
            flask_app.post("/init", {"value": {"env": {"__OW_ACTIVATION_ID": "init"}}})
            lines = text_of(flask_app.run(web("/spawn"), activation_id=number)).splitlines()
            assert f"__OW_ACTIVATION_ID={number}" in lines

    def test_should_run_activations_at_once_and_apart(self, flask_app: Process) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            runs = [
                pool.submit(flask_app.run, web(f"/together/{name}"), activation_id=f"id {name}")
                for name in "abcd"
            ]
        assert [json.loads(text_of(run.result())) for run in runs] == [
            {"name": name, "activation": f"id {name}"} for name in "abcd"
        ]

    def test_should_send_a_browser_at_the_bare_url_to_the_ui(self, flask_app: Process) -> None:
        result = flask_app.run(web(accept="text/html,*/*"))
        assert (result["statusCode"], result["headers"]) == (
            302,
            {"Location": "/api/v1/web/guest/default/rec/"},
        )
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

    def test_should_make_a_long_json_string_again_under_web_true(self, recorder: Process) -> None:
        value = web("/x", "post", "x" * 70_000, content_type="application/json")
        null = {**value, "__ow_query": None}
        del value["__ow_query"]
        for same in (value, null):
            seen = json.loads(text_of(recorder.run(same)))
            assert json.loads(base64.b64decode(seen["body"])) == "x" * 70_000

    def test_should_serve_the_whole_of_wsgi(self, flask_app: Process) -> None:
        assert text_of(flask_app.run(web("/write"))) == "written, returned"


NOT_OBJECTS = [
    b"",
    b"\xff",
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"[" * 100_000,
    b'{"value": ' + b'{"a":' * 50_000,
]
NOT_MESSAGES = [
    b"{}",
    b'{"value": null}',
    b'{"value": []}',
    b'{"value": 1}',
    b'{"value": {"a": NaN}}',
]
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


NOT_BASE64 = ["QUI", "QUI==", "QUI=QUI=", "QU\nI", "QUI!", " QUI=", "QUI=\n", "=QUI", "AA=A"]
NOT_BASE64 += ["AAAA" * 99 + "=" * 40_000, "QUI=QUI!", "Q===", "====", "é" * 4]


class TestMessage:
    """Never anything but HTTP 200 with Content-Length and a JSON object (Process.post checks
    it)."""

    @pytest.mark.parametrize("message", MALFORMED)
    def test_should_be_answered_whatever_it_is(self, recorder: Process, message: bytes) -> None:
        answer = recorder.post("/run", message)
        assert answer.status == 200
        assert "Traceback" not in answer.body.decode()
        assert recorder.post("/init", message).status in (200, 502)
        assert recorder.run(web("/alive"))["statusCode"] == 200

    def test_should_be_one_json_text(self, recorder: Process) -> None:
        message = json.dumps({"value": web("/x")}).encode()
        assert recorder.post("/run", b"\n " + message + b"\r\n").json["statusCode"] == 200
        answer = recorder.post("/run", message + b" {}").json
        assert answer["error"]["statusCode"] == 400
        assert "Extra data" in answer["error"]["body"]

    @pytest.mark.parametrize("body", [*NOT_BASE64, 10**11])
    def test_should_be_refused_when_its_body_is_not_base64(
        self, recorder: Process, body: Any
    ) -> None:
        result = recorder.run({**web("/x", "post", content_type="image/png"), "__ow_body": body})
        assert result["error"]["statusCode"] == 400

    @pytest.mark.parametrize("size", [*range(9), 1_000_000])
    def test_should_be_read_without_openssl_too(
        self, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = os.urandom(size)
        encoded = base64.b64encode(data)
        assert openwhisk.decode_base64(encoded) == data
        monkeypatch.setattr(openwhisk, "EVP_DecodeBlock", None)
        assert openwhisk.decode_base64(encoded) == data

    @pytest.mark.parametrize("way", ["OpenSSL", "Python"])
    @pytest.mark.parametrize("text", [text for text in NOT_BASE64 if isinstance(text, str)])
    def test_should_be_refused_without_openssl_too(
        self, text: str, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert openwhisk.EVP_DecodeBlock
        if way == "Python":
            monkeypatch.setattr(openwhisk, "EVP_DecodeBlock", None)
        with pytest.raises(ValueError, match="base64|padding"):
            openwhisk.decode_base64(text.encode())

    def test_should_be_the_values_own(self, recorder: Process) -> None:
        """A long text by the name of __ow_body elsewhere in the message is not taken for it."""
        long, short = "x" * 70_000, base64.b64encode(b"mine").decode()
        value = {"deep": {"__ow_body": long}, **web("/x", "post", short, content_type="image/png")}
        seen = json.loads(text_of(recorder.run(value)))
        assert base64.b64decode(seen["body"]) == b"mine"
        answer = recorder.post("/run", [{"__ow_body": long}])
        assert answer.json["error"]["statusCode"] == 400

    def test_should_not_be_read_beyond_all_measure(self, stack: str) -> None:
        options = {"WSGI_APP": "app:app", "RESULT_LIMIT": "1000"}
        with running(start_container(stack, LIVE_APPS / "recorder", **options)) as process:
            for size in (7000, 8000):
                value = web("/nothing", "head", "x" * size, content_type="text/plain")
                result = process.run({**value, "__ow_query": answering(204, [])})
                assert ("error" in result) == (size == 8000)
            assert result["error"]["statusCode"] == 400
            sentence = json.loads(result["error"]["body"])["error"]
            assert re.search(r"it takes 8\d{3} bytes, and RESULT_LIMIT is 1000\.$", sentence)

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize("digits", [4300, 4301, 2_000_000])
    def test_should_have_no_number_that_takes_long_to_read(
        self, recorder: Process, digits: int
    ) -> None:
        """In Python before 3.11 one of 1 MB takes 13 s."""
        number = b'{"value": {"n": %s, "__ow_method": "get"}}' % (b"1" * digits)
        result = recorder.post("/run", number, seconds=5).json
        assert ("error" in result) == (digits > 4300)
        assert digits < 4301 or "a number has over 4300 digits" in result["error"]["body"]

    @pytest.mark.stacks(2)
    def test_should_have_no_type_that_takes_long_to_read(self, recorder: Process) -> None:
        """A regular expression that backtracks takes minutes."""
        kind = f'text/plain; a="{" " * 200_000}"'
        value = web("/x", "post", "text", content_type=kind)
        seen = json.loads(text_of(recorder.run(value)))
        assert seen["CONTENT_TYPE"] == kind

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("content-type", "x" * 600_000, "the headers take over 524288 bytes"),
            ("x" * 1001, "a", "the name of a header is longer than 1000 characters"),
            ("content-type", "x" * 500_000, ""),
            ("x" * 1000, "a", ""),
        ],
        ids=["long", "long name", "not too long", "not too long a name"],
    )
    def test_should_have_no_header_that_takes_much_memory(
        self, recorder: Process, name: str, text: str, words: str
    ) -> None:
        """As names and types are kept in caches."""
        result = recorder.run({**web("/x"), "__ow_headers": {name: text}})
        assert ("error" in result) == (words != "")
        assert words in json.dumps(result)

    def test_should_be_refused_without_a_length(self, recorder: Process) -> None:
        answer = request(recorder.port, "POST", "/run", chunks=b"{}")
        assert answer.json["error"]["statusCode"] == 400
        assert "CONTENT_LENGTH" in answer.json["error"]["body"]

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
            return io.BufferedReader(
                openwhisk.Base64Input(memoryview(base64.b64encode(data))), 65536
            )

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
        code, port = (
            "import openwhisk; openwhisk.Handler.timeout = 1; openwhisk.main()",
            free_port(),
        )
        env = {"PORT": str(port), "PYTHONPATH": str(ROOT), "WSGI_APP": "app:app"}
        head = b"POST /run HTTP/1.1\r\nContent-Length: 9\r\n"
        with running(
            Process(stack, "-c", code, cwd=LIVE_APPS / "recorder", port=port, env=env).wait_ready()
        ):
            for sent, answer in (
                (b"", b""),
                (head, b""),
                (head + b"\r\n{", b"HTTP/1.1 200 OK\r\n"),
            ):
                with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                    client.sendall(sent)
                    assert client.recv(17) == answer
                    while client.recv(65536):
                        pass

    def test_should_be_answered_in_http_1_1_over_a_connection_that_says_it_closes(
        self, flask_app: Process
    ) -> None:
        with socket.create_connection(("127.0.0.1", flask_app.port), timeout=30) as client:
            body = json.dumps({"value": web("/print/x")}).encode()
            client.sendall(
                b"POST /run HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body
            )
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert answer.lower().count(b"connection: close") == 1


def environ(process: Process, value: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """What the recorder is given."""
    seen: dict[str, Any] = json.loads(text_of(process.run(value, **fields)))
    return seen


RESTX_APP = """
from flask import Flask, redirect, request

try:
    from flask_restplus import Api, Resource
except ImportError:
    from flask_restx import Api, Resource

app = Flask(__name__)
api = Api(app)


@app.before_request
def login():
    if "refuse" in request.args:
        return redirect(request.script_root + "/login")


@api.route("/validated")
class Validated(Resource):
    @api.expect(api.schema_model("Any", {"type": "object"}), validate=True)
    def post(self):
        return {}


app.run()
"""


class TestBasePath:
    """Where the caller sees the model: SCRIPT_NAME."""

    @pytest.mark.parametrize(
        ("prefix", "base"),
        [
            ("/", ""),
            ("", ""),
            ("/ocr", "/ocr"),
            ("/ocr/", "/ocr"),
            ("/a/b.c/~d;e", "/a/b.c/~d;e"),
            ("/outer, /inner", "/inner"),
            ("/caf%C3%A9/%20".replace("%20", "x"), "/caf\xc3\xa9/x"),
        ],
    )
    def test_should_be_that_of_the_proxy_in_front(
        self, recorder: Process, prefix: str, base: str
    ) -> None:
        seen = environ(recorder, web("/x", x_forwarded_prefix=prefix))
        assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == (base, "/x")

    @pytest.mark.parametrize(
        "prefix",
        [
            "//evil.example",
            "/%2Fevil.example",
            "/\\evil.example",
            "http://evil.example/",
            "evil",
            "/a/../b",
            "/a/%2e%2e/b",
            "/.",
            "/a b",
            "/a//b",
            "/a?b",
            "/a#b",
            "/a%0d%0ab",
            "/a\x00",
        ],
    )
    def test_should_not_be_what_no_proxy_would_say(self, recorder: Process, prefix: str) -> None:
        seen = environ(recorder, web("/x", x_forwarded_prefix=prefix))
        assert seen["SCRIPT_NAME"] == "/api/v1/web/guest/default/rec"
        assert "is ignored" in recorder.until("is ignored", recorder.err)

    def test_should_be_bound_or_in_the_environment(self, stack: str) -> None:
        env = {"WSGI_APP": "app:app", "BASE_PATH": "/of/the/image"}
        with running(start_container(stack, LIVE_APPS / "recorder", **env)) as process:
            assert environ(process, web("/x"))["SCRIPT_NAME"] == "/of/the/image"
            bound = {**web("/x"), "BASE_PATH": "/of/the/action"}
            assert environ(process, bound)["SCRIPT_NAME"] == "/of/the/action"
            assert environ(process, {**bound, "BASE_PATH": ""})["SCRIPT_NAME"] == ""
            bound["__ow_headers"] = {"x-forwarded-prefix": "/of/the/proxy"}
            assert environ(process, bound)["SCRIPT_NAME"] == "/of/the/proxy"
            bound["__ow_headers"] = {"x-forwarded-prefix": "//evil"}
            assert environ(process, bound)["SCRIPT_NAME"] == "/of/the/action"

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize(
        ("text", "base"), [("", ""), ("//evil", "/api/v1/web/guest/default/rec")]
    )
    def test_should_be_the_root_if_it_is_empty(self, stack: str, text: str, base: str) -> None:
        env = {"WSGI_APP": "app:app", "BASE_PATH": text}
        with running(start_container(stack, LIVE_APPS / "recorder", **env)) as process:
            assert environ(process, web("/x"))["SCRIPT_NAME"] == base

    def test_should_be_what_links_begin_with(self, max_app: Process) -> None:
        for base in ("/ocr", "", "/api/v1/web/guest/default/rec", "/ocr"):
            headers = {"x_forwarded_prefix": base or "/", "accept": "text/html"}
            swagger = json.loads(text_of(max_app.run(web("/swagger.json", **headers))))
            assert swagger["basePath"] == (base or "/")
            head = max_app.run(web("/swagger.json", "head", **headers))
            assert json.loads(text_of(head)) == swagger
            assert f'"{base}/swaggerui/' in text_of(max_app.run(web("/", **headers)))
            assert max_app.run(web("/app", **headers))["headers"]["Location"].endswith(
                base + "/app/"
            )

    @pytest.mark.stacks(2)
    def test_should_be_of_any_number(self, stack: str) -> None:
        env = {"WSGI_APP": "app:app"}
        with running(start_container(stack, LIVE_APPS / "recorder", **env)) as process:
            for number in range(101):
                base = f"/{number}"
                seen = environ(process, web("/swagger.json", x_forwarded_prefix=base))
                assert seen["SCRIPT_NAME"] == base

    @pytest.mark.parametrize(
        ("first", "method"), [("/swagger.json", "get"), ("/validated", "post")]
    )
    def test_should_not_be_another_callers(
        self, stack: str, tmp_path: Path, first: str, method: str
    ) -> None:
        """flask-restx keeps the basePath of its first request, or of the first that it validates."""
        body = base64.b64encode(b'{"a": 1}').decode() if method == "post" else ""
        headers = {"content_type": "application/json", "x_forwarded_prefix": "/evil"}
        with running(start_script(stack, tmp_path, RESTX_APP)) as process:
            for number in range(101):
                process.run(web("/x", x_forwarded_prefix=f"/{number}"))
            assert process.run(web(first, method, body, **headers))["statusCode"] == 200
            for base in ("/ocr", "/", "/ocr/v1"):
                swagger = text_of(process.run(web("/swagger.json", x_forwarded_prefix=base)))
                assert json.loads(swagger)["basePath"] == base
            value = web("/swagger.json", query="refuse", x_forwarded_prefix="/ocr")
            refused = process.run(value)
            assert refused["headers"]["Location"].endswith("/ocr/login")
            assert '"/ocr/login"' in text_of(refused)

    @pytest.mark.parametrize("where", ["Blueprint", "prefix"])
    @pytest.mark.parametrize("first", ["swagger.json", "validated", "own"])
    def test_should_not_be_another_callers_below_the_root_either(
        self, stack: str, tmp_path: Path, where: str, first: str
    ) -> None:
        below = 'api = Api(app, prefix="/api/v1")'
        if where == "Blueprint":
            below = (
                'from flask import Blueprint\nfolder = Blueprint("v1", __name__, url_prefix="/api/v1")\n'
                "api = Api(folder)\napp.register_blueprint(folder)"
            )
        path, evil = "/api/v1/swagger.json", {"x_forwarded_prefix": "/evil"}
        script = RESTX_APP.replace("api = Api(app)", below)
        with running(start_script(stack, tmp_path, script)) as process:
            process.post("/init", {"value": {}})
            if first == "own":
                assert process.request("GET", path).json["basePath"] == "/api/v1"
            elif first == "validated":
                body = base64.b64encode(b'{"a": 1}').decode()
                value = web("/api/v1/validated", "post", body, content_type="application/json")
                value["__ow_headers"]["x-forwarded-prefix"] = "/evil"
                assert process.run(value)["statusCode"] == 200
            else:
                swagger = json.loads(text_of(process.run(web(path, **evil))))
                assert swagger["basePath"] == "/evil/api/v1"
            for base in ("/ocr", "", "/api"):
                value = web(path, x_forwarded_prefix=base or "/")
                swagger = json.loads(text_of(process.run(value)))
                assert swagger["basePath"] == base + "/api/v1"

    @pytest.mark.stacks(2)
    def test_should_come_before_a_base_path_of_the_apps_own(self, stack: str) -> None:
        query = answering(200, JSON, b'{"swagger": "2.0", "basePath": "/v1"}')
        env = {"WSGI_APP": "app:app"}
        with running(start_container(stack, LIVE_APPS / "recorder", **env)) as process:
            for base, expected in (
                ("/v1", "/v1"),
                ("/ocr", "/ocr/v1"),
                ("/v", "/v/v1"),
                ("/", "/v1"),
            ):
                value = web("/swagger.json", query=query, x_forwarded_prefix=base)
                assert json.loads(text_of(process.run(value)))["basePath"] == expected

    @pytest.mark.parametrize("method", ["get", "head"])
    def test_should_be_given_to_a_schema_without_one(self, recorder: Process, method: str) -> None:
        """flasgger's, whose Swagger UI would call beside the web action."""
        swagger, openapi = b'{"swagger": "2.0", "paths": {}}', b'{"openapi": "3.0.2"}'
        for schema, base, more in (
            (swagger, "/ocr", {"basePath": "/ocr"}),
            (swagger, "/", {}),
            (openapi, "/ocr", {}),
            (b'{"basePath": "/v1"}', "/ocr", {}),
            (b'[{"swagger": "2"}]', "/ocr", None),
            (b'{"a": {"swagger": "2", "basePath": "/v1"}}', "/ocr", {}),
            (b'{"swagger": 0.9}', "/ocr", {}),
            (b'{"swagger": "2.0", "basePath": 1}', "/ocr", {}),
            (b'{"swagger": "2.0", "basePath": "\\/v1"}', "/ocr", {"basePath": "/ocr/v1"}),
            (b'{"swagger": "2.0", "basePath": "\\u002fv1"}', "/ocr", {}),
            (
                b'{"example": {"basePath": "/v1"}, "basePath" : "/v1", "swagger": "2.0"}',
                "/ocr",
                {"basePath": "/ocr/v1"},
            ),
        ):
            query = answering(200, JSON, schema)
            value = web("/apispec_1.json", method, query=query, x_forwarded_prefix=base)
            expected = json.loads(schema) if more is None else {**json.loads(schema), **more}
            assert json.loads(text_of(recorder.run(value))) == expected
        query = answering(200, JSON, openapi)
        value = web("/swagger.json", method, query=query, x_forwarded_prefix="/ocr")
        assert json.loads(text_of(recorder.run(value))) == json.loads(openapi)
        for cut_short in (b'{"swagger": "2.0"', b'{"swagger": ' + b"[" * 100_000):
            value["__ow_query"] = answering(200, JSON, cut_short)
            assert text_of(recorder.run(value)) == cut_short.decode()

    @pytest.mark.parametrize(
        ("location", "base", "expected"),
        [
            ("/login", "/ocr", "/ocr/login"),
            ("/login?next=/ocr/", "/ocr", "/ocr/login?next=/ocr/"),
            ("/", "/ocr", "/ocr/"),
            ("/ocr", "/ocr", "/ocr"),
            ("/ocr?a=1", "/ocr", "/ocr?a=1"),
            ("/ocr/login#top", "/ocr", "/ocr/login#top"),
            ("/ocrs", "/ocr", "/ocr/ocrs"),
            ("/a%40b/ocr/login", "/a@b/ocr", "/a%40b/ocr/login"),
            ("/a@b/ocr?a=1", "/a%40b/ocr", "/a@b/ocr?a=1"),
            ("http://host/login", "/ocr", "http://host/ocr/login"),
            ("http://host/ocr/login", "/ocr", "http://host/ocr/login"),
            ("http://other/login", "/ocr", "http://other/login"),
            ("https://default/login", "/ocr", "https://default/ocr/login"),
            ("//other/login", "/ocr", "//other/login"),
            ("login", "/ocr", "login"),
            ("../", "/ocr", "../"),
            ("/login", "/", "/login"),
        ],
    )
    def test_should_be_in_redirects_of_the_apps_own_making(
        self, recorder: Process, location: str, base: str, expected: str
    ) -> None:
        query = answering(302, [*JSON, ["Location", location]])
        for method in ("get", "head", "post"):
            host = "default:443" if "default" in location else "host"
            value = web("/x", method, query=query, host=host, x_forwarded_prefix=base)
            assert recorder.run(value)["headers"]["Location"] == expected

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("", ""),
            ("; Path=/", "; Path=/"),
            ("; Path=/; HttpOnly", "; Path=/; HttpOnly"),
            ("; path=/admin; HttpOnly", "; path=/ocr/admin; HttpOnly"),
            ("; HttpOnly; Path=/ocr/admin", "; HttpOnly; Path=/ocr/admin"),
        ],
    )
    def test_should_be_in_cookies_paths_of_the_apps_own_making(
        self, recorder: Process, path: str, expected: str
    ) -> None:
        query = answering(200, [*JSON, ["Set-Cookie", "a=/b" + path]])
        value = web("/x", query=query, x_forwarded_prefix="/ocr")
        assert recorder.run(value)["headers"]["Set-Cookie"] == "a=/b" + expected

    def test_should_not_send_a_browser_at_the_root_in_circles(self, max_app: Process) -> None:
        result = max_app.run(web(x_forwarded_prefix="/", accept="text/html"))
        assert result["statusCode"] == 200
        assert "swagger-ui" in text_of(result)

    def test_should_stand_in_the_request_uri(self, recorder: Process) -> None:
        seen = environ(recorder, web("/a%2Fb", query="c=%20", x_forwarded_prefix="/caf%C3%A9"))
        assert seen["REQUEST_URI"] == "/caf%C3%A9/a%2Fb?c=%20"
        assert seen["RAW_URI"] == seen["REQUEST_URI"]
        assert environ(recorder, web())["REQUEST_URI"].endswith("/default/rec/model/predict")


class TestBoundParameters:
    """They stand in `value` in both modes (tests/recordings/README.md)."""

    @pytest.mark.parametrize("query", [{"__ow_query": "a=1"}, {"a": "1"}])
    def test_should_win_over_the_environment_and_not_reach_the_model(
        self, recorder: Process, query: dict[str, str]
    ) -> None:
        value = {"__ow_method": "get", "__ow_path": "", "__ow_headers": {}, **query}
        seen = environ(recorder, {**value, "PREDICT_PATH": "/analyze", "BASE_PATH": "/b"})
        assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/b", "/analyze")
        assert seen["QUERY_STRING"] == "a=1"

    def test_should_not_reach_the_model_without_http_either(self, recorder: Process) -> None:
        seen = recorder.run({"PREDICT_PATH": "/analyze", "text": "x"})
        assert seen["PATH_INFO"] == "/analyze"
        assert json.loads(base64.b64decode(seen["body"])) == {"text": "x"}

    @pytest.mark.parametrize(
        "bound",
        [
            {"PREDICT_PATH": "analyze"},
            {"PREDICT_PATH": "/analyze?a=1"},
            {"PREDICT_PATH": 1},
            {"BASE_PATH": 5},
            {"CORS": "x"},
        ],
    )
    def test_should_be_refused_if_they_make_no_sense(
        self, recorder: Process, bound: dict[str, Any]
    ) -> None:
        error = recorder.run({**web(), **bound})["error"]
        assert error["statusCode"] == 400
        assert re.search(rf"{next(iter(bound))} must be \w", error["body"])


class TestCors:
    """For an action with web-custom-options, to which the controller adds no CORS headers."""

    ORIGIN = "https://shop.example"

    def headers(self, process: Process, cors: str, value: dict[str, Any]) -> dict[str, Any]:
        result = process.run({**value, "CORS": cors})
        return {
            name.lower(): text
            for name, text in result.get("error", result)["headers"].items()
            if name.lower().startswith("access-control") or name.lower() == "vary"
        }

    def test_should_be_the_apps_own_only_if_asked_for(self, recorder: Process) -> None:
        own = [["Content-Type", "a/b"], ["Access-Control-Allow-Origin", "https://a.example"]]
        asked = web(query=answering(200, own))
        assert self.headers(recorder, "", asked) == {}
        expected = {"access-control-allow-origin": "https://a.example"}
        assert self.headers(recorder, "app", asked) == expected
        assert self.headers(recorder, "*", asked)["access-control-allow-origin"] == "*"

    def test_should_be_made_for_the_origins_that_are_named(self, recorder: Process) -> None:
        cors = "https://a.example " + self.ORIGIN
        assert self.headers(recorder, cors, web("/", origin=self.ORIGIN)) == {
            "access-control-allow-origin": self.ORIGIN,
            "access-control-expose-headers": "*",
            "vary": "Origin",
        }
        own = answering(200, [["Content-Type", "a/b"], ["Access-Control-Allow-Origin", "*"]])
        assert self.headers(recorder, cors, web("/", query=own, origin="https://b.example")) == {
            "vary": "Origin"
        }

    def test_should_be_a_setting_of_the_image_too(self, stack: str) -> None:
        options = {"WSGI_APP": "app:app", "CORS": "*"}
        with running(start_container(stack, LIVE_APPS / "recorder", **options)) as process:
            headers = process.run(web("/"))["headers"]
            assert headers["Access-Control-Allow-Origin"] == "*"

    def test_should_answer_the_preflight_itself(self, recorder: Process) -> None:
        asked = {
            "origin": self.ORIGIN,
            "access_control_request_method": "POST",
            "access_control_request_headers": "x-require-whisk-auth",
        }
        value = {**web("/", "options", **asked), "CORS": self.ORIGIN}
        result = recorder.run(value)
        assert (result["statusCode"], result["body"]) == (204, "")
        headers = self.headers(recorder, self.ORIGIN, value)
        assert headers["access-control-allow-origin"] == self.ORIGIN
        assert headers["access-control-allow-headers"] == "x-require-whisk-auth"
        methods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        assert headers["access-control-allow-methods"] == methods
        assert recorder.run({**value, "CORS": "app"})["statusCode"] == 200
        other = {**web("/", "options", origin=self.ORIGIN), "CORS": self.ORIGIN}
        assert recorder.run(other)["statusCode"] == 200  # no preflight, so the model's

    def test_should_be_on_errors_too(self, flask_app: Process) -> None:
        for path in ("/raise", "/bytes/2000000"):
            value = {**web(path, origin=self.ORIGIN), "CORS": "*"}
            assert self.headers(flask_app, "*", value)["access-control-allow-origin"] == "*"

    def test_should_be_there_before_the_model_is(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "broken")) as process:
            loaded = {**web("/x", origin=self.ORIGIN), "CORS": self.ORIGIN}
            assert process.run(loaded)["error"]["statusCode"] == 503
            allowed = self.headers(process, self.ORIGIN, loaded)["access-control-allow-origin"]
            asked = web("/x", "options", origin=self.ORIGIN, access_control_request_method="POST")
            preflight = process.run({**asked, "CORS": self.ORIGIN})
            assert (allowed, preflight["statusCode"]) == (self.ORIGIN, 204)

    def test_should_keep_what_the_app_varies_by(self, recorder: Process) -> None:
        query = answering(200, [["Content-Type", "a/b"], ["Vary", "Cookie"]])
        result = recorder.run({**web(query=query), "CORS": self.ORIGIN})
        headers = {"Content-Type": "a/b", "Vary": ["Cookie", "Origin"]}
        assert result["headers"] == headers

    def test_should_not_be_set_by_a_caller(self, recorder: Process) -> None:
        """Under --web true a parameter may be one of the query."""
        value = {"__ow_method": "get", "__ow_path": "/", "__ow_headers": {"origin": self.ORIGIN}}
        assert recorder.run({**value, "CORS": "*"})["headers"].keys() == {"Content-Type"}
        for http in (value, {}):
            http = {**http, "__ow_method": "post"} if http else {}
            result = recorder.run({**http, "CORS": "", "n": 1})
            seen = result if not http else json.loads(text_of(result))
            assert "CORS" not in seen["QUERY_STRING"] + base64.b64decode(seen["body"]).decode()
