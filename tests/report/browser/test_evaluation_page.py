"""The page of an evaluation."""

from selfevo_jax.evaluate.results import summarise


def test_the_page_of_an_evaluation_picks_what_was_fixed_or_broken(driver, answered, evaluated):
    after = [answered(0, "5", True), answered(1, "<img src=x onerror='ran = 1'>", False, None),
             answered(2, "4", False), answered(3, "5", True)]  # fmt: skip
    before = [answered(0, "6", False), answered(1, "4", False), answered(2, "5", True), after[3]]
    driver.open(evaluated(after, before))
    assert driver.execute_script("return typeof ran") == "undefined"
    (row,) = driver.all("#figures tbody tr")
    assert row.text.startswith("sums none exact_match 4 0.500 0.150 to 0.850")
    shown = {"all": 4, "right": 2, "wrong": 2, "unparsed": 1, "fixed": 1, "broken": 1}
    for value, wanted in shown.items():
        driver.choose("items", "Show", value)
        assert driver.count("items") == wanted, value
    assert [x.text for x in driver.all("#items del, #items ins")] == ["5", "4"]


def test_the_page_of_an_evaluation_says_what_has_no_verdict(driver, answered, evaluated):
    """Too long, refused, not judged: counted in words, picked out, and never called wrong."""
    why = "<img src=x onerror='ran = 1'> quota"
    after = [
        answered(0, "5", True), answered(1, "4", False),
        answered(2, "", False, None, too_long=True), answered(3, "", False, None, refused=why),
        answered(4, "", False, None, unjudged=True),
    ]  # fmt: skip
    driver.open(evaluated(after))
    notes = [p.text for p in driver.all("#figures p.note")][1:]
    assert [note.split(":")[1].split()[:4] for note in notes] == [
        ["1", "prompts", "were", "too"], ["1", "questions", "were", "refused"],
        ["1", "questions", "could", "not"],
    ]  # fmt: skip
    assert summarise("sums", after).figures[0].n == 4  # the one that was not judged is in no figure
    for value, wanted in {"all": 5, "right": 1, "wrong": 1, "unparsed": 0, "lost": 3}.items():
        driver.choose("items", "Show", value)
        assert driver.count("items") == wanted, value
    said = set()
    for row in range(3):
        driver.all("#items .rows button")[row].click()
        said.add(driver.all("#items .detail .facts")[-1].text)
        chips = driver.all("#items .chip")
        assert {chip.text for chip in chips} == {"no verdict"}
    text = "".join(said)
    assert why in text and "not asked" in text and "left out of the figures" in text
    assert driver.nothing_ran() and driver.get_log("browser") == []
