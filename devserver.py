"""A web action's URL on this machine: stands in for OpenWhisk's controller and invoker.

Does to requests and results, in front of one container, what a real OpenWhisk was recorded to do
(tests/recordings), limits and error texts included. Knows nothing of openwhisk.py: an error that
both shared would show nowhere.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from concurrent import futures
from fnmatch import fnmatchcase
from typing import Any, Callable
from urllib.parse import quote, unquote, urljoin

import click
import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError
from werkzeug.serving import WSGIRequestHandler, make_server

import results

Headers = list[tuple[str, str]]
Reply = tuple[int, Headers, bytes]
Value = dict[str, Any]

LIMIT = 1_048_576  # bytes of a request's body, and of a result as JSON
RETRY_SECONDS = 0.05  # how often the invoker knocks until the container listens
KEPT = 100  # activations, of which the API tells the results
# Of the user guest on a standalone server, which everybody knows.
KEY = (
    "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:"
    "123zO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP"
)
API = "/api/v1/namespaces/_/"
METHODS = ("GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS", "PATCH")
RESERVED = {"__ow_" + name for name in ("method", "headers", "path", "user", "query", "body")}
JSON_TYPE = ("Content-Type", "application/json")
CORS_HEADERS = "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent"
DROPPED = {"connection", "content-length", "content-type", "date", "server", "transfer-encoding"}
BODILESS = {*range(100, 200), 204, 205, 304}

NOT_FOUND = "The requested resource does not exist."
FAILED = "There was an error processing your request."
MALFORMED = "The request content was malformed:\n"
NOT_HTTP = "Response is not valid 'message/http'."
EXITED = "The action did not produce a valid response and exited unexpectedly."


# ---- What the controller refuses ----


class RefusedError(Exception):
    """The controller answers by itself, with a JSON body that holds this sentence."""

    def __init__(
        self,
        status: int,
        sentence: str,
        headers: Iterable[tuple[str, str]] = (),
        indent: int | None = 2,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers, self.indent = status, sentence, headers, indent

    def reply(self, transaction_id: str) -> Reply:
        error = {"code": transaction_id, "error": self.sentence}
        separators = None if self.indent else (",", ":")
        text = json.dumps(error, ensure_ascii=False, indent=self.indent, separators=separators)
        return self.status, [*self.headers, JSON_TYPE], text.encode()


class HttpError(RefusedError):
    """Pekko HTTP answers by itself, in plain text: 400 before the controller, 500 after it."""

    def reply(self, transaction_id: str) -> Reply:
        return self.status, [("Content-Type", "text/plain; charset=UTF-8")], self.sentence.encode()


# ---- Media types, as Pekko HTTP understands them ----

TEXT = set(
    """
    application/atom+xml application/base64 application/javascript application/json
    application/json-patch+json application/merge-patch+json application/problem+json
    application/problem+xml application/rss+xml application/soap+xml application/vnd.api+json
    application/vnd.google-earth.kml+xml application/x-latex application/x-vrml
    application/x-www-form-urlencoded application/xhtml+xml application/xml application/xml-dtd
    text/asp text/cache-manifest text/calendar text/css text/csv text/event-stream text/html
    text/markdown text/mcf text/plain text/richtext text/tab-separated-values text/uri-list
    text/vnd.wap.wml text/vnd.wap.wmlscript text/x-asm text/x-c text/x-component text/x-h
    text/x-java-source text/x-pascal text/x-script text/x-scriptcsh text/x-scriptelisp
    text/x-scriptksh text/x-scriptlisp text/x-scriptperl text/x-scriptperl-module
    text/x-scriptphyton text/x-scriptrexx text/x-scriptscheme text/x-scriptsh text/x-scripttcl
    text/x-scripttcsh text/x-scriptzsh text/x-server-parsed-html text/x-setext text/x-sgml
    text/x-speech text/x-uuencode text/x-vcalendar text/x-vcard text/xml
    """.split()
)
# A charset makes other types text too, but none that begins like these: the controller has them
# registered as binary (MediaType.scala of Apache Pekko HTTP 1.1), or most of their kind.
BINARY = tuple(
    """
    application/cbor application/gnutar application/grpc application/java-archive application/lha
    application/lzx application/msword application/octet-stream application/pdf
    application/postscript application/vnd.google-earth.kmz application/vnd.ms-
    application/vnd.oasis.opendocument. application/vnd.openxmlformats- application/x-7z-compressed
    application/x-ace-compressed application/x-apple-diskimage application/x-arc-compressed
    application/x-bzip application/x-chrome-extension application/x-compress
    application/x-debian-package application/x-dvi application/x-font- application/x-gtar
    application/x-gzip application/x-rar-compressed application/x-redhat-package-manager
    application/x-shockwave-flash application/x-tar application/x-tex application/x-x509-ca-cert
    application/x-xpinstall application/zip audio/ font/ image/ message/ multipart/ video/
    """.split()
)
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
PARAMETER = rf'\s*;\s*({TOKEN})\s*=\s*({TOKEN}|"(?:[^"\\]|\\.)*")'
MEDIA_TYPE = re.compile(rf"\s*({TOKEN}/{TOKEN}|[*])((?:{PARAMETER})*)\s*\Z")
CHARSETS = {"utf8": "UTF-8", "latin1": "ISO-8859-1", "ascii": "US-ASCII"}
FORM = "application/x-www-form-urlencoded"


def parse_media(text: str) -> tuple[str, dict[str, str]]:
    """A media type or a range of them, and its parameters; raises ValueError where it is none."""
    found = MEDIA_TYPE.match(text)
    if not found:
        raise ValueError(f"{text!r} is not a media type")
    parameters = {name.lower(): value for name, value in re.findall(PARAMETER, found[2])}
    return ("*/*" if found[1] == "*" else found[1].lower()), parameters


class MediaType:
    """A Content-Type; raises ValueError where it is none."""

    def __init__(self, content_type: str) -> None:
        self.kind, self.parameters = parse_media(content_type)
        charset = self.parameters.pop("charset", "").strip('"')
        is_json = self.kind == "application/json" or self.kind.endswith("+json")
        self.is_json = is_json and not self.parameters
        self.is_text = self.kind in TEXT or (charset != "" and not self.kind.startswith(BINARY))
        is_fixed = self.kind in TEXT and (is_json or self.kind in (FORM, "text/event-stream"))
        self.open_charset = self.is_text and not is_fixed
        charset = CHARSETS.get(charset.lower(), charset)
        if re.match("utf|iso|us-", charset, re.IGNORECASE):
            charset = charset.upper()
        self.charset = charset if self.open_charset else ""

    def __str__(self) -> str:
        shown = "".join(f"; {name}={text}" for name, text in sorted(self.parameters.items()))
        return self.kind + shown + (f"; charset={self.charset}" if self.charset else "")


class Range:
    """One of an Accept or Accept-Charset; raises ValueError where it is none."""

    def __init__(self, text: str) -> None:
        self.kind, self.parameters = parse_media(text)
        self.quality = float(self.parameters.pop("q", "1"))

    def __str__(self) -> str:
        shown = "".join(f"; {name}={text}" for name, text in self.parameters.items())
        return self.kind + shown + ("" if self.quality == 1 else f";q={self.quality}")

    def matches(self, media: MediaType) -> bool:
        others = {name: text for name, text in self.parameters.items() if name != "charset"}
        return fnmatchcase(media.kind, self.kind) and others.items() <= media.parameters.items()


def ranges_of(header: str, prefix: str = "") -> list[Range]:
    """Empty where the header can't be understood."""
    try:
        return [Range(prefix + text.strip()) for text in header.split(",")]
    except ValueError:
        return []


