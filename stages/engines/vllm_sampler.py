"""Sampling with vLLM: in this process, or from a `vllm serve` somewhere.

`VllmSampler` shares the GPU with training: it sleeps while gradients are computed and wakes to sample. A 4-bit base
gets each step's LoRA adapter as a folder of a few megabytes in shared memory, under a new id: nothing is merged, no
other weight is moved. Any other base gets weights with the adapter added, copied on the GPU: vLLM samples two to three
times as fast without LoRA kernels, and the sum is made in passing, so the trained model is never merged and unmerged.
vLLM packs a 4-bit base itself, from the same file with the same blocks and the same scales as training does (nf4 with
double quantisation, bitsandbytes), so both hold one model twice: 0.9 GiB more for 1.5B. How far their numbers are
apart is measured at every step (`engine_gap`, `engine_correction.py`).
The log-probabilities returned are those of the distribution sampled from, for the correction of the difference
between two engines (TRL's `vllm_importance_sampling_*` settings).
"""

import contextlib
import fcntl
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.errors import ResourceError
from pipeline.stage import ModelSource
from stages.engines import ranks
from stages.engines.merging import save_adapters
from stages.engines.models import end_tokens
from stages.engines.samplers import Completion, Sampling, decode_texts, encode_prompts

if TYPE_CHECKING:
    from stages.sampling import Vllm

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

# Batch sizes for which decoding is recorded as a CUDA graph. vLLM's own list ends at 512, and a step of GRPO may hold a
# thousand responses; it is also three times as long, which a start must wait for.
_GRAPH_SIZES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]

# Options that only reach vLLM where they are set.
_LIMITS = ("max_num_seqs", "max_num_batched_tokens")


