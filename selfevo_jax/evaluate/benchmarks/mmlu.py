"""MMLU: four options on 57 subjects, answered by the log-probability of the letter.

Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding". One benchmark per
subject, `mmlu` for all. Rows have the layout of `cais/mmlu` on the hub: question, choices[4],
answer (0 to 3); locally in mmlu/SUBJECT/test.jsonl and dev.jsonl, or Parquet of the same names.

As the task of a run, `mmlu` trains on mmlu/auxiliary_train/train.jsonl (99 842 questions of ARC,
OBQA, MCTest and RACE, as published with it) and holds out the test questions of all subjects.
"""

from selfevo_jax.evaluate.benchmark import Benchmark, Choose, Shots
from selfevo_jax.evaluate.data import Data, Row
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.judge.checkers import choice_letter

LETTERS = ("A", "B", "C", "D")
FIELDS = {"question": str, "choices": list, "answer": int}
SOURCE = "github.com/hendrycks/test, licence MIT"
SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge",
    "college_biology", "college_chemistry", "college_computer_science", "college_mathematics",
    "college_medicine", "college_physics", "computer_security", "conceptual_physics",
    "econometrics", "electrical_engineering", "elementary_mathematics", "formal_logic",
    "global_facts", "high_school_biology", "high_school_chemistry",
    "high_school_computer_science", "high_school_european_history", "high_school_geography",
    "high_school_government_and_politics", "high_school_macroeconomics",
    "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history",
    "high_school_world_history", "human_aging", "human_sexuality", "international_law",
    "jurisprudence", "logical_fallacies", "machine_learning", "management", "marketing",
    "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law",
    "professional_medicine", "professional_psychology", "public_relations", "security_studies",
    "sociology", "us_foreign_policy", "virology", "world_religions",
)  # fmt: skip


def gold(row: Row) -> int:
    """The number of the right option. Raises ValueError unless there are four and it is one."""
    choices, answer = row["choices"], row["answer"]
    if len(choices) != 4 or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("the field 'choices' does not hold four strings")
    if answer not in range(4):
        raise ValueError(f"the answer {answer} is not 0, 1, 2 or 3")
    return answer


def prompt(row: Row) -> str:
    """The question with its options."""
    options = "".join(f"{x}. {c}\n" for x, c in zip(LETTERS, row["choices"], strict=True))
    return f"{row['question'].strip()}\n{options}Answer:"


def _question(row: Row) -> str:
    return prompt(row).removesuffix("\nAnswer:") + "\nReply with the letter of the answer."


def _benchmark(subject: str) -> Benchmark:
    opening = "The following are multiple choice questions (with answers) about "
    return Benchmark(
        name=f"mmlu_{subject}",
        data=Data(
            files={"test": f"mmlu/{subject}/test.*", "dev": f"mmlu/{subject}/dev.*"},
            fields=FIELDS,
            source=SOURCE,
            hub=("cais/mmlu", subject),
        ),
        prompt=prompt,
        target=lambda row: LETTERS[gold(row)],
        ask=Choose(choices=lambda row: LETTERS, gold=gold),
        shots=Shots(split="dev", pick="first"),
        description=lambda row: f"{opening}{subject.replace('_', ' ')}.\n\n",
        groups=("mmlu",),
        version="1.0",
    )


SPEC = FileSpec(
    name="mmlu",
    data=Data(
        files={"train": "mmlu/auxiliary_train/train.*", "test": "mmlu/*/test.*"},
        fields=FIELDS,
        source=SOURCE,
        hub=("cais/mmlu", "all"),
        hub_splits={"train": "auxiliary_train"},
    ),
    question=_question,
    gold=lambda row: LETTERS[gold(row)],
    check=by_gold(choice_letter),
)
BENCHMARKS = tuple(map(_benchmark, SUBJECTS))
