"""Solutions that somebody else sampled, as the data set that a `rejection_sampling` stage would have made of them.

Reads `multi_sample/qwen_math_cot_100x8.jsonl` under R1_DATA (100 MATH problems, eight solutions each, by a
Qwen2.5-Math model); makes `runs/known-samples/answers`: every solution judged by our own checkers, as demos with the
pass rate of their problem. LIMO's selection can so be run over real chains without a GPU:

    R1_DATA=/path/to/data python -m benchmarks.known_samples
    R1_DATA=/path/to/data make limo DRY_RUN=1 FROM=limo_demos UNTIL=limo_demos \
        ARGS="stages.strong_answers=run:known-samples/answers stages.limo_demos.min_pass_rate=0.125 …"
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import command_line, start
from pipeline.artifact import publish
from pipeline.errors import ArtifactError, DataError
from pipeline.places import runs_folder
from pipeline.sources import data_folder, read_rows
from stages.dataset import write_parquet
from stages.engines.samplers import Completion
from stages.filters import Filters
from stages.rejection_sampling import DEMO, PROBLEM, RejectionSampling, summed

FILE = "multi_sample/qwen_math_cot_100x8.jsonl"
CHATTY = Filters(well_formed=False)
"""These solutions have no tags; everything else that the filters ask for may be asked."""


def main() -> None:
    """Judge, keep what is right, publish."""
    command_line(__doc__).parse_args()
    folder, final = data_folder(), runs_folder() / "known-samples" / "answers"
    if folder is None or not (folder / FILE).is_file():
        raise DataError(f"R1_DATA does not name a folder with {FILE}", "set R1_DATA=FOLDER")
    if final.exists():
        raise ArtifactError(f"{final} is there already", "move it away first")
    counts = make(read_rows(folder / FILE), final)
    print(json.dumps({key: counts[key] for key in ("samples", "pass_rates", "num_problems_kept")}, indent=1))


def make(raws: Iterable[dict[str, Any]], final: Path) -> dict[str, Any]:
    """Writes the artifact; returns its counts."""
    stage = RejectionSampling(model="path:models/mini-base", problems=["card:math_500/eval"], keep=None, filters=CHATTY)
    pairs = [(problem(raw), [Completion([], text, False, []) for text in raw["code"]]) for raw in raws]
    demos, record = stage.shard([one for one, _ in pairs], [group for _, group in pairs])
    counts = summed(iter([record]))
    partial = final.with_name(f"{final.name}.partial")
    (partial / "rows").mkdir(parents=True, exist_ok=True)
    write_parquet(partial / "rows" / "part-00000.parquet", [demos], DEMO)
    write_parquet(partial / "problems.parquet", [record["problems"]], PROBLEM)
    (partial / "counts.json").write_text(json.dumps(counts))
    publish(partial, final, {"artifact": "dataset", "kind": stage.kind, "fingerprint": FILE})
    return counts


def problem(raw: dict[str, Any]) -> dict[str, str]:
    """A row of the file as a problem of ours."""
    row = {"id": f"multi-{raw['idx']}", "prompt": raw["question"], "answer": raw["gt"]}
    return {**row, "checker": "math", "domain": "math", "language": "en"}


if __name__ == "__main__":
    start(main)
