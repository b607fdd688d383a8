"""Gauges of collapse: by hand on small texts, and in a run that they stop."""

import math
import re

import pytest

from selfevo_jax.config import LEAST, MOST
from selfevo_jax.errors import UserError
from selfevo_jax.evolve import gauges
from selfevo_jax.evolve.decisions import highest_standing
from selfevo_jax.records import Row, Sample
from selfevo_jax.report.summary import summarise


def drawn(question: str, text: str, logps: tuple[float, ...], seed: int = 0) -> Sample:
    return Sample.make(
        prompt_id=question, parent_id=question, text=text, tokens=tuple(range(len(logps))),
        logps=logps, finish="stop", seed=seed, policy="p",
    )  # fmt: skip


def scored(sample: Sample, own: float, base: float) -> tuple[Sample, Row, Row]:
    rows = [
        Row.make(source_id=sample.id, values={"logp": logp, "tokens": len(sample.tokens)})
        for logp in (own, base)
    ]
    return sample, *rows


def test_every_gauge_by_hand():
    rows = [
        scored(drawn("a", "to be or not", (-1.0, -2.0)), -3.0, -5.0),
        scored(drawn("a", "to be or not", (-1.0, -2.0), seed=1), -3.0, -5.0),
        scored(drawn("b", "to be to be to be", (-3.0, -1.0, -2.0)), -6.0, -5.0),
    ]
    steps = [
        {"margin": 9.0, "logps_chosen": 0.0, "logps_rejected": 0.0},
        *[{"margin": 0.5, "logps_chosen": -4.0, "logps_rejected": -7.0}] * 9,
        {"margin": 1.5, "logps_chosen": -4.0, "logps_rejected": -5.0},
    ]
    (row,) = gauges.gauge_row(rows, steps, "round_01")
    assert row.source_id == "round_01"
    assert {*LEAST, *MOST} == row.values.keys() - {"policy", "n"}  # a limit for what is measured
    # 3 + 3 + 5 pairs of words, of which (to be), (be or), (or not), (be to) differ; the last reply
    # has three runs of four words, of which the third is the first again.
    assert row.values == {
        "policy": "round_01", "n": 3, "entropy": round(12 / 7, 5), "kl": round(3 / 7, 5),
        "distinct_2": round(4 / 11, 5), "repeated_4": round(1 / 5, 5),
        "identical": round(2 / 3, 5), "tokens": round(7 / 3, 5), "reward_gap": 1.5, "logp_gap": 1.0,
    }  # fmt: skip


def test_empty_replies_are_gauged_too():
    (row,) = gauges.gauge_row([scored(drawn("a", "", (-0.5,)), -0.5, -0.5)], [], "p")
    assert (row.values["distinct_2"], row.values["repeated_4"], row.values["kl"]) == (1, 0, 0)
    assert "reward_gap" not in row.values


def test_limits_name_the_gauge_and_the_setting():
    row = Row.make(source_id="p", values={"policy": "p", "kl": 3.0, "entropy": 0.2})
    gauges.refuse_collapse(row, {"entropy": 0.2, "tokens": 9.0}, {"kl": 3.0, "logp_gap": 1.0})
    with pytest.raises(UserError, match=r"p has collapsed: entropy is 0\.2, below least\.entropy"):
        gauges.refuse_collapse(row, {"entropy": 0.3}, {})
    with pytest.raises(UserError, match=r"kl is 3, above most\.kl=2"):
        gauges.refuse_collapse(row, {}, {"kl": 2.0})


def test_a_merge_is_gauged_as_well(method):
    """The policy that goes on is the merged one, and it can collapse where its parts do not."""
    run = method("merged")
    run.config = run.config.replace("gauges", "elite")
    run("adapters=ties", "rounds=2", "baselines=()", "gauges.questions=2", "gauges.n=2")
    (row,) = run.rows("round_02/merge.gauge")
    assert row["values"]["policy"] == "round_02.merge" and "reward_gap" not in row["values"]
    assert {r["policy"] for r in run.rows("round_02/merge.gauge_sample")} == {"round_02.merge"}


