"""The final RL: general prompts and reward models come late, together, and the KL term ties to the right model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from transformers import LlamaForSequenceClassification

from pipeline.errors import ConfigError, DataError, Interrupted
from pipeline.recipe import build_stage
from pipeline.stage import ModelSource, Workdir, read_jsonl
from stages.engines.models import load_model
from stages.grpo import GRPO
from stages.sft import SFT
from stages.training import Lora
from tests.test_grpo import FirstByte, SignalledWorkdir, ToyInputs, curves, problems, same, toy, train
from tests.toy_model import byte_tokenizer, save_toy_model, tiny_llama

GENERAL = {"answer": "", "checker": "judge", "domain": "general", "language": "en"}
QUESTIONS = [{"id": f"g{i}", "prompt": f"How are you {i}?", **GENERAL} for i in range(6)]


class FinalInputs(ToyInputs):
    """Reasoning problems, general questions that come late, and two models."""

    def __init__(self, model: Path, reward_model: Path | None = None, late: Sequence[Any] = QUESTIONS) -> None:
        super().__init__(model, problems())
        self.reward_model, self.late = reward_model, list(late)

    def checkpoint(self, field: str) -> ModelSource:
        return ModelSource(str(self.reward_model if field != "model" else self.model))

    def rows(self, field: str, limit: int | None = None) -> list[dict[str, str]]:
        return (self.late if field == "late_problems" else self.problems)[:limit]


class Recorded(FirstByte):
    """Writes down which problems were drawn, and after which share of the steps."""

    drawn: ClassVar[list[tuple[float, list[str]]]] = []

    def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float, models: Any = None) -> Any:
        self.drawn.append((fraction, [problem["id"] for problem in problems]))
        return super().score(problems, completions, fraction)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random head on a random body, as a hub reward model would lie there."""
    folder = tmp_path_factory.mktemp("reward_model")
    config = tiny_llama(seed=1).config
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def run(stage: GRPO, inputs: FinalInputs, folder: Path, stop_after: int = 0) -> list[list[str]]:
    """Runs the stage and returns the problems drawn in each batch."""
    Recorded.drawn.clear()
    work = SignalledWorkdir(folder)
    work.stop_after = stop_after
    try:
        stage.run(inputs, work)  # type: ignore[arg-type]
    except Interrupted:
        assert stop_after
    return [ids for _, ids in Recorded.drawn]


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2, "save_steps": 3}], ids=["one update", "two updates"])
@pytest.mark.parametrize("stop_after", [3, 5])
def test_a_run_resumed_across_the_switch_draws_the_problems_of_the_uninterrupted_one(
    stop_after: int, settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    stage = toy(Recorded, max_steps=8, late_problems=["path:general"], late_from=0.5, **settings)
    inputs = FinalInputs(base)
    whole = run(stage, inputs, tmp_path / "whole")
    assert [any(one.startswith("g") for one in ids) for ids in whole] == [
        i >= len(whole) / 2 for i in range(len(whole))
    ]
    assert all(len({one for one in ids if one.startswith("g")}) == 2 for ids in whole[len(whole) // 2 :])

    cut = run(stage, inputs, tmp_path / "cut", stop_after)
    assert cut + run(stage, inputs, tmp_path / "cut") == whole
    assert same(*(load_model(tmp_path / name, device="cpu").state_dict() for name in ("whole", "cut")))
    assert curves(tmp_path / "whole") == curves(tmp_path / "cut")


def test_a_reward_model_scores_general_answers_from_its_time_on(base: Path, reward_model: Path, tmp_path: Path) -> None:
    kinds = [{"kind": "accuracy"}, {"kind": "helpfulness", "from_fraction": 0.5}]
    late = {"late_problems": ["path:general"], "late_from": 0.5}
    stage = toy(GRPO, rewards=kinds, helpfulness_model="path:reward_model", **late)
    run(stage, FinalInputs(base, reward_model), tmp_path)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert ["reward/helpfulness" in row for row in rows] == [False] * 3 + [True] * 3
    assert all(0 < row["reward/helpfulness"] < 1 and row["zero_variance_share"] < 1 for row in rows[3:])
    assert all(row["pass_at_1"] == 0 and row["zero_variance_share"] == 1 for row in rows[:3])


def test_a_reward_model_reads_the_question_and_not_the_prompt_around_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Recorder:
        def __init__(self, *opened: Any) -> None:
            pass

        def score(self, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
            asked.extend(prompts)
            return [0.5] * len(texts)

    monkeypatch.setattr("stages.engines.grpo_run.RewardModelScorer", Recorder)
    stage = toy(
        GRPO, rewards=[{"kind": "helpfulness"}], helpfulness_model="path:x", late_problems=["path:g"], late_from=0.0
    )
    run(stage, FinalInputs(base), tmp_path)
    assert set(asked) <= {row["prompt"] for row in QUESTIONS} and len(asked) == 6 * 2 * 4


def test_pass_at_1_stays_that_of_reasoning_problems_when_others_come_in(base: Path, tmp_path: Path) -> None:
    polite = [{**row, "checker": "refusal", "answer": "comply"} for row in QUESTIONS]  # nearly any text is right
    stage = toy(GRPO, late_problems=["path:general"], late_from=0.5)
    run(stage, FinalInputs(base, late=polite), tmp_path)
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert last["pass_at_1"] == 0 < last["reward/accuracy"]


def test_a_reward_and_its_model_go_together() -> None:
    liked = [{"kind": "accuracy"}, {"kind": "helpfulness"}]
    with pytest.raises(ValidationError, match="the reward 'helpfulness' needs a reward model"):
        toy(rewards=liked)
    with pytest.raises(ValidationError, match="no reward asks this model"):
        toy(harmlessness_model="stage:harmlessness_model")
    with pytest.raises(ConfigError, match=r"stages\.final_rl\.helpfulness_model: the reward 'helpfulness' needs"):
        build_stage("final_rl", "grpo", {"model": "stage:x", "problems": ["card:x"], "rewards": liked})


def test_too_few_late_problems_are_refused_before_any_training(base: Path, tmp_path: Path) -> None:
    stage = toy(GRPO, late_problems=["path:general"], late_share=1.0)
    with pytest.raises(DataError, match="3 usable late problems, but a step takes 4"):
        stage.run(FinalInputs(base, late=QUESTIONS[:3]), Workdir(tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None], ids=["lora", "all weights"])
def test_sft_rl_sft_rl_each_has_the_model_it_starts_from_as_its_reference(
    lora: Lora | None, base: Path, tmp_path: Path
) -> None:
    kl = {"lora": lora, "beta": 0.05, "learning_rate": 1e-2, "ref_model_sync_steps": 3}
    before = base
    for name in ("cold_start", "reasoning_rl", "second_sft", "final_rl"):
        if name.endswith("rl"):
            train(toy(seed=len(name), **kl), before, tmp_path / name)
        else:
            learn(before, tmp_path / name, lora)
        assert not same(*(load_model(folder, device="cpu").state_dict() for folder in (before, tmp_path / name)))
        before = tmp_path / name
    for name in ("reasoning_rl", "final_rl"):
        kl_curve = [row["kl"] for row in curves(tmp_path / name)]
        assert kl_curve[0] == pytest.approx(0, abs=1e-6)  # the reference is the model of the stage before
        assert kl_curve[3] == pytest.approx(0, abs=1e-6)  # and, after three steps, what it has become
        assert min(kl_curve[2], kl_curve[5]) > 1e-5


def learn(model: Path, folder: Path, lora: Lora | None) -> None:
    """A short SFT on the toy model."""
    said = {"response": " <think> ok </think><answer> ok </answer>", "domain": "general", "language": "en"}
    rows = [{"id": f"d{i}", "prompt": "say ok" + "!" * i, **said} for i in range(8)]
    settings = {"model": "path:base", "demos": ["path:demos"], "template": "mini", "device": "cpu"}
    stage = SFT(**{**settings, "batch_size": 4, "learning_rate": 3e-3, "lora": lora, "eval_share": 0.0})
    stage.run(ToyInputs(model, rows), Workdir(folder))  # type: ignore[arg-type]
