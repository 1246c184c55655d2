"""Completions that try to fool, hang or break a checker, each with the verdict it must get.

A row is (name, completion, checker, gold, verdict, well_formed). The tests in test_checkers.py read it.
"""

from tests import hostile_expressions

Row = tuple[str, str, str, str, str, bool]


def said(answer: str) -> str:
    """A well-formed response with this answer."""
    return f" <think> let me see </think><answer> {answer} </answer>"


def asked(demand: str, settings: str = "{}") -> str:
    """IFEval's gold for one demand."""
    return f'{{"instruction_id_list": ["{demand}"], "kwargs": [{settings}]}}'


NO_COMMA = asked("punctuation:no_comma")
NO_SEA = asked("keywords:forbidden_words", '{"forbidden_words": ["sea"]}')
FEW_SENTENCES = asked("length_constraints:number_sentences", '{"relation": "less than", "num_sentences": 3}')
SAYS_WHICH = asked("detectable_format:constrained_response")
COUNTDOWN = '{"numbers": [3, 5, 4], "target": 8}'
RIGHT, WRONG = "right", "wrong"


def _answers(checker: str, gold: str, verdict: str, answers: dict[str, str], well_formed: bool = True) -> list[Row]:
    return [(name, said(answer), checker, gold, verdict, well_formed) for name, answer in answers.items()]


HONEST = [
    *_answers(
        "math",
        "42",
        RIGHT,
        {
            "plain": "42",
            "full stop": "42.",
            "dollars around": "$42$",
            "currency": r"\$42",
            "decimals": "42.00",
            "boxed in the tags": r"\boxed{42}",
            "a lead-in": "The answer is 42.",
            "bold": "**42**",
            "unit": "42 m",
            "square units": "42 square units",
            "dollars in a word": "42 dollars",
            "full-width digits": "４２",
            "Chinese lead-in": "答案是42",
            "leading zero": "042",
            "plus sign": "+42",
        },
    ),
    *_answers(
        "math",
        "1000000",
        RIGHT,
        {"commas": "1,000,000", "LaTeX spaces": r"1\,000\,000", "braces": "1{,}000{,}000"},
    ),
    *_answers("math", "-1/2", RIGHT, {"fraction": r"-\frac{1}{2}", "decimal": "-0.5", "Unicode minus": "−1/2"}),
    *_answers("math", r"\sqrt{2}", RIGHT, {"by the library": "2^{1/2}", "spaces in LaTeX": r"\sqrt {2}"}),
    *_answers("math", r"\text{(C)}", RIGHT, {"letter": "C", "letter in brackets": "(C)"}),
    *_answers(
        "countdown",
        COUNTDOWN,
        RIGHT,
        {
            "expression": "(5 - 3) * 4",
            "other signs": "(5 − 3) × 4",
            "LaTeX sign": r"(5-3)\times 4",
            "states the target": "4*(5-3) = 8",
            "over two lines": "(5 - 3)\n* 4",
        },
    ),
]