def check_accepted(status: int, content_type: str, headers: dict[str, str]) -> None:
    """Raises RefusedError for a type that the caller does not accept (accept.json)."""
    media = MediaType(content_type)
    wanted = [(ranges_of(headers.get("accept", "")), media)]
    if media.is_text or media.is_json:
        charsets = ranges_of(headers.get("accept-charset", ""), "charset/")
        wanted.append((charsets, MediaType("charset/utf-8")))
    for ranges, found in wanted:
        qualities = [one.quality for one in ranges if one.matches(found)] or [0]
        if status < 400 and ranges and not all(qualities):
            raise RefusedError(
                406,
                f"Resource representation is only available with these types:\n{media.kind}",
                indent=None,
            )


# ---- The request becomes a value ----

SEGMENT_SAFE = "!$&'()*+,;=@:"  # what Pekko HTTP leaves as it is in a path's segment
QUERY_SAFE = "!$'()*,@:/?"  # and in a query's names and values


def body_of(environ: dict[str, Any]) -> bytes:
    """Raises HttpError and RefusedError."""
    headers = environ["devserver.headers"]
    for name in ("Content-Type", "Content-Length"):
        if len({text for known, text in headers if known == name.lower()}) > 1:
            raise HttpError(400, f"HTTP message must not contain more than one {name} header")
    length, is_chunked = dict(headers).get("content-length"), environ.get("wsgi.input_terminated")
    if length and is_chunked:
        raise HttpError(400, "A chunked request must not contain a Content-Length header")
    try:
        body: bytes = environ["wsgi.input"].read(-1 if is_chunked else int(length or 0))
    except (OSError, ValueError):
        raise HttpError(400, "Illegal Content-Length or chunk") from None
    if len(body) > LIMIT:
        raise RefusedError(413, f"Request larger than allowed: {len(body)} > {LIMIT} bytes.")
    return body


