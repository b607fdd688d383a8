"""IFEval (Zhou et al. 2023): instructions whose following can be verified by rule.

`check` gives one truth value per instruction of a row. Loose checking also tries the reply without
its first line, its last line, both, and without asterisks. No empty reply follows an instruction.

Three things differ from the authors' program: the language is told by `judge.language` instead of
langdetect; sentences and capital words are split by rules of ours instead of NLTK's; and a
"letter" such as "#" is counted as asked, where theirs draws a random letter in its place.
"""

import json
import re
from collections.abc import Callable, Mapping
from itertools import product

from selfevo_jax.errors import UserError
from selfevo_jax.judge.language import language

MOST_TEXT = 100_000  # characters of a reply that are looked at
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|vs|etc|e\.g|i\.e|a\.m|p\.m|No|[A-Z])\.(?=\s|$)|"
    r"(?<=\d)\.(?=\d)|(?<=\w)\.(?=(?:com|net|org|io|gov|edu|me)\b)|(?<=[A-Z])\.(?=[A-Z]\.)"
)
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)]*(?:\s+|$)")
_WORD = re.compile(r"\w+(?:[-.'’]\w+)*")


def check(row: Mapping, reply: str, *, loose: bool = False) -> tuple[bool, ...]:
    """Whether `reply` follows each instruction of `row` (`instruction_id_list` and `kwargs`).

    Raises `UserError` for an instruction that is not known or lacks its arguments.
    """
    texts = _variants(reply[:MOST_TEXT]) if loose else [reply[:MOST_TEXT]]
    pairs = list(zip(row["instruction_id_list"], row["kwargs"], strict=True))
    return tuple(any(_follows(row, *pair, text) for text in texts) for pair in pairs)


def _variants(reply: str) -> list[str]:
    lines = reply.split("\n")
    cuts = [lines[first : len(lines) - last] for first, last in product((0, 1), repeat=2)]
    cut = ["\n".join(part).strip() for part in cuts]
    return [reply, *cut[1:], *(text.replace("*", "") for text in (reply, *cut[1:]))]


def _follows(row: Mapping, name: str, arguments: Mapping, reply: str) -> bool:
    if name not in INSTRUCTIONS:
        raise UserError(
            f"row {row.get('key')!r}: unknown instruction {name!r}; known: {sorted(INSTRUCTIONS)}"
        )
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return bool(reply.strip()) and INSTRUCTIONS[name](reply, **given)
    except TypeError as error:
        raise UserError(f"row {row.get('key')!r}: {name} has wrong arguments: {error}") from error


def _compare(count: int, relation: str, bound: int) -> bool:
    if relation not in ("at least", "less than"):
        raise UserError(f"an instruction compares by {relation!r}: 'at least' or 'less than'")
    return count >= bound if relation == "at least" else count < bound


# ---- keywords and letters


def _keywords(reply: str, keywords: list[str]) -> bool:
    return all(word.casefold() in reply.casefold() for word in keywords)


def _keyword_count(reply: str, keyword: str, relation: str, frequency: int) -> bool:
    return _compare(reply.casefold().count(keyword.casefold()), relation, frequency)


def _forbidden(reply: str, forbidden_words: list[str]) -> bool:
    return not any(
        re.search(rf"\b{re.escape(word)}\b", reply, re.IGNORECASE) for word in forbidden_words
    )


def _letter_count(reply: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _compare(reply.lower().count(letter.lower()), let_relation, let_frequency)


def _capital_words(reply: str, capital_relation: str, capital_frequency: int) -> bool:
    count = sum(word.isupper() for word in _WORD.findall(reply))
    return _compare(count, capital_relation, capital_frequency)


def _english(reply: str) -> bool:
    return language(reply) in ("en", None)


# ---- lengths


def _words(reply: str, relation: str, num_words: int) -> bool:
    return _compare(len(re.findall(r"\w+", reply)), relation, num_words)


def sentences(text: str) -> list[str]:
    """The sentences of a text; a rest without a full stop is one, an abbreviation ends none."""
    kept = _ABBREVIATION.sub(lambda match: match[0].replace(".", "\0"), text)
    return [part for part in _SENTENCE_END.split(kept) if re.search(r"\w", part)]


def _sentences(reply: str, relation: str, num_sentences: int) -> bool:
    return _compare(len(sentences(reply)), relation, num_sentences)


def _parts(reply: str, divider: str) -> list[str] | None:
    """The parts between dividers; None when one that is not at an end is empty."""
    parts = [part.strip() for part in reply.split(divider)]
    inner = parts[(not parts[0]) : len(parts) - (not parts[-1])]
    return inner if all(inner) else None


def _paragraphs(reply: str, num_paragraphs: int) -> bool:
    parts = _parts(reply, "***")
    return parts is not None and len(parts) == num_paragraphs


def _first_word(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = reply.split("\n\n")
    if sum(bool(part.strip()) for part in paragraphs) != num_paragraphs:
        return False
    words = paragraphs[nth_paragraph - 1].split() if nth_paragraph <= num_paragraphs else []
    first = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0] if words else ""
    return first.lower() == first_word.lower()


# ---- contents and formats


def _placeholders(reply: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\]\n]*\]", reply)) >= num_placeholders


def _postscript(reply: str, postscript_marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    wanted = patterns.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(wanted, reply.lower()) is not None


def _bullets(reply: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", reply, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", reply, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained(reply: str) -> bool:
    return any(choice in reply for choice in CHOICES)


def _highlights(reply: str, num_highlights: int) -> bool:
    single = [text for text in re.findall(r"\*([^\n*]*)\*", reply) if text.strip()]
    double = [text for text in re.findall(r"\*\*([^\n*]*)\*\*", reply) if text.strip()]
    return len(single) + len(double) >= num_highlights


def _sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", reply)) >= num_sections


def _json(reply: str) -> bool:
    bare = re.sub(r"^```(?:json|Json|JSON)?|```$", "", reply.strip())
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


def _title(reply: str) -> bool:
    titles = re.findall(r"<<[^\n]+>>", reply)
    return any(text.lstrip("<").rstrip(">").strip() for text in titles)


def _two_responses(reply: str) -> bool:
    parts = _parts(reply, "******")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _repeats(reply: str, prompt_to_repeat: str) -> bool:
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(reply: str, end_phrase: str) -> bool:
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(reply: str) -> bool:
    text = reply.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


INSTRUCTIONS: dict[str, Callable[..., bool]] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_count,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letter_count,
    "language:response_language": lambda reply, language: _language_is(reply, language),
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda reply: reply.isupper() and _english(reply),
    "change_case:english_lowercase": lambda reply: reply.islower() and _english(reply),
    "punctuation:no_comma": lambda reply: "," not in reply,
}


def _language_is(reply: str, wanted: str) -> bool:
    return language(reply) in (wanted, None)
