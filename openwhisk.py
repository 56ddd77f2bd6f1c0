"""Serves a model's HTTP API as an Apache OpenWhisk web action: POST /init, POST /run.

OpenWhisk posts a caller's request to /run as a message. That becomes a WSGI environ, the model's
own app answers, and the answer becomes the result that is the caller's response. The .json files
named below (tests/recordings) are what a real OpenWhisk did. Runs on Python 3.6 and newer.
"""

import base64
import contextlib
import ctypes
import faulthandler
import gzip
import importlib.machinery
import io
import json
import os
import queue
import re
import signal
import sys
import threading
import time
import traceback
import types
from concurrent.futures import Future
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Tuple
from urllib.parse import quote, unquote_to_bytes, urlencode

import flask
import werkzeug.serving
from werkzeug.datastructures import Headers
from werkzeug.http import dump_options_header, parse_accept_header, parse_options_header

try:
    from werkzeug.middleware.shared_data import SharedDataMiddleware
except ImportError:  # before Werkzeug 0.15
    from werkzeug.wsgi import SharedDataMiddleware  # type: ignore

__version__ = "2.0.0"

Record = Dict[str, Any]
WSGIApp = Callable[..., Iterable[bytes]]


# ---- Settings ----

SETTINGS = {  # environment variable: default, what it has to match, an example
    "OPENWHISK_APP": ("", r"[\w.]+:\w+(\(\))?", "app:app or app:create_app()"),
    "OPENWHISK_PREDICT_PATH": ("/model/predict", r"/[^?#\s]*", "/model/predict"),
    "OPENWHISK_BASE_PATH": ("", r"(/[^/?#%\s]+)*/?", "/models/ocr"),
    "OPENWHISK_RESULT_LIMIT": ("1048576", r"[0-9]+", "1048576"),
    "OPENWHISK_LISTEN_PORT": ("8080", r"[0-9]+", "8080"),
    "OPENWHISK_UPSTREAM_PORT": ("", r"[0-9]+", "8000"),
    "OPENWHISK_READY_PATH": ("", r"/[!-~]*", "/health"),
}
BOUND = ("OPENWHISK_PREDICT_PATH", "OPENWHISK_BASE_PATH", "OPENWHISK_RESULT_LIMIT")


def read_settings(source: Any, names: Iterable[str]) -> Dict[str, str]:
    """Takes them out of the source; an empty one is none. Exits with a sentence."""
    found = {name: str(source.pop(name)) for name in names if source.get(name, "") != ""}
    for name, text in found.items():
        if not re.match(SETTINGS[name][1] + r"\Z", text):
            sys.exit("%s must be like %s, not %r." % (name, SETTINGS[name][2], text))
    return found


def base_path(settings: Dict[str, str]) -> str:
    """Where the caller sees the model, empty for the root of a host; by default at the web action's
    URL, which is /api/v1/web/guest/default/ocr for /guest/ocr."""
    if settings["OPENWHISK_BASE_PATH"]:
        return settings["OPENWHISK_BASE_PATH"].rstrip("/")
    action = os.environ.get("__OW_ACTION_NAME", "/guest/action")
    _, namespace, *package, name = action.split("/")
    return "/".join(["/api/v1/web", namespace, *(package or ["default"]), name])


# ---- Media types: text, or base64 ----

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
TEXT = {  # recorded in text_media_types.json; all else is base64
    "application/" + name
    for name in """
    atom+xml base64 javascript json json-patch+json merge-patch+json problem+json problem+xml
    rss+xml soap+xml vnd.api+json vnd.google-earth.kml+xml x-latex x-vrml x-www-form-urlencoded
    xhtml+xml xml xml-dtd
    """.split()
} | {
    "text/" + name
    for name in """
    asp cache-manifest calendar css csv event-stream html markdown mcf plain richtext
    tab-separated-values uri-list vnd.wap.wml vnd.wap.wmlscript x-asm x-c x-component x-h
    x-java-source x-pascal x-script x-scriptcsh x-scriptelisp x-scriptksh x-scriptlisp x-scriptperl
    x-scriptperl-module x-scriptphyton x-scriptrexx x-scriptscheme x-scriptsh x-scripttcl
    x-scripttcsh x-scriptzsh x-server-parsed-html x-setext x-sgml x-speech x-uuencode x-vcalendar
    x-vcard xml
    """.split()
}
# A charset makes other types text, but none that begins like these, which Pekko HTTP knows.
BINARY = ("audio/", "font/", "image/", "message/", "multipart/", "video/") + tuple(
    "application/" + name
    for name in """
    msword octet-stream pdf vnd.google-earth.kmz vnd.ms- vnd.oasis.opendocument.
    vnd.openxmlformats- x-gzip x-tar zip
    """.split()
)


