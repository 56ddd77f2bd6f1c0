"""build.sh and deploy.sh with a real engine, a real registry and real images."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from conftest import (
    BASE,
    LIVE_APPS,
    ROOT,
    Process,
    WebAction,
    documented,
    free_port,
    needs,
    request,
    run,
    running,
    serving,
    web_action,
)

JSON = {"Content-Type": "application/json"}
Done = subprocess.CompletedProcess[str]
MODEL = """
FROM base:ocr
RUN ln -s python3 /usr/bin/python && useradd --create-home max
"""
# As many images are: python3 without python, a user, a command of the shell, and no Werkzeug, which
# pip finds in a folder.
LANGUAGE = """
FROM base:language
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/site/wheels
RUN useradd --create-home me
USER me
WORKDIR /srv
COPY . .
EXPOSE 8000
CMD python3 -m uvicorn main:app --host 0.0.0.0 --port 8000
"""
FACTORY = """
FROM base:ocr
ENV PORT=3000
WORKDIR /srv
COPY . .
CMD ["gunicorn", "--bind", "0.0.0.0:3000", "app:create_app()"]
"""
SCRIPT = """
FROM base:ocr
WORKDIR /srv
COPY . .
STOPSIGNAL SIGQUIT
"""
COMMANDS = {  # of the script
    "script": 'CMD ["python3", "-u", "serve.py", "--model", "en", "--port=5000"]',
    "script-of-a-shell": "CMD exec python3 ./serve.py --model en --port=5000",
}
HOMES = {
    "max-ocr": "WORKDIR /workspace\n",
    "max-ocr-home": 'USER max\nWORKDIR /home/max\nENTRYPOINT ["/bin/sh", "-c"]\n',
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Docker engine of the tests' own; its address is in DOCKER_HOST."""
    needs("dockerd", "docker", "docker-registry", "mmdebstrap")
    if os.geteuid():
        pytest.skip("needs root for a Docker engine of its own")
    folder = tmp_path_factory.mktemp("docker")
    host = f"unix://{folder}/socket"
    options = [
        "--data-root",
        f"{folder}/data",
        "--exec-root",
        f"{folder}/exec",
        "-H",
        host,
        "-p",
        f"{folder}/pid",
    ]
    with (
        pytest.MonkeyPatch.context() as patch,
        running(Process("dockerd", *options, cwd=folder)) as process,
    ):
        patch.setenv("DOCKER_HOST", host)
        patch.setenv("DOCKER_CONFIG", str(folder))
        process.until("API listen on", process.err)
        yield host
        for container in run("docker", "ps", "-aq").split():
            run("docker", "rm", "-f", container)


