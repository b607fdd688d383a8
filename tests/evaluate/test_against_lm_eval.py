"""Prompts, examples and readings equal those of lm-evaluation-harness on the same rows.

The harness's own task classes build the prompts, from its own task files with the data set
replaced by local rows; its filters and metrics read the replies.
"""

import json
from itertools import islice
from pathlib import Path

import pytest

from selfevo_jax.evaluate.asking import Wording, pool_of, questions
from selfevo_jax.evaluate.benchmark import Choose
from selfevo_jax.evaluate.benchmarks import bbh
from selfevo_jax.evaluate.data import read_split
from selfevo_jax.evaluate.tasks import BENCHMARKS

pytest.importorskip("lm_eval")
N = 12

REPLIES = {
    "gsm8k": [
        "She has 16 - 3 = 13.\n#### 13", "#### 1,300", "#### $5.00", "It is $1,234.50 or 18.",
        "none", "", "-3", "#### -7.", "The answer is 42.", "#### 18", "$18", "18.0",
    ],
    "gsm8k_cot": ["The answer is 18.", "The answer is $18", "18", "The answer is -4,000.", ""],
    "bbh": [
        "No", "Yes.", " yes", "so the answer is (B).", "(C)", "True", "not True is False",
        "invalid",
        "", "The options: A", "not plausible", "plausible", "tells the truth", "he lies: B", "12",
        "the answer is 7.", "[ ] }", "-5", "the answer is No.", "first second",
    ],
}  # fmt: skip


def local_rows(tmp_path, splits) -> dict[str, str]:
    """The rows as JSON-lines files that `datasets` reads."""
    files = {}
    for split, rows in splits.items():
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def their_task(config: str, tmp_path, splits, **changes):
    """A task of the harness on local rows."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    loaded = load_yaml(Path(lm_eval.tasks.__file__).parent / config)
    # Old task files name an exact_match of the `evaluate` package; this is the built-in one.
    loaded |= {"dataset_path": "json", "dataset_name": None}
    loaded |= {"dataset_kwargs": {"data_files": local_rows(tmp_path, splits)}} | changes
    task = ConfigurableTask(config=loaded)
    task.set_fewshot_seed(1234)
    return task


def their_prompts(task, shots: int, n: int = N, **settings) -> list[list[tuple]]:
    """The arguments of every question's requests."""
    task.set_config("num_fewshot", shots)
    task.build_all_requests(limit=n, rank=0, world_size=1, **settings)
    found: dict[int, list] = {}
    for request in task.instances:
        found.setdefault(request.doc_id, []).append(request.args)
    return [found[number] for number in sorted(found)]


def our_questions(name, data, n: int = N, **wording):
    benchmark = BENCHMARKS[name]
    read = read_split(name, benchmark.data, benchmark.split, data)
    return list(
        islice(
            questions(
                benchmark, read, pool_of(benchmark, data, Wording(**wording)), Wording(**wording)
            ),
            n,
        )
    )


def assert_same_prompts(name, task, data, shots: int | None = None, n: int = N) -> None:
    benchmark = BENCHMARKS[name]
    ours = our_questions(name, data, n, num_fewshot=shots)
    theirs = their_prompts(task, benchmark.num_fewshot if shots is None else shots, n)
    assert len(ours) == len(theirs)
    for question, requests in zip(ours, theirs, strict=True):
        assert {request[0] for request in requests} == {question.prompt}
        if isinstance(benchmark.ask, Choose):
            assert tuple(request[1] for request in requests) == question.choices
        else:
            assert set(benchmark.ask.stop) <= set(requests[0][1]["until"])


def rows_of(name, split, data):
    return read_split(name, BENCHMARKS[name].data, split, data).rows


def their_scores(task, reading: str, reply: str, doc) -> float:
    """What the harness's filter and metric make of a reply."""
    (ensemble,) = [f for f in task._filters if f.name == reading] if task._filters else [None]
    filtered = reply
    if ensemble is not None:
        responses = [[reply]]
        for make in ensemble.filters:
            responses = make().apply(responses, [doc])
        (filtered,) = responses
    return float(task.process_results(doc, [filtered])["exact_match"])


def assert_same_readings(name, task, data, replies) -> None:
    benchmark = BENCHMARKS[name]
    for doc in rows_of(name, benchmark.split, data)[:N]:
        for reading, mark in benchmark.ask.readings.items():
            if reading == "number":
                continue  # ours
            for reply in replies:
                ours = mark(reply, doc).scores["exact_match"]
                assert ours == their_scores(task, reading, reply, doc), (reading, reply)


