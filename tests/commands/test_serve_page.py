"""mode=serve as a process: its page in a real browser, what it gives out, and how it ends."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from common.errors import UserError
from common.reading import ROOT
from tests.helpers.browser import CHROMIUM, DRIVER, browser, drop, serving, wait_for
from tests.helpers.tiny import run_mode, write_pictures
from tests.trainer.test_interface import write_diverse_run
from tests.trainer.test_vle_predict import write_checkpoint
from trainer.interface import EmoScribe
from trainer.runs.checkpoint import find_checkpoint
from trainer.serve.command import examples

NO_BROWSER = None if CHROMIUM and DRIVER else "no chromium and chromedriver (apt-get install chromium chromium-driver)"
needs_browser = pytest.mark.skipif(NO_BROWSER is not None, reason=str(NO_BROWSER))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = write_diverse_run(tmp_path_factory.mktemp("run"))
    run_mode("test", {"pretrained_name": run, "trainer.test.novelty": False})  # examples of the page
    return run


@pytest.fixture(scope="module")
def model(run) -> EmoScribe:
    return EmoScribe.from_pretrained(run, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3, size=90)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(run, temporary, tmp_path_factory):
    vle = write_checkpoint(tmp_path_factory.mktemp("vle"), "vle_vqa")
    with serving(run, f"serve.vle={vle}", "serve.max_megabytes=1", temporary=temporary) as (address, _):
        yield address


def get(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def buttons(driver) -> dict[str, object]:
    """Return the radio buttons of the emotions by name."""
    found = driver.find_elements("css selector", "input[type=radio]")
    return {button.get_attribute("value"): button for button in found}


# --- in a browser ----------------------------------------------------------------------------------------------------


@needs_browser
def test_a_dropped_picture_is_explained_and_an_emotion_can_be_chosen(address, model, pictures):
    with browser() as driver:
        driver.get(address)
        drop(driver, pictures[1])
        expected = model.explain(pictures[1])
        radio = buttons(driver)
        assert set(radio) == set(model.labels) and radio[expected.emotion].is_selected()
        shown = driver.find_element("id", "reason").text
        assert shown == " ".join(expected.text.split()) or not expected.text.isascii()
        widths = re.findall(r"width:([\d.]+)%", driver.find_element("id", "bars").get_attribute("innerHTML"))
        expected_widths = sorted((100 * share for share in expected.emotions.values()), reverse=True)
        assert [*map(float, widths)] == pytest.approx(expected_widths, abs=0.06)
        point = driver.find_element("css selector", "#vad circle")
        assert float(point.get_attribute("cx")) == pytest.approx(60 + 50 * expected.vad[0], abs=0.06)
        maps = driver.find_elements("css selector", "#maps figcaption")
        assert maps[0].text == "all words" and len(maps) > 1
        other = next(name for name in model.labels if name != expected.emotion)
        before = driver.find_element("id", "maps").get_attribute("innerHTML")
        driver.execute_script("arguments[0].click()", radio[other])
        wait_for(driver, lambda d: d.find_element("id", "maps").get_attribute("innerHTML") != before)
        chosen = model.explain(pictures[1], emotion=other)
        point = driver.find_element("css selector", "#vad circle")
        assert float(point.get_attribute("cx")) == pytest.approx(60 + 50 * chosen.vad[0], abs=0.06)
        assert buttons(driver)[other].is_selected()


@needs_browser
def test_it_works_by_keyboard_in_the_dark_and_on_a_phone(address, pictures):
    from selenium.webdriver.common.keys import Keys

    with browser(phone=True, dark=True) as driver:
        driver.get(address)
        drop(driver, pictures[0])
        page = driver.find_element("css selector", "body")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 400, "no horizontal scrolling"
        dark = page.value_of_css_property("background-color")
        assert max(map(int, re.findall(r"\d+", dark)[:3])) < 80
        radio = buttons(driver)
        first = next(button for button in radio.values() if button.is_selected())
        before = driver.find_element("id", "maps").get_attribute("innerHTML")
        next(button for button in radio.values() if not button.is_selected()).send_keys(Keys.SPACE)
        wait_for(driver, lambda d: not first.is_selected())
        wait_for(driver, lambda d: d.find_element("id", "maps").get_attribute("innerHTML") != before)
        for control in driver.find_elements("css selector", "input[type=range], input[type=number]"):
            assert control.get_attribute("aria-label") or control.accessible_name
        svg = driver.find_element("css selector", "#vad svg")
        assert svg.get_attribute("aria-label").startswith("valence")


@needs_browser
def test_questions_and_messages(address, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with browser() as driver:
        driver.get(address)
        tabs = wait_for(driver, lambda d: d.find_elements("css selector", "button[role=tab]"))
        next(tab for tab in tabs if tab.text == "Questions").click()
        file = wait_for(driver, lambda d: [i for i in d.find_elements("css selector", "input[type=file]")][-1])
        file.send_keys(str(pictures[0]))
        box = driver.find_element("css selector", "textarea")
        wait_for(driver, lambda d: box.is_displayed())
        box.send_keys("what is it?")
        next(b for b in driver.find_elements("css selector", "button") if b.text == "Ask").click()
        wait_for(driver, lambda d: re.search(r"\d+%", d.find_element("css selector", "body").text))
        tabs[0].click()
        driver.find_elements("css selector", "input[type=file]")[0].send_keys(str(tmp_path / "broken.png"))
        wait_for(driver, lambda d: "not a readable image" in d.find_element("css selector", "body").text)


# --- without a browser -----------------------------------------------------------------------------------------------


def test_no_file_of_the_machine_is_given_out(address, run, pictures):
    outside = [pictures[0], run / "config.yaml", ROOT / "config.yaml", Path("/etc/passwd")]
    names = [*map(str, outside), "config.yaml", "../config.yaml", "run.py", "..%2f..%2fetc/passwd"]
    for name in names:
        for place in (f"/gradio_api/file={name}", f"/file={name}", f"/static/{name}", f"/assets/{name}", f"/{name}"):
            status, content = get(address + place.replace("//", "/", 1) if place.startswith("//") else address + place)
            assert status >= 400 or (b"passwd" not in content and b"root:" not in content), place
            if name != "/etc/passwd":
                source = next((p for p in outside if p.name == Path(name).name), ROOT / "run.py")
                assert status >= 400 or source.read_bytes()[:200] not in content, place
    example = next(iter(json.loads(line)["image"] for line in (run / "test/predictions.jsonl").open()))
    assert get(f"{address}/gradio_api/file={example}")[0] >= 400, "examples are copies"
    body = json.dumps({"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 1], "fn_index": 0})
    for route in ("/gradio_api/run/predict", "/gradio_api/call/lambda", "/gradio_api/api/predict"):
        status, content = get(address + route, body.encode())
        assert status >= 400 or b"root:" not in content


def test_the_server_answers_while_the_page_is_open(address, model, pictures):
    status, content = get(f"{address}/predict", pictures[2].read_bytes())
    assert status == 200 and json.loads(content)["explanation"] == model.explain(pictures[2]).text
    assert get(f"{address}/predict", b"\0" * 1_100_000)[0] == 413
    assert json.loads(get(f"{address}/health")[1])["status"] == "ok"


def test_only_pictures_are_examples(run, tmp_path):
    shown = examples(find_checkpoint(str(run), tmp_path), max_pixels=10**6)
    assert len(shown) == 4 and all(path.suffix == ".png" for path in shown)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    rows = [json.dumps({"image": name}) for name in ("/etc/passwd", str(tmp_path / "none.png"), str(shown[0]))]
    (copy / "test" / "predictions.jsonl").write_text("\n".join(rows) + "\n")
    assert examples(find_checkpoint(str(copy), tmp_path), max_pixels=10**6) == [shown[0]]
    (copy / "test" / "predictions.jsonl").unlink()
    assert examples(find_checkpoint(str(copy), tmp_path), max_pixels=10**6) == []


def test_it_ends_cleanly_and_leaves_no_upload(run, pictures, tmp_path):
    with serving(run, "serve.page=false", temporary=tmp_path) as (address, server):
        assert get(f"{address}/predict", pictures[0].read_bytes())[0] == 200
        assert get(f"{address}/")[0] == 404
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        server.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert server.wait(60) == 75 and time.monotonic() - begin < 20
    assert not [*tmp_path.glob("emoscribe-*")]


def test_what_cannot_be_served_is_named(run, tmp_path):
    def error(**keys: object) -> str:
        with pytest.raises(UserError) as error:
            run_mode("serve", {"trainer.device": "cpu", **{key.replace("__", "."): keys[key] for key in keys}})
        return str(error.value)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"serve.port={port}: cannot listen there" in error(pretrained_name=run, serve__port=port)
    assert "mode=serve needs pretrained_name=RUN" in error()
    vle = write_checkpoint(tmp_path / "vle", "vle_itm")
    assert "is of stage=vle_itm: name a captioner's run" in error(pretrained_name=vle)
    assert "is no run of stage=vle_vqa" in error(pretrained_name=run, serve__port=0, serve__vle=vle)
