"""The page in a real headless Chromium: it loads, filters, and runs nothing of a model's."""

import json
import shutil
import threading
import time

import pytest

pytest.importorskip("selenium", reason="selenium is not installed (the test extra has it)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no chromium and chromedriver (apt-get install chromium chromium-driver)",
                allow_module_level=True)  # fmt: skip

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

from selfevo_jax.evaluate.results import summarise  # noqa: E402
from selfevo_jax.evaluate.running import Outcome  # noqa: E402
from selfevo_jax.report.eval_page import eval_page  # noqa: E402
from selfevo_jax.report.live import LiveServer  # noqa: E402
from selfevo_jax.report.page import embed_json, write_page  # noqa: E402

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --window-size=1280,900 "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
).split()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page_file(run_folder, tmp_path_factory):
    copy = shutil.copytree(run_folder, tmp_path_factory.mktemp("page") / "quickstart")
    return write_page(copy)


@pytest.fixture
def shown(driver, page_file):
    driver.get(page_file.as_uri())
    assert driver.execute_script("return document.documentElement.dataset.ready") == "true"
    driver.get_log("browser")  # start with an empty log; loading errors are checked in their test
    return driver


def choose(driver, section, label, value):
    driver.execute_script(
        "const [id, label, value] = arguments;"
        "const select = [...document.querySelectorAll(`#${id} label`)]"
        ".find((l) => l.firstChild.textContent === label).querySelector('select');"
        "select.value = value; select.dispatchEvent(new Event('change'));",
        section, label, value,
    )  # fmt: skip


def status(driver, section="answers"):
    return driver.find_element(By.CSS_SELECTOR, f"#{section} [role=status]").text


def count(driver, section="answers"):
    return int(status(driver, section).split()[0].replace(",", ""))


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "waited 5 s in vain"
        time.sleep(0.05)


def test_loads_without_errors_and_says_what_came_of_it(driver, page_file):
    driver.get(page_file.as_uri())
    assert driver.get_log("browser") == []
    assert driver.execute_script("return document.documentElement.dataset.ready") == "true"
    assert driver.find_element(By.TAG_NAME, "h1").text.startswith("Accuracy ")
    lead = driver.find_element(By.CLASS_NAME, "lead").text
    assert "95 % interval" in lead
    assert "300 held-out questions" in lead
    headings = [h.text for h in driver.find_elements(By.TAG_NAME, "h2")]
    assert headings == ["Accuracy", "What the method concludes", "Training", "Gauges and decisions",
                        "Training records and held-out questions", "Answer lengths", "Judges",
                        "Contests", "Answers before and after", "Training pairs", "Lineage",
                        "Compute", "Repeat this run"]  # fmt: skip
    assert len(driver.find_elements(By.CSS_SELECTOR, "svg[role=img][aria-label]")) == 10


def test_lineage_and_judges_are_shown(shown):
    drawing = shown.find_element(By.CSS_SELECTOR, "#lineage svg")
    spoken = drawing.get_attribute("aria-label")
    assert spoken == "Lineage: base; round_01 from base; round_02 from round_01"
    assert drawing.find_elements(By.CSS_SELECTOR, "path.asked") == []
    assert len(drawing.find_elements(By.TAG_NAME, "rect")) == 3
    row = shown.find_element(By.CSS_SELECTOR, "#judges tbody tr").text
    assert "10 10.0 % of 10 30.0 % of 10 33.3 % of 9 66.7 % of 18 66.7 % of 6 90.0 %" in row


