"""Micro-batches by tokens: within the budget, nothing lost, and the gradient of the whole batch to the last
digits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer

from pipeline.errors import ConfigError, ResourceError
from pipeline.stage import Workdir
from stages.engines import trl_config
from stages.engines.engine_correction import importance_ratio
from stages.engines.grpo_trainer import TokenBudgetGRPOTrainer
from stages.engines.models import attach_lora, quiet
from stages.engines.samplers import Sampling, TransformersSampler
from stages.engines.token_budget import (
    automatic_budget,
    cut,
    micro_batch_weight,
    plan,
    plan_batch,
)
from stages.memory_plan import bytes_per_token
from tests.toy_model import byte_tokenizer, tiny_llama

G = 4


def trainer(
    tmp_path: Path, model: Any = None, budget: int = 60, beta: float = 0.0, **settings: Any
) -> TokenBudgetGRPOTrainer:
    model = model if model is not None else tiny_llama()
    with quiet():
        made = TokenBudgetGRPOTrainer(
            model=model,
            tokenizer=byte_tokenizer(),
            args=GRPOConfig(
                **trl_config.common_arguments(Workdir(tmp_path), torch.device("cpu"), 10, 0),
                per_device_train_batch_size=16,
                num_generations=G,
                max_completion_length=12,
                max_steps=1,
                gradient_checkpointing=False,
                **settings,
            ),
            problems=[{"prompt": "x", "id": str(i)} for i in range(8)],
            sampler=TransformersSampler(model, byte_tokenizer()),
            sampling=Sampling(max_new_tokens=12),
            score=lambda *_: [],
            reward_weights={"accuracy": 1.0},
            token_budget=budget,
        )
    made.current_gradient_accumulation_steps = 1  # as transformers sets it when training begins
    made.beta = beta  # set here, for TRL would load a reference model from a folder; the batches bring their own
    return made


def random_batch(seed: int, offpolicy: bool = True, beta: float = 0.0) -> dict[str, torch.Tensor]:
    """A batch as TRL prepares it: 4 prompts of 1-9 tokens, 16 completions of 1-12, two groups without an
    advantage."""
    g = torch.Generator().manual_seed(seed)
    prompts = torch.randint(1, 10, (4,), generator=g).repeat_interleave(G)
    lengths = torch.randint(1, 13, (16,), generator=g)
    prompt_mask = (torch.arange(9) >= 9 - prompts[:, None]).long()
    completion_mask = (torch.arange(12) < lengths[:, None]).long()
    prompt_ids = torch.randint(1, 257, (4, 9), generator=g).repeat_interleave(G, 0) * prompt_mask
    batch = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(1, 257, (16, 12), generator=g) * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.randn(16, generator=g) * torch.tensor([1.0, 0, 1, 0]).repeat_interleave(G),
        "num_items_in_batch": completion_mask.sum(),
    }
    for name, wanted in (("old_per_token_logps", offpolicy), ("ref_per_token_logps", beta > 0)):
        if wanted:
            batch[name] = -5.5 + 0.3 * torch.randn(16, 12, generator=g)
    order = torch.randperm(16, generator=g)  # TRL shuffles rows after sampling
    return {name: value[order] if value.ndim else value for name, value in batch.items()}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole_batch_gradients(t: TokenBudgetGRPOTrainer, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, Any]]:
    """What TRL itself computes: all rows at once, its own forward pass."""
    t.model.zero_grad()
    t._shares_prompts = False
    loss = GRPOTrainer._compute_loss(t, t.model, dict(batch))
    loss.backward()
    return loss.item(), gradients(t.model)


LOSSES: list[dict[str, Any]] = [
    {"loss_type": "grpo"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "beta": 0.05},
    {"loss_type": "bnpo"},
    {"loss_type": "dr_grpo", "delta": 1.5},
    {"loss_type": "dapo", "epsilon_high": 0.28},
    {"loss_type": "dapo", "beta": 0.05},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "sapo"},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "vespo"},
]


@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "repeated prompts"])
@pytest.mark.parametrize("settings", LOSSES, ids=lambda s: " ".join(str(v) for v in s.values()))
def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch(
    settings: dict[str, Any], share: bool, tmp_path: Path
) -> None:
    t = trainer(tmp_path, **settings)
    t.model.train()
    for seed in range(3):
        batch = random_batch(seed, offpolicy=seed != 2, beta=settings.get("beta", 0.0))
        loss, expected = whole_batch_gradients(t, batch)
        t.model.zero_grad()
        t._shares_prompts = share
        total = t._accumulate(t.model, batch)
        found = gradients(t.model)
        assert len(plan_batch(batch, 60, share_prompts=share)) > 3
        assert total.item() == pytest.approx(loss, abs=1e-5)
        scale = max(value.abs().max().item() for value in expected.values())
        for name, value in expected.items():
            assert (found[name] - value).abs().max().item() < 1e-5 * max(1.0, scale), name


def test_the_gradient_of_an_adapter_is_the_same_with_shared_prompts(tmp_path: Path) -> None:
    t = trainer(tmp_path, attach_lora(tiny_llama(), 4, 8), loss_type="dapo")
    for name, parameter in t.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    t.model.train()
    batch = random_batch(5)
    _, expected = whole_batch_gradients(t, batch)
    t.model.zero_grad()
    t._shares_prompts = True
    t._accumulate(t.model, batch)
    for name, value in gradients(t.model).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


def test_a_weight_that_ignores_the_share_of_rows_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trainer(tmp_path, loss_type="grpo")
    t.model.train()
    _, expected = whole_batch_gradients(t, random_batch(0))
    monkeypatch.setattr("stages.engines.grpo_loss.micro_batch_weight", lambda *_: 0.25)
    t.model.zero_grad()
    t._accumulate(t.model, random_batch(0))
    assert any((gradients(t.model)[name] - value).abs().max() > 1e-4 for name, value in expected.items())


def test_rows_without_an_advantage_are_not_computed_unless_the_kl_term_needs_them(tmp_path: Path) -> None:
    for beta, share in ((0.0, 0.5), (0.05, 1.0)):
        t = trainer(tmp_path, beta=beta)
        t.model.train()
        t._accumulate(t.model, random_batch(1, beta=beta))
        assert t._step_metrics["trained_share"] == share


def test_log_probs_without_gradients_are_those_of_one_pass_over_all_rows(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    batch = random_batch(7)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        ours, _, _ = t._get_per_token_logps_and_entropies(t.model, ids, mask, 12, batch_size=16)
        theirs, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(t, t.model, ids, mask, 12)
    kept = batch["completion_mask"]
    assert torch.allclose(ours * kept, theirs * kept, atol=1e-5)


def test_the_budget_is_halved_when_the_gpu_is_full_and_the_gradient_stays_exact(tmp_path: Path) -> None:
    t = trainer(tmp_path, budget=64, loss_type="dapo")
    t.work = Workdir(tmp_path)
    t.model.train()
    batch = random_batch(3)
    _, expected = whole_batch_gradients(t, batch)
    t.model.zero_grad()
    compute, calls = t.compute_loss, []

    def full_at_the_second(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError
        return compute(*args, **kwargs)

    t.compute_loss = full_at_the_second  # type: ignore[method-assign]
    t.within_memory(t.model, lambda: t._accumulate(t.model, batch))
    assert t.token_budget == 32 and len(calls) > 3
    for name, value in gradients(t.model).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


def test_a_gpu_too_small_for_one_response_is_a_sentence(tmp_path: Path) -> None:
    t = trainer(tmp_path, budget=100)
    t.work = Workdir(tmp_path)

    def always_full() -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(ResourceError, match="too small for even one response"):
        t.within_memory(t.model, always_full)


MODES = {  # of two responses with log-ratios (0.1, 0.2) and (-0.5, unknown), bounds 0.7 and 1.2
    "token_truncate": [[1.105171, 1.2], [0.7, 1.0]],
    "token_mask": [[1.105171, 0.0], [0.0, 1.0]],
    "sequence_truncate": [[1.2], [0.7]],
    "sequence_mask": [[0.0], [0.0]],
}


@pytest.mark.parametrize("mode", MODES)
def test_samples_of_another_engine_are_weighted_by_their_ratio_within_bounds(mode: str) -> None:
    sampled = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, torch.nan, -9.0]])
    logps = torch.tensor([[-0.9, -1.8, -1.0], [-1.5, -1.0, -1.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    ratio = importance_ratio(logps, sampled, mask, mode, clip_max=1.2, clip_min=0.7)
    assert torch.allclose(ratio[:, :2], torch.tensor(MODES[mode]), atol=1e-5)


@pytest.mark.parametrize("offpolicy", [False, True], ids=["on policy", "old log-probs"])
def test_the_correction_needs_no_forward_pass_of_its_own(offpolicy: bool, tmp_path: Path) -> None:
    t = trainer(tmp_path, loss_type="dapo", vllm_importance_sampling_mode="token_truncate")
    t.model.train()
    batch = random_batch(4, offpolicy=offpolicy)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():  # the pass that TRL would take
        current, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(t, t.model, ids, mask, 12)
    old = batch.get("old_per_token_logps", current)
    noise = 0.1 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    weighted = {**batch, "importance_sampling_ratio": (-noise * batch["completion_mask"]).exp()}

    t.use_vllm, t._shares_prompts = True, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(t, "_correct_engine", lambda logps: None)
        GRPOTrainer._compute_loss(t, t.model, weighted).backward()
    expected = gradients(t.model)
    t.model.zero_grad()
    t.use_vllm, t._shares_prompts, t._corrects_engine = False, True, True
    t._accumulate(t.model, {**batch, "sampling_per_token_logps": old + noise})
    assert t._step_metrics["engine_gap"] == pytest.approx(0.08, abs=0.02)
    for name, value in gradients(t.model).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 50), st.integers(0, 4)), min_size=1, max_size=40)


@given(rows=LENGTHS, budget=st.integers(1, 400), share=st.booleans())
def test_a_plan_holds_each_useful_row_once_and_keeps_the_budget(
    rows: list[tuple[int, int, int]], budget: int, share: bool
) -> None:
    prompts, completions, names = (list(column) for column in zip(*rows, strict=True))
    micros = list(plan(prompts, completions, budget, names if share else None))
    assert sorted(i for m in micros for i in m.rows) == [i for i, length in enumerate(completions) if length]
    for m in micros:
        assert m.num_tokens <= budget or len(m.rows) == 1
        assert m.completion_width == max(completions[i] for i in m.rows)
        assert m.prompt_width == max(prompts[i] for i in m.rows)


def test_cutting_removes_only_padding() -> None:
    batch = random_batch(2)
    for micro in plan_batch(batch, 40):
        part = cut(batch, micro)
        rows = list(micro.rows)
        for name in ("prompt", "completion"):
            mask = batch[f"{name}_mask"][rows].bool()
            kept = part[f"{name}_mask"].bool()
            assert torch.equal(part[f"{name}_ids"][kept], batch[f"{name}_ids"][rows][mask])
            assert kept.any(0).all()
        assert part["num_items_in_batch"] == batch["num_items_in_batch"]


def test_an_unknown_loss_is_refused_rather_than_weighted_wrongly() -> None:
    with pytest.raises(ConfigError, match="is not one that can be cut"):
        micro_batch_weight("new_loss", random_batch(0), random_batch(0))


def test_the_automatic_budget_is_positive_and_checkpointing_needs_less() -> None:
    model = tiny_llama()
    assert automatic_budget(model, torch.device("cpu"), False) >= 256
    assert bytes_per_token(64, 128, 2, True, 2) < bytes_per_token(64, 128, 2, False, 2)
