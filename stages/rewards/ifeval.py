"""IFEval's demands by rules: does a text have the form that was asked for?

`follows(text, gold)` reads a text and the gold `{"instruction_id_list": [...], "kwargs": [...]}` (the settings stand
beside each id); gives whether every demand is met, None for a gold that no rule here can judge. `met(text, gold)` says
it of each demand, strictly and loosely, for measuring.

Source: "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911), its 25 kinds, and its
strict and loose accuracy. How we differ: sentences are counted by end marks, and words by runs of letters and
digits, where the original uses NLTK; a keyword is a text and no pattern; a language is told by its script (so Hindi
is not told from Marathi), and among those in Latin letters by which one's frequent words stand there most, where the
original asks a library. A text without any letter or digit meets nothing, signs of no width hide no word, and of
"My answer is yes", "no" and "maybe" one may be said.

All work is linear in the length of the text and no text raises.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from stages.language import LATIN, seen

_WORD = re.compile(r"\w+")
_MARKS = ".!?。！？।॥؟"
_SENTENCE_END = re.compile(rf"(?<![{_MARKS}])[{_MARKS}]++[\"'”’)\]]*+(?=\s|$)|[。！？]")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|u\.s|[a-z])\.", re.IGNORECASE)
_SCRIPTS = {
    "ar": "\u0600-\u06ff",
    "bn": "\u0980-\u09ff",
    "gu": "\u0a80-\u0aff",
    "hi": "\u0900-\u097f",
    "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "kn": "\u0c80-\u0cff",
    "ko": "\uac00-\ud7af",
    "pa": "\u0a00-\u0a7f",
    "ru": "\u0400-\u04ff",
    "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f",
    "th": "\u0e00-\u0e7f",
    "zh": "\u4e00-\u9fff",
}
_SCRIPT_OF = {code: code for code in _SCRIPTS} | {
    "bg": "ru",
    "fa": "ar",
    "mr": "hi",
    "ne": "hi",
    "uk": "ru",
    "ur": "ar",
}
_FREQUENT = {
    "de": "der die und das ist nicht ein eine zu mit ich sie es den von auf für",
    "en": "the of and to in is that it for was on with as you are this",
    "es": "de la que el en y los se del las por un con una para es",
    "fi": "ja on ei että se hän oli mutta kun niin ovat kuin myös tai joka",
    "fr": "le la les de et des en un une est que pour dans qui pas sur",
    "it": "di che e la il un per una sono è con non del della gli",
    "pt": "de que o e do da em um para é com não uma os no na",
    "sw": "ya na wa kwa ni katika za la kuwa hii cha yake kama hiyo pia",
    "vi": "và của là có được cho không trong các một những với này người khi",
}
_FREQUENT_SETS = {code: frozenset(words.split()) for code, words in _FREQUENT.items()}


def follows(text: str, gold: str) -> bool | None:
    """Whether the text meets every demand; None if the gold holds none, or one that is not known."""
    found = met(text, gold)
    return None if found is None else all(found.strict)


class Met(NamedTuple):
    """Whether each demand of a prompt is met, in order."""

    strict: list[bool]
    loose: list[bool]
    """By the text, or by what is left without its first line, its last line or its asterisks."""


def met(text: str, gold: str) -> Met | None:
    """What of its demands a text meets; None where `follows` gives None."""
    demands = _demands(gold)
    if demands is None:
        return None
    said = text.strip()
    loosely = dict.fromkeys((said, *_loosened(said)))

    def any_meets(texts: Iterable[str]) -> list[bool]:
        texts = [one for one in texts if any(map(str.isalnum, one))]
        return [any(RULES[name][1](one, **settings) for one in texts) for name, settings in demands]

    return Met(any_meets([said]), any_meets(loosely))


def _loosened(text: str) -> Iterator[str]:
    """The seven texts that loose accuracy tries as well: an introduction, a farewell and markup do no harm there."""
    lines = text.split("\n")
    for part in (lines, lines[1:], lines[:-1], lines[1:-1]):
        shorter = "\n".join(part).strip()
        yield from (shorter, shorter.replace("*", ""))


@lru_cache(maxsize=4096)
def _demands(gold: str) -> tuple[tuple[str, dict[str, Any]], ...] | None:
    try:
        found = json.loads(gold)
        pairs = [(name, dict(given)) for name, given in zip(found["instruction_id_list"], found["kwargs"], strict=True)]
        known = [(name, {key: given[key] for key in RULES[name][0]}) for name, given in pairs]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return tuple(known) if known and all(_is_meant(settings) for _, settings in known) else None


def _is_meant(settings: dict[str, Any]) -> bool:
    """Whether each value is of the kind that the rules can use."""
    return all(_kind_of(key)(value) for key, value in settings.items())


def _kind_of(key: str) -> Callable[[Any], bool]:
    if key.endswith("relation"):
        return lambda value: value in ("at least", "less than")
    if key in ("keywords", "forbidden_words"):
        return lambda value: isinstance(value, list) and all(isinstance(word, str) and word for word in value)
    if key.startswith("num_") or key.endswith("frequency") or key == "nth_paragraph":
        return lambda value: isinstance(value, int)
    return lambda value: isinstance(value, str) and bool(value.strip())


def _compare(count: int, relation: str, wanted: int) -> bool:
    return count >= wanted if relation == "at least" else count < wanted


def _capital_words(text: str, capital_relation: str, capital_frequency: int) -> bool:
    count = sum(word.isupper() for word in _WORD.findall(text))
    return _compare(count, capital_relation, capital_frequency)


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.casefold().startswith(prompt_to_repeat.strip().casefold())


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    whole = [part for part in parts if part]
    gaps = any(not part for part in parts[1:-1])
    return len(whole) == 2 and whole[0] != whole[1] and not gaps


def _has_postscript(text: str, postscript_marker: str) -> bool:
    letters = [letter for letter in postscript_marker.casefold() if letter.isalpha()]
    return re.search(r"(?<!\w)" + r"\.\s?".join(map(re.escape, letters)), text.casefold()) is not None


def _is_json(text: str) -> bool:
    bare = text.removeprefix("```").removesuffix("```")
    try:
        json.loads(bare[4:] if bare[:4].casefold() == "json" else bare)
    except (ValueError, RecursionError):
        return False
    return True


def _has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?\d", text)) >= num_sections


def _has_bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[^\S\n]*(?:\*(?!\*)|-)[^\n]*\S", text, re.MULTILINE)) == num_bullets


def _has_highlights(text: str, num_highlights: int) -> bool:
    found = re.findall(r"\*\*[^*\n]+\*\*|\*[^*\n]+\*", text)
    return sum(bool(part.strip("* ")) for part in found) >= num_highlights


def _has_title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^<>\n]+)>>", text))


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(word.casefold() in text.casefold() for word in keywords)


def _lacks_words(text: str, forbidden_words: Sequence[str]) -> bool:
    words = [rf"\b{re.escape(seen(word))}\b" for word in forbidden_words]
    return not any(re.search(word, seen(text), re.IGNORECASE) for word in words)


def _keyword_count(text: str, keyword: str, relation: str, frequency: int) -> bool:
    return _compare(seen(text).casefold().count(seen(keyword).strip().casefold()), relation, frequency)


def _letter_count(text: str, letter: str, let_relation: str, let_frequency: int) -> bool:
    return _compare(text.casefold().count(letter.strip().casefold()), let_relation, let_frequency)


def _is_in(text: str, language: str) -> bool:
    if language in _SCRIPT_OF:
        has_kana = language != "ja" or re.search("[\u3040-\u30ff]", text) is not None
        return has_kana and _mostly(text, _SCRIPTS[_SCRIPT_OF[language]])
    words = _WORD.findall(text.casefold())
    hits = {code: sum(word in frequent for word in words) for code, frequent in _FREQUENT_SETS.items()}
    return language in hits and hits[language] == max(hits.values()) > 0 and _mostly(text, LATIN)


def _mostly(text: str, letters: str) -> bool:
    """Whether more than half of a text's letters are of these."""
    return 2 * sum(map(str.isalpha, re.findall(f"[{letters}]", text))) > sum(map(str.isalpha, text))


