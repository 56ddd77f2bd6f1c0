"""A model at an address of its own: docs/nginx.conf in front, pages of other origins, real browsers."""

from __future__ import annotations

import http.server
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BASE,
    ROOT,
    Process,
    WebAction,
    free_port,
    needs,
    request,
    running,
    serving,
    web_action,
)
from playwright.sync_api import BrowserContext, Page
from test_fidelity import EVERY_CASE, compare, multipart

pytestmark = pytest.mark.stacks(1)  # nginx and browsers are the same for all


@pytest.fixture(scope="module")
def nginx(max_app: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """docs/nginx.conf with the addresses of this test; gives its port."""
    needs("nginx")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    temporary = [f"{kind}_temp_path {folder};" for kind in ("fastcgi", "proxy", "scgi", "uwsgi")]
    temporary += [f"client_body_temp_path {folder};", "access_log off;"]
    with web_action(max_app.port) as web_port:
        text = (ROOT / "docs/nginx.conf").read_text()
        for old, new in {
            "127.0.0.1:8080;": f"127.0.0.1:{port};",
            "127.0.0.1:3233/api/v1/web/guest/default/max-ocr": f"127.0.0.1:{web_port}{BASE}",
            "http {": "http {" + " ".join(temporary),
        }.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(text)
        options = f"user root; daemon off; pid {folder}/pid; error_log stderr;"
        command = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-g", options]
        with running(Process(*command, cwd=folder, port=port)) as process:
            yield process.wait_ready().port


@pytest.mark.parametrize(
    "case", [name for name in EVERY_CASE if "bare" not in name or "flag" in name]
)
def test_the_address_answers_as_the_models_own_server(case: str, own: int, nginx: int) -> None:
    path, details = EVERY_CASE[case]
    path = path if path.startswith("/") else "/" + path
    compare(path, details, own, WebAction(f"http://127.0.0.1:{nginx}"))


def test_the_address_says_who_calls_and_openwhisk_what_is_too_large(nginx: int) -> None:
    hearsay = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "evil.example"}
    hearsay |= {"X-Forwarded-Proto": "https", "Host": "model.example.com"}
    seen = request(nginx, "GET", "/caller", None, hearsay).json
    assert seen == {"address": "127.0.0.1", "url": "http://model.example.com/caller"}
    kind = {"Content-Type": "image/png"}
    for size in (1_048_577, 2_000_000):
        answer = request(nginx, "POST", "/seen/x", bytes(size), kind)
        assert (answer.status, "Request larger than allowed" in answer.json["error"]) == (413, True)


@pytest.mark.parametrize(("bare", "base"), [("/", ""), ("/ocr", "/ocr")])
def test_the_bare_address_predicts(nginx: int, bare: str, base: str) -> None:
    details: dict[str, Any] = multipart()
    answer = request(nginx, "POST", bare, details["body"], details["headers"])
    assert (answer.status, answer.json["status"]) == (200, "ok")
    moved = request(nginx, "GET", base + "/app")
    assert (moved.header("location") or "").endswith(f"{base}/app/")
    assert request(nginx, "GET", base + "/swagger.json").json["basePath"] == (base or "/")


@pytest.mark.parametrize("place", ["/", "/ocr", "/ocr/"])
def test_swagger_ui_predicts_at_the_address(
    nginx: int, browser: BrowserContext, tmp_path: Path, place: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{nginx}{place}")
    page.locator("#operations-tag-model").click()
    operation = page.locator("[id^=operations-model-]", has_text="/model/predict").first
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("input[type=file]").set_input_files(tmp_path / "a.png")
    operation.get_by_role("button", name="Execute").click()
    asked = operation.locator(".live-responses-table")
    asked.get_by_text('"status": "ok"').wait_for()
    url = f"http://127.0.0.1:{nginx}{place.rstrip('/')}/model/predict"
    assert url in operation.locator(".request-url").inner_text()


@pytest.mark.parametrize("place", ["/", "/ocr/"])
def test_the_models_page_works_at_the_address(
    nginx: int, browser: BrowserContext, place: str
) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{nginx}{place}app/")
    page.get_by_text("person, vélo").wait_for()
    page.get_by_text("predicted of 6 bytes").wait_for()


def test_a_page_whose_links_begin_with_a_slash_works_at_the_root(
    nginx: int, browser: BrowserContext
) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{nginx}/rooted.html")
    page.get_by_text("ok").wait_for()


# ---- Pages of other origins ----

PAGE = """<!doctype html><output></output><script>
fetch("URL", {headers: {"X-Require-Whisk-Auth": "s3cret"}}).then(
  (answer) => answer.json().then((seen) => [answer, seen])).then(([answer, seen]) => {
    const id = answer.headers.get("x-openwhisk-activation-id");
    document.querySelector("output").textContent = seen.id + " " + (id ? "with" : "without") + " an id";
  }, (error) => { document.querySelector("output").textContent = "refused: " + error; });
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the origin at which its pages are."""
    with serving(partial(Quiet, directory=str(tmp_path))) as server:
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"


def told(page: Page) -> str:
    page.locator("output:not(:empty)").wait_for()
    return page.locator("output").inner_text()


@pytest.mark.parametrize("cors", ["the page's", "*", "https://other.example"])
def test_a_page_of_another_origin_calls_an_action_with_a_secret(
    max_app: Process, browser: BrowserContext, elsewhere: tuple[Path, str], cors: str
) -> None:
    folder, origin = elsewhere
    bound = {"CORS": origin if cors == "the page's" else cors}
    with web_action(max_app.port, custom_options=True, secret="s3cret", parameters=bound) as port:
        url = f"http://127.0.0.1:{port}{BASE}/model/metadata"
        (folder / "index.html").write_text(PAGE.replace("URL", url))
        page = browser.new_page()
        page.goto(origin)
        if cors == "https://other.example":
            assert told(page).startswith("refused: ")
        else:
            assert told(page) == "shapes with an id"


def test_without_the_setting_the_controller_lets_any_page_call(
    max_app: Process, browser: BrowserContext, elsewhere: tuple[Path, str]
) -> None:
    folder, origin = elsewhere
    with web_action(max_app.port, secret="s3cret") as port:
        url = f"http://127.0.0.1:{port}{BASE}/model/metadata"
        (folder / "index.html").write_text(PAGE.replace("URL", url))
        page = browser.new_page()
        page.goto(origin)
        assert told(page) == "shapes without an id"