def headers_of(environ: dict[str, Any]) -> dict[str, str]:
    """Of each name the last. Raises ConnectionResetError for one that is not UTF-8."""
    try:
        found = {
            name: text.encode("latin-1").decode() for name, text in environ["devserver.headers"]
        }
    except UnicodeDecodeError:
        raise ConnectionResetError from None
    ranges = ranges_of(found.get("accept", ""))
    if ranges:
        found["accept"] = ", ".join(map(str, ranges))
    return found


def parse_query(query: str) -> list[tuple[str, str | None]]:
    """Names and values, None for a name without =. Raises RefusedError for a broken escape."""
    if re.search("%(?![0-9A-Fa-f]{2})", query):
        raise RefusedError(400, "Illegal query: Invalid input, expected HEXDIG", indent=None)
    pairs = [part.replace("+", " ").partition("=") for part in query.split("&")] if query else []
    return [(unquote(name), unquote(text) if equals else None) for name, equals, text in pairs]


def render_query(pairs: list[tuple[str, str | None]]) -> str:
    quoted = [
        [quote(text, QUERY_SAFE + " ").replace(" ", "+") for text in pair if text is not None]
        for pair in pairs
    ]
    return "&".join("=".join(pair) for pair in quoted)


def parse_json(data: bytes) -> Any:
    """Raises RefusedError with spray-json's words for what is malformed."""
    text = data.decode("latin-1")  # positions count bytes

    def refuse(name: str) -> None:
        raise json.JSONDecodeError("NaN is none", text, text.find(name))

    try:
        json.loads(text, parse_constant=refuse)
        return json.loads(data.decode(errors="replace"))
    except RecursionError:  # pragma: no cover, where coverage loses sight
        raise RefusedError(400, MALFORMED + "JSON input nested too deeply", indent=None) from None
    except json.JSONDecodeError as error:
        position, line = error.pos, error.lineno
    found = text[position : position + 1]
    shown = found if found.isprintable() else f"\\u{ord(found):04x}"
    unexpected = f"character '{shown}'" if found else "end-of-input"
    start = text.rfind("\n", 0, position) + 1
    column = position - start
    raise RefusedError(
        400,
        f"{MALFORMED}Unexpected {unexpected} at input index {position} (line {line}, "
        f"position {column + 1}), expected JSON Value:\n{printable(data[start:])}\n"
        f"{' ' * column}^\n",
        indent=None,
    )


def printable(data: bytes) -> str:
    """Its first line as spray-json shows it: a character for each that it takes for UTF-8."""
    sequences = re.findall(
        b"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xf7].{0,3}|.", data.split(b"\n")[0]
    )
    shown = "".join(sequence.decode(errors="replace")[:1] for sequence in sequences)
    return re.sub(r"[\0-\x1f\x7f-\x9f]", "?", shown)


