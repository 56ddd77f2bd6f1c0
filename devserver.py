"""A web action's URL on this machine: stands in for OpenWhisk's controller and invoker.

Does to requests and results, in front of one container, what a real OpenWhisk was recorded to do
(tests/recordings), limits and error texts included. The rules behind the recordings are those of
WebActions.scala in Apache OpenWhisk and of Pekko HTTP.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import http.client
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Callable
from urllib.parse import quote, unquote

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header
from werkzeug.serving import WSGIRequestHandler, make_server

import results
# Text (tests/recordings/text_media_types.json); all else is base64.
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
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # https://www.rfc-editor.org/rfc/rfc9110#name-tokens
PARAMETER = r'\s*;\s*{0}=(?:{0}|"(?:[^"\\]|\\.)*")'.format(TOKEN)
CONTENT_TYPE = re.compile(r"\s*({0}/{0})((?:{1})*)[\s;]*\Z".format(TOKEN, PARAMETER))
RESERVED = {"__ow_" + name for name in ("method", "headers", "path", "user", "query", "body")}
SET_BY_CONTROLLER = {"connection", "content-length", "date", "server", "transfer-encoding"}
LOOKS_BASE64 = re.compile(
    r"[\0- ]*(?:[A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}(?:[A-Za-z0-9+/]{2}|[A-Za-z0-9+/]=|==)[\0- ]*\Z"
)


def is_json(kind: str) -> bool:
    """Whether it is a name of JSON, which is JSON for the controller if it has no parameters."""
    return kind == "application/json" or kind.endswith("+json")


def is_text(kind: str, charset: str) -> bool:
    """Whether the controller carries it as text."""
    return kind in TEXT or (charset != "" and not kind.startswith(BINARY))


LIMIT = 1_048_576  # bytes of a request's body, and of a result as JSON
BLOCKING_SECONDS = 60.0  # how long the controller keeps a client waiting
RETRY_SECONDS = 0.05  # how often the invoker knocks until the container listens
KEPT = 100  # results of the last activations
# Of the user guest on a standalone server, which everybody knows.
KEY = (
    "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:"
    "123zO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP"
)
METHODS = ("GET", "DELETE", "POST", "PUT", "HEAD", "OPTIONS", "PATCH")
CORS = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "OPTIONS, GET, DELETE, POST, PUT, HEAD, PATCH"),
]
JSON_TYPE = ("Content-Type", "application/json")
CORS_HEADERS = "Authorization, Origin, X-Requested-With, Content-Type, Accept, User-Agent"
DROPPED = SET_BY_CONTROLLER | {"content-type"}
BODILESS = {*range(100, 200), 204, 205, 304}

# Characters that Pekko HTTP leaves as they are in a path's segment and in a query's names and
# values.
SEGMENT_SAFE = "!$&'()*+,;=@:"
QUERY_SAFE = "!$'()*,@:/?"

CHARSET_ALIASES = {"utf8": "UTF-8", "latin1": "ISO-8859-1", "ascii": "US-ASCII"}
JSON_EXPECTED = {  # what Python's parser says: what spray-json says
    "Expecting value": "JSON Value",
    "Expecting property name enclosed in double quotes": "'\"'",
    "Expecting ':' delimiter": "':'",
    "Extra data": "end-of-input",
    "Unterminated string starting at": "'\"'",
    "Invalid control character at": "'\"'",
    "Invalid \\escape": "JSON escape sequence",
    "Invalid \\uXXXX escape": "hex digit",
}

NOT_FOUND = "The requested resource does not exist."
FAILED = "There was an error processing your request."
NO_KEY = "The resource requires authentication, which was not supplied with the request"
WRONG_KEY = "The supplied authentication is invalid"
UNAUTHORIZED = "Authentication is possible but has failed or not yet been provided."
EXITED = "The action did not produce a valid response and exited unexpectedly."
AUTH_HEADER = "x-require-whisk-auth"
API = "/api/v1/namespaces/_/"
ENVIRONMENT = threading.Lock()  # of results.py, which is this process's

Headers = list[tuple[str, str]]
Reply = tuple[int, Headers, bytes]


class MediaType:
    """A Content-Type as Pekko HTTP understands it; raises ValueError where it would not."""

    def __init__(self, content_type: str) -> None:
        found = CONTENT_TYPE.match(content_type)
        if not found or content_type.rstrip().endswith(";"):
            raise ValueError(f"{content_type!r} is not a media type")
        self.kind = found[1].lower()
        parameters = dict(re.findall(rf'({TOKEN})=({TOKEN}|"(?:[^"\\]|\\.)*")', found[2]))
        charsets = [
            parameters.pop(name).strip('"')
            for name in list(parameters)
            if name.lower() == "charset"
        ]
        self.parameters = "".join(f"; {name}={text}" for name, text in sorted(parameters.items()))
        self.is_json = is_json(self.kind) and not self.parameters
        self.is_text = is_text(self.kind, "".join(charsets))
        fixed = is_json(self.kind) or self.kind in (
            "application/x-www-form-urlencoded",
            "text/event-stream",
        )
        self.open_charset = self.is_text and not (fixed and self.kind in TEXT)
        self.charset = self.canonical(charsets[-1]) if charsets and self.open_charset else ""

    @staticmethod
    def canonical(charset: str) -> str:
        charset = CHARSET_ALIASES.get(charset.lower(), charset)
        return charset.upper() if re.match("utf|iso|us-", charset, re.IGNORECASE) else charset

    def __str__(self) -> str:
        return self.kind + self.parameters + (f"; charset={self.charset}" if self.charset else "")


class RefusedError(Exception):
    """The controller answers by itself, with a JSON body that holds this sentence."""

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        pretty: bool = True,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers, self.pretty = status, sentence, headers, pretty


class MalformedError(Exception):
    """Pekko HTTP refuses the request with this sentence, before the controller sees it."""


class InternalError(Exception):
    """The controller itself fails."""


class Handler(WSGIRequestHandler):
    """Hands the request over as it came: the whole target, and each header by itself."""

    def make_environ(self) -> dict[str, Any]:
        return {
            **super().make_environ(),
            "devserver.target": self.path,
            "devserver.headers": self.headers.items(),
        }

    def connection_dropped(
        self, error: BaseException, environ: dict[str, Any] | None = None
    ) -> None:
        self.close_connection = True

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class WebAction:
    """The WSGI app behind the URL: a request becomes a message, a result becomes the response."""

    def __init__(
        self,
        container: str,
        *,
        raw: bool,
        namespace: str,
        package: str,
        action: str,
        timeout: float,
        concurrency: int = 1,
        wait: float = BLOCKING_SECONDS,
        custom_options: bool = False,
        secret: str = "",
        parameters: dict[str, str] | None = None,
        keeps_results: bool = False,
    ) -> None:
        address = re.fullmatch("http://([^/:@]+)(?::([0-9]{1,5}))?/?", container)
        if not address:
            raise ValueError(
                f"{container!r} is not the URL of a container, like http://127.0.0.1:8080."
            )
        self.address = address[1], int(address[2] or 80)
        self.container, self.raw, self.timeout = container, raw, timeout
        self.path = f"/api/v1/web/{namespace}/{package}/{action}"
        self.own_name = action if package == "default" else f"{package}/{action}"
        self.name = f"/{namespace}/{self.own_name}"
        self.action, self.namespace = action, namespace
        self.wait, self.custom_options, self.secret = wait, custom_options, secret
        self.parameters, self.keeps_results = parameters or {}, keeps_results
        self.records: dict[str, dict[str, Any]] = {}  # of the last activations, by their id
        self.free = threading.BoundedSemaphore(concurrency)  # a real invoker starts more containers

    def init(self) -> None:
        """POST /init, again and again until the container listens. Raises ConnectionError with a
        sentence."""
        env = {"__OW_" + name.upper(): text for name, text in self.activation().items()} | {
            "__OW_API_HOST": "127.0.0.1"
        }
        value = {"name": self.action, "binary": False, "main": "main", "env": env}
        started = time.monotonic()
        while True:
            left = started + self.timeout - time.monotonic()
            try:
                status, _, data = self.post("/init", {"value": value}, max(left, RETRY_SECONDS))
                break
            except (
                BrokenPipeError,
                ConnectionRefusedError,
                ConnectionResetError,
            ):  # a published port of Docker's resets at first
                if left <= 0:
                    raise ConnectionError(
                        f"No container listens at {self.container}: start it first."
                    ) from None
                time.sleep(RETRY_SECONDS)
            except OSError as error:
                raise ConnectionError(
                    f"The container at {self.container} did not answer POST /init: {error}."
                ) from None
        if status != 200:
            raise ConnectionError(
                f"The container at {self.container} failed to initialize: "
                + data.decode(errors="replace")
            )

    def activation(self) -> dict[str, str]:
        return {
            "action_name": self.name,
            "action_version": "0.0.1",
            "activation_id": uuid.uuid4().hex,
            "deadline": str(int((time.time() + self.timeout) * 1000)),
            "namespace": self.namespace,
            "transaction_id": uuid.uuid4().hex,
        }

    def post(self, path: str, message: dict[str, Any], seconds: float) -> tuple[int, bool, bytes]:
        """Status, whether there was a Content-Length, and body. Raises OSError, and TimeoutError
        after the seconds."""
        connection = http.client.HTTPConnection(*self.address, timeout=seconds)
        try:
            connection.request(
                "POST", path, json.dumps(message, separators=(",", ":")), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            return (
                response.status,
                response.getheader("Content-Length") is not None,
                response.read(),
            )
        except http.client.RemoteDisconnected:
            raise
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        transaction_id = uuid.uuid4().hex
        try:
            status, headers, body = self.respond(environ)
        except RefusedError as refused:
            error = {"code": transaction_id, "error": refused.sentence}
            text = json.dumps(
                error,
                ensure_ascii=False,
                indent=2 if refused.pretty else None,
                separators=(",", ": " if refused.pretty else ":"),
            )
            status, headers, body = (
                refused.status,
                [*refused.headers, JSON_TYPE],
                text.encode(),
            )
        except (MalformedError, InternalError) as error:
            status = 400 if isinstance(error, MalformedError) else 500
            headers = [("Content-Type", "text/plain; charset=UTF-8")]
            body = str(error).encode()
        headers.append(("X-Request-ID", transaction_id))
        if status not in BODILESS:
            headers.append(("Content-Length", str(len(body))))
        start_response(f"{status} {http.client.responses.get(status, 'Custom')}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" or status in BODILESS else [body]

    def respond(self, environ: dict[str, Any]) -> Reply:
        """What the controller does from a request to its response."""
        method = environ["REQUEST_METHOD"]
        if method not in METHODS:
            raise RefusedError(
                405,
                f"HTTP method not allowed, supported methods: {', '.join(METHODS)}",
                pretty=False,
            )
        path, _, query = environ["devserver.target"].partition("?")
        if path.startswith(API):
            return self.api(path[len(API) :], environ)
        action, extension, rest = self.match(collapse_dots(path))
        body = body_within_limit(environ)
        headers = decoded(environ["devserver.headers"])
        is_model = action == self.path  # and not its results
        own_cors = self.custom_options and is_model
        allowed = headers.get("access-control-request-headers", CORS_HEADERS)
        cors = [] if own_cors else [*CORS, ("Access-Control-Allow-Headers", allowed)]
        if method == "OPTIONS" and not own_cors:
            return 200, cors, b""
        if method != "OPTIONS" and self.secret not in ("", headers.get(AUTH_HEADER)):
            raise RefusedError(401, UNAUTHORIZED, headers=cors)
        raw, bound = self.raw, self.parameters
        if not is_model:
            raw, bound = True, {"MODEL": self.action}
        value = self.value(method, headers, rest, query, body, raw, bound)
        activation = self.activation()
        cors.append(("x-openwhisk-activation-id", activation["activation_id"]))
        try:
            if is_model:
                result = self.invoke({**activation, "value": value})
            else:
                result = self.read_result(value, environ["SERVER_PORT"])
            status, headers_, body_ = EXTENSIONS[extension](result.get("error", result))
        except RefusedError as refused:  # may be the 202 of an activation that takes long
            check_accepted(refused.status, [JSON_TYPE], b"{}", headers.get("accept", ""))
            raise RefusedError(refused.status, refused.sentence, headers=cors) from None
        check_accepted(status, headers_, body_, headers.get("accept", ""))
        return status, cors + headers_, body_

    def match(self, path: str) -> tuple[str, str, str]:
        """The path of the web action's URL, its extension, and the rest behind it; raises
        RefusedError for other URLs."""
        actions = [self.path, self.path + "-results"] if self.keeps_results else [self.path]
        for action in actions:
            for extension in ("", *EXTENSIONS):
                if (unquote(path) + "/").startswith(action + extension + "/"):
                    segments = path.split("/")[len(self.path.split("/")) :]
                    rest = ["/" + quote(unquote(part), safe=SEGMENT_SAFE) for part in segments]
                    return action, extension or ".http", "".join(rest)
        raise RefusedError(404, NOT_FOUND)

    def value(
        self,
        method: str,
        headers: dict[str, str],
        path: str,
        query: str,
        body: bytes,
        raw: bool,
        bound: dict[str, str],
    ) -> dict[str, Any]:
        """The `value` of the message, as in tests/recordings/requests.json, with the parameters
        that are bound to the action; raises RefusedError."""
        for name in ("content-length", "transfer-encoding"):
            headers.pop(name, None)
        media = None
        if body or "content-type" in headers:
            try:
                media = MediaType(headers.get("content-type", ""))
            except ValueError:
                media = MediaType("application/octet-stream")
            headers["content-type"] = str(media)
        value: dict[str, Any] = {
            "__ow_method": method.lower(),
            "__ow_headers": headers,
            "__ow_path": path,
            **bound,
        }
        pairs = parse_query(query)
        if raw:
            value["__ow_query"] = render_query(pairs)
            value["__ow_body"] = carried(media, body) if media else ""
            return value
        parameters: dict[str, Any] = {name: text or "" for name, text in pairs}
        form = media is not None and media.kind == "application/x-www-form-urlencoded"
        if form:
            parameters.update(
                (name, text or "") for name, text in parse_query(body.decode(errors="replace"))
            )
        elif media and media.is_json:
            content = parse_json(body) if body else {}
            parameters.update(content if isinstance(content, dict) else {})
            value.update({} if isinstance(content, dict) else {"__ow_body": content})
        elif media:
            value["__ow_body"] = carried(media, body)
        if (RESERVED | set(bound)) & set(parameters):
            raise RefusedError(
                400, "Request defines parameters that are not allowed (e.g., reserved properties)."
            )
        return {**value, **parameters}

    def invoke(self, message: dict[str, Any]) -> Any:
        """The result of an activation; raises RefusedError for one that fails, or that takes longer
        than a client may wait."""
        try:
            return self.start(message).result(self.wait)
        except FutureTimeoutError:
            raise RefusedError(202, "Response not yet ready.") from None

    def start(self, message: dict[str, Any]) -> Future[Any]:
        """In a thread that keeps nobody from ending this process, as an executor's would."""
        future: Future[Any] = Future()

        def activate() -> None:
            try:
                future.set_result(self.activate(message))
            except Exception as error:
                future.set_exception(error)

        threading.Thread(target=activate, daemon=True).start()
        return future

    def activate(self, message: dict[str, Any]) -> Any:
        """What the invoker does, and what is kept of it."""
        started = time.time()
        status, result = "action developer error", {"error": EXITED}
        try:
            result = self.run(message)
            status = "application error" if "error" in result else "success"
            return result
        finally:
            self.keep(message, started, status, result)

    def run(self, message: dict[str, Any]) -> Any:
        """POST /run, again while nothing answers. Returns the result; raises RefusedError."""
        deadline = time.monotonic() + self.timeout
        while True:
            left = deadline - time.monotonic()
            try:
                if not self.free.acquire(timeout=max(left, 0)):
                    raise socket.timeout
                try:
                    status, sized, data = self.post("/run", message, max(left, RETRY_SECONDS))
                finally:
                    self.free.release()
                break
            except OSError as error:
                if left <= RETRY_SECONDS or isinstance(error, socket.timeout):
                    raise RefusedError(400, FAILED) from None
                time.sleep(RETRY_SECONDS)
        if len(data) > LIMIT:
            sentence = "The action produced a response that exceeded the allowed length: "
            return {"error": f"{sentence}{len(data)} > {LIMIT} bytes."}
        try:
            result = json.loads(data, parse_constant=int) if status == 200 and sized else None
        except ValueError:
            result = None
        if isinstance(result, list):
            raise InternalError("There was an internal server error.")
        if not isinstance(result, dict):
            raise RefusedError(400, FAILED)
        return result

    def keep(self, message: dict[str, Any], started: float, status: str, result: Any) -> None:
        """The activation's record, as in tests/recordings/activations.json."""
        size = len(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))
        ended = time.time()
        self.records[message["activation_id"]] = {
            "activationId": message["activation_id"],
            "annotations": [
                {"key": "path", "value": self.name[1:]},
                {"key": "kind", "value": "blackbox"},
                {"key": "timeout", "value": ended - started > self.timeout},
            ],
            "duration": int((ended - started) * 1000),
            "end": int(ended * 1000),
            "logs": [],  # the container's terminal has them
            "name": self.action,
            "namespace": self.namespace,
            "publish": False,
            "response": {
                "result": result,
                "size": size,
                "status": status,
                "success": status == "success",
            },
            "start": int(started * 1000),
            "subject": self.namespace,
            "version": message["action_version"],
        }
        while len(self.records) > KEPT:
            del self.records[next(iter(self.records))]

    def api(self, path: str, environ: dict[str, Any]) -> Reply:
        """The parts of OpenWhisk's that results.py asks: activations, and the action's invocation
        without waiting; raises RefusedError."""
        authorization = environ.get("HTTP_AUTHORIZATION")
        if not authorization:
            raise RefusedError(401, NO_KEY)
        if authorization != "Basic " + base64.b64encode(KEY.encode()).decode():
            raise RefusedError(401, WRONG_KEY)
        kind, _, name = path.partition("/")
        if environ["REQUEST_METHOD"] == "POST" and [kind, name] == ["actions", self.own_name]:
            activation = self.activation()
            value = {**json.loads(body_within_limit(environ)), **self.parameters}
            self.start({**activation, "value": value})
            told = {"activationId": activation["activation_id"]}
            return 202, [JSON_TYPE], json.dumps(told).encode()
        if kind != "activations":
            raise RefusedError(404, NOT_FOUND)
        activation_id, _, part = name.partition("/")
        length = len(unquote(activation_id))
        if length != 32:
            raise RefusedError(400, f"Activation id length is {length} but must be 32.")
        record = self.records.get(activation_id)
        parts = {
            "": record,
            "result": record and record["response"],
            "logs": record and {"logs": record["logs"]},
        }
        if not parts.get(part):
            raise RefusedError(404, NOT_FOUND)
        return 200, [JSON_TYPE], json.dumps(parts[part]).encode()

    def read_result(self, value: dict[str, Any], port: str) -> Any:
        """What results.py answers, which asks this server's API."""
        with ENVIRONMENT:
            os.environ["__OW_ACTION_NAME"] = self.name + "-results"
            os.environ["__OW_API_HOST"] = f"http://127.0.0.1:{port}"
            os.environ["__OW_API_KEY"] = KEY
            return results.main(value)


