"""Hostile and gaming answers to problems whose gold answer is an expression, a set or a matrix, and other tricks.

Rows as in hostile_completions.py, which takes them in; and three tables of their own: answers that copy the question
(`PROMPTED`), reasoning that hides another language (`LANGUAGES`), and reasoning that goes in circles (`LOOPS`).
"""

from collections.abc import Mapping

RIGHT, WRONG, CANNOT_TELL = "right", "wrong", "cannot_tell"

SET, INTERVAL, POINT, VECTOR = (
    r"\{1, 2\}",
    "[2,5)",
    r"\left(3, \frac{\pi}{2}\right)",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
)
ROOT, POLYNOMIAL, LINE, HARD = r"\sqrt{2}", "x^2+1", "y = 2x + 3", r"|x|+\ln y+\sin z"


def _matrix(rows: int, columns: int, entry: str = "1") -> str:
    return r"\begin{pmatrix} " + r" \\ ".join([" & ".join([entry] * columns)] * rows) + r" \end{pmatrix}"


ANSWERS: Mapping[tuple[str, str], dict[str, str]] = {
    (SET, RIGHT): {
        "the set in another order": r"\{2,1\}",
        "the set as a list": "1, 2",
        "an element named twice": r"\{1,1,2\}",
        "elements with and": r"1 \text{ and } 2",
    },
    (SET, WRONG): {
        "a set that swallows the gold": r"\{1,2,3\}",
        "an interval around the set": "[1,2]",
        "the set as a point": "(1,2)",
        "all real numbers": r"\mathbb{R}",
        "from minus infinity on": r"(-\infty,\infty)",
        "all that is positive": r"\{x : x > 0\}",
        "one element of two": "1",
        "a union with more": r"\{1,2\} \cup \{3\}",
        "one set or another": r"\{1,2\} \text{ or } \{3\}",
        "no element": r"\emptyset",
        "a set that goes on": r"\{1, 2, \ldots\}",
        "membership in more": r"x \in \{1,2,3\}",
        "two sets": r"\{1,2\}, \{3\}",
        "a set of sets": r"\{\{1,2\},\{3\}\}",
        "more in a list": "1,2,3",
        "a set of 130 numbers": r"\{" + ",".join(map(str, range(130))) + r"\}",
        "a set of 3,000 numbers": r"\{" + ",".join(map(str, range(3000))) + r"\}",
    },
    (INTERVAL, RIGHT): {"the interval in two parts": r"[2,3)\cup[3,5)", "membership": r"x\in[2,5)"},
    (INTERVAL, WRONG): {
        "closed at the end": "[2,5]",
        "open at the start": "(2,5)",
        "a wider interval": "[1,6)",
        "the interval and another": r"[2,5) \cup [7,8]",
        "the whole line": r"(-\infty,\infty)",
        "the ends as a set": r"\{2,5\}",
        "the ends alone": "2,5",
        "500 intervals": r"\cup".join(f"({2 * i},{2 * i + 1})" for i in range(500)),
    },
    (POINT, RIGHT): {"pi as a word": "(3,pi/2)", "no brackets": r"3, \frac{\pi}{2}"},
    (POINT, WRONG): {
        "the point and another": r"(3, \frac{\pi}{2}), (0,0)",
        "coordinates exchanged": r"(\frac{\pi}{2},3)",
        "a letter for a coordinate": r"(3,\theta)",
        "a rounded coordinate": "(3,1.5708)",
        "the point as an interval": r"[3,\frac{\pi}{2}]",
        "the point as a set": r"\{3,\frac{\pi}{2}\}",
        "one turn further": r"(3, \frac{5\pi}{2})",
    },
    (VECTOR, RIGHT): {"other brackets around a vector": r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}"},
    (VECTOR, WRONG): {
        "the vector lying": r"\begin{pmatrix} 1 & 2 \end{pmatrix}",
        "the vector upside down": r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}",
        "one row more": r"\begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix}",
        "a matrix of 90 columns": _matrix(1, 90),
        "a matrix of 200 by 200": _matrix(200, 200),
        "an inverse to be worked out": _matrix(6, 6, "x") + "^{-1}",
        "a determinant": r"\det" + _matrix(2, 2, "x"),
    },
    (VECTOR, CANNOT_TELL): {
        "a high power of a matrix": r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}^{99}",
        "a matrix without braces": r"\beginpmatrix1\\2\endpmatrix",
    },
    (ROOT, RIGHT): {
        "plain root": "sqrt(2)",
        "root sign": "√2",
        "not rationalised": r"\frac{2}{\sqrt{2}}",
        "a unit after the root": r"\sqrt{2} \text{ cm}",
        "full-width radicand": r"\sqrt{２}",
    },
    (ROOT, WRONG): {
        "plus or minus": r"\pm\sqrt{2}",
        "root or its negative": r"\sqrt{2} \text{ or } -\sqrt{2}",
        "both roots": r"-\sqrt{2}, \sqrt{2}",
        "rounded to eight places": "1.41421356",
        "about": r"\sqrt{2}\approx 1.41",
        "with dots": r"\sqrt{2}\ldots",
        "an interval around the root": "[1,2]",
        "difference under the root": r"\sqrt{4-2}",
        "sum under the root": r"\sqrt{1+1}",
        "a sine to work out": r"2\sin(\pi/4)",
        "a logarithm to work out": r"\exp(\ln(2)/2)",
        "absolute value": r"|\sqrt{2}|",
        "nearly": r"\sqrt{2.0000001}",
        "imaginary": r"\sqrt{2}i",
    },
    (POLYNOMIAL, RIGHT): {
        "another order": "1+x*x",
        "equal but for two points": r"\frac{x^4-1}{x^2-1}",
        "root of the square": r"\sqrt{(x^2+1)^2}",
        "in brackets": "(x^2+1)",
    },
    (POLYNOMIAL, WRONG): {
        "set equal to zero": "x^2+1=0",
        "a function's definition": "f(x)=x^2+1",
        "one polynomial or another": r"x^2+1 \text{ or } x^2+2",
        "two polynomials": "x^2+1, x^2+2",
        "polynomial and a tail": r"x^2+1 \quad x",
        "capital letter": "X^2+1",
        "a constant left open": "x^2+c",
        "plus or minus one": r"x^2+1\pm 1",
        "a little more": "x^2+1.0000001",
        "absolute value of it": "|x^2+1|",
        "derivative to work out": r"\frac{d}{dx}\left(\frac{x^3}{3}+x\right)",
        "partial derivative": r"\frac{\partial}{\partial x}(x^3/3+x)",
        "gamma function": r"x^2+\Gamma(2)",
        "cosine of zero": r"x^2+\cos 0",
        "the power of e": "x^2+e^0",
        "Pythagoras": r"x^2 + \sin^2 x+\cos^2 x",
        "invisible": r"\phantom{x^2+1}",
        "truth appended": r"x^2+1 \land 0=0",
        "two lines": "x^2+1\n\nx^2+2",
        "conditional": "x^2+1 if x>0",
        "high power of a sum": "(x+1)^{5000}",
        "fractions 300 deep": r"\frac{1}{1+" * 300 + "1" + "}" * 300,
        "roots 100 deep": r"\sqrt{1+" * 45 + "1" + "}" * 45,
        "5,000 letters": "+".join(f"x_{{{i}}}" for i in range(5000)),
    },
    (POLYNOMIAL, CANNOT_TELL): {
        "superscript two": "x²+1",
        "two lines in LaTeX": r"x^2+1\\x^2+2",
        "coloured": r"x^{2}+\color{red}{1}",
        "a question": "x^2+1?",
    },
    (LINE, RIGHT): {"the right side alone": "2x+3", "the line on one side": "2x - y + 3 = 0"},
    (LINE, WRONG): {
        "always true": "0=0",
        "y is y": "y=y",
        "a chain of equations": "y = 2x+3 = 5",
        "letters exchanged": "x=2y+3",
        "another line": "y=2x+4",
    },
    (HARD, CANNOT_TELL): {
        "power of four letters": "|(x+y+z+w)^{60}|",
        "logarithm of a power": r"\ln|(x+1)^{900}|",
        "sines in sines": r"|\sin(\cos(\tan(\sin(\cos(\tan(x))))))|^{20}",
        "the gold plus a power": r"|x|+\ln y+\sin z + |y + (x+1)^{900}|",
    },
}

