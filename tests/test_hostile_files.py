"""Files from elsewhere: no code that lies in a model, a checkpoint or a packed run is ever run."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, RewardConfig, SFTConfig

from pipeline.artifact import newest_checkpoint, seal
from pipeline.errors import ConfigError, Interrupted, ModelError
from stages.engines import sft_run
from stages.engines.models import load_classifier, load_model, load_tokenizer
from stages.engines.trl_config import check_extra
from stages.sft import SFT
from tests.test_grpo import toy, train
from tests.toy_model import save_toy_model


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def stopped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage that was stopped after its second step."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(Interrupted):
        train(toy(max_steps=3, save_steps=1), base, folder, stop_after=2)
    return folder


def test_the_trap_works(tmp_path: Path) -> None:
    torch.save(Planted(tmp_path / "planted"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False).close()
    assert (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "grpo_state.pt"])
def test_a_pickle_in_a_checkpoint_is_not_run_even_when_its_checksums_fit(
    name: str, base: Path, stopped: Path, tmp_path: Path
) -> None:
    work = shutil.copytree(stopped, tmp_path / "work")
    checkpoint, _ = newest_checkpoint(work / "checkpoints")
    assert checkpoint and (checkpoint / name).is_file()
    torch.save({"state": Planted(tmp_path / "planted")}, checkpoint / name)
    seal(checkpoint)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        train(toy(max_steps=3, save_steps=1), base, work)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("load", [load_model, load_classifier, load_tokenizer])
@pytest.mark.parametrize("model_type", ["llama", "of-its-own"])
def test_code_beside_a_model_is_not_run(model_type: str, load: Any, base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')\n")
    for file, classes in {
        "config.json": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.X"),
        "tokenizer_config.json": {"AutoTokenizer": ["evil.X", "evil.X"]},
    }.items():
        settings = json.loads((folder / file).read_text()) | {"auto_map": classes}
        settings |= {"model_type": model_type} if file == "config.json" else {}
        (folder / file).write_text(json.dumps(settings))
    with suppress(ModelError):
        load(folder)
    assert not (tmp_path / "planted").exists()


def test_pickled_weights_are_refused_and_not_run(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(Planted(tmp_path / "planted"), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(folder, device="cpu")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ('{"weight_map": {"lm_head.weight": "../outside.safetensors"}}', "outside its folder"),
        ('{"weight_map": {"lm_head.weight": "/etc/passwd"}}', "outside its folder"),
        ('{"weight_map": {"lm_head.weight": 7}}', "damaged"),
        ('{"weight_map": ["model.safetensors"]}', "damaged"),
        ('{"weight_map": {', "damaged"),
        ("\xff", "damaged"),
    ],
)
def test_an_index_of_weights_that_is_torn_or_leads_out_of_its_folder_is_a_sentence(
    index: str, said: str, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(index, encoding="latin-1")
    with pytest.raises(ModelError, match=said):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("config_class", [GRPOConfig, SFTConfig, RewardConfig])
@pytest.mark.parametrize("name", ["trust_remote_code", "push_to_hub", "hub_token", "hub_model_id"])
def test_no_stage_can_be_told_to_run_code_or_to_send_anything_away(name: str, config_class: type) -> None:
    with pytest.raises(ConfigError, match=f"trl: '{name}' cannot be set"):
        check_extra({name: "x"}, config_class, set())


def test_a_chat_template_from_elsewhere_is_refused() -> None:
    settings = {"model": "path:base", "demos": ["path:demos"], "trl": {"chat_template_path": "/etc/passwd"}}
    with pytest.raises(ConfigError, match="trl: 'chat_template_path' cannot be set"):
        sft_run.check(SFT(**settings))
