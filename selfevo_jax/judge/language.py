"""Which language a reply is in: by its script, then by the letters and small words of the language.

Knows the languages that IFEval asks for and their likely confusions, not all that there are.
"""

import re
import unicodedata
from collections import Counter

# Script name, as Unicode character names begin -> languages written in it that are told apart.
SCRIPTS = {
    "KANNADA": ("kn",), "GURMUKHI": ("pa",), "GUJARATI": ("gu",), "TELUGU": ("te",),
    "TAMIL": ("ta",), "BENGALI": ("bn",), "MALAYALAM": ("ml",), "THAI": ("th",), "HEBREW": ("he",),
    "GREEK": ("el",), "HANGUL": ("ko",), "HIRAGANA": ("ja",), "KATAKANA": ("ja",), "CJK": ("zh",),
    "DEVANAGARI": ("hi", "mr", "ne"), "ARABIC": ("ar", "fa", "ur"), "CYRILLIC": ("ru", "bg", "uk"),
    "LATIN": ("en", "de", "es", "fi", "fr", "it", "nl", "pl", "pt", "sv", "sw", "tr", "vi"),
}  # fmt: skip

# Small words that are frequent in one language and not, or less, in its neighbours.
WORDS = {
    "hi": "है हैं में और के की का को से यह नहीं हम मैं आप था एक पर लिए",
    "mr": "आहे आहेत आणि मध्ये चा ची चे नाही मी तो ती हे हा ही होते आम्ही तुम्ही एक पण साठी",
    "ne": "छ छन् र मा को हो यो भने गर्न थियो हुन्छ लागि तर पनि",
    "ar": "في من على إلى هذا هذه التي الذي أن هو كان لا ما مع عن ذلك لم أو",
    "fa": "است و در به از که این را با برای آن می های نیست شما ما یک هم تا بود",
    "ur": "ہے ہیں میں اور کے کی کا کو سے یہ نہیں ایک پر کہ نے تھا",
    "ru": "и в не на что я с он как это по но они мы все так для вы из есть был",
    "bg": "и на да се не от за е са по това с който като той ще но ли съм има много във",
    "uk": "і в не на що я з він як це та але ми все для ви є був до",
    "en": "the of and to in is that it for was on are as with be this have not you i at by from",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine ich es",
    "es": "de la que el en y los se del las un por con una su para es al lo como más pero",
    "fi": "ja on ei se että oli hän en mutta ovat kun niin myös joka sen tai kuin",
    "fr": "de la le et les des en un du une que est pour qui dans il au ce pas je vous nous",
    "it": "di e il la che in un è per una non sono con del si le da della gli come ma più",
    "nl": "de het een en van in is dat op te zijn met voor niet die er ook aan maar",
    "pl": "w i na z się nie do to że jest o jak po za od są ale dla",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como é ao",
    "sv": "och i att det som en på är av för med den till inte har ett om jag",
    "sw": "na ya wa kwa ni katika za la kuwa cha hii yake kama au lakini sana huu watu mimi si",
    "tr": "ve bir bu da de için ile çok olarak daha olan gibi ama ne var değil",
    "vi": "và của là có không được một trong cho với người này các đã những để khi tôi rất",
}
WORDS_OF = {language: frozenset(words.split()) for language, words in WORDS.items()}
LETTERS = {
    "mr": "ळ", "fa": "پچژگیک", "ur": "ٹڈڑںےہ", "ar": "ةىيك", "ru": "ыэё", "uk": "іїєґ", "bg": "ъ",
    "vi": "đơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ", "de": "ßäöü", "fr": "çœèê",
    "pt": "ãõç", "es": "ñ¿¡", "it": "ìò", "tr": "ışğ", "pl": "łąęśżźćń", "sv": "å", "fi": "ä",
}  # fmt: skip


def language(text: str) -> str | None:
    """The ISO 639-1 code of the language a text is most likely in; None without any letter."""
    script = _script(text)
    if script is None:
        return None
    choices = SCRIPTS.get(script)
    if choices is None:
        return "other"
    return choices[0] if len(choices) == 1 else max(choices, key=lambda code: _score(text, code))


def _script(text: str) -> str | None:
    """The script of most letters. Japanese is told from Chinese by any kana."""
    letters = [x for x in text[:5000] if x.isalpha()]
    counts = Counter(unicodedata.name(x, "?").split()[0] for x in letters)
    if counts["CJK"] and counts["HIRAGANA"] + counts["KATAKANA"]:
        return "HIRAGANA"
    return counts.most_common(1)[0][0] if counts else None


def _score(text: str, code: str) -> float:
    """Share of words that are the language's own small words, plus that of its own letters."""
    text = text[:5000].casefold()
    words = re.findall(r"[^\W\d_][^\s\d.,;:!?\"()«»।]*", text)
    small = sum(word in WORDS_OF[code] for word in words)
    own = sum(text.count(letter) for letter in LETTERS.get(code, ""))
    return (small + 0.5 * own) / max(len(words), 1)
