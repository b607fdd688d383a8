"""ELITE / LaFFi: learn from one's own critiques, and show the best of them to the next round.

Li et al., 2023 (LaFFi, arXiv:2401.00907) and Q. Li's thesis (ELITE). A round: answer; criticise
each answer m times; keep the critique that stands for the m (a vote); train on predicting it from
the question and the answer (or on the answer itself); cluster the critiques and show one of each
cluster as an example in the next round's prompts. LaFFi mixes in critiques by people. Adapters go
on from round to round, or are trained anew and merged by TIES. The gold answer is never shown.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from selfevo_jax.evolve.lessons import gold_lesson, lesson, reply_lesson
from selfevo_jax.evolve.people import human_critique, human_example, with_people
from selfevo_jax.evolve.run import (
    Example,
    Policy,
    Prompt,
    Records,
    Row,
    Run,
    Sample,
    View,
    probing,
    prompt_file,
    question,
    role_defaults,
    rounds,
    sampling,
    together,
)
from selfevo_jax.evolve.tables import accuracy
from selfevo_jax.evolve.voting import (
    MOST_OUTLIERS,
    consistent,
    medoid,
    shortened,
    shown_examples,
    typical_examples,
)

ANSWER, CRITIQUE = prompt_file("elite_answer"), prompt_file("elite_critique")
Messages = Sequence[Mapping[str, str]]


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        **rounds(),
        **probing(),
        "answer": sampling(n=1, temperature=0.3, max_new_tokens=100),
        "critique": sampling(n=5, temperature=1.0, max_new_tokens=200),  # n is the paper's m
        "vote": {"by": "medoid", "contamination": 0.3},  # medoid | answers
        "letters": 5000,  # of question, answer and examples in a request
        "examples": {"clusters": 2, "from_critiques": True, "file": ""},  # of the first round
        "learn_to": "critique",  # critique | answer
        "human": {"file": "", "share": 0.0},  # LaFFi: critiques by people, {question, feedback}
        "adapters": "continue",  # from round to round: continue | ties
        "ties_density": 0.2,
        "baselines": (),  # of sft, majority
        "majority": sampling(n=5, temperature=0.7, max_new_tokens=100),
        **role_defaults("critic", "encoder"),
    }


def elite(run: Run) -> Policy:
    """Rounds of answer, critique, vote, train, evaluate, and new examples."""
    c = run.config
    base = policy = run.base()
    for name, known in CHOICES.items():
        run.check_choices(name, [run.setting(name)], known)
    run.check_choices("baselines", c.baselines, BASELINES)
    run.check_between("vote.contamination", 0.0, MOST_OUTLIERS)
    run.check_between("examples.clusters", 1)
    run.check_between("letters", 1)
    run.check_between("human.share", 0.0, 1.0)
    evaluated, lines, examples = [run.evaluate(policy)], dict.fromkeys(c.baselines, base), None
    if c.examples.file:
        examples = run.read("examples", c.examples.file, human_example, Row)
    adapters: dict[str, list[Policy]] = {base.name: []}  # those that a policy is merged from
    for _ in run.rounds():
        prompts = run.probed(run.prompts(), policy)
        asked = partial(answer_messages, letters=c.letters)
        answers = run.ask("answer", prompts, policy, asked, c.answer, given=examples)
        voted = criticised(run, answers, prompts, policy, examples)
        taught = partial(LESSONS[c.learn_to], letters=c.letters)
        learned = run.map("learn", voted.join(answers).join(prompts), taught, Example)
        start = policy if c.adapters == "continue" else base
        new = run.train(learned, start, objective={"loss": "sft"})
        parts = [*adapters[policy.name], new]
        if c.adapters == "ties" and len(parts) > 1:
            new = run.merge(parts, density=c.ties_density)
        adapters[new.name] = parts
        policy = run.accept(new, policy)
        evaluated.append(run.evaluate(policy))
        if c.examples.from_critiques:
            examples = next_examples(run, voted, answers, prompts, policy)
        for name in lines:
            with run.within(name):
                lines[name] = BASELINES[name](run, prompts, lines[name])
                evaluated.append(run.evaluate(lines[name]))
    run.table("table", together(evaluated), accuracy)
    return policy


def criticised(
    run: Run, answers: Records[Sample], prompts: Records[Prompt], policy: Policy, examples: Any
) -> Records[Sample]:
    """One critique of each answer: the vote's, or a person's."""
    c = run.config
    rows, critic = answers.join(prompts), run.role("critic", policy)
    asked = partial(critique_messages, letters=c.letters)
    critiques = run.ask("critique", rows, critic, asked, c.critique, given=examples)
    if c.vote.by == "answers":
        judged = critiques.join(run.check(critiques, prompts, name="parse"))
        voted = run.map("vote", judged.groups("parent_id"), consistent, Sample)
    else:
        encoder = run.role("encoder", policy)
        placed = critiques.join(run.embed("embed", critiques, encoder, text_of))
        vote = partial(medoid, contamination=c.vote.contamination, seed=c.seed)
        voted = run.map("vote", placed.groups("parent_id"), vote, Sample)
    if not c.human.file:
        return voted
    people = run.read("human", c.human.file, human_critique, Row)
    mixed = partial(with_people, share=c.human.share)
    return run.map("mix", voted.join(prompts), mixed, Sample, given=people)


def next_examples(
    run: Run, voted: View, answers: Records[Sample], prompts: Records[Prompt], policy: Policy
) -> Records[Row]:
    """The typical worked examples of this round, for the prompts of the next."""
    encoder = run.role("encoder", policy)
    rows = voted.join(answers).join(prompts)
    vectors = run.embed("embed_examples", rows, encoder, whole_text)
    placed = voted.join(vectors).join(answers).join(prompts)
    choose = partial(typical_examples, clusters=run.config.examples.clusters, seed=run.config.seed)
    return run.gather("next_examples", placed, choose, Row)


def answer_messages(prompt: Prompt, examples: Sequence[Row] = (), *, letters: int) -> Messages:
    """The question; with examples of its task, where there are any and room for them."""
    asked = prompt.messages[-1]["content"]
    shown = shown_examples(prompt, examples, letters - len(asked))
    if not shown:
        return prompt.messages
    return ANSWER.fill({"examples": shown.strip(), "question": asked})


def critique_messages(
    row: tuple[Sample, Prompt], examples: Sequence[Row] = (), *, letters: int
) -> Messages:
    """The request for a critique of an answer; what is too long is cut, the examples first."""
    said = shortened(row[0].text.strip(), letters // 2)
    asked = shortened(row[1].messages[-1]["content"], letters - len(said))
    shown = shown_examples(row[1], examples, letters - len(said) - len(asked))
    return CRITIQUE.fill({"examples": shown, "question": asked, "answer": said})


def critique_lesson(row: tuple[Sample, Sample, Prompt], letters: int) -> list[Example]:
    """The request without examples, and the critique to be written."""
    critique, answer, prompt = row
    asked = critique_messages((answer, prompt), letters=letters)
    return [lesson(prompt, critique, asked, critique.text)]


def answer_lesson(row: tuple[Sample, Sample, Prompt], letters: int) -> list[Example]:
    """The question without examples, and the answer that was criticised."""
    return [lesson(row[2], row[1], answer_messages(row[2], letters=letters), row[1].text)]


def sft(run: Run, prompts: Records[Prompt], policy: Policy) -> Policy:
    """Imitation of the gold answers."""
    learned = run.map("learn", prompts, gold_lesson, Example)
    return run.train(learned, policy, objective={"loss": "sft"})


def majority(run: Run, prompts: Records[Prompt], policy: Policy) -> Policy:
    """Self-improvement by majority vote (Huang et al., 2022, arXiv:2210.11610)."""
    samples = run.ask("sample", prompts, policy, question, run.config.majority)
    parsed = samples.join(run.check(samples, prompts))
    voted = run.map("vote", parsed.groups(), consistent, Sample)
    learned = run.map("learn", voted.join(prompts), reply_lesson, Example)
    return run.train(learned, policy, objective={"loss": "sft"})


LESSONS = {"critique": critique_lesson, "answer": answer_lesson}
BASELINES = {"sft": sft, "majority": majority}
CHOICES = {"learn_to": tuple(LESSONS), "vote.by": ("medoid", "answers"),
           "adapters": ("continue", "ties")}  # fmt: skip


def text_of(sample: Sample) -> str:
    """What is embedded for the vote."""
    return sample.text


def whole_text(row: tuple[Sample, Sample, Prompt]) -> str:
    """What is embedded for the choice of examples: question, answer and critique."""
    critique, answer, prompt = row
    return "\n".join((prompt.messages[-1]["content"], answer.text, critique.text))
