"""Words and their language, told by script: the measure behind language consistency.

Reads any text; gives the share of its words that belong to the wanted language (`language_share`), or its
pieces for counting (`units`).

Paper: DeepSeek-R1, section 2.3.2: language consistency = words of the target language / words. How we differ:
the paper does not say how a word's language is told. We go by script, word by word, which is exact and free
for English against Chinese (a word of Latin letters; a Chinese character counts as one word), sees mixing
inside a sentence, and can not be talked round by its context. It can not tell English from French.

Neutral, counted on neither side: numbers, symbols, LaTeX commands, single letters (they name variables) and
the few function names that mathematics writes alike in every language.
"""

import re

from pipeline.errors import DataError

HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a"
_NO_LETTERS = "\u249c-\u24e9\u2800-\u28ff\U0001f110-\U0001f189"  # letters in circles and Braille are signs to Python

_LATEX_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z*]{1,20}\}|\\[A-Za-z]+")
_WORDS = {
    "zh": re.compile(rf"[{HAN}]"),
    "en": re.compile(rf"[{LATIN}]{{2,}}"),  # a single letter names a variable
    "other": re.compile(rf"(?:[^\W\d_{HAN}{LATIN}]|[{_NO_LETTERS}])+"),
}
_MATHS_NAMES = "sin cos tan cot sec csc log ln exp lim max min mod gcd lcm det sqrt pi cm mm km kg"
_NEUTRAL = frozenset(_MATHS_NAMES.split())

_UNSEEN = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f]")

# Runs without a space are cut, so that "aaaa…" is many equal pieces and not one very long word.
_UNIT = re.compile(rf"[{HAN}]|[^\s{HAN}]{{1,24}}")

LANGUAGES = ("en", "zh")


def language_share(text: str, language: str) -> float | None:
    """Share of the text's words that are in the language, in [0, 1]; None if it holds no word of any language.

    Args:
        text: any text; LaTeX commands do not count.
        language: `en` or `zh`. Raises DataError for another one: a problem's language is data, not model
        text.
    """
    if language not in LANGUAGES:
        raise DataError(
            f"no script is known for the language {language!r}; known: {', '.join(LANGUAGES)}",
            hint="fix the column `language` in the data card",
        )
    counts = _word_counts(_LATEX_COMMAND.sub(" ", seen(text)))
    return counts[language] / total if (total := sum(counts.values())) else None


def _word_counts(text: str) -> dict[str, int]:
    """Words by kind. One search for each kind: long traces are measured by the million, and a loop would be slow."""
    found = {kind: words.findall(text) for kind, words in _WORDS.items()}
    found["en"] = [word for word in found["en"] if word.lower() not in _NEUTRAL]
    return {kind: len(words) for kind, words in found.items()}


def units(text: str) -> list[str]:
    """The text in countable pieces, in order: words between spaces, and each Chinese character by itself."""
    return _UNIT.findall(seen(text))


def seen(text: str) -> str:
    """The text without signs that have no width, in which a word could hide."""
    return text if text.isascii() else _UNSEEN.sub("", text)


def count_words(text: str) -> int:
    """How many pieces carry a letter or a digit: words in English, characters in Chinese."""
    return sum(any(char.isalnum() for char in piece) for piece in re.findall(rf"[{HAN}]|[^\s{HAN}]+", text))
