"""Where a training step of the core spends its time, for several plans in one process; prints text. Needs CUDA.

    python -m benchmarks.core_profile 1.5b-256-786 --model-dir /tmp/models/qwen2.5-1.5b \\
        --variants "" keep=gpu tile=8192 keep=gpu,tile=8192,head_tile=1024

Each variant changes the plan (`fused=0` also switches the compiled kernels off) and runs four steps: to warm up, timed,
under torch.profiler, under cProfile. Of the timed step, each phase is given twice: until Python had sent its work, and
until the GPU had done it. Where both are the same, Python is what is slow.
"""

import cProfile
import gc
import io
import pstats
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from benchmarks import command_line, core_ours, require_gpu, start
from benchmarks.core_cases import CASES, GIB, RANK, Meter, callback, limit_memory, open_tokenizer
from pipeline.stage import Workdir
from stages.engines import core, fused, layerwise
from stages.engines.models import attach_lora, load_model
from stages.memory_plan import Plan

STEPS = ("warm", "timed", "torch.profiler", "cProfile")
CALLS = ("Launch", "Malloc", "cudaFree", "HostAlloc", "Synchronize", "MemcpyAsync", "EventQuery")


class Phases:
    """Seconds of functions in the timed step: until they return, and until the GPU is done."""

    def __init__(self) -> None:
        self.sent: defaultdict[str, float] = defaultdict(float)
        self.done: defaultdict[str, float] = defaultdict(float)
        self.is_on = False

    def watch(self, owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            if not self.is_on:
                return function(*args, **options)
            torch.cuda.synchronize()
            began = time.perf_counter()
            found = function(*args, **options)
            self.sent[name] += time.perf_counter() - began
            torch.cuda.synchronize()
            self.done[name] += time.perf_counter() - began
            return found

        setattr(owner, name, timed)


class Steps(TrainerCallback):
    """Sets the variant of each step, measures it, and prints what it found."""

    def __init__(self, variants: list[str], phases: Phases) -> None:
        self.variants, self.phases = variants, phases
        self.step = -1
        self.profiler: Any = None
        self.changes: dict[str, Any] = {}
        self.plan: Plan | None = None
        planned, compiled = core.make_plan, fused._compiled
        core.make_plan = lambda *args: self._changed(planned(*args))
        fused._compiled = lambda f: compiled(f) if self.changes.get("fused", 1) else f  # type: ignore[assignment]

    def _changed(self, plan: Plan) -> Plan:
        self.plan = Plan(**{**vars(plan), **{k: v for k, v in self.changes.items() if k != "fused"}})
        return self.plan

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.step += 1
        kind = STEPS[self.step % len(STEPS)]
        if kind == "warm":
            pairs = [pair.split("=") for pair in self.variants[self.step // len(STEPS)].split(",") if pair]
            self.changes = {name: int(value) if value.isdigit() else value for name, value in pairs}
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            say_residents()
        self.phases.is_on = kind == "timed"
        self.phases.sent.clear()
        self.phases.done.clear()
        torch.cuda.synchronize()
        self.began = time.perf_counter()
        if kind == "torch.profiler":
            self.profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self.profiler.__enter__()
        elif kind == "cProfile":
            self.profiler = cProfile.Profile()
            self.profiler.enable()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        kind = STEPS[self.step % len(STEPS)]
        torch.cuda.synchronize()
        seconds = time.perf_counter() - self.began
        if kind == "torch.profiler":
            self.profiler.__exit__(None, None, None)
        elif kind == "cProfile":
            self.profiler.disable()
        print(f"\n##### {self.variants[self.step // len(STEPS)] or 'as planned'}, {kind} step: {seconds:.3f} s")
        {"timed": self._say_phases, "torch.profiler": self._say_kernels, "cProfile": self._say_python}.get(
            kind, lambda: print(self.plan)
        )()

    def _say_phases(self) -> None:
        for name, done in self.phases.done.items():
            print(f"  {name:32} sent after {self.phases.sent[name]:.3f} s, done after {done:.3f} s")
        stats = torch.cuda.memory_stats()
        peak, reserved = (stats[f"{name}_bytes.all.peak"] / GIB for name in ("allocated", "reserved"))
        segments = f"segments made {stats['num_device_alloc']}, freed {stats['num_device_free']}"
        print(f"  peak {peak:.3f} GiB, reserved {reserved:.3f}, retries {stats['num_alloc_retries']}, {segments}")

    def _say_kernels(self) -> None:
        on_gpu = sorted(
            (e.time_range.start, e.time_range.end)
            for e in self.profiler.events()
            if e.device_type == DeviceType.CUDA and e.time_range.end > e.time_range.start
        )
        busy, until = 0.0, 0.0
        for began, ended in on_gpu:
            busy, until = busy + max(0.0, ended - max(began, until)), max(until, ended)
        averages = self.profiler.key_averages()
        print(f"  GPU busy {busy / 1e6:.3f} s with {len(on_gpu)} kernels and copies")
        for row in sorted(averages, key=lambda r: -r.count):
            if any(call in row.key for call in CALLS) and row.key.startswith("cu"):
                print(f"  {row.key:40} {row.count:7} times {row.self_cpu_time_total / 1e6:8.3f} s")
        print("  -- GPU ms, times")
        for row in sorted(averages, key=lambda r: -r.self_device_time_total)[:25]:
            print(f"  {row.self_device_time_total / 1e3:9.2f} {row.count:6}  {row.key[:110]}")
        print("  -- CPU ms, times")
        for row in sorted(averages, key=lambda r: -r.self_cpu_time_total)[:25]:
            print(f"  {row.self_cpu_time_total / 1e3:9.2f} {row.count:6}  {row.key[:110]}")

    def _say_python(self) -> None:
        text = io.StringIO()
        pstats.Stats(self.profiler, stream=text).sort_stats("tottime").print_stats(25)
        print(text.getvalue())


def say_residents() -> None:
    """What lies on the GPU between two steps."""
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.is_cuda and found.untyped_storage().data_ptr() not in seen:
            seen.add(found.untyped_storage().data_ptr())
            sizes[f"{str(found.dtype)[6:]} {type(found).__name__}"] += found.untyped_storage().nbytes()
    there, known = torch.cuda.memory_allocated(), sum(sizes.values())
    print(f"\n  between steps {there / GIB:.3f} GiB, in no tensor {(there - known) / GIB:.3f}", end="")
    print("".join(f", {name} {size / GIB:.3f}" for name, size in sizes.most_common(10)))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", default=[""])
    parser.add_argument("--cap-gib", type=float, default=0.0)
    chosen = parser.parse_args()
    require_gpu("a profile of the core")
    case = replace(CASES[chosen.case], steps=len(STEPS) * len(chosen.variants))
    limit_memory(chosen.cap_gib)
    model = attach_lora(load_model(chosen.model_dir, quantization="nf4"), RANK, RANK)
    meter, tokenizer, folder = Meter(), open_tokenizer(chosen.model_dir), Path(tempfile.mkdtemp())
    made = core_ours.trainer_of(case, model, tokenizer, folder, "adamw_8bit", meter, chosen.model_dir)
    phases = Phases()
    step_of = Optimizer8bit, "step"
    for owner, name in ((layerwise._Pass, "forward"), (layerwise._Pass, "backward"), (made, "training_step"), step_of):
        phases.watch(owner, name)
    if not case.demo:
        phases.watch(made, "_generate_and_score_completions")
    made.add_callback(callback(meter))
    made.add_callback(Steps(chosen.variants, phases))
    made.work = Workdir(folder)
    made.train()


if __name__ == "__main__":
    start(main)
