"""Sampling: our decoding loop computes what transformers computes, drops finished rows, and needs no saved
state."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from pipeline.errors import ResourceError
from stages.engines import decoding
from stages.engines.engine import choose_engine
from stages.engines.samplers import Sampling, TransformersSampler, draw, encode_prompts
from tests.toy_model import byte_tokenizer, tiny_llama

PROMPTS = ["2+3=", "a much longer prompt than the first", "x", "你好", "7 times 8 is"]


@pytest.fixture(scope="module")
def sampler() -> TransformersSampler:
    """A model that ends a response now and then, so that rows finish at different times."""
    model = tiny_llama(seed=3)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(6)
        model.model.embed_tokens.weight[0] = model.model.embed_tokens.weight.mean(0) * 6
    return TransformersSampler(model, byte_tokenizer())


def test_greedy_decoding_equals_generate_of_transformers_token_for_token(
    sampler: TransformersSampler,
) -> None:
    ours = sampler.generate(PROMPTS, 1, Sampling(temperature=0, max_new_tokens=24))
    batch = sampler.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    config = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=0, pad_token_id=0)
    theirs = sampler.model.generate(**batch, generation_config=config)[:, batch["input_ids"].shape[1] :]
    for [mine], row in zip(ours, theirs.tolist(), strict=True):
        length = row.index(0) + 1 if 0 in row else len(row)
        assert mine.token_ids == row[:length]
        assert mine.truncated == (0 not in row)


def test_a_cache_of_fixed_size_samples_what_the_growing_one_does(
    sampler: TransformersSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Sampling(max_new_tokens=120, seed=1, stop=("a", "e"))
    growing = [c for group in sampler.generate(PROMPTS, 16, settings) for c in group]
    sizes: set[tuple[int, int]] = set()

    class Watched(decoding.RecordedSteps):
        def _computed(self, rows: int, length: int) -> torch.Tensor:
            sizes.add((rows, length))
            return super()._computed(rows, length)

    monkeypatch.setattr(decoding, "LENGTH_STEP", 16)
    monkeypatch.setattr("stages.engines.samplers.decoder_for", Watched)
    fixed = [c for group in sampler.generate(PROMPTS, 16, settings) for c in group]
    assert len({rows for rows, _ in sizes}) > 1 and len({length for _, length in sizes}) > 1
    assert [c.token_ids for c in fixed] == [c.token_ids for c in growing]
    logprobs = [torch.tensor([value for c in found for value in c.logprobs]) for found in (fixed, growing)]
    assert torch.allclose(*logprobs, atol=1e-5)
    assert sampler.model.config._attn_implementation == "sdpa"


@pytest.mark.gpu
def test_recorded_steps_sample_what_the_growing_cache_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(seed=3).cuda()
    settings = Sampling(temperature=0, max_new_tokens=40)
    recorded = TransformersSampler(model, byte_tokenizer()).generate(PROMPTS, 16, settings)
    monkeypatch.setattr("stages.engines.samplers.decoder_for", decoding.GrowingCache)
    growing = TransformersSampler(model, byte_tokenizer()).generate(PROMPTS, 16, settings)
    assert [c.token_ids for group in recorded for c in group] == [c.token_ids for group in growing for c in group]


@pytest.mark.gpu
def test_a_model_of_full_precision_samples_under_autocast_on_cuda() -> None:
    sampler = TransformersSampler(tiny_llama(seed=3).cuda(), byte_tokenizer())
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = sampler.generate(PROMPTS, 2, Sampling(max_new_tokens=40, seed=1))
    assert [len(group) for group in found] == [2] * len(PROMPTS)


def test_rows_finish_at_different_times_and_each_is_cut_at_its_own_end(sampler: TransformersSampler) -> None:
    rows = [c for group in sampler.generate(PROMPTS, 16, Sampling(max_new_tokens=40, seed=1)) for c in group]
    assert len({len(c.token_ids) for c in rows}) > 5
    assert any(c.truncated for c in rows) and not all(c.truncated for c in rows)
    for c in rows:
        assert 0 not in c.token_ids[:-1]
        assert c.truncated == (c.token_ids[-1] != 0)
        assert len(c.logprobs) == len(c.token_ids) <= 40
        assert "<|endoftext|>" not in c.text


def test_samples_do_not_depend_on_the_token_budget(sampler: TransformersSampler) -> None:
    settings = Sampling(max_new_tokens=20, seed=5)
    tight = TransformersSampler(sampler.model, sampler.tokenizer, token_budget=1)
    assert [[c.text for c in g] for g in tight.generate(PROMPTS, 3, settings)] == [
        [c.text for c in g] for g in sampler.generate(PROMPTS, 3, settings)
    ]


def test_the_seed_alone_decides_and_global_random_state_is_left_alone(sampler: TransformersSampler) -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = sampler.generate(PROMPTS, 2, Sampling(max_new_tokens=12, seed=7))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert first == sampler.generate(PROMPTS, 2, Sampling(max_new_tokens=12, seed=7))
    assert first != sampler.generate(PROMPTS, 2, Sampling(max_new_tokens=12, seed=8))


def test_the_recorded_logprobs_are_those_of_a_whole_forward_pass(sampler: TransformersSampler) -> None:
    [[c]] = sampler.generate(["2+3="], 1, Sampling(temperature=0.7, max_new_tokens=15, seed=2))
    prompt = encode_prompts(sampler.tokenizer, ["2+3="])[0]
    with torch.no_grad():
        logits = sampler.model(torch.tensor([prompt + c.token_ids])).logits[0, len(prompt) - 1 : -1] / 0.7
    expected = logits.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(c.logprobs), expected, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-5])
def test_next_to_no_temperature_draws_the_likeliest_token(temperature: float) -> None:
    token, logprob = draw(torch.tensor([[0.0, 2.0, 1.0]]), Sampling(temperature), torch.ones(1))
    assert token.tolist() == [1] and logprob.isfinite().all()


def test_drawing_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).expand(20000, 4)
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    token, _ = draw(logits, Sampling(), uniforms)
    share = torch.bincount(token, minlength=4) / 20000
    assert torch.allclose(share, logits[0].softmax(-1), atol=0.015)


def test_top_p_keeps_the_smallest_sufficient_set_and_renormalises() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(5000, 4)
    uniforms = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    token, logprob = draw(logits, Sampling(top_p=0.6), uniforms)
    assert set(token.tolist()) == {0, 1}
    assert torch.allclose(logprob[token == 0].exp(), torch.tensor(0.5 / 0.8), atol=1e-5)


def test_a_uniform_of_zero_never_picks_an_impossible_token() -> None:
    token, _ = draw(torch.tensor([[-torch.inf, 0.0]]), Sampling(), torch.zeros(1))
    assert token.tolist() == [1]


def test_a_stop_text_ends_a_response_and_is_not_part_of_its_text(sampler: TransformersSampler) -> None:
    free = [c for group in sampler.generate(PROMPTS, 8, Sampling(max_new_tokens=40, seed=1)) for c in group]
    [(ending, _)] = Counter(char for c in free for char in c.text if char.isascii()).most_common(1)
    stopping = Sampling(max_new_tokens=40, seed=1, stop=(ending,))
    stopped = [c for group in sampler.generate(PROMPTS, 8, stopping) for c in group]
    assert sum(len(after.token_ids) < len(before.token_ids) for before, after in zip(free, stopped, strict=True)) > 3
    for before, after in zip(free, stopped, strict=True):
        assert after.text == before.text.split(ending)[0]
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert not (after.truncated and ending in before.text)


def test_a_begin_token_is_written_once() -> None:
    tokenizer = byte_tokenizer()
    assert encode_prompts(tokenizer, ["ab"]) == [tokenizer("ab")["input_ids"]]


def test_vllm_without_cuda_is_refused_with_a_sentence() -> None:
    with pytest.raises(ResourceError, match="sampler 'vllm' was asked for"):
        choose_engine("vllm", torch.device("cpu"))
    assert choose_engine("auto", torch.device("cpu")) == "transformers"


def test_weights_streamed_to_vllm_are_those_of_the_merged_model_and_leave_the_trained_one_alone() -> None:
    from stages.engines.models import attach_lora
    from stages.engines.vllm_sampler import merged_weights

    model = attach_lora(tiny_llama(), rank=4, alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    streamed = dict(merged_weights(model))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    merged = dict(model.merge_and_unload().named_parameters())
    assert set(streamed) == set(merged)
    assert all(torch.allclose(streamed[name], merged[name], atol=1e-6) for name in merged)


def test_adapters_that_a_killed_process_left_in_shared_memory_go_and_those_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.engines import vllm_sampler

    monkeypatch.setattr(vllm_sampler, "_memory_folder", lambda: str(tmp_path))
    in_use = vllm_sampler._adapter_folder()
    pid = os.fork()
    if pid == 0:  # a run that is killed while it samples
        (vllm_sampler._adapter_folder() / "step-1").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    left = [folder for folder in tmp_path.iterdir() if folder != in_use]
    assert len(left) == 1 and (left[0] / "step-1").is_dir()
    other = vllm_sampler._adapter_folder()
    assert set(tmp_path.iterdir()) == {in_use, other}
