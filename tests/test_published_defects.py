"""The defects of the published systems, put back into a copy one by one: their tests must fail.

Each line of `DEFECTS` names one of `a` to `l` of the specification's list (7.1), the text of ours
that is replaced in the copy, and the tests that are there to notice. A text that is no longer in
its file is a failure too: the defect must then be described anew.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("selfevo_jax", "configs", "tests", "pyproject.toml")
LIMIT = 900  # seconds for the tests of one defect
TEST_FAILED = 1  # pytest's status: 2 and above mean that it could not even try

pytestmark = [pytest.mark.slow, pytest.mark.timeout(LIMIT + 60)]


@dataclass(frozen=True)
class Defect:
    """`good` in selfevo_jax/`file` becomes `bad`; then every one of `tests` has to fail."""

    name: str
    file: str
    good: str
    bad: str
    tests: tuple[str, ...]


ELITE, METEOR = "evolve/test_elite.py::", "evolve/test_meteor.py::"
REFEVAL, REFLECT = "evolve/test_refeval.py::", "evolve/test_reflectevo.py::"
SECRETS, MMLU = "sample/test_http_secrets.py::", "evaluate/test_mmlu.py::"
CUT = """"content": PLACE.sub(lambda match: shown[match[1]], message["content"])"""

DEFECTS = (
    Defect(
        "a: the loss is on the prompt, never on the critique",
        "text/render.py",
        "        spans.append(_span(ids, True))\n"
        "    return TokenExample(id, _span(lead + prompt, False), tuple(spans))",
        "        spans.append(_span(ids, False))\n"
        "    return TokenExample(id, _span(lead + prompt, True), tuple(spans))",
        (ELITE + "test_training_teaches_the_critique",),
    ),
    Defect(
        "a: the loss is on the prompt as well",
        "text/render.py",
        "    return TokenExample(id, _span(lead + prompt, False), tuple(spans))",
        "    return TokenExample(id, _span(lead + prompt, True), tuple(spans))",
        (ELITE + "test_training_teaches_the_critique",),
    ),
    Defect(
        "b: the teacher's request has no guideline",
        "evolve/guiding.py",
        "shown = guideline.text.strip()[:letters]",
        'shown = ""',
        (METEOR + "test_each_stage_reaches_the_next",),
    ),
    Defect(
        "b: what is learned is the guideline, not the answer along it",
        "evolve/meteor.py",
        'run.map("learn", answers.join(prompts), reply_lesson, Example)',
        'run.map("learn", guidelines.join(prompts), reply_lesson, Example)',
        (METEOR + "test_each_stage_reaches_the_next",),
    ),
    Defect(
        "b: a critique is learned as one of the answer before it",
        "evolve/elite.py",
        "return [lesson(prompt, critique, asked, critique.text)]",
        "return [lesson(prompt, critique, prompt.messages, critique.text)]",
        (ELITE + "test_the_lesson_is_the_voted_critique_of_that_answer",),
    ),
    Defect(
        "b: records are joined by their line",
        "evolve/views.py",
        "joined = join(self.read(), other, partial(_row_key, own), others)",
        "joined = zip(self.read(), [*other] * 99, strict=False)",
        (
            REFEVAL + "test_pairs_are_the_best_over_the_worst_by_mean_win_probability",
            "evolve/test_views.py::test_a_chain_of_joins_follows_the_ids",
        ),
    ),
    Defect(
        "b: one-stage training learns the reflection without the answer",
        "evolve/curation.py",
        'told = f"{reflection.text.strip()}\\n\\n{revision.text.strip()}"',
        "told = reflection.text.strip()",
        (REFLECT + "test_training_and_test_use_one_template_and_one_role",),
    ),
    Defect(
        "c: the next round's answers are asked for without the examples",
        "evolve/elite.py",
        "asked, c.answer, given=examples)",
        "asked, c.answer)",
        (ELITE + "test_examples_chosen_by_clustering_stand_in_the_next_prompts",),
    ),
    Defect(
        "c: the next round's critiques are asked for without the examples",
        "evolve/elite.py",
        "asked, c.critique, given=examples)",
        "asked, c.critique)",
        (ELITE + "test_examples_chosen_by_clustering_stand_in_the_next_prompts",),
    ),
    Defect(
        "d: evaluation is one adapter behind",
        "evolve/elite.py",
        "        policy = run.accept(new, policy)\n"
        "        evaluated.append(run.evaluate(policy))\n",
        "        evaluated.append(run.evaluate(policy))\n"
        "        policy = run.accept(new, policy)\n",
        (ELITE + "test_evaluation_uses_the_adapter_just_trained",),
    ),
    Defect(
        "e: the longer decoding is the better one",
        "evolve/guiding.py",
        "best = max((costly for costly, _, _ in row), key=mean_logp)",
        "best = max((costly for costly, _, _ in row), key=lambda s: len(s.tokens))",
        (METEOR + "test_costly_decodings_win_by_likelihood_of_a_token_not_by_length",),
    ),
    Defect(
        "e: no margin, so that there is no gradient once the order is right",
        "learn/losses.py",
        "return relu(o.margin - beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))",
        "return relu(-beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))",
        (METEOR + "test_self_training_compares_two_decodings_of_one_question",),
    ),
    Defect(
        "e: the rejected side is that of another question",
        "evolve/contests.py",
        "pairs.append(pair_of(prompt, best, samples[found[1]][0]))",
        "pairs.append(pair_of(prompt, best, rows[len(pairs)][0]))",
        (REFEVAL + "test_pairs_are_the_best_over_the_worst_by_mean_win_probability",),
    ),
    Defect(
        "f: only answers known to be wrong get a second try",
        "evolve/reflectevo.py",
        "        rows = (current := links[0]).join(questions)\n",
        "        current = links[0]\n"
        "        rows = current.join(right, key='id').where(curation.wrong).join(questions)\n",
        (REFLECT + "test_every_held_out_answer_is_tried_again_with_no_word_of_its_verdict",),
    ),
    Defect(
        "f: a right first answer counts at turn 2",
        "evolve/turns.py",
        """**share("acc", sum(v["later"] for v in found), n)""",
        """**share("acc", sum(v["first"] or v["later"] for v in found), n)""",
        ("evolve/test_reflection.py::test_accuracy_at_turn_2_can_fall",),
    ),
    Defect(
        "g: a request that is too long loses its end",
        "text/prompt_files.py",
        CUT,
        CUT + "[:250]",
        (
            REFEVAL + "test_the_judge_reads_to_the_end_of_its_request",
            METEOR + "test_the_judge_reads_to_the_end_of_its_request",
        ),
    ),
    Defect(
        "g: where the judge gives no verdict a coin is tossed",
        "judge/aggregate.py",
        "        if comparison.p_first is not None:\n"
        "            wins[first].append(comparison.p_first)\n"
        "            wins[second].append(1.0 - comparison.p_first)",
        "        p = 0.5 if comparison.p_first is None else comparison.p_first\n"
        "        wins[first].append(p)\n"
        "        wins[second].append(1.0 - p)",
        (REFEVAL + "test_a_failed_comparison_is_counted_and_votes_for_nobody",),
    ),
    Defect(
        "g: labels that the judge would not write decide all the same",
        "judge/asking.py",
        "if mass < least_mass or mass == 0.0:",
        "if mass == 0.0:",
        ("judge/test_pairwise.py::test_labels_without_probability_are_an_abstention",),
    ),
    Defect(
        "h: the options are not shown",
        "evaluate/benchmarks/mmlu.py",
        '''return f"{row['question'].strip()}\\n{options}Answer:"''',
        '''return f"{row['question'].strip()}\\nAnswer:"''',
        (MMLU + "test_options_are_shown_and_letters_are_scored",),
    ),
    Defect(
        "h: gold answers of the examples are numbers",
        "evaluate/benchmarks/mmlu.py",
        "target=lambda row: LETTERS[gold(row)],",
        "target=lambda row: str(gold(row)),",
        (MMLU + "test_options_are_shown_and_letters_are_scored",),
    ),
    Defect(
        "h: letters are scored without the space before them",
        "evaluate/benchmarks/mmlu.py",
        'shots=Shots(split="dev", pick="first"),',
        'shots=Shots(split="dev", pick="first"), delimiter="",',
        (MMLU + "test_options_are_shown_and_letters_are_scored",),
    ),
    Defect(
        "i: a number is right where it is part of another",
        "judge/checkers.py",
        "return _verdict(value == gold_value, written if value is not None else None)",
        "right = gold_written in text\n    return _verdict(right, written)",
        ("judge/test_checkers.py::test_exact_number",),
    ),
    Defect(
        "j: trained in the turn of the system, tested in the user's",
        "evolve/curation.py",
        "    return [lesson(prompt, revision, whole_messages((answer, prompt)), told)]",
        "    asked = [{**turn, 'role': 'system'} for turn in whole_messages((answer, prompt))]\n"
        "    return [lesson(prompt, revision, asked, told)]",
        (REFLECT + "test_training_and_test_use_one_template_and_one_role",),
    ),
    Defect(
        "k: what was finished before a kill is done and written again",
        "evolve/stages.py",
        "if position not in done and position % jax.process_count()",
        "if position % jax.process_count()",
        (
            "evolve/test_run_killed.py::test_killed_five_times_gives_the_same_bytes",
            ELITE + "test_killed_and_gone_on_with_it_is_the_same",
        ),
    ),
    Defect(
        "k: a resumed training has a new optimiser",
        "learn/fit.py",
        "return done, checkpoints.restore(done, state)",
        "return done, checkpoints.restore(done, state) | {'optimizer': state['optimizer']}",
        (
            "invariants/test_fit_trajectories.py"
            "::test_killed_at_steps_and_resumed_ends_with_the_same_bits",
        ),
    ),
    Defect(
        "l: the key is in the log",
        "sample/http/calls.py",
        '        request.headers["Authorization"] = f"Bearer {self._key.reveal()}"',
        '        request.headers["Authorization"] = f"Bearer {self._key.reveal()}"\n'
        "        __import__('logging').getLogger('selfevo').debug(str(dict(request.headers)))",
        (SECRETS + "test_the_canary_is_nowhere",),
    ),
    Defect(
        "l: a server's echo of the key is told to the user",
        "sample/http/secret.py",
        "return content.replace(self._text.encode(), HIDDEN.encode())",
        "return content",
        (SECRETS + "test_the_canary_is_nowhere",),
    ),
    Defect(
        "l: the key is in the results file",
        "evolve/evaluated.py",
        'return {"server": self.name, "api": self.endpoint.api}',
        'return {"server": self.name, "api": self.endpoint.api, "key": self.endpoint.key.reveal()}',
        (SECRETS + "test_a_command_keeps_the_key_off_command_lines_files_and_code_that_it_runs",),
    ),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project as it is, where it may be spoiled."""
    folder = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        if (ROOT / part).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, ignore=unwanted)
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


def failed(copy: Path, tests: tuple[str, ...]) -> dict[str, int]:
    """pytest's status of each of the tests in the copy."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    return {
        test: subprocess.run(
            [*command, f"tests/{test}"], cwd=copy, env=environment, timeout=LIMIT,
            stdout=subprocess.DEVNULL,
        ).returncode
        for test in tests
    }  # fmt: skip


@pytest.mark.timeout(2 * LIMIT)
def test_without_a_defect_all_of_them_pass(copy):
    tests = sorted({test for defect in DEFECTS for test in defect.tests})
    said = failed(copy, (tests[0], *tests[1:]))
    assert said == dict.fromkeys(tests, 0)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_put_back_is_noticed(defect, copy):
    file = copy / "selfevo_jax" / defect.file
    ours = file.read_text()
    assert ours.count(defect.good) == 1, f"{defect.file} has changed: describe the defect anew"
    file.write_text(ours.replace(defect.good, defect.bad))
    try:
        said = failed(copy, defect.tests)
    finally:
        file.write_text(ours)
    assert said == dict.fromkeys(defect.tests, TEST_FAILED)


def test_every_letter_of_the_list_has_a_defect():
    assert {defect.name[0] for defect in DEFECTS} == set("abcdefghijkl")
