"""build.sh pushes an image that answers as its model does, and says in a sentence why one does not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BASE,
    LIVE_APPS,
    ROOT,
    Process,
    documented,
    free_port,
    needs,
    request,
    run,
    running,
    web_action,
)

Done = subprocess.CompletedProcess[str]
Build = Callable[..., Done]
DEBIAN, PYTHON = "bookworm", "3.11"
SLIM = ["man", "doc", "locale"]  # what official images leave out of /usr/share
APT = "RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends"
SITE = "FROM base:python\nENV PYTHONPATH=/opt/site\nCOPY . /opt/site\n"
APP = "FROM base:ocr\nWORKDIR /srv\nCOPY . .\n"
OWN = {"PORT": "5001", "BASE_PATH": "x", "CORS": "none", "RESULT_LIMIT": "few"}
IMAGES = {  # name: folder, Dockerfile
    "base:python": f"base FROM base:debian\n{APT} python3 tini && rm -r /var/lib/apt/lists && ln -s python3 /usr/bin/python && useradd --create-home me",
    "base:ocr": f"ocr-site {SITE}",
    "base:language": f"language-site {SITE}",
    "max-ocr": "ocr FROM base:ocr\nWORKDIR /workspace\nCOPY . .\nEXPOSE 5000\nCMD python app.py",
    "max-ocr-home": 'ocr FROM base:ocr\nUSER me\nWORKDIR /home/me\nENTRYPOINT ["/bin/sh", "-c"]\nCOPY . .\nCMD python app.py',
    "exec-form": f'script {APP}CMD ["python3", "-u", "serve.py", "--model", "en", "--port=5000"]',
    "shell-form": f"script {APP}CMD exec python3 ./serve.py --model en --port=5000",
    "behind-tini": f'script {APP}ENTRYPOINT ["/usr/bin/tini", "--"]\nCMD ["python", "serve.py", "--model", "en"]',
    "never": f"never {APP}CMD python app.py",
    "unimportable": f"unimportable {APP}CMD python app.py",
    "own": f"own {APP}USER me\nENV {' '.join(map('='.join, OWN.items()))}\nCMD python app.py",
    "factory": f'factory {APP}CMD ["gunicorn", "app:create_app()"]',
    "fastapi": "language FROM base:language\nENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/site/wheels\nUSER me\nWORKDIR /srv\nCOPY . .\nEXPOSE 8000\nCMD python3 -m uvicorn main:app --host 0.0.0.0 --port 8000",
    "gunicorn": f'factory {APP}USER me\nEXPOSE 3000\nENTRYPOINT ["/usr/bin/tini", "--"]\nCMD ["python3", "-m", "gunicorn", "-w", "2", "-b", "0.0.0.0:3000", "app:create_app()"]',
    "httpd": "httpd FROM base:debian\nCOPY . /srv\nRUN chmod +x /srv/cgi-bin/size\nEXPOSE 8000/tcp\nCMD exec busybox httpd -f -p $PORT -h /srv",
    "from-scratch": 'base FROM scratch\nCOPY x /\nEXPOSE 8000\nCMD ["/x"]',
    # As uv makes it, without pip; and for some seconds the server answers 503.
    "uv": "server FROM base:python\nRUN python3 -m venv --without-pip /opt/venv\nENV PATH=/opt/venv/bin:$PATH READY_FILE=/tmp/ready\nCOPY . /srv\nEXPOSE 8000\nCMD (sleep 4; touch /tmp/ready) & exec python /srv/server.py 8000",
    "on-8080": 'base FROM scratch\nEXPOSE 8080\nCMD ["x"]',
    "no-port": 'base FROM scratch\nENV X=\nCMD ["x"]',
}
FILES = {
    "base/x": "",
    "never/app.py": "import time; time.sleep(600)",
    "unimportable/app.py": "import config",
    "own/forward.py": "NAME = 'its own'",
    "own/app.py": f"""
