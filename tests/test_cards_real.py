"""The cards of real data sets on real rows: a mirror (R1_DATA, default ../shared/data) and generators."""

import itertools
import json
import os
import re
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.card import Row, load_card
from pipeline.errors import CardError
from pipeline.places import ROOT
from stages.chat import parse
from stages.rewards.countdown import is_solution

MIRROR = Path(os.environ.get("R1_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (MIRROR / "gsm8k" / "train.jsonl").exists():
        pytest.skip(f"no real data at {MIRROR}; set R1_DATA to a folder with gsm8k/train.jsonl and countdown/")
    monkeypatch.setenv("R1_DATA", str(MIRROR))
    return MIRROR


def ids(rows: list[Row]) -> set[str]:
    return {row["id"] for row in rows}


def test_gsm8k_holds_out_at_least_500_problems_and_loses_none(mirror: Path) -> None:
    card = load_card("gsm8k")
    train, held_out = card.rows("train"), card.rows("eval")
    assert (len(train), len(held_out)) == (6756, 717)
    assert not ids(train) & ids(held_out)


def test_gsm8k_golds_are_bare_numbers(mirror: Path) -> None:
    golds = [row["answer"] for row in load_card("gsm8k").rows("train")]
    assert all(re.fullmatch(r"-?\d+", gold) for gold in golds)
    assert any(len(gold) > 3 for gold in golds)  # 1,000 became 1000


def test_gsm8k_demos_are_well_formed_end_in_the_gold_and_never_show_a_held_out_problem(mirror: Path) -> None:
    card = load_card("gsm8k")
    golds = {row["id"]: row["answer"] for row in card.rows("train")}
    demos = card.rows("train", "demos")
    assert ids(demos) == golds.keys()
    for demo in demos:
        response = parse(demo["response"])
        assert response.well_formed
        assert response.answer == golds[demo["id"]]
        assert "<<" not in demo["response"]
        assert "####" not in demo["response"]


def test_countdown_reads_the_hubs_columns_and_keeps_the_wanted_count_of_numbers(mirror: Path) -> None:
    card = load_card("countdown")
    for config, counts in ((None, {3, 4}), ("3", {3}), ("4", {4})):
        golds = [json.loads(row["answer"]) for row in card.rows("train", config)]
        assert {len(gold["numbers"]) for gold in golds} == counts
    assert len(card.rows("train")) + len(card.rows("eval")) == 2000


def test_countdown_reorderings_are_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "countdown").mkdir()
    orders = [{"target": 38, "nums": list(nums)} for nums in itertools.permutations([38, 25, 24])]
    rows = [*orders, *({"target": n, "nums": [n, 1, 1]} for n in range(10, 60))]
    file = tmp_path / "countdown" / "countdown_hub_schema_train_2000.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("R1_DATA", str(tmp_path))
    card = load_card("countdown")
    assert len(card.rows("train")) + len(card.rows("eval")) == 51


def reachable(numbers: list[Fraction]) -> set[Fraction]:
    """Every value that an expression with all the numbers can have."""
    if len(numbers) == 1:
        return set(numbers)
    values = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [number for k, number in enumerate(numbers) if k not in (i, j)]
        for joined in (a + b, a - b, a * b, *([a / b] if b else [])):
            values |= reachable([*rest, joined])
    return values


def test_generated_countdown_problems_can_be_solved() -> None:
    for row in load_card("countdown").rows("eval", "generated3", limit=40):
        gold = json.loads(row["answer"])
        assert Fraction(gold["target"]) in reachable([Fraction(number) for number in gold["numbers"]])


@pytest.mark.parametrize(("name", "config"), [("countdown", "generated3"), ("reasoning_gym", "chain_sum")])
def test_generated_train_and_eval_are_apart_for_any_seeds(name: str, config: str) -> None:
    card = load_card(name)
    train = ids(card.rows("train", config, limit=400, seed=0)) | ids(card.rows("train", config, limit=400, seed=1))
    held_out = ids(card.rows("eval", config, limit=200, seed=0)) | ids(card.rows("eval", config, limit=200, seed=1))
    assert len(train) > 400  # another seed gives other problems
    assert not train & held_out


@pytest.mark.parametrize(("name", "config"), [("countdown", "generated4"), ("reasoning_gym", "chain_sum")])
def test_generators_give_the_same_rows_again(name: str, config: str) -> None:
    card = load_card(name)
    assert card.rows("train", config, limit=50, seed=3) == card.rows("train", config, limit=50, seed=3)


def test_a_task_with_few_questions_gives_fewer_rows_instead_of_repeats() -> None:
    rows = load_card("reasoning_gym").rows("train", "tower_of_hanoi", limit=5000)
    assert 0 < len(rows) == len(ids(rows)) < 5000


def test_a_level_makes_a_task_as_easy_as_the_packages_curriculum_says() -> None:
    card = load_card("reasoning_gym")
    train, held_out = card.rows("train", "chain_sum.1", limit=200), card.rows("eval", "chain_sum", limit=200)
    assert {row["domain"] for row in train} == {json.loads(row["answer"])["task"] for row in train} == {"chain_sum"}
    numbers = [re.findall(r"\d+", row["prompt"]) for row in train]
    assert {len(terms) for terms in numbers} == {2, 3}
    assert {len(term) for terms in numbers for term in terms} == {1, 2}
    assert not ids(train) & ids(held_out)


@pytest.mark.parametrize("task", ["chain_sum", "knights_knaves", "graph_color", "letter_counting"])
def test_reasoning_gyms_own_checker_reads_its_gold_after_json(task: str) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    score = reasoning_gym.get_score_answer_fn(task)
    for row in load_card("reasoning_gym").rows("eval", task, limit=5):
        gold = json.loads(row["answer"])
        assert gold["task"] == row["domain"] == task
        if gold["entry"]["answer"] is not None:
            assert score(gold["entry"]["answer"], gold["entry"]) == 1.0
        assert score("not an answer", gold["entry"]) < 1.0


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("chain_sums", r"did you mean 'chain_sum'\?"),
        ("rearc", "does not survive JSON"),
        ("chain_sums.1", r"did you mean 'chain_sum'\?"),
        ("chain_sum.easy", "has no level 'easy'"),
        ("gsm_symbolic.1", "has no level '1'"),
        ("caesar_cipher.50", "refuses its level 50: rotation must be"),
        (None, "name a task"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused(task: str | None, sentence: str) -> None:
    with pytest.raises(CardError, match=sentence):
        load_card("reasoning_gym").rows("train", task)


def test_countdown_says_that_its_source_states_no_licence() -> None:
    assert "states no licence" in load_card("countdown").warnings[0]


def test_instruction_data_asks_each_question_once_and_its_answers_can_be_read(mirror: Path) -> None:
    card = load_card("instruction_data")
    train, held_out = card.rows("train"), card.rows("eval")
    assert (len(ids(train)), len(ids(held_out))) == (len(train), len(held_out)) == (978, 97)
    assert not ids(train) & ids(held_out)
    for demo in train:
        response = parse(demo["response"])
        assert response.reasoning is None
        assert response.answer and response.answer in demo["response"]


def test_generated_countdowns_need_no_mirror_even_where_r1_data_is_set(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("R1_DATA", str(tmp_path))
    card = load_card("countdown")
    assert len(card.rows("train", "generated3", limit=20)) == 20
    assert card.fingerprint


def test_countdown_demos_find_the_target_and_show_no_held_out_problem() -> None:
    card = load_card("countdown")
    demos = card.rows("train", "demos3", limit=300)
    for demo in demos:
        numbers, target = re.search(r"numbers ([\d, ]+) exactly .* make (\d+)", demo["prompt"]).groups()
        found = parse(demo["response"])
        assert found.well_formed
        assert is_solution(found.answer, [int(number) for number in numbers.split(", ")], int(target))
    assert not ids(demos) & ids(card.rows("eval", "generated3", limit=300))
