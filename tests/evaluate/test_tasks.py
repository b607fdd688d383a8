"""Tasks: disjoint splits, strict marks, honest messages, on real data where it is there."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.reasoning_gym import EXECUTES_REPLIES, ORDERED_BY_STRING_HASH
from selfevo_jax.evaluate.task import SPLITS
from selfevo_jax.evaluate.tasks import get_task, task_names


def chain_sum(**args):
    return get_task("rg:chain_sum", min_terms=2, max_terms=2, min_digits=1, max_digits=1, **args)


def quick_datasets():
    """Every reasoning-gym task that repeats without PYTHONHASHSEED and makes a question soon."""
    left_out = {f"rg:{name}" for name in ORDERED_BY_STRING_HASH | {"acre"}}
    return [n for n in task_names() if n.startswith("rg:") and n not in left_out]


def question(prompt):
    return prompt.messages[-1]["content"]


def test_train_and_test_never_share_a_question_whatever_the_seeds():
    task = chain_sum()  # about 200 possible questions, so seeds alone would collide at once
    train = {question(p) for seed in range(3) for p in task.prompts("train", 100, seed)}
    test = {question(p) for seed in range(3) for p in task.prompts("test", 40, seed)}
    assert len(train) > 110
    assert not train & test


def test_prompts_are_different_repeatable_and_seeded():
    task = get_task("rg:chain_sum")
    first = list(task.prompts("test", 300, seed=0))
    assert len({p.id for p in first}) == len({question(p) for p in first}) == 300
    assert first == list(get_task("rg:chain_sum").prompts("test", 300, seed=0))
    assert first[:50] == list(task.prompts("test", 50, seed=0))
    assert {p.id for p in first} != {p.id for p in task.prompts("test", 300, seed=1)}


def test_too_many_questions_is_said():
    with pytest.raises(UserError, match=r"only \d+ different test questions"):
        list(chain_sum().prompts("test", 5000))
    with pytest.raises(UserError, match="say how many"):
        chain_sum().prompts("test")


def test_styles_and_parsers():
    plain = next(chain_sum().prompts("test", 1))
    short = next(chain_sum(style="answer_only").prompts("test", 1))
    assert question(short) == question(plain) + "\nReply with the answer only."
    assert plain.answer == short.answer
    task = chain_sum()
    gold = plain.answer
    assert task.check(plain, f"The answer is {gold}.").correct
    assert task.check(plain, f"First I add.\nSo 3 + 4 = {gold}").correct
    assert task.check(plain, "I do not know").parsed is None
    assert not task.check(plain, f"1{gold.lstrip('-')}").correct
    strict = chain_sum(parse="text")
    assert strict.check(plain, f" {gold} ").correct
    assert not strict.check(plain, f"It is {gold}").correct


def test_partial_scores_do_not_count_as_correct():
    """caesar_cipher gives a wrong reply that holds the answer a share of its score."""
    task = get_task("rg:caesar_cipher", parse="text")
    prompt = next(task.prompts("test", 1))
    check = task.check(prompt, f"{prompt.answer} OR SOMETHING")
    assert 0 < check.score < 1
    assert check.correct is False
    assert task.check(prompt, prompt.answer).correct


@pytest.mark.parametrize("name", ["rg:spiral_matrix", "rg:binary_matrix", "rg:string_insertion"])
def test_scorers_that_eval_never_see_the_reply(name, tmp_path):
    task = get_task(name, parse="text")
    prompt = next(task.prompts("test", 1))
    target = tmp_path / "ran"
    code = f"[open({str(target)!r}, 'w').write('x')]"
    assert not task.check(prompt, code).correct
    assert not target.exists()
    assert task.check(prompt, prompt.answer).correct


def test_the_list_of_executing_scorers_is_complete(tmp_path):
    """No scorer that we call runs a reply: each is given code in several disguises."""
    target = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    forms = [code, f"[{code}]", f"({code}) + 1", f"x + {code}", f"[[{code}]]", f"{code} = {code}"]
    for name in quick_datasets():
        task = get_task(name, parse="text")
        prompt = next(task.prompts("train", 1))
        for form in forms:
            assert not task.check(prompt, form).correct, (name, form)
            assert not target.exists(), (name, form)


def test_gold_answers_are_correct_in_every_dataset():
    """The right answer, given plainly, is marked right by every dataset that has one."""
    unmarked = []
    for name in quick_datasets():
        task = get_task(name, parse="text")
        for prompt in task.prompts("train", 2):
            if prompt.answer is not None and not task.check(prompt, prompt.answer).correct:
                unmarked.append(name)
    assert not unmarked


@pytest.mark.parametrize(
    "reply", ["hello", "[]", "0", "x", "()", "maybe True, maybe False", "wrong"]
)
def test_nonsense_is_never_right(reply):
    """reasoning-gym 0.1.25 itself marks some of these right (coin_flip, game_of_life_halting)."""
    names = ["coin_flip", "game_of_life_halting", "gsm_symbolic", "knights_knaves", "letter_jumble"]
    for name in names:
        task = get_task(f"rg:{name}", parse="text")
        for prompt in task.prompts("train", 5):
            assert not task.check(prompt, reply).correct, name
            assert not task.check(prompt, f"{prompt.answer} {reply}9").correct or "knights" in name


HOSTILE = [
    "1e1000000000", "1/1e1000000000", "9**9**9**9", "-1e99999999 + 2.0i", "[1e1000000000]",
    "1e1000000000 days", "\\frac{" * 500, "0x" + "f" * 3900, "9" * 3900, "9" * 100_000, "1/0",
    "(" * 3900, "[" * 3900, "{" * 2000 + "}" * 2000, "1 " * 1999, "\ud800", "\x00", "nan", "inf",
    "nan + nani", "nanj", "infj", "1e999 + 1.0i", "Infinity", "nan, nan", "[nan]", "-nan",
]  # fmt: skip


def test_hostile_replies_cost_little_and_score_nothing():
    """Big exponents, towers, deep nesting: no scorer hangs, raises or is taken in."""
    for name in quick_datasets():
        task = get_task(name, parse="text")
        prompt = next(task.prompts("train", 1))
        for reply in HOSTILE:
            start = time.perf_counter()
            assert not task.check(prompt, reply).correct, (name, reply[:20])
            assert time.perf_counter() - start < 2, (name, reply[:20])


def test_global_randomness_is_left_alone():
    import random

    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    list(get_task("rg:pool_matrix").prompts("train", 3, seed=99))
    assert (random.random(), np.random.rand()) == expected


def test_prompts_agree_between_processes():
    """Also where the dataset draws from global generators or Python's string hash."""
    names = ["rg:list_functions", "rg:pool_matrix", "rg:ransom_note", "rg:word_ladder"]
    code = (
        "from selfevo_jax.evaluate.tasks import get_task\n"
        f"for n in {names!r}:\n    print([p.id for p in get_task(n).prompts('train', 12)])"
    )
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True
        )
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stdout.count(b"\n") == 4