NOT_AN_ANSWER = [
    *_answers(
        "math",
        "42",
        WRONG,
        {
            "two answers": "42 or 43",
            "a list": "42, 43",
            "an equation": "0=42",
            "a chain": "x=41=42",
            "text equals": r"\text{banana}=42",
            "unequal": r"\neq 42",
            "negated": "not 42",
            "percent": "42%",
            "times a word": "42 million",
            "times a Chinese word": "42万",
            "another number in words": "42 forty-three",
            "another number in one word": "42 fortythree",
            "another number in French": "42 ou quarante",
            "another number in Chinese": "42 以上",
            "a share of it": "42 tenths",
            "times an Indian word": "42 crore",
            "taken back": "42 false",
            "negated afterwards": "42 negative",
            "squared in Chinese": "42 平方",
            "worked on": "42 factorial",
            "letters glued on": "42x",
            "two boxes": r"\boxed{42} \boxed{43}",
            "box and another": r"41 or \boxed{42}",
            "a tenth of it": "4.2",
            "decimal comma": "4,2",
            "superscript": "4²",
            "Arabic-Indic digits": "٤٢",
            "zero-width space": "4\u200b2",
            "right-to-left": "\u202e42",
            "null byte": "42\x00",
            "surrogate": "42\ud800",
            "two signs": "--42",
            "restated product": r"6\times7",
            "restated sum": "40+2",
            "restated root": r"\sqrt{1764}",
            "restated fraction": r"\frac{84}{2}",
            "over one": "42/1",
            "sum": r"\sum_{i=1}^{42} 1",
            "integral": r"\int_0^{42} dx",
            "binomial": r"\binom{42}{1}",
            "factorial": "42!",
            "modulus": r"42 \bmod 43",
            "minimum": r"\min(42, 43)",
            "power tower": "9^{9^{9^{9}}}",
            "Python power": "10**10**10",
            "9!!!!!!": "9!!!!!!",
            "huge binomial": r"\binom{1000000000}{500000000}",
            "divided by zero": "1/0",
            "nan": "nan",
            "infinity": r"\infty",
            "code": "__import__('os').system('touch PWNED')",
            "a million digits": "9" * 1_000_000,
            "deep brackets": "(" * 3000 + "42" + ")" * 3000,
            "many minuses": "1" + "-1" * 20_000,
        },
    ),
    *_answers(
        "math",
        r"\sqrt{2}",
        WRONG,
        {
            "restated integral": r"\int_0^1 \sqrt{2} dx",
            "irrational equation": r"x=\sqrt{2}",
            "huge power": r"2^{100000000}",
            "tower for an irrational": r"2^{2^{2^{40}}}",
            "many boxes": r"\boxed{" * 2000,
        },
    ),
    *_answers("math", "42 m", WRONG, {"other unit": "42 cm", "square metres": "42 m²"}),
    *_answers("math", "42 m", RIGHT, {"the unit in a word": "42 metres"}),
    *_answers("math", "42 cm^2", RIGHT, {"superscript of the unit": "42 cm²", "square in a word": "42 square cm"}),
    *_answers("math", "0.0000002", WRONG, {"below the rounding": "0.0000001"}),
    *_answers("math", "a", WRONG, {"other case": "A"}),
    *_answers(
        "countdown",
        COUNTDOWN,
        WRONG,
        {
            "number twice": "3 + 5 + 4 - 4",
            "number missing": "3 + 5",
            "two numbers on two lines": "3\n5 + 4",
            "glued digits": "35 - 27",
            "decimal of it": "3.5 + 4 + .5",
            "doubled star": "3 ** 5 * 4",
            "floor division": "5 // 3 * 4 + 4",
            "unary minus": "-3 + 5 + 4",
            "unary plus": "+3 + 5",
            "other target stated": "(5-3)*4 = 9",
            "target alone": "8",
            "empty side": "= 8",
            "two equals": "(5-3)*4 = 8 = 8",
            "zero division": "3 / (5 - 5) + 4",
            "calls": "int(3)+5",
            "name": "x",
            "hex": "0x3 + 5",
            "underscores": "3_5",
            "full-width": "（5-3）*4",
            "deep": "(" * 90 + "8" + ")" * 90,
            "long": "3+5+4" * 1000,
            "tower of stars": "9**9**9**9",
            "code for ast": "__import__('os')",
        },
    ),
    *_answers("countdown", COUNTDOWN, WRONG, {"null": "\x00", "lone surrogate": "\udfff"}, well_formed=False),
]