def body_within_limit(environ: dict[str, Any]) -> bytes:
    """The request's body; raises RefusedError for a longer one, MalformedError like `body_of`."""
    body = body_of(environ)
    if len(body) > LIMIT:
        raise RefusedError(413, f"Request larger than allowed: {len(body)} > {LIMIT} bytes.")
    return body


def body_of(environ: dict[str, Any]) -> bytes:
    """The request's body; raises MalformedError with Pekko HTTP's words."""
    headers = [(name.lower(), text.strip()) for name, text in environ["devserver.headers"]]
    for name in ("Content-Type", "Content-Length"):
        if len({text for known, text in headers if known == name.lower()}) > 1:
            raise MalformedError(f"HTTP message must not contain more than one {name} header")
    length = dict(headers).get("content-length")
    if not environ.get("wsgi.input_terminated"):
        if length and not re.fullmatch("[0-9]+", length):
            raise MalformedError("Illegal `Content-Length` header value")
        return bytes(environ["wsgi.input"].read(int(length or 0)))
    if length:
        raise MalformedError("A chunked request must not contain a Content-Length header")
    try:
        return bytes(environ["wsgi.input"].read())
    except OSError:
        raise MalformedError("Illegal character in chunk start") from None


def collapse_dots(path: str) -> str:
    """Removes the segments . and .. (RFC 3986, 5.2.4), and only those."""
    kept: list[str] = []
    segments = path.split("/")
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if unquote(segment) == "..":
            del kept[max(len(kept) - 1, 1) :]
        if unquote(segment) not in (".", ".."):
            kept.append(segment)
        elif last:
            kept.append("")
    return "/".join(kept)


