"""Every card of a data set of others on the three rows that lie beside it: columns, rows made, licence, revision."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.bad_rows import Tally
from pipeline.card import COLUMNS, Card, Row, list_cards, load_card
from pipeline.errors import CardError
from stages.chat import parse

HUB_CARDS = [name for name in list_cards() if load_card(name).block.hub]
SOURCED = [name for name in list_cards() if not load_card(name).block.generator]
ADDRESSES = [(name, config) for name in SOURCED for config in (None, *load_card(name).configs)]
GENERATED = {("countdown", config) for config in ("generated3", "generated4", "demos3", "demos4", "3", "4")}
MEASURES = ["aime", "amc", "humaneval", "ifeval", "math_500"]


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1_DATA", raising=False)


def made(name: str, config: str | None = None) -> tuple[list[Row], Tally]:
    """The rows that the card makes of its examples, and what became of the others."""
    card = load_card(name)
    tally = card.tally(card.splits[0], config)
    return list(card.reading(card.examples(config)).stream(card.splits[0], config, tally=tally)), tally


def source_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def features(card: Card, config: str | None) -> set[str]:
    """The columns that the front matter states for a config of ours."""
    mine = card.block.configs.get(config or "")
    wanted = (mine and mine.hub_config) or (config if config in card.configs else None)
    infos = {info["config_name"]: info["features"] for info in card.front["dataset_info"]}
    return {feature["name"] for feature in infos.get(wanted, next(iter(infos.values())))}


@pytest.mark.parametrize("name", SOURCED)
def test_a_card_has_three_rows_in_exactly_the_columns_it_states(name: str) -> None:
    card = load_card(name)
    for config in (None, *card.configs):
        rows = source_rows(card.examples(config))
        assert len(rows) == 3
        assert all(set(row) == features(card, config) for row in rows)


@pytest.mark.parametrize(("name", "config"), [address for address in ADDRESSES if address not in GENERATED])
def test_a_card_makes_rows_of_its_examples_and_none_is_bad(name: str, config: str | None) -> None:
    rows, tally = made(name, config)
    shape = load_card(name).shape(config)
    assert rows and not tally.bad
    assert all(tuple(row) == COLUMNS[shape] for row in rows)
    assert len(rows) + tally.left_out.total() == 3


@pytest.mark.parametrize("name", HUB_CARDS)
def test_a_hub_card_pins_a_commit_or_says_that_none_is_confirmed(name: str) -> None:
    card = load_card(name)
    readme = (card.folder / "README.md").read_text(encoding="utf-8")
    assert card.block.hub is not None
    if card.block.hub.revision is None:
        assert "revision is confirmed" in readme
        error = card.lacks("train")
        assert error and "is pinned" in error.message and "commits/main" in error.hint
    else:
        assert len(card.block.hub.revision) == 40 and card.lacks(card.splits[0]) is None


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("openr1_math_220k", None),
        ("mixture_of_thoughts", None),
        ("mixture_of_thoughts", "code"),
        ("openthoughts_114k", None),
        ("openthoughts_114k", "metadata"),
        ("bespoke_stratos_17k", None),
        ("r1_distill_sft", None),
        ("r1_distill_sft", "v1"),
        ("dolphin_r1", None),
        ("dolphin_r1", "reasoning-flash"),
        ("limo", None),
        ("gsm8k", "socratic"),
    ],
)
def test_a_trace_becomes_a_well_formed_demo_whose_box_is_the_answer(name: str, config: str | None) -> None:
    for row in made(name, config)[0]:
        response = parse(row["response"])
        assert response.well_formed and response.answer
        assert "\\boxed" not in response.answer and "begin_of" not in row["response"]


def test_of_several_generations_the_first_that_is_whole_and_right_is_chosen() -> None:
    from data_cards.traces import chosen

    def row(verify: Any, llama: Any, complete: Any) -> dict[str, Any]:
        lists = {"correctness_math_verify": verify, "correctness_llama": llama, "is_reasoning_complete": complete}
        return {"generations": ["a", "b", "c"], **lists}

    assert chosen(row([False, True, True], None, [True, True, True])) == 1
    assert chosen(row([True, False, False], None, [False, True, True])) is None
    assert chosen(row([False, False, False], [False, False, True], [True, True, True])) == 2
    assert chosen(row(None, None, None)) is None
    assert chosen(row([False, True, True], None, None)) == 1


def test_proofs_and_lost_answers_of_numinamath_are_left_out_and_counted() -> None:
    _, tally = made("numinamath_1_5")
    assert tally.left_out["a proof"] == 1 and not tally.bad


def test_aime_and_amc_answers_are_bare_numbers_whatever_type_they_had() -> None:
    assert {row["answer"] for row in made("aime")[0]} == {"9", "24", "27"}
    assert {row["answer"] for row in made("amc")[0]} == {"142", "2.5", "12"}


def test_socratic_solutions_lose_their_stars_and_marks() -> None:
    responses = [row["response"] for row in made("gsm8k", "socratic")[0]]
    assert not any("**" in text or "<<" in text for text in responses)
    assert any("How many clips did Natalia sell in May? Natalia sold 48/2 = 24" in text for text in responses)


def test_a_box_is_no_longer_asked_for_and_domains_are_ours() -> None:
    rows, _ = made("openthoughts_114k")
    assert {row["domain"] for row in rows} == {"math", "code"}
    assert not any(row["prompt"].startswith("Return your final") for row in rows)


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_for_measuring_cannot_be_trained_on(name: str) -> None:
    with pytest.raises(CardError, match="no split 'train'"):
        load_card(name).rows("train")


def test_binding_licences_and_terms_are_told() -> None:
    assert "no commercial use" in load_card("r1_distill_sft").warnings[0]
    assert any("Gemini" in warning for warning in load_card("dolphin_r1").warnings)
    assert any("MAA" in warning for warning in load_card("aime").warnings)
