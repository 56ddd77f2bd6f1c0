"""A WSGI app that starts an image's own server, and passes each request on to it.

For models that are no WSGI app, of any language. Knows nothing of OpenWhisk: openwhisk.py, where
OPENWHISK_UPSTREAM_PORT is set, serves it. Runs on Python 3.6 and newer, with any Werkzeug.
"""

import atexit
import contextlib
import http.client
import json
import os
import signal
import string
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import Any, Callable, Dict, Iterable, List, Tuple
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from werkzeug.datastructures import EnvironHeaders

MOST = 1 << 26  # bytes of an answer, which is whole in memory

# https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1; a body has a length, as it is whole.
HOP_BY_HOP = set(
    "connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te "
    "trailer transfer-encoding upgrade".split()
)


class ServerError(Exception):
    """There is no answer; the text is a sentence for the caller."""


class FinalResponse(http.client.HTTPResponse):
    """HTTPResponse skips 100 alone of the statuses that come before the final one."""

    def begin(self) -> None:
        super().begin()
        while 100 < self.status < 200:
            self.headers: Any = None  # so that it reads the next one
            super().begin()


class Forward:
    """The server of a command, which listens on a port, and its WSGI app."""

    def __init__(self, command: List[str], port: int, ready_path: str = "") -> None:
        """The ready path is answered with 200 when the server is ready; without it the server is
        ready when it listens."""
        self.command, self.port, self.ready_path = command, port, ready_path
        self.environment = {**os.environ, "PORT": str(port)}
        self.process: Any = None
        self.lock = threading.Lock()
        self.started: Any = None  # a Future, of the last start
        self.state = ""  # of a server that is not ready: a sentence

    # ---- Its process ----

    def start(self) -> None:
        """Returns when the server is ready, which it may be already. Callers who wait for the same
        start share it, and its failure: raises ServerError."""
        with self.lock:
            is_mine = not self.started or (self.started.done() and self.has_ended())
            if is_mine:
                self.started = Future()
            started = self.started
        if is_mine:
            try:
                self.start_anew()
                started.set_result(None)
            except Exception as error:
                started.set_exception(error)
        started.result()

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def start_anew(self) -> None:
        if self.process:
            self.log_end()
            self.signal(signal.SIGKILL)  # what it has left behind
        else:
            atexit.register(self.stop)
        try:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # with a process group of its own
            )
        except (OSError, IndexError) as error:
            log("The server's command can't be run: %s." % error)
            raise ServerError("The model's server can't be started; the log says why.") from None
        while not self.is_ready():
            if self.has_ended():
                self.log_end()
                raise ServerError("The model's server ended before it was ready; see the log.")
            time.sleep(0.02)

    def is_ready(self) -> bool:
        state = "The model's server does not listen on port %d." % self.port
        connection = http.client.HTTPConnection("localhost", self.port, timeout=5)
        failures = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(connection), failures:
            connection.connect()
            state = ""
            if self.ready_path:
                state = "The model's server does not answer GET %s." % self.ready_path
                connection.request("GET", self.ready_path)
                status = connection.getresponse().status
                state = (
                    "The model's server answers GET %s with %d." % (self.ready_path, status)
                    if status != 200
                    else ""
                )
        self.state = state  # at once, as another thread may tell it
        return not state

    def log_end(self) -> None:
        status = self.process.returncode
        how = "was ended by signal %d" % -status if status < 0 else "ended with status %d" % status
        log("The model's server %s." % how)

    def signal(self, number: int) -> None:
        """To all processes of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """At the end of this process."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)  # for what it has begun
        self.signal(signal.SIGKILL)

    # ---- A request ----

    def __call__(
        self, environ: Dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        try:
            self.start()
            status, headers, body = self.exchange(environ)
        except ServerError as error:
            status, headers = "502 Bad Gateway", [("Content-Type", "application/json")]
            body = json.dumps({"error": str(error)}).encode()
        start_response(status, headers)
        return [body]

    def exchange(self, environ: Dict[str, Any]) -> Tuple[str, List[Tuple[str, str]], bytes]:
        """Status, headers and body of the server's answer, by a connection of its own. Raises
        ServerError."""
        connection = http.client.HTTPConnection("localhost", self.port)
        connection.response_class = FinalResponse
        try:
            with contextlib.closing(connection):
                send(connection, environ)
                response = connection.getresponse()
                body = read(response)
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(self.failure(error)) from None
        headers = [
            (name, self.location(text, environ) if name.lower() == "location" else text)
            for name, text in response.getheaders()
            if name.lower() not in HOP_BY_HOP
        ]
        return "%d %s" % (response.status, response.reason), headers, body

    def failure(self, error: Exception) -> str:
        """Why there is no answer: the log has it all, the caller a sentence."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # it may be about to end
            return "The model's server has ended; the log says how."
        log("The model's server gave no valid answer: %s: %s" % (type(error).__name__, error))
        return "The model's server gave no valid answer; the log says why."

    def location(self, text: str, environ: Dict[str, Any]) -> str:
        """The address of a redirect, below the base path if it is one of the server's own."""
        base, parts = base_path(environ), urlsplit(text)
        own = {"%s:%d" % (host, self.port) for host in ("localhost", "127.0.0.1", "0.0.0.0")}
        is_own = parts.netloc in {environ["HTTP_HOST"], *own} or not (parts.scheme or parts.netloc)
        if not is_own or not parts.path.startswith("/"):
            return text
        path = parts.path.replace("%2e", ".").replace("%2E", ".").replace("\\", "/")
        path = "/" + urljoin("/", "/" + path.lstrip("/")).lstrip("/")  # no dots lead off the base
        path = path if (path + "/").startswith(base + "/") else base + path
        scheme, host = ("", "") if parts.netloc in own else parts[:2]
        return urlunsplit((scheme, host, path, *parts[3:]))


def base_path(environ: Dict[str, Any]) -> str:
    """As it stands in URLs."""
    return quote(environ["SCRIPT_NAME"], "/!$&'()*+,;=:@~", "latin-1")


def send(connection: http.client.HTTPConnection, environ: Dict[str, Any]) -> None:
    """The request as it came, but for the headers of its connection, and with the base path."""
    base = base_path(environ)
    target = quote(environ["REQUEST_URI"][len(base) :], string.punctuation, "latin-1")
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    connection.putrequest(
        environ["REQUEST_METHOD"], target, skip_host=True, skip_accept_encoding=True
    )
    for name, text in EnvironHeaders(environ):
        if name.lower() not in HOP_BY_HOP and name != "X-Forwarded-Prefix":
            connection.putheader(name, text.encode("latin-1"))
    if base:
        connection.putheader("X-Forwarded-Prefix", base)
    connection.putheader("Connection", "close")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before the end
        connection.endheaders(body)


def read(response: http.client.HTTPResponse) -> bytes:
    """Its body. Raises HTTPException if it breaks off, or is too long."""
    if response.status in (204, 304):  # whatever follows
        return b""
    pieces = []
    for piece in iter(lambda: response.read(1 << 18), b""):
        pieces.append(piece)
        if sum(map(len, pieces)) > MOST:
            raise http.client.HTTPException("it has over %d bytes" % MOST)
    if response.length:
        raise http.client.HTTPException("it lacks %d bytes" % response.length)
    return b"".join(pieces)


def log(sentence: str) -> None:
    print("forward.py: " + sentence, file=sys.stderr, flush=True)
