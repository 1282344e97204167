"""The dashboard in a real Chromium, against the running stack: what a visitor clicks, and what then stands there.

``DASHBOARD_SCREENSHOTS=folder`` keeps a picture of every page.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.live.conftest import ROOT, Stack

pytestmark = [pytest.mark.live, pytest.mark.browser, pytest.mark.slow]

WAIT_S = 60.0
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream", "--window-size=1440,1250", "--lang=en-GB",
)  # fmt: skip


class Page:
    """The dashboard as a visitor sees it; every wait is a poll with a deadline."""

    def __init__(self, driver: webdriver.Chrome, url: str, poll: Callable[..., None]) -> None:
        self.driver = driver
        self._url = url
        self._poll = poll

    def wait(self, condition: Callable[[], object], what: str) -> None:
        def fulfilled() -> bool:
            try:
                return bool(condition())
            except StaleElementReferenceException:
                return False

        self._poll(fulfilled, WAIT_S, what)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def one(self, css: str) -> WebElement:
        found: list[WebElement] = []
        self.wait(lambda: found.extend(self.all(css)) or found, css)
        return found[0]

    @property
    def text(self) -> str:
        found = self.all('[data-testid="stMain"]')
        return found[0].text if found else ""

    def settle(self) -> None:
        """Wait until the page's script has run to its end."""
        ended = '[data-testid="stApp"][data-test-script-state="notRunning"]'
        self.wait(lambda: self.all(ended) and self.text, "the page's end")

    def open(self) -> None:
        self.driver.get(self._url)
        self.settle()

    def click(self, element: WebElement) -> None:
        """Click it once the page's layout has come to rest: until then another may lie where it was."""

        def clicked() -> bool:
            with contextlib.suppress(ElementClickInterceptedException):
                element.click()
                return True
            return False

        self.wait(clicked, "a layout that rests")

    def use_demo_key(self) -> None:
        self.one(".st-key-use_demo_key button").click()
        self.wait(lambda: self.all(".st-key-forget_key button"), "the key's acceptance")
        self.settle()

    def go(self, title: str) -> None:
        """Follow the sidebar's link."""
        link = next(link for link in self.all('[data-testid="stSidebarNavLink"]') if title in link.text)
        link.click()
        self.wait(lambda: any(heading.text == title for heading in self.all("h1")), f"the page {title}")
        self.settle()

    def choose(self, key: str, option: str) -> None:
        """Pick an option of a select box by typing its beginning."""
        field = self.one(f".st-key-{key} input")
        field.click()
        field.send_keys(option)
        self.wait(lambda: any(item.text.startswith(option) for item in self.all('[role="option"]')), f"option {option}")
        self.click(next(item for item in self.all('[role="option"]') if item.text.startswith(option)))
        self.settle()

    def pick(self, key: str, label: str) -> None:
        """Click a pill or a segment, and wait until it is the chosen one."""
        self.one(f".st-key-{key} button")
        self.click(next(button for button in self.all(f".st-key-{key} button") if button.text == label))
        chosen = f'.st-key-{key} button[aria-checked="true"]'
        self.wait(lambda: label in [button.text for button in self.all(chosen)], f"the choice of {label}")
        self.settle()

    def holds(self, text: str) -> None:
        """Wait until the page's text field holds ``text``."""
        self.wait(lambda: text in (self.one("textarea").get_attribute("value") or ""), f"{text} in the field")
        self.settle()

    def fill(self, key: str, text: str) -> None:
        field = self.one(f".st-key-{key} textarea, .st-key-{key} input")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        field.send_keys(Keys.CONTROL, Keys.ENTER)
        self.settle()

    def run(self, key: str) -> None:
        """Click the page's button and wait for an answer with its cost."""
        button = self.one(f".st-key-{key} button")
        self.wait(button.is_enabled, "the button")
        self.click(button)
        self.wait(lambda: self.all('[data-testid="stMetric"]') or self.all('[data-testid="stAlert"]'), "an answer")
        self.settle()
        assert self.all('[data-testid="stMetric"]'), self.text

    def take_photo(self) -> None:
        """Press the camera's button once it has a picture."""
        self.one(".stCameraInput button")
        self.wait(
            lambda: self.driver.execute_script(
                "const video = document.querySelector('.stCameraInput video'); return video && video.videoWidth > 0"
            ),
            "the camera's picture",
        )
        next(button for button in self.all(".stCameraInput button") if button.text == "Take Photo").click()
        self.wait(lambda: self.all(".stCameraInput img"), "the photo")
        self.wait(lambda: "camera.jpg" in self.text, "the photo's arrival")
        self.settle()

    def code(self) -> list[str]:
        """The curl line and the Python lines."""
        return [block.get_attribute("textContent") or "" for block in self.all('[data-testid="stCode"] code')]

    def keep(self, name: str) -> None:
        """Save a picture, if somebody wants to see it."""
        folder = os.environ.get("DASHBOARD_SCREENSHOTS")
        if folder:
            self.wait(lambda: not self.all('[data-testid="stSkeleton"]'), "the page's last element")
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


