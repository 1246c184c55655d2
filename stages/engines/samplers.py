"""Samplers: prompts in, sampled responses out.

Four engines behind one method, `Sampler.generate(prompts, n, sampling)`:

    TransformersSampler   a transformers model in this process; works everywhere, the default without CUDA
    TrainingSampler       the same for the model in training, from a plain copy of it (`training_sampler.py`)
    VllmSampler           vLLM in the same process, fed the LoRA adapter of each step (`vllm_sampler.py`)
    ServerSampler         a `vllm serve` process somewhere (`vllm_sampler.py`)

Why an own decoding loop: responses differ in length, and `generate` of transformers carries every finished
row to the end. Here finished rows leave the batch and a prompt is read once for all its n responses; on the
mini model (256 responses of 27 tokens on average, at most 64, two cores) that is 0.7 s instead of 1.9 s.

Random numbers do not depend on the batching: row r at position t uses the uniform number u[r, t] of a private generator
seeded with `sampling.seed`, so a resumed run needs no state and a smaller token budget samples the same.

Shapes: R rows (prompts × n), T new tokens, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.errors import DataError
from stages.engines.decoding import decoder_for
from stages.engines.models import end_tokens
from stages.engines.token_budget import lowered

# Rows leave the cache when this share of the batch has finished: each removal copies the cache.
_FINISHED_SHARE = 0.25
_COLDEST = 0.01
"""Below it the likeliest token is drawn: logits divided by less leave what numbers hold. vLLM goes no lower either."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. `seed` names the random stream; `stop` texts end a response like the end token does."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is drawn every time."""
        return self.temperature < _COLDEST


@dataclass(frozen=True)
class Completion:
    """One response: its token ids (the end token included), its text (without it), and whether it was cut off.

    `logprobs[t]` is the log-probability with which token t was sampled (after temperature and top-p).
    """

    token_ids: list[int]
    text: str
    truncated: bool
    logprobs: list[float]


class Sampler(Protocol):
    """What the stages know of an engine. `trained_elsewhere`: the engine holds its own copy of the weights."""

    trained_elsewhere: bool

    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> list[list[Completion]]:
        """`n` responses for each prompt, in order."""
        ...

    def sync(self, model: Any, step: int) -> None:
        """Gives the engine the weights of `model` after `step` updates."""
        ...

    def sleep(self) -> None:
        """Lends the engine's memory to training; `generate` wakes it."""
        ...

    def close(self) -> None:
        """The last call."""
        ...


class TransformersSampler:
    """Samples from a transformers model in this process, in batches of at most `token_budget` cached tokens."""

    trained_elsewhere = False

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, token_budget: int = 65536) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.token_budget = lowered(token_budget)
        self._ends = torch.tensor(end_tokens(model, tokenizer), device=model.device)

    def sync(self, model: Any, step: int) -> None:
        """Samples from `model` from now on: the one that is trained."""
        self.model = model

    def sleep(self) -> None:
        """Nothing to lend: the weights are the trained ones and the cache is gone after each batch."""

    def close(self) -> None:
        """Nothing to close."""

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> list[list[Completion]]:
        """See `Sampler.generate`. Prompts are batched by length, so little padding is computed."""
        prompt_ids = encode_prompts(self.tokenizer, prompts)
        uniforms = _uniforms(len(prompts) * n, sampling).view(len(prompts), n, -1)
        found: dict[int, list[Completion]] = {}
        was_training = self.model.training
        self.model.eval()  # also lets a model with gradient checkpointing use its cache
        try:
            for chosen in _batches([len(ids) for ids in prompt_ids], n, sampling.max_new_tokens, self.token_budget):
                rows = self._decode([prompt_ids[i] for i in chosen], n, sampling, uniforms[chosen].flatten(0, 1))
                found |= {i: rows[k * n : (k + 1) * n] for k, i in enumerate(chosen)}
        finally:
            self.model.train(was_training)
        return [found[i] for i in range(len(prompts))]

    def _decode(
        self, prompt_ids: list[list[int]], n: int, sampling: Sampling, uniforms_RT: torch.Tensor
    ) -> list[Completion]:
        """The decoding loop over one batch; finished rows leave the batch and the cache while others go on."""
        device, num_rows = self.model.device, len(prompt_ids) * n
        decoder = decoder_for(self.model, self.tokenizer.pad_token_id)
        logits = decoder.read(prompt_ids, n, sampling.max_new_tokens)
        tokens_RT = torch.zeros((num_rows, sampling.max_new_tokens), dtype=torch.long, device=device)
        logprobs_RT = torch.zeros((num_rows, sampling.max_new_tokens), device=device)
        lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        live, running = (torch.arange(num_rows, device=device), torch.ones(num_rows, dtype=torch.bool, device=device))
        uniforms_RT = uniforms_RT.to(device)
        stops = _StopTexts(self.tokenizer, sampling.stop, device)

        for t in range(sampling.max_new_tokens):
            token, logprob = draw(logits, sampling, uniforms_RT[live, t])
            rows = live[running]
            tokens_RT[rows, t], logprobs_RT[rows, t], lengths[rows] = token[running], logprob[running], t + 1
            running &= ~torch.isin(token, self._ends)
            running &= ~stops.reached(tokens_RT, live, t, running)
            num_running = int(running.sum())
            if num_running == 0 or t + 1 == sampling.max_new_tokens:
                break
            if num_running <= (1 - _FINISHED_SHARE) * len(live):
                kept = running.nonzero()[:, 0]
                decoder.keep(kept)
                live, token, running = (x[kept] for x in (live, token, running))
            logits = decoder.step(token)

        unfinished = torch.zeros(num_rows, dtype=torch.bool, device=device)
        unfinished[live[running]] = True
        return self._completions(tokens_RT, logprobs_RT, lengths, unfinished, sampling.stop)

    def _completions(
        self,
        tokens_RT: torch.Tensor,
        logprobs_RT: torch.Tensor,
        lengths: torch.Tensor,
        unfinished: torch.Tensor,
        stop: tuple[str, ...],
    ) -> list[Completion]:
        ends = set(self._ends.tolist())
        table = zip(tokens_RT.tolist(), logprobs_RT.tolist(), lengths.tolist(), unfinished.tolist(), strict=True)
        rows = [(tokens[:length], logprobs[:length], cut) for tokens, logprobs, length, cut in table]
        texts = decode_texts(self.tokenizer, [tokens for tokens, _, _ in rows], ends, stop)
        return [Completion(tokens, text, cut, lp) for (tokens, lp, cut), text in zip(rows, texts, strict=True)]