# A byte that UTF-8 begins a character with, and as many bytes as are to follow.
CHARACTER = re.compile(rb"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xf7].{0,3}|[\x80-\xff]", re.DOTALL)
CUT_SHORT = re.compile(rb"[\xe0-\xf7]|[\xf0-\xf7].", re.DOTALL)  # by two bytes or more


def decoded(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By their names in lower case. One whose last character is cut short takes its line end and
    the next line along.

    Raises ConnectionResetError if that is the last: the controller waits for more.
    """
    found, lines = {}, iter(headers)
    for name, text in lines:
        while takes_line_end(text):
            following = next(lines, None)
            if not following:
                raise ConnectionResetError
            text += "\r\n" + ": ".join(following)
        found[name.lower()] = decode_header(text)
    return found


def takes_line_end(text: str) -> bool:
    characters = CHARACTER.findall(text.encode("latin-1"))
    return bool(characters and CUT_SHORT.fullmatch(characters[-1]))


def decode_header(text: str) -> str:
    """A header's value, which is UTF-8; of other bytes, if they could begin a character, U+FF00 and
    the byte.

    Raises MalformedError for those that could not.
    """

    def character(found: re.Match[bytes]) -> bytes:
        data: bytes = found[0]
        if not 0xC0 <= data[0] <= 0xF7:
            name = chr(data[0]) if data[0] > 0x9F else f"\\u{data[0]:04x}"
            raise MalformedError(f"Illegal character '{name}' in header value")
        try:
            data.decode()
        except UnicodeDecodeError:
            data = "".join(chr(0xFF00 + one if one > 0x7F else one) for one in data).encode()
        return data

    return CHARACTER.sub(character, text.encode("latin-1")).decode()


def parse_query(query: str) -> list[tuple[str, str | None]]:
    """Names and values, None for a name without =; raises RefusedError for a broken
    percent-encoding."""
    if re.search("%(?![0-9A-Fa-f]{2})", query):
        raise RefusedError(400, "Illegal query: Invalid input, expected HEXDIG", pretty=False)
    pairs = [part.partition("=") for part in query.split("&")] if query else []
    return [(decode(name), decode(text) if equals else None) for name, equals, text in pairs]


def decode(text: str) -> str:
    return unquote(text.replace("+", " "))


def render_query(pairs: list[tuple[str, str | None]]) -> str:
    def encode(text: str) -> str:
        return quote(text, safe=QUERY_SAFE + " ").replace(" ", "+")

    return "&".join(
        encode(name) + ("" if text is None else "=" + encode(text)) for name, text in pairs
    )


def carried(media: MediaType, body: bytes) -> str:
    """`__ow_body`: text decoded as UTF-8 whatever its charset, or base64."""
    if media.is_text and str(media) != "application/json":
        return body.decode(errors="replace")
    return base64.b64encode(body).decode()


def parse_json(data: bytes) -> Any:
    """Raises RefusedError with spray-json's words for what is malformed; its positions count
    bytes."""
    text = data.decode("latin-1")
    try:
        json.loads(text, parse_constant=int)
        return json.loads(data.decode(errors="replace"))
    except json.JSONDecodeError as error:
        position, message = error.pos, error.msg
    except ValueError:  # NaN and the like
        position, message = (
            next(found.start() for found in re.finditer("-?(NaN|Infinity)", text)),
            "Expecting value",
        )
    except RecursionError:  # pragma: no cover, where coverage loses sight
        raise RefusedError(
            400, "The request content was malformed:\nJSON input nested too deeply", pretty=False
        ) from None
    if message.startswith("Illegal trailing comma"):  # pragma: no cover, since Python 3.13
        position = re.compile(r"\s*").match(text, position + 1).end()  # type: ignore[union-attr]
        message = (
            "Expecting value"
            if text[position : position + 1] == "]"
            else "Expecting property name enclosed in double quotes"
        )
    if message.startswith("Unterminated string"):
        position = len(text)
    opened = [""]
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|[][{}]', text[:position]):
        if bracket in "[{":
            opened.append("]" if bracket == "[" else "}")
        elif bracket in "]}":
            opened.pop()
    expected = JSON_EXPECTED.get(message, f"'{opened[-1]}'")
    found = text[position : position + 1]
    unexpected = (
        "end-of-input"
        if not found
        else f"character '{found}'"
        if found.isprintable()
        else f"character '\\u{ord(found):04x}'"
    )
    start, line = text.rfind("\n", 0, position) + 1, text.count("\n", 0, position) + 1
    shown = "".join(
        map(
            printable,
            re.findall(
                b"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xf7].{0,3}|.", data[start:].split(b"\n")[0]
            ),
        )
    )
    column = position - start + 1
    raise RefusedError(
        400,
        f"The request content was malformed:\nUnexpected {unexpected} at input index {position} "
        f"(line {line}, position {column}), expected {expected}:\n{shown}\n{' ' * (column - 1)}^\n",
        pretty=False,
    )


def printable(sequence: bytes) -> str:
    """One character of a line as spray-json shows it."""
    try:
        character = sequence.decode()
    except UnicodeError:
        return "\ufffd"
    return "?" if re.match(r"[\0-\x1f\x7f-\x9f]", character) else character


def pretty(value: Any, indent: int = 0) -> str:
    """JSON as spray-json prints it: members on lines of their own, arrays on one."""
    if isinstance(value, dict):
        inner = ",\n".join(
            f"{' ' * (indent + 2)}{json.dumps(name)}: {pretty(value[name], indent + 2)}"
            for name in sorted(value)
        )
        return "{\n" + inner + "\n" + " " * indent + "}"
    if isinstance(value, list):
        return "[" + ", ".join(pretty(member, indent) for member in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def result_as_http(result: Any) -> Reply:
    """`{statusCode, headers, body}` as in tests/recordings/responses.json; raises RefusedError."""
    invalid = RefusedError(400, "Response is not valid 'message/http'.")
    if not isinstance(result, dict) or not isinstance(result.get("headers", {}), dict):
        raise invalid
    body = result.get("body")
    code = result.get("statusCode", 204 if body in (None, "") else 200)
    if isinstance(code, bool) or not re.match(r"[1-5][0-9]{2}(\.0)?$", str(code)):
        raise invalid
    status = int(float(code))
    headers = [
        (name, text)
        for name in sorted(result.get("headers", {}))
        for text in flattened(result["headers"][name], invalid)
    ]
    if not all(re.fullmatch(TOKEN, name) for name, _ in headers):
        raise ConnectionResetError
    content_types = [text for name, text in headers if name.lower() == "content-type"]
    headers = [
        pair
        for pair in headers
        if pair[0].lower() not in DROPPED and not set("\r\n") & set(pair[1])
    ]
    if body is None or body == "":
        return status, headers, b""
    try:
        media = MediaType(
            content_types[0]
            if content_types
            else "text/html"
            if isinstance(body, str)
            else "application/json"
        )
    except ValueError:
        raise RefusedError(400, "Response did not specify a known content-type.") from None
    mismatch = RefusedError(400, "Response type in header did not match generated content type.")
    if not isinstance(body, str):
        if not media.is_json:
            raise mismatch
        data = pretty(body).encode()
    elif media.is_text and not (media.is_json and LOOKS_BASE64.match(body)):
        data = body.encode("utf-8", "replace")
    else:
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise mismatch from None
    if status in BODILESS:
        raise InternalError("There was an internal server error.")
    media.charset = "UTF-8" if media.open_charset else ""
    return status, [*headers, ("Content-Type", str(media))], data


def check_accepted(status: int, headers: Headers, body: bytes, accept: str) -> None:
    """Raises RefusedError for an answer of a type that the caller does not accept, as a real
    controller did on 2026-11-26; with none of the answer's headers, nor CORS's."""
    ranges = parse_accept_header(accept, MIMEAccept)
    kind = dict(headers).get("Content-Type", "").partition(";")[0]
    if body and status < 400 and "/" in accept and not ranges.best_match([kind]):
        words = "Resource representation is only available with these types:\n"
        raise RefusedError(406, words + kind, pretty=False)


def flattened(value: Any, invalid: RefusedError) -> list[str]:
    if isinstance(value, list):
        return [text for member in value for text in flattened(member, invalid)]
    if value is None or isinstance(value, dict):
        raise invalid
    return [value if isinstance(value, str) else json.dumps(value)]


def result_as(kind: str, field: str) -> Callable[[Any], Reply]:
    """The body of a result for the extensions .html, .svg, .text and .json."""

    def reply(result: Any) -> Reply:
        content = result.get("body", result.get(field)) if isinstance(result, dict) else result
        if field == "json":
            content = pretty(result) if isinstance(result, (dict, list)) else None
        elif field == "text" and content is not None:
            content = content if isinstance(content, str) else pretty(content)
        if not isinstance(content, str):
            raise RefusedError(
                *(
                    (404, "Response does not include requested property.")
                    if field == "text"
                    else (400, f"Response is not valid '{kind.partition(';')[0]}'.")
                )
            )
        return 200, [("Content-Type", kind)], content.encode()

    return reply


EXTENSIONS: dict[str, Callable[[Any], Reply]] = {
    ".http": result_as_http,
    ".json": result_as("application/json", "json"),
    ".html": result_as("text/html; charset=UTF-8", "html"),
    ".svg": result_as("image/svg+xml", "svg"),
    ".text": result_as("text/plain; charset=UTF-8", "text"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "container",
        metavar="CONTAINER_URL",
        help="where openwhisk.py listens, like http://127.0.0.1:8080",
    )
    parser.add_argument(
        "--port", type=int, default=3233, help="of this server (default: %(default)s)"
    )
    parser.add_argument(
        "--web",
        choices=("raw", "true"),
        default="raw",
        help="as of 'wsk action update' (default: %(default)s)",
    )
    parser.add_argument("--namespace", default="guest", help="(default: %(default)s)")
    parser.add_argument("--package", default="default", help="(default: %(default)s)")
    parser.add_argument(
        "--action", default="max-ocr", help="the action's name (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60,
        help="the action's time limit in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=1,
        help="how many activations at once the container gets (default: %(default)s)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=BLOCKING_SECONDS,
        help="for how many seconds a client waits for an activation (default: %(default)s)",
    )
    parser.add_argument(
        "--results", action="store_true", help="the action ACTION-results too, as RESULTS=1 deploys"
    )
    parser.add_argument(
        "--custom-options", action="store_true", help="as the annotation web-custom-options"
    )
    parser.add_argument("--secret", default="", help="as of 'wsk action update --web-secure'")
    parser.add_argument(
        "--param",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter that is bound to the action; may be repeated",
    )
    arguments = parser.parse_args()
    if not 0 < arguments.port < 65536:
        parser.error("--port must be from 1 to 65535.")
    if arguments.concurrency < 1:
        parser.error("--concurrency must be 1 or more.")
    try:
        action = WebAction(
            arguments.container,
            raw=arguments.web == "raw",
            namespace=arguments.namespace,
            package=arguments.package,
            action=arguments.action,
            timeout=arguments.timeout,
            concurrency=arguments.concurrency,
            wait=arguments.wait,
            custom_options=arguments.custom_options,
            secret=arguments.secret,
            parameters=dict(arguments.param),
            keeps_results=arguments.results,
        )
        server = make_server(
            "127.0.0.1", arguments.port, action, threaded=True, request_handler=Handler
        )
        action.init()
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(str(error))
    print(f"http://127.0.0.1:{arguments.port}{action.path}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