import os, flask, forward
app = flask.Flask(__name__)
app.route("/")(lambda: flask.jsonify(forward.NAME, {{name: os.environ[name] for name in {set(OWN)}}}))
app.run(port=int(os.environ["PORT"]))
""",
    "httpd/cgi-bin/size": "#!/bin/sh\necho Content-Type: text/plain\necho\necho $CONTENT_LENGTH bytes",
}
PIP = f"{sys.executable} -m pip %s -q --only-binary=:all: --python-version {PYTHON} %s"
NEEDED = str(ROOT / "examples" / "%s" / "requirements.txt")
COMMANDS = [  # at once, as they wait for the network
    PIP % ("install", f"--target ocr-site gunicorn -r {NEEDED % 'ocr'}"),
    PIP % ("install", f"--target language-site pip -r {NEEDED % 'language'}"),
    PIP % ("download", "-d language-site/wheels flask"),
    "mmdebstrap -q --variant=minbase --include=busybox,ca-certificates --dpkgopt=force-unsafe-io "
    + " ".join(f"--dpkgopt='path-exclude=/usr/share/{name}/*'" for name in SLIM)
    + f" --aptopt='Acquire::Languages \"none\"' {DEBIAN} root.tar && docker import root.tar base:debian",
]
BROKEN = {
    "unimportable": "The model failed to load: ModuleNotFoundError: No module named 'config'",
    "never": r"did not load .* \(OPENWHISK_APP=module:attribute\) or .* \(FORWARD=1\)",
    "exec-form": '"statusCode": 404',
}
SIZE = {"CHECK": "/cgi-bin/size", "PREDICT_PATH": "/cgi-bin/size"}
SERVERS = {
    "fastapi": ({"CHECK": "/health"}, '{"text": "Guten Morgen, wie geht es?"}', '"language":"de"'),
    "gunicorn": ({"PREDICT_PATH": "/analyze"}, '{"text": "x"}', '"text":"x"'),
    "httpd": ({"FORWARD": "", "UPSTREAM_PORT": "8001", **SIZE}, "12345", "5 bytes"),
    "uv": ({"CHECK": "/health"}, "12345", "5"),
}
NO_SERVERS = {
    "no-port": "models/no-port:latest exposes no port: name its server's, UPSTREAM_PORT=8000",
    "on-8080": "8080 is OpenWhisk's port: give the server another, UPSTREAM_PORT=8081 and its own",
    "from-scratch": "from-scratch has neither Python nor a package manager",
}
NO_SCRIPTS = ["VAR=x python s.py", "python s.py --port ${PORT}", "python -m flask run", "[]"]
WRONG = {
    "MODELS=": "which models?",
    "MODELS=$(touch/evil)": "MODEL '$(touch/evil)' is not valid",
    "USERNAME=": "USERNAME '' is not valid",
    "REGISTRY=a b": "REGISTRY 'a b' is not valid",
    "REGISTRY=docker.io/me": "REGISTRY and USERNAME are the same, so the images would replace",
    "TAG=a b": "TAG 'a b' is not valid",
    "VERSION=a b": "VERSION 'a b' is not valid",
    "CHECK=health": "CHECK 'health' is not valid",
    "TIMEOUT=5m": "TIMEOUT '5m' is not valid",
    "PUSH=no": "PUSH 'no' is not valid",
    "FORWARD=yes": "FORWARD 'yes' is not valid",
    "DOCKER=docker -H unix:///nowhere": "the engine does not answer",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Docker engine of the tests' own, whose address is in DOCKER_HOST. Its bridge is its own,
    too: two engines on one give the same address to containers of both."""
    needs("dockerd", "docker", "docker-registry", "mmdebstrap", "ip")
    if os.geteuid():
        pytest.skip("needs root for a Docker engine of its own")
    folder, number = tmp_path_factory.mktemp("docker"), os.getpid() % 250
    host, bridge = f"unix://{folder}/socket", f"tests{number}"
    run("ip", "link", "add", bridge, "type", "bridge")
    run("ip", "address", "add", f"172.30.{number}.1/24", "dev", bridge)
    options = ["-H", host, "-p", f"{folder}/pid", "--bridge", bridge]
    options += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    engine = Process("dockerd", *options, cwd=folder)
    with pytest.MonkeyPatch.context() as patch, running(engine):
        patch.setenv("DOCKER_HOST", host)
        patch.setenv("DOCKER_CONFIG", str(folder))
        engine.until("API listen on", engine.err)
        yield host
        for container in run("docker", "ps", "-aq").split():
            run("docker", "rm", "-f", container)
    run("ip", "link", "delete", bridge)


