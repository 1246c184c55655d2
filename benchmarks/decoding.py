"""Tokens a second without vLLM: our decoders against `generate` of transformers, on the model that is being trained.

Reads a model folder, or makes random weights of a real shape; every response has exactly `--new-tokens` tokens, so all
do the same work. Makes JSON and a Markdown table: the median of `--rounds` rounds after one that warms up, peak memory,
and the ratio to `generate`.

    python -m benchmarks.decoding --model models/smollm2-135m --prompts 8 --num-generations 8 --new-tokens 256
    python -m benchmarks.decoding --shape qwen2.5-1.5b --nf4 --lora 32 --prompts 1 --num-generations 8 --new-tokens 512
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks import command_line, start
from benchmarks.core_cases import MODELS, SHAPES, make_model
from pipeline.provenance import environment
from stages.engines import decoding
from stages.engines.models import attach_lora, load_model
from stages.engines.plain_copy import PlainCopy
from stages.engines.samplers import Sampling, draw


def main() -> None:
    """Times every decoder in turn and reports."""
    chosen = arguments()
    model = model_of(chosen)
    torch.manual_seed(0)
    prompts = torch.randint(1, model.config.vocab_size, (chosen.prompts, chosen.prompt_tokens))
    contenders: dict[str, Callable[[], Any]] = {
        "generate of transformers": lambda: generate(model, prompts, chosen),
        "GrowingCache": lambda: decode(decoding.GrowingCache(model, 0), prompts, chosen),
        "RecordedSteps": lambda: decode(decoding.RecordedSteps(model, 0), prompts, chosen),
    }
    if chosen.lora:  # as `TrainingSampler` does it: the copy is made and dropped for each rollout
        contenders["GrowingCache on a plain copy"] = lambda: on_copy(decoding.GrowingCache, model, prompts, chosen)
        contenders["RecordedSteps on a plain copy"] = lambda: on_copy(decoding.RecordedSteps, model, prompts, chosen)
    num_tokens = chosen.prompts * chosen.num_generations * chosen.new_tokens
    rows = {name: timed(run, chosen.rounds, num_tokens) for name, run in contenders.items()}
    print(table(rows))
    if chosen.out:
        record = {"command": sys.argv[1:], **environment(), "rows": rows}
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = command_line(__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", type=Path, help="a model folder")
    model.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    parser.add_argument("--nf4", action="store_true", help="4-bit weights")
    parser.add_argument("--lora", type=int, default=0, help="rank of an adapter on all linear layers; 0 = none")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--num-generations", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def model_of(chosen: argparse.Namespace) -> Any:
    """The model under test, in eval mode."""
    folder = chosen.model or MODELS / chosen.shape
    if chosen.shape:
        make_model(chosen.shape, folder)
    model = load_model(folder, quantization="nf4" if chosen.nf4 else None)
    return attach_lora(model, chosen.lora, chosen.lora).eval() if chosen.lora else model


@torch.no_grad()
def generate(model: Any, prompts: torch.Tensor, chosen: argparse.Namespace) -> None:
    """transformers' own loop, as TRL calls it."""
    how = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=chosen.new_tokens,
        min_new_tokens=chosen.new_tokens,
        pad_token_id=0,
        eos_token_id=0,
    )
    ids = prompts.repeat_interleave(chosen.num_generations, 0).to(model.device)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)


@torch.no_grad()
def decode(decoder: decoding.Decoder, prompts: torch.Tensor, chosen: argparse.Namespace) -> None:
    """The loop of `TransformersSampler`, where no row ends early."""
    sampling = Sampling(max_new_tokens=chosen.new_tokens)
    logits = decoder.read(prompts.tolist(), chosen.num_generations, chosen.new_tokens)
    uniforms = torch.rand(len(logits), chosen.new_tokens, device=logits.device)
    for t in range(chosen.new_tokens):
        token, _ = draw(logits, sampling, uniforms[:, t])
        if t + 1 < chosen.new_tokens:
            logits = decoder.step(token)


def on_copy(
    decoder: Callable[[Any, int], decoding.Decoder], model: Any, prompts: torch.Tensor, chosen: argparse.Namespace
) -> None:
    plain = PlainCopy(model)
    plain.fill()
    decode(decoder(plain.model, 0), prompts, chosen)
    plain.drop()


def timed(run: Callable[[], Any], rounds: int, num_tokens: int) -> dict[str, float]:
    """Tokens a second and peak memory of torch's tensors (0 without CUDA)."""
    seconds = []
    is_cuda = torch.cuda.is_available()
    for _ in range(rounds + 1):
        if is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        run()
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    peak = torch.cuda.max_memory_allocated() / 2**30 if is_cuda else 0.0
    return {"seconds": round(median, 2), "tokens_per_s": round(num_tokens / median), "peak_gpu_gib": round(peak, 2)}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    base = rows["generate of transformers"]["tokens_per_s"]
    lines = ["| | seconds | tokens a second | against `generate` | peak, GiB |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        ratio = row["tokens_per_s"] / base
        lines.append(
            f"| {name} | {row['seconds']} | {row['tokens_per_s']:,.0f} | {ratio:.1f}× | {row['peak_gpu_gib']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    start(main)
