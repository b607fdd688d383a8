"""A real headless Chromium, what the tests do with a page in it, and the pages that they open."""

import contextlib
import json
import shutil
import time

import pytest

from selfevo_jax.evaluate.results import summarise
from selfevo_jax.evaluate.running import Outcome
from selfevo_jax.report.eval_page import eval_page
from selfevo_jax.report.page import embed_json, write_page

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --window-size=1280,900 "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
).split()


class Reading:
    """What a reader does with a page and sees there, on top of selenium's driver."""

    DOWN, UP = "\ue015", "\ue013"  # arrow keys, as WebDriver writes them

    def all(self, selector):
        """The elements that a CSS selector names."""
        return self.find_elements("css selector", selector)

    def one(self, selector):
        """The first of them; there must be one."""
        return self.find_element("css selector", selector)

    def open(self, file):
        """Loads a page: it must draw itself to the end, and without an error."""
        self.get_log("browser")
        self.get(file.as_uri())
        assert self.get_log("browser") == []
        assert self.ready()

    def ready(self):
        """Whether the page has drawn itself to its end."""
        return self.execute_script("return document.documentElement.dataset.ready") == "true"

    def choose(self, section, label, value):
        """Sets a filter of a section, by its label, to one of its values."""
        self.execute_script(
            "const [id, label, value] = arguments;"
            "const select = [...document.querySelectorAll(`#${id} label`)]"
            ".find((l) => l.firstChild.textContent === label).querySelector('select');"
            "select.value = value; select.dispatchEvent(new Event('change'));",
            section, label, value,
        )  # fmt: skip

    def search(self, section, words):
        """Types into the search box of a section what is to be looked for, and nothing else."""
        box = self.one(f"#{section} input[type=search]")
        box.clear()
        box.send_keys(words)

    def status(self, section="answers"):
        """What a section says of its list, as `12 answers, page 1 of 2`."""
        return self.one(f"#{section} [role=status]").text

    def count(self, section="answers"):
        """How many rows a section says that it shows."""
        return int(self.status(section).split()[0].replace(",", ""))

    def prefer(self, theme):
        """Makes the browser ask for `light` or `dark` pages."""
        feature = [{"name": "prefers-color-scheme", "value": theme}]
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})

    @contextlib.contextmanager
    def narrow(self):
        """A telephone's screen, as long as the `with` lasts."""
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def nothing_ran(self):
        """Whether what a model wrote stayed text."""
        pwned = self.execute_script("return document.documentElement.dataset.pwned")
        return pwned is None and not self.all("img")

    @staticmethod
    def until(condition):
        """Waits until a condition holds, at most 20 s."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "waited 20 s in vain"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed (the test extra has it)"
    )
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("no chromium and chromedriver (apt-get install chromium chromium-driver)")

    class Browser(Reading, webdriver.Chrome):
        pass

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Browser(options=options, service=webdriver.ChromeService(chromedriver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page_file(run_folder, tmp_path_factory):
    copy = shutil.copytree(run_folder, tmp_path_factory.mktemp("page") / "quickstart")
    return write_page(copy)


@pytest.fixture
def shown(driver, page_file):
    """The browser with the page of a run of one line."""
    driver.open(page_file)
    return driver


@pytest.fixture
def opened(driver, tmp_path):
    """Opens the page of a run."""

    def opens(workdir):
        driver.open(write_page(shutil.copytree(workdir, tmp_path / workdir.name)))
        return driver

    return opens


@pytest.fixture
def changed(page_file, tmp_path):
    """A copy of the page with other data in it."""

    def make(change):
        head, rest = page_file.read_text().split('id="data">', 1)
        text, tail = rest.split("</script>", 1)
        data = json.loads(text)
        change(data)
        target = tmp_path / "changed.html"
        target.write_text(f'{head}id="data">{embed_json(data)}</script>{tail}')
        return target

    return make


@pytest.fixture
def answered():
    """Makes an outcome of an evaluation: a reply, and what was read and thought of it."""

    def make(number: int, said: str, right: bool, parsed: str | None = "5", **lost) -> Outcome:
        scores = {} if lost.pop("unjudged", False) else {"exact_match": float(right)}
        readings = {"none": {"parsed": [parsed], "scores": scores}}
        lost = {"too_long": False, "refused": ""} | lost
        return Outcome.make(
            task="sums", number=number, place=f"sums.jsonl:{number + 1}", doc={}, target="5",
            prompt=f"What is {number} + {5 - number}? <script>ran = 1</script>", replies=(said,),
            logps=(), readings=readings, cluster=None, prompt_tokens=9, tokens=3, cut=0, **lost,
        )  # fmt: skip

    return make


@pytest.fixture
def evaluated(tmp_path):
    """Writes the page of an evaluation, alone or beside another of the same questions."""

    def make(after, before=None):
        pairs = zip(after, before or [None] * len(after), strict=True)
        page = tmp_path / "report.html"
        page.write_text(eval_page("tiny", [summarise("sums", after)], pairs), encoding="utf-8")
        return page

    return make
