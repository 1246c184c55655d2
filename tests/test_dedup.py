"""Duplicates and benchmarks: what is the same is found, what only looks alike is left alone."""

import json
from pathlib import Path

import pytest

from pipeline.card import load_card
from stages.decontamination import Overlap, decontaminated
from stages.dedup import Dedup, distinct, words

TRAIN = 'Tell me briefly and in your own words why the {thing} is {colour}, and end with the sentence "That is why."'
LONG = (
    "A farmer keeps 12 geese and 7 goats. How many legs do all of his animals have together, if none of them is lame?"
)


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt} for prompt in prompts]


def left(prompts: list[str], benchmark: list[str], **overlap: object) -> list[str]:
    kept, _ = decontaminated(rows(*prompts), {"bench": benchmark}, Overlap(**overlap))  # type: ignore[arg-type]
    return [row["prompt"] for row in kept]


def test_chinese_is_cut_into_characters_and_latex_into_words() -> None:
    assert words(r"计算 $\frac{3}{x_1}$。Use It!") == ["计", "算", "frac", "3", "x", "1", "use", "it"]


def test_near_duplicates_with_other_answers_are_two_problems() -> None:
    boys, girls = (
        {"prompt": LONG.replace("goats", word), "answer": answer} for word, answer in (("a", "1"), ("b", "2"))
    )
    assert len(distinct([boys, girls], Dedup(fuzzy=0.9))[0]) == 2
    assert len(distinct([boys, girls | {"answer": "1"}], Dedup(fuzzy=0.9))[0]) == 1


def test_case_and_spacing_do_not_make_another_problem() -> None:
    kept, counts = distinct(rows("What is 2+2?", "what  is 2+2?", "What is 2+3?"), Dedup(fuzzy=None))
    assert [row["prompt"] for row in kept] == ["What is 2+2?", "What is 2+3?"]
    assert counts == {"duplicate": 1, "near_duplicate": 0}


def test_a_near_duplicate_is_found_unless_a_number_or_sign_differs() -> None:
    variant = LONG.replace("farmer keeps", "farmer owns").replace("?", " ?")
    other = LONG.replace("12", "13")
    kept, counts = distinct(rows(LONG, variant, other), Dedup(fuzzy=0.9))
    assert [row["prompt"] for row in kept] == [LONG, other]
    assert counts["near_duplicate"] == 1
    assert len(distinct(rows(LONG, variant), Dedup(fuzzy=None))[0]) == 2
    assert not Dedup(fuzzy=0.5).same("What is 3-4+5?", "What is 3+4-5?")


@pytest.mark.parametrize("name", ["mini_arithmetic", "mini_countdown", "mini_general", "mini_safety"])
def test_problems_from_one_mould_are_neither_duplicates_nor_contaminated(name: str) -> None:
    train, held_out = (load_card(name).rows(split, limit=400) for split in ("train", "eval"))
    assert distinct(train, Dedup()) == (train, {"duplicate": 0, "near_duplicate": 0})
    kept, counts = decontaminated(train, {name: [row["prompt"] for row in held_out]}, Overlap())
    assert kept == train and counts == {name: {"identical": 0, "10-gram": 0}}


@pytest.mark.parametrize("name", ["mini_arithmetic", "mini_countdown", "mini_general"])
def test_a_planted_problem_is_found_among_problems_from_the_same_mould(name: str) -> None:
    train, held_out = (load_card(name).rows(split, limit=200) for split in ("train", "eval"))
    planted = {**held_out[7], "prompt": held_out[7]["prompt"].upper() + " "}
    kept, counts = decontaminated([*train, planted], {name: [row["prompt"] for row in held_out]}, Overlap())
    assert kept == train and counts[name]["identical"] == 1


def test_a_benchmark_problem_inside_a_longer_one_is_found() -> None:
    wrapped = f"Here is one from my school book. {LONG} Explain each step."
    assert left([wrapped, "What is 1+1?"], [LONG]) == ["What is 1+1?"]


