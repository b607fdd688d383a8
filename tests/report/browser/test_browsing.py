"""Records are filtered, searched, walked by keyboard and compared word by word."""

import json
import time


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
        shown.choose("answers", "Show", value)
        assert shown.count() == number, value
    shown.choose("answers", "Show", "fixed")
    shown.choose("answers", "After", "1")
    second = marks(1)
    assert shown.count() == sum(second[i]["correct"] > first[i]["correct"] for i in ids)
    assert shown.get_log("browser") == []


def test_search_finds_and_finds_nothing(shown):
    shown.search("answers", "NOT sure")
    shown.until(lambda: shown.count() < 300)
    assert shown.count() > 0
    assert "not sure" in shown.one("#answers .detail").text
    shown.search("answers", "zebra quagga")
    shown.until(lambda: shown.status() == "0 answers")
    assert "No answers match" in shown.one("#answers .detail").text


def test_keyboard_walks_the_list_and_the_pages(shown):
    rows = shown.all("#answers .rows button")
    assert len(rows) == 15
    rows[0].send_keys(shown.DOWN)
    active = shown.switch_to.active_element
    assert active.get_attribute("aria-current") == "true"
    second = active.text
    active.send_keys(shown.UP)
    assert shown.switch_to.active_element.text != second
    after = shown.one("#answers .pager button:last-child")
    assert after.text == "Next"
    after.click()
    assert "page 2 of 20" in shown.status()
    assert len(shown.all("#answers [aria-current=true]")) == 1


def test_contests_are_browsed_by_what_became_of_them(opened, branches):
    driver = opened(branches)
    for value, number in {"all": 8, "flip": 2, "tie": 2, "failure": 2, "second": 2}.items():
        driver.choose("contests", "Show", value)
        assert driver.count("contests") == number, value
    driver.choose("contests", "Show", "flip")
    driver.choose("contests", "Stage", "round 1, y.judge")
    assert driver.count("contests") == 1
    detail = driver.one("#contests .detail").text
    assert "the orders disagree" in detail and "What is 0 + 1?" in detail
    assert "y says 1" in detail and "y says 2!" in detail and "90.0 %" in detail
    driver.choose("contests", "Show", "failure")
    assert "It failed: no label" in driver.one("#contests .detail").text
    driver.choose("contests", "Show", "all")
    driver.choose("contests", "Stage", "")
    first = driver.one("#contests .rows button")
    first.send_keys(driver.DOWN)
    assert driver.switch_to.active_element.get_attribute("aria-current") == "true"
    driver.search("contests", "onerror")
    driver.until(lambda: driver.count("contests") == 2)
    assert "<img src=x onerror=" in driver.one("#contests .detail").text
    assert driver.nothing_ran() and driver.get_log("browser") == []


def test_selections_are_browsed_and_searched(opened, chosen):
    driver = opened(chosen)
    assert driver.count("selections") == 6
    driver.choose("selections", "Chosen by", "entropy")
    assert driver.count("selections") == 2
    detail = lambda: driver.one("#selections .detail").text  # noqa: E731
    assert "What is 3 + 1?" in detail() and "mean entropy 1.5" in detail()
    driver.search("selections", "onerror")
    driver.until(lambda: driver.count("selections") == 1)
    assert "<img src=x onerror=" in detail() and driver.nothing_ran()
    driver.one("#selections input[type=search]").clear()
    driver.choose("selections", "Chosen by", "one of several replies")
    driver.until(lambda: driver.count("selections") == 4)
    kept = driver.one("#selections .detail .chip.good + .said").text
    assert kept == "draw 2"
    assert driver.get_log("browser") == []


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
