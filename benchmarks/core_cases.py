"""What `core.py` compares: the cases, models of the real shapes with random weights, and one meter for all contenders.

Imports nothing of the project, for a peer's process must not hold it.
"""

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
MODELS = Path("/tmp/models")
"""Where models with random weights are made."""
RANK = 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# model type, hidden, layers, heads, key-value heads, intermediate, vocabulary, tied head
SHAPES: dict[str, tuple[str, int, int, int, int, int, int, bool]] = {
    "tiny": ("qwen2", 64, 2, 4, 2, 128, 2048, True),
    "qwen2.5-0.5b": ("qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 1536, 28, 12, 2, 8960, 151936, True),
    "qwen2.5-7b": ("qwen2", 3584, 28, 28, 4, 18944, 152064, False),
    "llama-3.1-8b": ("llama", 4096, 32, 32, 8, 14336, 128256, False),
}


@dataclass(frozen=True)
class Case:
    """One question: a model's shape, lengths, and what may be used."""

    shape: str
    prompt: int
    completion: int
    generations: int = 8
    steps: int = 7
    allowed_gib: float | None = None
    """What our core is told the allocator may hold; the peers have no such setting."""
    demo: int = 0
    """Tokens of each demo, for SFT on rows of `completion` tokens; 0 = GRPO."""
    memory_gb: float | None = None
    """A whole step with real rollouts, and what all of it may take of the card, in GB; None = training alone."""

    @property
    def tokens(self) -> int:
        """Of a step: those that are trained, or sampled where the whole step is measured."""
        if self.memory_gb:
            return self.generations * self.completion
        return self.completion if self.demo else self.generations * (self.prompt + self.completion)


CASES = {
    "tiny": Case("tiny", 16, 24, steps=3),
    "tiny-sft": Case("tiny", 0, 64, demo=16, steps=3),
    "1.5b-256-786": Case("qwen2.5-1.5b", 256, 786, allowed_gib=2.0),
    "1.5b-256-786-1.7gib": Case("qwen2.5-1.5b", 256, 786, allowed_gib=1.7),
    "1.5b-256-786-free": Case("qwen2.5-1.5b", 256, 786),
    "shared-prefix-1024-256-g16": Case("qwen2.5-1.5b", 1024, 256, generations=16),
    "sft-1.5b-8k": Case("qwen2.5-1.5b", 0, 8192, demo=1024, allowed_gib=2.0),
    "8b-480-20000": Case("llama-3.1-8b", 480, 20000, steps=2, allowed_gib=9.5),
    "7b-512-1024": Case("qwen2.5-7b", 512, 1024, steps=4, allowed_gib=9.0),
    "tiny-whole-step": Case("tiny", 16, 24, steps=3, memory_gb=5.0),
    "1.5b-whole-step-5gb": Case("qwen2.5-1.5b", 256, 786, steps=3, memory_gb=5.0),
    "7b-512-1024-whole-step": Case("qwen2.5-7b", 512, 1024, steps=3, memory_gb=16.0),
}


def make_model(shape: str, folder: Path) -> None:
    """A checkpoint with random weights, and a tokenizer in which every letter is one token."""
    import transformers

    if (folder / "READY").exists():
        return
    kind, hidden, layers, heads, kv_heads, inner, vocab, tied = SHAPES[shape]
    config = transformers.AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        bos_token_id=vocab - 3,
        eos_token_id=vocab - 2,
        pad_token_id=vocab - 1,
    )
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    letter_tokenizer(vocab).save_pretrained(folder)
    (folder / "READY").write_text(shape)


def letter_tokenizer(vocab: int) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {letter: i for i, letter in enumerate(letters)}
    words |= {f"<f{i}>": i for i in range(len(letters), vocab - 4)}
    words |= {"<unk>": vocab - 4, "<bos>": vocab - 3, "<eos>": vocab - 2, "<pad>": vocab - 1}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **marks)


def open_tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), padding_side="left")


def prompts(case: Case, number: int = 64) -> list[str]:
    """Random letters, one token each."""
    drawn = torch.randint(97, 123, (number, max(1, case.prompt)), generator=torch.Generator().manual_seed(1))
    return ["".join(map(chr, row)) for row in drawn.tolist()]


def completions(case: Case) -> Iterator[list[int]]:
    """Random tokens in place of a rollout, of exactly the case's length."""
    generator, vocab = torch.Generator().manual_seed(7), SHAPES[case.shape][6]
    while True:
        yield torch.randint(10, vocab - 10, (case.completion,), generator=generator).tolist()


def demos(case: Case, number: int = 64) -> list[list[int]]:
    generator, vocab = torch.Generator().manual_seed(5), SHAPES[case.shape][6]
    return torch.randint(10, vocab - 10, (number, case.demo), generator=generator).tolist()


