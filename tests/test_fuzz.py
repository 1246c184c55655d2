"""Whatever is written in a recipe, a data card, a source's rows or a completion: a result or one clear sentence.

Every property runs on a few hundred cases, and on 10,000 with `python -m pytest -m fuzz`.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import recipe, written
from pipeline.card import load_card
from pipeline.errors import PipelineError
from stages.chat import has_tags, judged_text, parse
from stages.language import language_share
from stages.rewards import math_answer
from stages.rewards.checkers import CHECKERS, Verdict, answer_text, canonical
from stages.rewards.repetition_penalty import repeated_share
from stages.rewards.sandbox import Question
from tests.hostile_completions import ROWS

few_and_many = pytest.mark.parametrize("num_cases", [200, pytest.param(10_000, marks=pytest.mark.fuzz)])


def fuzz(num_cases: int, claim: Callable[[Any], None], cases: st.SearchStrategy[Any]) -> None:
    """Try the claim on so many cases."""
    settings(max_examples=num_cases, suppress_health_check=list(HealthCheck), database=None)(given(cases)(claim))()


# --- what people write: recipes and cards -------------------------------------------------------------------

WORDS = ["r1_zero", "base", "kind", "sft", "grpo", "evaluate", "model", "problems", "max_steps", "rewards", "extends"]
WORDS += ["stages", "seed", "scales", "beside", "path:..", "path:/etc", "stage:base", "run:../x/y", "scale:x", "card:x"]
WORDS += [
    "hub:a/b@c",
    "path:\0",
    "{scale}",
    "other",
    "toy",
    "../../etc/passwd",
    "1e400",
    "\ud800",
    "train",
    "**/*",
    "..",
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS) | st.text(max_size=8)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | PLAIN, inner, max_size=3),
    max_leaves=6,
)
RECIPE = {
    "description": "a toy",
    "seed": 1,
    "scales": ["toy"],
    "beside": "other-{scale}",
    "sft": {"learning_rate": 1e-4},
    "stages": {
        "base": {"kind": "pretrain"},
        "tuned": {"kind": "sft", "model": "stage:base", "demos": ["card:mini_world:demos"]},
        "r1_zero": {"kind": "grpo", "model": "stage:tuned", "problems": ["scale:problems"], "max_steps": 3},
        "measured": {"kind": "evaluate", "model": "stage:r1_zero", "problems": ["card:mini_world"]},
    },
}
SCALE = {"refs": {"problems": "card:mini_world"}, "minutes": {"base": 1}, "grpo": {"max_steps": 2}}
CARD = {
    "license": "mit",
    "r1": {
        "rows": "problem",
        "mirror": {"train": "rows.jsonl"},
        "columns": {"prompt": "question", "answer": "answer"},
        "constants": {"checker": "math", "domain": "math", "language": "en"},
        "holdout": {"eval": 0.5},
        "configs": {"demos": {"rows": "demo"}},
    },
}


@st.composite
def mutated(draw: st.DrawFn, written: dict[str, Any]) -> Any:
    """What was written, with one to three places changed, removed or renamed."""
    changed = copy.deepcopy(written)
    for _ in range(draw(st.integers(1, 3))):
        place, key = changed, draw(st.sampled_from(sorted(changed, key=str))) if changed else "stages"
        while isinstance(place.get(key), dict) and place[key] and draw(st.booleans()):
            place = place[key]
            key = draw(st.sampled_from(sorted(place, key=str)))
        place.pop(key, None)
        if draw(st.booleans()):
            place[draw(st.just(key) | st.sampled_from(WORDS) | PLAIN)] = draw(VALUES)
    return changed


def as_bytes(written: Any) -> bytes:
    """The file: text as it is, other things as YAML."""
    return (written if isinstance(written, str) else yaml.safe_dump(written)).encode("utf-8", "replace")


@few_and_many
def test_a_recipe_is_loaded_or_refused_in_a_sentence(
    num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "CONFIGS", tmp_path)
    monkeypatch.setenv("R1_RUNS", str(tmp_path / "runs"))
    for folder in ("recipes", "scales"):
        (tmp_path / folder).mkdir()
    (tmp_path / "base.yaml").write_text("sft: {device: cpu}\n")

    def claim(case: tuple[Any, Any, list[str]]) -> None:
        (tmp_path / "recipes/toy.yaml").write_bytes(as_bytes(case[0]))
        (tmp_path / "scales/toy.yaml").write_bytes(as_bytes(case[1]))
        (tmp_path / "recipes/other.yaml").write_text("extends: toy\nstages: {more: {kind: evaluate}}\n")
        try:
            json.dumps(recipe.load_recipe("toy", "toy", args=case[2]).as_json())
        except PipelineError as error:
            assert str(error)

    recipes = mutated(RECIPE) | VALUES | st.text(st.characters(codec="utf-8"), max_size=40)
    words = st.tuples(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(".".join), st.text(max_size=8) | VALUES
    )
    args = st.lists(words.map(lambda pair: f"{pair[0]}={pair[1]}") | st.text(max_size=8), max_size=2)
    fuzz(num_cases, claim, st.tuples(recipes, st.just(SCALE) | mutated(SCALE), args))


@few_and_many
def test_a_data_card_and_its_rows_are_read_or_refused_in_a_sentence(
    num_cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_CARDS", str(tmp_path))
    monkeypatch.setenv("R1_DATA", str(tmp_path / "data"))
    (tmp_path / "toy").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"question": "secret", "answer": "1"}\n')

    def claim(case: tuple[Any, bytes]) -> None:
        (tmp_path / "toy/README.md").write_bytes(b"---\n" + as_bytes(case[0]) + b"\n---\n# Toy\n")
        (tmp_path / "data/rows.jsonl").write_bytes(case[1])
        try:
            card = load_card("toy")
            assert card.licence and len(card.fingerprint) == 64
            rows = card.rows("train", limit=3)
            assert all(isinstance(value, str) and value != "secret" for row in rows for value in row.values())
        except PipelineError as error:
            assert str(error)

    fronts = mutated(CARD) | VALUES | st.text(st.characters(codec="utf-8"), max_size=40)
    row = st.fixed_dictionaries({"question": VALUES, "answer": VALUES}).map(json.dumps)
    line = row | VALUES.map(json.dumps) | st.text(st.characters(codec="utf-8"), max_size=8)
    lines = st.lists(line.map(str.encode) | st.binary(max_size=8), max_size=3).map(b"\n".join)
    fuzz(num_cases, claim, st.tuples(fronts, lines))


# --- what models write: tags and answers --------------------------------------------------------------------

PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<THINK>", "< /answer >", "<|im_end|>", "</s>", r"\boxed{"]
PIECES += ["{", "}", "\\", "42", "and so on ", "\u202e", "\0", "\ud800", "三", "$"]
SOUP = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=30).map("".join)


@few_and_many
def test_any_completion_is_taken_apart(num_cases: int) -> None:
    def claim(case: tuple[str, bool]) -> None:
        text, prefilled = case
        response = parse(text, prefilled=prefilled)
        assert not response.well_formed or (response.reasoning and response.answer and not has_tags(response.answer))
        assert response.answer is None or response.answer in text
        for scope in ("answer", "whole"):
            judged_text(response, scope)  # type: ignore[arg-type]
        assert 0 <= repeated_share(text, 3) <= 1 and 0 <= (language_share(text, "en") or 0) <= 1

    fuzz(num_cases, claim, st.tuples(SOUP, st.booleans()))


MATHS = [*"{}()[]^_+-*/,.=|!$ %0123456789xyei", r"\frac", r"\sqrt", r"\pi", r"\cup", r"\infty", r"\text{", r"\sin"]
MATHS += [r"\log", r"\left", r"\right", r"\{", r"\}", "\\", "1e9", "or", "cm", "万", "𝟘", "²", "\0", "\ud800", "9" * 60]
GOLDS = sorted({(row[2], row[3]) for row in ROWS})


@few_and_many
def test_any_answer_gets_a_verdict_or_a_question(num_cases: int) -> None:
    def claim(case: tuple[str, tuple[str, str]]) -> None:
        answer, (checker, gold) = case
        problem = {"id": "1", "prompt": answer, "answer": gold, "checker": checker}
        found = CHECKERS[checker](answer, problem)
        assert isinstance(found, Verdict | Question)
        assert isinstance(canonical(answer, checker), str)
        assert math_answer.clean(math_answer.clean(answer)[:400]) is not None
        answer_text(parse(answer), checker)
        json.dumps(found)

    answers = st.lists(st.sampled_from(MATHS), max_size=30).map("".join) | SOUP
    fuzz(
        num_cases,
        claim,
        st.tuples(answers, st.sampled_from(GOLDS) | st.tuples(st.sampled_from(sorted(CHECKERS)), SOUP)),
    )
