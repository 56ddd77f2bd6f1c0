"""From the app's response to the result: headers, text and base64, compression, limits, faults."""

from __future__ import annotations

import base64
import concurrent.futures
import gzip
import json
import os
import random
import signal
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import (
    LIVE_APPS,
    ROOT,
    SENTINEL,
    Process,
    answering,
    free_port,
    running,
    start_container,
    start_script,
    text_of,
    web,
)

import openwhisk

MOUNTED = '''
def app(environ, start_response):
    """Answers with the path under /sub, as middleware has it that mounts apps."""
    if environ["PATH_INFO"].startswith("/sub"):
        environ["SCRIPT_NAME"] += "/sub"
        environ["PATH_INFO"] = environ["PATH_INFO"][4:]
        return below(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["SCRIPT_NAME"].encode() + environ["PATH_INFO"].encode()]


def below(environ, start_response):
    found = environ["PATH_INFO"] == "/big" and environ["SCRIPT_NAME"].endswith("rec/sub")
    headers = [("Content-Type", "image/png"), ("Content-Length", "600000")]
    start_response("200 OK" if found else "404 Not Found", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [bytes(600000)]
'''

OWN_HEADERS = """
def app(environ, start_response):
    method = environ["REQUEST_METHOD"]
    headers = [("Content-Type", "text/plain"), ("X-Method", method), ("X-Number", 1)]
    start_response("200 OK", headers)
    headers.clear()
    return [] if method == "HEAD" else [b"whole"]
"""