class MediaType(NamedTuple):
    """A Content-Type as the controller understands it."""

    kind: str  # like text/html, in lower case; empty if it is absent or malformed
    parameters: Dict[str, str]  # their names are in lower case

    @property
    def is_json(self) -> bool:
        """JSON, of which the controller takes base64 as well as text."""
        is_named = self.kind == JSON or self.kind.endswith("+json")
        return is_named and set(self.parameters) <= {"charset"}

    @property
    def is_text(self) -> bool:
        return self.kind in TEXT or (
            "charset" in self.parameters and not self.kind.startswith(BINARY)
        )

    @property
    def for_base64(self) -> str:
        """The Content-Type with which base64 is taken; empty if there is none."""
        if "javascript" in self.kind:  # under this name it is no text
            return "text/javascript"
        if self.kind in TEXT and not self.is_json:
            return ""
        others = {name: text for name, text in self.parameters.items() if name != "charset"}
        return dump_options_header(self.kind or "application/octet-stream", others)


def media_type(content_type: str) -> MediaType:
    kind, parameters = parse_options_header(content_type)
    kind = kind.lower() if "/" in kind else ""
    return MediaType(kind, {name.lower(): text for name, text in parameters.items() if kind})


# ---- Fast: what takes longest for a body of 1 MB ----

try:  # OpenSSL, which Python's ssl brings along, decodes 1 MB in 0.6 ms, Python in 1.7 to 3.1
    import _ssl

    EVP_DecodeBlock: Any = ctypes.PyDLL(_ssl.__file__).EVP_DecodeBlock
except (ImportError, AttributeError, OSError):
    EVP_DecodeBlock = None
LONG = 65536  # bytes, from which on it pays
PLACEHOLDER = os.urandom(16).hex()