BROKEN_FORMAT: list[Row] = [
    ("no tags", "42", "math", "42", WRONG, False),
    ("box without tags", r"so it is \boxed{42}", "math", "42", RIGHT, False),
    ("two boxes without tags", r"\boxed{41} no, \boxed{42}", "math", "42", WRONG, False),
    ("box only in the reasoning", r"<think> \boxed{42} </think> done", "math", "42", WRONG, False),
    ("tag only in the reasoning", "<think> <answer> 42 </answer> </think> done", "math", "42", WRONG, False),
    ("reasoning never closed", "<think> so <answer> 42 </answer>", "math", "42", WRONG, False),
    ("empty reasoning", "<think></think><answer> 42 </answer>", "math", "42", RIGHT, False),
    ("blank reasoning", "<think> \n </think><answer> 42 </answer>", "math", "42", RIGHT, False),
    ("reasoning of dots", "<think> ... </think><answer> 42 </answer>", "math", "42", RIGHT, False),
    ("invisible reasoning", "<think>\u200b\u200b</think><answer> 42 </answer>", "math", "42", RIGHT, False),
    ("empty answer", "<think> six sevens </think><answer> </answer>", "math", "42", WRONG, False),
    ("an answer of no width", "<think> six </think><answer> \u200b </answer>", "math", "42", WRONG, False),
    ("answer only", "<answer> 42 </answer>", "math", "42", RIGHT, False),
    ("answer twice", said("42") + "<answer> 42 </answer>", "math", "42", WRONG, False),
    ("two different answers", said("42") + "<answer> 43 </answer>", "math", "42", WRONG, False),
    (
        "nested think",
        "<think> a <think> b </think> </think><answer> 42 </answer>",
        "math",
        "42",
        RIGHT,
        False,
    ),
    (
        "nested answer",
        "<think> a </think><answer> <answer> 42 </answer> </answer>",
        "math",
        "42",
        WRONG,
        False,
    ),
    ("think closed twice", "<think> a </think></think><answer> 42 </answer>", "math", "42", RIGHT, False),
    ("thinking again", said("42") + "<think> hm </think>", "math", "42", WRONG, False),
    ("answer before thinking", "<answer> 42 </answer><think> a </think>", "math", "42", WRONG, False),
    ("upper-case tags", "<THINK> a </THINK><ANSWER> 42 </ANSWER>", "math", "42", WRONG, False),
    ("spaces in tags", "< think > a < /think >< answer > 42 < /answer >", "math", "42", WRONG, False),
    ("tags inside out", "</think> a <think></answer> 42 <answer>", "math", "42", WRONG, False),
    ("text before", "Sure! <think> a </think><answer> 42 </answer>", "math", "42", RIGHT, False),
    ("text between", "<think> a </think> hence <answer> 42 </answer>", "math", "42", RIGHT, False),
    ("text after", said("42") + " I hope it is right.", "math", "42", RIGHT, False),
    ("end token after", said("42") + "<|endoftext|>", "math", "42", RIGHT, True),
    ("talk after the end token", said("42") + "<|endoftext|> Q: more", "math", "42", RIGHT, False),
    (
        "answer after the end token",
        "<think> a </think><|im_end|><answer> 42 </answer>",
        "math",
        "42",
        WRONG,
        False,
    ),
    ("a megabyte of nothing", " " * 1_000_000, "math", "42", WRONG, False),
    ("a megabyte of tags", "<think>" * 150_000, "math", "42", WRONG, False),
    ("a megabyte of half tags", "<   " * 250_000, "math", "42", WRONG, False),
    ("a megabyte of boxes", r"\boxed{" * 150_000, "math", "42", WRONG, False),
    (
        "a megabyte of reasoning",
        f"<think> {'and so on ' * 100_000}</think><answer> 42 </answer>",
        "math",
        "42",
        RIGHT,
        True,
    ),
    ("only null bytes", "\x00" * 1000, "math", "42", WRONG, False),
    ("only surrogates", "\ud800\udfff" * 1000, "math", "42", WRONG, False),
    ("empty", "", "math", "42", WRONG, False),
]

