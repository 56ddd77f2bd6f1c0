"""A model that starts its app in the way that HOW says, and starts processes."""

import asyncio
import atexit
import importlib
import multiprocessing
import os
import pickle
import signal
import sqlite3
import sys
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from flask import Flask, Response
from werkzeug.serving import run_simple

os.chdir(os.path.dirname(os.path.abspath(__file__)))
how = os.environ["HOW"]
atexit.register(print, "at exit", flush=True)
app = Flask(__name__)
health = Flask("health")
database = sqlite3.connect(":memory:")
inside: Any = []


class Place:
    """Of which models unpickle objects, as they do of their tokenizers."""

    def __init__(self, name: str) -> None:
        self.name = name


@app.route("/")
def index() -> str:
    place = pickle.loads(pickle.dumps(Place(app.root_path)))
    return "the model of " + str(place.name)


def sleep(started: Any) -> None:
    started.set()
    time.sleep(60)


def square(number: int) -> int:
    return number**2


@app.route("/processes")
def processes() -> str:
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=sleep, args=(started,))
    process.start()
    started.wait(30)
    process.terminate()
    process.join(30)
    with context.Pool(2) as pool:
        squares = pool.map(square, [1, 2])
    return f"{process.exitcode} {squares}"


@app.route("/bound/<name>")
def bound(name: str) -> str:
    """With an object that only the thread may use that made it; says how many were here at once."""
    inside.append(name)
    count = len(inside)
    time.sleep(0.05)
    inside.remove(name)
    rows = database.execute("SELECT ?", [name]).fetchall()
    return f"{rows[0][0]} {count}"


@app.route("/large")
def large() -> bytes:
    return bytes(40_000_000)


@app.route("/endless")
def endless() -> Any:
    return Response(iter(lambda: bytes(1_000_000), None))


@app.route("/exit")
def leave() -> str:
    sys.exit("secret")


@app.route("/fork")
def fork() -> str:
    """Whether a forked process has the signals that it would have without a server around it."""
    pid = os.fork()
    if pid == 0:
        handlers = {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        os._exit(0 if (handlers, signal.set_wakeup_fd(-1)) == ({signal.SIG_DFL}, -1) else 1)
    return str(os.waitpid(pid, 0)[1])


@app.route("/sleep")
def nap() -> str:
    print("asleep", flush=True)
    time.sleep(0.5)
    return "awake"


class SlowServer(WSGIServer):
    """As where the name of its host takes a while to find."""

    def server_bind(self) -> None:
        time.sleep(0.5)
        super().server_bind()


def run(some: Any, seconds: float = 0) -> None:
    time.sleep(seconds)
    some.run("127.0.0.1")


def thread(some: Any, daemon: bool, seconds: float = 0) -> threading.Thread:
    started = threading.Thread(target=run, args=(some, seconds), daemon=daemon)
    started.start()
    return started


async def wait_for_a_child() -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


def run_an_event_loop() -> None:
    """As a model may at its start: it takes the signals, and does not give them back."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.add_signal_handler(signal.SIGTERM, print)
    loop.run_until_complete(wait_for_a_child())
    another = asyncio.new_event_loop()
    another.add_signal_handler(signal.SIGINT, print)
    another.close()


if __name__ == "__main__":
    if how == "simple":
        run_simple("127.0.0.1", 5000, app)
    elif how == "keyword":
        run_simple(hostname="127.0.0.1", port=5000, application=app, threaded=True)
    elif how == "two":
        thread(health, daemon=True)
        time.sleep(0.1)
        app.run()
    elif how == "later":
        thread(health, daemon=False, seconds=0.2)
        app.run()
    elif how == "joined":
        thread(health, daemon=True)
        thread(app, daemon=True).join()
    elif how == "second":
        thread(health, daemon=True)
        time.sleep(0.1)
        thread(app, daemon=False)
    elif how == "other first":
        thread(health, daemon=False)
        time.sleep(0.1)
        thread(app, daemon=False).join()
    elif how == "late":
        thread(app, daemon=False, seconds=0.5)
    elif how == "late, by another":
        threading.Thread(target=threading.Timer(0.3, thread, (app, False)).start).start()
    elif how == "exit":
        thread(app, daemon=False, seconds=0.2)
        sys.exit()
    elif how == "failure":
        thread(app, daemon=False)
        time.sleep(0.2)
        raise RuntimeError("which does not end the other thread")
    elif how == "exit with an error":
        thread(app, daemon=False, seconds=0.5)
        sys.exit("no weights")
    elif how == "serial":
        app.run(threaded=False)
    elif how == "serial, joined":
        serving = threading.Thread(target=run_simple, args=("127.0.0.1", 5000, app), daemon=True)
        serving.start()
        serving.join()
    elif how == "asyncio":
        run_an_event_loop()
        app.run()
    elif how == "metrics":
        make_server("127.0.0.1", 0, health, server_class=SlowServer)
        app.run()
    elif how == "gevent":
        importlib.import_module("gevent.monkey").patch_all()
        time.sleep(60)
        app.run()
    elif how == "waitress on this port":
        importlib.import_module("waitress").serve(app, port=int(os.environ["PORT"]))
    elif how == "wsgiref on this port":
        make_server("0.0.0.0", int(os.environ["PORT"]), app)
    elif how == "gevent's server":
        importlib.import_module("gevent.pywsgi").WSGIServer(("127.0.0.1", 0), app).serve_forever()
    elif how == "wsgiref":
        make_server("127.0.0.1", 0, app).serve_forever()
    elif how == "waitress":
        importlib.import_module("waitress").serve(app, listen="127.0.0.1:0")
    elif how == "uvicorn":
        importlib.import_module("uvicorn").run(app, port=0, interface="wsgi")
    elif how == "gunicorn":
        base = importlib.import_module("gunicorn.app.base").BaseApplication
        load = {
            "load_config": lambda self: self.cfg.set("bind", "127.0.0.1:0"),
            "load": lambda _: app,
        }
        type("Server", (base,), load)().run()
    else:
        thread(app, daemon=False)
