"""The page without a browser: what is embedded, how it is escaped, what is left out."""

import base64
import hashlib
import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevo_jax.report import page, texts
from selfevo_jax.report.folder import RunFolder
from selfevo_jax.report.summary import summarise, write_whole


def embedded(html):
    return json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])


@given(st.recursive(st.text() | st.integers(), st.lists))
def test_embedded_json_is_inert_and_the_same_value(value):
    text = page.embed_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_the_page_holds_nothing_that_loads(run_folder):
    html = page.build_page(run_folder)
    outside = html.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(|<link[^>]+href=\"(?!data:,)", outside)
    assert html.count("<script") == 2  # the data and the program
    assert html.count("</script>") == 2
    assert "onerror=" not in html.split('id="data">')[0]
    assert not re.search(r"\.innerHTML|insertAdjacentHTML|document\.write|eval\(", html)


def test_the_policy_names_exactly_the_page_s_own_script_and_style(run_folder):
    html = page.build_page(run_folder)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


def test_what_is_embedded(run_folder):
    data = embedded(page.build_page(run_folder))
    sides = data["answers"]["sides"]
    assert [(side["round"], side["stage"]) for side in sides] == [
        (number, "evaluate") for number in (0, 1, 2)
    ]
    assert data["answers"]["total"] == len(data["answers"]["rows"]) == 300
    row = data["answers"]["rows"][1]
    assert row["question"].startswith("State the final answer")  # made again from the task
    assert row["replies"][0][0].startswith("</script><img")
    assert data["pairs"]["total"] == len(data["pairs"]["rows"]) > 50
    assert data["curves"][1]["start"] == 60
    assert len(data["curves"][0]["values"]["loss"]) == 60
    for histogram in data["lengths"]["tests"]:
        assert sum(histogram["counts"]) == histogram["n"] == 300
    assert ["versions.jax", "0.10.2"] in data["environment"]
    assert data["command"].startswith("selfevo run --config=")


def test_stages_of_every_branch_are_embedded(run_folder, tmp_path):
    """A method with several lines, such as active selection, has no plain train or evaluate."""
    copy = shutil.copytree(run_folder, tmp_path / "run")
    for name in ("train", "pair", "evaluate"):
        (copy / "round_02" / name).rename(copy / "round_02" / f"random-1.{name}")
    data = embedded(page.build_page(copy))
    assert [side["stage"] for side in data["answers"]["sides"]][2] == "random-1.evaluate"
    assert [curve["stage"] for curve in data["curves"]] == ["train", "random-1.train"]
    assert {row["stage"] for row in data["pairs"]["rows"]} == {"pair", "random-1.pair"}
    assert [row["stage"] for row in data["summary"]["trainings"]] == ["train", "random-1.train"]


def test_an_unfinished_run_says_so(run_folder):
    summary = summarise(run_folder)
    assert "not finished yet" not in page.page_data(RunFolder(run_folder), summary)["about"]
    summary["run"] = summary["run"] | {"finished": False}
    assert page.page_data(RunFolder(run_folder), summary)["about"][-1] == "not finished yet"


def test_the_same_run_gives_the_same_page(run_folder):
    assert page.build_page(run_folder) == page.build_page(run_folder)


def test_what_is_left_out_is_said(run_folder, monkeypatch):
    monkeypatch.setattr(texts, "MAX_ROWS", 7)
    monkeypatch.setattr(texts, "MAX_TEXT", 20)
    data = page.page_data(RunFolder(run_folder), summarise(run_folder))
    assert (len(data["answers"]["rows"]), data["answers"]["total"]) == (7, 300)
    assert len(data["pairs"]["rows"]) == 7 < data["pairs"]["total"]
    assert "characters are left out of this page]" in data["answers"]["rows"][0]["question"]
    monkeypatch.setattr(texts, "MAX_CHARACTERS", 1000)
    small = page.page_data(RunFolder(run_folder), summarise(run_folder))
    assert 0 < len(small["answers"]["rows"]) < 7


def test_thin_keeps_means(monkeypatch):
    monkeypatch.setattr(page, "MAX_POINTS", 2)
    points = [(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)]
    assert page.thin(points) == [(0.5, 2.0), (2.5, 6.0)]


def test_flat_names_every_leaf():
    assert page.flat({"a": {"b": 1, "c": "x"}, "d": [1, 2]}) == [
        ("a.b", "1"), ("a.c", "x"), ("d", "[1, 2]"),
    ]  # fmt: skip


def test_lone_surrogates_can_be_written(tmp_path):
    write_whole(tmp_path / "x.json", page.embed_json("a\ud800b"))
    assert json.loads((tmp_path / "x.json").read_text()) == "a\ud800b"


def test_roles_are_named_only_where_needed():
    user = {"role": "user", "content": "hi"}
    assert texts.conversation([user]) == "hi"
    assert texts.conversation([{"role": "system", "content": "be kind"}, user]) == (
        "system: be kind\n\nuser: hi"
    )


@pytest.mark.parametrize("task", [{"name": "gone"}, {"name": "gsm8k", "args": {}}])
def test_questions_that_cannot_be_made_again_are_named_by_id(run_folder, task):
    summary = summarise(run_folder)
    summary["config"] = summary["config"] | {"task": task}
    data = page.page_data(RunFolder(run_folder), summary)
    row = data["answers"]["rows"][0]
    assert row["question"] == f"(question {row['id']} is not stored)"
