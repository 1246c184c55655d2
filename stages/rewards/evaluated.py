"""Is an answer worked out, or the work left to the judge?

`is_evaluated(answer, gold)` refuses equations, sums, integrals, derivatives, functions and the like unless the gold
answer has them too; `restates(answer, question)` finds the question's own expression. Both are plain patterns, linear
in the text, and keep math-verify from paying for the question written out again and from hanging.

Source: the forms that math-verify 0.9 was seen to pay for, or to hang on; tests/hostile_expressions.py lists them.
"""

import re

MAX_DIGITS = 50
MAX_DEPTH = 30

_RELATION = re.compile(r"=|≠|≈|≡|\\n?eq\b|\\ne\b|\\approx|\\equiv|\\sim|\\cong|\\doteq")
_UNEVALUATED = re.compile(
    r"\\(?:sum|prod|i*nt|oint|lim|limsup|liminf|det|gcd|lcm|max|min|sup|inf|arg|operatorname|[dt]?binom|choose|b?mod|pmod|pod"
    r"|[lr]floor|[lr]ceil|boxed|fbox|begin\{[vV]matrix|partial|Gamma|zeta|phantom|[lc]?dots)(?![A-Za-z])"
    r"|\\[dt]?frac ?\{d\} ?\{d ?[a-z]|\.\.\.|!|\*\*|[…⌊⌈∑∏∫]"
    r"|\b(?:gcd|lcm|mod|floor|ceil|max|min|sum|det|or|not|either|maybe)\b",
    re.IGNORECASE,
)
_SUM_OF_NUMBERS = re.compile(r"(?<![\w.^\\)}])[0-9.]+ ?(?:[-+*]|\\cdot|\\times) ?[0-9.]+(?![0-9.]* ?[\w\\(*^/{!.])")
_FUNCTIONS = tuple(
    re.compile(rf"(?:\\|(?<![A-Za-z\\]))(?:{names})(?![A-Za-z]){or_else}")
    for names, or_else in (
        ("(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?", ""),
        ("ln|log|lg|exp", r"|(?<![A-Za-z\\])e ?\^"),
        ("[lr]?vert|abs", r"|\|"),
    )
)
_BIG_POWER = re.compile(
    r"\^ ?(?:\{[^{}]*[0-9]{4}|[0-9]{4}|\{[^{}]*\^|\{[^{}]*\{[^{}]*\^)|\^[^^]{0,60}\}? ?\^ ?\{?[0-9]{2}"
)


def is_evaluated(text: str, gold: str) -> bool:
    """Whether the text is a result, and not an equation or something the judge would have to work out.

    What the gold itself holds is allowed. Bounds on digits, powers and nesting keep math-verify from hanging
    on most of what is left.
    """
    for pattern in (_RELATION, _UNEVALUATED):
        known = set(pattern.findall(gold))
        if any(found not in known for found in pattern.findall(text)):
            return False
    for pattern in (_BIG_POWER, _SUM_OF_NUMBERS, *_FUNCTIONS):
        if pattern.search(text) and not pattern.search(gold):
            return False
    return not digit_run_too_long(text) and _depth(text) <= MAX_DEPTH


def restates(text: str, question: str) -> bool:
    """Whether the answer is an expression that the question holds, as `x^2+x-6` is for "Factor $x^2+x-6$".

    Both as `math_answer.squeeze` writes them, so that spaces make no difference.
    """
    if len(text) < 3 or not re.search(r"[-+*/^\\]", text):
        return False
    start = question.find(text)
    around = question[max(0, start - 1) : start] + question[start + len(text) :][:1]
    return start >= 0 and not re.search(r"[\w+*/^(){}\\-]", around)


def digit_run_too_long(text: str) -> bool:
    """Whether a number of more than MAX_DIGITS digits stands in the text."""
    return re.search(rf"[0-9]{{{MAX_DIGITS + 1}}}", text) is not None


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest
