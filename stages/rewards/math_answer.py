r"""Mathematical answers: what our own rules can decide, and what goes on to math-verify.

`decide(answer, gold, prompt)` gives `right` or `wrong`, or None: ask math-verify (in `sandbox.py`).

The rules, in order:
1. When the gold is a number, the answer must be one too: an integer, decimal, fraction, mixed number or power
   of ten, with thousands marks, a currency sign or a unit. Both are exact fractions, and the verdict is
   final. So the question written out again (`12\times17`, `\sum_{i=1}^{100} i`) is no answer, and nothing
   here can take long. A unit may be left out. If the gold has none, one may be added that is well known or that the
   question speaks of, so that no other word hides there ("42 forty-three"); two different units are wrong.
   A percent sign changes the value, so it may be added only if the question speaks of percent.
2. When the gold is a word or a letter (Evelyn, (C)), the answer must be that word. Letters keep their case.
3. Otherwise equal text is right. Any other text must look evaluated (`evaluated.py`) and must not be an expression
   of the question. Another value at random points (`numeric.py`) is wrong, and so are other brackets; for
   the rest math-verify decides.

Paper: DeepSeek-R1, section 2.2.2. How we differ from math-verify alone: no equations (it pays `0=42` for 42),
no sums, integrals, binomials, factorials, derivatives or functions to be worked out by the judge unless the gold
answer has them too, exact values (it rounds to six places), "42 or 43" and "42 cm" for 42 m are wrong, a fraction in
lowest terms only, an interval is no point. What it can not see is a form the question does not show: for "factor" any
product that is equal, and not the question's own text, is right.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd

from stages import chat
from stages.rewards import numeric
from stages.rewards.evaluated import digit_run_too_long, is_evaluated, restates

MAX_CHARS = 400

_SIGNS = str.maketrans("０１２３４５６７８９．，－＋％／（）−–：", "0123456789.,-+%/()--:")
_NOTHING = re.compile(r"(?<!\\)\\!")  # LaTeX's negative space
_SPACES = re.compile(r"(?:\s|(?<!\\)\\[,;: ]|\\q?quad\b|~)+")
_PLAIN_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])|π")
_ROOT_SIGN = re.compile(r"√ ?([0-9]+|[A-Za-z])")
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore),? )?(?:the )?(?:final )?answer(?: is)? ?:? ?|答案(?:是|为|：|:)? ?", re.IGNORECASE
)
_FENCES = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"))

_FRACTION = re.compile(r"\\[dtc]?frac ?(?:\{ ?([+-]?[0-9]{1,50}) ?\} ?\{ ?([0-9]{1,50}) ?\}|([0-9]) ?([0-9]))")
_DECIMAL = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\ )[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_TIMES = r"\ ?(?:\\times|\\cdot|×|\*)\ ?"
_POWER = r"(?:\{\ ?(?P<power>[+-]?[0-9]{1,2})\ ?\}|(?P<digit>[0-9]))"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\ ?(?P<currency>\\?\$|[€£¥￥₹])?\ ?
    (?:(?P<whole>[0-9]+)\ (?P<part>[0-9]+/[0-9]+)
      |(?P<over>[0-9]+\ ?/\ ?[0-9]+)
      |(?P<decimal>{_DECIMAL})(?:{_TIMES}10\ ?\^\ ?{_POWER}|e(?P<e>[+-]?[0-9]{{1,2}}))?)
    \ ?(?P<unit>.*)""",
    re.VERBOSE | re.IGNORECASE,
)
_UNIT_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|textbf) ?\{([^{}]*)\}")
_UNIT = re.compile(r"[^\W\d_]+\.?(?:[ /-][^\W\d_]+\.?){0,2}(?: ?\^ ?(?:[23]|\{[23]\}))?|[°%]")
_SHORT_UNITS = frozenset("mgslLhNJWVAKCF个元只人天块米克岁次本")
_SPELLINGS = """
    dollar $; euro €; pound £; yuan ¥ ￥ 元; cent; percent %; degree °; radian rad
    meter metre m 米; kilometer kilometre km; centimeter centimetre cm; millimeter millimetre mm
    inch inche in; foot feet ft; yard yd; mile mi; gram g; kilogram kg; liter litre l L; milliliter millilitre ml mL
    square sq; cubic; second sec s; minute min; hour hr h; day 天; week; month; year; unit; per; people person 人
"""
_UNIT_NAMES = {one: names.split()[0] for names in re.split("[;\n]", _SPELLINGS.strip()) for one in names.split()}
"""Every spelling of a well-known unit, and the name it goes by here."""
# Words after a number that change it or take it back, and words that are not units.
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|to|than|is|if|but|minus|plus|times|over|mod|base|half|halves|pi|sqrt|sin|cos|tan|log|ln|exp|inf|infinity"
    r"|squared|cubed|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|(?:hundred|thousand|\w*illion)(?:s|ths?)?|dozens?|thirds?|quarters?"
    r"|(?:four|fif|six|seven|eigh|nin|ten)ths?|wrong|maybe)\b"
    r"|[零一二两三四五六七八九十百千万亿兆半倍或不和到成折分点错]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """An exact value and the unit that was written with it ("" if none)."""

    value: Fraction
    unit: str


def decide(answer: str, gold: str, prompt: str) -> bool | None:
    """Whether the answer is right, if our rules can tell; None = ask math-verify. Never raises; time linear
    in the text.
    """
    text, reference = clean(answer), clean(gold)
    if not text or len(text) > MAX_CHARS or not text.isprintable():
        return False
    gold_number = read_number(reference)
    if gold_number:
        number = read_number(text)
        return number is not None and _same_number(number, gold_number, prompt)
    word = _word(reference)
    if word:
        return _word(text) == word
    if squeeze(text) == squeeze(reference):
        return True
    if not is_evaluated(text, reference) or restates(squeeze(text), squeeze(_SPACES.sub(" ", prompt))):
        return False
    return False if numeric.same_value(text, reference) is False else None


def canonical(answer: str) -> str:
    """One spelling for answers that are one and the same, for a majority vote: the value of a number (without
    its unit), a word, or the text without what LaTeX sets alike.
    """
    text = clean(answer)
    number = read_number(text)
    return str(number.value) if number else _word(text) or squeeze(text)


def needs_no_library(reference: str) -> bool:
    """Whether a cleaned gold is a number or a word, so that our rules alone decide every answer to it."""
    return read_number(reference) is not None or bool(_word(reference))


@lru_cache(maxsize=4096)
def clean(text: str) -> str:
    r"""The bare answer: without white space around it, `$`, one `\boxed{}` or bold around it, a lead-in and a
    full stop.
    """
    if len(text) > 2 * MAX_CHARS:
        return text
    text = _SPACES.sub(" ", _NOTHING.sub("", text.translate(_SIGNS))).strip()
    text = _ROOT_SIGN.sub(r"\\sqrt{\1}", _PLAIN_PI.sub(r"\\pi ", text))
    for _ in range(4):  # the wrappings come in any order, and seldom more than three deep
        before = text
        lead_in = _LEAD_IN.match(text)
        text = (text[lead_in.end() :] if lead_in else text).strip()
        text = text[:-1].strip() if text.endswith((".", "。")) else text
        text = _unwrap(text)
        if text == before:
            break
    return text


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """The number that is the whole text, with its unit; None if the text is anything else."""
    if len(text) > MAX_CHARS or digit_run_too_long(text):
        return None
    plain = _FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]}", text).strip()
    plain = re.sub(r"^([+-]) ", r"\1", " ".join(plain.split()))
    match = _NUMBER.fullmatch(plain)
    if not match:
        return None
    unit = _unit(match["unit"], match["currency"] or "")
    value = _value(match)
    return None if unit is None or value is None else Number(value, unit)


def _unwrap(text: str) -> str:
    for opening, closing in _FENCES:
        inside = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) and opening not in inside:
            return inside.strip()
    if text.startswith(r"\boxed{") and text.endswith("}") and chat.boxed(text) == text[len(r"\boxed{") : -1]:
        return text[len(r"\boxed{") : -1].strip()
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    """The value; None for what is not worked out: a fraction not in lowest terms, a power of ten with 12 before it."""
    fraction = Fraction(0)
    if match["over"] or match["part"]:
        over, under = map(int, (match["over"] or match["part"]).split("/"))
        if under < 2 or gcd(over, under) != 1:
            return None
        fraction = Fraction(over, under)
    if match["decimal"]:
        digits = re.sub(r"[ ,{}]", "", match["decimal"])
        power = match["power"] or match["digit"] or match["e"]
        if power and not re.match(r"[1-9](?:\.|$)", digits):
            return None
        fraction = Fraction(digits) * Fraction(10) ** int(power or 0)
    value = fraction + int(match["whole"] or 0)
    return -value if match["sign"] == "-" else value


def _unit(text: str, currency: str) -> str | None:
    """The unit in one spelling; "" if there is none; None if this is not a unit."""
    text = _UNIT_TEXT.sub(r" \1 ", text)
    text = (
        re.sub(r"\^ ?(?:\\circ|\{ ?\\circ ?\})|\\(?:degree|circ)\b", "°", text).replace(r"\%", "%").replace(r"\$", "$")
    )
    text = " ".join(text.replace("²", "^2").replace("³", "^3").split())
    if currency and text:
        return None
    text = text or currency.lstrip("\\")
    if text in _UNIT_NAMES or not text:
        return _UNIT_NAMES.get(text, "")
    if not _UNIT.fullmatch(text) or _NO_UNIT.search(text) or (len(text) == 1 and text not in _SHORT_UNITS):
        return None
    text = re.sub(r"[^\W\d_]+\.?", lambda word: _unit_name(word[0]), text)
    text = re.sub(r" ?\^ ?\{?([23])\}?", r"^\1", text)
    return re.sub(r"^square (.+)", r"\1^2", re.sub(r"^cubic (.+)", r"\1^3", text))


def _unit_name(word: str) -> str:
    if len(word) > 2:
        word = word.lower().rstrip(".").removesuffix("s")
    return _UNIT_NAMES.get(word, word)


def _is_spoken_of(unit: str, prompt: str) -> bool:
    """Whether every word of a unit is well known, or stands in the question in any number."""
    asked = set(map(_stem, re.findall(r"[^\W\d_]+", prompt)))
    known = {*_SHORT_UNITS, *_UNIT_NAMES.values()}
    words = re.findall(r"[^\W\d_]+", unit)
    return all(word in known or _stem(word) in asked or (not word.isascii() and word in prompt) for word in words)


def _stem(word: str) -> str:
    return re.sub(r"(?:ies|es|s|y|e)$", "", word.lower())


def _same_number(number: Number, gold: Number, prompt: str) -> bool:
    if number.value != gold.value:
        return False
    if number.unit == "percent" and not gold.unit:
        return "%" in prompt or "percent" in prompt.lower() or "百分" in prompt
    if number.unit and not gold.unit:
        return _is_spoken_of(number.unit, prompt)
    return not number.unit or number.unit == gold.unit


def _word(text: str) -> str:
    """The text as a word to compare, if it is a word in `\\text{}`, a longer word, or one letter; else ""."""
    inner = _UNIT_TEXT.fullmatch(text)
    word = (inner[1] if inner else text).strip()
    word = word[1:-1] if re.fullmatch(r"\([A-Za-z]\)", word) else word
    if len(word) == 1:
        return word if word.isalpha() and word.isascii() else ""
    is_word = all(part.isalpha() for part in word.split()) and (bool(inner) or len(word) > 3)
    return " ".join(word.casefold().split()) if is_word else ""


def squeeze(text: str) -> str:
    """One spelling for what LaTeX sets alike: spaces that do not part two digits, sizes of brackets and fractions."""
    text = re.sub(r"\\(?:left|right|displaystyle)(?![A-Za-z])", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", text)
