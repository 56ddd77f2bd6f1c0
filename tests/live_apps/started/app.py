"""A model that starts its app in the way that HOW says, and starts processes."""

import multiprocessing
import os
import threading
import time
from typing import Any

from flask import Flask
from werkzeug.serving import run_simple

os.chdir(os.path.dirname(os.path.abspath(__file__)))
how = os.environ["HOW"]
app = Flask(__name__)
health = Flask("health")


@app.route("/")
def index() -> str:
    return "the model of " + app.root_path


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


def run(some: Any) -> None:
    some.run("127.0.0.1")


if __name__ == "__main__":
    if how == "simple":
        run_simple("127.0.0.1", 5000, app)
    elif how == "two":
        threading.Thread(target=run, args=(health,), daemon=True).start()
        time.sleep(0.1)
        app.run()
    else:
        threading.Thread(target=run, args=(app,)).start()
