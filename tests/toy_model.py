"""A tiny random Llama and a tokenizer of bytes, built on the spot: for tests that need a real checkpoint, not
a good one."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

END = "<|endoftext|>"

logging.disable_progress_bar()
torch.set_num_threads(1)  # matrices this small only wait for a second thread, most of all on a busy machine


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Id 0 ends a text (and pads), ids 1 to 256 are the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={END: 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left")


def tiny_llama(seed: int = 0, hidden: int = 32, layers: int = 2, context: int = 256) -> LlamaForCausalLM:
    """About 30,000 random parameters over the bytes' vocabulary, fp32, eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def save_toy_model(folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder as a stage would publish it (without its manifest)."""
    tiny_llama(seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
