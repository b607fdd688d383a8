"""GSM8K: grade-school word problems.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems". `gsm8k` (5 examples of the
training set), `gsm8k_cot` (8 chains of thought of Wei et al. 2022, "Chain-of-Thought Prompting
Elicits Reasoning in Large Language Models", appendix) and `gsm8k_cot_zeroshot` are the harness's
wordings with its two readings; "number" is ours, by exact value: "$5.00" is 5 and "15" is not.
"""

from functools import partial

from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Read, Shots
from selfevo_jax.evaluate.data import Data, Row
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.evaluate.readings import GSM8K_IGNORED, checked, extracted
from selfevo_jax.judge.checkers import exact_number, find_numbers

DATA = Data(
    files={"train": "gsm8k/train_1000.jsonl", "test": "gsm8k/test.jsonl"},
    fields={"question": str, "answer": str},
    source="github.com/openai/grade-school-math, licence MIT",
    hub=("openai/gsm8k", "main"),
)
FLEXIBLE = r"(-?[$0-9.,]{2,})|(-?[0-9]+)"
ENDS = ("</s>", "<|im_end|>")

CHAINS = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After "
        "they are done, there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So "
        "there must have been 21 - 15 = 6. The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the "
        "parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they "
        "have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. "
        "After eating 35, they had 74 - 35 = 39. The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How "
        "many lollipops did Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave "
        "Denny 20 - 12 = 8. The answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many "
        "toys does he have now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 "
        "more toys. 5 + 4 = 9. The answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each "
        "day, from monday to thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So "
        "5 * 4 = 20 computers were added. 9 + 20 is 29. The answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 "
        "more. How many golf balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. "
        "After losing 2 more, he had 35 - 2 = 33 golf balls. The answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has "
        "23 - 15 dollars left. 23 - 15 is 8. The answer is 8.",
    ),
)


def number(row: Row) -> str:
    """The number after '####'. Raises ValueError where there is not exactly one."""
    found = find_numbers(row["answer"].rpartition("####")[2]) if "####" in row["answer"] else []
    if len(found) != 1:
        raise ValueError("the answer has no single number after '####'")
    return found[0]


def _worked(row: Row) -> str:
    number(row)
    return row["answer"]


def _last_part(row: Row) -> str:
    """The number alone; the whole chain of an example that has no '####'."""
    return row["target"] if "target" in row else row["answer"].split("####")[-1].strip()


def readings(strict: str) -> dict[str, Read]:
    """The harness's two readings and the exact value."""
    match = partial(extracted, gold=_last_part, ignored=GSM8K_IGNORED, fold=True)
    return {
        "strict-match": match(strict),
        "flexible-extract": match(FLEXIBLE, which=-1),
        "number": checked(lambda text, row: exact_number(text, number(row))),
    }


ANSWER_IS = r"The answer is (\-?[0-9\.\,]+)."
SPEC = FileSpec(
    name="gsm8k",
    data=DATA,
    question=lambda row: row["question"],
    gold=number,
    check=by_gold(exact_number),
)
BENCHMARKS = (
    Benchmark(
        name="gsm8k",
        data=DATA,
        prompt=lambda row: f"Question: {row['question']}\nAnswer:",
        target=_worked,
        ask=Generate(readings(r"#### (\-?[0-9\.\,]+)"), stop=("Question:", *ENDS)),
        num_fewshot=5,
        shots=Shots(split="train"),
        version="3.0",
    ),
    Benchmark(
        name="gsm8k_cot",
        data=DATA,
        prompt=lambda row: f"Q: {row['question']}\nA:",
        target=lambda row: row["target"] if "target" in row else number(row),
        ask=Generate(readings(ANSWER_IS), stop=("Q:", *ENDS)),
        num_fewshot=8,
        shots=Shots(rows=tuple({"question": q, "target": a} for q, a in CHAINS), pick="first"),
        version="3.0",
    ),
    Benchmark(
        name="gsm8k_cot_zeroshot",
        data=DATA,
        prompt=lambda row: f"Q: {row['question']}\nA: Let's think step by step.",
        target=_worked,
        ask=Generate(readings(ANSWER_IS), stop=("Q:", *ENDS)),
        shots=Shots(split="train"),
        version="3.0",
    ),
)