@pytest.fixture(scope="module")
def registry(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the images of IMAGES as models/NAME in the engine, the example's only here."""
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}}
    settings = {"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}
    (folder / "config.yml").write_text(json.dumps(settings))
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    shells = [subprocess.Popen(command, cwd=folder, shell=True) for command in COMMANDS]
    assert [shell.wait() for shell in shells] == [0] * len(shells)
    server = Process("docker-registry", "serve", "config.yml", cwd=folder, port=port)
    with running(server):
        server.wait_ready()
        for name, text in IMAGES.items():
            context, _, dockerfile = text.partition(" ")
            place = next(
                p for p in (folder, LIVE_APPS, ROOT / "examples") if (p / context).is_dir()
            )
            tag = name if ":" in name else f"models/{name}"
            command = ["docker", "build", "-q", "-t", tag, "-f", "-", str(place / context)]
            subprocess.run(command, input=dockerfile, text=True, check=True, capture_output=True)
            if name.startswith("max-"):
                run("docker", "tag", tag, f"localhost:{port}/codait/{name}")
                run("docker", "push", "-q", f"localhost:{port}/codait/{name}")
                run("docker", "rmi", tag, f"localhost:{port}/codait/{name}")
        yield f"localhost:{port}"


def build_sh(*words: str, **env: str) -> Done:
    """From another folder, with a umask under which nobody else can read its files."""
    fixed = {"MODELS": "", "USERNAME": "", "TMPDIR": os.environ.get("DOCKER_CONFIG", "/tmp")}
    options: Any = {"cwd": "/", "umask": 0o077, "env": {**os.environ, **fixed, **env}, "text": True}
    return subprocess.run([ROOT / "build.sh", *words], capture_output=True, **options)


@pytest.fixture
def build(registry: str) -> Build:
    """Of models/NAME, and without a push, unless a test says otherwise."""
    settings = {"REGISTRY": "models", "USERNAME": f"{registry}/me", "PUSH": "0"}
    return lambda *words, **env: build_sh(*words, **{**settings, **env})


@contextlib.contextmanager
def started(image: str, *options: str) -> Iterator[int]:
    """A container's port on this machine; it ends in peace, before the engine would kill it."""
    container = run("docker", "run", "-d", "-p", "127.0.0.1::8080", *options, image).strip()
    yield int(run("docker", "port", container, "8080").strip().rpartition(":")[2])
    begun = time.monotonic()
    run("docker", "stop", container)
    assert time.monotonic() - begun < 9  # after 10 s it is killed
    assert run("docker", "inspect", "--format", "{{.State.ExitCode}}", container) == "0\n"
    run("docker", "rm", container)


def answer(image: str, path: str = "", text: str = "") -> str:
    """What its web action answers, to a POST if there is a text."""
    method, headers = "POST" if text else "GET", {"Content-Type": "application/json"}
    with started(image) as port, web_action(port) as web_port:
        got = request(web_port, method, BASE + path, text.encode() or None, headers)
    assert got.status == 200, got.body
    return got.body.decode()


def pushed(registry: str) -> str:
    return run("curl", "-sS", f"http://{registry}/v2/_catalog")


def config(image: str) -> Any:
    return json.loads(run("docker", "inspect", image))[0]["Config"]


# ---- The example, in the two layouts of MAX images ----


@pytest.fixture(scope="module")
def built(registry: str) -> Done:
    """Of three models, one of which does not exist."""
    names = {"MODELS": "max-ocr max-nowhere max-ocr-home", "USERNAME": f"{registry}/me"}
    return build_sh(**names, REGISTRY=f"{registry}/codait")


@pytest.fixture(params=["max-ocr", "max-ocr-home"])
def ocr(request: pytest.FixtureRequest, built: Done, registry: str) -> str:
    """A pushed image, pulled again."""
    image = f"{registry}/me/{request.param}"
    run("docker", "rmi", "-f", image)
    run("docker", "pull", "-q", image)
    return image


def masked(text: str) -> list[str]:
    """Its lines without the figures and the columns' widths, which differ."""
    lines = re.sub("sha256:[0-9a-f]{64}|[0-9]+ ", "N ", re.sub(" +", " ", text)).splitlines()
    return [line for line in lines if line]


def test_every_model_gets_its_turn_and_the_row_that_the_readme_shows(
    built: Done, registry: str
) -> None:
    printed = built.stdout.replace(f"{registry}/codait", "quay.io/codait")
    shown = masked(documented('MODELS="max-ocr max-nowhere" USERNAME=me ./build.sh'))
    others = [line.replace("max-ocr", "max-ocr-home") for line in (shown[0], shown[3])]
    lines = masked(printed.replace(f"{registry}/me", "me"))
    assert lines == [*shown[:2], others[0], *shown[2:], others[1]]
    log = re.search(r"The end of (.*):\n    .*(not found|manifest unknown)", built.stderr)
    assert log and Path(log[1]).exists()
    assert built.returncode == 1


def test_an_image_gains_a_small_layer_and_stays_the_models_own(ocr: str) -> None:
    history = run("docker", "history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", ocr)
    [size] = re.findall(r"^(\S+)kB .*COPY \S+ in /openwhisk/", history, re.MULTILINE)
    assert float(size) < 32
    own = {"max-ocr": ("", "/workspace"), "max-ocr-home": ("me", "/home/me")}
    assert (config(ocr)["User"], config(ocr)["WorkingDir"]) == own[ocr.rpartition("/")[2]]


def test_a_container_that_is_read_only_reads_the_text_in_a_picture(ocr: str) -> None:
    options = ("--read-only", "--tmpfs", "/tmp", "--memory", "512m", "--cap-drop", "NET_RAW")
    with started(ocr, *options) as port, web_action(port) as web_port:
        url, picture = f"http://127.0.0.1:{web_port}{BASE}", ROOT / "assets/receipt.png"
        assert '"CAFE SERVERLESS"' in run("curl", "-sS", "-F", f"image=@{picture}", url)


# ---- What is pushed, and what is not ----


@pytest.mark.parametrize(("name", "sentence"), BROKEN.items(), ids=BROKEN)
def test_a_model_that_does_not_answer_is_not_pushed_and_says_why(
    build: Build, registry: str, name: str, sentence: str
) -> None:
    timeout = {"TIMEOUT": "3000"} if name == "never" else {}
    done = build(name, USERNAME=f"{registry}/broken", PUSH="1", **timeout)
    failed = "FAILED: the model does not answer as it should; another path to GET: CHECK=/path"
    assert (done.returncode, failed in done.stdout) == (1, True)
    assert re.search(sentence, done.stderr), done.stderr
    assert run("docker", "ps", "-aq") == ""
    assert "broken" not in pushed(registry)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("model", "forward"), [("httpd", "1"), ("never", "0")], ids=["build", "check"]
)
def test_a_signal_stops_it_at_once(registry: str, model: str, forward: str, number: int) -> None:
    env = {"REGISTRY": "models", "USERNAME": f"{registry}/stopped", "FORWARD": forward}
    with running(Process("./build.sh", model, "own", cwd=ROOT, env=env)) as process:
        wait_until(lambda: run("docker", "ps", "-q") != "")
        process.popen.send_signal(number)
        assert process.popen.wait(timeout=9) == 128 + number
        assert "own: building" not in process.rest(process.out)
    assert model == "httpd" or run("docker", "ps", "-aq") == ""
    wait_until(lambda: run("docker", "ps", "-aq") == "")  # the engine ends its own a moment later
    assert "stopped" not in pushed(registry)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_only_builds_when_told_so(build: Build, registry: str) -> None:
    done = build("exec-form", USERNAME=f"{registry}/nobody", CHECK="/", PUSH="0")
    assert (done.returncode, done.stdout.split()[-2:]) == (0, ["not", "pushed"])
    assert "nobody" not in pushed(registry)


