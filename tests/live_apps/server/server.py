"""A server that does what a path says, right or wrong: python server.py PORT."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

READY = os.environ.get("READY_FILE")  # until it is there, all answers are 503
CHILD = os.environ.get("CHILD_PID")  # where to write the process id of a child


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    posts = 0

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, text in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def answer_in_chunks(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def do_GET(self) -> None:
        what = self.path.partition("?")[0]
        if READY and not os.path.exists(READY):
            self.answer(status=503)
        elif what == "/exit":
            os._exit(0)
        elif what == "/kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "/drop":
            self.close_connection = True
        elif what == "/short":
            self.answer(b"only this", Content_Length="99")
            self.close_connection = True
        elif what == "/short-chunks":
            self.answer_in_chunks(200, b"4\r\nhalf\r\n")
        elif what == "/hints":
            for status in (100, 102, 103):
                self.send_response_only(status)
                self.send_header("Link", "</style.css>; rel=preload")
                self.end_headers()
            self.answer(b"after the hints")
        elif what == "/no-content":
            self.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray", 204)
        elif what == "/not-modified":
            self.answer_in_chunks(304, b"")
        elif what == "/until-closed":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"all of it")
            self.close_connection = True
        elif what.startswith("/headers/"):
            count = int(what.rpartition("/")[2])
            headers: Any = {f"X_{number}": "1" for number in range(count)}
            self.answer(b"many", **headers)
        elif what == "/moved":
            place = self.path.partition("?")[2]
            self.answer(status=302, Location=place, X_Place=place)
        elif what.startswith("/bytes/"):
            self.answer(b"x" * int(what.rpartition("/")[2]))
        else:
            self.answer(self.told().encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        if self.path == "/refused":
            self.answer(b"too large", 413, Connection="close")
            self.close_connection = True
            return
        Handler.posts += 1
        if self.path == "/drop":
            self.close_connection = True
            return
        length = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(str(length).encode())

    def told(self) -> str:
        headers = sorted([name.lower(), text] for name, text in self.headers.items())
        mine = {"pid": os.getpid(), "peer": self.client_address[1], "env": dict(os.environ)}
        return json.dumps({"headers": headers, "posts": Handler.posts, "path": self.path, **mine})

    def log_message(self, *args: Any) -> None:
        pass


def end(*_: Any) -> None:
    """Takes its time, as servers do that end what they have begun."""
    time.sleep(0.3)
    print("ended in peace", flush=True)
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    if CHILD:
        with open(CHILD, "w") as file:
            file.write(str(subprocess.Popen(["sleep", "600"]).pid))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    server.daemon_threads = True
    print("starting", flush=True)
    server.serve_forever()
