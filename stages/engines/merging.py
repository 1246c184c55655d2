"""Saving what was trained: the adapter merged into the weights, and a check of what was written.

Reads a model at the end of its training; writes safetensors, config and tokenizer to a folder, the adapter beside
them in `adapter/`, and `merge.json`, how well the saved model computes what was trained.

The sum of weights and adapter is made in fp32 and rounded once to the type of the weights. Sum and file are checked
each by itself: the sum must compute what was trained, as exactly as fp32 does, and what is read from the file what was
rounded. What rounding itself costs is measured and let through, with a note in the report where it is half of what
training changed: in bf16 a change of less than half a step of a weight (about 0.2 % of it) is rounded away. On SmolLM2
adapters that change predictions by 1.5e-4 nats a token keep 74 % of that, by 4e-5 51 %, by 3e-6 32 %, and five steps of
RL on 4-bit weights 41 to 43 %. Training in fp32 (a CPU, or all weights) loses nothing.
"""

import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.artifact import write_json
from pipeline.errors import ModelError
from pipeline.stage import ModelSource
from stages.engines.models import Quantization, is_classifier, load_classifier, load_model, quiet
from stages.training import MERGE_FILE

# Drift (see `drift`) that computing the same in another order in fp32 explains, and the share of an effect.
MOST_DRIFT, MOST_LOST = 1e-4, 0.01
# Of an adapter that changes less than this (nats a token) that share cannot be told.
LEAST_EFFECT = 1e-5


def merge_and_save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes merged weights, config and tokenizer to `folder`, and checks what was written.

    Raises ModelError if the merged model does not compute what was trained, or if the saved one, loaded again, differs
    from the merged one by more than the type it was rounded to. `model` may be as a trainer holds it, and cannot be
    trained further.
    """
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)  # else autocast is around its forward pass
    dtype = _stored_dtype(model)
    probe = torch.randint(0, min(model.config.vocab_size, len(tokenizer)), (4, 32), generator=_seeded(0))
    untrained = None
    if is_adapted := hasattr(model, "peft_config"):
        named = model.peft_config["default"].target_modules
        if isinstance(named, set):  # PEFT writes it in the order of the hashes, which is another in every process
            model.peft_config["default"].target_modules = sorted(named)
        # Only the adapter that was trained: a frozen "ref" adapter is the trainer's business.
        save_adapters(model, folder / "adapter", "default")
        (folder / "adapter/README.md").unlink()  # PEFT's form to fill in; the folder has a card of its own
        model = _unpacked(model, folder / "adapter")
    model = model.to(_roomy_device(model)).float()
    merged = trained = _predictions(model, probe)
    if is_adapted:
        with model.disable_adapter():
            untrained = _predictions(model, probe)
        model = _merged(model, folder / "adapter")
        merged = _predictions(model, probe)
    _cast(model, dtype)
    _cast(model, torch.float32)  # what the file is to hold, as it will be read again
    rounded = _predictions(model, probe)
    _cast(model, dtype)
    model.save_pretrained(folder, max_shard_size="20GB")
    tokenizer.save_pretrained(folder)
    reload = load_classifier if is_classifier(model) else load_model
    saved = _predictions(reload(folder, dtype=torch.float32, device=model.device), probe)
    write_json(folder / MERGE_FILE, compare(trained, saved, untrained))
    check(compare(trained, merged, untrained), folder)
    check({"merge_drift": drift(rounded, saved)}, folder)


def save_adapters(model: Any, folder: Path, only: str | None = None) -> None:
    """The adapters of a PeftModel as PEFT writes them, or that of a name, with what is trained beside them.

    By way of the host: the weights may share memory, and PEFT would then copy each of them on the GPU.
    """
    weights = dict(model.named_parameters())
    trained = {name: weights[name].detach().cpu() for name in weights if "lora_" in name or "modules_to_save" in name}
    names = [only] if only else None
    model.save_pretrained(str(folder), selected_adapters=names, state_dict=trained, save_embedding_layers=False)


def merge_again(source: ModelSource, folder: Path, quantization: Quantization | None) -> None:
    """Writes `folder/model.safetensors` as `merge_and_save` did, from the base at `source` and `folder/adapter`."""
    config = AutoConfig.from_pretrained(folder)
    is_judge = config.architectures[0].endswith("ForSequenceClassification")
    load = partial(load_classifier, new_head=True) if is_judge else load_model
    base = load(source, dtype=config.dtype, quantization=quantization)
    base = (base.dequantize() if quantization else base).to(_roomy_device(base)).float()
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    with quiet(), TemporaryDirectory(dir=folder) as beside:  # config.json and the like are there, and sealed
        merged.to(config.dtype).save_pretrained(beside, max_shard_size="20GB")
        Path(beside, "model.safetensors").rename(folder / "model.safetensors")


def compare(trained: torch.Tensor, saved: torch.Tensor, untrained: torch.Tensor | None) -> dict[str, float]:
    """`merge_drift`, and with an adapter `merge_kept`: the share of its effect that the saved model shows.

    Log-probabilities (rows, tokens, V) or a classifier's numbers (rows, 1). The share is the projection of what the
    saved model changed on what training changed, so 1 is all of it, and random rounding does not count as loss.
    """
    found = {"merge_drift": drift(trained, saved)}
    if untrained is None:
        return found
    weight = trained.exp() if trained.shape[-1] > 1 else torch.ones_like(trained)
    effect, kept = trained - untrained, saved - untrained
    size = float((weight * effect * effect).sum())
    share = float((weight * effect * kept).sum()) / size if size else 1.0
    return found | {"merge_effect": drift(trained, untrained), "merge_kept": share}


def drift(before: torch.Tensor, after: torch.Tensor) -> float:
    """Mean KL divergence in nats a token; for a classifier the mean change, as a share of its numbers' size."""
    if before.shape[-1] == 1:
        return float((before - after).abs().mean() / (1 + before.abs().mean()))
    return float((before.exp() * (before - after)).sum(-1).mean())