def _paragraphs(text: str, mark: str) -> list[str]:
    """The parts between the marks; an empty one at either end does not count."""
    parts = [part.strip() for part in re.split(mark, text)]
    return parts[not parts[0] : len(parts) - (len(parts) > 1 and not parts[-1])]


def _num_paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = _paragraphs(text, r"\*\*\*")
    return all(parts) and len(parts) == num_paragraphs


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part for part in _paragraphs(text, r"\n\n") if part]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    first = _WORD.search(parts[nth_paragraph - 1])
    return first is not None and first.group().casefold() == first_word.casefold()


def _num_sentences(text: str, relation: str, num_sentences: int) -> bool:
    plain = _ABBREVIATION.sub("x", text)
    ended = len(_SENTENCE_END.findall(plain))
    rest = plain[max((end.end() for end in _SENTENCE_END.finditer(plain)), default=0) :]
    return _compare(ended + any(char.isalnum() for char in rest), relation, num_sentences)


def _num_words(text: str, relation: str, num_words: int) -> bool:
    return _compare(len(_WORD.findall(text)), relation, num_words)


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip("\"'” ").casefold().endswith(end_phrase.strip("\"'” ").casefold())


Rule = Callable[..., bool]
RULES: dict[str, tuple[tuple[str, ...], Rule]] = {
    "change_case:capital_word_frequency": (("capital_relation", "capital_frequency"), _capital_words),
    "change_case:english_capital": ((), lambda text: text.isupper() and _mostly(text, LATIN)),
    "change_case:english_lowercase": ((), lambda text: text.islower() and _mostly(text, LATIN)),
    "combination:repeat_prompt": (("prompt_to_repeat",), _repeats_prompt),
    "combination:two_responses": ((), _two_responses),
    "detectable_content:number_placeholders": (
        ("num_placeholders",),
        lambda text, num_placeholders: len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders,
    ),
    "detectable_content:postscript": (("postscript_marker",), _has_postscript),
    "detectable_format:constrained_response": (
        (),
        lambda text: sum(f"My answer is {word}." in text for word in ("yes", "no", "maybe")) == 1,
    ),
    "detectable_format:json_format": ((), _is_json),
    "detectable_format:multiple_sections": (("section_spliter", "num_sections"), _has_sections),
    "detectable_format:number_bullet_lists": (("num_bullets",), _has_bullets),
    "detectable_format:number_highlighted_sections": (("num_highlights",), _has_highlights),
    "detectable_format:title": ((), _has_title),
    "keywords:existence": (("keywords",), _has_keywords),
    "keywords:forbidden_words": (("forbidden_words",), _lacks_words),
    "keywords:frequency": (("keyword", "relation", "frequency"), _keyword_count),
    "keywords:letter_frequency": (("letter", "let_relation", "let_frequency"), _letter_count),
    "language:response_language": (("language",), _is_in),
    "length_constraints:nth_paragraph_first_word": (("num_paragraphs", "nth_paragraph", "first_word"), _nth_paragraph),
    "length_constraints:number_paragraphs": (("num_paragraphs",), _num_paragraphs),
    "length_constraints:number_sentences": (("relation", "num_sentences"), _num_sentences),
    "length_constraints:number_words": (("relation", "num_words"), _num_words),
    "punctuation:no_comma": ((), lambda text: not {",", "，"} & {*text}),
    "startend:end_checker": (("end_phrase",), _ends_with),
    "startend:quotation": ((), lambda text: len(text) > 1 and text[0] == text[-1] == '"'),
}
"""Demand -> the settings that it needs, and the rule."""
