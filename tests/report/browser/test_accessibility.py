"""The pages as an outside checker of accessibility (axe-core) sees them, in both themes and in all
states of their filters; and what it leaves to us: contrast in drawings, narrow screens."""

import shutil

import pytest

from selfevo_jax import cli
from selfevo_jax.report.summary import write_summary

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Contrast that axe-core cannot decide (in drawings, beneath what sticks to the top) is ours: FAINT.
ASK = """
const [where, tags, done] = arguments;
const told = (rules) => rules.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.target}: ${node.failureSummary}`));
axe.run(where, {runOnly: tags, resultTypes: ["violations", "incomplete"]}).then(({violations, incomplete}) => done(
  told(violations.concat(incomplete.filter((rule) => rule.id !== "color-contrast")))));
"""  # noqa: E501
THEMES = pytest.mark.parametrize("theme", ["light", "dark"])


@pytest.fixture
def faults(driver):
    """Asks axe-core what is wrong, or may be, with a part of the page as it stands."""
    checker = pytest.importorskip(
        "selenium_axe_python", reason="axe-core is not installed (the test extra has it)"
    )

    def ask(where="html"):
        if driver.execute_script("return typeof axe") == "undefined":
            checker.Axe(driver).inject()
        return driver.execute_async_script(ASK, where, RULES)

    return ask


def filtered(driver, section):
    """Names each choice of each filter of a section, and a search in vain, once they are made."""
    filters = driver.execute_script(
        "return [...document.querySelectorAll(`${arguments[0]} label:has(select)`)].map((l) =>"
        " [l.firstChild.textContent, [...l.querySelectorAll('option')].map((o) => o.value)])",
        f"#{section}",
    )
    for label, values in filters:
        for value in [*values[1:], values[0]]:
            driver.choose(section, label, value)
            yield f"{label}: {value}"
    driver.search(section, "zebra quagga")
    driver.until(lambda: driver.count(section) == 0)
    yield "nothing is found"


def look_everywhere(driver, faults):
    """The whole page with everything unfolded, dark and light; then each list, filtered."""
    driver.execute_script("for (const e of document.querySelectorAll('details')) e.open = true")
    for theme in ("dark", "light"):
        driver.prefer(theme)
        assert faults() == [], theme
    for section in [one.get_attribute("id") for one in driver.all("section:has(form)")]:
        for state in filtered(driver, section):
            assert faults(f"#{section}") == [], state


@pytest.mark.parametrize("run", ["run_folder", "branches", "chosen"])
def test_the_page_of_a_run(opened, faults, request, run):
    look_everywhere(opened(request.getfixturevalue(run)), faults)


def test_the_page_of_an_evaluation(driver, faults, answered, evaluated):
    after = [answered(0, "5", True), answered(1, "4", False),
             answered(2, "", False, None, refused="quota")]  # fmt: skip
    driver.open(evaluated(after, [answered(0, "6", False), *after[1:]]))
    look_everywhere(driver, faults)


@THEMES
def test_the_page_of_runs_compared(driver, faults, branches, turns, tmp_path, theme):
    runs = [shutil.copytree(run, tmp_path / run.name) for run in (branches, turns)]
    for run in runs:
        write_summary(run)
    plot = tmp_path / "compared.html"
    assert cli.main(["compare", *map(str, runs), f"--plot={plot}"]) == 0
    driver.prefer(theme)
    driver.get(plot.as_uri())
    assert faults() == []


@THEMES
def test_the_served_page(driver, faults, own_branches, serving, tmp_path, theme):
    """Waiting for a run, following it, telling a reader of news, and left by its server."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    driver.prefer(theme)
    with serving(workdir) as server:
        driver.get(server.url)
        assert driver.one("h1").text == "Waiting for the run"
        assert faults() == []
        own_branches.rename(workdir)
        driver.until(lambda: driver.title.endswith("run report"))
        assert faults() == []
        driver.search("answers", "says")
        (workdir / "run.json").touch()
        driver.until(lambda: driver.all("#live button"))
        assert faults() == []
    driver.until(lambda: "has stopped" in driver.one("#live").text)
    assert faults() == []


def test_narrow_screens_and_the_theme_that_a_reader_chose(driver, faults, page_file):
    driver.prefer("light")
    with driver.narrow():
        driver.open(page_file)
        driver.one("#theme").click()
        assert faults() == []


def test_a_fault_would_be_seen(shown, faults):
    """One of each kind, put into the page by hand."""
    shown.execute_script(
        "document.querySelector('#theme').replaceChildren();"
        "document.querySelector('h1').style.color = 'var(--line)';"
        "document.querySelector('#answers label').replaceWith(document.querySelector('select'));"
        "document.querySelector('#answers .detail').tabIndex = 3;"
    )
    rules = {fault.split(":")[0] for fault in faults()}
    assert {"button-name", "color-contrast", "select-name", "tabindex"} <= rules


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
return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).filter((e) => {
  const style = getComputedStyle(e), size = parseFloat(style.fontSize);
  const [a, b] = [level(parts(e.closest("svg") ? style.fill : style.color)), level(ground(e))].sort((x, y) => y - x);
  return (a + .05) / (b + .05) < (size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5);
}).map((e) => `${e.className} ${e.textContent.slice(0, 40)} ${getComputedStyle(e).color}`);
"""  # noqa: E501


@THEMES
def test_every_text_stands_out_in_both_themes(shown, theme):
    shown.execute_script(f"document.documentElement.style.colorScheme = '{theme}'")
    assert shown.execute_script(FAINT) == []
    shown.execute_script(
        "document.querySelector('#answers .chip').style.color = 'gray';"
        "document.querySelector('#accuracy svg text').style.fill = 'gray'"
    )
    assert len(shown.execute_script(FAINT)) == 2  # they would be seen


def test_narrow_screens_do_not_scroll_sideways(shown):
    with shown.narrow():
        assert shown.execute_script("return document.documentElement.scrollWidth") <= 360