@pytest.fixture(scope="module")
def gsm8k(shared_data):
    return {split: rows_of("gsm8k", split, shared_data)[:200] for split in ("train", "test")}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gsm8k", "gsm8k/gsm8k.yaml"),
        ("gsm8k_cot", "gsm8k/gsm8k-cot.yaml"),
        ("gsm8k_cot_zeroshot", "gsm8k/gsm8k-cot-zeroshot.yaml"),
    ],
)
def test_gsm8k(name, config, gsm8k, tmp_path, monkeypatch):
    folder = tmp_path / "ours" / "gsm8k"
    folder.mkdir(parents=True)
    for file, split in (("train_1000.jsonl", "train"), ("test.jsonl", "test")):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in gsm8k[split]))
    task = their_task(config, tmp_path, gsm8k)
    assert_same_prompts(name, task, tmp_path / "ours")
    replies = REPLIES["gsm8k"] + REPLIES["gsm8k_cot"]
    assert_same_readings(name, task, tmp_path / "ours", replies)


@pytest.mark.parametrize("shots", [0, 3])
def test_boolq(shots, shared_data, tmp_path):
    splits = {
        ours: [
            {key: row[key] for key in ("question", "passage")} | {"label": int(row["answer"])}
            for row in rows_of("boolq", split, shared_data)
        ]
        for ours, split in (("train", "train"), ("validation", "test"))
    }
    task = their_task("super_glue/boolq/default.yaml", tmp_path, splits)
    assert_same_prompts("boolq", task, shared_data, shots)


@pytest.mark.parametrize("shots", [0, 5])
def test_mmlu(shots, tmp_path):
    rows = [
        {"question": f" What is {n} + {n}?", "choices": [str(2 * n + k) for k in (1, 0, 3, 2)],
         "answer": 1}
        for n in range(20)
    ]  # fmt: skip
    folder = tmp_path / "mmlu" / "abstract_algebra"
    folder.mkdir(parents=True)
    for split in ("dev", "test"):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in (rows[:6] if split == "dev" else rows[6:]))
        )
    task = their_task(
        "mmlu/default/mmlu_abstract_algebra.yaml", tmp_path, {"dev": rows[:6], "test": rows[6:]}
    )
    assert_same_prompts("mmlu_abstract_algebra", task, tmp_path, shots)


def test_logiqa(tmp_path):
    rows = [
        {"context": f"All {n} are.", "question": "Which?", "options": ["a", "b", "c", f"d{n}"],
         "label": "abcd"[n % 4]}
        for n in range(9)
    ]  # fmt: skip
    (tmp_path / "logiqa").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "logiqa" / "logiqa.jsonl").write_text(text)
    task = their_task("logiqa/logiqa.yaml", tmp_path, {"test": rows}, training_split=None,
                      validation_split=None)  # fmt: skip
    assert_same_prompts("logiqa", task, tmp_path)


@pytest.mark.parametrize("task_name", bbh.TASKS)
def test_bbh(task_name, shared_data, tmp_path):
    rows = rows_of(f"bbh_zeroshot_{task_name}", "test", shared_data)[:3]
    for kind in ("cot_fewshot", "fewshot", "zeroshot"):
        name = f"bbh_{kind}_{task_name}"
        task = their_task(f"bbh/{kind}/{task_name}.yaml", tmp_path, {"test": rows})
        assert_same_prompts(name, task, shared_data, n=2)
        if task_name == "object_counting" and kind == "zeroshot":
            continue  # theirs also reads numbers in English words, through a package
        replies = [*REPLIES["bbh"], rows[0]["target"], f"so the answer is {rows[0]['target']}."]
        benchmark = BENCHMARKS[name]
        for doc in rows[:2]:
            for reading, mark in benchmark.ask.readings.items():
                for reply in replies:
                    ours = mark(reply, doc).scores["exact_match"]
                    assert ours == their_scores(task, reading, reply, doc), (reading, reply)


def test_examples_that_are_asked_for_of_direct_bbh_have_no_chains(shared_data):
    """Other rows of the test in the harness's words; there the question may be among them."""
    theirs = their_yaml("bbh/zeroshot/navigate.yaml")
    name = "bbh_zeroshot_navigate"
    known = {row["input"]: row for row in rows_of(name, "test", shared_data)}
    for question in our_questions(name, shared_data, num_fewshot=2):
        asked = [part.partition("\nA:")[0] for part in question.prompt.split("Q: ")[1:]]
        shown = [rendered(theirs["doc_to_text"], known[text]) for text in asked]
        examples = zip(shown[:2], asked[:2], strict=True)
        context = "".join(f"{put} {known[text]['target']}\n\n" for put, text in examples)
        assert question.prompt == theirs["description"] + context + shown[2]
        assert len(set(asked)) == 3


def their_yaml(name) -> dict:
    """A task file that cannot be loaded offline (its metrics are on the hub), as it is written."""
    import lm_eval.tasks
    import yaml

    root = Path(lm_eval.tasks.__file__).parent
    return yaml.safe_load((root / name).read_text().replace("!function", ""))