def decode_base64(text: bytes) -> bytes:
    if not EVP_DecodeBlock or len(text) < LONG:
        return base64.b64decode(text)
    buffer = ctypes.create_string_buffer(len(text) // 4 * 3)
    if EVP_DecodeBlock(buffer, text, len(text)) != len(buffer):
        raise ValueError("__ow_body is not base64")
    return ctypes.string_at(buffer, len(buffer) - text.count(b"=", -2))


def parse(data: bytes) -> Any:
    """The JSON of a message. A long `__ow_body` of --web raw is cut out before, and comes as bytes:
    0.03 ms instead of 0.8 for 1 MB."""
    begin = data.find(b'"', data.find(b'"__ow_body":') + len('"__ow_body":')) + 1
    body = data[begin : data.find(b'"', begin)]
    if len(body) > LONG and b"\\" not in body:
        message = json.loads(data[:begin] + PLACEHOLDER.encode() + data[begin + len(body) :])
        value = message["value"]
        if "__ow_query" in value and value["__ow_body"] == PLACEHOLDER:
            value["__ow_body"] = body
            return message
    return json.loads(data)


# ---- The message becomes a WSGI environ ----


def rebuilt(value: Record, media: MediaType) -> Tuple[str, str]:
    """Query and body, of which --web true has made parameters."""
    parameters = {
        name: value[name] for name in value if not name.startswith("__ow_") and name not in BOUND
    }
    if "__ow_body" in value:
        body = value["__ow_body"]
        return urlencode(parameters), json.dumps(body) if media.is_json else body
    if value["__ow_method"] in ("get", "head") or not (media.is_json or media.kind == FORM):
        return urlencode(parameters), ""
    return "", json.dumps(parameters) if media.is_json else urlencode(parameters)


def query_and_body(value: Record) -> Tuple[str, bytes]:
    """As the caller sent them."""
    media = media_type(value["__ow_headers"].get("content-type", ""))
    if "__ow_query" in value:  # --web raw
        query, body = value["__ow_query"], value.pop("__ow_body", "")
        is_base64 = not media.is_text or (media.is_json and media.kind == JSON)
    else:
        query, body = rebuilt(value, media)
        is_base64 = not media.is_text and not media.is_json
    data = body if isinstance(body, bytes) else body.encode("utf-8", "replace")
    return query, decode_base64(data) if is_base64 else data


def native(text: str) -> str:
    """As https://peps.python.org/pep-3333/#unicode-issues has it."""
    return text.encode("utf-8", "replace").decode("latin-1")


def header_variables(headers: Dict[str, str]) -> Record:
    """Without Accept-Encoding, as the proxy compresses."""
    return {
        "HTTP_" + name.upper().replace("-", "_"): native(text)
        for name, text in headers.items()
        if name not in ("accept-encoding", "content-type") and "_" not in name  # x_a is not x-a
    }


def address_variables(headers: Dict[str, str]) -> Record:
    https = headers.get("x-forwarded-proto", "").split(",")[0].strip().lower() == "https"
    host = headers.get("x-forwarded-host", "").split(",")[0].strip()
    host = native(host or headers.get("host") or "localhost")
    name, _, port = host.rpartition(":")
    if not port.isdecimal():
        name, port = host, "443" if https else "80"
    return {
        "HTTP_HOST": host,
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        # By the platform's proxy; those before it are hearsay.
        "REMOTE_ADDR": native(headers.get("x-forwarded-for", "").rpartition(",")[2].strip()),
        "wsgi.url_scheme": "https" if https else "http",
    }


def environ_of(value: Record, settings: Record) -> Record:
    """The WSGI environ of the `value` of a web action's POST /run (requests.json).

    HEAD is asked as GET: the controller leaves out the body, and tells its length.
    """
    headers, method = value["__ow_headers"], value["__ow_method"].upper()
    path = value["__ow_path"] or settings["OPENWHISK_PREDICT_PATH"]
    base, (query, body) = base_path(settings), query_and_body(value)
    environ = {
        **header_variables(headers),
        **address_variables(headers),
        "REQUEST_METHOD": "GET" if method == "HEAD" else method,
        "SCRIPT_NAME": native(base),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": native(query),
        "REQUEST_URI": native(
            quote(base, "/!$&'()*+,;=:@~") + path + ("?" + query if query else "")
        ),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    has_body = body or method in ("POST", "PUT", "PATCH")
    optional = {
        "CONTENT_LENGTH": str(len(body)) if has_body else None,
        "CONTENT_TYPE": headers.get("content-type"),
        "REMOTE_USER": value.get("__ow_user"),
    }
    return {**environ, **{name: native(text) for name, text in optional.items() if text}}


# ---- The call ----


class Response(NamedTuple):
    status: int
    headers: Headers
    body: bytes


# Name and value: https://www.rfc-editor.org/rfc/rfc9110#name-fields. For another name a controller
# closes the connection; one of 2024 takes what follows a line end for a header.
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\n[^\0\r\n]*\Z")


def call(app: WSGIApp, environ: Record, most: int = sys.maxsize) -> Response:
    """The app's response: https://peps.python.org/pep-3333/. A body of more than `most` bytes is
    not read to its end. Raises what the app raises."""
    started: List[Any] = []
    chunks: List[bytes] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info and chunks:
            raise exc_info[1]
        started[:] = status, headers
        return chunks.append

    iterable = app(environ, start_response)
    size = 0
    try:
        for chunk in iterable:
            chunks.append(chunk)
            size += len(chunk)
            if size > most:
                break
    finally:
        if hasattr(iterable, "close"):
            iterable.close()
    status, headers = started
    allowed = [(name, text) for name, text in headers if HEADER.match(name + "\n" + text)]
    return Response(int(status.split()[0]), Headers(allowed), b"".join(chunks))


# ---- The response becomes a result ----

SET_BY_CONTROLLER = {
    "access-control-allow-origin",
    "connection",
    "content-length",
    "date",
    "server",
    "transfer-encoding",
}
TOO_LARGE = (
    "The answer of %d bytes is too large for a result, of at most %d: ask for less or for gzip "
    "(curl --compressed), or raise the cluster's limit and OPENWHISK_RESULT_LIMIT."
)
MOST = 32  # times the limit: more of an answer is neither read nor packed


def failure(status: int, sentence: str) -> Record:
    """What the caller sees as this status, and OpenWhisk as a failure."""
    body = json.dumps({"error": sentence})
    return {"error": {"statusCode": status, "headers": {"Content-Type": JSON}, "body": body}}


def encode(headers: Headers, body: bytes) -> str:
    """Text or base64, as the controller expects of the Content-Type, which may change."""
    media = media_type(headers.get("Content-Type", ""))
    if media.is_text and "Content-Encoding" not in headers:
        with contextlib.suppress(LookupError, UnicodeError):  # it is not what its type says
            text = body.decode(media.parameters.get("charset") or "utf-8")
            # The controller would take JSON like 1234 for base64, and decode it.
            if not media.is_json or text.lstrip()[:1] in ("{", "[", '"'):
                headers["Content-Type"] = dump_options_header(*media)
                return text
            body = text.encode()  # without a charset
    headers["Content-Type"] = media.for_base64 or "application/octet-stream"
    return base64.b64encode(body).decode()


def result_of(response: Response) -> Record:
    """The result of which the controller makes the response (responses.json)."""
    headers = Headers(
        [pair for pair in response.headers if pair[0].lower() not in SET_BY_CONTROLLER]
    )
    encoding = headers.get("Content-Encoding", "")
    if encoding and not media_type(headers.get("Content-Type", "")).for_base64:
        return failure(500, "OpenWhisk carries no text in the Content-Encoding %s." % encoding)
    content = encode(headers, b"" if response.status in (204, 205, 304) else response.body)
    fields = {name.lower(): (name, headers.getlist(name)) for name, _ in headers}
    lists = {name: texts if texts[1:] else texts[0] for name, texts in fields.values()}
    result = {"statusCode": response.status, "headers": lists, "body": content}
    return {"error": result} if response.status >= 500 else result


def plain_result(response: Response) -> Record:
    """That of an invocation without HTTP: the answer's JSON object, or its error."""
    try:
        answer = json.loads(response.body.decode())
    except ValueError:
        answer = response.body.decode("utf-8", "replace")
    if response.status >= 400:
        return {"error": answer}
    return answer if isinstance(answer, dict) else result_of(response)


def packed(response: Response) -> Response:
    """With gzip, if the controller can carry it then."""
    headers, body = Headers(response.headers), response.body
    carried = media_type(headers.get("Content-Type", "")).for_base64
    if not carried or "Content-Encoding" in headers or "Content-Range" in headers:
        return response
    headers["Content-Encoding"] = "gzip"
    headers.add("Vary", "Accept-Encoding")
    return Response(response.status, headers, gzip.compress(body, 6))


def dump(result: Record) -> bytes:
    """The result's JSON. Raises ValueError for NaN, which is none."""
    text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")  # of a lone surrogate, too


def dump_within(limit: int, response: Response) -> bytes:
    """The JSON of its result; empty if it is over the limit."""
    if len(response.body) > limit:  # before it is decoded or encoded, which takes memory
        return b""
    data = dump(result_of(response))
    return data if len(data) <= limit else b""


def fit(response: Response, accept_encoding: str, limit: int) -> bytes:
    """The JSON of its result, packed if it is over the limit otherwise and the caller takes gzip;
    else of a failure."""
    data, size = dump_within(limit, response), len(response.body)
    accepted = parse_accept_header(accept_encoding[:1000])  # 8000 spaces would take seconds
    if not data and size <= MOST * limit and accepted["gzip"]:
        data = dump_within(limit, packed(response))
    return data or dump(failure(500, TOO_LARGE % (size, limit)))


# ---- The model ----

CURES = "name its app (OPENWHISK_APP=module:attribute) or let its own server run (FORWARD=1)"
TOO_SLOW = (
    "The model did not load within the action's time limit, which 'wsk action update --timeout' "
    "raises. If its script never calls app.run(), %s. The log says where it is."
) % CURES


STOPPING: List[int] = []  # the signals that have come


class Model:
    """The model's app: its script runs it, or it has a name, or it is a server of its own."""

    def __init__(self) -> None:
        self.app: Any = None
        self.server: Any = None  # that of forward.py
        self.error = ""
        self.settled = threading.Event()  # it is loaded, or has failed
        self.calls: Any = queue.Queue()
        self.idle = threading.Semaphore(0)  # threads that wait for a call

    def load(self, settings: Record) -> None:
        """In the main thread, as TensorFlow 1 needs it; does not return."""
        werkzeug.run_simple = werkzeug.serving.run_simple = self.run_simple
        try:
            if settings["OPENWHISK_UPSTREAM_PORT"]:
                from forward import Forward  # which lies beside this file

                self.server = Forward(
                    sys.argv[1:],
                    int(settings["OPENWHISK_UPSTREAM_PORT"]),
                    settings["OPENWHISK_READY_PATH"],
                )
                self.server.start()
                self.run_simple("", 0, self.server, threaded=True)
            elif settings["OPENWHISK_APP"]:
                self.run_simple("", 0, app_of(settings["OPENWHISK_APP"]), threaded=True)
            else:
                run_script()
                raise RuntimeError("the script ended without app.run(); " + CURES)
        except BaseException as error:
            if not STOPPING:  # else the model may have made something of SystemExit
                traceback.print_exc()
            self.error = "The model failed to load: %s: %s" % (type(error).__name__, error)
            self.settled.set()
        while not STOPPING:  # for /init, or for other threads
            time.sleep(1)

    def run_simple(
        self, hostname: str, port: int, application: WSGIApp, *_: Any, **options: Any
    ) -> None:
        """Stands in for Werkzeug's, and does not return either: the first app is the model's, in
        whichever thread; no debugger, no reloader."""
        calls: Any = queue.Queue()
        if options.get("static_files"):
            application = SharedDataMiddleware(application, options["static_files"])
        if not self.app:
            self.app = application
            if not options.get("threaded"):
                self.calls, self.idle = calls, threading.Semaphore(sys.maxsize)  # no pool
            self.settled.set()
        else:
            print("A second app is not served; see OPENWHISK_APP.", file=sys.stderr, flush=True)
        self.take(calls)
        sys.exit()

    def take(self, calls: Any) -> None:
        while not STOPPING:
            with contextlib.suppress(queue.Empty):
                answer(*calls.get(timeout=1))
                self.idle.release()

    def respond(self, environ: Record, most: int) -> Response:
        """Calls the app outside this thread, which is the proxy's request's: in one of a pool, or
        in that which ran the app with threaded=False."""
        future: Future[Response] = Future()
        if not self.idle.acquire(blocking=False):
            threading.Thread(target=self.take, args=(self.calls,), daemon=True).start()
        self.calls.put((future, self.app, environ, most))
        return future.result()

    def wait(self, deadline: Any) -> str:
        """Until a second before the deadline (ms since 1970); a sentence if it is not loaded."""
        if self.settled.wait(int(deadline) / 1000 - 1 - time.time() if deadline else None):
            return "" if self.app else self.error
        faulthandler.dump_traceback(2)
        return self.server.state if self.server else TOO_SLOW


def answer(future: Any, app: WSGIApp, environ: Record, most: int) -> None:
    try:
        future.set_result(call(app, environ, most))
    except BaseException as error:  # sys.exit(), asyncio's CancelledError
        future.set_exception(error)


def run_script() -> None:
    """As Python does, until it and its threads have ended: app.py, or that of the arguments."""
    sys.argv[:] = sys.argv[1:] or ["app.py"]
    path = os.path.abspath(sys.argv[0])
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    main: Any = types.ModuleType("__main__")
    main.__file__, main.__loader__ = path, loader
    sys.modules["__main__"] = main  # where pickle and multiprocessing look
    exec(loader.source_to_code(loader.get_data(path), path), main.__dict__)
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.main_thread():
            thread.join()


def app_of(name: str) -> Any:
    """That of module:attribute, or what module:factory() returns, as for gunicorn."""
    sys.path[0] = os.getcwd()
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute.replace("()", ""))
    return found() if attribute.endswith("()") else found


# ---- An activation ----

SENTINEL = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"  # ends an activation's log on each stream


def export(variables: Record) -> None:
    """Into the environment, whatever its encoding; a caller's X-Request-ID is among them."""
    for name, text in variables.items():
        os.environb[name.encode()] = str(text).replace("\0", "").encode("utf-8", "replace")


def end_log() -> None:
    for stream in (sys.stdout, sys.stderr):
        print(SENTINEL, file=stream, flush=True)


# What an invocation without HTTP lacks, which has only parameters.
PLAIN = {"__ow_method": "post", "__ow_path": "", "__ow_headers": {"content-type": JSON}}


def activate(model: Model, settings: Record, message: Record) -> bytes:
    """message -> value -> environ -> response -> result, as JSON."""
    value = message.pop("value")
    export({"__OW_" + name.upper(): text for name, text in message.items()})
    is_plain = "__ow_method" not in value
    if is_plain or "__ow_query" in value:  # under --web true they may be a caller's
        settings = {**settings, **read_settings(value, BOUND)}
    if is_plain:
        value = {**value, **PLAIN}
    limit = int(settings["OPENWHISK_RESULT_LIMIT"]) or sys.maxsize
    response = model.respond(environ_of(value, settings), MOST * limit)
    if is_plain:
        return dump(plain_result(response))
    if wants_root(value, response):
        front = environ_of({**value, "__ow_path": "/"}, settings)
        response = Response(302, Headers([("Location", front["REQUEST_URI"])]), b"")
        if not front["SCRIPT_NAME"]:  # that would lead to where the browser is
            response = model.respond(front, MOST * limit)
    return fit(response, value["__ow_headers"].get("accept-encoding", ""), limit)


def wants_root(value: Record, response: Response) -> bool:
    """Whether a browser at the bare URL has no use for the answer: 404, 405, or a page, whose links
    break there. At the root is Swagger UI."""
    if value["__ow_path"] or "text/html" not in value["__ow_headers"].get("accept", ""):
        return False
    kind = media_type(response.headers.get("Content-Type", "")).kind
    is_useless = (response.status, kind) == (200, "text/html") or response.status in (404, 405)
    return is_useless and value["__ow_method"] in ("get", "head")


# ---- The server ----


class Handler(werkzeug.serving.WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """No access log: its lines would come after the sentinels."""


def make_proxy(model: Model, settings: Record) -> flask.Flask:
    """POST /init and POST /run: OpenWhisk's docs/actions-new.md."""
    proxy = flask.Flask(__name__, static_folder=None)

    @proxy.route("/init", methods=["POST"])
    def init() -> Any:
        env = parse(flask.request.get_data(cache=False))["value"].get("env", {})
        error = model.wait(env.get("__OW_DEADLINE"))
        export(env)
        if not error:
            return flask.jsonify(ok=True)
        end_log()
        return flask.jsonify(error=error), 502

    @proxy.route("/run", methods=["POST"])
    def run() -> Any:
        try:
            stream = flask.request.environ["wsgi.input"]
            data = activate(model, settings, parse(stream.read(flask.request.content_length)))
        except BaseException:  # whatever the app raises
            traceback.print_exc()  # by no logger, which the model may have configured
            data = dump(failure(500, "The request failed; the log says why."))
        end_log()
        return flask.Response(data, content_type=JSON)

    return proxy


STOPS = (signal.SIGTERM, signal.SIGINT)


def stop(number: int, _: Any) -> None:
    STOPPING.append(number)
    sys.exit()


def handle_stops(handler: Any) -> None:
    for number in STOPS:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def main() -> None:
    """Listens at once, and loads the model meanwhile."""
    settings = {name: default for name, (default, _, _) in SETTINGS.items()}
    settings.update(read_settings(os.environ, SETTINGS))
    model = Model()
    port, proxy = int(settings["OPENWHISK_LISTEN_PORT"]), make_proxy(model, settings)
    server = werkzeug.serving.make_server(
        "0.0.0.0", port, proxy, threaded=True, request_handler=Handler
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handle_stops(stop)
    if hasattr(os, "register_at_fork"):  # they end what the model forks, whenever they come
        os.register_at_fork(
            before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, STOPS),
            after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS),
            after_in_child=lambda: handle_stops(signal.SIG_DFL),
        )
    model.load(settings)


if __name__ == "__main__":
    main()
