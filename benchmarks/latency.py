"""The proxy's share of a request: a model behind its own server and behind openwhisk.py, in turn.

    python benchmarks/latency.py [--python PYTHON …] [--requests N] [--forward] [--plot assets/latency.svg]

PYTHON is the model's, with maxfw (default: this one); --plot needs matplotlib. With --forward, the
model's own server stands behind forward.py. The model is
tests/live_apps/max_app; OpenWhisk makes the message on another machine, so it is made beforehand
here.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
APP = ROOT / "tests" / "live_apps" / "max_app"
SIZES = {"1 kB": 1_024, "100 kB": 102_400, "1 MB": 1_000_192, "5 MB": 5_000_192}
Send = Callable[[], float]


def multipart(size: int) -> bytes:
    head = b'--B0UND\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + os.urandom(size) + b"\r\n--B0UND--\r\n"


def message(method: str, path: str, body: bytes = b"", content_type: str = "") -> bytes:
    """POST /run's, as OpenWhisk sends it for --web raw."""
    headers = (
        {"content-type": content_type, "host": "localhost"}
        if content_type
        else {"host": "localhost"}
    )
    value = {
        "__ow_method": method.lower(),
        "__ow_query": "",
        "__ow_body": base64.b64encode(body).decode(),
    }
    return json.dumps(
        {
            "action_name": "/guest/max",
            "value": {**value, "__ow_headers": headers, "__ow_path": path},
        },
        separators=(",", ":"),
    ).encode()


def sender(port: int, method: str, path: str, body: bytes, content_type: str) -> Send:
    """A function that sends the request and gives the seconds that the whole answer took."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"\r\n" + body

    def send() -> float:
        started = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            data = response.read()
        seconds = time.perf_counter() - started
        if response.status != 200 or data.startswith(b'{"error"'):
            raise RuntimeError(f"{method} {path}: {response.status} {data[:200]!r}")
        return seconds

    return send


@contextlib.contextmanager
def server(python: str, *command: str, port: int, **settings: str) -> Iterator[int]:
    """A model's own server, or openwhisk.py, when it is loaded; gives the process's id."""
    is_ready = sender(port, "GET", "/model/metadata", b"", "")
    if command[0].endswith("openwhisk.py"):
        is_ready = sender(port, "POST", "/init", b'{"value": {}}', "application/json")
    env = {
        **os.environ,
        "OPENWHISK_LISTEN_PORT": str(port),
        "OPENWHISK_RESULT_LIMIT": "0",
        **settings,
    }
    process = subprocess.Popen(
        [python, *command], cwd=APP, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                is_ready()
                break
            except (ConnectionError, RuntimeError):
                if process.poll() is not None:
                    sys.exit(f"{' '.join(command)} ended; has {python} maxfw?")
                time.sleep(0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def in_turn(count: int, *sends: Send) -> list[list[float]]:
    """The seconds of each; the first round is not counted."""
    rounds = [[send() for send in sends] for _ in range(count + 1)][1:]
    return [list(column) for column in zip(*rounds)]


def throughput(send: Send, clients: int, count: int) -> float:
    """Requests a second of so many clients at once; processes, as threads would wait for each
    other."""
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(clients + 1)

    def client() -> None:
        barrier.wait()
        for _ in range(count // clients):
            send()

    processes = [fork.Process(target=client) for _ in range(clients)]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError("a client failed")
    return count // clients * clients / (time.perf_counter() - started)


def measure(python: str, count: int, forward: bool) -> list[list[str]]:
    rows = []
    own_port, run_port, upstream_port = free_port(), free_port(), free_port()
    command, settings = [str(ROOT / "openwhisk.py")], {}
    if forward:
        command += [python, "app.py", "--port", str(upstream_port)]
        settings = {"OPENWHISK_UPSTREAM_PORT": str(upstream_port)}
    kind = "multipart/form-data; boundary=B0UND"
    with (
        server(python, "app.py", "--port", str(own_port), port=own_port),
        server(python, *command, port=run_port, **settings),
    ):
        cases = [
            (f"{name} in", "POST", "/model/predict", multipart(size), kind)
            for name, size in SIZES.items()
        ]
        cases += [
            (f"{name} out", "GET", f"/bytes/{size}", b"", "")
            for name, size in (("1 kB", 1_024), ("750 kB", 750_080))
        ]
        for name, method, path, body, content_type in cases:
            own = sender(own_port, method, path, body, content_type)
            run = sender(
                run_port,
                "POST",
                "/run",
                message(method, path, body, content_type),
                "application/json",
            )
            repeats = max(20, count // (5 if "MB" in name else 1))
            own_seconds, run_seconds = in_turn(repeats, own, run)
            pairs = [(throughput(own, 8, repeats), throughput(run, 8, repeats)) for _ in range(3)]
            medians = statistics.median(own_seconds), statistics.median(run_seconds)
            tails = [
                statistics.quantiles(seconds, n=20)[-1] for seconds in (own_seconds, run_seconds)
            ]
            figures = [f"{1000 * seconds:.2f}" for seconds in (*medians, *tails)]
            ratio = statistics.median(run / own for own, run in pairs)
            rows.append([name, *figures, f"{medians[1] / medians[0]:.2f}", f"{ratio:.2f}"])
    return rows


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def plot(path: str, measured: dict[str, list[list[str]]]) -> None:
    """Medians of the own server and of the web action, a panel for each Python."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "latency"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(measured), figsize=(4 * len(measured), 3.2), sharey=True, squeeze=False
    )
    for panel, (title, rows) in zip(panels[0], measured.items()):
        for place, (_, own, web, _, _, ratio, _) in enumerate(rows):
            panel.barh(place - 0.2, float(own), 0.4, color="#9aa5b1", label="own server")
            panel.barh(place + 0.2, float(web), 0.4, color="#d6336c", label="web action")
            panel.text(float(web) * 1.1, place + 0.2, f"× {ratio}", va="center", fontsize=8)
        panel.set(
            title=title, xscale="log", xlabel="median, ms", xlim=(0.5, 400), yticks=range(len(rows))
        )
        panel.set_yticklabels([row[0] for row in rows])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    figure.legend(
        *(some[:2] for some in panels[0][0].get_legend_handles_labels()),
        loc="upper right",
        frameon=False,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=[sys.executable], nargs="+")
    parser.add_argument(
        "--requests", type=int, default=200, help="of each size (default: %(default)s)"
    )
    parser.add_argument("--forward", action="store_true", help="behind forward.py")
    parser.add_argument("--plot", help="an SVG file to write")
    arguments = parser.parse_args()
    if arguments.plot:
        import matplotlib  # noqa: F401, rather than fail after all the measuring
    heads = ["body", "own server, median ms", "web action", "own server, p95 ms", "web action"]
    heads += ["ratio of medians", "ratio of throughputs, 8 clients"]
    measured = {}
    for python in arguments.python:
        title = subprocess.run(
            [python, "-V"], check=True, capture_output=True, text=True
        ).stdout.strip()
        measured[title] = measure(python, arguments.requests, arguments.forward)
        print(f"{title}\n\n{table(heads, measured[title])}\n")
    if arguments.plot:
        plot(arguments.plot, measured)


if __name__ == "__main__":
    main()