def test_a_registry_that_refuses_is_told(build: Build) -> None:
    done = build("exec-form", USERNAME=f"localhost:{free_port()}/me", CHECK="/", PUSH="1")
    assert done.returncode == 1
    assert "FAILED: the registry refused it (try 'docker login')" in done.stdout


def test_a_version_is_pushed_beside_the_latest_and_labelled(build: Build, registry: str) -> None:
    run("docker", "tag", "models/exec-form", "models/exec-form:v2")
    tags = {"TAG": "v2", "VERSION": "1.2.0"}
    done = build("exec-form", USERNAME=f"{registry}/v", CHECK="/", PUSH="1", **tags)
    assert done.returncode == 0, done
    listed = json.loads(run("curl", "-sS", f"http://{registry}/v2/v/exec-form/tags/list"))
    assert sorted(listed["tags"]) == ["1.2.0", "latest"]
    labels = {"title": "exec-form", "base.name": "models/exec-form:v2", "version": "1.2.0"}
    labels["revision"] = run("git", "-C", ROOT, "rev-parse", "HEAD").strip()
    named = {f"org.opencontainers.image.{name}": text for name, text in labels.items()}
    assert named.items() <= config(f"{registry}/v/exec-form:1.2.0")["Labels"].items()


# ---- The app in an image ----


