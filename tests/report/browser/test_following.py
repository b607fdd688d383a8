"""The served page of a running run."""

import shutil

# How often the page has asked whether there is more to see.
LOOKS = """
return performance.getEntriesByType("resource").filter((e) => e.name.endsWith("/version")).length;
"""


def test_a_served_page_follows_the_run(driver, run_folder, tmp_path, serving):
    """It loads itself again while nobody reads, and asks first while somebody does."""
    workdir = shutil.copytree(run_folder, tmp_path / "run")
    rounds = [shutil.move(workdir / f"round_{n:02d}", tmp_path / f"kept_{n}") for n in (1, 2)]
    lead = lambda: driver.one("h1").text  # noqa: E731
    with serving(workdir) as server:
        driver.get(server.url)
        assert lead().endswith("before training")
        shutil.move(rounds[0], workdir / "round_01")
        driver.until(lambda: driver.execute_script("return DATA.summary.rounds.length") == 2)
        driver.search("answers", "duck")
        shutil.move(rounds[1], workdir / "round_02")
        driver.until(lambda: driver.all("#live button"))
        assert driver.execute_script("return DATA.summary.rounds.length") == 2
        driver.execute_script("document.querySelector('#live button').focus()")
        looks = driver.execute_script(LOOKS)
        driver.until(lambda: driver.execute_script(LOOKS) > looks)
        assert driver.switch_to.active_element.text == "Show it"  # still there, and said once
        driver.switch_to.active_element.click()
        driver.until(lambda: driver.execute_script("return DATA.summary.rounds.length") == 3)
        driver.search("answers", "onerror")  # what a model wrote is as inert as in the file
        driver.until(lambda: driver.count() == 1)
        assert driver.nothing_ran() and driver.get_log("browser") == []
