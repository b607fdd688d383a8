"""Rules that decide whether a reply is right: numbers, letters, strings, SQuAD EM and F1.

Every function is pure. Replies are hostile: nothing here evaluates text, every regular
expression is linear, and only the last `TAIL` characters of a reply are read, because a final
answer stands at its end. A reply without an answer is *unparsed* (`parsed is None`), which is
counted apart from *wrong* so that a parse rate can stand beside every accuracy.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

TAIL = 20_000  # characters of a reply that are looked at, from its end
MAX_DIGITS = 400  # longer digit strings are noise; parsing them would cost quadratic time

_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(.+)$", re.MULTILINE)
_CUE = re.compile(r"\banswer(?:[ \t]+is\b|[ \t]*\**:\**)[ \t:]*(\S[^\n]*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_VULGAR = "\u00bc-\u00be\u2150-\u215e"  # one half and the like, each a character
_NUMBER = re.compile(
    r"(?P<sign>(?<![0-9A-Za-z.)\]}])[-+\u2212])?(?:[$€£](?P<inner>[-\u2212])?)?"
    rf"(?P<whole>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+|(?<![0-9])(?=\.[0-9]|[{_VULGAR}]))"
    rf"(?: ?(?P<vulgar>[{_VULGAR}])|"
    r"(?P<part>\.[0-9]+)?(?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?(?:/(?P<under>[0-9]+))?)"
)
# After a number, what says that it is not the result yet: "3 + 4", "= 7", "which is 7".
_GOES_ON = re.compile(
    r"^\s*[-+*/x\u00d7\u00f7\u2212]\s*[$€£]?[0-9]|(?:=|\b(?:is|equals|gives|makes|so))\s*[$€£\u2212-]*[0-9]"
)


@dataclass(frozen=True)
class Check:
    """What a checker says of one reply.

    `score` lies in [0, 1]; `correct` is the strict verdict that accuracies count; `parsed` is
    the answer that was read out of the reply, None when none was found.
    """

    score: float
    correct: bool
    parsed: str | None


def _verdict(correct: bool, parsed: str | None) -> Check:
    return Check(float(correct), correct, parsed)


def final_answer(text: str) -> str:
    """Return the part of a reply that states its answer, without decoration; "" if it is blank.

    In order of trust: the last `<answer>` element, the last `\\boxed{}`, the last `#### ` line,
    the last sentence after "answer is" or "answer:", the last line that is not blank.
    Reasoning up to `</think>` is dropped first.
    """
    text = text[-TAIL:].rpartition("</think>")[2]
    if span := _last_tag(text).strip():
        return span  # kept as it is: a tag says where the answer begins and ends
    for find in (_last_boxed, _last_hashes, _last_cue, _last_line):
        span = _undecorate(find(text))
        if span:
            return span
    return ""


def _last_tag(text: str) -> str:
    """The text of the last `<answer>` element that is closed."""
    opened, span = None, ""
    for tag in _ANSWER_TAG.finditer(text):
        if tag[1] and opened is not None:
            span, opened = text[opened : tag.start()], None
        elif not tag[1]:
            opened = tag.end()
    return span


def _last_hashes(text: str) -> str:
    found = _HASHES.findall(text)
    return found[-1] if found else ""


def _last_cue(text: str) -> str:
    found = _CUE.findall(text)
    return _SENTENCE_END.split(found[-1], maxsplit=1)[0] if found else ""


def _last_line(text: str) -> str:
    return text.rstrip().rpartition("\n")[2]


def _last_boxed(text: str) -> str:
    """The content of the last `\\boxed{...}`, braces balanced; "" when it never closes."""
    _, found, rest = text.rpartition("\\boxed{")
    depth = 1 if found else 0
    for place, character in enumerate(rest if found else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:place]
    return ""


def _undecorate(span: str) -> str:
    """Drop Markdown stars, code ticks, dollar-sign mathematics and a closing full stop."""
    span = span.strip().strip("*`_ \t").removesuffix(".").strip("*`_ \t")
    if len(span) > 1 and span[0] == span[-1] == "$":
        span = span[1:-1].strip()
    return span


def find_numbers(text: str) -> list[str]:
    """Every number written in the last `TAIL` characters of `text`, as written, in order."""
    return [match.group() for match in _NUMBER.finditer(text[-TAIL:])]


def number_value(written: str) -> Fraction | None:
    """The exact value of one written number ("1,000", "$5.00", "-3/4", "1e3"), else None."""
    match = _NUMBER.fullmatch(written.strip())
    if match is None or len(written) > MAX_DIGITS:
        return None
    whole = (match["whole"] or "0").replace(",", "")
    value = Fraction(whole + (match["part"] or "") + (match["exponent"] or ""))
    if match["under"]:
        if int(match["under"]) == 0:
            return None
        value /= int(match["under"])
    if match["vulgar"]:
        value += Fraction(unicodedata.normalize("NFKC", match["vulgar"]).replace("\u2044", "/"))
    signs = (match["sign"] or "") + (match["inner"] or "")
    return -value if sum(sign in "-\u2212" for sign in signs) % 2 else value


def last_number(text: str) -> str | None:
    """The number a reply ends on: the one that it states, else the last in its `final_answer`,
    else the last anywhere."""
    span = final_answer(text)
    found = find_numbers(span) or find_numbers(text)
    return _stated(text, span) or (found[-1] if found else None)


def _stated(text: str, span: str) -> str | None:
    """The number right after "answer is", "answer:" or "####" where `span` follows that.

    What comes after it is said about it ("$18 for 2 days"), unless it goes on to the result.
    """
    body = text[-TAIL:].rpartition("</think>")[2]
    number = _NUMBER.search(span)
    if number is None or span not in (
        _undecorate(find(body)) for find in (_last_hashes, _last_cue)
    ):
        return None
    before, after = span[: number.start()], span[number.end() :]
    return None if re.search(r"\w", before) or _GOES_ON.search(after) else number.group()


def exact_number(text: str, gold: str) -> Check:
    """Right when the reply's final number equals `gold` in value: "1,000" is 1000, "15" not 5.

    Raises ValueError when `gold` itself holds no number: that is the data's fault.
    """
    gold_written = last_number(gold)
    gold_value = number_value(gold_written) if gold_written else None
    if gold_value is None:
        raise ValueError(f"the reference answer {gold[:60]!r} holds no number")
    written = last_number(text)
    value = number_value(written) if written else None
    return _verdict(value == gold_value, written if value is not None else None)


_LETTER = re.compile(r"(?<![A-Za-z0-9'])\(?([A-Z])\)?(?![A-Za-z0-9'])")
_BARE_ARTICLE = re.compile(
    r"(?<![(\w])[AI](?= +(?!or\b|and\b)[a-z])"
)  # "A dog", "I think": words, not choices


def choice_letter(text: str, gold: str, letters: str = "ABCD") -> Check:
    """Right when the reply's final answer names choice `gold`.

    The first of `letters` that stands alone in the final answer counts after "answer is" or
    another mark; a bare last line that names two different choices is unparsed, not a guess.
    """
    span = final_answer(text)
    if len(span) == 1:
        span = span.upper()
    named = [x for x in _LETTER.findall(_BARE_ARTICLE.sub(" ", span)) if x in letters]
    bare = span == _undecorate(_last_line(text[-TAIL:].rpartition("</think>")[2]))
    parsed = None if not named or (bare and len(set(named)) > 1) else named[0]
    return _verdict(parsed == gold.upper(), parsed)


def normalise(text: str) -> str:
    """Fold case, Unicode forms and spaces, and drop punctuation around the text."""
    folded = unicodedata.normalize("NFKC", text[-TAIL:]).casefold()
    return " ".join(folded.split()).strip(string.punctuation + " ")


def exact_match(text: str, golds: Sequence[str]) -> Check:
    """Right when the final answer equals one of `golds` after `normalise`."""
    span = final_answer(text)
    return _verdict(normalise(span) in {normalise(gold) for gold in golds}, span or None)


def yes_no(text: str, gold: bool) -> Check:
    """Right when the first yes/no (true/false) of the final answer, else the reply, is `gold`."""
    words = re.findall(r"\b(yes|no|true|false)\b", normalise(final_answer(text)))
    words = words or re.findall(r"\b(yes|no|true|false)\b", normalise(text))
    parsed = None if not words else "yes" if words[0] in ("yes", "true") else "no"
    return _verdict(parsed == ("yes" if gold else "no"), parsed)


_ARTICLE = re.compile(r"\b(a|an|the)\b")
_STRIP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normalise(text: str) -> str:
    """SQuAD's form of an answer: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_STRIP_PUNCTUATION)).split())


def squad_scores(answer: str, golds: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of an answer, each the best over `golds` (Rajpurkar et al. 2016, 2018).

    No gold, or only golds that normalise to nothing, means the question has no answer: then
    only an answer that normalises to nothing scores, as in the SQuAD 2.0 scorer.
    """
    answer_form = squad_normalise(answer[-TAIL:])
    gold_forms = [form for form in map(squad_normalise, golds) if form] or [""]
    exact = max(float(answer_form == gold) for gold in gold_forms)
    return exact, max(_token_f1(answer_form.split(), gold.split()) for gold in gold_forms)


def _token_f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    shared = sum((Counter(answer) & Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(answer), shared / len(gold)
    return 2 * precision * recall / (precision + recall)