def test_tables_gauges_and_costs_are_shown(shown):
    rows = lambda place: [  # noqa: E731
        row.text for row in shown.find_elements(By.CSS_SELECTOR, f"#{place} tbody tr")
    ]
    assert rows("tables")[0] == "base 300 0.300 [0.250, 0.350]"
    assert "onerror=" in rows("tables")[1]
    assert rows("gauges") == ["round_01 1.25 0.5"] * 2
    by_stage = {row.split()[0]: row for row in rows("cost")}
    assert by_stage["round_01/sample"] == "round_01/sample 9.5 s 4,000 600 484"
    assert by_stage["round_01/train"] == "round_01/train 42.0 s 144 k 3,429 30.0 %"
    assert [row for row in rows("training")][0].startswith("round 1 60 144 k")


def changed(page_file, target, change):
    """A copy of the page with other data in it."""
    head, rest = page_file.read_text().split('id="data">', 1)
    text, tail = rest.split("</script>", 1)
    data = json.loads(text)
    change(data)
    target.write_text(f'{head}id="data">{embed_json(data)}</script>{tail}')
    return target


def test_goodput_is_shown_where_a_run_tells_it(driver, page_file, tmp_path):
    spent = {"steps": 90.0, "compile": 8.0, "again": 2.0, "seconds": 100.0, "share": 0.9}
    told = changed(
        page_file, tmp_path / "told.html",
        lambda data: data["summary"]["trainings"][0].update(goodput=spent),
    )  # fmt: skip
    driver.get(told.as_uri())
    table = driver.find_element(By.CSS_SELECTOR, "#cost [aria-label='Goodput of training'] thead")
    assert table.text == "Training Goodput steps compile again"
    row = driver.find_element(By.CSS_SELECTOR, "#cost [aria-label='Goodput of training'] tbody")
    assert row.text == "round 1 90.0 % 1 min 30 s 8.0 s 2.0 s"
    assert driver.get_log("browser") == []


def answered(number: int, said: str, right: bool, parsed: str | None = "5", **lost) -> Outcome:
    scores = {} if lost.pop("unjudged", False) else {"exact_match": float(right)}
    readings = {"none": {"parsed": [parsed], "scores": scores}}
    lost = {"too_long": False, "refused": ""} | lost
    return Outcome.make(
        task="sums", number=number, place=f"sums.jsonl:{number + 1}", doc={}, target="5",
        prompt=f"What is {number} + {5 - number}? <script>ran = 1</script>", replies=(said,),
        logps=(), readings=readings, cluster=None, prompt_tokens=9, tokens=3, cut=0, **lost,
    )  # fmt: skip


def test_the_page_of_an_evaluation_picks_what_was_fixed_or_broken(driver, tmp_path):
    after = [answered(0, "5", True), answered(1, "<img src=x onerror='ran = 1'>", False, None),
             answered(2, "4", False), answered(3, "5", True)]  # fmt: skip
    before = [answered(0, "6", False), answered(1, "4", False), answered(2, "5", True), after[3]]
    pairs = list(zip(after, before, strict=True))
    page = tmp_path / "report.html"
    page.write_text(eval_page("tiny", [summarise("sums", after)], pairs), encoding="utf-8")
    driver.get_log("browser")
    driver.get(page.as_uri())
    assert driver.get_log("browser") == []
    assert driver.execute_script("return [document.documentElement.dataset.ready, typeof ran]") == [
        "true", "undefined"
    ]  # fmt: skip
    (row,) = driver.find_elements(By.CSS_SELECTOR, "#figures tbody tr")
    assert row.text.startswith("sums none exact_match 4 0.500 0.150 to 0.850")
    shown = {"all": 4, "right": 2, "wrong": 2, "unparsed": 1, "fixed": 1, "broken": 1}
    for value, wanted in shown.items():
        choose(driver, "items", "Show", value)
        assert count(driver, "items") == wanted, value
    assert [x.text for x in driver.find_elements(By.CSS_SELECTOR, "#items del, #items ins")] == [
        "5", "4"
    ]  # fmt: skip