def carried(media: MediaType, body: bytes) -> str:
    """`__ow_body`: text decoded as UTF-8 whatever its charset, or base64."""
    if media.is_text and str(media) != "application/json":
        return body.decode(errors="replace")
    return base64.b64encode(body).decode()


def value_of(
    method: str,
    headers: dict[str, str],
    path: str,
    query: str,
    body: bytes,
    raw: bool,
    bound: Value,
) -> Value:
    """As in requests.json, with what is bound to the action. Raises RefusedError."""
    headers = {
        name: text
        for name, text in headers.items()
        if name not in ("content-length", "transfer-encoding")
    }
    media = None
    if body or "content-type" in headers:
        try:
            media = MediaType(headers.get("content-type", ""))
        except ValueError:
            media = MediaType("application/octet-stream")
        headers["content-type"] = str(media)
    value: Value = {"__ow_method": method.lower(), "__ow_headers": headers, "__ow_path": path}
    pairs = parse_query(query)
    if raw:
        value["__ow_body"] = carried(media, body) if media else ""
        return {**value, "__ow_query": render_query(pairs), **bound}
    content: Any = parse_json(body) if body and media and media.is_json else {}
    if media and media.kind == FORM:
        pairs += parse_query(body.decode(errors="replace"))
    elif media and not media.is_json:
        value["__ow_body"] = carried(media, body)
    elif not isinstance(content, dict):
        value["__ow_body"], content = content, {}
    parameters: Value = {**{name: text or "" for name, text in pairs}, **content}
    if (RESERVED | set(bound)) & set(parameters):
        raise RefusedError(
            400, "Request defines parameters that are not allowed (e.g., reserved properties)."
        )
    return {**value, **parameters, **bound}


# ---- The result becomes a response ----

LOOKS_BASE64 = re.compile(
    r"[\0- ]*(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}(?:[A-Za-z0-9+/]{2}|[A-Za-z0-9+/]=|==)[\0- ]*\Z"
)


def pretty(value: Any, indent: int = 0) -> str:
    """JSON as spray-json prints it: members on lines of their own, arrays on one."""
    if isinstance(value, list):
        return "[" + ", ".join(pretty(member, indent) for member in value) + "]"
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    space = " " * indent
    members = [
        f"{space}  {json.dumps(name)}: {pretty(value[name], indent + 2)}" for name in sorted(value)
    ]
    return "{\n" + ",\n".join(members) + f"\n{space}}}"


def texts_of(value: Any) -> list[str]:
    """Of a header, which may be a list. Raises RefusedError."""
    if isinstance(value, list):
        return [text for member in value for text in texts_of(member)]
    if value is None or isinstance(value, dict):
        raise RefusedError(400, NOT_HTTP)
    return [value if isinstance(value, str) else json.dumps(value)]


def bytes_of(body: Any, media: MediaType) -> bytes:
    """Raises RefusedError where the body is not as its type demands."""
    if not isinstance(body, str):
        if not media.is_json:
            raise RefusedError(400, "Response type in header did not match generated content type.")
        return pretty(body).encode()
    if media.is_text and not (media.is_json and LOOKS_BASE64.match(body)):
        return body.encode("utf-8", "replace")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except ValueError:
        raise RefusedError(
            400, "Response type in header did not match generated content type."
        ) from None