def rewards(number: int) -> list[float]:
    """Of a group, all different, so that every row has an advantage."""
    return [((i * 2654435761) % 997) / 997.0 for i in range(number)]


def limit_memory(cap_gib: float) -> None:
    """Lets this process believe that the card holds `cap_gib`: the allocator stops there, and so does what asks."""
    if not cap_gib or not torch.cuda.is_available():
        return
    cap, total = int(cap_gib * GIB), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    torch.cuda.mem_get_info = lambda *_: (max(0, cap - torch.cuda.memory_reserved()), cap)


class CardWatch:
    """The most that the card was in use, as `nvidia-smi` saw it every 50 ms."""

    def __init__(self) -> None:
        self._seen, self._process = Path(tempfile.mkdtemp()) / "used", None
        if torch.cuda.is_available() and shutil.which("nvidia-smi"):
            card = f"GPU-{torch.cuda.get_device_properties(0).uuid}".replace("GPU-GPU-", "GPU-")
            query = ["timeout", "900", "nvidia-smi", "-i", card, "-lms", "50"]  # it ends even if this process is killed
            query += ["--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            with self._seen.open("w") as seen:
                self._process = subprocess.Popen(query, stdout=seen, stderr=subprocess.DEVNULL)

    def most_bytes(self) -> int:
        """0 where nothing was seen."""
        if not self._process:
            return 0
        self._process.terminate()
        self._process.wait()
        return max((int(line) << 20 for line in re.findall(r"^ *(\d+) *$", self._seen.read_text(), re.M)), default=0)


class Meter:
    """Seconds and peak memory of steps; what happens between `out` and `back` (a rollout) is no training."""

    _card_info = staticmethod(torch.cuda.mem_get_info)

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.rollouts: list[float] = []
        self.lengths: set[int] = set()
        self.peak = self.reserved = self.used = 0
        self._began = 0.0
        self._watch: CardWatch | None = None

    def begin(self) -> None:
        if not self.steps and torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.rollouts.append(0.0)
        self._began = self._now()

    def end(self) -> None:
        self.steps.append(self._now() - self._began)
        if torch.cuda.is_available():
            self.peak, self.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            self.look_at_card()

    def look_at_card(self) -> None:
        if torch.cuda.is_available():
            free, total = self._card_info()
            self.used = max(self.used, total - free)

    def watch_card(self) -> None:
        """From now on, also between two looks; without what is left of loading the model."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._watch = CardWatch()

    def rollout(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            began = self._now()
            try:
                return generate(*args, **options)
            finally:
                self.rollouts[-1] += self._now() - began

        return timed

    def real_rollout(self, generate: Callable[..., Any], token_ids: Callable[[Any], list[Any]]) -> Callable[..., Any]:
        """The same for responses that are sampled: their lengths are noted, and what the card holds at their end."""

        def noted(*args: Any, **options: Any) -> Any:
            found = generate(*args, **options)
            self.lengths |= {len(ids) for ids in token_ids(found)}
            self.look_at_card()
            return found

        return self.rollout(noted)

    def row(self, case: Case) -> dict[str, Any]:
        """Medians without the first step, which compiles and warms up."""
        kept = slice(1, None) if len(self.steps) > 1 else slice(None)
        seconds = sorted(self.steps[kept])
        training = sorted(s - r for s, r in zip(self.steps[kept], self.rollouts[kept], strict=True))
        step, train = seconds[len(seconds) // 2], training[len(training) // 2]
        if self._watch:
            self.used = max(self.used, self._watch.most_bytes())
        return {
            "phase": "step" if case.memory_gb else "train",
            "peak_gib": round(self.peak / GIB, 3),
            "reserved_gib": round(self.reserved / GIB, 3),
            "device_used_gib": round(self.used / GIB, 3),
            "train_s": round(train, 4),
            "step_s": round(step, 4),
            "tokens_per_s": round(case.tokens / (step if case.memory_gb else train), 1),
            "steps_s": [round(s, 3) for s in self.steps],
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            **(self._of_rollouts(kept) if case.memory_gb else {}),
        }

    def _of_rollouts(self, kept: slice) -> dict[str, Any]:
        seconds = sorted(self.rollouts[kept])
        return {
            "generate_s": round(seconds[len(seconds) // 2], 4),
            "rollouts_s": [round(s, 3) for s in self.rollouts],
            "response_tokens": sorted(self.lengths),
        }

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def callback(meter: Meter) -> Any:
    """Runs the meter at each step of a transformers trainer."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.end()

    return Steps()


def say(row: dict[str, Any]) -> None:
    """A result, for `core.py` to find among what libraries print."""
    print("RESULT " + json.dumps(row), flush=True)
