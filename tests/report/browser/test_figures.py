"""What the page of a run shows: headline, charts, tables, drawings, in both themes."""

import pytest


def test_loads_without_errors_and_says_what_came_of_it(driver, page_file):
    driver.open(page_file)
    assert driver.one("h1").text.startswith("Accuracy ")
    lead = driver.one(".lead").text
    assert "95 % interval" in lead
    assert "300 held-out questions" in lead
    headings = [h.text for h in driver.all("h2")]
    assert headings == ["Accuracy", "What the method concludes", "Training", "Gauges and decisions",
                        "Training records and held-out questions", "Answer lengths", "Judges",
                        "Contests", "Answers before and after", "Training pairs", "Lineage",
                        "Compute", "Repeat this run"]  # fmt: skip
    assert len(driver.all("svg[role=img][aria-label]")) == 10


def test_lineage_and_judges_are_shown(shown):
    spoken = shown.one("#lineage svg").get_attribute("aria-label")
    assert spoken == "Lineage: base; round_01 from base; round_02 from round_01"
    assert shown.all("#lineage path.asked") == []
    assert len(shown.all("#lineage rect")) == 3
    row = shown.one("#judges tbody tr").text
    assert "10 10.0 % of 10 30.0 % of 10 33.3 % of 9 66.7 % of 18 66.7 % of 6 90.0 %" in row


def test_tables_gauges_and_costs_are_shown(shown):
    rows = lambda place: [row.text for row in shown.all(f"#{place} tbody tr")]  # noqa: E731
    assert rows("tables")[0] == "base 300 0.300 [0.250, 0.350]"
    assert "onerror=" in rows("tables")[1]
    assert rows("gauges") == ["round_01 1.25 0.5"] * 2
    by_stage = {row.split()[0]: row for row in rows("cost")}
    assert by_stage["round_01/sample"] == "round_01/sample 9.5 s 4,000 600 484"
    assert by_stage["round_01/train"] == "round_01/train 42.0 s 144 k 3,429 30.0 %"
    assert [row for row in rows("training")][0].startswith("round 1 60 144 k")


def test_goodput_is_shown_where_a_run_tells_it(driver, changed):
    spent = {"steps": 90.0, "compile": 8.0, "again": 2.0, "seconds": 100.0, "share": 0.9}
    driver.open(changed(lambda data: data["summary"]["trainings"][0].update(goodput=spent)))
    table = driver.one("#cost [aria-label='Goodput of training'] thead")
    assert table.text == "Training Goodput steps compile again"
    row = driver.one("#cost [aria-label='Goodput of training'] tbody")
    assert row.text == "round 1 90.0 % 1 min 30 s 8.0 s 2.0 s"


def test_overlap_is_shown(shown):
    trainings, spans = shown.all("#overlap tbody")
    rows = [row.split() for row in trainings.text.splitlines()]
    assert [(row[0], row[2:]) for row in rows] == [
        ("round_01/train", ["300", "1", "0"]),
        ("round_02/train", ["300", "1", "1"]),
    ]
    assert spans.get_attribute("textContent").count("</script>") == 4  # shown, not run


def test_a_run_of_several_lines_shows_them_all(opened, branches):
    driver = opened(branches)
    assert driver.one("h1").text == "Accuracy 25.0 % \u2192 75.0 %"
    assert driver.one(".lead").text.startswith("x.round_01: +50.0 points")
    rows = driver.all("#accuracy tbody tr")
    assert [" ".join(row.text.split()[1:5]) for row in rows] == [
        "before training 4 25.0", "round_01.sft 4 50.0 %", "x.round_01 4 75.0 %",
        "y.round_01 4 100.0 %",
    ]  # fmt: skip
    assert [h.text for h in driver.all("#lengths h3")] == [
        "before training", "round_01.sft", "x.round_01", "y.round_01",
    ]  # fmt: skip
    spent = [row.text for row in driver.all("#cost tbody tr")]
    assert "round_01/x.train 3.0 s 300 100 6.00 GFLOP" in spent
    assert "round 1, x 75.0 % 3.0 s 0.0 s 0.0 s 0.0 s 0.0 s 0.0 s 1.0 s 0.0 s" in spent


def test_the_lineage_draws_models_and_data(opened, branches):
    driver = opened(branches)
    spoken = driver.one("#lineage svg").get_attribute("aria-label")
    assert "x.round_01 from round_01.sft and 4 pairs of round_01/x.pair by round_01.sft" in spoken
    kinds = ("line faint", "line asked", "line")
    paths = [path.get_attribute("class") for path in driver.all("#lineage path")]
    assert [paths.count(kind) for kind in kinds] == [3, 2, 3]
    assert len(driver.all("#lineage rect")) == 4 + 3
    ends = driver.execute_script(
        "return [...document.querySelectorAll('#lineage path')].map((path) =>"
        " path.getPointAtLength(path.getTotalLength()).x - path.getPointAtLength(0).x)"
    )
    assert all(end > 0 for end in ends)  # from left to right


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
    shown.prefer(theme)
    picture = shown.get_screenshot_as_base64()
    page = shown.current_url
    shown.get("about:blank")  # reads the picture's pixels
    colours, background = shown.execute_async_script(PIXELS, picture)
    assert colours > 200
    assert background > 230 if theme == "light" else background < 60
    shown.get(page)
    button = shown.one("#theme")
    assert button.text == ("Dark theme" if theme == "light" else "Light theme")
    button.click()
    flipped = shown.execute_script("return getComputedStyle(document.body).backgroundColor")
    level = int(flipped.split("(")[1].split(",")[0])
    assert level < 60 if theme == "light" else level > 230
