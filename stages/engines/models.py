"""Models: loading a checkpoint and its tokenizer, and attaching LoRA (`merging.py` saves them).

Reads a local folder or a pinned hub id (`ModelSource`). Weights are loaded as fp32 on a
CPU (bf16 is some 200 times slower there) and as bf16 on CUDA. A file that is missing, cut off or of the wrong
kind is a ModelError with one sentence; code from a checkpoint is never run (`trust_remote_code` is off).
"""

import contextlib
import json
import logging
import re
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pipeline.errors import ConfigError, ModelError, ResourceError
from pipeline.places import stays_inside
from pipeline.stage import ModelSource
from stages.engines import ranks

if TYPE_CHECKING:
    from stages.training import Lora

Device = Literal["auto", "cpu", "cuda"]
Quantization = Literal["nf4"]


def choose_device(wanted: str = "auto") -> torch.device:
    """The device to compute on; `auto` is CUDA where there is one. ResourceError when it is not there."""
    if wanted == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(
            f"device '{wanted}' was asked for, but this machine has no CUDA device",
            hint="leave `device: auto` to compute on the CPU, or run where `nvidia-smi` shows a GPU",
        )
    return _own_gpu() if wanted == "cuda" else torch.device(wanted)


def _own_gpu() -> torch.device:
    """The one GPU there is to see, or that of this process among several (`ranks.py`)."""
    return torch.device("cuda", ranks.local_rank()) if ranks.world_size() > 1 else torch.device("cuda")


def compute_dtype(device: torch.device) -> torch.dtype:
    """fp32 on a CPU, bf16 on CUDA."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_tokenizer(source: ModelSource | Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; it pads on the left, as sampling needs, and never lacks a pad token."""
    source = _source(source)
    with _sentences(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, padding_side="left", trust_remote_code=False
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source.path} has no end-of-text token, so no response could ever end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    source: ModelSource | Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "auto",
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """A causal language model in eval mode on `device`.

    `dtype` None is the device's own (see `compute_dtype`). `nf4` loads the linear layers in 4 bits through bitsandbytes
    (QLoRA). Raises ModelError for a checkpoint that cannot be read, ResourceError for a missing device.
    """
    return _load(AutoModelForCausalLM, _source(source), dtype, device, quantization)[0]


