"""deploy.sh makes web actions, prints calls that work, and leaves no results open beside a locked model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import LIVE_APPS, ROOT, documented, free_port, needs, run, serving

WRAPPER = '#!/bin/sh\necho "$0 $*" >>"${0%/*}/commands"\nexec COMMAND "$@"\n'
ID = "0123456789abcdef0123456789abcdef"
SCHEMAS = {  # parameters, and the call of it
    "file": ([{"in": "formData", "name": "image", "type": "file"}], "-F image=@FILE URL"),
    "form": ([{"in": "formData", "name": "n"}, {"in": "formData", "name": "o"}], "-F n=VALUE URL"),
    "JSON": ([{"in": "body", "name": "p"}], "-H 'Content-Type: application/json' -d JSON URL"),
    "query": ([{"in": "query", "name": "a", "required": True}], "-X POST 'URL?a=VALUE'"),
    "nothing": ([], "-X POST URL"),
}
WRONG = {
    "MODELS=": "which models?",
    "MODELS=a;b": "MODEL 'a;b' is not valid",
    "USERNAME=": "USERNAME '' is not valid",
    "CHECK=health": "CHECK 'health' is not valid",
    "PREDICT_PATH=p": "PREDICT_PATH 'p' is not valid",
    "BASE_PATH=ocr": "BASE_PATH 'ocr' is not valid",
    "RESULTS=yes": "RESULTS 'yes' is not valid",
    "WSK=nowsk": "nowsk is not installed",
}


class Replies(BaseHTTPRequestHandler):
    """All URLs, which answer as it is told for a part of theirs; the last of a list for ever."""

    told: ClassVar[dict[str, list[int]]] = {}
    schema: ClassVar[Any] = {}

    def do_GET(self) -> None:
        statuses = next(self.told[part] for part in self.told if part in self.path)
        self.send_response(statuses.pop(0) if statuses[1:] else statuses[0])
        self.send_header("X-OpenWhisk-Activation-Id", ID)
        self.send_header("Retry-After" if "-results" in self.path else "X", "5")
        self.end_headers()
        self.wfile.write(json.dumps(self.schema).encode())

    def log_message(self, *args: Any) -> None:
        pass


class Deploy:
    """deploy.sh with tests/wsk, and what that keeps; PATH notes what `ps` would show."""

    def __init__(self, folder: Path, port: int, **env: str) -> None:
        self.state, self.commands = folder / "state", folder / "commands"
        self.url = f"http://127.0.0.1:{port}/api/v1/web/guest/default/max-ocr"
        self.wsk = f"{sys.executable} -S {ROOT}/tests/wsk"
        self.env = {**os.environ, "MODELS": "max-ocr", "USERNAME": "me", "WSK": self.wsk, **env}
        self.env |= {"WSK_STATE": str(self.state), "WSK_PORTS": f"{port} {free_port()}"}
        self.env |= {"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(folder)}
        for name, command in (("curl", str(shutil.which("curl"))), ("python3", sys.executable)):
            (folder / name).write_text(WRAPPER.replace("COMMAND", command))
            (folder / name).chmod(0o755)
        self.keep({})

    def run(self, status: int, words: tuple[str, ...], env: dict[str, str]) -> list[str]:
        options: Any = {"cwd": "/", "env": {**self.env, **env}, "text": True}
        done = subprocess.run([ROOT / "deploy.sh", *words], capture_output=True, **options)
        assert done.returncode == status, done
        return [done.stdout, done.stderr]

    def __call__(self, *words: str, **env: str) -> str:
        return self.run(0, words, env)[0]

    def fail(self, *words: str, **env: str) -> str:
        return "".join(self.run(1, words, env))

    def keep(self, actions: Any) -> None:
        self.state.write_text(json.dumps({"actions": actions, "calls": []}))

    def kept(self, what: str = "actions") -> Any:
        return json.loads(self.state.read_text())[what]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    """With URLs of this process's."""
    Replies.schema, Replies.told = {}, {"swagger": [200], "-results": [202], "": [200]}
    with serving(Replies) as server:
        yield Deploy(tmp_path, server.server_port)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Deploy]:
    """With URLs behind which is a live app."""
    deploy = Deploy(tmp_path, free_port(), WSK_APP=str(LIVE_APPS / "max_app"))
    yield deploy
    deploy("--delete")