@pytest.mark.parametrize("name", ["exec-form", "shell-form", "behind-tini"])
def test_a_script_runs_as_the_image_runs_it(build: Build, registry: str, name: str) -> None:
    assert build(name, CHECK="/").returncode == 0
    assert json.loads(answer(f"{registry}/me/{name}", "/")) == {"model": "en", "debug": True}


@pytest.mark.parametrize("command", NO_SCRIPTS)
def test_a_command_that_starts_no_script_is_a_sentence(build: Build, command: str) -> None:
    run("docker", "import", "--change", f"CMD {command}", "/dev/null", "models/unread")
    failed = build("unread").stdout
    assert "FAILED: the command of models/unread:latest does not start a script: " in failed
    assert "Name the app, WSGI_APP=module:attribute, let the server run, FORWARD=1, or" in failed


def test_an_app_that_no_script_runs_is_named(build: Build, registry: str) -> None:
    named = {"WSGI_APP": "app:create_app()", "CHECK": "/health", "PREDICT_PATH": "/analyze"}
    assert build("factory", **named, RESULT_LIMIT="2000").returncode == 0
    assert "OPENWHISK_RESULT_LIMIT=2000" in config(f"{registry}/me/factory")["Env"]
    assert json.loads(answer(f"{registry}/me/factory", text='{"text": "x"}'))["text"] == "x"


def test_the_models_own_settings_and_files_stay_its_own(build: Build, registry: str) -> None:
    assert build("own", CHECK="/").returncode == 0
    assert json.loads(answer(f"{registry}/me/own", "/")) == ["its own", OWN]


def test_the_dockerfile_does_by_itself(registry: str) -> None:
    arguments = ["--build-arg", f"REGISTRY={registry}/codait", "--build-arg", "MODEL=max-ocr"]
    run("docker", "build", "-q", "-t", "by-hand", *arguments, ROOT)
    assert json.loads(answer("by-hand", "/model/metadata"))["id"] == "max-ocr"


# ---- An image with a server of its own ----


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_answers_behind_forward(build: Build, registry: str, name: str) -> None:
    (settings, text, expected), image = SERVERS[name], f"{registry}/me/{name}"
    done = build(name, **{"FORWARD": "1", "PREDICT_PATH": "/predict", **settings})
    assert done.returncode == 0, done
    assert expected in answer(image, text=text)
    now, before = config(image), config(f"models/{name}")
    assert now["WorkingDir"] == before["WorkingDir"]
    assert now["User"] in (before["User"] or "root", "0")


@pytest.mark.parametrize("name", NO_SERVERS)
def test_a_server_that_can_not_be_added_is_a_sentence(build: Build, name: str) -> None:
    assert f"FAILED: {NO_SERVERS[name]}" in build(name, FORWARD="1").stdout


# ---- What it is told ----


@pytest.mark.parametrize(("setting", "sentence"), WRONG.items(), ids=WRONG)
def test_what_is_not_valid_is_a_sentence(setting: str, sentence: str) -> None:
    name, _, text = setting.partition("=")
    done = build_sh(**{"MODELS": "max-ocr", "USERNAME": "me", name: text})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("build.sh: " + sentence)
