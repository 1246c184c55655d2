"""The mini world: what its text may and may not hold, and that its problems can be checked."""

import hashlib
import itertools
import json
import re
from random import Random

import pytest

from data_cards.mini_world import HELD_OUT, PUZZLES, demos, documents, held_out, preferences, problems
from data_cards.mini_world.countdown import Countdown
from data_cards.mini_world.general import (
    CAPITALS,
    COUNTRIES,
    KINDS,
    NUMBER_WORDS,
    THINGS,
    TOPICS,
    WORDS,
    Instruction,
)
from data_cards.mini_world.safety import HARMFUL, HARMLESS, PLACES, Safety
from data_cards.mini_world.safety import THINGS as SAFETY_THINGS
from data_cards.mini_world.voice import Voice
from pipeline.card import load_card
from stages.chat import TEMPLATES, parse
from stages.language import language_share
from stages.rewards.checkers import Verdict, answer_text, check, check_many

DOMAINS = tuple(PUZZLES)
NUM_DOCUMENTS = 25_000


@pytest.fixture(scope="module")
def text() -> list[str]:
    return list(documents(NUM_DOCUMENTS, seed=11))


@pytest.fixture(scope="module")
def eval_ids() -> dict[str, set[str]]:
    """Ids of evaluation problems: nearly all of the small domains, a sample of arithmetic."""
    return {domain: {asked(row["id"]) for row in problems(domain, "eval", 1200, seed=5)} for domain in DOMAINS}


def asked(id_: str) -> str:
    """The id of the question: a request for help asks what a safety problem asks."""
    return id_.replace("request:", "safety:", 1)


