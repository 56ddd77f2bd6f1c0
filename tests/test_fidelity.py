"""The caller can't tell the web action from the model's own server: the same request to both, for
every API shape."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import (
    BASE,
    Answer,
    OpenWhisk,
    WebAction,
    around,
    assert_same,
    model_container,
    request,
    web_action,
)

pytestmark = pytest.mark.openwhisk

# What a hop on the way sets by itself, on either side.
HOPS = {
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
    "x-openwhisk-activation-id",
    "x-request-id",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def multipart(
    name: str = "image",
    filename: str = "a.png",
    kind: str = "image/png",
    data: bytes = PNG,
    **fields: str,
) -> dict[str, Any]:
    parts = [
        f'Content-Disposition: form-data; name="{key}"\r\n\r\n{text}'.encode()
        for key, text in fields.items()
    ]
    parts.append(
        f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {kind}\r\n\r\n'.encode()
        + data
    )
    body = b"".join(b"--B0UND\r\n" + part + b"\r\n" for part in parts) + b"--B0UND--\r\n"
    return {
        "method": "POST",
        "body": body,
        "headers": {"Content-Type": "multipart/form-data; boundary=B0UND"},
    }


def json_body(value: Any, method: str = "POST") -> dict[str, Any]:
    return {
        "method": method,
        "body": json.dumps(value).encode(),
        "headers": {"Content-Type": "application/json"},
    }


def form(body: str, method: str = "POST") -> dict[str, Any]:
    return {
        "method": method,
        "body": body.encode(),
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    }


def typed(content_type: str, body: bytes) -> str:
    return (
        "/type?type="
        + re.sub(r"[ ;=+/\"]", lambda found: f"%{ord(found[0]):02X}", content_type)
        + "&hex="
        + body.hex()
    )


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("/model/predict", multipart()),
    "image at the bare URL": ("", multipart()),
    "image and query at the bare URL": ("?threshold=0.25&filter=a,b", multipart()),
    "image and number in the form": ("/model/predict", multipart(threshold="0.5")),
    "image, file name in UTF-8": ("/model/predict", multipart(filename="é大.png")),
    "image without a type": ("/model/predict", multipart(kind="application/octet-stream")),
    "image of a wrong type": ("/model/predict", multipart(kind="text/csv")),
    "image missing": ("/model/predict", {"method": "POST"}),
    "image under another name": ("/model/predict", multipart("file")),
    "number malformed": ("/model/predict", multipart(threshold="high")),
    "image of 700 kB": ("/model/predict", multipart(data=bytes(range(256)) * 2800)),
    "get of a POST path": ("/model/predict", {}),
    "post of a GET path": ("/model/metadata", {"method": "POST"}),
    "metadata": ("/model/metadata", {}),
    "metadata of X-Fields": ("/model/metadata", {"headers": {"X-Fields": "name"}}),
    "labels": ("/model/labels", {}),
    "image to image": ("/model/image", multipart()),
    "sound": ("/model/sound", {}),
    "sound of a choice": ("/model/sound?model=lo-fi", {}),
    "query of UTF-8": (
        "/model/words?first_word=%E5%A4%A7%E4%BE%A0&second_word=%E5%A4%A7+%E8%99%BE&theta=2",
        {"method": "POST"},
    ),
    "query missing": ("/model/words", {"method": "POST"}),
    "query malformed": ("/model/words?first_word=a&theta=x", {"method": "POST"}),
    "form": ("/model/words", form("first_word=%E5%A4%A7&theta=3")),
    "JSON for what is also a form": ("/model/words", json_body({"first_word": "大", "theta": 3})),
    "JSON": ("/model/text", json_body({"text": ["i love this", "été"]})),
    "JSON that breaks the schema": ("/model/text", json_body({"text": "no list"})),
    "JSON of 350 kB to and fro": ("/model/text", json_body({"text": ["x" * 350_000]})),
    "big JSON": ("/model/big?size=2000", multipart()),
    "error with data": ("/model/error?how=data", {"method": "POST"}),
    "error with keywords": ("/model/error?how=keywords", {"method": "POST"}),
    "error of the inference": ("/model/error?how=inference", {"method": "POST"}),
    "exception in a resource": ("/model/error?how=raise", {"method": "POST"}),
    "nested JSON": (
        "/model/nested",
        json_body({"paragraphs": [{"context": "été", "questions": ["a"]}]}),
    ),
    "nested JSON of a wrong type": ("/model/nested", json_body({"paragraphs": [{"context": 1}]})),
    "nested JSON missing": ("/model/nested", json_body({})),
    "JSON list for an object": ("/model/nested", json_body([1])),
    "JSON null for an object": ("/model/nested", json_body(None)),
    "JSON unchecked": ("/model/unchecked", json_body({"text": "John lives in Rome"})),
    "JSON unchecked, without what it needs": ("/model/unchecked", json_body({})),
    "form for JSON": ("/model/unchecked", form("text=a")),
    "file and choice": (
        "/model/choice?model=udnie",
        multipart(data=b"1,2\n3,4\n", filename="a b.csv"),
    ),
    "file and choice in the form": ("/model/choice", multipart(model="udnie", num_results="3")),
    "file and no such choice": ("/model/choice?model=none", multipart()),
    "file and a negative number": ("/model/choice", multipart(num_results="-3")),
    "numbers": ("/model/measures", {}),
    "numbers of X-Fields": ("/model/measures", {"headers": {"X-Fields": "{a,c}"}}),
    "trailing slash missing": ("/app", {}),
    "trailing slash too many": ("/model/metadata/", {}),
    "Swagger UI": ("/", {"headers": {"Accept": "text/html"}}),
    "swagger.json": ("/swagger.json", {}),
    "a style sheet of Swagger UI": ("/swaggerui/droid-sans.css", {}),
    "web app": ("/app/", {}),
    "script of the web app": ("/js/app.js", {}),
    "svg of the web app": ("/picture.svg", {}),
    "not found": ("/nowhere", {}),
    "double slash": ("/seen//a//b", {}),
    "escaped path": ("/seen/a%20b/%C3%A9/c%2Fd/%25", {}),
    "cookies": ("/cookies", {"headers": {"Cookie": "x=1; y=2"}}),
    "redirect": ("/redirect", {}),
    "redirect to another host": ("/redirect?to=https://example.com/range", {}),
    "id of its own": ("/seen/x", {"headers": {"X-Request-ID": "x" * 2000}}),
    "id that is not ASCII": (
        "/seen/x",
        {"headers": {"X-Request-ID": "é".encode().decode("latin-1")}},
    ),
    "range": ("/range", {"headers": {"Range": "bytes=4-99"}}),
    "range not satisfiable": ("/range", {"headers": {"Range": "bytes=99999-"}}),
    "not modified": ("/etag", {"headers": {"If-None-Match": '"abc"'}}),
    "modified": ("/etag", {"headers": {"If-None-Match": '"other"'}}),
    "head": ("/model/metadata", {"method": "HEAD"}),
    "head of sound": ("/model/sound", {"method": "HEAD"}),
    "head of a page": ("/app/", {"method": "HEAD"}),
    "stream": ("/stream", {}),
    "error in the app": ("/raise", {}),
    "headers": (
        "/seen/x",
        {"headers": {"User-Agent": "curl/8.0", "X-One": "é".encode().decode("latin-1")}},
    ),
    "query and form": ("/seen/x?a=1&b=%26", {}),
    **{
        f"body of {kind}": (
            "/seen/x",
            {"method": "POST", "body": b'{"a": 1}', "headers": {"Content-Type": kind}},
        )
        for kind in (
            "application/json; a=b",
            "application/problem+json; a=b",
            "application/ld+json; profile=x",
            "chemical/x-pdb; charset=UTF-8",
            "application/x-foo; charset=UTF-8",
        )
    },
    "PNG body": (
        "/seen/x",
        {"method": "PUT", "body": PNG, "headers": {"Content-Type": "image/png"}},
    ),
    "text body": (
        "/seen/x",
        {"method": "POST", "body": "wörld\r\n".encode(), "headers": {"Content-Type": "text/plain"}},
    ),
    "DELETE": ("/seen/x", {"method": "DELETE"}),
    "gzip of JSON": ("/encoded?type=application%2Fjson", {}),
    "gzip of JavaScript": ("/encoded?type=text%2Fjavascript", {}),
    "gzip of PNG": ("/encoded?type=image%2Fpng", {}),
    **{
        f"status {code}": (f"/status/{code}", {})
        for code in (201, 202, 204, 304, 400, 401, 403, 404, 409, 415, 418, 422, 429, 500, 501, 503)
    },
    **{
        f"{method} answered {code}": (f"/status/{code}", {"method": method})
        for method in ("POST", "PUT", "PATCH", "DELETE")
        for code in (200, 400, 503)
    },
    **{
        f"type {kind} {body!r}": (typed(kind, body), {})
        for kind, body in (
            ("application/json", b"1234"),
            ("application/json", b"true"),
            ("application/json", b"null\n"),
            ("application/json", b'"a"'),
            ("application/json", b"\xff\xfe"),
            ("application/json", b"{}"),
            ("application/json; a=b", b"1234"),
            ("application/json; a=b", b"[" + b"1," * 2000 + b"1]"),
            ("application/ld+json; profile=x", b"1234"),
            ("application/problem+json", b"1234"),
            ("application/vnd.acme+json", b"{}"),
            ("application/vnd.acme+json; charset=utf-8", b"1234"),
            ("text/plain; charset=utf-8", b"abcd"),
            ("text/html; charset=utf-8", "é".encode()),
            ("text/x-acme", b"a b"),
            ("text/x-acme; charset=utf-8", b"a b"),
            ("image/svg+xml; charset=utf-8", b"<svg/>"),
            ("text/javascript; charset=utf-8", b"1"),
            ("application/yaml", b"a: 1"),
            ("application/octet-stream", b"\0\xff"),
            ("image/png; x=1", PNG),
            ("application/x-numpy", b"\x93NUMPY"),
        )
    },
}
# Where the model has the root of a host: also what an app answers that leaves out SCRIPT_NAME.
ROOT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: CASES[name]
        for name in ("trailing slash missing", "Swagger UI", "swagger.json", "web app", "cookies")
    },
    "image at the bare URL": ("", multipart()),
    "redirect of its own making": ("/redirect?to=/range", {}),
    "redirect to its own address": ("/redirect?to=http://model.example.com/range", {}),
    "cookie for a folder": ("/cookies?path=/model", {}),
}
# --web true gives the app less than the client sent: the query beside JSON and repeated
# parameters are lost.
RAW_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "JSON and query": ("/seen/x?c=3", json_body({"a": 1})),
    "JSON as it was written": (
        "/seen/x",
        {
            "method": "POST",
            "body": b'{"n": 1.50,  "z": 1}',
            "headers": {"Content-Type": "application/json"},
        },
    ),
    "malformed JSON": (
        "/model/text",
        {"method": "POST", "body": b'{"text": [', "headers": {"Content-Type": "application/json"}},
    ),
    "form with repetitions": ("/seen/x?a=1&a=2", form("b=1&b=2&c=%C3%A9")),
    "gzip body": (
        "/seen/x",
        {
            "method": "POST",
            "body": b"\x1f\x8b\x08",
            "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        },
    ),
    "reserved names": ("/seen/x?__ow_body=x", {}),
    "bare flag": ("/seen/x?flag", {}),
    "query without values": ("/seen/x?flag=&empty=", {}),
}
EVERY_CASE = {**CASES, **RAW_CASES}
HOST = "model.example.com"
# What the app links to with url_for(), in its pages, redirects and cookies.
OWN_LINK = re.compile(
    rf"""((?:http://{HOST}|["'>]|Path=|^))(/(?:app/|model\b|range\?|seen/|swaggerui/|swagger.json))"""
)


@pytest.fixture(scope="session")
def web_actions(
    openwhisk: OpenWhisk | None, request: pytest.FixtureRequest, stack: str
) -> Iterator[Callable[..., WebAction]]:
    """Makes the model's web action, --web raw or true, with parameters bound to it."""
    with contextlib.ExitStack() as running:

        @functools.cache
        def make(web: str, **bound: str) -> WebAction:
            if openwhisk:
                return openwhisk.web_action("max_app", web=web, bound=bound)
            container = request.getfixturevalue("max_app")
            if bound:  # flask-restx keeps the base path of its first request
                container = running.enter_context(model_container(stack))
            port = running.enter_context(web_action(container.port, web, parameters=bound))
            return WebAction(f"http://127.0.0.1:{port}{BASE}")

        yield make


@pytest.fixture(params=["raw", "true"])
def action(request: pytest.FixtureRequest, web_actions: Callable[..., WebAction]) -> WebAction:
    return web_actions(request.param)


def as_seen(answer: Answer) -> dict[str, Any]:
    """What a caller sees."""
    headers = []
    for name, text in answer.headers:
        if name.lower() == "content-type":
            text = re.sub(r"; *charset=utf-8", "", text, flags=re.IGNORECASE)  # which text gets
        if name.lower() == "expires":
            text = "later"  # a second may pass between the two requests
        if name.lower() not in HOPS:
            headers.append((name.lower(), text))
    return {"status": answer.status, "headers": sorted(headers), "body": answer.body}


def below(base: str, seen: dict[str, Any]) -> dict[str, Any]:
    """What the model's own server would answer below the base path: it is in the links that the
    app makes with url_for(), and in the schema."""
    headers = [
        (name, OWN_LINK.sub(rf"\1{base}\2", text) if name in ("location", "set-cookie") else text)
        for name, text in seen["headers"]
    ]
    body = seen["body"]
    if b"<!doctype html" in body[:20].lower():
        body = OWN_LINK.sub(rf"\1{base}\2", body.decode()).encode()
    body = body.replace(b'"basePath": "/"', b'"basePath": "%s"' % (base.encode() or b"/"))
    return {**seen, "headers": headers, "body": body}


def compare(
    path: str,
    details: dict[str, Any],
    own: int,
    action: WebAction,
    base: str,
    predict: str = "/model/predict",
) -> None:
    """Nothing of the web action's answer is rewritten."""
    method, body = details.get("method", "GET"), details.get("body")
    headers = {"Host": HOST, **details.get("headers", {})}
    own_path = path if path.startswith("/") else predict + path
    expected = below(base, as_seen(request(own, method, own_path, body, headers)))
    got = as_seen(action.request(method, path, body, headers))
    if not expected["body"]:  # the controller takes the type from an empty response
        expected["headers"] = [
            pair
            for pair in expected["headers"]
            if pair[0] != "content-type" or pair in got["headers"]
        ]
    assert_same(f"{method} {path} {headers} {around(body, None)}", expected, got)


@pytest.mark.parametrize("case", CASES)
def test_the_web_action_answers_as_the_models_own_server(
    case: str, own: int, action: WebAction
) -> None:
    compare(*CASES[case], own, action, action.base)


@pytest.mark.parametrize("action", ["raw"], indirect=True)
@pytest.mark.parametrize("case", RAW_CASES)
def test_web_raw_loses_nothing(case: str, own: int, action: WebAction) -> None:
    compare(*RAW_CASES[case], own, action, action.base)


@pytest.mark.parametrize("case", ROOT_CASES)
def test_the_root_of_a_host_is_the_models_own_address(
    case: str, own: int, web_actions: Callable[..., WebAction]
) -> None:
    compare(*ROOT_CASES[case], own, web_actions("raw", OPENWHISK_BASE_PATH="/"), "")


@pytest.mark.parametrize("path", ["/model/metadata", "/model/sound", "/app/", "/picture.svg"])
def test_head_tells_the_length_of_get(path: str, own: int, action: WebAction) -> None:
    expected = request(own, "HEAD", path)
    answer = action.request("HEAD", path)
    assert answer.header("content-length") == expected.header("content-length") != "0"
    assert answer.body == b""