@pytest.fixture
def page(
    stack: Stack, require_program: Callable[[str], str], poll: Callable[..., None], tmp_path: Path
) -> Iterator[Page]:
    """The start page in a browser that knows nothing yet."""
    assert stack.dashboard_url is not None
    options = webdriver.ChromeOptions()
    options.binary_location = require_program("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(require_program("chromedriver")))
    try:
        opened = Page(driver, stack.dashboard_url, poll)
        opened.open()
        yield opened
    finally:
        driver.quit()


def pasted(line: str, stack: Stack) -> str:
    """What the line prints in a shell."""
    environment = {"PATH": os.environ["PATH"], "TIDEGATE_KEY": stack.key, "no_proxy": "127.0.0.1"}
    done = subprocess.run(["bash", "-euc", line], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_visitor_without_a_key_is_asked_for_one(page: Page) -> None:
    assert "ready" in page.text
    page.keep("start-without-key")
    page.go("Translation")
    assert "Enter an API key" in page.text


def test_a_wrong_key_is_refused_in_words(page: Page) -> None:
    field = page.one('input[type="password"]')
    field.send_keys("tg_live_nobody_nothing_000000", Keys.ENTER)
    page.wait(lambda: "does not accept this key" in page.text, "the refusal")
    page.one(".st-key-forget_key button").click()
    page.wait(lambda: page.all('input[type="password"]'), "the key's field")


def test_the_key_is_typed_hidden_and_leaves_no_trace(page: Page, stack: Stack) -> None:
    page.one('input[type="password"]').send_keys(stack.key, Keys.ENTER)
    page.wait(lambda: page.all(".st-key-forget_key button"), "the key's acceptance")
    page.settle()
    assert stack.key not in page.driver.page_source
    assert stack.key not in page.driver.current_url
    assert stack.key not in stack.log_file.read_text()
    assert stack.key not in (stack.data_dir / "logs" / "dashboard.log").read_text()
    stored = page.driver.execute_script("return JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert stack.key not in stored


def test_pictures(page: Page, stack: Stack) -> None:
    page.use_demo_key()
    page.go("Image classification")
    page.choose("image_classification-model", "imagenet")
    page.pick("image_classification-photo", "Cat")
    page.run("image_classification-run")
    page.keep("image-classification")
    best = page.text
    assert "cat" in best or "tabby" in best
    assert "Pixels" in best
    assert "cat" in pasted(page.code()[0], stack)
    page.choose("image_classification-model", "digits")
    page.pick("image_classification-digit", "3")
    page.run("image_classification-run")
    page.wait(lambda: "digit-3.png" in page.code()[0], "the answer for a digit")
    page.keep("digits")
    assert '"label":"3"' in pasted(page.code()[0], stack).replace(" ", "").split("},")[0]


def test_an_uploaded_picture(page: Page) -> None:
    page.use_demo_key()
    page.go("Image classification")
    page.choose("image_classification-model", "imagenet")
    page.pick("image_classification-way", "Upload")
    upload = page.one(".st-key-image_classification-upload input[type=file]")
    upload.send_keys(str(ROOT / "dashboard" / "samples" / "coffee.jpg"))
    page.wait(lambda: "coffee.jpg, 512 × 341" in page.text, "the uploaded picture")
    page.run("image_classification-run")
    assert "espresso" in page.text or "cup" in page.text


def test_a_picture_taken_with_the_camera(page: Page) -> None:
    """The browser's fake device shows a spinning disc: what it is taken for says nothing, that it is answered does."""
    page.use_demo_key()
    page.go("Image classification")
    page.choose("image_classification-model", "imagenet")
    page.pick("image_classification-way", "Camera")
    page.take_photo()
    taken = re.search(r"camera\.jpg, (\d+) × (\d+)", page.text)
    assert taken is not None, page.text
    page.run("image_classification-run")
    page.keep("camera")
    assert "camera.jpg, seen by imagenet" in page.text
    assert len(re.findall(r"^[\d.]+%$", page.text, re.MULTILINE)) == 5, page.text
    assert f"Pixels\n{int(taken[1]) * int(taken[2]):,}\n" in page.text


def test_sentiment(page: Page, stack: Stack) -> None:
    page.use_demo_key()
    page.go("Sentiment and topics")
    page.choose("text_classification-model", "sentiment")
    page.run("text_classification-run")
    page.keep("sentiment")
    assert "positive" in page.text.lower()
    assert "positive" in pasted(page.code()[0], stack).lower().split("}")[0]


def test_topics_of_chinese_reviews(page: Page) -> None:
    page.use_demo_key()
    page.go("Sentiment and topics")
    page.choose("text_classification-model", "topics-zh")
    page.pick("text_classification-zh-example", "酒店")
    page.holds("前台服务热情")
    page.run("text_classification-run")
    page.wait(lambda: "前台服务热情" in page.text and "hotels" in page.text, "the topic")
    page.keep("topics-zh")


def test_entities_are_marked(page: Page) -> None:
    page.use_demo_key()
    page.go("Named entities")
    page.run("entities-run")
    page.keep("entities")
    marked = " ".join(mark.text for mark in page.all("mark"))
    assert "Curie" in marked
    assert "Paris" in marked


def test_the_answer_is_marked_in_its_context(page: Page) -> None:
    page.use_demo_key()
    page.go("Question answering")
    page.run("question_answering-run")
    page.keep("question-answering")
    page.holds("The Golden Gate Bridge")
    (mark,) = page.all("mark")
    assert "1937" in mark.text


@pytest.mark.parametrize(
    ("model", "example", "text", "word"),
    [("translate-zh-en", "Train", "火车", "train"), ("translate-en-fr", "Dog", "brown dog", "chien")],
)
def test_translation(page: Page, model: str, example: str, text: str, word: str) -> None:
    page.use_demo_key()
    page.go("Translation")
    page.choose("translation-model", model)
    page.pick(f"translation-{model.removeprefix('translate-')}-example", example)
    page.holds(text)
    page.run("translation-run")
    page.keep(model)
    assert word in page.text


def test_sentences_that_mean_the_same_are_closest(page: Page) -> None:
    page.use_demo_key()
    page.go("Embeddings and similarity")
    page.run("similarity-run")
    page.keep("similarity")
    assert "Closest: 1 and 2" in page.text or "Closest: 5 and 6" in page.text
    page.fill("similarity-text", "A cat sleeps.\nThe stock market fell.\nA kitten is napping.")
    page.run("similarity-run")
    page.wait(lambda: "Closest: 1 and 3" in page.text, "the closest pair")


def test_labels_of_ones_own(page: Page) -> None:
    page.use_demo_key()
    page.go("Zero-shot labels")
    page.run("zero_shot-run")
    page.keep("zero-shot")
    assert "delivery" in page.text


def test_models_and_usage(page: Page, stack: Stack) -> None:
    page.use_demo_key()
    page.go("Translation")
    page.run("translation-run")
    page.go("Models")
    page.choose("models-card", "digits")
    page.wait(lambda: "Evidence of the last build" in page.text and "Handwritten digits" in page.text, "the card")
    page.keep("models")
    page.go("Usage and cost")

    def counted() -> bool:
        page.go("Models")
        page.go("Usage and cost")
        return "Cost by model" in page.text

    page.wait(counted, "the ledger's first rows")
    page.keep("usage")
    assert "Requests" in page.text


def test_a_dark_and_narrow_window(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.open()
    page.use_demo_key()
    page.go("Zero-shot labels")
    page.run("zero_shot-run")
    page.driver.set_window_size(500, 1250)
    scroll, inner = page.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner
    assert page.one('[data-testid="stApp"]').value_of_css_property("background-color") == "rgba(15, 23, 32, 1)"
    page.keep("dark-narrow")


def test_nothing_is_asked_of_the_outside(page: Page, stack: Stack) -> None:
    page.use_demo_key()
    page.go("Embeddings and similarity")
    page.run("similarity-run")
    hosts = set(
        page.driver.execute_script(
            "return performance.getEntriesByType('resource').map(e => new URL(e.name, location).host)"
        )
    )
    assert stack.dashboard_url is not None
    assert hosts <= {stack.dashboard_url.removeprefix("http://"), ""}
    assert [entry for entry in page.driver.get_log("browser") if "Uncaught" in entry["message"]] == []
