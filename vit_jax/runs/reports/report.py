"""A report: runs, their groups, and a paper's table beside them, with what they are compared by."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vit_jax.runs.reports import paper as papers
from vit_jax.runs.reports.groups import Group, group
from vit_jax.runs.reports.paper import Comparison, Paper
from vit_jax.runs.reports.runs import Known, Mode, Run, choose_metric, collect, differing, mode_of, read_sweep


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the tables and the page show; `broken` says which workdirs were left out, and why."""

    metric: str
    mode: Mode
    runs: Sequence[Run]
    keys: Sequence[str]
    groups: Sequence[Group]
    paper: Paper | None
    comparisons: Sequence[Comparison]
    broken: Sequence[str]

    @property
    def panels(self) -> list[str]:
        """The metrics whose curves are shown at first: what runs are compared by, and the loss of training."""
        known = {metric for run in self.runs for metric in run.curves}
        return [metric for metric in dict.fromkeys((self.metric, "loss")) if metric in known]

    @property
    def title(self) -> str:
        """How many runs there are, and how many of them are finished."""
        return f"{len(self.runs):,} runs, {sum(run.finished for run in self.runs):,} finished"

    @property
    def better(self) -> str:
        """Which values of the metric are the better ones."""
        return "higher is better" if self.mode == "max" else "lower is better"


def make_report(
    folders: Sequence[str | Path],
    paper: str | Path | None = None,
    metric: str | None = None,
    known: Known | None = None,
) -> Report:
    """The report of the runs in folders, compared by a metric: else the paper's, a sweep's or the most telling one they have.

    known: see runs.collect.
    """
    table = None if paper is None else papers.read(paper)
    runs, broken = collect(folders, known)
    asked = next((found for folder in folders if "metric" in (found := read_sweep(Path(folder)))), None)
    if metric is None and table is not None:
        chosen, mode = table.metric, table.mode
    elif metric is None and asked is not None:
        chosen, mode = asked["metric"], asked["mode"]
    else:
        chosen = choose_metric(runs, metric)
        mode = mode_of(chosen)
    return Report(
        metric=chosen,
        mode=mode,
        runs=runs,
        keys=[key for key in differing(runs) if key != "seed"],
        groups=group(runs),
        paper=table,
        comparisons=[] if table is None else papers.compare(table, runs),
        broken=broken,
    )