def test_a_run_stops_at_a_limit_and_keeps_the_gauge(mini):
    gauged = ("gauges.questions=2", "gauges.n=2", "gauges.max_new_tokens=8", "evaluate.n=2")
    with pytest.raises(UserError, match=r"round_01 has collapsed: entropy is .* least\.entropy=50"):
        mini(*gauged, "gauges.least.entropy=50.0")
    (row,) = summarise(mini.workdir)["gauges"]
    assert row["policy"] == "round_01" and row["n"] == 4
    samples = {row["id"]: row for row in mini.rows("round_01/train.gauge_sample")}
    drawn_logps = [logp for sample in samples.values() for logp in sample["logps"]]
    assert row["entropy"] == pytest.approx(-sum(drawn_logps) / len(drawn_logps), abs=1e-4)
    assert 0 < row["entropy"] < math.log(400)
    # Read back, a reply is as likely as it was when it was drawn, where its text has its tokens.
    own = {r["source_id"]: r["values"] for r in mini.rows("round_01/train.gauge_own")}
    whole = [s for s in samples.values() if own[s["id"]]["tokens"] == len(s["tokens"])]
    for sample in whole:
        assert own[sample["id"]]["logp"] == pytest.approx(sum(sample["logps"]), abs=1e-2)
    said = mini(*gauged, "gauges.least.entropy=0.0", "gauges.most.kl=1000.0")
    assert "round_01/train: finished before" in said and "round_01/evaluate: 2/2" in said


@pytest.mark.slow
def test_a_collapsed_beta_is_left_out_of_the_grid_and_all_of_them_end_the_run(method):
    """The best of the others is chosen, though another had the higher value; the record says why.

    The limit is put between the divergences of the two.
    """
    run = method("grid")
    run.config = run.config.replace("gauges", "refeval")
    few = ("judges=('base',)", "betas=(0.05,5.0)", "evaluate.n=2", "arena=", "learn.epochs=4")
    gauged = ("sft.use=false", "gauges.questions=2", "gauges.n=2", "gauges.max_new_tokens=8")
    run(*few, *gauged)
    kl = {
        name: run.rows(f"round_01/base.beta_{name}.train.gauge")[0]["values"]["kl"]
        for name in ("0.05", "5.0")
    }
    (free,) = run.rows("round_01/base.best")
    assert "collapsed" not in free["values"] and kl["0.05"] != kl["5.0"]
    far, near = sorted(kl, key=kl.get, reverse=True)
    limit = f"gauges.most.kl={(kl[far] + kl[near]) / 2}"
    said = run(*few, *gauged, limit)
    (best,) = run.rows("round_01/base.best")
    assert best["source_id"] == f"base.beta_{near}.round_01"
    assert best["values"]["collapsed"].keys() == {f"base.beta_{far}.round_01"}
    assert f"base.beta_{far}.round_01 has collapsed and is left out: kl is" in said
    (tested,) = {row["policy"] for row in run.rows("round_01/base.evaluate")}
    assert tested == f"base.beta_{near}.round_01"
    assert "again" not in run(*few, *gauged, limit, dry_run=True)
    with pytest.raises(UserError, match=r"all candidates have collapsed: .*kl is .*loosen"):
        run(*few, *gauged, f"gauges.most.kl={min(kl.values()) - 1}")


def row_of(name: str, **values: float) -> Row:
    return Row.make(source_id=name, values={"policy": name, **values})


def test_what_has_collapsed_is_not_chosen_though_its_value_is_the_highest():
    rows = [row_of("a", value=0.9), row_of("b", value=0.5), row_of("c", value=0.7)]
    gauged = [row_of("a", kl=3.0), row_of("b", kl=0.1), row_of("c", kl=1.0)]
    (best,) = highest_standing(rows, gauged, {}, {"kl": 2.0})
    assert best.source_id == "c" and best.values["value"] == 0.7
    assert best.values["collapsed"] == {"a": "kl is 3, above most.kl=2"}
    assert highest_standing(rows, gauged, {}, {"kl": 3.0}) == [rows[0]]
    with pytest.raises(UserError, match=r"all candidates .*: a \(kl is 3.*\), b \(kl is 0\.1"):
        highest_standing(rows, gauged, {}, {"kl": 0.05})


OF_GAUGES = re.compile(r"gauge|/(run|config)\.json$|^(run|config)\.json$")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["active", "elite", "meteor", "refeval", "reflectevo"])
def test_gauges_change_no_other_record_and_no_weight(method, content_of, name):
    """So that they can stand in a config without another result."""
    found = []
    for label, gauged in (("bare", ()), ("gauged", ("gauges.questions=2", "gauges.n=2"))):
        run = method(f"{name} {label}")
        run.config = run.config.replace("gauges", name)
        run("evaluate.n=2", *gauged)
        found.append(content_of(run))
    bare, gauged = found
    assert any("gauge" in file for file in gauged) and not any("gauge" in file for file in bare)
    others = {file: text for file, text in gauged.items() if not OF_GAUGES.search(file)}
    assert others == {file: text for file, text in bare.items() if not OF_GAUGES.search(file)}
    assert any(file.endswith("adapter_model.safetensors") for file in others)
