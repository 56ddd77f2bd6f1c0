"""A WSGI app that starts the server which an image would have run, and forwards requests to it.

    ENV WSGI_APP=forward:app UPSTREAM_PORT=8000
    CMD ["python", "openwhisk.py", "uvicorn", "main:app", "--port", "8000"]

For models that are no WSGI app: FastAPI's, MLflow's, those of another language. The arguments of
the process are the server's command, UPSTREAM_PORT is where it listens. Knows nothing of OpenWhisk:
any WSGI server can serve it. Runs on Python 3.6 and newer, with the standard library.

`Forward.__call__`, at the end, is where to begin.
"""

import atexit
import contextlib
import http.client
import json
import os
import queue
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple
from urllib.parse import quote, unquote, urlsplit

Environ = Dict[str, Any]
Headers = List[Tuple[str, str]]


class StartError(Exception):
    """The server does not start; the text is a sentence for the log."""


# ---- Settings ----


def number(name: str, default: str, most: int) -> int:
    """An environment variable; raises ValueError with a sentence unless it is from 1 to most."""
    text = os.environ.get(name) or default
    if not text.isdecimal() or not 0 < int(text) <= most:
        raise ValueError("%s must be a number from 1 to %d, not %r" % (name, most, text))
    return int(text)


def read_settings() -> Tuple[List[str], int, int]:
    """The server's command, its port, and for how many seconds it may be silent.

    Raises ValueError with a sentence.
    """
    if not sys.argv[1:]:
        raise ValueError("forward.py needs the server's command as the arguments of the process")
    port = number("UPSTREAM_PORT", "", 65535)
    if port == number("PORT", "8080", 65535):
        raise ValueError("UPSTREAM_PORT must not be PORT, %d: the server needs its own" % port)
    return sys.argv[1:], port, number("UPSTREAM_TIMEOUT", "240", 86400)


# ---- The server's process ----

# A variable that all have which the command starts, with a text of that one start: tini, dumb-init
# and supervisord make groups of their own.
MARK = "FORWARD_SERVER"
STOP_SECONDS = 5  # for which the server may go on after SIGTERM
END_SECONDS = 1  # for which a process may take to end after it has closed its connections
LOOK_SECONDS = 0.02  # between two looks at a server that does not listen yet


class Output:
    """One stream of what the server prints; on the process's own, before the answer is at its end.

    Through a pipe and not by itself, so that `copy` knows when all of it is there.
    """

    def __init__(self, pipe: Any, name: str) -> None:
        self.pipe, self.name, self.lock = pipe, name, threading.Lock()
        os.set_blocking(pipe.fileno(), False)
        threading.Thread(target=self.follow, daemon=True).start()

    def copy(self) -> bool:
        """What is there by now; returns whether more can come."""
        with self.lock:
            while not self.pipe.closed:
                try:
                    data = os.read(self.pipe.fileno(), 65536)
                except BlockingIOError:
                    return True
                if not data:
                    self.pipe.close()
                    break
                with contextlib.suppress(Exception):  # a stream that the publisher has closed
                    stream = getattr(sys, self.name)
                    stream.buffer.write(data)
                    stream.buffer.flush()
        return False

    def follow(self) -> None:
        readable = select.poll()
        readable.register(self.pipe, select.POLLIN)
        while self.copy():
            readable.poll()


