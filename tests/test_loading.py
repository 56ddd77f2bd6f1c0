"""How a model's app is found and loaded: as its image's command runs it, or by OPENWHISK_APP; and
what is said if there is none."""

from __future__ import annotations

import concurrent.futures
import json
import time
from pathlib import Path

import pytest
from conftest import (
    LIVE_APPS,
    ROOT,
    SENTINEL,
    Process,
    loaded,
    running,
    start_container,
    start_script,
    text_of,
    web,
)

import openwhisk

MODEL = """
import flask, multiprocessing, os, pickle, threading
from threading import Event, Thread, Timer
from werkzeug.serving import run_simple

class Label(str):
    "Of the script's own, as objects are that models unpickle."

def double(number):
    return 2 * number

def pool(method):
    with multiprocessing.get_context(method).Pool(1) as workers:
        return str(workers.apply(double, [21]))

views = {
    "/": lambda: "the model",
    "/label": lambda: pickle.loads(pickle.dumps(Label("the script's"))),
    "/other": lambda: Thread(target=flask.Flask("other").run, daemon=True).start() or "started",
    "/process": lambda: str(os.getpid()),
    "/raise": lambda: 1 / 0,
    "/fork": lambda: pool("fork"),
    "/spawn": lambda: pool("spawn"),
    "/thread": lambda: threading.current_thread().name,
}
app = flask.Flask(__name__)
for path, view in views.items():
    app.add_url_rule(path, path, view)
"""
WAYS = {
    "run in main": "if __name__ == '__main__': app.run('0.0.0.0', port=5000)",
    "run_simple": "run_simple(hostname='127.0.0.1', port=5000, application=app)",
    "a thread while the script waits": "Thread(target=app.run, daemon=True).start()\nEvent().wait()",
    "a thread that loads after the script's end": "Timer(0.3, app.run).start()",
}
ONE_AT_A_TIME = {
    "run": ("app.run(threaded=False)", "MainThread"),
    "a thread": ("Thread(target=run_simple, args=('', 5000, app), name='own').start()", "own"),
}
NAMED = {  # OPENWHISK_APP, and the last line of the script
    "attribute": ("app:app", ""),
    "attribute of a package's module": ("service.api:app", ""),
    "attribute of a module that runs it": ("app:app", "app.run()"),
    "factory": ("app:create()", "create = lambda: app"),
}
CURES = "name its app (OPENWHISK_APP=module:attribute) or let its own server run (FORWARD=1)"
NO_APP = {  # script, OPENWHISK_APP, sentence
    "raises": ("raise OSError('no weights')", "", "OSError: no weights"),
    "ends": ("", "", f"RuntimeError: the script ended without app.run(); {CURES}"),
    "exits": ("import sys; sys.exit(3)", "", "SystemExit: 3"),
    "no attribute": ("", "app:app", "AttributeError: module 'app' has no attribute 'app'"),
}
INVALID = {
    "OPENWHISK_APP": "app.py",
    "OPENWHISK_PREDICT_PATH": "/a?b",
    "OPENWHISK_BASE_PATH": "//evil.example",
    "OPENWHISK_RESULT_LIMIT": "1 MB",
    "OPENWHISK_LISTEN_PORT": "²",
    "OPENWHISK_UPSTREAM_PORT": "-1",
    "OPENWHISK_READY_PATH": "health",
}
LATE = (
    "The model did not load within the action's time limit, which 'wsk action update --timeout' "
    f"raises. If its script never calls app.run(), {CURES}. The log says where it is."
)
of_the_interpreter = pytest.mark.stacks(3)  # the other parts of a stack have no say in it
FAILED = openwhisk.failure(500, "The request failed; the log says why.")


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_an_app_is_served_however_its_script_runs_it(stack: str, tmp_path: Path, way: str) -> None:
    with loaded(start_script(stack, tmp_path, MODEL, way)) as process:
        assert text_of(process.run(web("/label"))) == "the script's"


def test_a_script_finds_its_arguments_and_its_neighbours(stack: str, tmp_path: Path) -> None:
    lines = (
        "import flask, forward, openwhisk, sys",
        "app = flask.Flask(__name__)",
        "files = [__file__, forward.__file__, openwhisk.__file__]",
        "seen = [__name__, sys.argv[:], sys.path[0], *files]",
        "app.add_url_rule('/', view_func=lambda: flask.jsonify(seen))",
        "app.run()",
    )
    (folder := tmp_path / "service").mkdir()
    files = [folder / name for name in ("serve.py", "forward.py", "openwhisk.py")]
    for file, text in zip(files, ("\n".join(lines), "", "")):
        file.write_text(text)
    arguments = ["service/serve.py", "--model", "en"]
    with loaded(start_container(stack, tmp_path, *arguments)) as process:
        seen = json.loads(text_of(process.run(web("/"))))
        assert seen == ["__main__", arguments, str(folder), *map(str, files)]


@of_the_interpreter
def test_processes_of_the_model_find_the_script_and_end_as_ever(stack: str, tmp_path: Path) -> None:
    """A pool of forks is ended by a signal, which the container's own handler must not take."""
    with loaded(start_script(stack, tmp_path, MODEL, WAYS["run in main"])) as process:
        assert text_of(process.run(web("/spawn"))) == "42"
        assert {text_of(process.run(web("/fork"))) for _ in range(20)} == {"42"}