def test_the_page_of_an_evaluation_says_what_has_no_verdict(driver, tmp_path):
    """Too long, refused, not judged: counted in words, picked out, and never called wrong."""
    why = "<img src=x onerror='ran = 1'> quota"
    after = [
        answered(0, "5", True), answered(1, "4", False),
        answered(2, "", False, None, too_long=True), answered(3, "", False, None, refused=why),
        answered(4, "", False, None, unjudged=True),
    ]  # fmt: skip
    page = tmp_path / "report.html"
    found = summarise("sums", after)
    page.write_text(eval_page("tiny", [found], [(one, None) for one in after]), encoding="utf-8")
    driver.get_log("browser")
    driver.get(page.as_uri())
    notes = [p.text for p in driver.find_elements(By.CSS_SELECTOR, "#figures p.note")][1:]
    assert [note.split(":")[1].split()[:4] for note in notes] == [
        ["1", "prompts", "were", "too"], ["1", "questions", "were", "refused"],
        ["1", "questions", "could", "not"],
    ]  # fmt: skip
    assert found.figures[0].n == 4  # the one that was not judged is in no figure
    for value, wanted in {"all": 5, "right": 1, "wrong": 1, "unparsed": 0, "lost": 3}.items():
        choose(driver, "items", "Show", value)
        assert count(driver, "items") == wanted, value
    said = set()
    for row in range(3):
        driver.find_elements(By.CSS_SELECTOR, "#items .rows button")[row].click()
        said.add(driver.find_elements(By.CSS_SELECTOR, "#items .detail .facts")[-1].text)
        chips = driver.find_elements(By.CSS_SELECTOR, "#items .chip")
        assert {chip.text for chip in chips} == {"no verdict"}
    text = "".join(said)
    assert why in text and "not asked" in text and "left out of the figures" in text
    assert nothing_ran(driver) and driver.get_log("browser") == []


