"""What stages that sample share: how to prompt, how to sample and on which engine, and how answers are judged.

Not a stage itself; `GRPO`, `Evaluate` and `RejectionSampling` are.
"""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from pipeline.stage import ModelSource, Runtime, Stage
from stages.chat import TEMPLATES, Response, parse
from stages.rewards.checkers import Verdict, answer_text, check_many

if TYPE_CHECKING:
    from stages.engines.samplers import Completion, Sampler

Template = Literal["mini", "r1_zero", "chat"]
AT_ONCE = 10_000
"""Prompts whose length is looked at together."""


class Vllm(BaseModel):
    """Options of the vLLM engine, by its own names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_memory_utilization: float = Field(0.4, gt=0, le=1, description="share of the GPU for vLLM's weights and cache")
    kv_cache_memory_gb: float | None = Field(
        None, gt=0, description="GiB for its cache; null = by the share, which other programs on this GPU can disturb"
    )
    max_model_len: int | None = Field(None, ge=1, description="longest prompt and response; null = what is needed")
    max_num_seqs: int | None = Field(
        None, ge=1, description="responses at once; fewer = less memory to start and to sample. null = vLLM chooses"
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=1, description="tokens read at once; fewer = less memory, which vLLM tries out when it starts"
    )
    attention_backend: str | None = Field(None, description="e.g. FLASH_ATTN; null = vLLM chooses")
    sleep_level: Literal[1, 2] = Field(
        1, description="1 = while training its weights wait in the machine's memory; 2 = dropped, and sent again"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower")
    url: str = Field("http://127.0.0.1:8000", description="where `vllm serve` listens, for sampler: vllm_server")


class SamplingStage(Stage, ABC):
    """The fields of a stage that samples."""

    template: Template = Field("r1_zero", description="how a problem becomes a prompt (stages/chat.py)")
    prefilled: bool = Field(False, description="the prompt ends in <think>: a response starts inside the reasoning")
    max_completion_length: int = Field(256, ge=1, description="tokens of a response; longer ones are cut off")
    temperature: float = Field(1.0, ge=0, description="0 = always the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)

    sampler: Runtime[Literal["auto", "transformers", "vllm", "vllm_server"]] = Field(
        "auto", description="auto = vLLM on CUDA where it is installed, else transformers"
    )
    vllm: Runtime[Vllm] = Vllm()
    device: Runtime[Literal["auto", "cpu", "cuda"]] = "auto"

    def prompts(self, problems: Sequence[dict[str, Any]], tokenizer: Any) -> list[str]:
        """The text the model continues, for each problem."""
        template = TEMPLATES[self.template]
        return [template.prompt(problem["prompt"], tokenizer, self.prefilled) for problem in problems]

    def parse(self, text: str) -> Response:
        """A completion taken apart, as this stage wrote its prompt."""
        return parse(text, prefilled=self.prefilled)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts at which a response ends."""
        return TEMPLATES[self.template].stop

    def judged(self, pairs: "Sequence[tuple[Mapping[str, str], Completion]]") -> "list[Judged]":
        """Each (problem, completion) taken apart and checked, in order; no text raises."""
        responses = [self.parse(completion.text) for _, completion in pairs]
        questions = [
            (answer_text(response, problem["checker"]), problem)
            for response, (problem, _) in zip(responses, pairs, strict=True)
        ]
        verdicts = check_many(questions)
        return [
            Judged(problem, completion, response, verdict)
            for (problem, completion), response, verdict in zip(pairs, responses, verdicts, strict=True)
        ]


class Judged(NamedTuple):
    """A completion with what is known of it."""

    problem: Mapping[str, str]
    completion: "Completion"
    response: Response
    verdict: Verdict


class LazySampler:
    """A stage's checkpoint on its engine, opened when the first completions are asked for.

    So a stage that finds all its parts done on a resume loads no model. Use it in a `with`; it closes the engine.
    """

    def __init__(self, stage: SamplingStage, source: ModelSource, problems: Sequence[dict[str, str]]) -> None:
        """`problems`: all that will be asked; DataError for one whose prompt fills the model's context."""
        self._stage, self._source, self._problems = stage, source, problems
        self._sampler: Sampler | None = None
        self._tokenizer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._sampler:
            self._sampler.close()

    def sample(self, problems: Sequence[dict[str, str]], n: int, place: int) -> "list[list[Completion]]":
        """`n` completions for each problem, in order.

        `place` (how many problems come before these) names the random stream, so a part sampled again after a
        resume comes out the same.
        """
        from stages.engines.samplers import Sampling

        stage, sampler = self._stage, self._sampler or self._open()
        seed = stage.seed * 1_000_003 + place
        sampling = Sampling(stage.temperature, stage.top_p, stage.max_completion_length, seed, stage.stop)
        return sampler.generate(stage.prompts(problems, self._tokenizer), n, sampling)

    def _open(self) -> "Sampler":
        from stages.engines.engine import open_sampler
        from stages.engines.models import choose_device, context_length, load_tokenizer, read_config
        from stages.engines.samplers import check_prompt_lengths, encode_prompts

        self._tokenizer = load_tokenizer(self._source)
        context = context_length(read_config(self._source))
        for start in range(0, len(self._problems), AT_ONCE):  # token ids take more memory than the texts
            part = self._problems[start : start + AT_ONCE]
            prompts = encode_prompts(self._tokenizer, self._stage.prompts(part, self._tokenizer))
            check_prompt_lengths(prompts, part, context, new_tokens=1)
        device = choose_device(self._stage.device)
        self._sampler = open_sampler(self._stage, self._source, self._tokenizer, device)
        return self._sampler