def test_unrepeatable_and_unsafe_datasets_are_refused(monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UserError, match="PYTHONHASHSEED=0"):
        get_task("rg:ransom_note")
    for name in EXECUTES_REPLIES:
        with pytest.raises(UserError, match="executes the model's reply"):
            get_task(f"rg:{name}")


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("rg:chainsum", {}, "did you mean rg:chain_sum"),
        ("gsm9k", {}, "did you mean gsm8k"),
        ("zzz", {}, "known: aqua"),
        ("rg:chain_sum", {"min_term": 2}, "did you mean min_terms"),
        ("rg:chain_sum", {"min_terms": 9, "max_terms": 2}, "refuses the settings"),
        ("rg:chain_sum", {"style": "shortest"}, "unknown style"),
        ("rg:chain_sum", {"parse": "regex"}, "unknown parse"),
        ("gsm8k", {}, "needs data_dir"),
        ("gsm8k", {"data_dri": "x"}, "did you mean data_dir"),
        ("gsm8k", {"data_dir": "/nowhere"}, "no file /nowhere/gsm8k/test.jsonl"),
    ],
)
def test_mistakes_are_named(name, args, message):
    with pytest.raises(UserError, match=message):
        list(get_task(name, **args).prompts("train", 3))


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match="unknown split 'tests'; did you mean test"):
        chain_sum().prompts("tests", 3)


