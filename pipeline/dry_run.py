"""What a run would keep and leave out, without a model and without a trace: the counts of its data stages.

Reads whatever the stages of a recipe read; makes nothing that stays. A stage that needs no model (`curate`) is run in a
folder that is thrown away, by the code of the real run, so its counts are those of the real run; one that samples says
how many responses it would ask for. A stage that is done tells the counts it has; one that rests on something that only
a model can make is passed over, with the reason. Command: `make openthoughts DRY_RUN=1`
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.artifact import publish, read_json
from pipeline.plan import DONE, make_plan, record_of
from pipeline.recipe import Recipe
from pipeline.refs import DATASET
from pipeline.stage import Inputs, Workdir


def dry_run(recipe: Recipe, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(stage, its counts) for each wanted stage that makes data; (stage, why not) where they cannot be known yet.

    Raises what the stages raise: a source that is not there, rules that leave nothing.
    """
    done = {line.stage for line in make_plan(recipe) if line.state == DONE}
    with TemporaryDirectory(prefix="r1-dry-run-") as folder:
        for name in done:
            (Path(folder) / name).symlink_to(recipe.folder / name)
        for name in wanted:
            if recipe.stages[name].makes == DATASET and (counted := _counted(recipe, name, Path(folder))):
                yield name, counted


def _counted(recipe: Recipe, name: str, run_dir: Path) -> dict[str, Any] | str | None:
    """The counts of one stage, or why there are none yet; None for a stage that never has any."""
    stage, final = recipe.stages[name], run_dir / name
    if (final / "counts.json").is_file():
        return dict(read_json(final / "counts.json"))
    wants = stage.reference_fields()
    data = [ref.target for field, ref in stage.references() if ref.scheme == "stage" and wants[field] == DATASET]
    if missing := [target for target in data if not (run_dir / target).exists()]:
        return f"not counted: it rests on {', '.join(missing)}, and that needs a model"
    work = Workdir(run_dir / f"{name}.partial")
    counts = stage.dry_run(Inputs(stage, run_dir), work)
    if (work.path / "rows").is_dir():
        publish(work.path, final, record_of(recipe, name), ("checkpoints", "progress.json"))
    return counts