def result_as_http(result: Any) -> Reply:
    """`{statusCode, headers, body}` as in responses.json. Raises RefusedError."""
    if not isinstance(result, dict) or not isinstance(result.get("headers", {}), dict):
        raise RefusedError(400, NOT_HTTP)
    body, fields = result.get("body"), result.get("headers", {})
    code = result.get("statusCode", 204 if body in (None, "") else 200)
    if isinstance(code, bool) or not re.match(r"[1-5][0-9]{2}(\.0)?$", str(code)):
        raise RefusedError(400, NOT_HTTP)
    status = int(float(code))
    headers = [(name, text) for name in sorted(fields) for text in texts_of(fields[name])]
    if not all(re.fullmatch(TOKEN, name) for name, _ in headers):
        raise ConnectionResetError
    types = [text for name, text in headers if name.lower() == "content-type"]
    kept = [
        (name, text)
        for name, text in headers
        if name.lower() not in DROPPED and not set("\r\n") & set(text)
    ]
    if body is None or body == "":
        return status, kept, b""
    default = "text/html" if isinstance(body, str) else "application/json"
    try:
        media = MediaType(types[0] if types else default)
    except ValueError:
        raise RefusedError(400, "Response did not specify a known content-type.") from None
    data = bytes_of(body, media)
    media.charset = "UTF-8" if media.open_charset else ""
    return status, [*kept, ("Content-Type", str(media))], data


# ---- The invoker ----


class Invoker:
    """Sends messages to one container, and keeps what the last ones came to."""

    def __init__(self, container: str, action: str, timeout: float, concurrency: int) -> None:
        """The action is guest/ocr, its time limit in seconds."""
        self.container, self.action, self.timeout = container.rstrip("/"), action, timeout
        self.free = threading.Semaphore(concurrency)  # a real one starts more containers
        self.activations = deque[tuple[str, tuple[str, futures.Future[Value]]]](maxlen=KEPT)

    def message(self) -> Value:
        """Of POST /run, but for the value."""
        return {
            "action_name": "/" + self.action,
            "action_version": "0.0.1",
            "activation_id": uuid.uuid4().hex,
            "deadline": str(int((time.time() + self.timeout) * 1000)),
            "namespace": "guest",
            "transaction_id": uuid.uuid4().hex,
        }

    def init(self) -> None:
        """POST /init. Raises ConnectionError with a sentence."""
        env = {"__OW_" + name.upper(): text for name, text in self.message().items()}
        env["__OW_API_HOST"] = "127.0.0.1"
        value = {
            "name": self.action.rpartition("/")[2],
            "binary": False,
            "main": "main",
            "env": env,
        }
        try:
            response = self.post("/init", {"value": value})
        except HTTPError as error:
            raise ConnectionError(
                f"No container answers at {self.container}: start it first ({error})."
            ) from None
        if response.status != 200:
            raise ConnectionError(
                f"The container at {self.container} failed to initialize: "
                + response.data.decode(errors="replace")
            )

    def run(self, message: Value) -> Value:
        """The result of POST /run. Raises RefusedError."""
        with self.free, contextlib.suppress(HTTPError, ValueError):
            response = self.post("/run", message)
            if len(response.data) > LIMIT:
                return {
                    "error": "The action produced a response that exceeded the allowed length: "
                    f"{len(response.data)} > {LIMIT} bytes."
                }
            is_result = response.status == 200 and "Content-Length" in response.headers
            result = json.loads(response.data, parse_constant=int) if is_result else None
            if isinstance(result, list):
                raise HttpError(500, "There was an internal server error.")
            if isinstance(result, dict):
                return result
        raise RefusedError(400, FAILED)

    def post(self, path: str, message: Value) -> urllib3.BaseHTTPResponse:
        """Tries again while nobody listens, or the connection is dropped, as a port that Docker
        publishes does at first. Raises HTTPError, also after the time limit."""
        body, url = json.dumps(message, separators=(",", ":")), self.container + path
        deadline = time.monotonic() + self.timeout
        while True:
            left = max(deadline - time.monotonic(), RETRY_SECONDS)
            try:
                return urllib3.request(
                    "POST", url, body=body, headers=dict([JSON_TYPE]), timeout=left, retries=False
                )
            except (NewConnectionError, ProtocolError):
                if left <= RETRY_SECONDS:
                    raise
            time.sleep(RETRY_SECONDS)

    def start(
        self, value: Value, run: Callable[[Value], Value], suffix: str = ""
    ) -> tuple[str, futures.Future[Value]]:
        """An activation's id, and what `run` gives for its message, in a thread that keeps nobody
        from ending this process. The suffix is that of the action's name."""
        message, future = {**self.message(), "value": value}, futures.Future[Value]()

        def activate() -> None:
            try:
                future.set_result(run(message))
            except Exception as error:
                future.set_exception(error)

        self.activations.append((message["activation_id"], (self.action + suffix, future)))
        threading.Thread(target=activate, daemon=True).start()
        return message["activation_id"], future

    def record(self, activation_id: str) -> Value:
        """As in activations.json, what results.py reads of it; empty while it runs, and for one
        that is not known."""
        action, future = dict(self.activations).get(activation_id, ("", futures.Future[Value]()))
        if not future.done():
            return {}
        result, status = {"error": EXITED}, "action developer error"
        if not future.exception():
            result = future.result()
            status = "application error" if "error" in result else "success"
        return {
            "activationId": activation_id,
            "annotations": [{"key": "path", "value": action}],
            "name": action.rpartition("/")[2],
            "namespace": "guest",
            "response": {"result": result, "status": status, "success": status == "success"},
        }


