"""Compare runs by a metric: all data shown in the tables and the HTML page of a report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vit_jax.config.factory import near
from vit_jax.runs.reports.collect import MetricMode, RunCache, RunResult, collect_runs, distinct_keys, find_sweep
from vit_jax.runs.reports.paper import Paper, RowComparison, compare_with_paper, read_paper
from vit_jax.runs.reports.seed_groups import SeedGroup, group_by_seed
from vit_jax.types import UserError

# Suffixes of metrics that are better if lower.
LOWER_IS_BETTER = ("loss", "error", "ece", "nll", "seconds", "data_wait")


@dataclasses.dataclass(frozen=True)
class RunComparison:
    """Runs, their groups over seeds and a paper's table; `broken` lists why workdirs were left out."""

    metric: str
    mode: MetricMode
    runs: Sequence[RunResult]
    keys: Sequence[str]
    groups: Sequence[SeedGroup]
    paper: Paper | None
    paper_rows: Sequence[RowComparison]
    broken: Sequence[str]

    @property
    def panels(self) -> list[str]:
        """Return the metrics with curves shown first: the metric and the training loss."""
        known = {metric for run in self.runs for metric in run.curves}
        return [metric for metric in dict.fromkeys((self.metric, "loss")) if metric in known]

    @property
    def title(self) -> str:
        return f"{len(self.runs):,} runs, {sum(run.finished for run in self.runs):,} finished"

    @property
    def better(self) -> str:
        return "higher is better" if self.mode == "max" else "lower is better"


def compare_runs(
    folders: Sequence[str | Path],
    paper: str | Path | None = None,
    metric: str | None = None,
    cache: RunCache | None = None,
) -> RunComparison:
    """Compare the runs in folders by `metric`; defaults to the paper's or sweep's metric, or see `choose_metric`.

    cache: see `collect_runs`.
    """
    table = None if paper is None else read_paper(paper)
    runs, broken = collect_runs(folders, cache)
    sweeps = [sweep for folder in folders if (sweep := find_sweep(Path(folder))) is not None and sweep.metric]
    chosen = choose_metric(runs, metric)
    mode = mode_of(chosen)
    if metric is None and (source := table or next(iter(sweeps), None)):
        chosen, mode = str(source.metric), "min" if source.mode == "min" else "max"
    return RunComparison(
        metric=chosen,
        mode=mode,
        runs=runs,
        keys=[key for key in distinct_keys(runs) if key != "seed"],
        groups=group_by_seed(runs),
        paper=table,
        paper_rows=[] if table is None else compare_with_paper(table, runs),
        broken=broken,
    )


def mode_of(metric: str) -> MetricMode:
    """Return "min" if lower values of a metric are better, judging by its name."""
    return "min" if metric.split("/")[-1].endswith(LOWER_IS_BETTER) else "max"


def choose_metric(runs: Sequence[RunResult], wanted: str | None) -> str:
    """Return the wanted metric, else test/accuracy, any other accuracy, an evaluator's loss, or the training loss.

    Raises UserError if no run has logged the wanted metric.
    """
    known = sorted({metric for run in runs for metric in run.curves})
    if wanted is not None:
        if known and wanted not in known:
            raise UserError(f"--metric={wanted}: no run has logged it{near(wanted, known)}")
        return wanted
    preferred = [name for name in known if name == "test/accuracy"]
    preferred += [name for name in known if name.endswith("/accuracy")]
    preferred += [name for name in known if name.endswith("/loss")]
    return preferred[0] if preferred else "loss"
