"""Makes the mini scale's base model: a tokenizer and a very small Llama, trained from nothing; or a smaller student.

Reads text (by default the card `mini_text`), makes a checkpoint with tokenizer, weights and configuration. Given a
`model` and the layers to keep of it, it begins there: a student for distillation is the base without some of its
layers, trained on the same text for a little while until it has got over the loss.
The paper starts from DeepSeek-V3-Base (section 2.2), a model that has read trillions of tokens; here the
text is a small world in which good and bad ways of answering stand side by side, so that the effects of the
later stages can be seen on a laptop. A GPU needs about three minutes, two CPU cores more than an hour; the
finished weights ship in `models/mini-base`.

Command: `make mini-base`, `make mini-student`
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.artifact import newest_checkpoint, step_of
from pipeline.refs import CHECKPOINT, CheckpointRef, DatasetRef, Ref
from pipeline.stage import Inputs, Runtime, Stage, Workdir
from stages.rows import rows_of

TOKENIZER_TEXTS = 50_000
"""Documents the tokenizer learns from; more does not change its merges."""


class Architecture(BaseModel):
    """The shape of a Llama model; names as in transformers' LlamaConfig."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(640, ge=300, description="entries of the tokenizer; 256 are bytes")
    hidden_size: int = Field(128, ge=8)
    intermediate_size: int = Field(352, ge=8)
    num_hidden_layers: int = Field(4, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    num_key_value_heads: int = Field(4, ge=1)
    max_position_embeddings: int = Field(256, ge=16, description="longest text in tokens, prompt and response")


class Pretrain(Stage):
    """Next-token training from random weights."""

    kind: ClassVar[str] = "pretrain"
    makes: ClassVar[str] = CHECKPOINT

    text: DatasetRef = Field(Ref("card", "mini_text"), description="what to read: rows with the column `text`")
    num_texts: int = Field(600_000, ge=1, description="documents to read from the reference")
    model: CheckpointRef | None = Field(None, description="begin with these weights and tokenizer; null = from nothing")
    keep_layers: tuple[int, ...] | None = Field(
        None, min_length=1, description="layers of `model` to keep, counted from 0; null = all"
    )
    architecture: Architecture = Field(Architecture(), description="of a model from nothing")
    whole_words: tuple[str, ...] = Field(
        ("<think>", "</think>", "<answer>", "</answer>"), description="strings that are one ordinary token each"
    )
    num_steps: int = Field(4000, ge=1)
    batch_rows: int = Field(128, ge=1, description="packed rows per step")
    sequence_length: int = Field(256, ge=16, description="tokens per packed row")
    learning_rate: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(100, ge=1)
    weight_decay: float = Field(0.1, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="float32 (TF32 on CUDA) or bf16 autocast")
    device: Runtime[Literal["auto", "cpu", "cuda"]] = "auto"
    log_steps: Runtime[int] = Field(50, ge=1)
    save_steps: Runtime[int] = Field(500, ge=1, description="steps between checkpoints to resume from")

    @model_validator(mode="after")
    def _keeps_layers_of_a_model(self) -> Self:
        if self.keep_layers is not None and self.model is None:
            raise ValueError("keep_layers says which layers of `model` to keep, and there is no model: name one")
        if len(set(self.keep_layers or ())) < len(self.keep_layers or ()):
            raise ValueError("keep_layers names a layer twice: it would be one layer with one set of weights")
        return self

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Trains and saves model and tokenizer; returns the last loss, the speed and the number of weights."""
        from stages.engines import pretraining  # imports torch
        from stages.engines.models import choose_device

        device = choose_device(self.device)
        texts = [row["text"] for row in rows_of(inputs, "text", "text", self.num_texts)]
        model, tokenizer = self._begun(inputs, texts)
        pack = pretraining.pack(texts, tokenizer, self.sequence_length)
        model.to(device)
        how = pretraining.Optimisation(
            **{name: getattr(self, name) for name in pretraining.Optimisation.__annotations__}
        )

        def log(step: int, metrics: dict[str, float]) -> None:
            work.log(step, metrics)
            work.progress(step, self.num_steps, f"loss {metrics['loss']:.3f}")

        newest, _ = newest_checkpoint(work.checkpoints)
        work.rewind(step_of(newest) if newest else 0)
        metrics = pretraining.train(model, pack, how, work.checkpoints, log)
        model.cpu().save_pretrained(work.path)
        tokenizer.save_pretrained(work.path)
        return metrics | {"num_parameters": model.num_parameters()}

    def _begun(self, inputs: Inputs, texts: list[str]) -> tuple[Any, Any]:
        """Model and tokenizer before the first step."""
        from stages.engines import pretraining
        from stages.engines.models import load_model, load_tokenizer

        if self.model is None:
            longest = self.architecture.max_position_embeddings
            tokenizer = pretraining.train_tokenizer(
                texts[:TOKENIZER_TEXTS], self.architecture.vocab_size, self.whole_words, longest
            )
            return pretraining.new_model(self.architecture.model_dump(), tokenizer, self.seed), tokenizer
        source = inputs.checkpoint("model")
        model = load_model(source, device="cpu")
        return pretraining.with_layers(model, self.keep_layers), load_tokenizer(source)