def draw(logits: torch.Tensor, sampling: Sampling, uniforms_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples one token a row by inverting the cumulative distribution at `uniforms_R`; the likeliest if too cold.

    Returns token ids (R,) and their log-probabilities under the distribution that was sampled from (R,).
    """
    logits = logits.float()
    if sampling.is_greedy:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    logprobs = (logits / sampling.temperature).log_softmax(-1)
    if sampling.top_p < 1:
        logprobs = _nucleus(logprobs, sampling.top_p)
    cumulative = logprobs.exp().cumsum(-1)
    # Scaled by the last entry, which rounding keeps a little off 1; right=True never picks a token of
    # probability 0.
    token = torch.searchsorted(cumulative, uniforms_R[:, None] * cumulative[:, -1:], right=True)
    token = token.clamp(max=logits.shape[-1] - 1)
    return token[:, 0], logprobs.gather(-1, token)[:, 0]


def _nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keeps the smallest set of tokens that holds `top_p` of the probability, and renormalises."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logprobs.masked_fill(dropped, -torch.inf).log_softmax(-1)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt, with one begin token where the tokenizer uses one.

    A chat template writes the begin token itself; it is not put there twice.
    """
    rows = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    begin = tokenizer.bos_token_id
    if begin is None or tokenizer("")["input_ids"][:1] != [begin]:
        return rows
    return [row if row[:1] == [begin] else [begin, *row] for row in rows]


def check_prompt_lengths(
    prompts: Sequence[list[int]], problems: Sequence[Mapping[str, str]], context: int, new_tokens: int
) -> None:
    """DataError for a prompt after which the model's context has no room for `new_tokens`."""
    length, problem = max(zip(map(len, prompts), problems, strict=True), key=lambda pair: pair[0])
    if length > (room := context - new_tokens):
        raise DataError(
            f"the prompt of problem {problem['id']!r} has {length} tokens; the model's context of {context} "
            f"leaves {max(0, room)} beside responses of {new_tokens}",
            hint=f"leave long problems out{', or lower max_completion_length' * (new_tokens > 1)}",
        )


def decode_texts(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], ends: set[int], stop: tuple[str, ...] = ()
) -> list[str]:
    """The text of each response without its end token or stop text.

    Special tokens inside stay visible, so that a tag that is one token is seen, and one out of place too.
    """
    bare = [row[:-1] if row and row[-1] in ends else row for row in rows]
    texts = tokenizer.batch_decode(bare, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for ending in stop:
        texts = [text.split(ending, 1)[0] for text in texts]
    return texts


class _StopTexts:
    """Ends a row when its text ends with a stop text; only rows whose new token could complete one are decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], device: torch.device) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        if stop:
            pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
            lasts = {text[-1] for text in stop}
            self._candidate = torch.tensor([bool(lasts & set(piece)) for piece in pieces], device=device)

    def reached(self, tokens_RT: torch.Tensor, live: torch.Tensor, t: int, running: torch.Tensor) -> torch.Tensor:
        """Which of the `live` rows have just completed a stop text, (len(live),) bool."""
        hit = torch.zeros_like(running)
        if self.stop:
            tokens = tokens_RT[live, t].clamp(max=len(self._candidate) - 1)
            start = max(0, t + 1 - 2 * max(map(len, self.stop)))
            for k in (running & self._candidate[tokens]).nonzero()[:, 0].tolist():
                tail = self.tokenizer.decode(tokens_RT[live[k], start : t + 1], clean_up_tokenization_spaces=False)
                hit[k] = any(text in tail for text in self.stop)
        return hit


def _uniforms(num_rows: int, sampling: Sampling) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sampling.seed)
    return torch.rand((num_rows, sampling.max_new_tokens), generator=generator)


def _batches(lengths: list[int], n: int, max_new_tokens: int, token_budget: int) -> Iterator[list[int]]:
    """Prompt indices in batches of similar length, each within the budget of cached tokens (or one prompt)."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * n * (lengths[batch[0]] + max_new_tokens) > token_budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
