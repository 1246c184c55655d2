"""Model cards: what they say is true, and the code in them really loads the model."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml

from pipeline.artifact import damage, is_whole, publish, write_json
from pipeline.model_card import lineage, write_model_cards
from pipeline.places import ROOT, runs_folder
from pipeline.provenance import environment
from pipeline.stage import Stage, Workdir
from stages.reward_model import RewardModel
from stages.sft import SFT
from stages.training import Lora
from tests.test_reward_model import POLITE
from tests.test_sft import ToyInputs, demos

MINI = "path:models/mini-base"
SMALL = {"template": "mini", "max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"}
LORA = Lora(rank=4, alpha=8)
CARDS = [{"name": "stratos", "revision": "0123abc", "licence": "cc-by-nc-4.0"}]


def make(run_dir: Path, name: str, stage: Stage, model: Path, rows: Any, cards: Any = ()) -> None:
    """Runs a stage and publishes it as the worker would."""
    partial = run_dir / f"{name}.partial"
    metrics = stage.run(ToyInputs(model, rows), Workdir(partial))  # type: ignore[arg-type]
    publish(partial, run_dir / name, record(stage, name, cards) | {"metrics": metrics})


def record(stage: Stage, name: str, cards: Any = ()) -> dict[str, Any]:
    """The manifest of a stage, without its files."""
    inputs: dict[str, list[dict[str, str]]] = {}
    for field, ref in stage.references():
        inputs.setdefault(field, []).append({"ref": str(ref)})
    facts = {"artifact": stage.makes, "stage": name, "kind": stage.kind, "fingerprint": f"f-{name}"}
    return {**facts, "settings": stage.settings(), "inputs": inputs, "cards": list(cards), **environment()}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SFT stages, one on the other, the second one measured; a reward model; cards written."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    folder.mkdir()
    first = SFT(model=MINI, demos=["card:stratos/train"], lora=LORA, **SMALL)
    second = SFT(model="stage:cold_start", demos=["card:gsm8k:demos"], lora=LORA, **SMALL)
    judge = RewardModel(model="stage:cold_start", preferences=["path:pairs"], lora=LORA, **SMALL)
    make(folder, "cold_start", first, ROOT / "models/mini-base", demos(20), CARDS)
    make(folder, "second_sft", second, folder / "cold_start", demos(30))
    make(folder, "judge", judge, folder / "cold_start", POLITE[:40])
    measures = {"pass_at_1": {"value": 0.8125, "ci95": [0.75, 0.875], "n": 300}}
    (folder / "eval.partial").mkdir()
    write_json(folder / "eval.partial/metrics.json", measures)
    inputs = {"model": [{"ref": "stage:second_sft"}], "problems": [{"ref": "card:mini_arithmetic"}]}
    measured = {"artifact": "metrics", "kind": "evaluate", "inputs": inputs}
    publish(folder / "eval.partial", folder / "eval_second_sft", {**measured, "fingerprint": "f"})
    stages = {name: {"kind": "sft"} for name in ("cold_start", "second_sft")} | {"judge": {"kind": "reward_model"}}
    stages["eval_second_sft"] = {"kind": "evaluate", "model": "stage:second_sft"}
    stages["final_rl"] = {"kind": "grpo", "model": "stage:second_sft"}
    write_json(folder / "recipe.json", {"recipe": "toy", "scale": "mini", "run": "toy", "stages": stages})
    write_model_cards(folder)
    return folder


def text(folder: Path) -> str:
    return (folder / "README.md").read_text()


def programs(folder: Path) -> list[str]:
    """The Python programs in a card, in order."""
    return re.findall(r"```python\n(.*?)```", text(folder), re.DOTALL)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(1, 30)[None]).logits


def test_every_finished_model_has_a_card_and_nothing_else(run_dir: Path) -> None:
    written = write_model_cards(run_dir)
    assert [file.parent.name for file in written] == ["cold_start", "second_sft", "judge"]
    assert not (run_dir / "eval_second_sft/README.md").exists()


def test_a_card_is_a_view_and_the_artifact_stays_whole(run_dir: Path) -> None:
    before = text(run_dir / "second_sft")
    write_model_cards(run_dir)
    assert text(run_dir / "second_sft") == before
    assert not damage(run_dir / "second_sft", deep=True) and is_whole(run_dir / "second_sft")


def test_a_readme_that_is_sealed_with_the_model_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "toy/model.partial").mkdir(parents=True)
    (tmp_path / "toy/model.partial/README.md").write_text("mine")
    publish(tmp_path / "toy/model.partial", tmp_path / "toy/model", {"artifact": "checkpoint", "kind": "pretrain"})
    assert write_model_cards(tmp_path / "toy") == []
    assert text(tmp_path / "toy/model") == "mine"


def test_the_front_matter_is_what_the_hub_reads(run_dir: Path) -> None:
    front = yaml.safe_load(text(run_dir / "second_sft").split("---\n")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    assert front["datasets"] == ["openai/gsm8k"]
    assert yaml.safe_load(text(run_dir / "judge").split("---\n")[1])["pipeline_tag"] == "text-classification"


def test_a_card_tells_stages_data_licences_and_measurements(run_dir: Path) -> None:
    assert [step.name for step in lineage(run_dir / "second_sft", run_dir)] == ["cold_start", "second_sft"]
    card = text(run_dir / "second_sft")
    assert "from the base `path:models/mini-base`" in card
    assert "| `cold_start` | sft | `path:models/mini-base`, `card:stratos/train` |" in card
    assert "| `card:stratos/train` | `cold_start` | cc-by-nc-4.0 | `0123abc` |" in card
    assert "By the stage `eval_second_sft`, on `card:mini_arithmetic`:" in card
    assert "| `pass_at_1` | 0.8125 | 0.75 to 0.875 | 300 |" in card
    assert "| `path:demos0` | 30 | 100.0 % |" in card


def test_a_non_commercial_licence_warns_in_every_model_that_rests_on_it(run_dir: Path) -> None:
    warning = "card stratos: licence cc-by-nc-4.0 allows no commercial use"
    assert all(warning in text(run_dir / name) for name in ("cold_start", "second_sft", "judge"))


@pytest.mark.parametrize("name", ["cold_start", "second_sft"])
def test_the_code_in_a_card_loads_the_same_model_with_transformers_and_with_peft(
    name: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_dir / name)
    whole, adapted, sampled, vllm = programs(run_dir / name)
    by_transformers: dict[str, Any] = {}
    exec(whole, by_transformers)
    by_peft: dict[str, Any] = {}
    exec(adapted, by_peft)
    assert torch.allclose(logits(by_transformers["model"]), logits(by_peft["model"]), atol=1e-4)
    with by_peft["model"].disable_adapter():
        assert not torch.allclose(logits(by_transformers["model"]), logits(by_peft["model"]), atol=1e-2)
    exec(sampled, by_transformers)
    assert by_transformers["tokens"].shape[1] > by_transformers["ids"].shape[1]
    monkeypatch.setitem(sys.modules, "vllm", stand_in := MagicMock())  # vLLM itself needs a GPU
    stand_in.LLM.return_value.generate.return_value = [MagicMock()]
    exec(vllm, {})
    engine = stand_in.LLM.return_value
    assert engine.generate.call_args.args[0] == [{"prompt_token_ids": by_transformers["ids"][0].tolist()}]
    engine.llm_engine.engine_core.shutdown.assert_called_once()


def test_the_example_asks_what_the_model_was_measured_on_if_that_can_stand_in_a_card(run_dir: Path) -> None:
    asked = run_dir / "eval_second_sft" / "completions.jsonl"
    asked.write_text(
        "".join(json.dumps({"id": p, "prompt": p}) + "\n" for p in ("`x`", "two\nlines", "23+18=？", "1+1"))
    )
    write_model_cards(run_dir)
    assert "23+18=？" in text(run_dir / "second_sft") and "three cats" in text(run_dir / "cold_start")
    asked.unlink()
    write_model_cards(run_dir)
    assert "three cats" in text(run_dir / "second_sft")


@pytest.mark.gpu
def test_the_code_in_the_card_of_a_finished_model_samples_with_vllm() -> None:
    """Of the newest model of each run under `runs/`, in a process of its own."""
    written = [card for recipe in runs_folder().glob("*/recipe.json") for card in write_model_cards(recipe.parent)]
    cards = sorted(written, key=lambda card: (card.parent / "manifest.json").stat().st_mtime)
    newest = {card.parent.parent: card.parent for card in cards if len(programs(card.parent)) == 4}
    if not newest:
        pytest.skip("no finished model under runs/; make one with `make r1-zero`")
    for folder in newest.values():
        command = [sys.executable, "-c", programs(folder)[-1]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=290)
        assert done.returncode == 0, done.stderr[-6000:]
        print(folder, done.stdout[-300:])


def test_the_code_in_a_reward_models_card_loads_and_scores(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_dir / "judge")
    whole, adapted, scored = programs(run_dir / "judge")
    by_transformers: dict[str, Any] = {}
    exec(whole, by_transformers)
    by_peft: dict[str, Any] = {}
    exec(adapted, by_peft)
    assert torch.allclose(logits(by_transformers["model"]), logits(by_peft["model"]), atol=1e-4)
    exec(scored, by_transformers)
    assert 0 < by_transformers["scores"][0] < 1


def test_a_model_from_another_run_brings_its_history_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    hub = "hub:Qwen/Qwen2.5-0.5B@060db6499f32"
    for name, model, cards in (("old/r1_zero", hub, CARDS), ("new/cold_start", "run:old/r1_zero", [])):
        (tmp_path / f"{name}.partial").mkdir(parents=True)
        read = {"model": [{"ref": model}], **({"problems": [{"ref": "card:stratos"}]} if cards else {})}
        facts = {"artifact": "checkpoint", "kind": "sft", "fingerprint": "f", "inputs": read, "cards": cards}
        publish(tmp_path / f"{name}.partial", tmp_path / name, facts)
    [file] = write_model_cards(tmp_path / "new")
    card = file.read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "Qwen/Qwen2.5-0.5B"
    assert "| `old/r1_zero` | sft | " in card and "cc-by-nc-4.0 allows no commercial use" in card
    assert "Not measured yet." in card
