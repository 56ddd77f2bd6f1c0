"""A model at an address of its own: docs/nginx.conf in front, pages of other origins, real browsers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import (
    BASE,
    ROOT,
    Process,
    WebAction,
    free_port,
    model_container,
    needs,
    request,
    running,
    web_action,
)
from playwright.sync_api import BrowserContext
from test_demo import predict
from test_fidelity import EVERY_CASE, ROOT_CASES, compare, multipart

pytestmark = pytest.mark.stacks(1)  # nginx and browsers are the same for all
CASES = {
    name: case for name, case in {**EVERY_CASE, **ROOT_CASES}.items() if case[0].startswith("/")
}
# nginx itself refuses what leads past its root.
ASTRAY = ["/a/..", "/a/..?x", "/a/./x", "/a/../x", "/a/%2E%2e/x", "/a/.%2e/x", "/a%2F../x"]
ASTRAY += ["/a/..%2Fx", "/a%2Fb%2Fc%2Fd%2Fe%2Ff/../../../../../namespaces/_/actions"]


@pytest.fixture(scope="module")
def nginx(stack: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """docs/nginx.conf with the addresses of this test; gives its port."""
    needs("nginx")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    temporary = [f"{kind}_temp_path {folder};" for kind in ("fastcgi", "proxy", "scgi", "uwsgi")]
    temporary += [f"client_body_temp_path {folder};", "access_log off;"]
    bound = {"OPENWHISK_BASE_PATH": "/"}
    with model_container(stack) as model, web_action(model.port, parameters=bound) as web_port:
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


@pytest.mark.parametrize("case", CASES)
def test_the_address_answers_as_the_models_own_server(case: str, own: int, nginx: int) -> None:
    compare(*CASES[case], own, WebAction(f"http://127.0.0.1:{nginx}"), "")


def test_the_address_says_who_calls_and_openwhisk_what_is_too_large(nginx: int) -> None:
    hearsay = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "evil.example"}
    hearsay |= {"X-Forwarded-Proto": "https", "Host": "model.example.com"}
    seen = request(nginx, "GET", "/caller", None, hearsay).json
    assert seen == {"address": "127.0.0.1", "url": "http://model.example.com/caller"}
    answer = request(nginx, "POST", "/seen/x", bytes(1_048_577), {"Content-Type": "image/png"})
    assert (answer.status, "Request larger than allowed" in answer.json["error"]) == (413, True)


def test_the_bare_address_predicts(nginx: int) -> None:
    details: dict[str, Any] = multipart()
    answer = request(nginx, "POST", "/", details["body"], details["headers"])
    assert (answer.status, answer.json["status"]) == (200, "ok")


@pytest.mark.parametrize("path", ASTRAY)
def test_no_path_leads_past_the_action(nginx: int, path: str) -> None:
    assert request(nginx, "GET", path).status == 400


def test_the_models_pages_and_its_swagger_ui_work_at_the_address(
    nginx: int, browser: BrowserContext
) -> None:
    page, address = browser.new_page(), f"http://127.0.0.1:{nginx}/"
    page.goto(f"{address}app/")
    page.get_by_text("person, vélo").wait_for()
    page.get_by_text("predicted of 6 bytes").wait_for()
    page.goto(f"{address}rooted.html")
    page.get_by_text("ok").wait_for()
    page.goto(address)
    predict(page, ROOT / "assets/receipt.png", '"status": "ok"')


CALL = """async (url) => {
    const answer = await fetch(url, {headers: {"X-Require-Whisk-Auth": "s3cret"}})
    return [(await answer.json()).id, answer.headers.get("x-openwhisk-activation-id")]
}"""


def test_a_page_of_another_origin_calls_an_action_with_a_secret(
    max_app: Process, own: int, browser: BrowserContext
) -> None:
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{own}/app/")
    with web_action(max_app.port, secret="s3cret") as port:
        seen = page.evaluate(CALL, f"http://127.0.0.1:{port}{BASE}/model/metadata")
    assert seen == ["shapes", None]
