"""Which of several replies to one question stands for all, and which examples for a task.

`medoid` is ELITE's "major vote": embeddings, outliers dropped, the reply nearest the centre. Unlike
the published code it works on the embeddings themselves (two principal components of five points
say nothing), is seeded, and has rules for few or equal replies. It rewards being typical, not being
right; `consistent` (Wang et al., 2023, arXiv:2203.11171) votes on the answers that were parsed.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest

from selfevo_jax.records import Prompt, Row, Sample, Vector, Verdict

MOST_OUTLIERS = 0.5  # of the replies: of more, they would be the rule
FEW = 4  # replies below which no outlier is dropped: the forest would guess
LEAST_SHOWN = 40  # letters of a long text, below which an example says nothing
GAP = " [...] "
EXAMPLE = "Task: {input}\n\nAnswer: {output}\n\nReview: {reason}\n\n"


def medoid(row: Sequence[tuple[Sample, Vector]], contamination: float, seed: int) -> list[Sample]:
    """The reply nearest the centre of those that are no outliers.

    At most two replies: the first. A text that more than half of them share wins. `contamination`
    is the share of replies (rounded down) that an isolation forest drops, from `FEW` replies on.
    """
    samples = [sample for sample, _ in row]
    text, count = Counter(sample.text for sample in samples).most_common(1)[0]
    if len(samples) <= 2:
        return samples[:1]
    if 2 * count > len(samples):
        return [next(sample for sample in samples if sample.text == text)]
    vectors = np.array([vector.values for _, vector in row])
    kept = inliers(vectors, contamination, seed)
    distances = np.linalg.norm(vectors[kept] - vectors[kept].mean(axis=0), axis=1)
    return [samples[kept[int(np.argmin(np.round(distances, 6)))]]]


def inliers(vectors: np.ndarray, contamination: float, seed: int) -> np.ndarray:
    """Indices, in order, of the vectors [n, d] that are left without the most isolated ones."""
    drop = int(contamination * len(vectors))
    if len(vectors) < FEW or drop == 0:
        return np.arange(len(vectors))
    forest = IsolationForest(n_estimators=50, random_state=seed).fit(vectors)
    order = np.argsort(-np.round(forest.score_samples(vectors), 6), kind="stable")
    return np.sort(order[: len(vectors) - drop])


def consistent(row: Sequence[tuple[Sample, Verdict]]) -> list[Sample]:
    """The first reply with the commonest parsed answer; nothing where none could be parsed."""
    votes = Counter(verdict.parsed for _, verdict in row if verdict.parsed is not None)
    if not votes:
        return []
    winner = votes.most_common(1)[0][0]  # ties go to the answer that came first
    return [next(sample for sample, verdict in row if verdict.parsed == winner)]


def representatives(vectors: np.ndarray, clusters: int, seed: int) -> list[int]:
    """Indices of the vectors [n, d] nearest to each centre of a k-means; each once, in order."""
    clusters = min(clusters, len(np.unique(vectors, axis=0)))
    centres = KMeans(clusters, n_init=5, random_state=seed).fit(vectors).cluster_centers_
    distances = np.linalg.norm(vectors[:, None] - centres[None], axis=-1)
    return sorted(set(np.argmin(np.round(distances, 6), axis=0).tolist()))


def task_of(prompt: Prompt) -> str:
    """What a question is an example of: the task file it came from, where it came from one."""
    return str(prompt.meta.get("task", prompt.task))


def typical_examples(rows: Sequence[tuple], clusters: int, seed: int) -> list[Row]:
    """Of every task, the worked examples nearest to the centres of `clusters` clusters.

    rows: (critique, its vector, answer, prompt). An example is {"task", "input", "output",
    "reason"}, as the next round's prompts show it.
    """
    by_task: dict[str, list[tuple]] = {}
    for row in rows:
        by_task.setdefault(task_of(row[-1]), []).append(row)
    chosen = []
    for task, members in sorted(by_task.items()):
        vectors = np.array([vector.values for _, vector, _, _ in members])
        for index in representatives(vectors, clusters, seed):
            critique, _, answer, prompt = members[index]
            shown = {"task": task, "input": prompt.messages[-1]["content"]}
            values = shown | {"output": answer.text, "reason": critique.text}
            chosen.append(Row.make(source_id=critique.id, values=values))
    return chosen


def shown_examples(prompt: Prompt, examples: Sequence[Row], room: int) -> str:
    """The examples of the prompt's task as text of about `room` letters, "" where that is too few.

    One from a file without a task suits all. The longest texts are cut first: of an example's
    input the end is kept, as the question has the same opening; of all else the beginning.
    """
    mine = [row.values for row in examples if row.values["task"] in ("", task_of(prompt))]
    lengths = [len(e[name]) for e in mine for name in ("input", "output", "reason")]
    cap = even_cap(lengths, room - len(mine) * len(EXAMPLE.format(input="", output="", reason="")))
    if not mine or cap < min(LEAST_SHOWN, max(lengths)):
        return ""
    cut = ({"input": e["input"][-cap:], "output": e["output"][:cap], "reason": e["reason"][:cap]}
           for e in mine)  # fmt: skip
    return "".join(EXAMPLE.format(**texts) for texts in cut)


def even_cap(lengths: Sequence[int], room: int) -> int:
    """The most letters of each text with which all of them together have at most `room`."""
    for number, length in enumerate(sorted(lengths)):
        share = max(room, 0) // (len(lengths) - number)
        if length > share:
            return share
        room -= length
    return max(lengths, default=0)


def shortened(text: str, letters: int) -> str:
    """The text, without its middle where it has more letters: how it begins and ends matters."""
    if len(text) <= letters:
        return text
    half = max(letters - len(GAP), 0)
    return text[: half - half // 2] + GAP[: max(letters, 0)] + text[len(text) - half // 2 :]
