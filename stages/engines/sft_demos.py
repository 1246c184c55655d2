"""From the rows of an SFT stage's references to the demos it learns: tokenized, checked, mixed, some held out.

Makes `mix.json`: for every reference how many rows it had, how many were too long, taken and held out, their
mean length and their domains.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.card import Row
from pipeline.errors import DataError
from pipeline.refs import Ref
from stages import mix
from stages.chat import TEMPLATES
from stages.engines.samplers import encode_prompts

if TYPE_CHECKING:
    from stages.sft import SFT

# Demos of each source that are written back from their tokens; a tokenizer of another world fails at once.
NUM_WRITTEN_BACK = 64


@dataclass(frozen=True)
class Demo:
    """One demo as the trainer takes it; a label of -100 is not learned."""

    row: Row
    input_ids: list[int]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def features(self) -> dict[str, list[int]]:
        """What TRL's collator reads."""
        return {"input_ids": self.input_ids, "labels": self.labels}


@dataclass(frozen=True)
class Source:
    """The demos of one reference that fit the model's length, in the order in which they are taken."""

    ref: Ref
    num_rows: int
    num_too_long: int
    demos: list[Demo]


@dataclass(frozen=True)
class Mix:
    """What is learned, what is held out, and the record of both (`mix.json`)."""

    train: list[Demo]
    held_out: list[Demo]
    record: dict[str, Any]


def mixed(stage: "SFT", sources: Sequence[Source]) -> Mix:
    """Takes from each source what `shares` and `num_demos` say; DataError when that is nothing from one of them."""
    sizes = [len(source.demos) for source in sources]
    numbers = mix.amounts(sizes, stage.shares, stage.num_demos)
    for source, number in zip(sources, numbers, strict=True):
        if not number:
            raise DataError(
                f"the mix takes no demo from {source.ref}: it has {len(source.demos)}, the mix has {sum(numbers)}",
                hint="raise num_demos, give this source a larger share, or leave it out",
            )
    taken = [source.demos[:number] for source, number in zip(sources, numbers, strict=True)]
    everything = [demo for demos in taken for demo in demos]
    kept_back = mix.hold_out((demo.row["prompt"] for demo in everything), stage.eval_share)
    record = {
        "num_demos": len(everything),
        "num_held_out": sum(demo.row["prompt"] in kept_back for demo in everything),
        "sources": [_record(s, d, kept_back, len(everything)) for s, d in zip(sources, taken, strict=True)],
    }
    return Mix(
        train=[demo for demo in everything if demo.row["prompt"] not in kept_back],
        held_out=[demo for demo in everything if demo.row["prompt"] in kept_back],
        record=record,
    )


def _record(source: Source, taken: list[Demo], kept_back: frozenset[str], total: int) -> dict[str, Any]:
    return {
        "ref": str(source.ref),
        "num_rows": source.num_rows,
        "num_too_long": source.num_too_long,
        "num_taken": len(taken),
        "share": len(taken) / total,
        "num_held_out": sum(demo.row["prompt"] in kept_back for demo in taken),
        "mean_tokens": fmean(map(len, taken)),
        "domains": dict(Counter(demo.row["domain"] for demo in taken)),
    }


def read_source(stage: "SFT", ref: Ref, rows: Iterable[Row], most: int | None, tokenizer: Any, limit: int) -> Source:
    """The demos of one reference: at most `most` rows, those within `limit` tokens.

    Raises DataError when every demo is too long, or when the tokenizer cannot write the demos back.
    """
    ordered = mix.in_order(rows, stage.seed, most)
    check_written_back(tokenizer, ref, ordered[:NUM_WRITTEN_BACK])
    demos = tokenize(stage, ordered, tokenizer)
    fitting = [demo for demo in demos if len(demo) <= limit]
    if not fitting:
        shortest = min(demos, key=len)
        raise DataError(
            f"every demo of {ref} is longer than {limit} tokens; the shortest, {shortest.row['id']!r}, has "
            f"{len(shortest)}",
            hint="raise max_length (the model's context is the other limit), or leave this source out",
        )
    return Source(ref, len(ordered), len(demos) - len(fitting), fitting)


def tokenize(stage: "SFT", rows: Sequence[Row], tokenizer: Any) -> list[Demo]:
    """Each demo as tokens, cut between prompt and response as sampling will cut it, with the end token learned."""
    template = TEMPLATES[stage.template]
    prompts = encode_prompts(tokenizer, [template.prompt(row["prompt"], tokenizer) for row in rows])
    responses = tokenizer([row["response"] for row in rows], add_special_tokens=False)["input_ids"]
    demos = []
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        target = [*response, tokenizer.eos_token_id]
        ignored = prompt if stage.loss_on_prompt else [-100] * len(prompt)
        demos.append(Demo(row, prompt + target, ignored + target))
    return demos


def check_written_back(tokenizer: Any, ref: Ref, rows: Sequence[Row]) -> None:
    """Raises DataError when a demo's text does not come back from its tokens.

    That is so for demos written for another tokenizer: characters or tags that this one does not know would be
    learned as something else, silently. White space and Unicode form may differ.
    """
    texts = [(row["id"], row[column]) for row in rows for column in ("prompt", "response")]
    tokens = tokenizer([text for _, text in texts], add_special_tokens=False)["input_ids"]
    back = tokenizer.batch_decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for (row_id, text), returned in zip(texts, back, strict=True):
        if _plain(text) != _plain(returned):
            was, became = _difference(_plain(text), _plain(returned))
            raise DataError(
                f"demo {row_id!r} of {ref}: the model's tokenizer cannot write {was!r}, it makes {became!r} of it",
                hint="the demos were written for another tokenizer; rewrite them, or take another model",
            )


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _difference(text: str, returned: str, shown: int = 24) -> tuple[str, str]:
    """Where two texts begin to differ, a few characters of each."""
    same = (a == b for a, b in zip(text, returned, strict=False))
    start = sum(takewhile(bool, same))
    return text[start : start + shown], returned[start : start + shown]
