"""A server that does what a path says, right or wrong: python server.py PORT."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

MARK = os.environ.get("CHILD_PID")  # where to write the process id of a child


class Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    posts = 0

    def answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, text in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        what = self.path.partition("?")[0]
        if what == "/exit":
            os._exit(3)
        if what == "/kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "/kill-35":
            os.kill(os.getpid(), 35)
        if what == "/hang":
            time.sleep(60)
        if what == "/print":
            print("to stdout", end="")
            print("to stderr", file=sys.stderr, flush=True)
            sys.stdout.flush()
        if what == "/short":
            self.answer(b"only this", Content_Length="99")
            self.close_connection = True
        elif what == "/short-stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\nhalf\r\n")
            self.close_connection = True
        elif what == "/hints":
            self.send_response_only(103)
            self.send_header("Link", "</style.css>; rel=preload")
            self.end_headers()
            self.answer(b"after the hints")
        elif what == "/not-modified":
            self.send_response(304)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        elif what == "/stream-hangs":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\nhalf\r\n")
            time.sleep(60)
        elif what == "/until-closed":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"all of it")
            self.close_connection = True
        elif what == "/large-short":
            self.answer(b"only this", Content_Length=str(1 << 26))
            self.close_connection = True
        elif what == "/end-soon":
            server.socket.shutdown(socket.SHUT_RDWR)
            threading.Timer(0.3, os._exit, [5]).start()
            self.answer(b"{}", Content_Type="application/json", Connection="close")
        elif what == "/drop":
            self.close_connection = True
        elif what.startswith("/moved/"):
            place = self.path.partition("?")[2] or what[len("/moved") :]
            here = f"http://127.0.0.1:{sys.argv[1]}/there"
            self.answer(status=302, Location=here if place[1:].isdecimal() else place)
        elif what == "/large":
            self.answer(b"x" * (1 << 25) + b"y")
        else:
            self.answer(self.told().encode(), Content_Type="application/json", X_Kept="yes")
        if what == "/print-late":
            print("printed late", flush=True)

    def do_POST(self) -> None:
        if self.path == "/refused":
            self.answer(b"too large", 413, Connection="close")
            self.close_connection = True
            return
        Handler.posts += 1
        if self.path == "/drop":
            self.close_connection = True
            return
        if self.headers.get("Transfer-Encoding") == "chunked":
            length = sum(iter(self.chunk, 0))
        else:
            length = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(str(length).encode())

    def chunk(self) -> int:
        size = int(self.rfile.readline(), 16)
        self.rfile.read(size + 2)
        return size

    def told(self) -> str:
        headers = {name.lower(): text for name, text in self.headers.items()}
        peer = self.client_address[1]
        mine = {"pid": os.getpid(), "port": os.environ["PORT"], "peer": peer}
        return json.dumps({"headers": headers, "posts": Handler.posts, "path": self.path, **mine})

    def log_message(self, *args: Any) -> None:
        pass


def end(*_: Any) -> None:
    """Takes its time, as servers do that end what they have begun."""
    time.sleep(0.3)
    print("ended in peace", flush=True)
    os._exit(0)


if __name__ == "__main__":
    print("starting")
    signal.signal(signal.SIGTERM, end)
    if MARK:
        with open(MARK, "w") as file:
            file.write(str(subprocess.Popen(["sleep", "600"]).pid))
    one_by_one = "ONE_BY_ONE" in os.environ
    server = (HTTPServer if one_by_one else Server)(("127.0.0.1", int(sys.argv[1])), Handler)
    server.serve_forever()