COPIES: list[tuple[str, str, str, str, str, bool]] = [
    (
        "the template's own example",
        "<think> the reasoning </think> <answer> the result </answer>",
        "math",
        "42",
        WRONG,
        True,
    ),
    (
        "plays the user too",
        " <think> a </think><answer> 42 </answer>\nUser: and 2+2?\nAssistant: <think> b </think><answer> 4 </answer>",
        "math",
        "42",
        WRONG,
        False,
    ),
    (
        "an end token in the answer",
        "<think> a </think><answer> 42<|im_end|> </answer>",
        "math",
        "42",
        WRONG,
        False,
    ),
    (
        "HTML as the answer",
        "<think> a </think><answer> <b>42</b> </answer>",
        "math",
        "42",
        WRONG,
        True,
    ),
    ("full-width tags", "＜think＞ a ＜/think＞＜answer＞ 42 ＜/answer＞", "math", "42", WRONG, False),
    ("tags with attributes", '<think id="1"> a </think><answer class="x"> 42 </answer>', "math", "42", WRONG, False),
    ("escaped tags", "&lt;think&gt; a &lt;/think&gt;&lt;answer&gt; 42 &lt;/answer&gt;", "math", "42", WRONG, False),
    ("tags in code", "`<think> a </think><answer> 42 </answer>`", "math", "42", RIGHT, False),
    ("zero-width space in a tag", "<think> a </think><ans\u200bwer> 42 </answer>", "math", "42", WRONG, False),
    ("box in a box", r"<think> a </think> \boxed{\boxed{42}}", "math", "42", WRONG, False),
    ("box never closed", r"<think> a </think> \boxed{42", "math", "42", WRONG, False),
    ("talk on and on after the box", r"<think> a </think> \boxed{42}" + " and so on" * 60, "math", "42", WRONG, False),
    ("framed box", r"<think> a </think> \fbox{42}", "math", "42", WRONG, False),
    (
        "all numbers up to the gold",
        f"<answer> {list(range(43))} </answer>",
        "math",
        "42",
        WRONG,
        False,
    ),
    ("a megabyte in the answer", f"<think> a </think><answer> {'42 ' * 350_000}</answer>", "math", "42", WRONG, True),
    ("right-to-left tags", "\u202e<think> a </think><answer> 42 </answer>", "math", "42", RIGHT, False),
    (
        "Countdown: the question's numbers",
        "<think> a </think><answer> 3, 5, 4 </answer>",
        "countdown",
        '{"numbers": [3, 5, 4], "target": 8}',
        WRONG,
        True,
    ),
]