# ---- The controller ----


class Handler(WSGIRequestHandler):
    """Hands over each header by itself."""

    def make_environ(self) -> dict[str, Any]:
        headers = [(name.lower(), text.strip()) for name, text in self.headers.items()]
        return {**super().make_environ(), "devserver.headers": headers}

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        self.close_connection = True


def run_results(message: Value) -> Value:
    """The result of results.py, which asks the API that the environment names."""
    return results.main(message["value"])


class WebAction:
    """The WSGI app behind the URL: a request becomes a value, a result becomes the response."""

    def __init__(
        self,
        container: str,
        action: str = "rec",
        *,
        web: str = "raw",
        timeout: float = 60,
        concurrency: int = 1,
        wait: float = 60,
        secret: str = "",
        parameters: dict[str, str] | None = None,
        keeps_results: bool = False,
    ) -> None:
        """The action is ocr, or models/ocr in a package. It may take `timeout` seconds; a client
        waits for `wait` seconds."""
        self.path = "/api/v1/web/guest/" + (action if "/" in action else "default/" + action)
        suffix = "(|-results)" if keeps_results else "()"
        extension = "(?:[.](?:http|json|html|svg|text))?"  # the last four change other results
        self.url = re.compile(re.escape(self.path) + suffix + extension + "(/.*)?")
        self.invoker = Invoker(container, "guest/" + action, timeout, concurrency)
        self.action, self.web, self.wait, self.secret = action, web, wait, secret
        self.parameters = parameters or {}

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        transaction_id = uuid.uuid4().hex
        try:
            status, headers, body = self.respond(environ)
        except RefusedError as refused:
            status, headers, body = refused.reply(transaction_id)
        headers.append(("X-Request-ID", transaction_id))
        if status not in BODILESS:
            headers.append(("Content-Length", str(len(body))))
        start_response(f"{status} {http.client.responses.get(status, 'Custom')}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" or status in BODILESS else [body]

    def respond(self, environ: dict[str, Any]) -> Reply:
        """What the controller does from a request to its response. Raises RefusedError and
        ConnectionResetError."""
        method = environ["REQUEST_METHOD"]
        if method not in METHODS:
            raise RefusedError(
                405,
                "HTTP method not allowed, supported methods: " + ", ".join(METHODS),
                indent=None,
            )
        path, _, query = environ["RAW_URI"].partition("?")
        if path.startswith(API):
            return self.api(path[len(API) :], environ)
        # Segments . and .. go, however they are written (RFC 3986, 5.2.4).
        url = self.url.fullmatch(urljoin("/", re.sub("%2e", ".", path, flags=re.IGNORECASE)))
        if not url:
            raise RefusedError(404, NOT_FOUND)
        rest = "/".join(quote(unquote(part), SEGMENT_SAFE) for part in (url[2] or "").split("/"))
        body, headers = body_of(environ), headers_of(environ)
        cors = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "OPTIONS, GET, DELETE, POST, PUT, HEAD, PATCH"),
            (
                "Access-Control-Allow-Headers",
                headers.get("access-control-request-headers", CORS_HEADERS),
            ),
        ]
        if method == "OPTIONS":
            return 200, cors, b""
        if self.secret not in ("", headers.get("x-require-whisk-auth")):
            raise RefusedError(
                401, "Authentication is possible but has failed or not yet been provided.", cors
            )
        run, is_raw, bound = self.invoker.run, self.web == "raw", self.parameters
        if url[1]:
            run, is_raw, bound = run_results, True, {"MODEL": self.action.rpartition("/")[2]}
        value = value_of(method, headers, rest, query, body, is_raw, bound)
        activation_id, future = self.invoker.start(value, run, url[1])
        cors.append(("x-openwhisk-activation-id", activation_id))
        return self.answer(future, headers, cors)

    def answer(
        self, future: futures.Future[Value], headers: dict[str, str], cors: Headers
    ) -> Reply:
        """What a client who waits is told. Raises RefusedError."""
        try:
            result = future.result(self.wait)
            status, own_headers, content = result_as_http(result.get("error", result))
        except futures.TimeoutError:
            check_accepted(202, "application/json", headers)
            raise RefusedError(202, "Response not yet ready.", cors) from None
        except RefusedError as refused:
            refused.headers = cors
            raise
        if content:
            check_accepted(status, dict(own_headers)["Content-Type"], headers)
        if status in BODILESS:
            own_headers = [pair for pair in own_headers if pair[0] != "Content-Type"]
        return status, cors + own_headers, content

    def api(self, path: str, environ: dict[str, Any]) -> Reply:
        """The parts of OpenWhisk's that results.py asks: activations, and the action's invocation
        without waiting. Raises RefusedError."""
        key = environ.get("HTTP_AUTHORIZATION")
        if key != "Basic " + base64.b64encode(KEY.encode()).decode():
            raise RefusedError(
                401,
                "The supplied authentication is invalid"
                if key
                else "The resource requires authentication, which was not supplied "
                "with the request",
            )
        if environ["REQUEST_METHOD"] == "POST" and path == "actions/" + self.action:
            value = {**json.loads(body_of(environ)), **self.parameters}
            told = {"activationId": self.invoker.start(value, self.invoker.run)[0]}
            return 202, [JSON_TYPE], json.dumps(told).encode()
        kind, activation_id, part = [*path.split("/", 2), "", ""][:3]
        length = len(unquote(activation_id))
        if kind == "activations" and length != 32:
            raise RefusedError(400, f"Activation id length is {length} but must be 32.")
        record = self.invoker.record(activation_id)
        if part or not record:
            raise RefusedError(404, NOT_FOUND)
        return 200, [JSON_TYPE], json.dumps(record).encode()