class Server:
    """The command's process, which is started anew when it has ended."""

    def __init__(self, command: List[str], port: int, timeout: int) -> None:
        self.command, self.port, self.timeout = command, port, timeout
        self.lock = threading.Lock()
        self.connections = Connections(port, timeout)
        self.outputs: List[Output] = []
        self.process: Any = None
        self.end_is_told = False
        atexit.register(self.stop)
        self.ensure()

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the server, which is started if it has ended."""
        self.ensure()
        process, connection = self.process, self.connections.take()
        try:
            if not connection.sock:
                connection.connect()
        except ConnectionRefusedError:  # it is about to end
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:  # it outlives the server that it has started
                self.tell_end("%s no longer listens, and is killed" % self.name())
                kill(process)
            self.ensure()
            connection.connect()
        return connection

    def ensure(self) -> None:
        """Returns when the server listens; raises StartError if it does not, OSError if the
        command can't be run."""
        with self.lock:
            if self.process and self.process.poll() is None:
                return
            if self.process:
                if not self.end_is_told:
                    self.tell_end(self.end())
                kill(self.process)
            self.start()

    def start(self) -> None:
        log("Starting %s, which is to listen on port %d." % (self.name(), self.port))
        self.end_is_told = False
        mark = os.urandom(8).hex()
        process: Any = subprocess.Popen(
            self.command,
            env={**os.environ, "PORT": str(self.port), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # a group of its own
        )
        process.mark = ("%s=%s" % (MARK, mark)).encode()
        self.process = process
        self.outputs = [
            Output(self.process.stdout, "stdout"),
            Output(self.process.stderr, "stderr"),
        ]
        self.wait_until_it_listens()

    def wait_until_it_listens(self) -> None:
        deadline = time.time() + self.timeout
        while not self.connections.is_listening():
            if self.process.poll() is not None:
                raise StartError("%s before it listened on port %d" % (self.end(), self.port))
            if time.time() > deadline:
                kill(self.process)
                sentence = "%s did not listen on port %d for %d s"
                raise StartError(sentence % (self.name(), self.port, self.timeout))
            time.sleep(LOOK_SECONDS)

    def name(self) -> str:
        return " ".join(map(shlex.quote, self.command))

    def end(self) -> str:
        """How the process has ended."""
        status = self.process.returncode
        how = "ended with exit status %d" % status
        if status < 0:
            names = {number.value: number.name for number in signal.Signals}
            how = "was ended by " + names.get(-status, "signal %d" % -status)
        return "%s %s" % (self.name(), how)

    def tell_end(self, sentence: str) -> None:
        log(sentence + ".")
        self.end_is_told = True

    def failed(self, error: Exception) -> str:
        """Logs why there is no answer; returns a sentence for the caller."""
        if isinstance(error, StartError):
            self.tell_end(str(error))
            return "The model's server does not start; the log says why."
        if isinstance(error, socket.timeout):
            sentence = "%s did not answer for %d s, and is killed"
            self.tell_end(sentence % (self.name(), self.timeout))
            kill(self.process)
            return "The model's server did not answer in time."
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            log("%s gave no answer: %s." % (self.name(), error))
            return "The model's server closed the connection without an answer."
        self.copy()
        self.tell_end(self.end())
        return "The model's server has ended; the log says how."

    def copy(self) -> None:
        for output in self.outputs:
            output.copy()

    def stop(self) -> None:
        """At the end of this process: SIGTERM, and SIGKILL to what is left after some seconds."""
        if not self.process:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        deadline = time.time() + STOP_SECONDS
        while belonging_to(self.process) and time.time() < deadline:
            time.sleep(LOOK_SECONDS)
        self.copy()
        kill(self.process)


def belonging_to(process: Any) -> List[int]:
    """The processes that run of what the command has started, which may end before them."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open("/proc/%s/stat" % pid, "rb") as file:
                state, _, group = file.read().rpartition(b")")[2].split()[:3]
            belongs = int(group) == process.pid
            if not belongs:  # a process that has changed its user keeps its environment to itself
                with open("/proc/%s/environ" % pid, "rb") as file:
                    belongs = process.mark in file.read().split(b"\0")
            if belongs and state != b"Z":
                found.append(int(pid))
    return found


def kill(process: Any) -> None:
    """With all that it has started, which may still hold the port."""
    for pids in iter(lambda: belonging_to(process), []):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def log(sentence: str) -> None:
    """On stderr, unless it is closed."""
    with contextlib.suppress(Exception):
        print("forward.py: " + sentence, file=sys.stderr)


# ---- Connections ----

IDLE_SECONDS = 1  # after which a connection is not used again: servers close theirs after 2 to 5


class Response(http.client.HTTPResponse):
    """The final one: HTTPResponse skips a status of 100 alone, of all that come before it."""

    def begin(self) -> None:
        super().begin()
        while 101 < self.status < 200:
            self.headers = None  # type: ignore[assignment]  # so that it reads the next
            super().begin()
        if self.length == 0:
            self.chunked = False  # that of a 304 is what a 200 would have


class Connections:
    """To the server, each for one request at a time, and used again while the server keeps it."""

    def __init__(self, port: int, timeout: int) -> None:
        self.host, self.port, self.timeout = "localhost", port, timeout
        self.idle: Any = queue.LifoQueue()  # with the time since which they are
        self.busy: Set[http.client.HTTPConnection] = set()

    def is_listening(self) -> bool:
        """Finds out, too, which address of localhost it is."""
        try:
            with socket.create_connection(("localhost", self.port), self.timeout) as connection:
                self.host = connection.getpeername()[0]
        except OSError:
            return False
        return True

    def take(self) -> http.client.HTTPConnection:
        connection = self.idle_one()
        if not connection:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
            connection.response_class = Response
        self.busy.add(connection)
        return connection

    def idle_one(self) -> Optional[http.client.HTTPConnection]:
        with contextlib.suppress(queue.Empty):
            while True:
                since, connection = self.idle.get_nowait()
                if time.monotonic() - since < IDLE_SECONDS and is_open(connection.sock):
                    return connection  # type: ignore[no-any-return]
                connection.close()
        return None

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        self.busy.discard(connection)
        # http.client has closed it if the server will, and a server that serves one connection at a
        # time would wait with it for the others.
        if connection.sock and not self.busy:
            self.idle.put((time.monotonic(), connection))
        else:
            connection.close()

    def drop(self, connection: http.client.HTTPConnection) -> None:
        self.busy.discard(connection)
        connection.close()


def is_open(sock: socket.socket) -> bool:
    """Whether nothing has come, as the end of the connection would."""
    readable = select.poll()
    readable.register(sock, select.POLLIN)
    return not readable.poll(0)


# ---- The request ----

# https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1, and Expect, which the WSGI server has met.
HOP_BY_HOP = set(
    "connection expect keep-alive proxy-authenticate proxy-authorization proxy-connection te "
    "trailer transfer-encoding upgrade".split()
)
# Not the caller's to drop by naming them in Connection: without a length a body is a request.
KEPT = set(
    "content-length content-type forwarded host x-forwarded-for x-forwarded-host x-forwarded-port "
    "x-forwarded-prefix x-forwarded-proto x-real-ip".split()
)
PIECE = 1 << 18  # bytes of a body at a time
# What stays as it is in a path, and in a target that is already quoted.
PATH_SAFE, TARGET_SAFE = "/!$&'()*+,;=:@~", "".join(map(chr, range(33, 127)))


def base_path(environ: Environ) -> str:
    """As it stands in URLs."""
    return quote(environ.get("SCRIPT_NAME", "").rstrip("/"), PATH_SAFE, "latin-1")


def target_of(environ: Environ) -> str:
    """Path and query, byte for byte where the WSGI server tells them (REQUEST_URI)."""
    base, target = base_path(environ), environ.get("REQUEST_URI", "")
    if target.startswith(base + "/"):
        return quote(target[len(base) :], TARGET_SAFE, "latin-1")
    query = environ.get("QUERY_STRING")
    path = quote(environ.get("PATH_INFO") or "/", PATH_SAFE, "latin-1")
    return path + ("?" + query if query else "")


def headers_of(environ: Environ) -> Headers:
    """As they came, but for those of the connection, and with the base path."""
    headers = {
        name[5:].replace("_", "-").title(): text
        for name, text in environ.items()
        if name.startswith("HTTP_")
    }
    of_connection = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    if environ.get("CONTENT_TYPE"):
        headers["Content-Type"] = environ["CONTENT_TYPE"]
    if environ.get("CONTENT_LENGTH"):
        headers["Content-Length"] = environ["CONTENT_LENGTH"]
    base = base_path(environ)
    if base:
        headers["X-Forwarded-Prefix"] = base
    dropped = HOP_BY_HOP | (of_connection - KEPT)
    return [(name, text) for name, text in headers.items() if name.lower() not in dropped]


def send(connection: http.client.HTTPConnection, environ: Environ) -> None:
    """The request; stops without an error where the server does not want all of the body."""
    method, body = environ["REQUEST_METHOD"], environ["wsgi.input"]
    connection.putrequest(method, target_of(environ), skip_host=True, skip_accept_encoding=True)
    for name, text in headers_of(environ):
        connection.putheader(name, text)
    chunked = bool(environ.get("wsgi.input_terminated")) and not environ.get("CONTENT_LENGTH")
    left = sys.maxsize if chunked else int(environ.get("CONTENT_LENGTH") or 0)
    if chunked:
        connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while left:
            data = body.read(min(left, PIECE))
            if chunked:
                connection.send(b"%x\r\n%s\r\n" % (len(data), data))
            elif data:
                connection.send(data)
            else:
                raise EOFError("the caller has sent less than announced")
            left = left - len(data) if data else 0


# ---- The response ----

# Up to so many bytes an answer of known length is read before it is passed on, so that one that
# breaks off is a 502.
WHOLE_BYTES = 1 << 25
WSGI_SERVERS = HOP_BY_HOP | {"date", "server"}  # headers that it writes itself
LOCALHOST = ("localhost", "127.0.0.1", "0.0.0.0", "[::1]", "[::]")


def headers_from(response: http.client.HTTPResponse, environ: Environ, port: int) -> Headers:
    """As they came, but for those of the connection and those that a WSGI server writes."""
    return [
        (name, located(text, environ, port) if name.lower() == "location" else text)
        for name, text in response.getheaders()
        if name.lower() not in WSGI_SERVERS
    ]


def located(location: str, environ: Environ, port: int) -> str:
    """The Location, with the base path where it is one of the server's own root."""
    base, host = base_path(environ), environ.get("HTTP_HOST", "")
    try:
        parts = urlsplit(location)
    except ValueError:
        return location
    if parts.netloc and not parts.path:
        parts = parts._replace(path="/")
    names = ["%s:%d" % (name, port) for name in LOCALHOST]
    if parts.scheme == "http" and parts.netloc in (host, *names):
        parts = parts._replace(scheme=environ["wsgi.url_scheme"], netloc=host)
    if parts.netloc in ("", host) and parts.path.startswith("/"):
        if not (unquote(parts.path) + "/").startswith(unquote(base) + "/"):
            parts = parts._replace(path=base + parts.path)
        return parts.geturl()
    return location


def pieces_of(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """As they come; raises http.client.IncompleteRead if they break off."""
    left = response.length
    while left != 0:
        data = response.read1(PIECE) if left is None else response.read(min(left, PIECE))
        if not data:
            break
        if left is not None:
            left -= len(data)
        yield data
    if left:
        raise http.client.IncompleteRead(b"", left)


def sentence_of(status: str, sentence: str, start_response: Callable[..., Any]) -> List[bytes]:
    """An answer of our own."""
    data = json.dumps({"error": sentence}).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
    start_response(status, headers)
    return [data]


# ---- The app ----

NO_WEBSOCKET = "WebSocket connections are not forwarded: use the model's HTTP."


class Forward:
    """The WSGI app; starts the server, and returns when it listens."""

    def __init__(self, command: List[str], port: int, timeout: int) -> None:
        self.server = Server(command, port, timeout)

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_UPGRADE", "").lower() == "websocket":
            return sentence_of("501 Not Implemented", NO_WEBSOCKET, start_response)
        try:
            connection, response = self.exchange(environ)
            return self.answer(connection, response, environ, start_response)
        except (StartError, OSError, http.client.HTTPException) as error:
            return sentence_of("502 Bad Gateway", self.server.failed(error), start_response)
        finally:
            self.server.copy()

    def exchange(
        self, environ: Environ
    ) -> Tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Once, whatever comes: a second time it might have an effect a second time."""
        connection = self.server.connect()
        try:
            send(connection, environ)
            # A server that writes headers and body apart waits for this, 40 ms if it is delayed.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return connection, connection.getresponse()
        except BaseException:
            self.server.connections.drop(connection)
            raise

    def answer(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        environ: Environ,
        start_response: Callable[..., Any],
    ) -> Iterable[bytes]:
        status = "%d %s" % (response.status, response.reason)
        headers = headers_from(response, environ, self.server.port)
        if response.length is None or response.length > WHOLE_BYTES:
            start_response(status, headers)
            return self.stream(connection, response)
        try:
            with contextlib.closing(response):
                data = response.read()
        except BaseException:
            self.server.connections.drop(connection)
            raise
        self.server.connections.give_back(connection)
        start_response(status, headers)
        return [data]

    def stream(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> Iterator[bytes]:
        try:
            yield from pieces_of(response)
            self.server.connections.give_back(connection)
        except BaseException as error:
            self.server.connections.drop(connection)
            if isinstance(error, (OSError, http.client.HTTPException)):
                self.server.failed(error)
            raise
        finally:
            response.close()
            self.server.copy()


app = Forward(*read_settings())
