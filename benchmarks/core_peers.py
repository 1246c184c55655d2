"""One run of a peer on a case of `core_cases.py`: plain TRL in several settings, or Unsloth. Prints one RESULT line.

Called by `core.py`, each time in a process of its own, which imports nothing of the project. In a whole step each
samples in its own way, without vLLM.

    trl_default   TRL as it comes: fp32 weights, checkpointing, a micro-batch of one group
    trl_qlora     4-bit weights and 8-bit Adam
    trl_max       the same row by row, checkpoints offloaded to the host
    unsloth       4-bit weights by its own loader and trainer, its own defaults
"""

import itertools
import os
import tempfile
import types
from pathlib import Path
from typing import Any

from benchmarks import command_line, require_package, start
from benchmarks.core_cases import (
    CASES,
    GIB,
    RANK,
    SHAPES,
    TARGETS,
    Case,
    Meter,
    callback,
    completions,
    demos,
    limit_memory,
    open_tokenizer,
    prompts,
    rewards,
    say,
)

# What CUDA and its libraries took of a card beside the allocator with either peer, at most.
CONTEXT_GIB = 0.75
CONTENDERS = ("trl_default", "trl_qlora", "trl_max", "unsloth")


def settings(name: str, case: Case) -> dict[str, Any]:
    """Of the trainer's config: what is the same for every contender, and what each brings."""
    import torch

    is_cuda = torch.cuda.is_available()
    rows = 1 if name == "trl_max" or case.demo else case.generations
    found: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": min(2, case.steps) if case.memory_gb else case.steps,  # their rollouts take long
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": 1 if case.demo else case.generations // rows,
        "learning_rate": 1e-6,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": is_cuda,
        "use_cpu": not is_cuda,
    }
    if is_cuda and name != "trl_default":
        found["optim"] = "adamw_8bit"
    if is_cuda and name == "trl_max":
        found["gradient_checkpointing_kwargs"] = {"use_reentrant": False, "offload": True}
    if case.demo:
        return found | {"max_length": case.completion, "packing": True, "padding_free": True}
    return found | {
        "num_generations": case.generations,
        "max_completion_length": case.completion,
        "temperature": 1.0,
        "beta": 0.0,
        "mask_truncated_completions": False,
        **({"generation_kwargs": endless(case)} if case.memory_gb else {}),
    }


def endless(case: Case) -> dict[str, Any]:
    """Responses of exactly the case's length: no special token is drawn."""
    vocab = SHAPES[case.shape][6]
    return {"min_new_tokens": case.completion, "suppress_tokens": [vocab - 4, vocab - 3, vocab - 2, vocab - 1]}


def quantized() -> Any:
    import torch
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def trl_trainer(name: str, case: Case, folder: Path) -> Any:
    """TRL's trainer for the case."""
    import datasets
    import torch
    import trl
    from peft import LoraConfig

    is_cuda = torch.cuda.is_available()
    options: dict[str, Any] = {
        "model": str(folder),
        "processing_class": open_tokenizer(folder),
        "peft_config": LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
    }
    if name != "trl_default" and is_cuda:
        options["quantization_config"] = quantized()
    init = {} if name == "trl_default" else {"dtype": "bfloat16" if is_cuda else "float32"}
    if case.demo:
        args = trl.SFTConfig(model_init_kwargs=init or None, **settings(name, case))
        rows = datasets.Dataset.from_list([{"input_ids": ids} for ids in demos(case, 64 * case.steps)])
        trainer = trl.SFTTrainer(args=args, train_dataset=rows, **options)
    else:
        args = trl.GRPOConfig(model_init_kwargs=init or None, loss_type="dapo", **settings(name, case))
        rows = datasets.Dataset.from_dict({"prompt": prompts(case)})
        trainer = trl.GRPOTrainer(reward_funcs=reward, args=args, train_dataset=rows, **options)
    if name == "trl_max" and is_cuda:
        keep_offload(trainer.model)
    return trainer


def unsloth_trainer(case: Case, folder: Path) -> Any:
    """Unsloth's model in the trainer that it patches."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    import unsloth  # noqa: F401, I001 (it patches the others, so it comes first)
    import datasets
    import torch
    import trl
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        str(folder),
        max_seq_length=case.prompt + case.completion + 64,
        load_in_4bit=True,
        dtype=torch.bfloat16,
        fast_inference=False,
        use_gradient_checkpointing="unsloth",
        fix_tokenizer=False,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=RANK,
        target_modules=TARGETS,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
    )
    tokenizer = open_tokenizer(folder)
    if case.demo:
        rows = datasets.Dataset.from_list([{"input_ids": ids} for ids in demos(case, 64 * case.steps)])
        args = trl.SFTConfig(**settings("unsloth", case))
        return trl.SFTTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=rows)
    rows = datasets.Dataset.from_dict({"prompt": prompts(case)})
    args = trl.GRPOConfig(**settings("unsloth", case))
    return trl.GRPOTrainer(model=model, processing_class=tokenizer, reward_funcs=reward, args=args, train_dataset=rows)


def reward(completions: list[Any], **_: Any) -> list[float]:
    return rewards(len(completions))


def keep_offload(model: Any) -> None:
    """TRL 1.16 switches checkpointing on again after each rollout and loses `offload`; here it keeps it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = type(base).gradient_checkpointing_enable

    def enable_with_offload(self: Any, gradient_checkpointing_kwargs: Any = None, **options: Any) -> Any:
        others = dict(gradient_checkpointing_kwargs or {})
        options.setdefault("offload", bool(others.pop("offload", True)))
        return enable(self, gradient_checkpointing_kwargs=others or None, **options)

    base.gradient_checkpointing_enable = types.MethodType(enable_with_offload, base)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--contender", choices=CONTENDERS, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--cap-gib", type=float, default=0.0)
    chosen = parser.parse_args()
    case, name = CASES[chosen.case], chosen.contender
    if name == "unsloth":
        require_package("unsloth", "put the folder that holds it into PYTHONPATH")
    limit_memory(chosen.cap_gib or (case.memory_gb or 0) * 1e9 / GIB - CONTEXT_GIB * bool(case.memory_gb))
    meter = Meter()
    is_unsloth = name == "unsloth"
    trainer = unsloth_trainer(case, chosen.model_dir) if is_unsloth else trl_trainer(name, case, chosen.model_dir)
    if case.memory_gb:
        meter.watch_card()
        trainer._generate_single_turn = meter.real_rollout(trainer._generate_single_turn, lambda found: found[0])
    elif not case.demo:
        drawn = completions(case)
        trainer._generate_single_turn = meter.rollout(
            lambda prompt_ids, *_, **__: (list(itertools.islice(drawn, len(prompt_ids))), None)
        )
    trainer.add_callback(callback(meter))
    trainer.train()
    norms = [round(float(row["grad_norm"]), 5) for row in trainer.state.log_history if "grad_norm" in row]
    say(meter.row(case) | {"grad_norms": norms})


if __name__ == "__main__":
    start(main)
