"""IFEval: each instruction followed and broken by replies made by hand; every row is known."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.judge.ifeval import INSTRUCTIONS, check, sentences
from selfevo_jax.judge.language import language

EXISTENCE, FREQUENCY = "keywords:existence", "keywords:frequency"
LETTERS, FORBIDDEN = "keywords:letter_frequency", "keywords:forbidden_words"
LANGUAGE, SENTENCES = "language:response_language", "length_constraints:number_sentences"
PARAGRAPHS, WORDS = "length_constraints:number_paragraphs", "length_constraints:number_words"
NTH = "length_constraints:nth_paragraph_first_word"
PLACEHOLDERS, POSTSCRIPT = "detectable_content:number_placeholders", "detectable_content:postscript"
BULLETS, CHOICE = "detectable_format:number_bullet_lists", "detectable_format:constrained_response"
HIGHLIGHTS = "detectable_format:number_highlighted_sections"
SECTIONS, JSON = "detectable_format:multiple_sections", "detectable_format:json_format"
TITLE, TWO = "detectable_format:title", "combination:two_responses"
REPEAT, END = "combination:repeat_prompt", "startend:end_checker"
QUOTED, CAPITALS = "startend:quotation", "change_case:capital_word_frequency"
UPPER, LOWER = "change_case:english_capital", "change_case:english_lowercase"
COMMA = "punctuation:no_comma"
ENGLISH = "the cat is on the mat and it was not here"

# (instruction, arguments, a reply that follows, a reply that does not)
CASES = [
    (EXISTENCE, {"keywords": ["mom", "mother"]}, "My Mother is MOM", "my mum is a mother"),
    (FREQUENCY, {"keyword": "war", "relation": "at least", "frequency": 2}, "War and war", "a war"),
    (FREQUENCY, {"keyword": "war", "relation": "less than", "frequency": 2}, "war", "war War"),
    (FORBIDDEN, {"forbidden_words": ["rock"]}, "rocket science", "It Rocks: Rock!"),
    (LETTERS, {"letter": "t", "let_relation": "less than", "let_frequency": 2}, "to", "Tot"),
    (LETTERS, {"letter": "#", "let_relation": "at least", "let_frequency": 2}, "# ##", "# a"),
    (LANGUAGE, {"language": "hi"}, "यह एक किताब है और मैं हूँ।", "A book."),
    (SENTENCES, {"relation": "less than", "num_sentences": 3}, "One. Two!", "One. Two! Three"),
    (SENTENCES, {"relation": "at least", "num_sentences": 2}, "Dr. X came. He left.", "i.e. 3"),
    (PARAGRAPHS, {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    (PARAGRAPHS, {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n***\n***\nb"),
    (WORDS, {"relation": "at least", "num_words": 3}, "one, two-three", "one two"),
    (WORDS, {"relation": "less than", "num_words": 3}, "it is", "it's so"),
    (NTH, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "rest"},
     "a\n\n\"Rest, b", "Rest\n\na"),
    (NTH, {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
     "A b\n\nc", "A b\n\nc\n\nd"),
    (PLACEHOLDERS, {"num_placeholders": 2}, "[name] at [address]", "[name\n] (address) []"),
    (POSTSCRIPT, {"postscript_marker": "P.S."}, "Bye\np. s. more", "Bye\nPS more"),
    (POSTSCRIPT, {"postscript_marker": "P.P.S"}, "Bye\nP.P.S. more", "Bye\nP.S. more"),
    (BULLETS, {"num_bullets": 2}, "* a\ntext\n - b", "* a\n* b\n* c"),
    (BULLETS, {"num_bullets": 1}, "* a\n**bold** b", "** a"),
    (CHOICE, {}, "Well. My answer is maybe.", "My answer is: maybe"),
    (HIGHLIGHTS, {"num_highlights": 2}, "*a* and *b c*", "*a* and ** and * *"),
    (SECTIONS, {"section_spliter": "SECTION", "num_sections": 2},
     "SECTION 1\na\nSECTION 2", "SECTION 1\nSection 2"),
    (JSON, {}, "```json\n{\"a\": [1]}\n```", "{\"a\": [1]} is it"),
    (TITLE, {}, "<<A song>>\nla", "<< >>\nla <A song>"),
    (TWO, {}, "a\n******\nb", "a\n******\na"),
    (TWO, {}, "******a\n******\nb", "a ****** b ****** c"),
    (REPEAT, {"prompt_to_repeat": "Say Hi. "}, "say hi. Hi!", "Sure: say hi. Hi!"),
    (END, {"end_phrase": "Any questions?"}, "So. any questions?\"", "Any questions? No."),
    (QUOTED, {}, ' "a b" ', '"a" b'),
    (CAPITALS, {"capital_relation": "at least", "capital_frequency": 2},
     "NASA and I", "Nasa and I"),
    (CAPITALS, {"capital_relation": "less than", "capital_frequency": 2}, "So I say", "NO, I SAY"),
    (UPPER, {}, ENGLISH.upper(), ENGLISH),
    (UPPER, {}, ENGLISH.upper() + " 7!", "DAS IST NICHT DIE KATZE UND DER HUND"),
    (LOWER, {}, ENGLISH, ENGLISH.capitalize()),
    (COMMA, {}, "a; b", "a, b"),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, good, bad", CASES)
def test_each_instruction_followed_and_broken(name, arguments, good, bad):
    row = {"key": 1, "instruction_id_list": [name, name], "kwargs": [arguments, arguments]}
    assert check(row, good) == (True, True)
    assert check(row, bad) == (False, False)
    assert check(row, " \n") == (False, False)


def test_every_instruction_is_tested_and_every_row_known(shared_data):
    assert {case[0] for case in CASES} == set(INSTRUCTIONS)
    lines = (shared_data / "ifeval/input_data.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 441
    used = {name for row in rows for name in row["instruction_id_list"]}
    assert used == set(INSTRUCTIONS)
    for row in rows:
        for loose in (False, True):
            assert len(check(row, row["prompt"], loose=loose)) == len(row["kwargs"])


def test_repeating_the_request_follows_what_asks_for_it(shared_data):
    lines = (shared_data / "ifeval/input_data.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if REPEAT in row["instruction_id_list"]]
    for row in rows:
        place = row["instruction_id_list"].index(REPEAT)
        assert check(row, row["kwargs"][place]["prompt_to_repeat"] + "\nDone.")[place]
        assert not check(row, "Of course.\n" + row["prompt"])[place]


def test_loose_drops_a_first_line_a_last_line_and_stars():
    def row(name, **arguments):
        return {"key": 1, "instruction_id_list": [name], "kwargs": [arguments]}

    title = row(END, end_phrase="the end.")
    for reply in ("The end.\n\nHope this helps!", "The **end.**"):
        assert (check(title, reply), check(title, reply, loose=True)) == ((False,), (True,))
    quoted = row(QUOTED)
    reply = 'Here:\n"a"\nBye'
    assert (check(quoted, reply), check(quoted, reply, loose=True)) == ((False,), (True,))
    assert check(row(COMMA), "a\nb, c\nd", loose=True) == (False,)
    assert check(row(COMMA), "a, b", loose=True) == (False,)  # nothing left is not followed


def test_mistakes_in_a_row_are_named():
    def row(name, arguments):
        return {"key": 77, "instruction_id_list": [name], "kwargs": [arguments]}

    with pytest.raises(UserError, match="77.*keywords:exist'"):
        check(row("keywords:exist", {}), "a")
    with pytest.raises(UserError, match="77.*arguments"):
        check(row(WORDS, {"relation": "at least"}), "a")
    with pytest.raises(UserError, match="'about'"):
        check(row(WORDS, {"relation": "about", "num_words": 3}), "a")
    assert check(row(COMMA, {"num_words": None}), "a") == (True,)  # other files fill with nulls


def test_sentences():
    text = 'Mr. A. Smith paid $3.50 at x.com. Why? "Because!" he said... Then e.g. this'
    assert len(sentences(text)) == 5  # as NLTK does, "he said" stands alone
    assert sentences("...") == [] and len(sentences("No stop")) == 1


# Article 1 of the Universal Declaration of Human Rights, its beginning or all of it.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity "
          "and rights. They are endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und "
          "Rechten geboren. Sie sind mit Vernunft begabt.",
    "fr": "Tous les êtres humains naissent libres et égaux en "
          "dignité et en droits. Ils sont doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en "
          "dignidad y derechos y, dotados como están de razón.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in "
          "dignità e diritti. Essi sono dotati di ragione.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e "
          "em direitos. Dotados de razão e de consciência.",
    "vi": "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "sw": "Watu wote wamezaliwa huru, hadhi na haki zao ni "
          "sawa. Wote wamejaliwa akili na dhamiri.",
    "ru": "Все люди рождаются свободными и равными в своем "
          "достоинстве и правах. Они наделены разумом и совестью.",
    "bg": "Всички хора се раждат свободни и равни по достойнство "
          "и права. Те са надарени с разум и съвест.",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا.",
    "fa": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में "
          "जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "mr": "सर्व मानवी व्यक्ति जन्मतःच स्वतंत्र आहेत व "
          "त्यांना समान प्रतिष्ठा व समान अधिकार आहेत.",
    "kn": "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ ਅਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ.",
    "gu": "પ્રતિષ્ઠા અને અધિકારોની દૃષ્ટિએ સર્વ માનવો જન્મથી સ્વતંત્ર અને સમાન હોય છે.",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును "
          "జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由,在尊严和权利上一律平等。",
}  # fmt: skip


@pytest.mark.parametrize("code", ARTICLE)
def test_language(code):
    assert language(ARTICLE[code]) == code
    assert language(ARTICLE[code].upper()) == code


def test_no_letters_is_no_language():
    assert language("12 + 3 = 15!") is None and language("") is None
    assert language("ⴰⵣⵓⵍ") == "other"