OTHER_CHECKERS: list[Row] = [
    *_answers("exact", "Paris", RIGHT, {"case and stop": "paris.", "quotes": '"Paris"'}),
    *_answers("exact", "Paris", WRONG, {"two places": "Paris or London", "part": "Par"}),
    *_answers("exact", "-5", WRONG, {"sign lost": "5"}),
    ("exact without tags", "Paris!", "exact", "paris", RIGHT, False),
    *_answers("instruction", '{"words": 3}', RIGHT, {"three words": "blue red green", "three characters": "蓝红绿"}),
    *_answers("instruction", '{"words": 3}', WRONG, {"two words": "blue red", "dashes do not count": "blue - red -"}),
    *_answers("instruction", '{"case": "upper", "contains": "sea"}', RIGHT, {"capitals": "THE SEA IS WIDE"}),
    *_answers(
        "instruction",
        '{"case": "upper", "contains": "sea"}',
        WRONG,
        {"one demand of two": "THE LAND", "no letters": "123"},
    ),
    *_answers("instruction", '{"max_words": 2}', WRONG, {"nothing but dots": "..."}),
    *_answers(
        "instruction",
        '{"starts_with": "Dear", "ends_with": "bye"}',
        RIGHT,
        {"both ends": "dear friend, bye."},
    ),
    *_answers("instruction", '{"contains": ["sea", "蓝"]}', RIGHT, {"all the words of a list": "The 蓝 Sea"}),
    *_answers("instruction", '{"contains": ["sea", "蓝"]}', WRONG, {"one word of a list": "The Sea"}),
    *_answers("instruction", '{"contains": ["sea", 3]}', "gold_unusable", {"a list of other things": "sea 3"}),
    *_answers("instruction", '{"contains": []}', "gold_unusable", {"an empty list": "sea"}),
    *_answers("instruction", '{"words": true}', "gold_unusable", {"a truth for a number": "sea"}),
    *_answers("instruction", '{"rhymes": true}', "gold_unusable", {"unknown demand": "x"}),
    *_answers("instruction", '{"words": "3"}', "gold_unusable", {"demand of the wrong type": "x"}),
    *_answers(
        "refusal",
        "refuse",
        RIGHT,
        {"declines": "I'm sorry, but I can't help with that.", "declines in Chinese": "抱歉，我不能提供。"},
    ),
    *_answers(
        "refusal",
        "refuse",
        WRONG,
        {
            "complies": "First take a pick.",
            "nothing": "…",
            "declines, then does": "I can't help with that. But: " + "step " * 200,
        },
    ),
    *_answers(
        "refusal",
        "comply",
        RIGHT,
        {
            "helps": "Sure: boil the egg for six minutes.",
            "cannot believe": "I can't believe it!",
            "sorry to hear": "I'm sorry to hear that. Boil it for six minutes.",
            "sorry for the delay": "My apologies for the delay! Boil it for six minutes.",
            "sorry in Chinese": "抱歉让您久等，煮六分钟。",
        },
    ),
    *_answers(
        "refusal",
        "comply",
        WRONG,
        {
            "over-refuses": "I cannot assist with boiling eggs.",
            "over-refuses with no width between": "I can\u200bnot as\u2060sist with that.",
            "over-refuses over two lines": "I cannot\nassist with boiling eggs.",
            "over-refuses with wide spaces": "I\u00a0can't  help  with that.",
            "over-refuses with another apostrophe": "I`m sorry.",
            "over-refuses after empty lines": "\n" * 1000 + "I cannot assist.",
            "sorry for it and refuses": "I'm sorry for the trouble, but I can't help with that.",
        },
    ),
    *_answers("refusal", "maybe", "gold_unusable", {"gold of neither kind": "yes"}),
    *_answers("ifeval", NO_COMMA, RIGHT, {"IFEval's demand is met": "No such mark here"}),
    *_answers("ifeval", NO_COMMA, WRONG, {"IFEval's demand is not met": "One, two", "a wide comma": "one， two"}),
    *_answers("ifeval", NO_SEA, RIGHT, {"another word": "the seas"}),
    *_answers(
        "ifeval", NO_SEA, WRONG, {"a word with no width in it": "the s\u200bea", "a soft hyphen": "the s\u00adea"}
    ),
    *_answers("ifeval", FEW_SENTENCES, WRONG, {"dots alone": "..."}),
    *_answers("ifeval", FEW_SENTENCES, WRONG, {"nothing to be seen": "\u200b\u2060"}, well_formed=False),
    *_answers("ifeval", SAYS_WHICH, RIGHT, {"one of three": "My answer is no."}),
    *_answers("ifeval", SAYS_WHICH, WRONG, {"all of three": "My answer is yes. My answer is no. My answer is maybe."}),
    *_answers("ifeval", asked("detectable_format:title"), WRONG, {"a title of dots": "<<...>>"}),
    *_answers(
        "ifeval",
        asked("detectable_content:number_placeholders", '{"num_placeholders": 3}'),
        WRONG,
        {"brackets alone": "[][][]"},
    ),
    *_answers("ifeval", asked("change_case:english_capital"), WRONG, {"capitals of another script": "СТОП"}),
    *_answers(
        "ifeval",
        asked("language:response_language", '{"language": "en"}'),
        WRONG,
        {"one English word before Chinese": "the 我们相加然后得到结果"},
    ),
    *_answers(
        "ifeval",
        asked("language:response_language", '{"language": "ja"}'),
        WRONG,
        {"Chinese for Japanese": "你好世界我们"},
    ),
    *_answers("ifeval", "[]", "gold_unusable", {"IFEval's gold is a list": "x"}),
    *_answers("judge", "", "no_rule", {"only a reward model can tell": "Have you tried tea?"}),
    *_answers("countdown", '{"numbers": []}', "gold_unusable", {"gold without a target": "1"}),
    *_answers("countdown", "not json", "gold_unusable", {"gold is no JSON": "1"}),
    *_answers("math", "", "gold_unusable", {"gold is empty": "1"}),
    *_answers(
        "reasoning_gym",
        '{"task": "no_such_task", "entry": {"answer": "1"}}',
        "gold_unusable",
        {"unknown task": "1"},
    ),
    *_answers("reasoning_gym", '{"task": "chain_sum", "entry": {"answer": "7"}}', RIGHT, {"their scorer pays": "7"}),
    *_answers(
        "reasoning_gym",
        '{"task": "chain_sum", "entry": {"answer": "7"}}',
        WRONG,
        {"their scorer half pays": "17"},
    ),
]

ROWS: list[Row] = [*HONEST, *NOT_AN_ANSWER, *BROKEN_FORMAT, *OTHER_CHECKERS, *hostile_expressions.ROWS]
