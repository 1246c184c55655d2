"""Demos from a model's own right answers: sample, judge, filter, keep.

Reads a checkpoint and problems; makes a data set: demos in `rows/part-00000.parquet …` (with `pass_rate`, the share
of the problem's samples that were right, and `num_tokens`), the difficulty of every problem in `problems.parquet`,
what was dropped and why in `counts.json`, and both in words in the data card `README.md`.

Paper: DeepSeek-R1 §2.3.3: several responses to each prompt from the RL checkpoint, only right ones kept, and of
these none with mixed languages, long paragraphs or code blocks; about 600,000 demos. §2.3.1 makes the cold-start
data from R1-Zero's samples in the same way, with repetition filtered out too.
How we differ: right is what a rule says, never a judge model; no model rewrites the reasoning; every filter, the
verification and the number kept of each problem are settings (`verify: false` keeps wrong answers too, as
OpenThoughts3 did to no harm; a list of domains verifies only those, as the first OpenThoughts, which let pass what no
rule can judge); problems that an evaluation set holds are left out before anything is sampled.

Problems are shuffled by the seed, so every shard is a fair sample of all sources. Each shard is sampled, judged,
filtered and written before the next, and a resume goes on with the next one. What is held in memory is the list of
problems and one shard.

Command: `make stage STAGE=reasoning_data`, or as part of `make r1-full`
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.card import COLUMNS, Row
from pipeline.card_rows import storable
from pipeline.errors import DataError
from pipeline.refs import DATASET, CheckpointRef, DatasetRef
from pipeline.stage import Inputs, Runtime, Workdir
from stages.chat import one_turn
from stages.dataset import Shards, write_parquet
from stages.decontamination import Overlap, decontaminated
from stages.dedup import Dedup, distinct
from stages.filters import FAILS, Filters
from stages.rewards.checkers import Verdict
from stages.rows import benchmark_texts, rows_of
from stages.sampled_card import write_sampled_card
from stages.sampling import Judged, LazySampler, SamplingStage

if TYPE_CHECKING:
    from stages.engines.samplers import Completion

DEMO = {**dict.fromkeys(COLUMNS["demo"], "string"), "pass_rate": "double", "num_tokens": "int64"}
PROBLEM = {
    **dict.fromkeys(("id", "prompt", "domain", "language"), "string"),
    "pass_rate": "double",
    **dict.fromkeys(("num_right", "num_samples", "kept"), "int64"),
}

WRONG = tuple(str(verdict) for verdict in Verdict if verdict is not Verdict.right)
REASONS = ("truncated", *WRONG, *FAILS, "duplicate", "not_chosen")
"""Why a sample is not among the demos; each is counted under the first that holds, so the counts add up."""

PASS_RATES = ("0", "to 0.25", "to 0.5", "to 0.75", "below 1", "1", "unknown")
"""How problems are counted by the share of their samples that is right."""


class RejectionSampling(SamplingStage):
    """Samples responses to problems and keeps the good ones as demos."""

    kind: ClassVar[str] = "rejection_sampling"
    makes: ClassVar[str] = DATASET

    model: CheckpointRef = Field(description="the checkpoint to sample from")
    problems: list[DatasetRef] = Field(min_length=1, description="problems with checkable answers")
    num_problems: int | None = Field(None, ge=1, description="at most so many from each reference; null = all")
    num_samples: int = Field(8, ge=1, description="responses to each problem")
    keep: int | None = Field(1, ge=1, description="at most so many demos of each problem; null = all that pass")
    choose: Literal["shortest", "first", "random"] = Field("first", description="which of those that pass")
    verify: bool | tuple[str, ...] = Field(
        True, description="keep right answers only; false = wrong ones too; a list = only in these domains"
    )
    filters: Filters = Filters()
    dedup: Dedup = Field(Dedup(), description="of problems, before sampling, and of one problem's responses")
    decontaminate: list[DatasetRef] = Field(
        default=[], description="problems that these hold are left out", json_schema_extra={"split": "eval"}
    )
    overlap: Overlap = Field(Overlap(), description="when one of `decontaminate` holds a problem")
    shard_size: Runtime[int] = Field(
        256, ge=1, description="problems sampled and written together; also names the random stream"
    )

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Writes the files named in the module docstring; returns how many demos there are and the mean pass rate.

        Raises DataError if nothing is left to sample or nothing is kept; the counts say why.
        """
        problems, counts = self.prepare(inputs)
        shards = Shards(work, DEMO, self.shard_size)
        with LazySampler(self, inputs.checkpoint("model"), problems) as sampler:
            for number, start in enumerate(range(0, len(problems), self.shard_size)):
                shard = problems[start : start + self.shard_size]
                if not shards.is_done(number):
                    demos, record = self.shard(shard, sampler.sample(shard, self.num_samples, start))
                    shards.publish(number, demos, record)
                work.progress(start + len(shard), len(problems), "problems")
        counts |= summed(shards.records())
        write_parquet(work.path / "problems.parquet", (record["problems"] for record in shards.records()), PROBLEM)
        work.write_json("counts.json", counts)
        _require_some(counts)
        write_sampled_card(self, counts, work.path)
        return headline(counts)

    def prepare(self, inputs: Inputs) -> tuple[list[Row], dict[str, Any]]:
        """The problems to sample, in the order of sampling, and the counts of those left out."""
        problems = rows_of(inputs, "problems", "problem", self.num_problems)
        random.Random(self.seed).shuffle(problems)
        left, dropped = distinct(problems, self.dedup)
        held: Mapping[str, Counter[str]] = {}
        if texts := benchmark_texts(inputs, self.decontaminate):
            left, held = decontaminated(left, texts, self.overlap)
        counts = {"found": len(problems), **dropped, "contaminated": sum(c.total() for c in held.values())}
        if not left:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"no problem is left to sample ({told})", hint="loosen `dedup` or `overlap`")
        return left, {
            "problems": {**counts, "sampled": len(left)},
            "benchmarks": {name: dict(counter) for name, counter in held.items()},
        }

    def shard(
        self, problems: Sequence[Row], groups: "Sequence[Sequence[Completion]]"
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Demos of these problems, and a record: rows of `problems.parquet` and counts of the samples.

        `groups[i]` are the completions of `problems[i]`.
        """
        pairs = [(problem, c) for problem, group in zip(problems, groups, strict=True) for c in group]
        judged = iter(self.judged(pairs))
        demos: list[dict[str, Any]] = []
        rows, dropped = [], Counter[str]()
        for problem, group in zip(problems, groups, strict=True):
            samples = [next(judged) for _ in group]
            kept, reasons = self.kept(samples)
            row = _difficulty(problem, samples, len(kept))
            demos += (_demo(sample, row["pass_rate"]) for sample in kept)
            rows.append(row)
            dropped += reasons
        return demos, {"problems": rows, "dropped": dropped}

    def kept(self, samples: Sequence[Judged]) -> tuple[list[Judged], Counter[str]]:
        """Which of one problem's samples become demos, and how many are dropped for what."""
        reasons = [self.reason_to_drop(sample) for sample in samples]
        dropped = Counter(reason for reason in reasons if reason)
        kept: list[Judged] = []
        for sample in self.ordered([s for s, reason in zip(samples, reasons, strict=True) if reason is None]):
            if any(self.dedup.same(sample.completion.text, other.completion.text) for other in kept):
                dropped["duplicate"] += 1
            elif self.keep is not None and len(kept) >= self.keep:
                dropped["not_chosen"] += 1
            else:
                kept.append(sample)
        return kept, dropped

    def reason_to_drop(self, sample: Judged) -> str | None:
        """The first reason why a sample can be no demo, if any."""
        if sample.completion.truncated:
            return "truncated"  # also with `verify: false`: it would be learned as a whole response
        if self.verifies(sample.problem["domain"]) and sample.verdict is not Verdict.right:
            return str(sample.verdict)
        return self.filters.reason_to_drop(sample.response, sample.problem["language"])

    def verifies(self, domain: str) -> bool:
        """Whether only right answers to problems of this domain are kept."""
        return self.verify if isinstance(self.verify, bool) else domain in self.verify

    def dry_run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """What would be sampled."""
        _, counts = self.prepare(inputs)
        return {**counts, "samples": {"sampled": counts["problems"]["sampled"] * self.num_samples}}

    def ordered(self, samples: list[Judged]) -> list[Judged]:
        """The samples of one problem, the one to keep first at the front."""
        if self.choose == "shortest":
            return sorted(samples, key=lambda sample: len(sample.completion.token_ids))
        if self.choose == "random" and samples:
            random.Random(f"{self.seed} {samples[0].problem['prompt']}").shuffle(samples)
        return samples


def summed(records: Iterator[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over all shards: of samples by their fate, of demos by domain, of problems by pass rate."""
    samples = Counter(dict.fromkeys(("sampled", *REASONS, "kept"), 0))
    kept_by_domain, pass_rates = Counter[str](), Counter(dict.fromkeys(PASS_RATES, 0))
    total_rate, num_answered = 0.0, 0
    for record in records:
        samples.update(record["dropped"])
        for row in record["problems"]:
            samples.update(sampled=row["num_samples"], kept=row["kept"])
            kept_by_domain[f"{row['domain']}, {row['language']}"] += row["kept"]
            pass_rates[_pass_rate_name(row["pass_rate"])] += 1
            total_rate += row["pass_rate"] or 0.0
            num_answered += bool(row["kept"])
    num_judged = pass_rates.total() - pass_rates["unknown"]
    return {
        "samples": dict(samples),
        "kept_by_domain": dict(kept_by_domain),
        "pass_rates": dict(pass_rates),
        "mean_pass_rate": total_rate / num_judged if num_judged else None,
        "num_problems_kept": num_answered,
    }


def _pass_rate_name(rate: float | None) -> str:
    if rate is None:
        return "unknown"
    if rate in (0, 1):
        return str(int(rate))
    return next(name for name, top in zip(PASS_RATES[1:5], (0.25, 0.5, 0.75, 1.0), strict=True) if rate <= top)


def headline(counts: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest and the report show of the data set."""
    samples = counts["samples"]
    return {
        "num_demos": samples["kept"],
        "num_problems": counts["num_problems_kept"],
        "kept_share": samples["kept"] / samples["sampled"],
        "mean_pass_rate": counts["mean_pass_rate"],
    }


def _difficulty(problem: Mapping[str, str], samples: Sequence[Judged], num_kept: int) -> dict[str, Any]:
    """A row of `problems.parquet`; the pass rate is null where nothing says what is right."""
    num_right = sum(sample.verdict is Verdict.right for sample in samples)
    unknown = all(sample.verdict in (Verdict.gold_unusable, Verdict.no_rule) for sample in samples)
    return {
        **{name: problem[name] for name in ("id", "prompt", "domain", "language")},
        "pass_rate": None if unknown else num_right / len(samples),
        "num_right": num_right,
        "num_samples": len(samples),
        "kept": num_kept,
    }


def _demo(sample: Judged, pass_rate: float | None) -> dict[str, Any]:
    """A row of the data set. The response is the text as sampled, without end-of-turn tokens."""
    return {
        **{name: sample.problem[name] for name in ("id", "prompt", "domain", "language")},
        "response": storable(one_turn(sample.completion.text)),
        "pass_rate": pass_rate,
        "num_tokens": len(sample.completion.token_ids),
    }


def _require_some(counts: Mapping[str, Any]) -> None:
    samples = counts["samples"]
    if not samples["kept"]:
        told = ", ".join(f"{name} {samples[name]}" for name in REASONS if samples[name])
        raise DataError(
            f"none of {samples['sampled']} samples was kept: {told}",
            hint="raise num_samples, loosen `filters`, or sample from a better model; counts.json has the counts",
        )