def check(found: dict[str, float], folder: Path) -> None:
    """Raises ModelError where what `compare` found is more than fp32's own error."""
    if math.isnan(found["merge_drift"]):
        hint = "lower learning_rate, or set max_grad_norm: it moved the weights too far"
        raise ModelError(f"training ended in weights that are not numbers (NaN), in {folder}", hint=hint)
    has_effect = found.get("merge_effect", 0.0) >= LEAST_EFFECT
    is_lost = has_effect and not abs(1 - found["merge_kept"]) <= MOST_LOST  # also true for NaN
    if is_lost or not found["merge_drift"] <= MOST_DRIFT:
        kept = f", it keeps {found['merge_kept']:.0%} of what the adapter changed" if "merge_kept" in found else ""
        raise ModelError(
            f"the model saved in {folder} does not compute what was trained: drift {found['merge_drift']:.2g}{kept}",
            hint="the adapter and the last training checkpoint are intact; run the same command again",
        )


def _cast(model: Any, dtype: torch.dtype) -> None:
    """The weights alone: `model.to` would also round the frequencies of the positions, which no file holds."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def _stored_dtype(model: Any) -> torch.dtype:
    """The type of the weights, or what 4-bit weights are unpacked to."""
    if getattr(model, "is_loaded_in_4bit", False):
        return model.config.quantization_config.bnb_4bit_compute_dtype
    return next(model.parameters()).dtype


def _unpacked(model: Any, adapter: Path) -> Any:
    """The adapted model with 4-bit weights unpacked: merging into 4 bits would round the adapter away."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return model
    return PeftModel.from_pretrained(model.unload().dequantize(), adapter)


def _merged(model: Any, adapter: Path) -> PreTrainedModel:
    """The base under `model` with the saved adapter added to its weights."""
    return PeftModel.from_pretrained(model.unload(), adapter).merge_and_unload()


def _roomy_device(model: Any) -> torch.device:
    """Where the weights fit in fp32 with a second copy beside them: the model's own device, or the CPU."""
    if model.device.type != "cuda":
        return model.device
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(model.device)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    bytes_more = 2 + 4  # of each weight: bf16 becomes fp32, and there is the copy
    return model.device if bytes_more * num_weights < free else torch.device("cpu")


@torch.no_grad()
def _predictions(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next tokens, or a classifier's one number for each row."""
    model.eval()
    logits = model(input_ids=ids.to(model.device)).logits.float().cpu()
    return logits if logits.shape[-1] == 1 else logits.log_softmax(-1)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
