"""A container's life, from its first moment to SIGTERM, and its log: what the model prints in an
activation, and a sentinel after that on both streams."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SENTINEL, Process, loaded, running, start_script, text_of, web

import openwhisk

pytestmark = pytest.mark.stacks(3)  # what this asks for is the interpreter's part of a stack
MODEL = """
import atexit, io, logging, os, subprocess, sys, threading, time
import flask
from werkzeug.serving import run_simple

app = flask.Flask(__name__)
app.config["PROPAGATE_EXCEPTIONS"] = True  # as debug does
together = threading.Barrier(8)
atexit.register(print, "at exit", flush=True)
logging.disable(logging.CRITICAL)

def write():
    print("out")
    print("err", file=sys.stderr)
    return "written"

def rewrap():
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "utf-8")
    return write()

def environments():
    child = subprocess.check_output(["env", "-0"]).decode().split("\\0")[:-1]
    own = {name.decode(): text.decode() for name, text in os.environb.items()}
    return flask.jsonify(own, dict(line.split("=", 1) for line in child))

def meet(name):
    together.wait(timeout=30)
    return name

def wait():
    print("waiting", flush=True)
    threading.Event().wait()

for view in (write, rewrap, environments, wait):
    app.add_url_rule("/" + view.__name__, view_func=view)
app.add_url_rule("/fail", "fail", lambda: int("secret"))
app.add_url_rule("/meet/<name>", view_func=meet)
"""
STATES = {
    "loads": "print('loads', flush=True)\nwhile True: time.sleep(0.01)",
    "serves": "run_simple('', 5000, app, threaded=True)",
    "serves one at a time": "run_simple('', 5000, app)",
    "serves in a thread": "threading.Thread(target=run_simple, args=('', 5000, app)).start()",
}
FAILED = openwhisk.failure(500, "The request failed; the log says why.")


@pytest.fixture
def model(stack: str, tmp_path: Path) -> Iterator[Process]:
    with loaded(
        start_script(stack, tmp_path, MODEL, OPENWHISK_APP="app:app", LC_ALL="C")
    ) as process:
        yield process


def test_it_listens_at_once_and_init_waits_for_the_model(stack: str, tmp_path: Path) -> None:
    lines = ("while not os.path.exists('weights'): time.sleep(0.01)", "run_simple('', 5000, app)")
    with (
        running(start_script(stack, tmp_path, MODEL, *lines)) as process,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        init = pool.submit(process.post, "/init", {"value": {}})
        assert process.request("GET", "/").status == 404
        assert not init.done()
        (tmp_path / "weights").touch()
        assert init.result().json == {"ok": True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_a_signal_ends_it_with_status_0_and_runs_atexit(
    stack: str, tmp_path: Path, state: str, number: int
) -> None:
    with running(start_script(stack, tmp_path, MODEL, state)) as process:
        if state == STATES["loads"]:
            process.until("loads", process.out)
        else:
            assert process.post("/init", {"value": {}}).json == {"ok": True}
            assert process.run(web("/fail")) == FAILED
        assert process.stop(number) == 0
        assert process.rest(process.out).endswith("at exit\n")


@pytest.mark.parametrize("threaded", [True, False], ids=["threads", "one at a time"])
def test_a_signal_ends_it_in_an_activation(stack: str, tmp_path: Path, threaded: bool) -> None:
    run = f"run_simple('', 5000, app, threaded={threaded})"
    with (
        loaded(start_script(stack, tmp_path, MODEL, run)) as process,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        activation = pool.submit(process.run, web("/wait"))
        process.until("waiting", process.out)
        assert process.stop() == 0
        cut = isinstance(activation.exception(), (ConnectionError, http.client.IncompleteRead))
        assert cut or activation.result() == FAILED


def test_init_and_run_set_the_environment_of_child_processes_too(model: Process) -> None:
    """Under LC_ALL=C, too, of an id that a caller has chosen by X-Request-ID."""
    env = {"__OW_API_HOST": "http://host", "__OW_ACTIVATION_ID": "of init", "SECRET": "é\0", "N": 1}
    assert model.post("/init", {"value": {"env": env}}).json == {"ok": True}
    result = model.run(web("/environments"), activation_id="a1", transaction_id="大\0\ud800")
    expected = {"__OW_ACTIVATION_ID": "a1", "__OW_TRANSACTION_ID": "大?", "SECRET": "é", "N": "1"}
    expected |= {"__OW_API_HOST": "http://host", "__OW_ACTION_NAME": "/guest/rec"}
    seen = json.loads(text_of(result))
    own = [{name: one[name] for name in one if name in expected or "__OW" in name} for one in seen]
    assert own == [expected] * 2


def test_activations_at_once_get_each_its_own_answer(model: Process) -> None:
    names = "abcdefgh"
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        runs = [pool.submit(model.run, web("/meet/" + name)) for name in names]
        assert [text_of(run.result()) for run in runs] == list(names)


def test_other_paths_and_methods_are_not_found(model: Process) -> None:
    others = [model.request("POST", path, b"").status for path in ("/", "/write", "/run/write")]
    methods = [model.request("GET", path).status for path in ("/init", "/run")]
    assert (others, methods) == ([404] * 3, [405] * 2)


def test_no_answer_holds_a_secret_or_a_traceback(stack: str, tmp_path: Path) -> None:
    """Not even in Flask's debug mode."""
    nonsense = [b"{", b"[]", b"{}", b'{"value": "secret"}']
    raising = json.dumps({"value": web("/fail")}).encode()
    env = {"OPENWHISK_APP": "app:app", "FLASK_DEBUG": "1", "FLASK_ENV": "development"}
    with loaded(start_script(stack, tmp_path, MODEL, **env)) as process:
        runs = [process.request("POST", "/run", body) for body in [*nonsense, raising]]
        assert [(run.status, run.json) for run in runs] == [(200, FAILED)] * 5
        inits = [process.request("POST", "/init", body) for body in nonsense]
        assert [init.status for init in inits] == [500] * 4
        assert not re.search(b"secret|Traceback", b"".join(init.body for init in inits))


def test_its_log_holds_what_the_model_prints_and_two_sentinels(model: Process) -> None:
    for path in ("/write", "/rewrap", "/write"):
        assert text_of(model.run(web(path))) == "written"
        assert model.until(SENTINEL, model.out) == f"out\n{SENTINEL}\n"
        assert model.until(SENTINEL, model.err) == f"err\n{SENTINEL}\n"
    model.request("GET", "/nowhere")  # there are no lines of an access log
    assert model.stop() == 0
    assert (model.rest(model.out), model.rest(model.err)) == ("at exit\n", "")


def test_its_log_holds_tracebacks_though_the_model_disables_logging(model: Process) -> None:
    assert model.run(web("/fail")) == FAILED
    assert model.until(SENTINEL, model.out) == SENTINEL + "\n"
    log = model.until(SENTINEL, model.err)
    assert re.match(f"Traceback (.*\n)*ValueError: .*'secret'\n{SENTINEL}\n$", log)