class VllmSampler:
    """vLLM in this process. See the module docstring; `model` is the model in training, None for evaluation."""

    trained_elsewhere = True

    def __init__(
        self,
        source: ModelSource,
        tokenizer: Any,
        options: "Vllm",
        seed: int,
        max_completion_length: int,
        model: Any | None = None,
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process: no orphan, direct weight access
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        self.tokenizer = tokenizer
        self.options = options
        self._adapters = _adapter_folder()
        self._lora: Any = None
        self._asleep = False
        self._synced_step = -1
        self._swaps_adapters = _is_quantised_lora(model)
        # A base that is never sent again must be kept; nor does vLLM drop a model with LoRA slots whole.
        self._sleep_level = 1 if self._swaps_adapters else options.sleep_level
        self._llm = _started(
            LLM,
            model=source.path,
            revision=source.revision,
            dtype="bfloat16",
            seed=seed,
            gpu_memory_utilization=options.gpu_memory_utilization,
            max_model_len=options.max_model_len,
            enforce_eager=options.enforce_eager,
            enable_sleep_mode=model is not None,
            trust_remote_code=False,
            disable_log_stats=True,
            logprobs_mode="processed_logprobs",
            compilation_config={} if options.enforce_eager else {"cudagraph_capture_sizes": _graph_sizes(options)},
            **{name: value for name in _LIMITS if (value := getattr(options, name))},
            **_lora_options(model),
            # One engine for each process, every one with prompts of its own, in the group that is there already.
            **({"distributed_executor_backend": "external_launcher"} if ranks.world_size() > 1 else {}),
            **({"attention_backend": options.attention_backend} if options.attention_backend else {}),
            # Told its size, vLLM does not look at the free memory while another engine on this GPU starts or ends.
            **({"kv_cache_memory_bytes": _bytes(options.kv_cache_memory_gb)} if options.kv_cache_memory_gb else {}),
            **({"quantization": "bitsandbytes"} if getattr(model, "is_loaded_in_4bit", False) else {}),
        )
        self._ends = set(end_tokens(model, tokenizer)) if model is not None else {tokenizer.eos_token_id}

    def sync(self, model: Any, step: int) -> None:
        """Hands over the adapter (or all weights) of `model` after `step` updates; once for each step."""
        self._wake()
        if step == self._synced_step:
            return
        if self._swaps_adapters:
            self._swap_adapter(model, step)
        else:
            self._llm.llm_engine.model_executor.driver_worker.model_runner.model.load_weights(merged_weights(model))
            self._llm.reset_prefix_cache()
        self._synced_step = step

    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> list[list[Completion]]:
        """See `Sampler.generate`."""
        from vllm import SamplingParams

        self._wake()
        params = SamplingParams(
            **_drawn(n, sampling),
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            logprobs=0,
            flat_logprobs=True,  # one list for a response instead of an object for each token
            stop=list(sampling.stop) or None,
            stop_token_ids=sorted(self._ends),
            detokenize=bool(sampling.stop),
        )
        inputs = [{"prompt_token_ids": ids} for ids in encode_prompts(self.tokenizer, prompts)]
        with _seeded(sampling.seed):
            outputs = self._llm.generate(inputs, params, use_tqdm=False, lora_request=self._lora)
        groups = [[self._completion(found, sampling) for found in output.outputs] for output in outputs]
        return [group * (n // len(group)) for group in groups]

    def sleep(self) -> None:
        """Weights to the CPU's memory or dropped (`vllm.sleep_level`), cache dropped; only beside training."""
        if self._llm.llm_engine.vllm_config.model_config.enable_sleep_mode and not self._asleep:
            self._llm.sleep(level=self._sleep_level)
            self._asleep = True
            self._synced_step = -1 if self._sleep_level == 2 else self._synced_step

    def close(self) -> None:
        """Gives the engine's memory back and removes the last adapter."""
        self.sleep()
        shutil.rmtree(self._adapters, ignore_errors=True)

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what training no longer needs, vLLM does
            self._llm.wake_up()
            self._asleep = False

    def _swap_adapter(self, model: Any, step: int) -> None:
        from vllm.lora.request import LoRARequest

        folder = self._adapters / str(step)
        save_adapters(model, folder, "default")
        # A new id each time: vLLM caches adapters, and the prompts read with them, by id.
        self._lora = LoRARequest(lora_name=f"step-{step}", lora_int_id=step + 1, lora_path=str(folder))
        for old in self._adapters.iterdir():
            if old != folder:
                shutil.rmtree(old)

    def _completion(self, found: Any, sampling: Sampling) -> Completion:
        token_ids = list(found.token_ids)
        logprobs = [_finite(found.logprobs.logprobs[i]) for i in found.logprobs.start_indices]
        [text] = decode_texts(self.tokenizer, [token_ids], self._ends, sampling.stop)
        return Completion(token_ids, text, found.finish_reason == "length", logprobs)


class ServerSampler:
    """A `vllm serve` process reached over HTTP; started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.

    The server must see the same file system, for it reads each step's adapter from a folder.
    """

    trained_elsewhere = True

    def __init__(self, url: str, tokenizer: Any) -> None:
        self.url, self.tokenizer = url.rstrip("/"), tokenizer
        self.name = str(self._get("/v1/models")["data"][0]["id"])
        self._adapters = _adapter_folder()
        self._loaded: str | None = None

    def sync(self, model: Any, step: int) -> None:
        """Loads the adapter after `step` updates and drops the one before."""
        name, folder = f"step-{step}", self._adapters / str(step)
        if name == self._loaded:
            return
        save_adapters(model, folder, "default")
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if self._loaded:
            self._post("/v1/unload_lora_adapter", {"lora_name": self._loaded})
        self._loaded = name

    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> list[list[Completion]]:
        """See `Sampler.generate`."""
        payload: dict[str, Any] = {
            "model": self._loaded or self.name,
            "prompt": encode_prompts(self.tokenizer, prompts),
            **_drawn(n, sampling),
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed % 2**31,
            "logprobs": 0,
            "stop": list(sampling.stop) or None,
            "return_token_ids": True,
        }
        choices = self._post("/v1/completions", payload)["choices"]
        found = [self._completion(choice, sampling) for choice in choices]
        drawn = payload["n"]
        return [found[i : i + drawn] * (n // drawn) for i in range(0, len(found), drawn)]

    def sleep(self) -> None:
        """The server has its own GPU."""

    def close(self) -> None:
        """Removes the adapters; the server goes on."""
        shutil.rmtree(self._adapters, ignore_errors=True)

    def _completion(self, choice: dict[str, Any], sampling: Sampling) -> Completion:
        token_ids = list(choice["token_ids"])
        [text] = decode_texts(self.tokenizer, [token_ids], {self.tokenizer.eos_token_id}, sampling.stop)
        logprobs = [_finite(value) for value in choice["logprobs"]["token_logprobs"]]
        return Completion(token_ids, text, choice["finish_reason"] == "length", logprobs)

    def _get(self, path: str) -> dict[str, Any]:
        return self._ask("GET", path, None)

    def _post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, payload)

    def _ask(self, method: str, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        import httpx

        try:
            answer = httpx.request(method, self.url + path, json=payload, timeout=3600)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise ResourceError(
                f"the vLLM server at {self.url} did not answer {path}: {error}",
                hint="start it with `vllm serve MODEL --enable-lora --logprobs-mode processed_logprobs`",
            ) from error
        return answer.json() if "json" in answer.headers.get("content-type", "") else {}


def _started(engine: Any, **settings: Any) -> Any:
    """The engine; ResourceError when the GPU has no room for it."""
    try:
        return engine(**settings)
    except (ValueError, AssertionError, torch.OutOfMemoryError) as error:
        if not any(word in str(error) for word in ("memory", "KV cache")):
            raise
        raise ResourceError(
            f"vLLM does not find the GPU memory that it needs: {str(error).splitlines()[0]}",
            hint="set vllm.gpu_memory_utilization higher, or end what else runs on this GPU (`nvidia-smi`); "
            "vllm.kv_cache_memory_gb lets several engines start beside each other",
        ) from error


def _graph_sizes(options: "Vllm") -> list[int]:
    return [size for size in _GRAPH_SIZES if size <= (options.max_num_seqs or size)]


def _bytes(gib: float) -> int:
    return round(gib * 2**30)


def _is_quantised_lora(model: Any | None) -> bool:
    return hasattr(model, "peft_config") and bool(getattr(model, "is_loaded_in_4bit", False))


def _lora_options(model: Any | None) -> dict[str, Any]:
    if not _is_quantised_lora(model):
        return {}
    rank = model.peft_config["default"].r  # type: ignore[union-attr]
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": min(r for r in _LORA_RANKS if r >= rank)}


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of the model with its LoRA adapter added, one at a time; the model itself is left alone."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    for name, parameter in base.named_parameters():
        owner, is_adapted, _ = name.rpartition(".base_layer.weight")
        if is_adapted:
            delta = base.get_submodule(owner).get_delta_weight("default")
            yield f"{owner}.weight", (parameter.float() + delta.float()).to(parameter.dtype)
        elif ".lora_" not in name:
            yield name.replace(".base_layer", ""), parameter.data


def _drawn(n: int, sampling: Sampling) -> dict[str, Any]:
    """How many responses vLLM draws, and how warm: it refuses to draw the likeliest one more than once."""
    return {"n": 1, "temperature": 0.0} if sampling.is_greedy else {"n": n, "temperature": sampling.temperature}


def _adapter_folder() -> Path:
    """A folder for adapters, this process's own; what processes that were killed left there is removed."""
    place = Path(_memory_folder())
    for left in place.glob("r1-adapters-*"):
        with contextlib.suppress(OSError):  # it is in use, or somebody else's
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(descriptor)
    folder = Path(tempfile.mkdtemp(prefix="r1-adapters-", dir=place))
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX)  # until this process ends, however it ends
    return folder


def _memory_folder() -> str:
    """Shared memory where there is some: an adapter a step should not wear out a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def _finite(value: float | None) -> float:
    """vLLM gives no number for a token it could not score; NaN is what TRL's correction passes over."""
    return float("nan") if value is None else float(value)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """vLLM draws from the global generators (a seed for each request would slow its sampler); ours are put back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