@click.command(help=__doc__, context_settings={"show_default": True})
@click.argument("container", metavar="CONTAINER_URL")
@click.option("--port", type=click.IntRange(1, 65535), default=3233, help="Of this server.")
@click.option("--action", default="max-ocr", help="Its name, in a package: models/max-ocr.")
@click.option("--web", type=click.Choice(["raw", "true"]), default="raw", help="As wsk's.")
@click.option("--timeout", default=60.0, help="The action's time limit in seconds.")
@click.option("--concurrency", type=click.IntRange(1), default=1, help="Activations at once.")
@click.option("--wait", default=60.0, help="Seconds that a client waits.")
@click.option("--secret", default="", help="That clients have to send: wsk's --web-secure.")
@click.option("--param", type=(str, str), multiple=True, metavar="NAME VALUE", help="Bound.")
@click.option("--results", "keeps_results", is_flag=True, help="Serves ACTION-results, too.")
def main(container: str, port: int, param: list[tuple[str, str]], **options: Any) -> None:
    try:
        action = WebAction(container, parameters=dict(param), **options)
        server = make_server("127.0.0.1", port, action, threaded=True, request_handler=Handler)
        action.invoker.init()
    except OSError as error:
        raise click.ClickException(str(error)) from None
    url = f"http://127.0.0.1:{port}"
    os.environ["__OW_ACTION_NAME"] = f"/{action.invoker.action}-results"
    os.environ.update(__OW_API_HOST=url, __OW_API_KEY=KEY)
    click.echo(url + action.path)
    server.serve_forever()


if __name__ == "__main__":
    main()