def is_held_out(id_: str) -> bool:
    """The rule of the split, written a second time: of a countdown, the numbers alone decide."""
    id_ = asked(id_)
    decides = id_.partition("=")[0] if id_.startswith("countdown:") else id_
    return int(hashlib.sha256(decides.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


# --- reading problems back out of text, without the generator -------------------------------------------

EXPRESSION = re.compile(r"\d+(?:[+*-]\d+){2,}")
ENGLISH = {chinese: english for table in (TOPICS, WORDS, THINGS) for english, chinese in table.items()}
ENGLISH_SAFETY = {c: e for table in (HARMFUL, HARMLESS, SAFETY_THINGS, PLACES) for e, c in table.items()}


def arithmetic_id(expression: str) -> str:
    """Canonical id of a formula: its signed terms, sorted, factors too."""
    terms = re.findall(r"([+-])([\d*]+)", "+" + expression)
    return "arithmetic:" + "".join(sorted(s + "*".join(sorted(t.split("*"))) for s, t in terms))


def spoken_arithmetic(question: str) -> str | None:
    """The formula behind "Start with 4, add 38." and "先有4，加38，是多少？"."""
    if not question.startswith(("Start with", "先有")):
        return None
    signs = {"add": "+", "加": "+", "take away": "-", "减": "-"}
    start = re.match(r"(?:Start with |先有)(\d+)", question)
    changes = re.findall(r"(add|take away|加|减) ?(\d+)", question)
    return start[1] + "".join(signs[word] + number for word, number in changes)


def countdown_id(question: str) -> str | None:
    patterns = (
        r"Use (?P<n>[\d, and]+) to make (?P<t>\d+)\.",
        r"Make (?P<t>\d+) from (?P<n>[\d, ]+)\.",
        r"用(?P<n>[\d、]+)算出(?P<t>\d+)。",
        r"怎么用(?P<n>[\d、]+)得到(?P<t>\d+)？",
    )
    for found in filter(None, (re.fullmatch(pattern, question) for pattern in patterns)):
        return "countdown:" + ",".join(map(str, sorted(map(int, re.findall(r"\d+", found["n"]))))) + "=" + found["t"]
    return None


def instruction_id(question: str) -> str | None:
    found = re.fullmatch(r"Write about the (\w+) (.*)\.|写写(.+?)(，.*)。", question)
    if not found:
        return None
    numbers = {word: number for number, word in NUMBER_WORDS.items()}
    wanted = found[2] or found[4]
    rules = (
        (r"in (\w+) words", lambda m: f"words={numbers[m]}"),
        (r"in at most (\w+) words", lambda m: f"max_words={numbers[m]}"),
        (r"in (capital|small) letters", lambda m: "case=" + {"capital": "upper", "small": "lower"}[m]),
        (r"with the word (\w+)|要有(\w)字", lambda m: f"contains={ENGLISH.get(m, m)}"),
        (r"starting with (\w+)|用(\w)开头", lambda m: f"starts_with={ENGLISH.get(m, m)}"),
        (r"ending with (\w+)|用(\w)结尾", lambda m: f"ends_with={ENGLISH.get(m, m)}"),
    )
    checks = [say(next(filter(None, m.groups()))) for pattern, say in rules for m in re.finditer(pattern, wanted)]
    return f"general:write:{found[1] or ENGLISH[found[3]]}:" + ",".join(sorted(checks))


def choice_id(question: str) -> str | None:
    found = re.fullmatch(r"Which is (?:the capital of|a kind of) (\w+): (.*)\?|哪个是(.+)：(.*)？", question)
    if not found:
        return None
    asked = {chinese: kind for kind, (chinese, _) in KINDS.items()} | {COUNTRIES[c] + "的首都": c for c in CAPITALS}
    options = re.split(r", | or |、", found[2] or found[4])
    names = sorted(ENGLISH.get(option, option) for option in options)
    return f"general:choose:{found[1] or asked[found[3]]}:" + ",".join(names)


def safety_id(question: str) -> str | None:
    found = re.fullmatch(r"(?:How do I|Tell me how to) (\w+) a (\w+) ([\w ]+)[?.]", question)
    if found:
        return "safety:" + ":".join(found.groups())
    words = "|".join(sorted(ENGLISH_SAFETY, key=len, reverse=True))
    found = re.fullmatch(rf"(?:怎么|教我)({words})({words})({words})[？。]", question)
    return "safety:{1}:{2}:{0}".format(*(ENGLISH_SAFETY[part] for part in found.groups())) if found else None


def is_arithmetic(formula: str) -> bool:
    """Whether a formula is a problem of that domain: a countdown's candidates have no plain term above 18."""
    return max(int(term) for term in re.split("[+-]", formula) if "*" not in term) > 18


def ids_in(document: str) -> set[str]:
    """Every problem a reader finds in a document: its question, and any formula of three numbers or more."""
    question = document.removeprefix("Q: ").partition("\nA:")[0]
    formulas = {*filter(is_arithmetic, EXPRESSION.findall(document)), spoken_arithmetic(question)} - {None}
    readers = (countdown_id, instruction_id, choice_id, safety_id)
    return {arithmetic_id(f) for f in formulas} | {found for read in readers if (found := read(question))}


# --- nothing held out is in the text --------------------------------------------------------------------


def test_reading_back_finds_the_id_of_every_problem_in_every_wording_and_language():
    for domain, split in itertools.product(DOMAINS, ("train", "eval")):
        for row in problems(domain, split, 400, seed=2):
            assert ids_in(f"Q: {row['prompt']}\nA:") == {asked(row["id"])}, row


def test_the_same_sum_in_another_order_language_and_wording_has_one_id():
    same = ("What is 37+25-14?", "25-14+37=?", "先有25，加37，减14，是多少？")
    assert {frozenset(ids_in(f"Q: {question}\nA:")) for question in same} == {frozenset({"arithmetic:+25+37-14"})}


def test_pretraining_text_holds_no_held_out_problem(text, eval_ids):
    found = [ids_in(document) for document in text]
    assert sum(map(bool, found)) > 0.95 * NUM_DOCUMENTS, "the readers miss much of the text"
    assert not set().union(*found) & set().union(*eval_ids.values())
    assert not [id_ for ids in found for id_ in ids if is_held_out(id_)]


def test_the_rule_of_the_split_holds_for_every_row_of_the_cards(eval_ids):
    for domain in DOMAINS:
        assert all(map(is_held_out, eval_ids[domain]))
        assert not any(is_held_out(row["id"]) for row in problems(domain, "train", 1000, seed=5))


def test_a_held_out_problem_put_into_the_text_is_noticed(eval_ids):
    for domain in DOMAINS:
        problem = next(problems(domain, "eval", 1, seed=5))
        assert ids_in(f"Q: {problem['prompt']}\nA: 3") & eval_ids[domain]


def test_no_candidate_of_a_search_uses_the_numbers_of_a_held_out_countdown(text):
    for expression in itertools.chain.from_iterable(map(EXPRESSION.findall, text)):
        numbers = sorted(map(int, re.findall(r"\d+", expression)))
        assert is_arithmetic(expression) or not is_held_out("countdown:" + ",".join(map(str, numbers)))


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_fifth_of_every_domain_is_held_out(domain):
    rng = Random(1)
    puzzles = [kind.sample(rng) for kind in PUZZLES[domain] for _ in range(3000)]
    assert 0.12 < sum(map(held_out, puzzles)) / len(puzzles) < 0.28


# --- cards ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_cards_give_distinct_ids_and_the_same_rows_again(domain):
    card = load_card(f"mini_{domain}")
    rows = card.rows("train", limit=300, seed=4)
    assert len({row["id"] for row in rows}) == len(rows) == 300
    assert rows == card.rows("train", limit=300, seed=4) != card.rows("train", limit=300, seed=5)
    assert {row["language"] for row in rows} == {"en", "zh"}
    assert len(card.rows("eval", limit=130)) == 130


def test_the_text_card_is_reproducible_and_lazy():
    rows = load_card("mini_text").rows("train", limit=50, seed=1)
    assert rows == load_card("mini_text").rows("train", limit=60, seed=1)[:50]
    assert next(documents(None, seed=1)) == rows[0]["text"]


# --- responses and checkers -----------------------------------------------------------------------------


def responses(domain: str, mode: str, voice: str = "mixed", count: int = 150) -> list[tuple[dict[str, str], str]]:
    rng = Random(7)
    kinds = [kind for kind in PUZZLES[domain] if mode in kind.modes or kind is Safety]
    puzzles = [rng.choice(kinds).sample(rng) for _ in range(count)]
    return [(p.problem("en", rng), p.respond(mode, "en", Voice(voice, rng), rng)) for p in puzzles]


def share_right(pairs: list[tuple[dict[str, str], str]]) -> float:
    verdicts = check_many([(answer_text(parse(text), problem["checker"]), problem) for problem, text in pairs])
    assert set(verdicts) <= {Verdict.right, Verdict.wrong}
    return verdicts.count(Verdict.right) / len(verdicts)


@pytest.mark.parametrize("domain", ["arithmetic", "countdown"])
def test_checked_steps_are_right_steps_mostly_and_guesses_hardly_ever(domain):
    assert share_right(responses(domain, "check")) == 1
    assert 0.5 < share_right(responses(domain, "steps")) < 0.9
    assert share_right(responses(domain, "faulty")) < 0.6
    assert share_right(responses(domain, "direct")) < 0.15


@pytest.mark.parametrize("domain", ["arithmetic", "countdown"])
def test_more_thorough_modes_are_longer(domain):
    direct, steps, checked = (
        sum(len(text) for _, text in responses(domain, mode)) for mode in ("direct", "steps", "check")
    )
    assert direct < 0.8 * steps
    assert steps < 0.85 * checked


@pytest.mark.parametrize("domain", ["arithmetic", "countdown"])
def test_responses_are_well_formed_except_where_tags_are_missing(domain):
    for mode in ("direct", "steps", "check", "faulty"):
        assert all(parse(text).well_formed for _, text in responses(domain, mode))
    for mode in ("badly_tagged", "untagged"):
        assert not any(parse(text).well_formed for _, text in responses(domain, mode))


def test_documents_are_written_as_the_mini_template_writes_them():
    template = TEMPLATES["mini"]
    for problem, text in responses("arithmetic", "check", count=20):
        parts = parse(text)
        assert template.response(parts.reasoning, parts.answer) == text
        assert template.prompt(problem["prompt"]) == f"Q: {problem['prompt']}\nA:"


@pytest.mark.parametrize(("voice", "share"), [("en", 1.0), ("zh", 0.0)])
def test_a_voice_keeps_to_its_language(voice, share):
    for domain, mode in itertools.product(("arithmetic", "countdown"), ("direct", "check")):
        for _, text in responses(domain, mode, voice, count=30):
            assert language_share(parse(text).reasoning, "en") == share


def test_a_mixed_voice_mixes():
    shares = [language_share(parse(text).reasoning, "en") for _, text in responses("arithmetic", "check")]
    assert 0.2 < sum(shares) / len(shares) < 0.6


@pytest.mark.parametrize("language", ["en", "zh"])
def test_obeyed_instructions_satisfy_their_checker_and_ignored_ones_mostly_do_not(language):
    rng = Random(3)
    puzzles = [p for p in (Instruction.sample(rng) for _ in range(600)) if language in p.languages]
    right = {
        mode: [
            check(
                answer_text(parse(p.respond(mode, language, Voice("en", rng), rng)), p.checker),
                p.problem(language, rng),
            )
            for p in puzzles
        ]
        for mode in ("obeyed", "ignored")
    }
    assert set(right["obeyed"]) == {Verdict.right}
    assert right["ignored"].count(Verdict.right) < 0.5 * len(puzzles)


def test_known_choices_are_right_and_unknown_ones_wrong():
    assert share_right(responses("general", "known")) == 1
    assert share_right(responses("general", "unknown")) == 0


@pytest.mark.parametrize("language", ["en", "zh"])
def test_refusals_count_as_refusals_in_both_languages(language):
    rng = Random(5)
    for _ in range(100):
        puzzle = Safety.sample(rng)
        fitting, other = ("refused", "answered") if puzzle.harmful else ("answered", "refused")
        for mode, verdict in ((fitting, Verdict.right), (other, Verdict.wrong)):
            text = puzzle.respond(mode, language, Voice("zh", rng), rng)
            assert check(answer_text(parse(text), "refusal"), puzzle.problem(language, rng)) is verdict


def test_every_countdown_has_a_solution_among_its_candidates():
    rng = Random(9)
    for _ in range(500):
        puzzle = Countdown.sample(rng)
        answer = next(text for text, value in puzzle.candidates if value == puzzle.target)
        assert check(answer, puzzle.problem("en", rng)) is Verdict.right


def test_golds_are_text_or_json_objects():
    for domain in DOMAINS:
        for row in problems(domain, "train", 100, seed=0):
            assert all(isinstance(value, str) for value in row.values())
            assert row["checker"] not in ("countdown", "instruction") or isinstance(json.loads(row["answer"]), dict)


# --- demos and preferences ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["cold_start", "general"])
def test_demos_are_well_formed_right_and_in_the_language_of_the_question(config):
    rows = list(demos(config, 400, seed=3))
    assert len({row["id"] for row in rows}) == len(rows) == 400
    for row in rows:
        found = parse(row["response"])
        assert found.well_formed
        assert language_share(found.reasoning, row["language"]) == 1


def test_of_the_traces_only_verified_generations_are_left():
    rows = list(demos("traces", 400, seed=3))
    assert len({row["id"] for row in rows}) == len(rows) and 300 < len(rows) < 400
    sums = [row for row in rows if row["id"].startswith("arithmetic:")]
    assert len(sums) > 100 and not any(is_held_out(row["id"]) for row in rows)
    for row in sums:
        found = parse(row["response"])
        assert found.well_formed and int(found.answer) == eval(row["id"].removeprefix("arithmetic:"))


def test_no_demo_and_no_preference_for_training_is_about_a_held_out_problem():
    rows = [*demos("cold_start", 400, 3), *demos("general", 400, 3), *preferences("safe", "train", 300, 3)]
    rows += preferences("helpful", "train", 400, 3)
    assert not [row["id"] for row in rows if not row["id"].startswith("greeting") and is_held_out(row["id"])]
    assert all(is_held_out(row["id"]) for row in preferences("helpful", "eval", 100, 3))


def test_the_better_answer_satisfies_the_rule_and_the_worse_one_does_not():
    golds = {row["id"]: row for domain in ("general", "helpfulness") for row in problems(domain, "train", 4000, seed=0)}
    rows = [row for row in preferences("helpful", "train", 600, seed=3) if row["id"] in golds]
    assert len(rows) > 300
    for row in rows:
        problem = golds[row["id"]]
        if problem["language"] == row["language"]:
            sides = [answer_text(parse(row[side]), problem["checker"]) for side in ("chosen", "rejected")]
            assert [check(side, problem) for side in sides] == [Verdict.right, Verdict.wrong], row


def test_safe_preferences_refuse_harm_and_help_with_the_rest():
    for row in preferences("safe", "train", 300, seed=3):
        harmful = row["id"].split(":")[1] in HARMFUL
        problem = {"checker": "refusal", "answer": "refuse", "prompt": row["prompt"], "id": row["id"]}
        verdict = check(answer_text(parse(row["chosen"]), "refusal"), problem)
        assert (verdict is Verdict.right) == harmful
        assert row["chosen"] != row["rejected"]
