"""POST /init and how the model is found: app.py as the image would run it, or WSGI_APP; what is
said if it fails."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    SENTINEL,
    Process,
    WebAction,
    free_port,
    running,
    start_container,
    start_script,
    text_of,
    web,
    web_action,
)
from test_fidelity import compare

import openwhisk

ENV_APP = """
import os
from flask import Flask

app = Flask(__name__)
app.add_url_rule("/", view_func=lambda: os.environ.get("MY_KEY", "none"))
app.run()
"""


class TestInit:
    def test_should_answer_ok_again_and_again(self, flask_app: Process) -> None:
        for _ in range(3):
            answer = flask_app.post(
                "/init", {"value": {"name": "rec", "binary": False, "main": "main"}}
            )
            assert (answer.status, answer.json) == (200, {"ok": True})

    def test_should_export_the_platforms_names_only(self, flask_app: Process) -> None:
        env = {
            "__OW_API_HOST": "http://host",
            "__OW_NAMESPACE": "guest",
            "SECRET_TOO": "x",
            "PATH": "/evil",
        }
        flask_app.post("/init", {"value": {"env": env}})
        seen = json.loads(text_of(flask_app.run(web("/environment"))))
        assert seen["__OW_API_HOST"] == "http://host"
        assert seen["__OW_NAMESPACE"] == "guest"
        assert set(seen) & {"SECRET", "SECRET_TOO"} == {"SECRET"}

    def test_should_wait_until_the_model_is_loaded(self, stack: str, tmp_path: Path) -> None:
        loaded = tmp_path / "loaded"
        with (
            running(start_container(stack, LIVE_APPS / "slow", LOADED_WHEN=str(loaded))) as process,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            process.until("loading", process.out)
            inits = [pool.submit(process.post, "/init", {"value": {}}) for _ in range(2)]
            run = pool.submit(process.run, web("/"))
            own = process.request("GET", "/")
            assert (own.status, own.header("retry-after")) == (503, "1")
            assert own.json == {"error": "The model is not loaded; the log says more."}
            assert not run.done()
            assert not any(init.done() for init in inits)
            loaded.touch()
            assert [init.result().json for init in inits] == [{"ok": True}] * 2
            assert text_of(run.result()) == "loaded"

    def test_should_name_the_timeout_when_the_deadline_comes_before_the_model(
        self, stack: str, tmp_path: Path
    ) -> None:
        with running(
            start_container(stack, LIVE_APPS / "slow", LOADED_WHEN=str(tmp_path / "never"))
        ) as process:
            process.until("loading", process.out)
            deadline = str(int(time.time() * 1000) + 1500)
            answer = process.post("/init", {"value": {"env": {"__OW_DEADLINE": deadline}}})
            assert answer.status == 502
            assert "--timeout" in answer.json["error"]
            assert "slow/app.py, line " in answer.json["error"]
            result = process.run(web("/"), deadline=deadline)
            assert result["error"]["statusCode"] == 503

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize(
        ("app", "env", "words"),
        [
            ("broken", {}, ["app.py in ", "OSError: no weights"]),
            ("", {}, ["app.py in ", "FileNotFoundError"]),
            ("runless", {}, ["app.py in ", "run()", "WSGI_APP"]),
            ("started", {"HOW": "exit with an error"}, ["app.py in ", "SystemExit: no weights"]),
            (
                "recorder",
                {"WSGI_APP": "nowhere:app"},
                ["WSGI_APP=nowhere:app", "ModuleNotFoundError", "nowhere"],
            ),
            (
                "recorder",
                {"WSGI_APP": "app:nothing"},
                ["WSGI_APP=app:nothing", "AttributeError", "nothing"],
            ),
            (
                "recorder",
                {"WSGI_APP": "app:json"},
                ["WSGI_APP=app:json", "TypeError", "not callable"],
            ),
            (
                "factory",
                {"WSGI_APP": "app:create_app"},
                ["TypeError", "create_app does not take (environ, start_response)", "create_app()"],
            ),
            ("factory", {"WSGI_APP": "app:needs_a_name"}, ["TypeError", "parentheses"]),
            ("factory", {"WSGI_APP": "app:needs_a_name()"}, ["TypeError", "missing 1 required"]),
            ("factory", {"WSGI_APP": "app:makes_nothing()"}, ["TypeError", "not callable"]),
            ("factory", {"WSGI_APP": "app:create_app(open)"}, ["ValueError"]),
        ],
    )
    def test_should_say_why_the_model_did_not_load(
        self, stack: str, app: str, env: dict[str, str], words: list[str]
    ) -> None:
        with running(start_container(stack, LIVE_APPS / app, **env)) as process:
            answer = process.post("/init", {"value": {}})
            assert answer.status == 502
            assert all(word in answer.json["error"] for word in words), answer.json
            assert "Traceback" in process.until(SENTINEL, process.err)
            assert process.until(SENTINEL, process.out) == SENTINEL + "\n"
            result = process.run(web())
            assert result["error"]["statusCode"] == 503
            assert "weights" not in json.dumps(result)
            assert process.request("GET", "/").status == 503


class TestApps:
    """WSGI apps that are not MAX's, with WSGI_APP."""

    def test_should_be_of_django(self, stack: str) -> None:
        with running(
            start_container(stack, LIVE_APPS / "django_app", WSGI_APP="app:application")
        ) as process:
            body = base64.b64encode(b'{"a": 1}').decode()
            headers = {"content_type": "application/json", "host": "h.example"}
            result = process.run(web("", "post", body, **headers))
            url = "http://h.example/api/v1/web/guest/default/rec/model/predict"
            assert json.loads(text_of(result)) == {"seen": {"a": 1}, "url": url}
            form = (
                b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
                b"Content-Type: image/png\r\n\r\n\xff\r\n--x--\r\n"
            )
            result = process.run(
                web(
                    "",
                    "post",
                    base64.b64encode(form).decode(),
                    content_type="multipart/form-data; boundary=x",
                )
            )
            assert (result["headers"]["Content-Type"], base64.b64decode(result["body"])) == (
                "image/png",
                b"\xff",
            )

    def test_should_be_of_flask_and_of_no_framework(self, stack: str, recorder: Process) -> None:
        assert recorder.run(web("/x"))["statusCode"] == 200
        with running(
            start_container(stack, LIVE_APPS / "plain_flask", WSGI_APP="service.api:app")
        ) as process:
            assert text_of(process.run(web("/hello"))) == "hello"

    @pytest.mark.parametrize(
        "how",
        [
            "thread",
            "two",
            "simple",
            "keyword",
            "later",
            "joined",
            "second",
            "late",
            "late, by another",
            "exit",
            "failure",
            "serial",
            "serial, joined",
            "asyncio",
            "metrics",
            "other first",
        ],
    )
    def test_should_be_taken_however_it_is_run(self, stack: str, how: str) -> None:
        with running(start_container(stack, LIVE_APPS / "started", HOW=how)) as process:
            assert process.post("/init", {"value": {}}).json == {"ok": True}
            for _ in range(5):
                answer = text_of(process.run(web("/")))
                assert answer == "the model of " + str(LIVE_APPS / "started")
                time.sleep(0.1 if how == "later" else 0)
            assert process.request("GET", "/").body.startswith(b"the model")

    @pytest.mark.parametrize("how", ["serial", "simple"])
    def test_should_get_one_request_at_a_time_if_it_asks_for_that(
        self, stack: str, how: str
    ) -> None:
        with (
            running(start_container(stack, LIVE_APPS / "started", HOW=how)) as process,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            process.post("/init", {"value": {}})
            runs = [pool.submit(process.run, web(f"/bound/{name}")) for name in "abcd"]
            own = [pool.submit(process.request, "GET", f"/bound/{name}") for name in "efgh"]
            assert [text_of(run.result()) for run in runs] == ["a 1", "b 1", "c 1", "d 1"]
            assert [some.result().body for some in own] == [b"e 1", b"f 1", b"g 1", b"h 1"]
            assert process.run(web("/nowhere"))["statusCode"] == 404
            assert "takes over 33554432 bytes" in process.run(web("/large"))["error"]["body"]
            assert len(process.request("GET", "/large").body) == 40_000_000
            assert process.run(web("/exit"))["error"]["statusCode"] == 500
            assert process.run(web("/"))["statusCode"] == 200
            assert process.request("GET", "/endless").status == 500
            process.until("takes over 268435456 bytes", process.err)
            assert process.request("GET", "/").status == 200

    def test_should_not_keep_others_waiting_for_a_slow_client(self, stack: str) -> None:
        with (
            running(start_container(stack, LIVE_APPS / "started", HOW="serial")) as process,
            socket.create_connection(("127.0.0.1", process.port)) as slow,
        ):
            process.post("/init", {"value": {}})
            slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx")
            for _ in range(3):
                assert text_of(process.run(web("/"))).startswith("the model")
            assert process.request("GET", "/", seconds=5).status == 200

    @pytest.mark.parametrize(
        ("how", "server"),
        [
            ("wsgiref", "socketserver"),
            ("waitress", "waitress"),
            ("uvicorn", "uvicorn"),
            ("gunicorn", "gunicorn"),
            ("waitress on this port", "waitress"),
            ("wsgiref on this port", "wsgiref"),
            ("gevent's server", "gevent"),
        ],
    )
    def test_should_be_named_if_another_server_runs_it(self, how: str, server: str) -> None:
        container = start_container(sys.executable, LIVE_APPS / "started", HOW=how)
        with running(container) as process:
            error = process.post("/init", {"value": {}}).json["error"]
            assert f"script runs {server}." in error and "WSGI_APP=module:attribute" in error
            assert process.request("GET", "/").status == 503

    def test_should_be_said_to_need_its_own_server_if_it_patches_threads(self) -> None:
        container = start_container(sys.executable, LIVE_APPS / "started", HOW="gevent")
        with running(container) as process:
            error = process.post("/init", {"value": {}}).json["error"]
            assert "patches Python's threads" in error and "forward.py" in error

    @pytest.mark.parametrize("skip", ["", "1"])
    def test_should_have_its_env_files(self, tmp_path: Path, skip: str) -> None:
        """As `Flask.run` loads them where python-dotenv is installed."""
        (tmp_path / ".env").write_text("MY_KEY=42")
        container = start_script(sys.executable, tmp_path, ENV_APP, FLASK_SKIP_DOTENV=skip)
        with running(container) as process:
            assert text_of(process.run(web("/"))) == ("none" if skip else "42")

    def test_should_find_what_is_beside_its_script(self, stack: str, tmp_path: Path) -> None:
        """By the loader of `__main__`, as Jinja's PackageLoader does."""
        (tmp_path / "settings.txt").write_text("beside")
        lines = (
            "import os",
            "from flask import Flask",
            "app = Flask(__name__)",
            "path = os.path.join(os.path.dirname(__file__), 'settings.txt')",
            "app.add_url_rule('/', view_func=lambda: __loader__.get_data(path))",
            "app.run()",
        )
        with running(start_script(stack, tmp_path, *lines)) as process:
            assert text_of(process.run(web("/"))) == "beside"

    @pytest.mark.parametrize("folder", ["", "script/"])
    def test_should_be_that_of_any_script(self, stack: str, folder: str) -> None:
        """With its arguments, and with what is beside it."""
        place = LIVE_APPS if folder else LIVE_APPS / "script"
        arguments = (folder + "serve.py", "--model", "en")
        with running(start_container(stack, place, *arguments)) as process:
            result = process.run(web("/"))
            assert json.loads(text_of(result)) == {"model": "en", "debug": True}
            for lines in (process.out, process.err):  # Flask's banner would tell of its own port
                assert process.until(SENTINEL, lines) == SENTINEL + "\n"
        with running(start_container(stack, place, "nowhere.py")) as process:
            error = process.post("/init", {"value": {}}).json["error"]
            assert f"nowhere.py in {place}: FileNotFoundError" in error

    def test_should_be_named_though_its_module_runs_it(self, stack: str, tmp_path: Path) -> None:
        with running(start_script(stack, tmp_path, ENV_APP, WSGI_APP="app:app")) as process:
            assert text_of(process.run(web("/"))) == "none"

    def test_should_be_free_to_start_and_stop_processes(self, stack: str) -> None:
        with running(start_container(stack, LIVE_APPS / "started", HOW="simple")) as process:
            assert text_of(process.run(web("/processes"))) == "-15 [1, 4]"
            assert text_of(process.run(web("/fork"))) == "0"
            assert text_of(process.run(web("/"))).startswith("the model")

    def test_should_meet_no_deprecation_of_ours(self, stack: str) -> None:
        env = {"PYTHONWARNINGS": "error", "WSGI_APP": "service.api:app"}
        with running(start_container(stack, LIVE_APPS / "plain_flask", **env)) as process:
            assert process.post("/init", {"value": {}}).json == {"ok": True}
            assert text_of(process.run(web("/hello", accept_encoding="gzip"))) == "hello"
            assert process.request("GET", "/hello").body == b"hello"
            assert process.stop() == 0
            assert process.rest(process.err) == SENTINEL + "\n"


class TestWsgiApp:
    """WSGI_APP, as gunicorn's."""

    @pytest.mark.stacks(2)
    @pytest.mark.parametrize(
        ("wsgi_app", "language", "threshold"),
        [
            ("app:create_app()", "en", 0.5),
            ("app:create_app('de')", "de", 0.5),
            ("app:create_app('de', threshold=0.25)", "de", 0.25),
            ("app:needs_a_name(name='fr')", "fr", 0.5),
            ("app:any_arguments", "en", 0.5),
            ("app:Holder.app", "held", 0.5),
            ("", "en", 0.5),
        ],
    )
    def test_should_name_an_app_or_call_a_factory(
        self, stack: str, wsgi_app: str, language: str, threshold: float
    ) -> None:
        env = {"WSGI_APP": wsgi_app, "PREDICT_PATH": "/analyze"}
        with running(start_container(stack, LIVE_APPS / "factory", **env)) as process:
            assert process.post("/init", {"value": {}}).json == {"ok": True}
            body = base64.b64encode(b'{"text": "x"}').decode()
            result = process.run(web(method="post", body=body, content_type="application/json"))
            expected = {"text": "x", "language": language, "threshold": threshold}
            assert json.loads(text_of(result)) == expected

    def test_should_take_a_builtin_at_its_word(self) -> None:
        assert callable(openwhisk.app_of("builtins:dict"))

    def test_should_refuse_a_coroutine(self, stack: str, tmp_path: Path) -> None:
        lines = ("async def app(environ, start_response):", "    pass")
        with running(start_script(stack, tmp_path, *lines, WSGI_APP="app:app")) as process:
            assert "need forward.py" in process.post("/init", {"value": {}}).json["error"]

    def test_should_refuse_an_asgi_app_and_name_forward(self) -> None:
        container = start_container(sys.executable, LIVE_APPS / "fastapi_app", WSGI_APP="main:app")
        with running(container) as process:
            error = process.post("/init", {"value": {}}).json["error"]
            assert "need forward.py" in error


HTTPBIN: dict[str, dict[str, Any]] = {
    "/redirect-to?url=/get&status_code=307": {"method": "POST"},
    "/relative-redirect/2": {},
    "/basic-auth/u/p": {"headers": {"Authorization": "Basic dTpw"}},
    "/bearer": {},
    "/cookies/set?a=1&b=2": {},
    "/image/svg": {},
    "/image/webp": {},
    "/deny": {},
    "/encoding/utf8": {},
    "/xml": {},
    "/etag/a": {"headers": {"If-None-Match": "a"}},
    "/range/50": {"headers": {"Range": "bytes=3-9"}},
    "/stream-bytes/100?seed=1": {},
    "/base64/aGVsbG8%3D": {},
    "/response-headers?X-One=1&X-One=2": {},
    "/forms/post": {},
    "/links/3/1": {},
}


@pytest.mark.only_on("3.13", "httpbin, which is on the stack 3.13", "./test.sh --all")
def test_httpbin_answers_as_behind_its_own_server(stack: str) -> None:
    """Unchanged from PyPI."""
    port = free_port()
    serve = "import httpbin; httpbin.app.run('127.0.0.1', int(__import__('sys').argv[1]))"
    command = [stack, "-c", serve, str(port)]
    container = start_container(stack, LIVE_APPS, WSGI_APP="httpbin:app")
    with (
        running(Process(*command, cwd=LIVE_APPS, port=port)) as own,
        running(container),
        web_action(container.port) as action_port,
    ):
        own.wait_ready()
        action = WebAction(f"http://127.0.0.1:{action_port}{BASE}")
        for path, details in HTTPBIN.items():
            compare(path, details, port, action, at_root=True)
