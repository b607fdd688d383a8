"""MMLU as it is asked: all four options in sight, letters for answers, examples with letters."""

import json

from selfevo_jax.evaluate.asking import Wording, pool_of, questions
from selfevo_jax.evaluate.data import read_split
from selfevo_jax.evaluate.tasks import BENCHMARKS


def test_options_are_shown_and_letters_are_scored(tmp_path):
    """Specification 7.1 h: the published code looked for options under a name that is not there,
    printed gold answers of the examples as numbers, and read a letter out of its own prompt."""
    rows = [
        {"question": f"Which {n}?", "choices": [f"{x}{n}" for x in "pqrs"], "answer": n % 4}
        for n in range(7)
    ]
    folder = tmp_path / "mmlu" / "anatomy"
    folder.mkdir(parents=True)
    for split, part in (("dev", rows[:5]), ("test", rows[5:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    benchmark = BENCHMARKS["mmlu_anatomy"]
    read = read_split("mmlu_anatomy", benchmark.data, "test", tmp_path)
    first, second = questions(
        benchmark,
        read,
        pool_of(benchmark, tmp_path, Wording(num_fewshot=5)),
        Wording(num_fewshot=5),
    )
    for number, question in ((5, first), (6, second)):
        *examples, asked = question.prompt.split("Which ")[1:]
        options = "\n".join(f"{x}. {y}{number}" for x, y in zip("ABCD", "pqrs", strict=True))
        assert asked == f"{number}?\n{options}\nAnswer:"
        assert [text.split("Answer:")[1].split()[0] for text in examples] == list("ABCDA")
        assert question.choices == (" A", " B", " C", " D")
        assert benchmark.ask.gold(question.row) == number % 4
