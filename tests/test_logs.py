"""An activation's log: what the model prints, and a sentinel on a line of its own, on both
streams."""

from __future__ import annotations

import fcntl
import signal
import socket
import subprocess
import sys
import termios
import time
from typing import Any

from conftest import (
    ROOT,
    SENTINEL,
    Process,
    text_of,
    web,
)

F_GETPIPE_SZ = 1032  # of Linux


def waiting_in(pipe: Any) -> int:
    """How many bytes of it nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


class TestLogs:
    def test_should_end_each_activation_with_the_sentinel_on_a_line_of_its_own(
        self, flask_app: Process
    ) -> None:
        assert flask_app.until("loading", flask_app.out) == "loading\n"
        for query in ("", "end="):
            flask_app.run(web("/print/é", query=query))
            assert flask_app.until(SENTINEL, flask_app.out) == f"out é\n{SENTINEL}\n"
            assert flask_app.until(SENTINEL, flask_app.err) == f"err é\n{SENTINEL}\n"
        flask_app.post("/run", b"{")
        assert flask_app.until(SENTINEL, flask_app.out) == SENTINEL + "\n"

    def test_should_hold_nothing_but_what_the_app_prints(self, flask_app: Process) -> None:
        flask_app.request("GET", "/print/x")
        flask_app.request("GET", "/nowhere")
        with socket.create_connection(("127.0.0.1", flask_app.port)) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert client.recv(9)
        assert flask_app.stop() == 0
        assert flask_app.rest(flask_app.out) == "loading\nout x\n"
        assert flask_app.rest(flask_app.err) == "err x\n"

    def test_should_end_even_if_the_app_closes_stdout(self, flask_app: Process) -> None:
        flask_app.until("loading", flask_app.out)
        assert text_of(flask_app.run(web("/close-stdout"))) == "closed"
        assert flask_app.until(SENTINEL, flask_app.out) == SENTINEL + "\n"
        assert flask_app.run(web("/raise"))["error"]["statusCode"] == 500
        flask_app.until(SENTINEL, flask_app.err)
        assert "RuntimeError: secret" in flask_app.until(SENTINEL, flask_app.err)

    def test_should_hold_what_a_rewrapped_stream_has_kept(self, flask_app: Process) -> None:
        flask_app.until("loading", flask_app.out)
        flask_app.run(web("/rewrap"))
        assert flask_app.until(SENTINEL, flask_app.out) == f"rewrapped\n{SENTINEL}\n"
        flask_app.run(web("/print/x", query="end="))
        assert flask_app.until(SENTINEL, flask_app.out) == f"out x\n{SENTINEL}\n"

    def test_should_end_on_a_line_of_its_own_while_threads_print(self, flask_app: Process) -> None:
        for _ in range(100):
            flask_app.run(web("/chatter/50"))
        assert flask_app.stop() == 0
        for lines in (flask_app.out, flask_app.err):
            printed = flask_app.rest(lines).splitlines()
            assert printed.count(SENTINEL) == 100
            assert [line for line in printed if SENTINEL in line and line != SENTINEL] == []

    def test_should_have_all_that_is_printed_while_signals_come(self, stack: str) -> None:
        """The signal interrupts a write to a pipe that is full."""
        code = (
            "import openwhisk, signal",
            "signal.signal(signal.SIGUSR1, lambda *_: None)",
            "openwhisk.STDOUT.text.write(1_000_000 * 'x')",
        )
        with subprocess.Popen(
            [stack, "-c", "\n".join(code)], cwd=ROOT, stdout=subprocess.PIPE
        ) as printing:
            assert printing.stdout
            full, deadline = fcntl.fcntl(printing.stdout, F_GETPIPE_SZ), time.monotonic() + 60
            while waiting_in(printing.stdout) < full:
                assert time.monotonic() < deadline
            printing.send_signal(signal.SIGUSR1)
            assert len(printing.stdout.read()) == 1_000_000
