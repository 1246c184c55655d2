"""The doctor: what a stage will need is known before it loads, and what cannot fit is refused with what would."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import doctor, machine
from pipeline.cli import main
from pipeline.errors import ResourceError
from pipeline.machine import GIB, Gpu, Machine, parse_gpu
from pipeline.recipe import load_recipe
from pipeline.report_lineage import cost_rows
from pipeline.report_run import read_run
from pipeline.settings import read_yaml
from stages.forecast import Device, forecast, num_weights
from stages.grpo import GRPO
from stages.memory_plan import CONTEXT_BYTES, Shape
from stages.reward_model import RewardModel
from stages.sft import SFT
from stages.training import Lora
from stages.what_fits import fits, what_would_fit
from tests.toy_run import write_toy_run

CPU = Machine("a CPU", 2, 24 * GIB, 1e12, torch_cuda="")
H100 = replace(CPU, gpus=(Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, "580.95"),), torch_cuda="13.0", vllm="0.25")


def with_gpu(gib: float, **changes: Any) -> Machine:
    return replace(H100, gpus=(Gpu("NVIDIA GeForce RTX 4090", gib * GIB, gib * GIB, "580.95"),), **changes)


def shape(ref: str) -> Shape:
    return Shape.of(read_yaml(Path("configs/shapes.yaml"))[ref])


def problems(machine: Machine, scale: str, stage: str = "r1_zero", *args: str) -> list[doctor.Problem]:
    recipe = load_recipe("r1-zero", scale, args=args)
    found = doctor.shape_of(recipe.stages[stage], recipe.stages, recipe.folder)
    return doctor.problems(stage, recipe.stages[stage], found, machine)


PUBLISHED = {  # parameters, as the models' cards and files have them
    "hub:Qwen/Qwen2.5-0.5B": 494_032_768,
    "hub:Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "hub:Qwen/Qwen2.5-7B": 7_615_616_512,
    "hub:Qwen/Qwen2.5-14B": 14_770_033_664,
    "hub:Qwen/Qwen2.5-32B": 32_763_876_352,
    "hub:meta-llama/Llama-3.1-8B": 8_030_261_248,
    "hub:meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "hub:meta-llama/Llama-3.2-1B": 1_235_814_400,
    "path:models/smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize(("ref", "published"), PUBLISHED.items())
def test_the_shapes_in_the_file_have_as_many_weights_as_the_models(ref: str, published: int) -> None:
    assert num_weights(shape(ref)) == pytest.approx(published, rel=1e-3)  # norms and biases are left out


def test_weights_and_adapter_of_the_shipped_model_are_forecast_as_they_are(tmp_path: Path) -> None:
    from stages.engines.models import attach_lora, load_model

    recipe = load_recipe("r1-zero", "mini")
    stage = recipe.stages["r1_zero"]
    found = doctor.shape_of(stage, recipe.stages, recipe.folder)
    assert isinstance(stage, GRPO) and found and stage.lora
    expected = forecast(stage, found, Device("a CPU", 24 * GIB, is_gpu=False))
    model = attach_lora(load_model("models/mini-base", device="cpu"), stage.lora.rank, stage.lora.alpha)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert expected and expected.adapter == 4 * trained and expected.optimiser == 12 * trained
    assert expected.weights == pytest.approx(4 * frozen, rel=2e-3)


@pytest.mark.parametrize("scale", ["qwen-0.5b", "qwen-1.5b", "llama-8b", "smollm2-135m"])
def test_a_hub_scale_is_forecast_offline_and_fits_where_its_description_says(scale: str) -> None:
    recipe = load_recipe("r1-zero", scale)
    fits_on = {one.stage: one.on_cards for one in doctor.diagnoses(recipe, recipe.stages, H100)}
    least = {"llama-8b": 24, "qwen-1.5b": 16}.get(scale, 8)
    assert all(cards[size] == "yes" for cards in fits_on.values() for size in doctor.CARD_SIZES_GB if size >= least)
    assert not problems(H100, scale)


def test_what_would_fit_does_fit_and_what_fits_on_a_card_fits_on_every_bigger_one() -> None:
    for scale in ("qwen-1.5b", "llama-8b"):
        recipe = load_recipe("r1-zero", scale)
        for stage in recipe.stages.values():
            sizes = doctor.shape_of(stage, recipe.stages, recipe.folder)
            assert sizes
            cards = [Device(f"{size} GB", size * GIB, has_vllm=True) for size in doctor.CARD_SIZES_GB]
            fitting = [fits(stage, sizes, card) for card in cards]
            assert fitting == sorted(fitting)
            changes = [(card, what_would_fit(stage, sizes, card)) for card in cards]
            assert all(fits(stage.model_copy(update=change), sizes, card) for card, change in changes if change)


def test_unsloths_recipe_holds_its_whole_step_in_5_gb_at_the_scale_that_its_page_names() -> None:
    stage = load_recipe("unsloth-gsm8k", "qwen-1.5b").stages["unsloth_gsm8k"]
    assert isinstance(stage, GRPO) and stage.lora
    assert (stage.memory_gb, stage.lora.rank, stage.quantization) == (5, 32, "nf4")
    for card in (Device("5 GB", 5e9, has_vllm=True), Device("80 GB", 80e9, has_vllm=True)):
        found = forecast(stage, shape("hub:Qwen/Qwen2.5-1.5B"), card)
        assert found and found.cache > 0 and found.peak + CONTEXT_BYTES <= 5e9  # vLLM's share would be over it


COMMON: dict[str, Any] = {"model": "path:x", "max_length": 1024, "token_budget": 8192}
NOT_BY_THE_CORE = {
    "a reward model": RewardModel(**COMMON, preferences=["path:y"], lora=Lora()),  # type: ignore[arg-type]
    "dropout": SFT(**COMMON, demos=["path:y"], lora=Lora(dropout=0.1)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("stage", NOT_BY_THE_CORE.values(), ids=NOT_BY_THE_CORE.keys())
def test_what_the_core_does_not_train_is_not_forecast_by_its_plan(stage: RewardModel | SFT) -> None:
    card, small = Device("80 GB", 80e9), shape("hub:Qwen/Qwen2.5-1.5B")
    whole, lean = (forecast(stage.model_copy(update={"gradient_checkpointing": c}), small, card) for c in (False, True))
    assert whole and lean and whole.micro_batch_tokens == 8192
    assert whole.activations > 5 * lean.activations > 0  # the core's plan knows no such setting


def test_a_cache_that_vllm_is_told_the_size_of_is_counted_as_such_on_every_card() -> None:
    args = ["grpo.vllm.kv_cache_memory_gb=8", "grpo.vllm.gpu_memory_utilization=0.15"]
    stage = load_recipe("r1-zero", "smollm2-135m", args=args).stages["r1_zero"]
    for card in (Device("80 GB", 80e9, has_vllm=True), Device("141 GB", 141e9, has_vllm=True)):
        found = forecast(stage, shape("path:models/smollm2-135m"), card)
        assert found and found.cache / GIB == pytest.approx(8.25, abs=0.1)  # and 0.25 for the weights


def test_what_fits_is_said_of_the_phase_with_the_longest_responses() -> None:
    card, small = Device("24 GB", 24e9), shape("hub:Qwen/Qwen2.5-1.5B")
    phases = ({"from_fraction": 0.5, "length": 4, "generations": 2},)
    common: dict[str, Any] = {"model": "path:x", "problems": ["path:y"], "lora": None, "max_completion_length": 2048}
    grown, long = (
        GRPO(**common, lengthening=phases),
        GRPO(**common | {"max_completion_length": 8192, "num_generations": 16}),
    )
    one, other = (forecast(stage, small, card) for stage in (grown, long))
    assert one and other and (one.least, one.cache) == (other.least, other.cache)


def test_a_gpu_that_is_too_small_is_told_with_settings_that_the_command_line_takes() -> None:
    [found] = problems(with_gpu(9), "llama-8b")
    assert "needs" in found.sentence and "RTX 4090" not in found.instead
    words = found.instead.partition('ARGS="')[2].rstrip('"').split()
    assert words and not problems(with_gpu(9), "llama-8b", "r1_zero", *words)


@pytest.mark.parametrize(("machine", "scale"), [(CPU, "mini"), (H100, "qwen-1.5b")])
def test_a_memory_gb_that_is_too_small_is_told_with_the_least_that_does(machine: Machine, scale: str) -> None:
    [found] = problems(machine, scale, "r1_zero", "grpo.memory_gb=0.1")
    assert "memory_gb=0.1 is too little" in found.sentence
    assert not problems(machine, scale, "r1_zero", found.instead.removeprefix("ARGS=").partition(",")[0])


@pytest.mark.parametrize("length", [256, 250_000, 1_000_000])
def test_responses_that_fill_the_models_context_are_told_with_a_length_that_fits(length: int) -> None:
    [found] = problems(CPU, "mini", "r1_zero", f"stages.r1_zero.max_completion_length={length}")
    says = f"responses of {length} tokens leave a prompt no room in the model's context of 256"
    assert found.sentence == f"stage r1_zero: {says}"
    assert found.instead == "ARGS=stages.r1_zero.max_completion_length=128 leaves half of it to the prompts"


def test_a_phase_that_fills_the_models_context_is_told_with_a_length_that_fits_in_all_phases() -> None:
    phases = "stages.r1_zero.lengthening=[{from_fraction: 0.3, length: 2}, {from_fraction: 0.5, length: 4}]"
    [found] = problems(CPU, "mini", "r1_zero", phases)
    assert "responses of 384 tokens" in found.sentence and "max_completion_length=32 " in found.instead
    assert not problems(CPU, "mini", "r1_zero", phases, "stages.r1_zero.max_completion_length=32")


def test_responses_are_not_refused_where_they_are_cut_at_the_context_or_it_is_not_known() -> None:
    assert not problems(CPU, "mini", "r1_zero", "stages.r1_zero.max_completion_length=255")
    assert not problems(CPU, "mini", "eval_base", "stages.eval_base.max_completion_length=1000")
    assert not problems(H100, "qwen-0.5b", "r1_zero", "stages.r1_zero.max_completion_length=20000")


def test_what_would_fit_is_never_longer_than_the_models_context() -> None:
    small = Device("a CPU", 0.1 * GIB, is_gpu=False)
    recipe = load_recipe("r1-zero", "mini", args=["stages.eval_base.max_completion_length=1000000"])
    stage = recipe.stages["eval_base"]
    sizes = doctor.shape_of(stage, recipe.stages, recipe.folder)
    assert sizes and what_would_fit(stage, sizes, small) == {"max_completion_length": 128}


WRONG = {
    "no GPU for nf4": (CPU, "llama-8b", (), r"quantization 'nf4' needs CUDA, but this machine has no GPU"),
    "a driver that is too old": (
        replace(H100, gpus=(Gpu("NVIDIA L4", 23 * GIB, 23 * GIB, "535.54.03"),)),
        "llama-8b",
        (),
        r"the driver 535.54.03 is too old for torch with CUDA 13.0: it takes 580 or later",
    ),
    "torch without CUDA": (replace(H100, torch_cuda=""), "llama-8b", (), "torch is built without CUDA"),
    "vLLM that is absent": (
        replace(H100, vllm=""),
        "qwen-1.5b",
        ("grpo.sampler=vllm",),
        "sampler 'vllm' was asked for, but vLLM is not installed",
    ),
    "a GPU that is asked for and not there": (CPU, "mini", ("grpo.device=cuda",), "device 'cuda' needs CUDA"),
    "all weights of 8B": (H100, "llama-8b", ("grpo.lora=null", "grpo.quantization=null"), "it needs .* GiB at least"),
}


@pytest.mark.parametrize(("machine", "scale", "args", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_stands_in_the_way_is_one_sentence(
    machine: Machine, scale: str, args: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "this_machine", lambda: machine)
    recipe = load_recipe("r1-zero", scale, args=args)
    with pytest.raises(ResourceError, match=says) as told:
        doctor.require_fits(recipe, ["r1_zero"])
    assert "\n" not in told.value.message and told.value.hint


def test_a_driver_of_the_same_cuda_generation_is_new_enough() -> None:
    older = replace(H100, gpus=(Gpu("NVIDIA L4", 23 * GIB, 23 * GIB, "535.54.03"),))
    assert replace(older, torch_cuda="12.8").has_cuda and not replace(older, torch_cuda="13.0").has_cuda


def test_lines_of_nvidia_smi_are_read_and_others_passed_over() -> None:
    found = parse_gpu("NVIDIA H100 80GB HBM3, 81559, 80990, 580.95.05, GPU-1")
    assert found == Gpu("NVIDIA H100 80GB HBM3", 81559 * 2.0**20, 80990 * 2.0**20, "580.95.05", "GPU-1")
    assert parse_gpu("No devices were found") is None
    assert parse_gpu("NVIDIA X, [N/A], [N/A], 580, GPU-1") is None


@pytest.mark.parametrize(
    ("visible", "names"),
    [(None, "abc"), ("", ""), ("1", "b"), ("2,0", "ca"), ("GPU-bb", "b"), ("0,-1,1", "a"), ("7", ""), ("MIG-x", "a")],
)
def test_the_gpus_are_those_that_cuda_may_use_in_its_order(
    visible: str | None, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"{name}, 100, 90, 580.95, GPU-{name * 8}\n" for name in "abc")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=lines))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert "".join(gpu.name for gpu in machine._gpus()) == names


def test_make_doctor_says_what_fits_and_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.machine.this_machine", lambda: CPU)
    assert main(["doctor", "r1-zero", "--scale", "llama-8b"]) == 0
    said = capsys.readouterr().out
    assert "80 GB" in said and "problem: stage r1_zero: quantization 'nf4' needs CUDA" in said
    assert main(["doctor", "r1-zero"]) == 0
    assert "nothing stands in the way" in capsys.readouterr().out
    assert main(["doctor", "r1-zero", "--scale", "paper"]) == 0
    said = capsys.readouterr().out
    assert "no forecast for eval_base, r1_zero, eval_r1_zero" in said and "nothing stands" not in said


def test_make_doctor_says_what_would_come_from_a_hub_that_does_not_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("R1_DATA", raising=False)
    assert main(["doctor", "r1-zero", "--scale", "qwen-0.5b"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the hub does not answer" in said and "hub:Qwen/Qwen2.5-0.5B, card:gsm8k" in said
    assert "nothing stands in the way" not in said
    monkeypatch.setattr(doctor, "hub_answers", lambda: True)
    assert not doctor.out_of_reach(load_recipe("r1-zero", "qwen-0.5b"))


def test_a_run_that_cannot_fit_is_refused_before_its_folder_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "this_machine", lambda: CPU)
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    words = ["run", "r1-zero", "--engine", "plain", "--from", "r1_zero", "--until", "r1_zero"]
    assert main([*words, "--args", "grpo.optim=adamw_8bit"]) == 2
    assert "optim 'adamw_8bit' needs CUDA" in capsys.readouterr().err
    assert not (tmp_path / "r1-zero-mini/recipe.json").exists()


def test_the_report_shows_the_forecast_beside_what_was_measured(tmp_path: Path) -> None:
    run = write_toy_run(tmp_path, curves=("step_seconds",))
    manifest = run / "r1_zero/manifest.json"
    record = json.loads(manifest.read_text())
    record["forecast"] = {"peak_gib": 1.25, "seconds_per_step": 3.5, "weights_gib": 1.0}
    manifest.write_text(json.dumps(record))
    row = next(row for row in cost_rows(read_run(run)) if row["stage"] == "r1_zero")
    assert (row["memory"], row["forecast_memory"]) == ("1.31 GiB", "1.25 GiB")
    assert row["forecast_step"] == "3.5 s" and row["step"].startswith("2.6")