@pytest.fixture(scope="module")
def registry(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    (folder / "config.yml").write_text(
        json.dumps({"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}})
    )
    with running(
        Process("docker-registry", "serve", "config.yml", cwd=folder, port=port)
    ) as process:
        process.wait_ready()
        yield f"localhost:{port}"


@pytest.fixture(scope="module")
def models(engine: str, registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the example's images are, in the two layouts that MAX images have."""
    folder = tmp_path_factory.mktemp("image")

    def build(tag: str, dockerfile: str, context: Path) -> None:
        (folder / "Dockerfile").write_text(dockerfile)
        run("docker", "build", "-q", "-t", tag, "-f", folder / "Dockerfile", context)

    packages = "--include=python3,python3-pip,ca-certificates"
    run("mmdebstrap", "--variant=minbase", packages, "bookworm", folder / "root.tar")
    run("docker", "import", folder / "root.tar", "base:test")
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = run("docker", "run", "--rm", "base:test", "python3", "-c", asked).strip()
    options = ["-q", "--only-binary=:all:", "--python-version", version]
    pip = [sys.executable, "-m", "pip"]
    for example in ("ocr", "language"):
        site, needed = folder / f"{example}-site", ROOT / "examples" / example / "requirements.txt"
        run(*pip, "install", *options, "--target", site, "-r", needed)
        if example == "language":
            run(*pip, "download", *options, "-d", site / "wheels", "werkzeug")
        installed = "FROM base:test\nENV PYTHONPATH=/opt/site\nCOPY . /opt/site\n"
        build(f"base:{example}", installed, site)
    shutil.copytree(
        ROOT / "examples/ocr", folder / "ocr", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, home in HOMES.items():
        image = f"{registry}/codait/{name}"
        build(image, MODEL + home + "COPY . .\nEXPOSE 5000\nCMD python app.py\n", folder / "ocr")
        run("docker", "push", "-q", image)
        run("docker", "rmi", image)
    build("others/language", LANGUAGE, ROOT / "examples/language")
    on_8080 = LANGUAGE.replace("8000", "8080")
    build("others/language-8080", on_8080, ROOT / "examples/language")
    for name, command in COMMANDS.items():
        build(f"others/{name}", SCRIPT + command, LIVE_APPS / "script")
    build("others/factory", FACTORY, LIVE_APPS / "factory")
    build("others/flask-app", FACTORY, LIVE_APPS / "flask_app")
    return f"{registry}/codait"


@pytest.fixture(scope="module")
def built(models: str, registry: str) -> Done:
    """build.sh for three models, one of which does not exist."""
    env = {
        **os.environ,
        "MODELS": "max-ocr max-nowhere max-ocr-home",
        "USERNAME": f"{registry}/me",
        "REGISTRY": models,
    }
    return subprocess.run(
        ["./build.sh"], cwd=ROOT, env={**env, "JOBS": "2"}, capture_output=True, text=True
    )


def rows(output: str) -> dict[str, list[str]]:
    return {
        line.split()[0]: line.split(maxsplit=5) for line in output.partition("\n\n")[2].splitlines()
    }


def test_every_model_gets_its_turn_and_its_row(built: Done, models: str, registry: str) -> None:
    table = rows(built.stdout)
    assert built.returncode == 1
    assert list(table) == ["model", "max-ocr", "max-nowhere", "max-ocr-home"]
    for name in HOMES:
        assert table[name][1] == f"{registry}/me/{name}", built
        assert re.fullmatch("sha256:[0-9a-f]{64}\n?", table[name][5])
    assert f"FAILED: there is no base image {models}/max-nowhere:latest" in built.stdout
    log = re.search(r"The end of (.*):\n", built.stderr)
    assert log
    assert "manifest" in Path(log[1]).read_text()
    assert re.search("    .*not found|    .*manifest unknown", built.stderr)


def test_the_readme_shows_what_is_printed(built: Done, models: str, registry: str) -> None:
    printed = built.stdout.replace(models, "quay.io/codait").replace(f"{registry}/me", "me")
    lines = [line for line in printed.splitlines(keepends=True) if "max-ocr-home" not in line]
    shown = documented('MODELS="max-ocr max-nowhere" USERNAME=me ./build.sh').splitlines(
        keepends=True
    )
    assert sorted(map(masked, lines)) == sorted(map(masked, shown))


def masked(line: str) -> str:
    """Without the figures and the columns' widths, which differ."""
    return re.sub(
        "sha256:[0-9a-f]{64}", "sha256:", re.sub(" [0-9]+ ", " N ", re.sub(" +", " ", line))
    )


@pytest.fixture(params=HOMES)
def image(request: pytest.FixtureRequest, built: Done, registry: str) -> str:
    """A pushed image, pulled again."""
    name = f"{registry}/me/{request.param}"
    run("docker", "rmi", "-f", name)
    run("docker", "pull", "-q", name)
    return name


def start(image: str, *options: str) -> tuple[str, int]:
    """The container's id and its port on this machine."""
    container = run("docker", "run", "-d", "-p", "127.0.0.1::8080", *options, image).strip()
    return container, int(run("docker", "port", container, "8080").strip().rpartition(":")[2])


def test_the_layer_is_small_and_labelled(image: str) -> None:
    history = run("docker", "history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", image)
    copied = next(line for line in history.splitlines() if "COPY" in line)
    assert copied.split()[0].endswith("kB")
    assert float(copied.split()[0][:-2]) < 64
    labels = json.loads(run("docker", "inspect", "--format", "{{json .Config.Labels}}", image))
    assert labels["org.opencontainers.image.title"] == image.rpartition("/")[2]
    assert labels["org.opencontainers.image.base.name"].endswith(
        f"/codait/{image.rpartition('/')[2]}:latest"
    )
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    config = json.loads(run("docker", "inspect", "--format", "{{json .Config}}", image))
    assert (config.get("User", ""), config["WorkingDir"]) == (
        ("max", "/home/max") if "home" in image else ("", "/workspace")
    )


@pytest.mark.parametrize(
    "options", [("--memory", "512m"), ("--read-only", "--tmpfs", "/tmp", "--memory", "512m")]
)
def test_the_container_reads_the_text_in_a_picture(image: str, options: tuple[str, ...]) -> None:
    container, port = start(image, *options)
    web_port = str(free_port())
    command = [sys.executable, "devserver.py", f"http://127.0.0.1:{port}", "--port", web_port]
    with running(Process(*command, cwd=ROOT)) as server:
        url = server.out.get(timeout=120).strip()
        asked = ["curl", "-sS", "-F", "image=@assets/receipt.png"]
        assert '"CAFE SERVERLESS"' in run(*asked, url)
    assert '"CAFE SERVERLESS"' in run(*asked, f"http://127.0.0.1:{port}/model/predict")
    started = time.monotonic()
    run("docker", "stop", container)
    assert time.monotonic() - started < 9  # after 10 s it is killed
    assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container) == "0\n"
    run("docker", "rm", container)


def test_the_image_still_starts_the_models_own_server(image: str) -> None:
    container = run("docker", "run", "-d", image, "python", "app.py").strip()
    with running(Process("docker", "logs", "-f", container, cwd=ROOT)) as logs:
        logs.until("Running on http://127.0.0.1:5000", logs.err)
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:5000/model/metadata').read().decode())"
    assert '"id": "max-ocr"' in run("docker", "exec", container, "python", "-c", ask)
    run("docker", "rm", "-f", container)


class TestBuild:
    def test_should_not_push_an_image_that_does_not_answer(
        self, models: str, registry: str, tmp_path: Path
    ) -> None:
        (tmp_path / "Dockerfile").write_text(f"FROM {models}/max-ocr\nRUN rm config.py\n")
        run("docker", "build", "-q", "-t", "codait/max-broken", str(tmp_path))
        done = self.build("--registry", "codait", "--username", f"{registry}/me", "max-broken")
        assert done.returncode == 1
        assert "FAILED: the model does not answer" in done.stdout
        assert "ModuleNotFoundError: No module named 'config'" in done.stderr
        assert run("docker", "ps", "-q") == ""
        assert "max-broken" not in run("curl", "-sS", f"http://{registry}/v2/_catalog")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_should_stop_at_once_when_told_so(
        self, models: str, registry: str, number: int
    ) -> None:
        options = ["-u", f"{registry}/stopped", "-r", models, "-j", "2", "max-ocr", "max-ocr-home"]
        with running(Process("./build.sh", *options, cwd=ROOT)) as process:
            while not run("docker", "ps", "-q"):
                assert process.popen.poll() is None
                time.sleep(0.05)
            process.popen.send_signal(number)
            assert process.popen.wait(timeout=30) == 128 + number
        assert run("docker", "ps", "-aq", "--filter", "label=build") == ""
        deadline = time.monotonic() + 30
        while run("docker", "ps", "-aq"):  # the engine ends its own of a build a moment later
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "stopped" not in run("curl", "-sS", f"http://{registry}/v2/_catalog")

    def test_should_only_build_when_told_so(self, models: str, registry: str) -> None:
        done = self.build("--no-push", "-u", f"{registry}/nobody", "-r", models, "max-ocr")
        assert done.returncode == 0, done
        assert rows(done.stdout)["max-ocr"][5] == "not pushed"
        assert "nobody" not in run("curl", "-sS", f"http://{registry}/v2/_catalog")

    def test_should_say_that_the_registry_refuses(self, models: str) -> None:
        done = self.build("-u", f"localhost:{free_port()}/me", "-r", models, "max-ocr")
        assert done.returncode == 1
        assert "FAILED: the registry refused it (try 'docker login')" in done.stdout

    def test_should_tag_a_version_too(self, models: str, registry: str) -> None:
        done = self.build("-v", "1.2.0", "-u", f"{registry}/me", "-r", models, "max-ocr")
        assert done.returncode == 0, done
        tags = json.loads(run("curl", "-sS", f"http://{registry}/v2/me/max-ocr/tags/list"))["tags"]
        assert sorted(tags) == ["1.2.0", "latest"]
        label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
        tagged = run("docker", "inspect", "--format", label, f"{registry}/me/max-ocr:1.2.0")
        assert tagged == "1.2.0\n"

    def test_should_have_a_dockerfile_that_does_by_itself(self, models: str) -> None:
        options = ["--build-arg", f"REGISTRY={models}", "--build-arg", "MODEL=max-ocr"]
        run("docker", "build", "-q", "-t", "plain", *options, ROOT)
        container, port = start("plain")
        with web_action(port) as web_port:
            assert request(web_port, "GET", BASE + "/model/metadata").json["id"] == "max-ocr"
        run("docker", "rm", "-f", container)

    def test_should_call_a_factory_and_check_what_it_is_told(
        self, models: str, registry: str
    ) -> None:
        env = {"WSGI_APP": "app:create_app('de')", "CHECK": "/health", "PREDICT_PATH": "/analyze"}
        options = ["-u", f"{registry}/me", "-r", "others", "factory"]
        done = self.build(*options, **env)
        assert done.returncode == 0, done
        container, port = start(f"{registry}/me/factory")
        with web_action(port) as web_port:
            answer = request(web_port, "POST", BASE, b'{"text": "x"}', JSON)
        assert answer.json == {"text": "x", "language": "de", "threshold": 0.5}
        run("docker", "rm", "-f", container)
        done = self.build(*options, **{**env, "CHECK": "/healthy"})
        assert done.returncode == 1
        assert "GET /healthy is answered with" in done.stderr
        assert '"statusCode": 404' in done.stderr
        assert self.build(*options, "--no-push", **{**env, "CHECK": ""}).returncode == 0

    @pytest.mark.parametrize("name", COMMANDS)
    def test_should_run_the_script_that_the_image_runs(
        self, models: str, registry: str, name: str
    ) -> None:
        done = self.build("-u", f"{registry}/me", "-r", "others", "--check", "/", name)
        assert done.returncode == 0, done
        container, port = start(f"{registry}/me/{name}")
        with web_action(port) as web_port:
            answer = request(web_port, "GET", BASE + "/")
        assert answer.json == {"model": "en", "debug": True}
        run("docker", "stop", container)
        assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container) == "0\n"
        run("docker", "rm", container)

    def test_should_give_another_port_to_a_server_on_openwhisks(
        self, models: str, registry: str
    ) -> None:
        options = ["--forward", "-u", f"{registry}/me", "-r", "others", "language-8080"]
        done = self.build(*options, CHECK="/health")
        assert done.returncode == 0, done

    def test_should_add_forward_to_an_image_with_its_own_server(
        self, models: str, registry: str
    ) -> None:
        env = {"CHECK": "/health", "PREDICT_PATH": "/predict"}
        options = ["--forward", "-u", f"{registry}/me", "-r", "others", "language"]
        done = self.build(*options, **env)
        assert done.returncode == 0, done
        config = json.loads(run("docker", "inspect", f"{registry}/me/language"))[0]["Config"]
        assert config["User"] == "me"
        assert config["Cmd"][:2] == ["python3", "openwhisk.py"]
        container, port = start(f"{registry}/me/language")
        with web_action(port) as web_port:
            answer = request(
                web_port, "POST", BASE, b'{"text": "Guten Morgen, wie geht es Ihnen?"}', JSON
            )
        assert answer.json["language"] == "de"
        run("docker", "stop", container)
        assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container) == "0\n"
        run("docker", "rm", container)

    def test_should_say_what_an_image_lacks(self, models: str, tmp_path: Path) -> None:
        (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
        run("docker", "build", "-q", "-t", "others/empty", str(tmp_path))
        done = self.build("--no-push", "-u", "me", "-r", "others", "empty")
        assert "FAILED: others/empty:latest has no Python, which openwhisk.py needs" in done.stdout
        done = self.build("--no-push", "-f", "-u", "me", "-r", "others", "factory")
        assert "exposes no port: name its server's, UPSTREAM_PORT=8000" in done.stdout
        run("docker", "tag", "base:test", "others/base")
        done = self.build("--no-push", "-f", "-u", "me", "-r", "others", "base")
        assert "FAILED: others/base:latest has neither CMD nor ENTRYPOINT" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "which models?"),
            (("-u", "me", "-v", "a b", "max-ocr"), "VERSION 'a b' is not valid"),
            (("-u", "me", "-c", "health", "max-ocr"), "CHECK 'health' is not valid"),
            (("max-ocr",), "USERNAME is missing"),
            (("-u", "me", "max ocr"), "the model 'max ocr' is not valid"),
            (("-u", "me", "$(touch evil)"), "the model '$(touch evil)' is not valid"),
            (("-u", "Me!", "max-ocr"), "USERNAME 'Me!' is not valid"),
            (
                ("-u", "me", "-r", "docker.io/me", "max-ocr"),
                "the images would replace the models' own",
            ),
            (("-u", "me", "-t", "a b", "max-ocr"), "TAG 'a b' is not valid"),
            (("-u", "me", "-j", "0", "max-ocr"), "JOBS '0' is not valid"),
            (("-u",), "-u needs a value"),
            (("--pull",), "there is no option --pull"),
            (("-u", "me", "-d", "nodocker", "max-ocr"), "nodocker is not installed"),
            (
                ("-u", "me", "-d", "docker -H unix:///nowhere", "max-ocr"),
                "the engine does not answer",
            ),
        ],
    )
    def test_should_say_what_is_wrong_and_do_nothing(
        self, arguments: tuple[str, ...], words: str
    ) -> None:
        done = self.build(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stdout == ""
        assert not (ROOT / "evil").exists()

    def test_should_explain_itself(self) -> None:
        assert "MODELS=" in self.build("--help").stdout

    def build(self, *arguments: str, **settings: str) -> Done:
        env = {
            name: text for name, text in os.environ.items() if name not in ("MODELS", "USERNAME")
        }
        env.update(settings)
        return subprocess.run(
            ["./build.sh", *arguments], cwd=ROOT, env=env, capture_output=True, text=True
        )


def noting(folder: Path, script: str) -> dict[str, str]:
    """A command that notes its words and goes on with the script; the variables that it takes."""
    command, notes = folder / "command", folder / "notes"
    command.write_text('#!/bin/sh\nprintf \'%s\\n\' "$@" END >>"$NOTES"\n' + script)
    command.chmod(0o755)
    notes.write_text("")
    return {"PATH": os.environ["PATH"], "NOTES": str(notes), "COMMAND": str(command)}


def noted(folder: Path) -> list[list[str]]:
    """The words of each call of the command."""
    calls = (folder / "notes").read_text().split("END\n")
    return [call.splitlines() for call in calls if call]


class TestBuildWords:
    """What build.sh says to an engine, with a stand-in for docker that only takes notes."""

    DOCKER = """
    case $*$FAIL in
        *Entrypoint*) echo "$WORDS" ;;
        *ExposedPorts*) echo '8000/tcp ' ;;
        "run --rm"*) case $* in *" $PYTHON "*"< (3, 6)"*) ;; *) exit 1 ;; esac ;;
        "run -d"*run | build*build) exit 1 ;;
        build*)
            cat "$3" >"$NOTES.Dockerfile"
            touch "$NOTES.$$"
            for _ in $(seq 400); do
                [ "$(ls "$NOTES".[0-9]* | wc -l)" -lt "${TOGETHER:-1}" ] || exit 0
                sleep 0.05
            done
            exit 1
            ;;
    esac
    """

    def build(self, folder: Path, *arguments: str, **env: str) -> tuple[Done, list[list[str]], str]:
        """How it ended, the words of each call of docker, and the last Dockerfile."""
        known = noting(folder, self.DOCKER)
        given = {"MODELS": "max-ocr", "USERNAME": "me", "PYTHON": "python"}
        environment = {**known, "DOCKER": known["COMMAND"], **given, **env}
        done = subprocess.run(
            ["./build.sh", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        made = folder / "notes.Dockerfile"
        return done, noted(folder), made.read_text() if made.exists() else ""

    def test_should_ask_for_what_the_usage_says(self, tmp_path: Path) -> None:
        given = {
            "WSGI_APP": "app:create_app('de')",
            "PREDICT_PATH": "/p",
            "RESULT_LIMIT": "2000000",
        }
        options = ["--username", "localhost:1/me", "--registry", "localhost:1/you", "--tag", "2"]
        options += ["--version", "1.0", "--check", "/health", "--jobs", "2"]
        done, calls, _ = self.build(tmp_path, *options, **given)
        assert done.returncode == 0, done
        words = next(call for call in calls if call[0] == "build")
        arguments = {words[place + 1] for place, word in enumerate(words) if word == "--build-arg"}
        wanted = {f"{name}={text}" for name, text in given.items()}
        wanted |= {"REGISTRY=localhost:1/you", "MODEL=max-ocr", "TAG=2", "VERSION=1.0"}
        revision = arguments - wanted
        assert wanted < arguments and len(revision) == 1 and revision.pop().startswith("REVISION=")
        tags = [words[place + 1] for place, word in enumerate(words) if word == "-t"]
        assert tags == ["localhost:1/me/max-ocr", "localhost:1/me/max-ocr:1.0"]
        assert next(call for call in calls if call[0] == "exec")[-1] == "/health"
        pushed = [call[1] for call in calls if call[0] == "push"]
        assert pushed == ["localhost:1/me/max-ocr:1.0", "localhost:1/me/max-ocr:latest"]
        assert ["image", "inspect", "quay.io/codait/max-ocr:latest"] in self.build(tmp_path)[1]

    @pytest.mark.parametrize(
        ("command", "script"),
        [
            (["python", "app.py"], ["app.py"]),
            (["/usr/bin/python3.7", "-u", "serve.py", "--port=5000"], ["serve.py", "--port=5000"]),
            (["/sbin/tini", "--", "python", "app.py"], ["app.py"]),
            (["/bin/sh", "-c", "exec python3 ./serve.py -a b"], ["./serve.py", "-a", "b"]),
            (["/bin/sh", "-c", "cd x && python app.py"], []),
            (["/bin/sh", "-c", "python app.py $PORT"], []),
            (["python", "-m", "flask.py"], []),
            (["python", "-c", "import app.py"], []),
            (["gunicorn", "app.py"], []),
        ],
    )
    def test_should_run_the_script_of_the_images_command(
        self, tmp_path: Path, command: list[str], script: list[str]
    ) -> None:
        words = "".join(", " + json.dumps(word) for word in command)
        _, _, dockerfile = self.build(tmp_path, WORDS=words)
        last = dockerfile.splitlines()[-1]
        assert json.loads(last.partition(" ")[2]) == ["python", "openwhisk.py", *script]
        _, _, dockerfile = self.build(tmp_path, WORDS=words, WSGI_APP="app:app")
        assert dockerfile.endswith('\nCMD ["python", "openwhisk.py"]\n')

    def test_should_take_a_python_that_is_recent(self, tmp_path: Path) -> None:
        _, _, dockerfile = self.build(tmp_path, PYTHON="python3")
        assert dockerfile.endswith('\nCMD ["python3", "openwhisk.py"]\n')

    def test_should_forward_to_the_port_that_it_is_told(self, tmp_path: Path) -> None:
        for env, port in (({}, "8000"), ({"UPSTREAM_PORT": "9000"}, "9000")):
            _, _, dockerfile = self.build(tmp_path, "--forward", WORDS=', "serve"', **env)
            assert f"\nENV WSGI_APP=forward:app UPSTREAM_PORT={port}\n" in dockerfile
            assert dockerfile.endswith('\nCMD ["python", "openwhisk.py", "serve"]\n')

    def test_should_build_as_many_at_once_as_it_is_told(self, tmp_path: Path) -> None:
        """The stand-in ends no build before both have begun."""
        done, _, _ = self.build(tmp_path, "-j", "2", MODELS="a b", TOGETHER="2")
        assert done.returncode == 0, done

    @pytest.mark.parametrize(
        ("fails", "words"), [("build", "the build failed"), ("run", "the image does not start")]
    )
    def test_should_say_what_failed(self, tmp_path: Path, fails: str, words: str) -> None:
        done, calls, _ = self.build(tmp_path, FAIL=fails)
        assert (done.returncode, "FAILED: " + words in done.stdout) == (1, True)
        assert "push" not in [call[0] for call in calls]

    @pytest.mark.parametrize(
        ("name", "text"),
        [("RESULT_LIMIT", "1 MB"), ("UPSTREAM_PORT", "http"), ("WSGI_APP", "app"), ("PUSH", "no")],
    )
    def test_should_say_which_variable_is_wrong(self, tmp_path: Path, name: str, text: str) -> None:
        done, calls, _ = self.build(tmp_path, **{name: text})
        assert f"{name} '{text}' is not valid" in done.stderr
        assert calls == []


class TestDeploy:
    @pytest.fixture
    def state(self, tmp_path: Path) -> Iterator[Path]:
        yield tmp_path
        for file in tmp_path.iterdir():
            os.environ["WSK_STATE"] = str(tmp_path)
            run(str(ROOT / "tests" / "wsk"), "action", "delete", file.name.replace("+", "/"))

    def deploy(self, state: Path, *arguments: str, **env: str) -> Done:
        environment = {
            **os.environ,
            "WSK": str(ROOT / "tests" / "wsk"),
            "WSK_STATE": str(state),
            **env,
        }
        environment = {name: text for name, text in environment.items() if text}
        return subprocess.run(
            ["./deploy.sh", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )

    def test_should_make_web_actions_and_say_how_to_call_them(
        self, built: Done, registry: str, state: Path
    ) -> None:
        env = {
            "MODELS": "max-ocr max-nowhere max-ocr-home",
            "USERNAME": f"{registry}/me",
            "PACKAGE": "models",
        }
        done = self.deploy(state, SECRET="s3cret", **env)
        assert done.returncode == 1
        assert "models/max-nowhere: FAILED: wsk could not make the action" in done.stderr
        known = json.loads((state / "models+max-ocr").read_text())
        assert known["options"] == {
            "--docker": f"{registry}/me/max-ocr",
            "--web": "raw",
            "--memory": "512",
            "--timeout": "300000",
            "--web-secure": "s3cret",
            "params": {"CORS": ""},
            "annotations": {"web-custom-options": "false"},
        }
        curl = f"curl -H 'X-Require-Whisk-Auth: s3cret' -F image=@FILE {known['url']}"
        assert f"models/max-ocr: {known['url']}\n    {curl}\n" in done.stdout
        answer = run("sh", "-c", curl.replace("FILE", str(ROOT / "assets" / "receipt.png")))
        assert '"CAFE SERVERLESS"' in answer
        deleted = self.deploy(state, "--delete", "max-ocr-home", "max-nowhere", PACKAGE="models")
        assert deleted.returncode == 1
        assert "models/max-ocr-home: deleted" in deleted.stdout
        assert "models/max-nowhere: FAILED: wsk could not delete it" in deleted.stderr

    def test_should_print_what_the_readme_shows(
        self, built: Done, registry: str, state: Path
    ) -> None:
        done = self.deploy(state, MODELS="max-ocr", USERNAME=f"{registry}/me")
        printed = re.sub("http://127.0.0.1:[0-9]+/", "https://openwhisk.example.com/", done.stdout)
        assert printed == documented('MODELS="max-ocr" USERNAME=me ./deploy.sh')

    FLASK_APP = {"MODELS": "flask-app", "CHECK": "", "TIMEOUT": "5000"}

    @pytest.fixture
    def flask_app(self, models: str, registry: str) -> str:
        command = ["./build.sh", "-u", f"{registry}/me", "-r", "others", "-v", "2.0", "flask-app"]
        run("env", "CHECK=", *command)
        return f"{registry}/me"

    def test_should_bind_settings_and_keep_results(self, flask_app: str, state: Path) -> None:
        settings = {"VERSION": "2.0", "PREDICT_PATH": "/environment", "CORS": "https://a.example"}
        settings |= {"BASE_PATH": "/", "RESULTS": "1", "SECRET": "s3cret"}
        done = self.deploy(state, USERNAME=flask_app, **self.FLASK_APP, **settings)
        assert done.returncode == 0, done
        known = json.loads((state / "flask-app").read_text())
        assert known["options"]["--docker"] == f"{flask_app}/flask-app:2.0"
        bound = {name: settings[name] for name in ("PREDICT_PATH", "CORS", "BASE_PATH")}
        assert known["options"]["params"] == bound
        of_results = json.loads((state / "flask-app-results").read_text())["options"]
        assert (of_results["--web"], of_results["params"]) == ("raw", {"MODEL": "flask-app"})
        action, headers = WebAction(known["url"]), {"X-Require-Whisk-Auth": "s3cret"}
        answer = action.request("GET", "", None, {**headers, "Origin": "https://a.example"})
        assert "__OW_NAMESPACE" in answer.json
        assert answer.header("access-control-allow-origin") == "https://a.example"
        told = re.search(r"curl -H (X-Require\S+\s\S+) (http\S+)-results/ID", done.stdout)
        assert told and told[1].replace("\\", "") == "X-Require-Whisk-Auth: s3cret"
        path = "-results/" + (answer.header("x-openwhisk-activation-id") or "")
        assert action.request("GET", path, None, headers).body == answer.body
        done = self.deploy(state, USERNAME=flask_app, **self.FLASK_APP)  # and no results
        assert (done.returncode, [file.name for file in state.iterdir()]) == (0, ["flask-app"])
        deleted = self.deploy(state, "--delete", "flask-app")
        assert (deleted.returncode, list(state.iterdir())) == (0, [])

    def test_should_say_why_an_action_does_not_answer(self, flask_app: str, state: Path) -> None:
        done = self.deploy(state, USERNAME=flask_app, **{**self.FLASK_APP, "CHECK": "/os-exit"})
        assert done.returncode == 1
        assert "/os-exit: 400 " in done.stderr
        assert "The action did not produce a valid response and exited" in done.stderr

    def test_should_print_no_page_of_an_app_without_swagger(
        self, flask_app: str, state: Path
    ) -> None:
        done = self.deploy(state, USERNAME=flask_app, **self.FLASK_APP)
        assert (done.returncode, done.stderr) == (0, "")
        assert "html" not in done.stdout

    def test_should_print_a_manifest(self, state: Path) -> None:
        settings = {"SECRET": 'a"b', "CORS": "*", "RESULTS": "1", "VERSION": "1.0", "PACKAGE": "p"}
        done = self.deploy(state, "--manifest", MODELS="max-ocr b", USERNAME="me", **settings)
        package = yaml.safe_load(done.stdout)["packages"]["p"]["actions"]
        assert package["max-ocr"] == {
            "docker": "me/max-ocr:1.0",
            "web": "raw",
            "limits": {"memorySize": 512, "timeout": 300000},
            "annotations": {"require-whisk-auth": 'a"b', "web-custom-options": True},
            "inputs": {"CORS": "*"},
        }
        assert package["b-results"] == {
            "function": "results.py",
            "runtime": "python:default",
            "web": "raw",
            "annotations": {"require-whisk-auth": 'a"b', "provide-api-key": True},
            "inputs": {"MODEL": "b"},
        }
        settings = {"PREDICT_PATH": "/predict", "BASE_PATH": "/ocr", "CONCURRENCY": "10"}
        settings |= {"RESULTS": "1", "RESULTS_INSECURE": "1"}
        done = self.deploy(state, "--manifest", MODELS="max-ocr", USERNAME="me", **settings)
        assert "wsk action update max-ocr --concurrency 10" in done.stdout
        actions = yaml.safe_load(done.stdout)["packages"]["default"]["actions"]
        bound = {"PREDICT_PATH": "/predict", "BASE_PATH": "/ocr", "CORS": ""}
        assert actions["max-ocr"]["inputs"] == bound
        assert actions["max-ocr-results"]["inputs"] == {"MODEL": "max-ocr", "INSECURE": "1"}
        done = self.deploy(state, "--manifest", MODELS="max-ocr", USERNAME="me")
        action = yaml.safe_load(done.stdout)["packages"]["default"]["actions"]["max-ocr"]
        assert action["annotations"] == {"require-whisk-auth": False, "web-custom-options": False}

    @pytest.mark.parametrize(
        ("env", "words"),
        [
            ({}, "which models?"),
            (
                {"MODELS": "a", "USERNAME": "me", "CORS": "a.example"},
                "CORS 'a.example' is not valid",
            ),
            ({"MODELS": "a", "USERNAME": "me", "SECRET": "True"}, "SECRET 'True' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "BASE_PATH": "ocr"}, "BASE_PATH 'ocr' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "VERSION": "a b"}, "VERSION 'a b' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "TIMEOUT": "5m"}, "TIMEOUT '5m' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "RESULTS": "yes"}, "RESULTS 'yes' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "PACKAGE": "a/b"}, "PACKAGE 'a/b' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "CHECK": "health"}, "CHECK 'health' is not valid"),
            (
                {"MODELS": "a", "USERNAME": "me", "PREDICT_PATH": "p"},
                "PREDICT_PATH 'p' is not valid",
            ),
            ({"MODELS": "a", "USERNAME": "me", "CONCURRENCY": "0"}, "CONCURRENCY '0' is not valid"),
            (
                {"MODELS": "a", "USERNAME": "me", "RESULTS_INSECURE": "2"},
                "RESULTS_INSECURE '2' is not valid",
            ),
            ({"MODELS": "max-ocr", "USERNAME": ""}, "USERNAME is missing"),
            ({"MODELS": "a;b", "USERNAME": "me"}, "the model 'a;b' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "MEMORY": "512m"}, "MEMORY '512m' is not valid"),
            ({"MODELS": "a", "USERNAME": "me", "WSK": "nowsk"}, "nowsk is not installed"),
        ],
    )
    def test_should_say_what_is_wrong_and_do_nothing(
        self, state: Path, env: dict[str, str], words: str
    ) -> None:
        done = self.deploy(state, **env)
        assert done.returncode == 1
        assert words in done.stderr
        assert list(state.iterdir()) == []

    def test_should_explain_itself(self, state: Path) -> None:
        assert "MODELS=" in self.deploy(state, "--help").stdout
        assert "there is no option --pull" in self.deploy(state, "--pull").stderr


class Replies(BaseHTTPRequestHandler):
    """A web action, which answers a check as it is told to, the last of these for ever."""

    url, swagger = "", b""
    told: ClassVar[list[int]] = []
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        status, body = 200, self.swagger
        if not self.path.endswith("/swagger.json"):
            self.asked.append(self.path)
            status, body = self.told.pop(0) if self.told[1:] else self.told[0], b"told"
        self.send_response(status)
        self.send_header("X-OpenWhisk-Activation-Id", "0123456789abcdef0123456789abcdef")
        if "-results" in self.path:
            self.send_header("Retry-After", "5")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class TestDeployWords:
    """What deploy.sh says to wsk and prints, with a stand-in for wsk that only takes notes, and a
    server that answers as it is told to."""

    WSK = """
    case $2-$1 in get-action) echo "ok: got action"; echo "$URL";; esac
    if [ "$1" = activation ]; then printf 'ok: got activation\\n%s\\n' "$RECORD"; fi
    """

    @pytest.fixture
    def replies(self) -> Iterator[type[Replies]]:
        Replies.told, Replies.swagger, Replies.asked = [200], b"{}", []
        with serving(Replies) as server:
            Replies.url = f"http://127.0.0.1:{server.server_port}/web/max-ocr"
            yield Replies

    def deploy(self, folder: Path, **env: str) -> tuple[Done, list[list[str]]]:
        """How it ended, and the words of each call of wsk that makes something."""
        known = noting(folder, self.WSK)
        given = {"MODELS": "max-ocr", "USERNAME": "me", "URL": Replies.url}
        given["RECORD"] = json.dumps({"response": {}})
        environment = {**known, "WSK": known["COMMAND"], **given, **env}
        done = subprocess.run(
            ["./deploy.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done, [words[2:] for words in noted(folder) if words[1] == "update"]

    def test_should_ask_for_what_the_usage_says(
        self, replies: type[Replies], tmp_path: Path
    ) -> None:
        done, [words] = self.deploy(tmp_path)
        assert done.returncode == 0, done
        assert " ".join(words) == (
            "max-ocr --docker me/max-ocr --web-secure false --web raw --memory 512 --timeout 300000"
            " --param CORS  -a web-custom-options false"
        )
        settings = {"VERSION": "1.0", "MEMORY": "1024", "TIMEOUT": "60000", "CONCURRENCY": "10"}
        settings |= {"SECRET": "s3cret", "PREDICT_PATH": "/predict", "BASE_PATH": "", "CORS": "*"}
        done, [words] = self.deploy(tmp_path, **settings)
        assert words == [
            *("max-ocr", "--docker", "me/max-ocr:1.0", "--web-secure", "s3cret", "--web", "raw"),
            *("--memory", "1024", "--timeout", "60000", "--concurrency", "10"),
            *("--param", "PREDICT_PATH", "/predict", "--param", "BASE_PATH", ""),
            *("--param", "CORS", "*", "-a", "web-custom-options", "true"),
        ]

    def test_should_make_results_with_the_models_secret(
        self, replies: type[Replies], tmp_path: Path
    ) -> None:
        made = f"{{}}max-ocr-results {ROOT}/results.py --web-secure {{}} --kind python:default"
        made += " --web raw -a provide-api-key true --param MODEL max-ocr"
        for package, secret in (("", ""), ("models", "s3cret")):
            replies.told = [200, 202]
            env = {"RESULTS": "1", "SECRET": secret, "PACKAGE": package}
            done, calls = self.deploy(tmp_path, **env)
            assert done.returncode == 0, done
            words = made.format(package and package + "/", secret or "false")
            assert " ".join(calls[-1]) == words
        replies.told = [200, 202]
        _, calls = self.deploy(tmp_path, RESULTS="1", RESULTS_INSECURE="1")
        assert calls[-1][-3:] == ["--param", "INSECURE", "1"]

    def test_should_say_that_results_have_no_api(
        self, replies: type[Replies], tmp_path: Path
    ) -> None:
        replies.told = [200, 502]
        done, _ = self.deploy(tmp_path, RESULTS="1")
        assert done.returncode == 1
        assert f"GET {replies.url}-results/{0:032}: 502 told" in done.stderr
        assert "FAILED: the action of its results does not reach OpenWhisk's API" in done.stderr

    @pytest.mark.parametrize(
        ("parameters", "predict", "shown"),
        [
            ([{"in": "formData", "name": "image", "type": "file"}], "", "-F image=@FILE URL"),
            ([{"in": "formData", "name": "n"}], "", "-F n=VALUE URL"),
            (
                [{"in": "body", "name": "payload"}],
                "/predict",
                "-H 'Content-Type: application/json' -d JSON URL",
            ),
            ([{"in": "query", "name": "a", "required": True}], "", "-X POST 'URL?a=VALUE'"),
            ([], "", "-X POST URL"),
        ],
    )
    def test_should_say_how_to_call_each(
        self,
        replies: type[Replies],
        tmp_path: Path,
        parameters: list[Any],
        predict: str,
        shown: str,
    ) -> None:
        path = {"post": {"parameters": parameters}}
        replies.swagger = json.dumps({"paths": {predict or "/model/predict": path}}).encode()
        done, _ = self.deploy(tmp_path, PREDICT_PATH=predict)
        url = replies.url
        assert done.stdout.splitlines()[-1].strip() == "curl " + shown.replace("URL", url)
        done, _ = self.deploy(tmp_path, PREDICT_PATH=predict, SECRET="s3cret")
        assert "curl -H 'X-Require-Whisk-Auth: s3cret' " in done.stdout

    def test_should_ask_again_while_openwhisk_says_202(
        self, replies: type[Replies], tmp_path: Path
    ) -> None:
        replies.told = [202, 202, 200]
        assert self.deploy(tmp_path)[0].returncode == 0
        assert replies.asked[:3] == ["/web/max-ocr/model/metadata"] * 3

    def test_should_check_what_it_is_told(self, replies: type[Replies], tmp_path: Path) -> None:
        record = {"response": {"result": {"error": "no weights"}}, "logs": ["a line of the log"]}
        replies.told = [404]
        done, _ = self.deploy(tmp_path, CHECK="/health?a=b", RECORD=json.dumps(record))
        assert done.returncode == 1
        assert replies.asked == ["/web/max-ocr/health?a=b"]
        assert f"GET {replies.url}/health?a=b: 404 told" in done.stderr
        assert "no weights\n    a line of the log" in done.stderr
        assert "health?a=b is not answered with 200; another path: CHECK=/path" in done.stderr
        assert self.deploy(tmp_path, CHECK="")[0].returncode == 0
        replies.url = f"http://127.0.0.1:{free_port()}/web/max-ocr"
        done, _ = self.deploy(tmp_path)
        assert done.returncode == 1
        assert f"FAILED: its URL {replies.url} does not answer" in done.stderr
        replies.url = "error"
        assert "FAILED: wsk does not tell its URL" in self.deploy(tmp_path)[0].stderr


def test_the_tests_run_against_an_openwhisk(models: str, registry: str, tmp_path: Path) -> None:
    """The stand-in for wsk and devserver.py are the real one here."""
    options = ["--openwhisk", "http://127.0.0.1:3233", "--wsk", f"{ROOT / 'tests' / 'wsk'} -i"]
    options += ["--registry", f"{registry}/tests", "--base-image", f"{models}/max-ocr"]
    files = [f"tests/test_{name}.py" for name in ("fidelity", "recordings", "faults")]
    (tmp_path / "state").mkdir()
    env = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    env["WSK_STATE"] = str(tmp_path / "state")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *files]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) passed, 0 failed, (\d+) skipped, on ", done.stdout)
    assert counts and int(counts[1]) > 500 and int(counts[2]) > 100
    assert list((tmp_path / "state").iterdir()) == []
    assert "tests/" not in run("docker", "images")


def test_the_scripts_pass_shellcheck() -> None:
    needs("shellcheck")
    scripts = ["build.sh", "deploy.sh", "demo.sh", "test.sh", ".ci/run", "requirements/install.sh"]
    run("shellcheck", *(str(ROOT / script) for script in scripts))