def rendered(template: str, row) -> str:
    import jinja2

    return jinja2.Template(template, keep_trailing_newline=True).render(row)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("humaneval", "humaneval/humaneval.yaml"),
        ("hendrycks_math", "hendrycks_math/hendrycks_math_algebra.yaml"),
    ],
)
def test_prompts_without_examples(name, config, shared_data):
    theirs = their_yaml(config)
    for question in our_questions(name, shared_data):
        assert question.prompt == rendered(theirs["doc_to_text"], question.row)
    ask = BENCHMARKS[name].ask
    assert set(ask.stop) == set(theirs["generation_kwargs"]["until"])
    assert ask.max_new_tokens == theirs["generation_kwargs"].get("max_gen_toks", 256)


def test_ifeval_is_the_prompt_itself(shared_data):
    theirs = their_yaml("ifeval/ifeval.yaml")
    assert theirs["doc_to_text"] == "prompt" and not theirs["generation_kwargs"]["until"]
    for question in our_questions("ifeval", shared_data):
        assert question.prompt == question.row["prompt"]
    ask = BENCHMARKS["ifeval"].ask
    assert (ask.stop, ask.max_new_tokens) == ((), theirs["generation_kwargs"]["max_gen_toks"])


@pytest.mark.parametrize("shots", [0, 2])
def test_squadv2(shots, shared_data):
    """Their class is made by hand, since its data set is on the hub; our examples are shown."""
    from lm_eval.tasks.squadv2.task import SQuAD2

    theirs = SQuAD2.__new__(SQuAD2)
    train = {row["question"]: row for row in rows_of("squadv2", "train", shared_data)}
    for question in our_questions("squadv2", shared_data, num_fewshot=shots):
        *shown, last = question.prompt.split("\n\nTitle: ")
        parts = [part.removeprefix("Title: ") for part in (*shown, last)]
        asked = [part.split("\n\nQuestion: ")[1].split("\n\nAnswer:")[0] for part in parts]
        assert len(set(asked)) == shots + 1
        examples = [train[text] for text in asked[:-1]]
        context = "".join(
            f"{theirs.doc_to_text(row)}{theirs.doc_to_target(row)}\n\n" for row in examples
        )
        assert question.prompt == context + theirs.doc_to_text(question.row)
        requests = theirs.construct_requests(question.row, question.prompt)
        assert tuple(requests[0].args[1]["until"]) == BENCHMARKS["squadv2"].ask.stop
        assert requests[1].args[1] == f" {BENCHMARKS['squadv2'].ask.none}"


def test_humaneval_instruct_prompts(shared_data):
    config = their_yaml("humaneval/humaneval_instruct.yaml")
    (question, *_) = our_questions("humaneval_instruct", shared_data, 1)
    body = rendered(config["doc_to_text"], question.row)
    prefix = rendered(config["gen_prefix"], question.row)
    assert question.prompt == body + prefix
    (chat, *_) = our_questions("humaneval_instruct", shared_data, 1, chat=True)
    assert chat.prompt == ({"role": "user", "content": body},) and chat.prefix == prefix


def test_mbpp_and_math_prompts(shared_data):
    """Rendered from the harness's templates and its own example rows."""
    import ast

    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    config = their_yaml("mbpp/mbpp.yaml")
    shots = _listed(root / "mbpp/utils.py", ast)
    (question, *_) = our_questions("mbpp", shared_data, 1)
    ask, tell = config["doc_to_text"], config["doc_to_target"]
    shown = "".join(f"{rendered(ask, row)}{rendered(tell, row)}\n\n" for row in shots)
    assert question.prompt == shown + rendered(ask, question.row)
    shots = _listed(root / "minerva_math/utils.py", ast)
    (question, *_) = our_questions("minerva_math", shared_data, 1)
    asked = "Problem:\n{}\n\nSolution:".format
    shown = "".join(f"{asked(row['problem'])} {row['solution']}\n\n" for row in shots)
    assert question.prompt == shown + asked(question.row["problem"])


def _listed(path, ast) -> list[dict]:
    """What `list_fewshot_samples` of a file of the harness returns, read without running it."""
    body = ast.parse(path.read_text()).body
    (found,) = [x for x in body if getattr(x, "name", "") == "list_fewshot_samples"]
    return ast.literal_eval(found.body[-1].value)


@pytest.mark.parametrize("multiturn", [True, False])
def test_a_chat_has_the_same_turns(multiturn, gsm8k, tmp_path):
    folder = tmp_path / "ours" / "gsm8k"
    folder.mkdir(parents=True)
    for file, split in (("train_1000.jsonl", "train"), ("test.jsonl", "test")):
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in gsm8k[split]))
    task = their_task("gsm8k/gsm8k.yaml", tmp_path, gsm8k)
    seen = []

    def template(messages, add_generation_prompt=True):
        seen.append(tuple(messages))
        return str(len(seen) - 1)

    theirs = their_prompts(
        task, 2, 3, apply_chat_template=True, fewshot_as_multiturn=multiturn,
        chat_template=template, tokenizer_name="x",
    )  # fmt: skip
    ours = our_questions("gsm8k", tmp_path / "ours", 3, chat=True, multiturn=multiturn,
                         num_fewshot=2)  # fmt: skip
    assert [q.prompt for q in ours] == [seen[int(requests[0][0])] for requests in theirs]
