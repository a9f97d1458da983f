"""The console: a real browser uploads, continues, looks at an audience and takes down; and what the page may do."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from service_process import RunningService
from test_service_problems import assert_problem

from service.console import FILES, POLICY
from service.http.keys import new_key

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("there is no Chromium: apt install chromium, or set CHROMIUM to one")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page that fails the test when it calls elsewhere or something goes wrong in it."""
    context = browser.new_context()
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda line: line.type == "error" and "Failed to load resource" not in line.text and wrong.append(line.text),
    )
    page.on(
        "request",
        lambda request: re.match(r"http://127\.0\.0\.1|blob:http://127", request.url) or wrong.append(request.url),
    )
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def running(releases, tmp_path_factory) -> Iterator[RunningService]:
    ledger = tmp_path_factory.mktemp("console") / "ledger.sqlite"
    with RunningService(releases, ledger, decode_workers=1) as running:
        yield running


def opened(page: Page, running: RunningService) -> Page:
    page.goto(str(running.client.base_url))
    expect(page.locator("#status")).to_contain_text("release")
    return page


def test_a_file_becomes_a_track_a_playlist_and_an_audience(page, running, clip, tmp_path):
    opened(page, running)
    file = tmp_path / "07 Marta_Ruiz - First Light.ogg"
    file.write_bytes(clip)
    page.set_input_files("#files", file)
    line = page.locator("#uploads > li")
    expect(line).to_contain_text("recommended", timeout=20_000)
    expect(line).to_contain_text("First Light")
    expect(line).to_contain_text("Marta Ruiz")
    [found] = running.client.get("/tracks", params={"q": "first light"}).json()["tracks"]
    assert (found["title"], found["artist"]) == ("First Light", "Marta Ruiz")

    line.get_by_role("button", name="Seed").click()
    expect(page.locator("#seeds")).to_contain_text("First Light")
    page.get_by_label("How many").fill("5")
    page.get_by_role("button", name="Continue it").click()
    rows = page.locator("#continuation > li")
    expect(rows).to_have_count(5)
    expect(rows.first).to_contain_text("because of First Light: sound")
    page.get_by_role("button", name="More").click()
    expect(rows).to_have_count(10)
    names = rows.locator("strong").all_inner_texts()
    request = {"seeds": [found["track_id"]], "k": 10}
    answer = running.client.post("/continue-playlist", json=request).json()["tracks"]
    assert names == [track["title"] or track["track_id"] for track in answer]

    line.get_by_role("button", name="Audience").click()
    expect(page.locator("#audience h3")).to_contain_text("First Light")
    wanted = running.client.get(f"/audience/{found['track_id']}", params={"limit": 25}).json()
    assert page.locator("#audience td:first-child").all_inner_texts() == [
        one["listener_id"] for one in wanted["listeners"]
    ]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert Path(download.value.path()).read_text().startswith("listener_id,score,cluster")

    page.once("dialog", lambda dialog: dialog.accept())
    line.get_by_role("button", name="Take down").click()
    expect(line).to_contain_text("taken down")
    expect(page.locator("#seeds")).not_to_contain_text("First Light")
    assert running.client.get(f"/tracks/{found['track_id']}").status_code == 404


def test_what_is_wrong_is_said_and_names_are_never_markup(page, running, clip, tmp_path):
    opened(page, running)
    bad, odd = tmp_path / "notes.mp3", tmp_path / "<img src=x onerror=alert(1)> - <b>bold<b>.ogg"
    bad.write_text("no sound at all")
    odd.write_bytes(clip)
    page.set_input_files("#files", [bad, odd])
    lines = page.locator("#uploads > li")
    expect(lines.filter(has_text="notes")).to_contain_text("convert it", timeout=20_000)
    expect(lines.filter(has_text="notes").get_by_role("button", name="Try again")).to_be_visible()
    done = lines.filter(has_text="<b>bold<b>")
    expect(done).to_contain_text("recommended", timeout=20_000)
    assert page.locator("#uploads img, #uploads b").count() == 0
    page.get_by_label("Title or artist").fill("no such song")
    expect(page.locator("#found")).to_contain_text("No track begins like that.")
    page.get_by_label("Title or artist").fill("bold")
    expect(page.locator("#found")).to_contain_text("<b>bold<b>")


def test_with_keys_the_page_asks_for_one_and_keeps_it_for_the_tab_alone(page, releases, tmp_path):
    key, line = new_key("console", "read")
    (tmp_path / "keys").write_text(f"{line}\n")
    with RunningService(releases, tmp_path / "ledger.sqlite", keys_file=tmp_path / "keys", decode_workers=1) as running:
        opened(page, running)
        page.get_by_label("Title or artist").fill("a")
        expect(page.locator("#message")).to_contain_text("API key")
        page.get_by_label("API key").fill(f"\u200b{key}\u00a0")  # as copied from a page
        page.get_by_role("button", name="Use it").click()
        page.get_by_label("Title or artist").fill("der")
        expect(page.locator("#found > li").first).to_be_visible()
        expect(page.locator("#key")).to_be_hidden()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert key not in page.url
        for path in ("/tracks?q=a", "/console", "/consoles/main.js"):
            assert running.client.get(path).status_code == 401


def test_a_browser_gets_the_page_and_others_what_this_is(client):
    for accept in ("*/*", "application/json", "", "text/html;q=0.1, application/json"):
        assert client.get("/", headers={"accept": accept}).json()["name"] == "Debut"
    answer = client.get("/", headers={"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"})
    assert answer.headers["content-type"].startswith("text/html")
    assert (answer.headers["content-security-policy"], answer.headers["vary"]) == (POLICY, "Accept")
    named = set(re.findall(r'"/console/([^"]+)"', answer.text))
    assert named <= set(FILES)
    imported = {name for content, _ in FILES.values() for name in re.findall(r'from "\./([^"]+)"', content.decode())}
    assert imported <= set(FILES)
    for name, (content, kind) in FILES.items():
        served = client.get(f"/console/{name}")
        assert (served.content, served.headers["content-security-policy"]) == (content, POLICY)
        assert served.headers["content-type"].startswith(kind)
    for name in ("__init__.py", "..%2fsettings.py", "x.js"):
        assert_problem(client.get(f"/console/{name}"), 404, "not_found")
