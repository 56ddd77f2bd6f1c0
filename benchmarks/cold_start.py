"""From nothing to the first prediction, and the memory after it: the model's own server and
openwhisk.py, in turn.

    python benchmarks/cold_start.py [--python PYTHON_OF_THE_MODEL] [--image IMAGE] [--rounds N]

Starts processes of the example model (examples/ocr; PYTHON_OF_THE_MODEL has its requirements
installed) or, with
--image, containers of an image that build.sh made, with the model's own server and with the proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from latency import ROOT, free_port, message, multipart, table

KIND = "multipart/form-data; boundary=B0UND"
PICTURE = multipart(0).replace(
    b"\r\n\r\n\r\n", b"\r\n\r\n" + (ROOT / "assets" / "receipt.png").read_bytes() + b"\r\n"
)
INIT = json.dumps({"value": {}}).encode()


def ask(port: int, path: str, body: bytes, content_type: str) -> bytes:
    """The answer to a POST, asked again until there is one."""
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", path, body, {"Content-Type": content_type})
                response = connection.getresponse()
                data = response.read()
            if response.status != 200:
                raise RuntimeError(f"POST {path}: {response.status} {data[:200]!r}")
            return data
        except (ConnectionError, http.client.HTTPException):
            time.sleep(0.01)


def first_prediction(port: int, proxied: bool) -> None:
    if proxied:
        ask(port, "/init", INIT, "application/json")
        data = ask(
            port, "/run", message("POST", "/model/predict", PICTURE, KIND), "application/json"
        )
    else:
        data = ask(port, "/model/predict", PICTURE, KIND)
    if b"SERVERLESS" not in data:
        raise RuntimeError(f"no prediction: {data[:200]!r}")


OWN_SERVER = """
import flask, runpy
run = flask.Flask.run
flask.Flask.run = lambda app, *_, **options: run(app, "0.0.0.0", {port})
runpy.run_path("app.py", run_name="__main__")
"""


@contextlib.contextmanager
def process(python: str, port: int, proxied: bool) -> Iterator[int]:
    """Gives the process's id."""
    command = [
        python,
        *([str(ROOT / "openwhisk.py")] if proxied else ["-c", OWN_SERVER.format(port=port)]),
    ]
    popen = subprocess.Popen(
        command,
        cwd=ROOT / "examples" / "ocr",
        env={**os.environ, "OPENWHISK_LISTEN_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    try:
        yield popen.pid
    finally:
        popen.send_signal(signal.SIGKILL)
        popen.wait()


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def container(image: str, port: int, proxied: bool) -> Iterator[int]:
    """Gives the id of the container's first process."""
    own = [] if proxied else ["python", "-c", OWN_SERVER.format(port=8080)]
    name = output("docker", "run", "-d", "-p", f"127.0.0.1:{port}:8080", image, *own)
    try:
        yield int(output("docker", "inspect", "--format", "{{.State.Pid}}", name))
    finally:
        output("docker", "rm", "-f", name)


def resident(pid: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--image", help="with Docker")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    arguments = parser.parse_args()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    memory: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(arguments.rounds + 1):
        for proxied in seconds:
            port = free_port()
            started = time.perf_counter()
            start = (
                container(arguments.image, port, proxied)
                if arguments.image
                else process(arguments.python, port, proxied)
            )
            with start as pid:
                first_prediction(port, proxied)
                seconds[proxied].append(time.perf_counter() - started)
                memory[proxied].append(resident(pid))
    rows = []
    for what, measured, form in (
        ("first prediction, s", seconds, "{:.3f}"),
        ("resident, MB", memory, "{:.1f}"),
    ):
        own, web = (
            statistics.median(measured[proxied][1:]) for proxied in (False, True)
        )  # the first round warms the disk
        rows.append(
            [what, form.format(own), form.format(web), form.format(web - own), f"{web / own:.3f}"]
        )
    print(table(["medians", "own server", "openwhisk.py", "difference", "ratio"], rows))


if __name__ == "__main__":
    main()