# ---- The calls that it prints ----


def test_it_prints_what_the_readme_shows_and_that_works(live: Deploy, tmp_path: Path) -> None:
    said = live()
    shown = re.sub(r"http://127.0.0.1:\d+/", "https://openwhisk.example.com/", said)
    assert shown == documented('MODELS="max-ocr" USERNAME=me ./deploy.sh')
    (tmp_path / "FILE").write_text("no picture")
    answer = run("sh", "-c", f"cd {tmp_path} && {said.splitlines()[-1]} -sS")
    assert json.loads(answer)["predictions"][:1] == [10]


def test_a_secret_is_asked_for_and_stands_nowhere(live: Deploy, tmp_path: Path) -> None:
    said, header = live(SECRET='s3"cr et', RESULTS="1"), '-H "X-Require-Whisk-Auth: $SECRET"'
    results = f"curl {header} {live.url}-results/ID"
    assert f"    curl {header} -F image=@FILE {live.url}\n" in said
    assert said.endswith(f"\n    {results}\n")
    answer = run("sh", "-c", f"curl -sSi {header} {live.url}/model/labels", SECRET='s3"cr et')
    results = results.replace("ID", re.findall("(?i)activation-id: (.*)", answer)[0]) + " -sS"
    assert '"person"' in run("sh", "-c", results, SECRET='s3"cr et')
    assert "Authentication" in run("sh", "-c", results, SECRET="another")
    commands = [words for words, _ in live.kept("calls")] + live.commands.read_text().splitlines()
    assert "s3" not in f"{commands}{said}" and "--annotation-file" in f"{commands}"
    assert list(tmp_path.glob("tmp.*")) == []