@pytest.mark.parametrize(("way", "thread"), ONE_AT_A_TIME.values(), ids=list(ONE_AT_A_TIME))
def test_one_at_a_time_means_in_the_thread_that_ran_the_app(
    stack: str, tmp_path: Path, way: str, thread: str
) -> None:
    with (
        loaded(start_script(stack, tmp_path, MODEL, way)) as process,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        runs = [pool.submit(process.run, web("/thread")) for _ in range(4)]
        assert [text_of(run.result()) for run in runs] == [thread] * 4


def test_a_second_run_changes_nothing_and_is_logged(stack: str, tmp_path: Path) -> None:
    with loaded(start_script(stack, tmp_path, MODEL, "app.run()")) as process:
        assert text_of(process.run(web("/other"))) == "started"
        process.until("A second app is not served; see OPENWHISK_APP.", process.err)
        assert text_of(process.run(web("/"))) == "the model"


def test_static_files_of_run_simple_are_served(stack: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a static file")
    way = f"run_simple('', 5000, app, static_files={{'/static': {str(tmp_path)!r}}})"
    with loaded(start_script(stack, tmp_path, MODEL, way)) as process:
        assert text_of(process.run(web("/static/a.txt"))) == "a static file"


def test_debug_runs_no_debugger_or_reloader(stack: str, tmp_path: Path) -> None:
    """And old Flasks keep the context of a request that raises."""
    with loaded(start_script(stack, tmp_path, MODEL, "app.run(debug=True)")) as process:
        for _ in range(3):
            assert process.run(web("/raise")) == FAILED
            process.until(SENTINEL, process.out)
            log = process.until(SENTINEL, process.err)
            assert log.endswith(f"\nZeroDivisionError: division by zero\n{SENTINEL}\n")
        asset = "__debugger__=yes&cmd=resource&f=style.css"
        assert text_of(process.run(web("/process", query=asset))) == str(process.popen.pid)


@of_the_interpreter
@pytest.mark.parametrize(("name", "line"), NAMED.values(), ids=list(NAMED))
def test_openwhisk_app_names_an_app_or_its_factory(
    stack: str, tmp_path: Path, name: str, line: str
) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service/api.py").write_text("from app import app")
    with loaded(start_script(stack, tmp_path, MODEL, line, OPENWHISK_APP=name)) as process:
        assert text_of(process.run(web("/"))) == "the model"


@of_the_interpreter
def test_openwhisk_app_may_be_of_django(stack: str) -> None:
    app = LIVE_APPS / "django_app"
    with loaded(start_container(stack, app, OPENWHISK_APP="app:application")) as process:
        url = "http://h.example/api/v1/web/guest/default/rec/model/predict"
        seen = json.loads(text_of(process.run(web(method="post", body="e30=", host="h.example"))))
        assert seen == {"seen": {}, "url": url}


@of_the_interpreter
@pytest.mark.parametrize(("script", "name", "sentence"), NO_APP.values(), ids=list(NO_APP))
def test_init_says_why_there_is_no_app(
    stack: str, tmp_path: Path, script: str, name: str, sentence: str
) -> None:
    with running(start_script(stack, tmp_path, script, OPENWHISK_APP=name)) as process:
        answer = process.post("/init", {"value": {}})
        error = {"error": "The model failed to load: " + sentence}
        assert (answer.status, answer.json) == (502, error)
        assert process.until(SENTINEL, process.out) == SENTINEL + "\n"
        log = process.until(SENTINEL, process.err)
        assert log.startswith("Traceback ") and log.endswith(f"\n{sentence}\n{SENTINEL}\n")


@of_the_interpreter
def test_a_model_that_is_late_is_told_and_the_log_shows_all_its_threads(
    stack: str, tmp_path: Path
) -> None:
    """A second before the deadline."""
    lines = ("import threading, time", "def load():", "    while True: time.sleep(1)")
    starts = ("threading.Thread(target=load, daemon=True).start()", "load()")
    with running(start_script(stack, tmp_path, *lines, *starts)) as process:
        deadline = time.time() + 1.5
        env = {"__OW_DEADLINE": str(int(1000 * deadline))}
        answer = process.post("/init", {"value": {"env": env}})
        assert deadline - 1.1 < time.time() < deadline
        assert (answer.status, answer.json) == (502, {"error": LATE})
        assert process.until(SENTINEL, process.out) == SENTINEL + "\n"
        where = f'File "{tmp_path}/app.py", line 3 in load\n'
        assert process.until(SENTINEL, process.err).count(where) == 2


@of_the_interpreter
@pytest.mark.parametrize("name", openwhisk.SETTINGS)
def test_a_setting_that_makes_no_sense_is_said_to(stack: str, tmp_path: Path, name: str) -> None:
    command, env = [stack, str(ROOT / "openwhisk.py")], {name: INVALID[name]}
    with running(Process(*command, cwd=tmp_path, env=env)) as process:
        example = openwhisk.SETTINGS[name][2]
        sentence = f"{name} must be like {example}, not {INVALID[name]!r}.\n"
        assert (process.rest(process.err), process.popen.wait(30)) == (sentence, 1)


@of_the_interpreter
def test_a_model_sees_its_own_settings_and_not_ours(stack: str, tmp_path: Path) -> None:
    own = {"BASE_PATH": "/own", "CORS": "*", "PORT": "5000", "RESULT_LIMIT": "5"}
    ours = {"OPENWHISK_BASE_PATH": "/ours", "OPENWHISK_RESULT_LIMIT": "1000"}
    seen = f"{{name: os.environ[name] for name in {[*own, *INVALID]} if name in os.environ}}"
    lines = (f"seen = {seen}", "app.view_functions['/'] = lambda: flask.jsonify(seen)", "app.run()")
    with loaded(start_script(stack, tmp_path, MODEL, *lines, **own, **ours)) as process:
        assert json.loads(text_of(process.run(web("/")))) == own