def test_overlap_is_shown(shown):
    trainings, spans = shown.find_elements(By.CSS_SELECTOR, "#overlap table")
    rows = [row.text.split() for row in trainings.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert [(row[0], row[2:]) for row in rows] == [
        ("round_01/train", ["300", "1", "0"]),
        ("round_02/train", ["300", "1", "1"]),
    ]
    assert spans.get_attribute("textContent").count("</script>") == 4  # shown, not run


@pytest.fixture
def opened(driver, tmp_path):
    """Opens the page of a run."""

    def opens(workdir):
        copy = shutil.copytree(workdir, tmp_path / workdir.name)
        driver.get_log("browser")
        driver.get(write_page(copy).as_uri())
        assert driver.execute_script("return document.documentElement.dataset.ready") == "true"
        assert driver.get_log("browser") == []
        return driver

    return opens


def nothing_ran(driver):
    """Whether what a model wrote stayed text."""
    pwned = driver.execute_script("return document.documentElement.dataset.pwned")
    return pwned is None and not driver.find_elements(By.TAG_NAME, "img")


def test_a_run_of_several_lines_shows_them_all(opened, branches):
    driver = opened(branches)
    assert driver.find_element(By.TAG_NAME, "h1").text == "Accuracy 25.0 % \u2192 75.0 %"
    assert driver.find_element(By.CLASS_NAME, "lead").text.startswith("x.round_01: +50.0 points")
    rows = driver.find_elements(By.CSS_SELECTOR, "#accuracy tbody tr")
    assert [" ".join(row.text.split()[1:5]) for row in rows] == [
        "before training 4 25.0", "round_01.sft 4 50.0 %", "x.round_01 4 75.0 %",
        "y.round_01 4 100.0 %",
    ]  # fmt: skip
    assert [h.text for h in driver.find_elements(By.CSS_SELECTOR, "#lengths h3")] == [
        "before training", "round_01.sft", "x.round_01", "y.round_01",
    ]  # fmt: skip
    spent = [row.text for row in driver.find_elements(By.CSS_SELECTOR, "#cost tbody tr")]
    assert "round_01/x.train 3.0 s 300 100 6.00 GFLOP" in spent
    assert "round 1, x 75.0 % 3.0 s 0.0 s 0.0 s 0.0 s 0.0 s 0.0 s 1.0 s 0.0 s" in spent


def test_the_lineage_draws_models_and_data(opened, branches):
    driver = opened(branches)
    drawing = driver.find_element(By.CSS_SELECTOR, "#lineage svg")
    spoken = drawing.get_attribute("aria-label")
    assert "x.round_01 from round_01.sft and 4 pairs of round_01/x.pair by round_01.sft" in spoken
    kinds = ("line faint", "line asked", "line")
    paths = [path.get_attribute("class") for path in drawing.find_elements(By.TAG_NAME, "path")]
    assert [paths.count(kind) for kind in kinds] == [3, 2, 3]
    assert len(drawing.find_elements(By.TAG_NAME, "rect")) == 4 + 3
    ends = driver.execute_script(
        "return [...document.querySelectorAll('#lineage path')].map((path) =>"
        " path.getPointAtLength(path.getTotalLength()).x - path.getPointAtLength(0).x)"
    )
    assert all(end > 0 for end in ends)  # from left to right


def test_contests_are_browsed_by_what_became_of_them(opened, branches):
    driver = opened(branches)
    for value, number in {"all": 8, "flip": 2, "tie": 2, "failure": 2, "second": 2}.items():
        choose(driver, "contests", "Show", value)
        assert count(driver, "contests") == number, value
    choose(driver, "contests", "Show", "flip")
    choose(driver, "contests", "Stage", "round 1, y.judge")
    assert count(driver, "contests") == 1
    detail = driver.find_element(By.CSS_SELECTOR, "#contests .detail").text
    assert "the orders disagree" in detail and "What is 0 + 1?" in detail
    assert "y says 1" in detail and "y says 2!" in detail and "90.0 %" in detail
    choose(driver, "contests", "Show", "failure")
    assert "It failed: no label" in driver.find_element(By.CSS_SELECTOR, "#contests .detail").text
    choose(driver, "contests", "Show", "all")
    choose(driver, "contests", "Stage", "")
    first = driver.find_element(By.CSS_SELECTOR, "#contests .rows button")
    first.send_keys(Keys.ARROW_DOWN)
    assert driver.switch_to.active_element.get_attribute("aria-current") == "true"
    driver.find_element(By.CSS_SELECTOR, "#contests input[type=search]").send_keys("onerror")
    until(lambda: count(driver, "contests") == 2)
    assert "<img src=x onerror=" in driver.find_element(By.CSS_SELECTOR, "#contests .detail").text
    assert nothing_ran(driver) and driver.get_log("browser") == []


def test_selections_are_browsed_and_searched(opened, chosen):
    driver = opened(chosen)
    assert count(driver, "selections") == 6
    choose(driver, "selections", "Chosen by", "entropy")
    assert count(driver, "selections") == 2
    detail = lambda: driver.find_element(By.CSS_SELECTOR, "#selections .detail").text  # noqa: E731
    assert "What is 3 + 1?" in detail() and "mean entropy 1.5" in detail()
    driver.find_element(By.CSS_SELECTOR, "#selections input[type=search]").send_keys("onerror")
    until(lambda: count(driver, "selections") == 1)
    assert "<img src=x onerror=" in detail() and nothing_ran(driver)
    driver.find_element(By.CSS_SELECTOR, "#selections input[type=search]").clear()
    choose(driver, "selections", "Chosen by", "one of several replies")
    until(lambda: count(driver, "selections") == 4)
    kept = driver.find_element(By.CSS_SELECTOR, "#selections .detail .chip.good + .said").text
    assert kept == "draw 2"
    assert driver.get_log("browser") == []


# Number of colours in a PNG and the mean level of the commonest one.
PIXELS = """
const [picture, done] = arguments, image = new Image();
image.onload = () => {
  const canvas = document.createElement('canvas');
  canvas.width = image.width; canvas.height = image.height;
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, image.width, image.height).data, counts = new Map();
  for (let i = 0; i < data.length; i += 4) {
    const key = data[i] << 16 | data[i + 1] << 8 | data[i + 2];
    counts.set(key, (counts.get(key) || 0) + 1);
  }
  const [key] = [...counts].reduce((a, b) => b[1] > a[1] ? b : a);
  done([counts.size, ((key >> 16) + (key >> 8 & 255) + (key & 255)) / 3]);
};
image.src = 'data:image/png;base64,' + picture;
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshot_is_a_drawing_in_both_themes(shown, theme):
    feature = [{"name": "prefers-color-scheme", "value": theme}]
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    picture = shown.get_screenshot_as_base64()
    page = shown.current_url
    shown.get("about:blank")  # reads the picture's pixels
    colours, background = shown.execute_async_script(PIXELS, picture)
    assert colours > 200
    assert background > 230 if theme == "light" else background < 60
    shown.get(page)
    button = shown.find_element(By.ID, "theme")
    assert button.text == ("Dark theme" if theme == "light" else "Light theme")
    button.click()
    flipped = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    level = int(flipped.split("(")[1].split(",")[0])
    assert level < 60 if theme == "light" else level > 230


def test_filters_agree_with_the_records(shown, page_file):
    def marks(number):
        path = page_file.parent / f"round_{number:02d}" / "evaluate" / "records.jsonl"
        rows = map(json.loads, path.read_text().splitlines())
        return {row["prompt_id"]: row for row in rows}

    first, last = marks(0), marks(2)
    ids = first.keys()
    expected = {
        "all": 300,
        "fixed": sum(last[i]["correct"] > first[i]["correct"] for i in ids),
        "broken": sum(last[i]["correct"] < first[i]["correct"] for i in ids),
        "wrong": sum(not last[i]["correct"] for i in ids),
        "unchanged": sum(last[i]["correct"] == first[i]["correct"] for i in ids),
        "unparsed": sum(last[i]["parsed"] is None for i in ids),
    }
    for value, number in expected.items():
        choose(shown, "answers", "Show", value)
        assert count(shown) == number, value
    choose(shown, "answers", "Show", "fixed")
    choose(shown, "answers", "After", "1")
    second = marks(1)
    assert count(shown) == sum(second[i]["correct"] > first[i]["correct"] for i in ids)
    assert shown.get_log("browser") == []


def test_search_finds_and_finds_nothing(shown):
    box = shown.find_element(By.CSS_SELECTOR, "#answers input[type=search]")
    box.send_keys("NOT sure")
    until(lambda: count(shown) < 300)
    assert count(shown) > 0
    assert "not sure" in shown.find_element(By.CSS_SELECTOR, "#answers .detail").text
    box.clear()
    box.send_keys("zebra quagga")
    until(lambda: status(shown) == "0 answers")
    assert "No answers match" in shown.find_element(By.CSS_SELECTOR, "#answers .detail").text


def test_keyboard_walks_the_list_and_the_pages(shown):
    rows = shown.find_elements(By.CSS_SELECTOR, "#answers .rows button")
    assert len(rows) == 15
    rows[0].send_keys(Keys.ARROW_DOWN)
    active = shown.switch_to.active_element
    assert active.get_attribute("aria-current") == "true"
    second = active.text
    active.send_keys(Keys.ARROW_UP)
    assert shown.switch_to.active_element.text != second
    nexts = shown.find_elements(By.XPATH, "//section[@id='answers']//button[text()='Next']")
    nexts[0].click()
    assert "page 2 of 20" in status(shown)
    assert len(shown.find_elements(By.CSS_SELECTOR, "#answers [aria-current=true]")) == 1


def test_hostile_text_is_shown_and_never_runs(shown):
    box = shown.find_element(By.CSS_SELECTOR, "#answers input[type=search]")
    box.send_keys("onerror")
    until(lambda: count(shown) == 1)
    detail = shown.find_element(By.CSS_SELECTOR, "#answers .detail")
    assert "</script><img src=x onerror=" in detail.text
    assert "{{script}} &lt;b&gt; `${1+1}`" in detail.text
    marks = {mark.text for mark in detail.find_elements(By.CLASS_NAME, "control")}
    assert {"U+202E", "U+202C", "U+200B", "U+0000", "U+2028", "U+E0041"} <= marks
    assert shown.find_elements(By.TAG_NAME, "img") == []
    assert shown.execute_script("return document.documentElement.dataset.pwned") is None
    assert shown.get_log("browser") == []


def test_the_policy_stops_a_script_that_gets_in_all_the_same(shown):
    """The second wall: were a text ever parsed as HTML, its code would still not run."""
    shown.execute_script(
        "document.body.insertAdjacentHTML('beforeend', "
        "'<img src=x onerror=\"document.documentElement.dataset.pwned=1\">')"
    )
    until(lambda: any("Content Security Policy" in e["message"] for e in shown.get_log("browser")))
    assert shown.execute_script("return document.documentElement.dataset.pwned") is None


def test_word_differences(shown):
    script = "return wordDifference(arguments[0], arguments[1])"
    runs = shown.execute_script(script, "the cat sat on a mat", "the dog sat on a red mat")
    old = "".join(word for kind, words in runs if kind != "new" for word in words)
    new = "".join(word for kind, words in runs if kind != "old" for word in words)
    assert (old, new) == ("the cat sat on a mat", "the dog sat on a red mat")
    changed = {(kind, "".join(words).strip()) for kind, words in runs if kind != "same"}
    assert changed == {("old", "cat"), ("new", "dog"), ("new", "red")}
    start = time.monotonic()
    long = " ".join(map(str, range(50_000)))
    assert shown.execute_script(script, long, long[::-1])
    assert time.monotonic() - start < 3


def test_every_control_has_a_name_and_no_id_is_used_twice(shown):
    nameless = shown.execute_script(
        "return [...document.querySelectorAll('button, input, select, [role=region], nav')]"
        ".filter((e) => !(e.textContent.trim() || e.labels?.length || e.ariaLabel"
        " || e.getAttribute('aria-labelledby'))).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert shown.execute_script(
        "const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);"
        "return ids.length === new Set(ids).size"
    )


# Contrast (WCAG 2.2, 1.4.3) of every text on the page with what it stands on; those below it.
FAINT = """
const light = (value) => { value /= 255; return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4; };
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
const level = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
const ground = (e) => { for (; e; e = e.parentElement) { const found = parts(getComputedStyle(e).backgroundColor);
  if (found.length < 4 || found[3] > .99) return found; } return [255, 255, 255]; };
return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("svg")
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).filter((e) => {
  const style = getComputedStyle(e), size = parseFloat(style.fontSize);
  const [a, b] = [level(parts(style.color)), level(ground(e))].sort((x, y) => y - x);
  return (a + .05) / (b + .05) < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5);
}).map((e) => `${e.className} ${e.textContent.slice(0, 40)} ${getComputedStyle(e).color}`);
"""  # noqa: E501


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_stands_out_in_both_themes(shown, theme):
    shown.execute_script(f"document.documentElement.style.colorScheme = '{theme}'")
    assert shown.execute_script(FAINT) == []
    shown.execute_script("document.querySelector('#answers .chip').style.color = 'gray'")
    assert len(shown.execute_script(FAINT)) == 1  # it would be seen


def test_narrow_screens_do_not_scroll_sideways(shown):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        wide = shown.execute_script("return document.documentElement.scrollWidth")
    finally:
        shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= 360


def test_a_hundred_thousand_records_stay_quick(driver, page_file, tmp_path):
    def many(data):
        answers, row = data["answers"], data["answers"]["rows"][0]
        answers["rows"] = [
            row | {"id": str(i), "question": f"Question {i}: " + "word " * 30}
            for i in range(100_000)
        ]
        answers["total"] = 250_000

    big = changed(page_file, tmp_path / "big.html", many)
    start = time.monotonic()
    driver.get(big.as_uri())
    until(lambda: driver.execute_script("return document.documentElement.dataset.ready") == "true")
    assert time.monotonic() - start < 15
    assert count(driver) == 100_000
    assert "The first 100,000 of 250,000 answers" in driver.find_element(By.ID, "answers").text
    assert driver.execute_script("return document.querySelectorAll('*').length") < 3000
    start = time.monotonic()
    driver.find_element(By.CSS_SELECTOR, "#answers input[type=search]").send_keys("99999")
    until(lambda: count(driver) == 1)
    assert time.monotonic() - start < 5
    print("search over 100,000 rows:", round(time.monotonic() - start, 2), "s")
    assert driver.get_log("browser") == []


@pytest.mark.slow
def test_a_hundred_thousand_answers_of_a_running_run_stay_quick(driver, run_folder, tmp_path):
    """From the records in the workdir to the page that is served, and when it follows the run."""
    workdir = shutil.copytree(run_folder, tmp_path / "run")
    for path in workdir.glob("round_*/evaluate/records.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        with path.open("w") as file:
            for number in range(100_000):
                row = rows[number % len(rows)]
                file.write(json.dumps(row | {"id": f"{number}", "prompt_id": f"q{number}"}) + "\n")
    start = time.monotonic()
    made = write_page(workdir)
    print("page of 300,000 answers made:", round(time.monotonic() - start, 1), "s,",
          round(made.stat().st_size / 1e6), "MB")  # fmt: skip
    made.unlink()
    with LiveServer(workdir) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        for what in ("served", "served again"):
            start = time.monotonic()
            driver.get(server.url)
            ready = "return document.documentElement.dataset.ready"
            assert driver.execute_script(ready) == "true" and count(driver) == 100_000
            print(f"{what}:", round(time.monotonic() - start, 1), "s")
        assert time.monotonic() - start < 15  # made once while nothing changes
        assert nothing_ran(driver) and driver.get_log("browser") == []
        start = time.monotonic()
        choose(driver, "answers", "Show", "wrong")
        assert 0 < count(driver) < 100_000 and time.monotonic() - start < 5
        server.shutdown()


def test_a_served_page_follows_the_run(driver, run_folder, tmp_path):
    """It loads itself again while nobody reads, and asks first while somebody does."""
    workdir = shutil.copytree(run_folder, tmp_path / "run")
    rounds = [shutil.move(workdir / f"round_{n:02d}", tmp_path / f"kept_{n}") for n in (1, 2)]
    lead = lambda: driver.find_element(By.TAG_NAME, "h1").text  # noqa: E731
    with LiveServer(workdir) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        driver.get(server.url)
        assert lead().endswith("before training")
        shutil.move(rounds[0], workdir / "round_01")
        until(lambda: driver.execute_script("return DATA.summary.rounds.length") == 2)
        driver.find_element(By.CSS_SELECTOR, "#answers input[type=search]").send_keys("duck")
        shutil.move(rounds[1], workdir / "round_02")
        until(lambda: driver.find_elements(By.CSS_SELECTOR, "#live button"))
        assert driver.execute_script("return DATA.summary.rounds.length") == 2
        driver.find_element(By.CSS_SELECTOR, "#live button").click()
        until(lambda: driver.execute_script("return DATA.summary.rounds.length") == 3)
        box = driver.find_element(By.CSS_SELECTOR, "#answers input[type=search]")
        box.send_keys("onerror")  # what a model wrote is as inert as in the file
        until(lambda: count(driver) == 1)
        assert nothing_ran(driver) and driver.get_log("browser") == []
        server.shutdown()