ROW = {"question": "How many?", "answer": "One.\n#### 1"}


def gsm8k_folder(tmp_path, lines):
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "test.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n")
    (folder / "train_1000.jsonl").write_bytes(b"\n".join(lines))
    return get_task("gsm8k", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "x"}', "the field 'answer' is missing"),
        (b'{"question": 3, "answer": "#### 1"}', "the field 'question' holds a int"),
        (b'{"question": "x", "answer": "no mark"}', "no single number after '####'"),
        (b'{"question": "x", "answer": "#### 1 or 2"}', "no single number"),
        (b"[1]", "list where a JSON object belongs"),
        (b'{"question": "x"', "not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, line, message):
    task = gsm8k_folder(tmp_path, [json.dumps({**ROW, "question": "Other?"}).encode(), b"", line])
    with pytest.raises(UserError, match=message) as caught:
        list(task.prompts("train"))
    assert "train_1000.jsonl:3" in str(caught.value)


def test_a_test_question_is_left_out_of_the_others(tmp_path):
    rows = [ROW, {**ROW, "question": "Other?"}, {**ROW, "question": "Other? "}]
    task = gsm8k_folder(tmp_path, [json.dumps(row).encode() for row in rows])
    splits = {split: [question(p) for p in task.prompts(split)] for split in SPLITS}
    assert splits["test"] == ["How many?"]
    assert splits["train"] + splits["validation"] == ["Other?"]
    with pytest.raises(UserError, match="hold 1 different"):
        task.prompts("test", 2)


def test_validation_is_a_part_of_the_training_file(tmp_path):
    rows = [{**ROW, "question": f"Other {n}?"} for n in range(200)]
    task = gsm8k_folder(tmp_path, [json.dumps(row).encode() for row in rows])
    splits = [{question(p) for p in task.prompts(split)} for split in ("train", "validation")]
    assert len(splits[0]) + len(splits[1]) == len(splits[0] | splits[1]) == 200
    assert 15 <= len(splits[1]) <= 45  # 15 %, give or take


@pytest.mark.parametrize(
    ("name", "other", "test"), [("gsm8k", 1000, 1319), ("svamp", 582, 218), ("boolq", 1000, 2000)]
)
def test_real_files_load_whole_and_mark_their_own_answers(name, other, test, shared_data):
    task = get_task(name, data_dir=shared_data)
    splits = {split: list(task.prompts(split)) for split in SPLITS}
    assert len(splits["train"]) + len(splits["validation"]) == other
    assert len(splits["test"]) == test
    assert len({question(p) for made in splits.values() for p in made}) == other + test
    for prompt in splits["test"]:
        assert task.check(prompt, f"The answer is {prompt.answer}.").correct
        other = {"yes": "no", "no": "yes"}.get(prompt.answer, f"{prompt.answer}1")
        assert not task.check(prompt, f"The answer is {other}.").correct
    five = list(task.prompts("test", 5, seed=1))
    assert five != list(task.prompts("test", 5, seed=2))
    assert five == list(task.prompts("test", 9, seed=1))[:5]


def test_gsm8k_rationales_of_people_are_marked_right(shared_data):
    """The data's own worked answers, `#### N` at the end, are replies of the hardest shape."""
    task = get_task("gsm8k", data_dir=shared_data)
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    prompts = list(task.prompts("test"))
    assert all(task.check(p, a).correct for p, a in zip(prompts, answers, strict=True))
