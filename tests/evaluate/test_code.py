"""pass@1: what counts against a program, and what against nobody."""

import pytest

from selfevo_jax.evaluate.benchmarks import code
from selfevo_jax.evaluate.tasks import BENCHMARKS, FILE_TASKS, get_task
from selfevo_jax.judge.sandbox import Limits, Outcome

ROW = {
    "task_id": 1, "text": "Twice each of a list.", "test_setup_code": "",
    "code": "def f(xs):\n    return [2 * x for x in xs]",
    "test_list": ["assert f([1, 2]) == [2, 4]"],
}  # fmt: skip
TAKEN_OUT = {
    "own": "class Same:\n    def __eq__(self, other): return True\ndef f(xs):\n    return Same()",
    "deep": "def f(xs):\n    for _ in range(200):\n        xs = [xs]\n    return xs",
    "function": "def f(xs):\n    class Same(type):\n        def __eq__(self, other): return True\n"
    "    return Same('Same', (), {})",
}


def mark(reply, row=ROW):
    (read,) = BENCHMARKS["mbpp"].ask.readings.values()
    return read(reply, row)


@pytest.mark.parametrize("program", TAKEN_OUT.values(), ids=TAKEN_OUT)
def test_a_program_cannot_take_itself_out_of_the_figures(program):
    """What it returns cannot cross to the tests: in one process it would be unequal or, by its
    own word, equal."""
    assert mark(program).scores == {"pass@1": 0.0} and mark(program).parsed == "unsupported"
    check = FILE_TASKS["mbpp"].check(program, "", ROW)
    assert (check.score, check.parsed) == (0.0, "unsupported")


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"test_list": ["assert f(["]},
        ROW | {"test_list": ["assert f([print]) == [print]"]},
        ROW | {"code": TAKEN_OUT["own"].replace("Same", "Twin")},
    ],
)
def test_a_row_whose_own_solution_cannot_be_run_has_no_score(row):
    assert mark(TAKEN_OUT["own"], row).scores == {}
    assert FILE_TASKS["mbpp"].check(TAKEN_OUT["own"], "", row).parsed is None


def test_a_run_is_told_what_holds_its_programs_before_it_samples(caplog):
    code.sandbox.cache_clear()
    with caplog.at_level("INFO", "selfevo_jax"):
        get_task("gsm8k", data_dir="data")
        assert not caplog.messages
        get_task("mbpp", data_dir="data")
    (said,) = caplog.messages
    assert said.startswith("sandbox enforces network, files, user, processes")


def test_a_sandbox_that_fails_is_not_the_program_s_fault(monkeypatch):
    """No process could be started for the one, the other is longer than any program may be."""
    lost = code.passes(lambda *_: Outcome("refused", "no process could be started"), "code")
    assert lost("def f(): pass", ROW).scores == {}
    assert mark("#" * (Limits().source_bytes + 1)).scores == {"pass@1": 0.0}


@pytest.mark.parametrize(
    ("returned", "test", "score"),
    [
        ("dict.fromkeys(xs).keys()", "f([1, 2]) == {1, 2}", 1.0),
        ("dict.fromkeys(xs).keys()", "list(f([2, 1])) == [2, 1]", 1.0),
        ("dict.fromkeys(xs).keys()", "f([1, 2]) == [1, 2]", 0.0),
        ("{x: [x] for x in xs}.items()", "list(f([1])) == [(1, [1])]", 1.0),
        ("{x: x for x in xs}.items()", "f([1]) == {(1, 1)}", 1.0),
        ("__import__('collections').OrderedDict.fromkeys(xs).keys()", "f([1]) == {1}", 1.0),
        ("dict.fromkeys(xs).values()", "sorted(f([1]), key=str) == [None]", 1.0),
    ],
)
def test_views_of_a_dict_compare_as_they_do_in_one_process(returned, test, score):
    program = f"def f(xs):\n    return {returned}"
    here: dict = {}
    exec(program, here)
    assert eval(test, here) == (score == 1.0)
    assert mark(program, ROW | {"test_list": [f"assert {test}"]}).scores == {"pass@1": score}
