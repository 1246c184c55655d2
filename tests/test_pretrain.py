"""The stage that makes the mini base: tokenizer, packing, training, resume; and the model that ships."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from data_cards.mini_world import documents
from pipeline.artifact import newest_checkpoint, seal
from pipeline.errors import ConfigError, ResourceError
from pipeline.stage import Inputs, Workdir
from stages.chat import TAGS, TEMPLATES
from stages.engines import pretraining
from stages.pretrain import Architecture, Pretrain

TINY = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SHIPPED = Path(__file__).parents[1] / "models" / "mini-base"
SHORT = ["Q: 27+6=?\nA: 33", "Q: 1+2=?\nA: <think> easy </think><answer> 3 </answer>", "Q: 你好！\nA: 你好"]


@pytest.fixture(scope="module")
def tokenizer():
    return pretraining.train_tokenizer(list(documents(2000, 0)), 320, TAGS, 64)


def stage(**changes) -> Pretrain:
    small = {
        "device": "cpu",
        "num_texts": 200,
        "num_steps": 6,
        "batch_rows": 4,
        "sequence_length": 64,
        "log_steps": 1,
        "save_steps": 2,
    }
    return Pretrain(architecture=TINY, warmup_steps=2, **(small | changes))


def run(stage: Pretrain, folder: Path) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    return stage.run(Inputs(stage, folder), Workdir(folder))


# --- tokenizer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["Q: 3+4=?\nA: 7", "先算12+30=42，对", "🦆 \x00 ñ \u200b  two  spaces\t", "<think>a</think> <answer>"],
)
def test_every_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_tags_are_single_ordinary_tokens(tokenizer):
    ids = [tokenizer(text)["input_ids"] for text in (*"0123456789", *TAGS)]
    assert {len(i) for i in ids} == {1} and len({i[0] for i in ids}) == 14
    assert len(tokenizer("1234567")["input_ids"]) == 7
    assert (
        tokenizer.decode(tokenizer("<think> 1 </think>")["input_ids"], skip_special_tokens=True) == "<think> 1 </think>"
    )
    assert tokenizer.eos_token == tokenizer.pad_token == tokenizer.bos_token == "<|endoftext|>"


def test_the_tokenizer_has_the_size_asked_for(tokenizer):
    assert len(tokenizer) == 320


# --- packing --------------------------------------------------------------------------------------------


def test_packed_documents_do_not_see_each_other(tokenizer):
    model = pretraining.new_model(TINY, tokenizer, seed=0).eval()
    batch = pretraining.pack(SHORT, tokenizer, 64).batch(torch.tensor([0]))
    together = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    start = len(tokenizer(SHORT[0])["input_ids"]) + 1
    alone = tokenizer(SHORT[1], return_tensors="pt")["input_ids"]
    expected = model(alone, use_cache=False).logits[0]
    torch.testing.assert_close(together[start : start + len(expected)], expected, atol=1e-5, rtol=1e-4)


def test_first_tokens_and_padding_are_not_predicted_and_every_end_is(tokenizer):
    pack = pretraining.pack(SHORT, tokenizer, 64)
    labels = pack.batch(torch.arange(len(pack.ids)))["labels"]
    lengths = [len(tokenizer(text)["input_ids"]) for text in SHORT]
    assert (labels != pretraining.IGNORED).sum() == sum(lengths)  # plus one end each, minus one first token each
    assert (labels == tokenizer.eos_token_id).sum() == len(SHORT)


def test_a_text_longer_than_a_row_is_cut_and_still_ended(tokenizer):
    pack = pretraining.pack(["1" * 500], tokenizer, 64)
    assert pack.ids.shape == (1, 64) and pack.ids[0, -1] == tokenizer.eos_token_id


def test_every_epoch_sees_every_row_once_in_its_own_order():
    first, second = (
        [next(stream) for _ in range(5)] for stream in (pretraining.batches(10, 2, 0, skip=s) for s in (0, 5))
    )
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_skipping_gives_the_batches_that_would_have_come():
    straight = pretraining.batches(7, 2, seed=1)
    wanted = [next(straight).tolist() for _ in range(9)][5:]
    skipped = pretraining.batches(7, 2, seed=1, skip=5)
    assert [next(skipped).tolist() for _ in range(4)] == wanted


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth():
    how = pretraining.Optimisation(num_steps=100, batch_rows=1, learning_rate=1.0, warmup_steps=10)
    rates = [how.learning_rate_at(step) for step in range(101)]
    assert rates[0] == 0.1 and max(rates) == 1.0 and rates[-1] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# --- the stage ------------------------------------------------------------------------------------------


def test_the_stage_makes_a_checkpoint_that_transformers_loads(tmp_path):
    metrics = run(stage(), tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert metrics["num_parameters"] == model.num_parameters()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.pad_token_id
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "tokens_per_s", "learning_rate", "grad_norm"} <= rows[0].keys()


def test_training_lowers_the_loss(tmp_path):
    run(stage(num_steps=60, learning_rate=1e-2), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_a_run_cut_off_goes_on_and_ends_where_an_unbroken_one_does(tmp_path, monkeypatch):
    run(stage(), tmp_path / "whole")
    updates = iter(range(100))
    step = pretraining._update

    def cut_off(*args):
        if next(updates) == 5:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(pretraining, "_update", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(stage(), tmp_path / "cut")
    assert newest_checkpoint(tmp_path / "cut" / "checkpoints")[0].name == "checkpoint-4"
    run(stage(), tmp_path / "cut")
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path):
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/model.safetensors").write_text("weights")
    seal(tmp_path / "checkpoint-4")
    assert newest_checkpoint(tmp_path) == (
        tmp_path / "checkpoint-4",
        {tmp_path / "checkpoint-6": "it was not finished"},
    )
    (tmp_path / "checkpoint-4/model.safetensors").write_text("WEIGHTS")
    assert newest_checkpoint(tmp_path)[0] is None


def test_cuda_on_a_machine_without_it_is_refused_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="no CUDA device"):
        run(stage(device="cuda"), tmp_path)


def test_the_whole_words_are_the_tags_of_the_templates():
    assert Pretrain().whole_words == TAGS


# --- the model that ships -------------------------------------------------------------------------------


def test_the_shipped_base_is_small_and_of_the_default_shape():
    files = list(SHIPPED.iterdir())
    assert sum(file.stat().st_size for file in files) < 10_000_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]
    config = json.loads((SHIPPED / "config.json").read_text())
    assert {name: config[name] for name in Architecture.model_fields} == Architecture().model_dump()


def test_the_shipped_base_answers_and_stops():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    prompt = tokenizer([TEMPLATES["mini"].prompt("What is 12+30-5?")] * 16, return_tensors="pt")
    torch.manual_seed(0)
    out = model.generate(**prompt, max_new_tokens=96)[:, prompt["input_ids"].shape[1] :]
    ended = (out == tokenizer.eos_token_id).any(1)
    assert ended.float().mean() > 0.8
    assert sum("</answer>" in text for text in tokenizer.batch_decode(out)) > 8


def test_the_shipped_tokenizer_is_the_one_the_stage_makes():
    whole, longest = Pretrain().whole_words, Architecture().max_position_embeddings
    made = pretraining.train_tokenizer(list(documents(50_000, 0)), Architecture().vocab_size, whole, longest)
    shipped = AutoTokenizer.from_pretrained(SHIPPED)
    assert made.get_vocab() == shipped.get_vocab()


# --- a student ------------------------------------------------------------------------------------------


def student(**changes) -> Pretrain:
    small = {"device": "cpu", "num_texts": 200, "num_steps": 2, "batch_rows": 4, "sequence_length": 64}
    return Pretrain(model="path:models/mini-base", warmup_steps=1, **(small | changes))


def test_a_student_begins_with_the_layers_it_keeps(tmp_path):
    made = run(student(keep_layers=(0, 3), learning_rate=1e-9), tmp_path / "student")
    base, small = (load_file(folder / "model.safetensors") for folder in (SHIPPED, tmp_path / "student"))
    assert made["num_parameters"] < 0.6 * sum(w.numel() for w in base.values())
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.allclose(small[name.format(1)], base[name.format(3)], atol=1e-6)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").config.num_hidden_layers == 2


def test_a_student_of_a_model_with_a_list_of_layer_types_is_saved_and_loaded(tmp_path):
    config = {**TINY, "num_hidden_layers": 4, "layer_types": ["full_attention"] * 3 + ["sliding_attention"]}
    small = pretraining.with_layers(Qwen2ForCausalLM(Qwen2Config(**config, use_sliding_window=True)), [0, 3])
    small.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.layer_types == ["full_attention", "sliding_attention"]


def test_a_student_may_have_more_tokens_than_two_bytes_count(tokenizer):
    class Large(type(tokenizer)):
        def __len__(self) -> int:
            return 151_665

    large = Large(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    pack = pretraining.pack(["1+1=2"], large, 16)
    assert (pack.labels[0] != pretraining.IGNORED).sum() == len(tokenizer("1+1=2")["input_ids"])


def test_layers_that_do_not_exist_or_have_no_model_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="there is no layer 4"):
        run(student(keep_layers=(0, 4)), tmp_path / "student")
    with pytest.raises(ValueError, match="there is no model: name one"):
        stage(keep_layers=(0,))
    with pytest.raises(ValueError, match="a layer twice"):
        student(keep_layers=(0, 0))