def load_classifier(
    source: ModelSource | Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "auto",
    quantization: Quantization | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """A model with a head that gives one number for a text, in eval mode; otherwise like `load_model`.

    `new_head` puts a fresh head on a language model, to be trained (torch's seed decides its weights).
    Without it a model that has no trained head of one number is a ModelError: a head made up on loading would
    give scores that mean nothing.
    """
    source = _source(source)
    options = {"num_labels": 1} if new_head else {}
    model, missing = _load(AutoModelForSequenceClassification, source, dtype, device, quantization, **options)
    if missing and not new_head:
        raise ModelError(
            f"{source.path} is no reward model: it has no trained {', '.join(sorted(missing))}",
            hint="name the result of a reward_model stage, or a sequence classifier from the hub",
        )
    if model.config.num_labels != 1:
        raise ModelError(f"{source.path} gives {model.config.num_labels} numbers for a text; a reward model gives 1")
    return model


def _load(
    auto_class: Any,
    source: ModelSource,
    dtype: torch.dtype | None,
    device: torch.device | str,
    quantization: Quantization | None,
    **options: Any,
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the weights that its checkpoint lacks."""
    place = choose_device(device) if isinstance(device, str) else device
    options |= {"dtype": dtype or compute_dtype(place)}
    if quantization == "nf4":
        options |= {"quantization_config": _nf4(options["dtype"]), "device_map": {"": place}}
    _check_safetensors(source)
    with _sentences(source, "model"), quiet():
        model, loading = auto_class.from_pretrained(
            source.path,
            revision=source.revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    return (model if quantization else model.to(place)).eval(), set(loading["missing_keys"])


def attach_lora(
    model: PreTrainedModel, rank: int, alpha: int, dropout: float = 0.0, target_modules: str | list[str] = "all-linear"
) -> Any:
    """`model` with a fresh LoRA adapter (B = 0, so it starts as the same function), as a PeftModel.

    The head of a classifier is trained as a whole beside the adapter. Raises ConfigError for `target_modules` that are
    not in the model, or that can have no adapter.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        task_type="SEQ_CLS" if is_classifier(model) else "CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except (ValueError, re.error) as error:  # the other settings have been looked at
        asked = target_modules if isinstance(target_modules, str) else ", ".join(target_modules)
        raise ConfigError(
            f"lora.target_modules: the model has no layers for an adapter by the name '{asked}'",
            hint=f"its linear layers are {', '.join(_linear_layers(model))}; all-linear takes all of them",
        ) from error


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Their names, each once, without the head's."""
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    linear = (
        name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer not in heads
    )
    return sorted({name.rpartition(".")[2] for name in linear})


def load_for_training(
    source: ModelSource,
    device: torch.device,
    lora: "Lora | None",
    quantization: Quantization | None,
    seed: int,
    *,
    classifier: bool = False,
) -> Any:
    """Frozen weights with a fresh adapter, or all weights in fp32 (bf16 would round small updates away).

    `classifier` trains a fresh head that gives one number in place of the language model's head.
    """
    torch.manual_seed(seed)  # the first weights of adapter and head
    dtype = compute_dtype(device) if lora else torch.float32
    if classifier:
        model = load_classifier(source, dtype=dtype, device=device, quantization=quantization, new_head=True)
    else:
        model = load_model(source, dtype=dtype, device=device, quantization=quantization)
    if lora is None:
        return model
    model = attach_lora(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules)
    _set_head_dtype(model, torch.float32)
    return model


def read_config(source: ModelSource) -> PreTrainedConfig:
    """A checkpoint's configuration; ModelError where it cannot be read."""
    with _sentences(source, "configuration"):
        return AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)


def context_length(config: PreTrainedConfig) -> int:
    """The most tokens, prompt and response together, that a model was built for."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0)) or 2**31


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends a response: the tokenizer's and those the checkpoint declares."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    declared = [declared] if isinstance(declared, int) else list(declared or [])
    return list(dict.fromkeys([int(tokenizer.eos_token_id), *declared]))


def peak_memory_gib() -> dict[str, float]:
    """Most memory in use at once since this process began, in GiB: of the process, and of the GPU where there is one.

    The GPU's figure is what torch's tensors held, as in the manifest. With vLLM in this process that is more than
    training needs: vLLM's weights and cache (`vllm.gpu_memory_utilization` of the GPU) stay counted while it sleeps.
    Set `sampler: transformers` for a few steps to see the need of training alone.
    """
    peak = {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


def is_classifier(model: Any) -> bool:
    """Whether the model gives one number for a text, with or without an adapter around it."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return type(base).__name__.endswith("ForSequenceClassification")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries' progress bars, remarks and warnings stay out; errors are raised as ever."""
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    noisy = [logging.getLogger(name) for name in ("transformers", "trl", "accelerate", "peft", "datasets")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()


def _source(source: ModelSource | Path | str) -> ModelSource:
    return source if isinstance(source, ModelSource) else ModelSource(str(source))


def _nf4(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ResourceError(
            "quantization 'nf4' needs CUDA, and this machine has none", hint="set `quantization: null` here"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_safetensors(source: ModelSource) -> None:
    """Refuses a local folder without weights, or whose weight files do not hold what their headers say."""
    if not source.is_local:
        return
    folder = Path(source.path)
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no model at {folder} (config.json is missing)")
    for name in _weight_files(folder / "model.safetensors.index.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing", hint="make the stage again with REBUILD=STAGE")
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            hint = "make the stage again with REBUILD=STAGE, or fetch the file again"
            raise ModelError(f"{folder / name} is damaged or cut off: {error}", hint=hint) from error


def _weight_files(index: Path) -> list[str]:
    """The names of a model's weight files, all in its own folder."""
    if not index.is_file():
        return ["model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        outside = [name for name in names if not stays_inside(name)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{index} is damaged: it does not say which files hold the weights") from None
    if outside:
        raise ModelError(f"{index} names a file outside its folder: {outside[0]}")
    return names


@contextlib.contextmanager
def _sentences(source: ModelSource, what: str) -> Iterator[None]:
    """Turns what the libraries raise for an unreadable checkpoint into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        hint = "" if source.is_local else "the first run of this scale needs the hub; then HF_HUB_OFFLINE=1 works"
        raise ModelError(f"the {what} at {source.path} cannot be read: {reason}", hint=hint) from error


def _set_head_dtype(model: Any, dtype: torch.dtype) -> None:
    """For the head that PEFT trains as a whole: fp32 while it learns, like the adapter, then as the body."""
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data = parameter.data.to(dtype)


def copy_policy(policy: Any, reference: Any | None) -> None:
    """Makes the reference what the policy is now; None = the adapter `ref` beside the adapter `default`."""
    if reference is not None:
        reference.load_state_dict(policy.state_dict())
        return
    for name, weight in policy.named_parameters():
        if ".default." in name:
            policy.get_parameter(name.replace(".default.", ".ref.")).data.copy_(weight.data)