@pytest.mark.parametrize("predict", ["/p", ""], ids=["of the bare URL", "of another path"])
@pytest.mark.parametrize(("parameters", "shown"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_call_is_what_the_schema_says(
    deploy: Deploy, parameters: list[Any], shown: str, predict: str
) -> None:
    Replies.schema = {"paths": {"/p": {"post": {"parameters": parameters}}}}
    url = deploy.url if predict else deploy.url + "/p"
    assert deploy(PREDICT_PATH=predict).endswith(f"    curl {shown.replace('URL', url)}\n")


@pytest.mark.parametrize("schema", [{}, [], {"paths": {"/": {"get": {}}}}], ids=str)
def test_without_a_schema_it_says_what_the_url_stands_for(deploy: Deploy, schema: Any) -> None:
    Replies.schema = schema
    assert deploy().endswith(f" {deploy.url} stands for what the image has as its PREDICT_PATH\n")
    assert deploy(PREDICT_PATH="/p").endswith(f" {deploy.url} stands for /p\n")


# ---- What it makes ----


@pytest.mark.parametrize("secret", ["s3cret", ""], ids=["locked", "open"])
def test_each_update_passes_all_annotations_and_parameters(deploy: Deploy, secret: str) -> None:
    settings = {"VERSION": "1.0", "PACKAGE": "p", "MEMORY": "1024", "TIMEOUT": "60000"}
    settings["USERNAME"] = "localhost:5000/me"
    settings |= {"CONCURRENCY": "10", "SECRET": secret, "RESULTS": "1", "RESULTS_INSECURE": "1"}
    deploy(**settings, PREDICT_PATH="/p", BASE_PATH="/o", RESULT_LIMIT="2000")
    assert deploy.kept("calls")[0][0] == ["package", "update", "p"]
    fixed = {"web-export": True, "raw-http": True, "final": True, "web-custom-options": False}
    annotations: Any = {**fixed, "require-whisk-auth": secret or False}
    bound = {"PREDICT_PATH": "/p", "BASE_PATH": "/o", "RESULT_LIMIT": "2000"}
    assert deploy.kept()["p/max-ocr"] == {
        "--docker": "localhost:5000/me/max-ocr:1.0",
        "--memory": "1024",
        "--timeout": "60000",
        "--concurrency": "10",
        "parameters": {f"OPENWHISK_{name}": bound[name] for name in bound},
        "annotations": {**annotations, "provide-api-key": False},
    }
    assert deploy.kept()["p/max-ocr-results"] == {
        f"{ROOT}/results.py": "",
        "--kind": "python:default",
        "parameters": {"MODEL": "max-ocr", "INSECURE": "1"},
        "annotations": {**annotations, "provide-api-key": True},
    }
    deploy()
    made = deploy.kept()["max-ocr"]
    assert set(made.pop("parameters").values()) == {""}
    defaults = {"--docker": "me/max-ocr", "--memory": "512", "--timeout": "300000"}
    assert made == {**defaults, "annotations": made["annotations"]}


@pytest.mark.parametrize("keeps", ["0", "1"], ids=["without results", "with results"])
@pytest.mark.parametrize(("before", "after"), [("", "new"), ("old", "")], ids=["lock", "unlock"])
def test_no_step_leaves_open_results_beside_a_locked_model(
    deploy: Deploy, before: str, after: str, keeps: str
) -> None:
    """Not for a moment, whichever call of wsk fails, nor if the check (0) does."""
    deploy(SECRET=before, RESULTS="1")
    start, env = deploy.kept(), {"SECRET": after, "RESULTS": keeps}
    deploy.keep(start)
    deploy(**env)
    seen = locks(deploy)
    assert seen[-1] == dict.fromkeys(["max-ocr", "max-ocr-results"][: 1 + int(keeps)], after)
    for failing in range(len(seen) + 1):
        deploy.keep(start)
        Replies.told[""] = [200 if failing else 500]
        assert "FAILED: " in deploy.fail(**env, WSK_FAILS=str(failing))
        seen += locks(deploy)
    assert [one for one in seen if one["max-ocr"] and one.get("max-ocr-results") == ""] == []


def locks(deploy: Deploy) -> list[dict[str, Any]]:
    """The secret of each action, after each call of wsk."""
    key, states = "require-whisk-auth", [actions for _, actions in deploy.kept("calls")]
    return [{name: one["annotations"][key] or "" for name, one in now.items()} for now in states]


@pytest.mark.parametrize("left", [["max-ocr", "max-ocr-results"], ["max-ocr-results"], []], ids=str)
def test_delete_removes_both_whichever_is_left(deploy: Deploy, left: list[str]) -> None:
    deploy.keep(dict.fromkeys(left, {}))
    assert (deploy("--delete", USERNAME=""), deploy.kept()) == ("max-ocr: gone\n", {})
    assert "FAILED: error: Unable to delete" in deploy.fail("--delete", WSK_FAILS="3")


# ---- What it says ----


def test_a_check_that_fails_is_a_sentence_and_the_next_model_has_its_turn(deploy: Deploy) -> None:
    Replies.told[""] = [404, 202, 202, 200]  # and OpenWhisk says 202 to a cold start
    said, url = deploy.fail("a", "b", CHECK="/health?a=b"), deploy.url.replace("max-ocr", "")
    assert f"a: FAILED: GET {url}a/health?a=b is answered with 404, not 200, see " in said
    assert f"{deploy.wsk} activation get {ID}: {{}}\n" in said
    assert f"b: {url}b\n" in said
    Replies.told[""] = [404]
    deploy(CHECK="")


def test_results_that_do_not_reach_the_api_are_a_sentence(deploy: Deploy) -> None:
    Replies.told["-results"] = [502]
    url = f"{deploy.url}-results/{'0' * 32}"
    assert f"GET {url} is answered with 502, not 202, see " in deploy.fail(RESULTS="1")


def test_a_wsk_that_fails_is_a_sentence(deploy: Deploy) -> None:
    assert "FAILED: wsk could not make max-ocr, or" in deploy.fail(WSK_FAILS="2")
    failing = {"PACKAGE": "p", "WSK_FAILS": "3"}
    assert "deploy.sh: wsk could not make the package." in deploy.fail(**failing)


@pytest.mark.parametrize(("setting", "sentence"), WRONG.items(), ids=WRONG)
def test_what_is_not_valid_is_a_sentence(deploy: Deploy, setting: str, sentence: str) -> None:
    name, _, text = setting.partition("=")
    said = deploy.fail(**{name: text})
    assert (said.startswith("deploy.sh: " + sentence), deploy.kept("calls")) == (True, [])


def test_the_scripts_pass_shellcheck() -> None:
    needs("shellcheck")
    scripts = ["build.sh", "deploy.sh", "demo.sh", "test.sh", ".ci/run", "requirements/install.sh"]
    run("shellcheck", *(ROOT / script for script in scripts))
