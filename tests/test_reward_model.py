"""Reward models: an obvious preference is learned, a length bias is seen, a resume is exact, bad data is named."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.errors import ConfigError, DataError, Interrupted, ModelError
from pipeline.places import ROOT
from pipeline.stage import ModelSource
from stages.engines.models import load_classifier
from stages.engines.reward_models import RewardModelScorer, encode
from stages.reward_model import Pair, RewardModel, ScoredPair, balanced, measures, split, usable_pairs
from stages.training import Lora
from tests.test_grpo import SignalledWorkdir, ToyInputs, curves, same
from tests.toy_model import byte_tokenizer, save_toy_model, tiny_llama

MINI = ROOT / "models" / "mini-base"
THINGS = ("bike", "boat", "cake", "car", "chair", "door", "fence", "house", "lamp", "table", "wall", "window")
WAYS = ("paint", "wash", "fix", "lift", "move", "sell", "draw", "clean", "break", "steal")


def preferences(good: str, bad: str) -> list[dict[str, str]]:
    """One pair for each way with each thing; `{}` in a text stands for the thing."""
    said = {"domain": "general", "language": "en"}
    return [
        {"id": f"{way} {thing}", "prompt": f"How do I {way} a {thing}?", **said}
        | {"chosen": good.format(thing), "rejected": bad.format(thing)}
        for thing in THINGS
        for way in WAYS
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


def stage(**settings: Any) -> RewardModel:
    defaults = {"model": "path:base", "preferences": ["path:rows"], "template": "mini", "device": "cpu"}
    return RewardModel(**{**defaults, "batch_size": 16, "learning_rate": 1e-3, "save_steps": 2, **settings})


def train(
    kind: RewardModel, model: Path, folder: Path, rows: list[dict[str, str]], stop_after: int = 0
) -> dict[str, Any]:
    work = SignalledWorkdir(folder)
    work.stop_after = stop_after
    return kind.run(ToyInputs(model, rows), work)  # type: ignore[arg-type]


POLITE = preferences("Sure. Take the {} and do it well.", "No. I do not care for your {} at all.")


@pytest.fixture(scope="module", params=["pairwise", "pointwise"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A mini reward model that has seen the polite answers, and what it says of itself."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {"num_train_epochs": 4, "eval_share": 0.25, "objective": request.param}
    return folder, train(stage(**settings), MINI, folder, POLITE)


def test_an_obvious_preference_is_learned(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = trained
    assert metrics["accuracy"] > 0.9 and metrics["num_held_out"] == 30 and metrics["num_trained"] == 90
    assert metrics["eval_loss"] < math.log(2)
    assert curves(folder)[-1]["loss"] < curves(folder)[0]["loss"]


def test_the_scorer_gives_the_better_answer_more_and_stays_between_0_and_1(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    scorer = RewardModelScorer(ModelSource(str(trained[0])), "cpu")
    prompts = ["How do I lift a drum?"] * 2
    good, bad = scorer.score(
        prompts, ["Sure. Take the drum and do it well.", "No. I do not care for your drum at all."]
    )
    assert 0 <= bad < 0.5 < good <= 1
    assert scorer.score([], []) == []


def test_transformers_alone_loads_the_artifact_and_computes_the_same(trained: tuple[Path, dict[str, Any]]) -> None:
    folder = trained[0]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("Q: hi\nA: yes<|endoftext|>", return_tensors="pt")["input_ids"]
    [logit] = RewardModelScorer(ModelSource(str(folder)), "cpu").logits(["hi"], ["yes"])
    assert model(input_ids=ids).logits.item() == pytest.approx(logit, abs=1e-4)
    assert (folder / "model.safetensors").is_file() and not list(folder.rglob("*.bin"))


def test_a_held_out_text_scores_one_half_on_average_after_pairwise_training(tmp_path: Path, base: Path) -> None:
    train(stage(max_steps=2), base, tmp_path, POLITE)
    said = json.loads((tmp_path / "reward_model.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    logits = [row[side] for row in rows for side in ("chosen", "rejected")]
    assert len(rows) == 12 and sum(logits) / len(logits) == pytest.approx(said["center"])


def test_a_batch_scores_what_its_texts_score_one_by_one(trained: tuple[Path, dict[str, Any]]) -> None:
    scorer = RewardModelScorer(ModelSource(str(trained[0])), "cpu")
    prompts, texts = ["a?", "why is it so?" * 9, "b?"], ["no", "because of the long and the short of it", "yes" * 200]
    alone = [scorer.score([prompt], [text])[0] for prompt, text in zip(prompts, texts, strict=True)]
    assert scorer.score(prompts, texts) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"lora": Lora(rank=4, alpha=8, dropout=0.1)}], ids=["all weights", "lora"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    whole = train(stage(**settings), base, tmp_path / "whole", POLITE)
    with pytest.raises(Interrupted, match="after step 4"):
        train(stage(**settings), base, tmp_path / "cut", POLITE, stop_after=4)
    assert train(stage(**settings), base, tmp_path / "cut", POLITE) == whole
    first, second = (load_classifier(tmp_path / name, device="cpu").state_dict() for name in ("whole", "cut"))
    assert same(first, second)
    assert curves(tmp_path / "whole") == curves(tmp_path / "cut")


@pytest.mark.parametrize("objective", ["pairwise", "pointwise"])
def test_the_token_budget_does_not_change_the_result(objective: str, base: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optim": "sgd", "objective": objective, "learning_rate": 0.1}
    found = []
    for budget in (10**6, 1):
        train(stage(token_budget=budget, **settings), base, tmp_path / str(budget), POLITE)
        found.append(load_classifier(tmp_path / str(budget), device="cpu").state_dict())
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])
    rows = zip(curves(tmp_path / "1000000"), curves(tmp_path / "1"), strict=True)
    assert all(one[name] == pytest.approx(two[name], abs=1e-4) for one, two in rows for name in ("loss", "margin"))


def test_equal_and_empty_sides_are_left_out_and_counted() -> None:
    rows = preferences("yes", "no")[:3]
    rows += [{**rows[0], "chosen": "<answer> yes </answer>", "rejected": "<think> hm </think><answer>yes</answer>"}]
    rows += [{**rows[0], "rejected": "<think> never closed"}]
    pairs, counts = usable_pairs(rows, "answer")
    assert len(pairs) == 3 and counts == {"num_preferences": 5, "num_equal": 1, "num_without_text": 1}
    assert len(usable_pairs(rows, "whole")[0]) == 5
    with pytest.raises(DataError, match="none of 2 is left; 2 have equal sides"):
        usable_pairs(preferences("yes", "yes ")[:2], "answer")


def test_no_prompt_is_on_both_sides_of_the_split_and_the_share_is_exact() -> None:
    pairs = [Pair(f"{i}", f"prompt {i % 40}", "a", "b") for i in range(100)]
    training, held_out = split(pairs, 0.1, seed=0)
    assert len({p.prompt for p in held_out}) == 4 and len(training) + len(held_out) == 100
    assert not {p.prompt for p in training} & {p.prompt for p in held_out}
    assert split(pairs, 0.1, seed=1) != (training, held_out)
    with pytest.raises(DataError, match="one prompt between them"):
        split([Pair("1", "why?", "a", "b")] * 3, 0.1, seed=0)


def test_a_length_bias_is_seen(base: Path, tmp_path: Path) -> None:
    """In the data the longer text is better, save for a tenth: the model learns length, and the measures say so."""
    rows = preferences("ok" * 12, "ok" * 2)
    for row in rows[::10]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    found = train(stage(num_train_epochs=6, eval_share=0.3, learning_rate=3e-3), base, tmp_path, rows)
    assert found["length_correlation"] > 0.9
    assert found["accuracy_better_is_longer"] > 0.9 and found["accuracy_better_is_shorter"] < 0.1


def test_balancing_takes_the_bias_out_of_the_data() -> None:
    pairs = [Pair(str(i), str(i), "long" if i % 4 else "s", "mid" if i < 90 else "0000") for i in range(100)]
    kept, num_left_out = balanced(pairs)
    assert sum(p.length_gap > 0 for p in kept) == sum(p.length_gap < 0 for p in kept) == 25
    assert len(kept) + num_left_out == 100
    with pytest.raises(DataError, match="always the longer one"):
        balanced([Pair("1", "?", "long", "s")])


def test_what_cannot_be_measured_is_left_out() -> None:
    same_length = [ScoredPair(Pair("1", "?", "aa", "bb"), 1.0, -1.0)]
    found = measures(same_length, "pointwise")
    assert found["accuracy"] == found["accuracy_of_texts"] == 1.0
    assert found["eval_loss"] == pytest.approx(math.log1p(math.exp(-1)))
    assert not {"length_correlation", "accuracy_better_is_shorter"} & found.keys()


def test_a_loss_that_is_no_number_stops_training_with_a_sentence(tmp_path: Path) -> None:
    model = tiny_llama()
    model.model.norm.weight.data[0] = math.nan
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="the loss of the reward model is nan in step 1"):
        train(stage(), tmp_path / "base", tmp_path / "out", POLITE)


def test_a_score_that_is_no_number_is_an_error_with_a_sentence(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    scorer = RewardModelScorer(ModelSource(str(trained[0])), "cpu")
    scorer.model.score.weight.data.fill_(math.nan)
    with pytest.raises(ModelError, match=r"gives nan for a response to 'why\?'"):
        scorer.score(["why?"], ["so"])


def test_a_language_model_is_no_reward_model(base: Path) -> None:
    with pytest.raises(ModelError, match=r"is no reward model: it has no trained score\.weight"):
        RewardModelScorer(ModelSource(str(base)), "cpu")


def test_a_classifier_without_our_file_is_asked_in_its_own_chat_template(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    load_classifier(trained[0], device="cpu").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    scorer = RewardModelScorer(ModelSource(str(tmp_path)), "cpu", template="mini")
    assert tokenizer.decode(scorer._encode(["why?"], ["so"])[0]) == "[user]why?[assistant]so"
    assert 0 < scorer.score(["why?"], ["so"])[0] < 1


def test_a_damaged_settings_file_is_named(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "reward_model.json").write_text('{"template": "mi')
    with pytest.raises(ModelError, match=r"reward_model\.json is damaged"):
        RewardModelScorer(ModelSource(str(tmp_path)), "cpu")


def test_too_long_a_text_loses_the_beginning_of_its_prompt_first() -> None:
    tokenizer = byte_tokenizer()
    [row] = encode(tokenizer, "mini", ["a long question"], ["short"], limit=12)
    assert tokenizer.decode(row) == "on\nA: short<|endoftext|>"
    [row] = encode(tokenizer, "mini", ["?"], ["a very long text"], limit=6)
    assert tokenizer.decode(row) == " a ve<|endoftext|>"


def test_pairs_that_are_too_long_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    long = [{**row, "id": "long", "prompt": row["prompt"] + "!", "rejected": "x" * 300} for row in POLITE[:9]]
    found = train(stage(max_steps=1, eval_share=0.01), base, tmp_path / "some", POLITE + long)
    assert 8 <= found["num_too_long"] <= 9 and found["num_trained"] <= 120
    with pytest.raises(DataError, match="preferences is longer than 256 tokens"):
        train(stage(), base, tmp_path / "none", long)


def test_settings_that_cannot_be_are_refused_with_a_sentence(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="RewardConfig has no setting 'beta'"):
        train(stage(trl={"beta": 1}), base, tmp_path, POLITE)
    with pytest.raises(ConfigError, match="nothing to train"):
        train(stage(quantization="nf4"), base, tmp_path, POLITE)


def test_a_limit_that_a_reward_model_does_not_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps within no memory_gb"):
        stage(memory_gb=5.0)