ROWS = [
    (f"{gold}: {name}", f"<think> let me see </think><answer> {answer} </answer>", "math", gold, verdict, True)
    for (gold, verdict), answers in ANSWERS.items()
    for name, answer in answers.items()
] + COPIES

PROMPTED = [
    ("the product to multiply out", "Expand $(x+1)(x+2)$.", "(x+1)(x+2)", "x^2+3x+2", WRONG),
    ("the sum to factor", "Factor $x^2+x-6$.", "x^2+x-6", "(x+3)(x-2)", WRONG),
    ("in plain text", "Factor x^2+x-6.", "x^2 + x - 6", "(x+3)(x-2)", WRONG),
    ("with other spaces", r"Simplify $\sqrt{8} \cdot \sqrt{10}$.", r"\sqrt{8}\cdot \sqrt{10}", r"4\sqrt{5}", WRONG),
    ("worked out", "Factor $x^2+x-6$.", "(x-2)(x+3)", "(x+3)(x-2)", RIGHT),
    ("only a part of the question", "Simplify $(x+1)^3/(x+1)^2$.", "x+1", "1+x", RIGHT),
    ("the question holds the gold answer", "Is it $x+1$ or $x-1$?", "x+1", "x+1", RIGHT),
    ("the numbers of the question", "Tom has 35 apples and 7 pears.", "35 7", "42", WRONG),
    ("a unit of the question", "How many apples has Tom?", "42 apples", "42", RIGHT),
    ("one of them", "How many boxes has Tom?", "1 box", "1", RIGHT),
    ("a unit that the question does not speak of", "How many apples has Tom?", "42 pears", "42", WRONG),
    ("a number that the question speaks of", "Has Tom 42 or forty-three apples?", "42 forty-three", "42", WRONG),
    ("the sum of the question's numbers, not done", "Tom has 35 apples and 7 pears.", "35 + 7", "42", WRONG),
]
"""Name, question, answer, gold answer, verdict."""

LANGUAGES = [
    ("words mixed inside a sentence", "we add 三 to the 和 now", "en", 0.8),
    ("Cyrillic look-alikes", "wе аdd thrее tо thе sum", "en", 0.6),
    ("Greek look-alikes", "ωe αdd", "en", 0.4),
    ("mathematical letters", "𝐰𝐞 𝐚𝐝𝐝", "en", 0.0),
    ("Kangxi radicals", "we add ⼀⼆⼈", "en", 0.4),
    ("letters in circles", "ⓦⓔ ⓐⓓⓓ", "en", 0.0),
    ("Braille", "⠺⠑ ⠁⠙⠙", "en", 0.0),
    ("inside a formula", "we add $三个苹果$", "en", 0.4),
    ("inside a code block", "```我们相加```", "en", 0.0),
    ("English in Chinese", "我们把 three 加到 sum 上", "zh", 0.8),
    ("Latin letters without width between", "w\u200be a\u200bd\u200bd", "zh", 0.0),
    ("Latin letters for Chinese", "wo men xiang jia", "zh", 0.0),
]
"""Name, reasoning, language of the question, highest share of it that may be found."""

LOOPS = [
    ("a phrase again and again", "and so on " * 100, 0.9),
    ("one long word", "a" * 10_000, 0.9),
    ("one character", "哈" * 1000, 0.9),
    ("other invisible characters every time", " ".join(f"and{chr(0x200B) * i} so on" for i in range(100)), 0.9),
    ("invisible characters between", "ha\u200bha" * 500, 0.9),
    ("numbered steps that say the same", "\n".join(f"step {i}: let me check that again" for i in range(100)), 0.5),
]
"""Name, reasoning, lowest share of repeated 3-grams that must be found."""
