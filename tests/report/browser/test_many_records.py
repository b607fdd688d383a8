"""A page of a hundred thousand records stays quick."""

import json
import shutil
import time

import pytest

from selfevo_jax.report.page import write_page


def test_a_hundred_thousand_records_stay_quick(driver, changed):
    def many(data):
        answers, row = data["answers"], data["answers"]["rows"][0]
        answers["rows"] = [
            row | {"id": str(i), "question": f"Question {i}: " + "word " * 30}
            for i in range(100_000)
        ]
        answers["total"] = 250_000

    big = changed(many)
    start = time.monotonic()
    driver.open(big)
    assert time.monotonic() - start < 15
    assert driver.count() == 100_000
    assert "The first 100,000 of 250,000 answers" in driver.one("#answers").text
    assert driver.execute_script("return document.querySelectorAll('*').length") < 3000
    start = time.monotonic()
    driver.search("answers", "99999")
    driver.until(lambda: driver.count() == 1)
    assert time.monotonic() - start < 5
    print("search over 100,000 rows:", round(time.monotonic() - start, 2), "s")
    assert driver.get_log("browser") == []


@pytest.mark.slow
def test_a_hundred_thousand_answers_of_a_running_run_stay_quick(
    driver, run_folder, tmp_path, serving
):
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
    with serving(workdir) as server:
        for what in ("served", "served again"):
            start = time.monotonic()
            driver.get(server.url)
            assert driver.ready() and driver.count() == 100_000
            print(f"{what}:", round(time.monotonic() - start, 1), "s")
        assert time.monotonic() - start < 15  # made once while nothing changes
        assert driver.nothing_ran() and driver.get_log("browser") == []
        start = time.monotonic()
        driver.choose("answers", "Show", "wrong")
        assert 0 < driver.count() < 100_000 and time.monotonic() - start < 5