class TestResult:
    def test_should_repeat_headers_and_leave_malformed_ones_out(self, flask_app: Process) -> None:
        assert flask_app.run(web("/header"))["headers"]["X-Good"] == ["a", "b"]
        assert flask_app.run(web("/split"))["headers"] == {
            "Content-Type": "text/plain",
            "X-Kept": "d",
        }
        log = flask_app.until("X Name", flask_app.err)
        assert "'X-Split' is left out" in log

    def test_should_count_a_server_error_as_a_failed_activation(self, flask_app: Process) -> None:
        assert (
            flask_app.run(web("/model/predict", "post", base64.b64encode(b"not JSON").decode()))[
                "statusCode"
            ]
            == 400
        )
        for status in ("99", "700", "2000"):
            result = flask_app.run(web(f"/status/{status}"))
            assert result["error"]["statusCode"] == 500
            assert f"answered with status {status}, " in result["error"]["body"]

    def test_should_answer_an_exception_with_a_sentence_and_log_the_traceback(
        self, flask_app: Process
    ) -> None:
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
        error = flask_app.run(web("/bytes/800000", query="random=1"))["error"]["body"]
        assert "ask for less of it, or raise" in error
        for limit, status in (("0", 200), ("2000000", 200), ("1000", 500)):
            with running(
                start_container(stack, LIVE_APPS / "flask_app", RESULT_LIMIT=limit)
            ) as process:
                plain = process.run({"other": "x" * 2000} if limit == "1000" else {"list": 1})
                assert ("error" in plain) == (limit == "1000")
                result = process.run(web("/bytes/800000"))
                assert result.get("error", result)["statusCode"] == status
                assert (
                    process.run(web("/bytes/800000", "head"))
                    .get("error", {})
                    .get("statusCode", 200)
                    == status
                )

    @pytest.mark.parametrize(
        "kind", ["text/html", "application/json", "text/javascript", "image/png"]
    )
    def test_should_show_the_headers_of_a_get_to_a_head(self, max_app: Process, kind: str) -> None:
        get, head = (
            max_app.run(web("/encoded", method, query="type=" + quote(kind)))
            for method in ("get", "head")
        )
        assert head["headers"] == get["headers"]
        assert head["headers"]["Content-Type"].startswith(kind)

    def test_should_stop_an_endless_answer(self, flask_app: Process) -> None:
        result = flask_app.run(web("/endless"))
        assert result["error"]["statusCode"] == 500
        error = json.loads(result["error"]["body"])["error"]
        assert error.startswith("The answer takes over 33554432 bytes")
        flask_app.until("the endless answer is closed", flask_app.out)
        status = Path(f"/proc/{flask_app.popen.pid}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) < 300_000  # kB at most

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize(
        ("size", "status"), [(2_000_000, 200), (1_048_577, 200), (524_289, 200)]
    )
    def test_should_be_to_a_head_as_to_a_get_if_it_only_fits_in_gzip(
        self, flask_app: Process, size: int, status: int
    ) -> None:
        get, head = (
            flask_app.run(web(f"/bytes/{size}", method, accept_encoding="gzip"))
            for method in ("get", "head")
        )
        assert get["statusCode"] == head["statusCode"] == status
        assert get == head

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize("size", [0, 1, 524_288, 786_396, 786_397, 1_048_576, 2_000_000])
    def test_should_be_as_long_to_a_head_as_to_a_get(self, flask_app: Process, size: int) -> None:
        get, head = (flask_app.run(web(f"/bytes/{size}", method)) for method in ("get", "head"))
        assert ("error" in get) == ("error" in head) == (size > 786_300)
        if "error" not in get:
            assert len(get["body"]) == len(head["body"])

    def test_should_be_to_a_head_as_to_a_get_if_the_app_changes_its_environ(
        self, stack: str, tmp_path: Path
    ) -> None:
        with running(start_script(stack, tmp_path, MOUNTED, WSGI_APP="app:app")) as process:
            get, head = (process.run(web("/sub/big", method)) for method in ("get", "head"))
            assert (get["statusCode"], len(get["body"])) == (200, 800_000)
            assert head == get
            value = web("", "get", accept="text/html", x_forwarded_prefix="/")
            page = process.run({**value, "PREDICT_PATH": "/sub/nowhere"})
            assert (page["statusCode"], page["body"]) == (200, "/")

    def test_should_have_the_headers_that_a_head_has(self, stack: str, tmp_path: Path) -> None:
        with running(start_script(stack, tmp_path, OWN_HEADERS, WSGI_APP="app:app")) as process:
            result = process.run(web("/x", "head"))
            assert (result["headers"]["X-Method"], result["body"]) == ("HEAD", "whole")
            assert result["headers"]["X-Number"] == "1"  # as Werkzeug's server writes it

    def test_should_be_as_long_to_a_head_as_to_a_get_that_streams(self, max_app: Process) -> None:
        get, head = (max_app.run(web("/stream", method)) for method in ("get", "head"))
        assert head == get

    def test_should_be_empty_to_a_head_whose_length_is_no_number(self, recorder: Process) -> None:
        headers = [["Content-Type", "a/b"], ["Content-Length", "x"]]
        result = recorder.run(web("/x", "head", query=answering(200, headers)))
        assert (result["statusCode"], result["body"]) == (200, "")

    def test_should_be_to_a_head_though_http_forbids_a_header(self, flask_app: Process) -> None:
        get, head = (flask_app.run(web("/split", method)) for method in ("get", "head"))
        assert (head["statusCode"], head["headers"]) == (200, get["headers"])

    @pytest.mark.parametrize("charset", ["utf-16", "iso-8859-1"])
    def test_should_be_as_long_to_a_head_as_to_a_get_in_any_charset(
        self, flask_app: Process, charset: str
    ) -> None:
        query = "type=" + quote(f"text/plain; charset={charset}")
        get, head = (
            flask_app.run(web("/bytes/1000", method, query=query)) for method in ("get", "head")
        )
        assert len(head["body"].encode()) == len(get["body"].encode())

    def test_should_not_be_made_up_for_a_head_without_a_limit(
        self, stack: str, tmp_path: Path
    ) -> None:
        env = {"WSGI_APP": "app:app", "RESULT_LIMIT": "0"}
        script = MOUNTED.replace('"600000"', "str(10 ** 14)")
        with running(start_script(stack, tmp_path, script, **env)) as process:
            assert process.run(web("/sub/big", "head"))["statusCode"] == 200

    @pytest.mark.stacks(2)
    def test_should_be_the_answer_though_its_end_fails(self, flask_app: Process) -> None:
        result = flask_app.run(web("/fails-at-close"))
        assert (result["statusCode"], result["body"]) == (200, "whole")
        assert "RuntimeError: secret" in flask_app.until(SENTINEL, flask_app.err)

    def test_should_not_hide_an_error_that_comes_halfway(self, flask_app: Process) -> None:
        result = flask_app.run(web("/restart"))
        assert result["error"]["statusCode"] == 500
        assert "page" not in result["error"]["body"]

    def test_should_keep_a_byte_order_mark(self) -> None:
        """As spreadsheets want it."""
        headers = [("Content-Type", "text/csv; charset=utf-8-sig")]
        result = openwhisk.result_of(("200 OK", headers, "a;é".encode("utf-8-sig")))
        assert result["body"] == "\ufeffa;é"

    @pytest.mark.parametrize("accepted", ["", "gzip"])
    def test_should_be_json_in_its_charset(self, accepted: str) -> None:
        headers = [("Content-Type", "application/json; charset=ISO-8859-1")]
        body = ('"%s"' % ("é" * 2000)).encode("latin-1")
        assert openwhisk.result_of(("200 OK", headers, body), accepted)["body"] == (
            body.decode("latin-1")
        )
        packed = [*headers, ("Content-Encoding", "gzip")]
        result = openwhisk.result_of(("200 OK", packed, gzip.compress(body)), accepted)
        assert result["body"] == body.decode("latin-1")
        assert result["headers"].keys() == {"Content-Type"}

    def test_should_be_packed_whatever_utf_8_is_called(self) -> None:
        for charset in ("utf-8", "UTF8", '"utf-8"'):
            headers = [("Content-Type", f"application/json; charset={charset}")]
            result = openwhisk.result_of(("200 OK", headers, b"[" * 2000), "gzip")
            assert result["headers"]["Content-Encoding"] == "gzip"
            assert result["headers"]["Content-Type"] == "application/json"

    @pytest.mark.parametrize(
        ("accept", "kind", "carried"),
        [
            ("application/json", "image/png", "application/json"),
            ("application/json", "text/html", "application/json"),
            ("text/html, application/json;q=0.5", "image/png", "application/json"),
            ("image/png;q=0, a/b", "image/png", "a/b"),
            ("application/json", "application/json", "application/json"),
            ("image/*", "image/png", "image/png"),
            ("a/b, */*;q=0.1", "image/png", "image/png"),
            ("", "image/png", "image/png"),
            ("malformed", "image/png", "image/png"),
            ("text/*", "image/png", "image/png"),
            ("text/html", "image/png", "image/png"),
        ],
    )
    def test_should_have_a_type_that_the_caller_accepts(
        self, recorder: Process, accept: str, kind: str, carried: str
    ) -> None:
        """The controller answers 406 else."""
        query = answering(200, [["Content-Type", kind]], b"\x89PNG")
        result = recorder.run(web("/x", query=query, accept=accept))
        assert result["headers"] == {"Content-Type": carried}
        assert base64.b64decode(result["body"]) == b"\x89PNG"

    @pytest.mark.parametrize("name", ["accept", "accept_encoding"])
    def test_should_come_soon_whatever_the_caller_accepts(
        self, recorder: Process, name: str
    ) -> None:
        """Werkzeug would take minutes for so many spaces."""
        text = "application/json" + " " * 500_000 + "gzip"
        query = answering(200, [["Content-Type", "application/json"]], b"{}")
        result = recorder.run(web("/x", query=query, **{name: text}))
        assert (result["statusCode"], result["body"]) == (200, "{}")

    def test_should_be_a_redirect_or_an_error_whatever_the_caller_accepts(
        self, recorder: Process
    ) -> None:
        for status, body in ((302, ""), (404, "page")):
            headers = [["Content-Type", "text/html"], ["Location", "/x"]]
            query = answering(status, headers, b"page")
            result = recorder.run(web("/x", query=query, accept="application/json"))
            assert (result["statusCode"], result["body"]) == (status, body)

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("kind", ["application/json; a=b", "application/problem+json;a=b"])
    def test_should_be_text_if_it_is_json_with_a_parameter(self, kind: str, packed: bool) -> None:
        """The controller does not decode its base64."""
        for body in (b"1234", b"[" * 2000):
            headers = [("Content-Type", kind)]
            sent = (headers + [("Content-Encoding", "gzip")], gzip.compress(body))
            result = openwhisk.result_of(("200 OK", *(sent if packed else (headers, body))), "gzip")
            assert (result["headers"], result["body"]) == ({"Content-Type": kind}, body.decode())

    @pytest.mark.parametrize(
        ("sent", "carried"),
        [
            ("multipart/mixed; boundary=x; charset=utf-8", "multipart/mixed; boundary=x"),
            ("application/x-foo+json; a=b", "application/x-foo+json; a=b"),
            ("image/heic; charset=ISO-8859-1", "image/heic"),
            ("image/png; name=my file.png", "image/png"),
            ("text/html;charset=", "text/html"),
            ("a b; c=d", "application/octet-stream"),
            ("image/png; a=b; ", "image/png; a=b"),
            ("text/html;", "text/html"),
            ("image/png;; a=b", "image/png"),
        ],
    )
    def test_should_keep_what_it_can_of_its_type(self, sent: str, carried: str) -> None:
        result = openwhisk.result_of(("200 OK", [("Content-Type", sent)], b"x"))
        assert result["headers"] == {"Content-Type": carried}
        assert isinstance(result["body"], str) == (carried == "text/html")

    def test_should_keep_its_type_though_it_is_no_text_as_it_says(self) -> None:
        for sent, carried in (
            ("application/x-foo; a=b; charset=utf-8", "application/x-foo; a=b"),
            ("text/html; charset=utf-8", "application/octet-stream"),
        ):
            result = openwhisk.result_of(("200 OK", [("Content-Type", sent)], b"\xff"))
            assert (result["headers"], result["body"]) == ({"Content-Type": carried}, b"\xff")

    def test_should_not_be_packed_if_the_controller_only_carries_it_as_text(
        self, flask_app: Process
    ) -> None:
        query = "type=" + quote("application/x-ndjson; charset=utf-8")
        small, large = (
            flask_app.run(web(f"/bytes/{size}", query=query, accept_encoding="gzip"))
            for size in (2000, 2_000_000)
        )
        assert small["headers"] == {"Content-Type": "application/x-ndjson; charset=utf-8"}
        assert "--compressed" not in large["error"]["body"]

    @pytest.mark.stacks(2)
    def test_should_match_its_own_etag(self, flask_app: Process) -> None:
        """The proxy makes it weak when it compresses, which If-Match does not take."""
        etag = flask_app.run(web("/versioned", accept_encoding="gzip"))["headers"]["ETag"]
        assert etag == 'W/"abc"'
        for sent, status in ((etag, 204), ('"abc"', 204), ('"other"', 412)):
            assert flask_app.run(web("/versioned", "put", if_match=sent))["statusCode"] == status

    def test_should_vary_by_the_encoding_once(self) -> None:
        headers = [("Content-Type", "a/b"), ("Vary", "Cookie, Accept-encoding")]
        result = openwhisk.result_of(("200 OK", headers, bytes(2000)), "gzip")
        assert result["headers"]["Vary"] == "Cookie, Accept-encoding"
        assert result["headers"]["Content-Encoding"] == "gzip"

    def test_should_not_be_compressed_if_it_is_a_part(self) -> None:
        part = [("Content-Type", "application/json"), ("Content-Range", "bytes 0-1999/4000")]
        result = openwhisk.result_of(("206 Partial Content", part, b" " * 2000), "gzip")
        assert "Content-Encoding" not in result["headers"]

    def test_should_be_compressed_from_70_percent_on(self) -> None:
        noise = random.Random(1).randbytes(10_000)
        sizes = {}
        for size in range(6000, 8000):
            body = noise[:size] + bytes(10_000 - size)
            sizes[len(zlib.compress(body, 1))] = body
        for packed, expected in ((7000, True), (7001, False)):
            fields: openwhisk.Fields = {"content-type": ["Content-Type", "image/png"]}
            openwhisk.compress(fields, sizes[packed])
            assert ("content-encoding" in fields) == expected
        fields = {}
        assert openwhisk.compress(fields, b"x" * 999) == b"x" * 999

    def test_should_leave_what_the_controller_says_to_it(self) -> None:
        names = ["Connection", "Content-Length", "Date", "Server", "Transfer-Encoding", "X-Kept"]
        headers = [*((name, "1") for name in names), ("Access-Control-Allow-Origin", "*")]
        result = openwhisk.result_of(("200 OK", headers, b""))
        assert result["headers"] == {"X-Kept": "1"}

    @pytest.mark.parametrize("name", ["", "X-Colon:X", "X Space", "Ümlaut", "X\n"])
    def test_should_have_no_header_that_http_forbids(self, name: str) -> None:
        assert openwhisk.result_of(("200 OK", [(name, "a")], b""))["headers"] == {}

    @pytest.mark.parametrize("kind", ["text/plain", "text/html", "application/xml"])
    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", gzip.compress(b"one, ", mtime=0) + gzip.compress(b"two", mtime=0)),
            ("x-gzip", gzip.compress(b"one, two", mtime=0)),
            ("deflate", zlib.compress(b"one, two")),
            ("deflate", zlib.compress(b"one, two")[2:-4]),
            ("GZIP", gzip.compress(b"one, two", mtime=0)),
        ],
        ids=["two gzip members", "x-gzip", "deflate", "deflate without a header", "capitals"],
    )
    def test_should_unpack_text(self, kind: str, encoding: str, body: bytes) -> None:
        headers = [("Content-Type", kind), ("Content-Encoding", encoding)]
        result = openwhisk.result_of(("200 OK", headers, body))
        assert (result["headers"], result["body"]) == ({"Content-Type": kind}, "one, two")

    def test_should_carry_the_identity(self) -> None:
        headers = [("Content-Type", "text/plain"), ("Content-Encoding", "identity")]
        result = openwhisk.result_of(("200 OK", headers, b"text"))
        assert (result["headers"], result["body"]) == (dict(headers), "text")

    @pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "gzip", "deflate"])
    def test_should_say_which_encoding_is_not_carried(
        self, recorder: Process, encoding: str
    ) -> None:
        for kind, carried in (("text/html", False), ("application/json", True), ("a/b", True)):
            headers = [["Content-Type", kind], ["Content-Encoding", encoding]]
            result = recorder.run(web("/x", query=answering(200, headers, b"no gzip")))
            if carried:
                assert base64.b64decode(result["body"]) == b"no gzip"
                assert result["headers"]["Content-Encoding"] == encoding
            else:
                sentence = json.loads(result["error"]["body"])["error"]
                assert f"Content-Encoding {encoding}, which OpenWhisk does not carry" in sentence

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
            result = flask_app.run(
                web("/bytes/2000000", query="type=" + quote(kind), accept_encoding="gzip, br")
            )
            assert result["headers"] == {
                "Content-Type": sent,
                "Content-Encoding": "gzip",
                "Vary": "Accept-Encoding",
            }
            assert gzip.decompress(base64.b64decode(result["body"])) == b"7" * 2000000
        for path, query, accepted in (
            ("/bytes/500000", "type=text/html", "gzip"),
            ("/bytes/500000", "", "identity"),
            ("/bytes/500000", "", "gzip;q=0"),
            ("/bytes/500000", "random", "gzip"),
            ("/bytes/999", "", "gzip"),
        ):
            assert (
                "Content-Encoding"
                not in flask_app.run(web(path, query=query, accept_encoding=accepted))["headers"]
            )

    def test_should_weaken_the_etag_of_what_it_compresses(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "max_app")) as process:
            query = "times=200000&type=application/json"
            plain = process.run(web("/etag", query=query.replace("200000", "2")))
            result = process.run(web("/etag", query=query, accept_encoding="gzip"))
        assert plain["headers"]["ETag"] == '"abc"'
        assert result["headers"]["ETag"] == 'W/"abc"'
        assert gzip.decompress(base64.b64decode(result["body"])) == b"cached" * 200_000

    def test_should_count_as_failed_from_status_500_on(self) -> None:
        for status in (499, 500):
            answer = openwhisk.result_of((f"{status} x", [("Content-Type", "image/png")], b"x"))
            assert ("error" in answer) == (status == 500)
        assert answer["error"]["body"] == "eA=="

    def test_should_be_text_where_the_controller_says_so(self) -> None:
        recorded = json.loads((ROOT / "tests/recordings/text_media_types.json").read_text())
        assert set(recorded["text"]) == openwhisk.TEXT
        for kind in ("application/pdf", "font/ttf", "image/svg+xml", "application/cbor"):
            headers = [("Content-Type", kind + "; charset=utf-8")]
            assert openwhisk.result_of(("200 OK", headers, b"text"))["body"] == b"text"

    def test_should_carry_text_in_any_charset(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "max_app")) as process:

            def result(kind: str, body: bytes) -> tuple[str, str]:
                got = process.run(web("/type", query=f"type={quote(kind)}&hex={body.hex()}"))
                return got["headers"]["Content-Type"], got["body"]

            assert result("text/plain; charset=iso-8859-1", b"caf\xe9")[1] == "café"
            assert result("text/plain; charset=utf-16", "é".encode("utf-16"))[1] == "é"
            assert result("application/json; charset=latin1", b'"\xe9"')[1] == '"é"'
            exact = base64.b64encode(b"\xff\xfe\xe9").decode()
            for kind in (
                "text/plain",
                "text/html; charset=utf-8",
                "text/plain; charset=nonsense",
                "garbage",
                "",
            ):
                assert result(kind, b"\xff\xfe\xe9") == ("application/octet-stream", exact)
            assert result("application/json", b"\xff\xfe\xe9") == ("application/json", exact)
            assert result("application/pdf; charset=utf-8", b"\xff\xfe\xe9") == (
                "application/pdf",
                exact,
            )


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
        with running(
            Process("sh", "-c", command, cwd=app, port=port, env={"PORT": str(port)}).wait_ready()
        ) as process:
            for size, status in ((100, 200), (900_000, 500), (100, 200)):
                body = base64.b64encode(head + bytes(size) + b"\r\n--x--\r\n").decode()
                result = process.run(
                    web("/upload", "post", body, content_type="multipart/form-data; boundary=x")
                )
                assert result.get("error", result)["statusCode"] == status
                assert "Errno" not in str(result)