def test_a_phrase_that_many_training_problems_share_counts_for_nothing() -> None:
    things = [("sky", "blue"), ("sea", "green"), ("rose", "red"), ("snow", "white")]
    mould = [TRAIN.format(thing=f"{thing} {i}", colour=colour) for i in range(5) for thing, colour in things]
    held_out = TRAIN.format(thing="moon", colour="pale")
    assert left(mould, [held_out], coverage=0) == mould
    assert left(mould[:5], [held_out], coverage=0) == []  # five are too few to tell a phrase from a leak
    assert left([*mould, held_out], [held_out], coverage=0) == mould


def test_a_long_request_that_all_problems_share_hides_no_leak() -> None:
    request = (
        "Give the answer as a whole number and write the final result in lowest terms where it is a fraction. " * 2
    )
    train = [f"{LONG.replace('12', str(n)).replace('goats', f'cats, {n} dogs')} {request}" for n in range(20, 40)]
    assert left([*train, f"From a book: {LONG} {request}"], [f"{LONG} {request}"]) == train


def test_counts_name_the_benchmark_and_the_reason() -> None:
    wrapped = f"Once more: {LONG}"
    _, counts = decontaminated(rows(LONG, wrapped), {"a": ["1+1?"], "b": [LONG]}, Overlap(ngram_sizes=(13, 8)))
    assert counts["a"] == {"identical": 0, "13-gram": 0, "8-gram": 0}
    assert counts["b"] == {"identical": 1, "13-gram": 1, "8-gram": 0}


def texts(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    found = json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines())
    return [row["problem"] for row in found]


def test_real_problems_typeset_differently_are_found_and_phrases_of_the_trade_are_not(real_data: Path) -> None:
    benchmark = texts(real_data / "aime" / "aime2024_with_solutions.jsonl")
    same_problems = texts(real_data / "deepscaler" / "test_aime2024.json")
    earlier_years = texts(real_data / "deepscaler" / "train_aime.json")
    assert left([*same_problems, *earlier_years], benchmark) == earlier_years
    assert len(left(earlier_years, benchmark, coverage=0, max_problems=10**6)) < 0.8 * len(earlier_years)


def test_the_near_duplicates_of_a_real_training_file_are_few_and_have_equal_answers(real_data: Path) -> None:
    source = json.loads((real_data / "deepscaler" / "train_math.json").read_text(encoding="utf-8"))
    problems = [{"prompt": row["problem"], "answer": row["answer"]} for row in source]
    kept, counts = distinct(problems, Dedup())
    assert counts["duplicate"] == 1 and 5 <= counts["near_duplicate"] <= 20
    asked = [row["prompt"] for row in kept if row["prompt"].startswith("A chess team has $26$ members")]
    assert len(asked) == 2  # one asks for the girls, one for the boys


LOOK_ALIKES = str.maketrans("aeopcyxABEKMHPT", "аеорсухАВЕКМНРТ")
DISGUISES = {
    "Cyrillic letters": LONG.translate(LOOK_ALIKES),
    "a Greek letter": LONG.replace("o", "ο"),
    "no width between the letters": "\u200b".join(LONG),
    "soft hyphens": "\u00ad".join(LONG),
    "letters struck through": "\u0336".join(LONG),
    "accents of their own": LONG.replace("e", "e\u0301"),
    "wide letters": "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in LONG),
    "mathematical letters": "".join(chr(0x1D41A + ord(char) - 97) if "a" <= char <= "z" else char for char in LONG),
    "null bytes": "\0".join(LONG),
    "halves of a character": "\ud800".join(LONG),
    "other spaces": LONG.replace(" ", "\u00a0\u2003"),
}


@pytest.mark.parametrize("disguised", DISGUISES.values(), ids=DISGUISES)
def test_a_benchmark_s_problem_is_found_in_every_disguise(disguised: str) -> None:
    assert left([disguised], [LONG]) == left([LONG], [disguised]) == []
    assert len(distinct(rows(LONG, disguised), Dedup())[0]) == 1


@pytest.mark.parametrize("text", ["a" * 1_000_000, "哈" * 300_000, "\0" * 1_000_000, "a \ud800" * 100_000])
def test_a_huge_line_without_sense_is_compared_and_kept(text: str) -> None:
    assert left([text, LONG], [LONG]) == [text]
    assert len(distinct(rows(text, LONG, text), Dedup())[0]) == 2
