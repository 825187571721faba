"""The best networks of a search on the playground: their outputs, their results over seeds, and their cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlhw.errors import UsageError
from dlhw.runtime.options import Positive
from dlhw.views.comparison.options import Comparison
from dlhw.views.comparison.ranking import Conclusion, Setting, spread

if TYPE_CHECKING:
    from dlhw.storage.record import Record
    from dlhw.views.comparison.results import Result

Row = dict[str, Any]


@dataclass(frozen=True)
class Winners(Comparison):
    """For each value of ``overlay``, the setting with the lowest validation loss.

    Args:
        solved_below: test loss below which a run has solved its problem.
    """

    solved_below: Positive

    def draw(self, record: Record, conclusion: Conclusion, *, title: str) -> list[str]:
        """Write ``tables/winners.csv``, ``figures/winners.png``, ``figures/cost.png`` and a figure of each network."""
        from dlhw.views.comparison.figures import not_drawn

        notes = super().draw(record, conclusion, title=title)
        if self.overlay is None:
            return notes
        winners = {setting.values.get(self.overlay, ""): setting for setting in conclusion.best(self.overlay)}
        winners = dict(sorted(winners.items()))
        if not winners:
            return [*notes, "winners.png: not drawn (no setting has only finished runs)"]
        if any("test_loss" not in run.best for setting in winners.values() for run in setting.runs):
            return [*notes, "winners.png: not drawn (the runs have no test part)"]
        rows = {name: self._row(name, setting) for name, setting in winners.items()}
        record.table("winners", list(rows.values()))
        experiment = title.partition(":")[0]

        def draw_outputs() -> str:
            draw_winners(record, winners, rows, title=f"{experiment}: the best network of each problem")
            return ""

        def draw_costs() -> str:
            costs = f"{experiment}: validation loss and size of all settings"
            draw_cost(record, conclusion.settings, winners, overlay=str(self.overlay), title=costs)
            return ""

        return [*notes, *not_drawn([("figures/winners", draw_outputs), ("figures/cost", draw_costs)])]

    def _row(self, name: str, setting: Setting) -> Row:
        """Return settings, cost and results at the best validation epoch."""
        losses = [run.best["test_loss"] for run in setting.finished]
        tests = spread(losses)
        return {
            "problem": name,
            **{key: value for key, value in setting.values.items() if key != self.overlay},
            "parameters": setting.runs[0].summary.get("parameters", ""),
            "n": len(losses),
            "test_loss_mean": tests.mean,
            "test_loss_sd": "" if tests.sd is None else tests.sd,
            "test_loss_median": statistics.median(losses),
            "test_loss_largest": max(losses),
            "solved": sum(loss < self.solved_below for loss in losses),
        }


def draw_winners(record: Record, winners: dict[str, Setting], rows: dict[str, Row], *, title: str) -> None:
    """Draw the output of each winner's first run in one figure, and the whole network in a figure of its own."""
    from dlhw.views.playground import figures, networks, panels
    from dlhw.views.plots import TEXT_POINTS, new_figure

    columns = min(4, len(winners))
    figure, all_axes = new_figure(
        len(winners),
        title=title,
        subtitle="output of the first run with training points; test loss: mean and standard deviation over n runs",
        columns=columns,
        panel_inches=2.4,
    )
    for axes, (name, setting) in zip(all_axes, winners.items(), strict=True):
        network, training = read_network(setting.finished[0])
        surface = networks.surface(network, 100)
        panels.draw_surface(axes, surface)
        panels.draw_points(axes, training.points[:1], area=3)
        axes.set(xticks=[], yticks=[])
        row = rows[name]
        text = f"{name}\n{spread([run.best['test_loss'] for run in setting.finished])}, n = {row['n']}"
        axes.set_title(text, fontsize=TEXT_POINTS - 1, parse_math=False)
        drawn = networks.Network.of(network)
        record.figure(
            f"figures/network_{name}" if name else "figures/network", figures.network_figure(drawn, surface, training)
        )
    record.figure("figures/winners", figure)


def draw_cost(
    record: Record, settings: Sequence[Setting], winners: dict[str, Setting], *, overlay: str, title: str
) -> None:
    """Draw the mean validation loss of all settings against their number of weights, one panel per problem."""
    from matplotlib.ticker import LogLocator, NullFormatter

    from dlhw.views.plots import PALETTE, TEXT_POINTS, Numbers, add_legend, label, new_figure, scale_values

    columns = min(4, len(winners))
    figure, all_axes = new_figure(len(winners), title=title, columns=columns, panel_inches=2.2, foot_inches=0.3)
    for number, (axes, (name, winner)) in enumerate(zip(all_axes, winners.items(), strict=True)):
        points = []
        for setting in settings:
            loss = setting.spread(lambda run: run.best.get("val_loss"))
            if setting.values.get(overlay, "") == name and setting.complete and loss is not None:
                points.append((setting.runs[0].summary["parameters"], loss.mean, setting is winner))
        x, y, is_best = zip(*sorted(points), strict=True)
        axes.plot(x, y, "o", color=PALETTE[0], markersize=3, alpha=0.5, label="setting")
        axes.plot(x[is_best.index(True)], y[is_best.index(True)], "*", color=PALETTE[1], markersize=11, label="best")
        axes.set_title(name, fontsize=TEXT_POINTS, parse_math=False)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(Numbers())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
        scale_values(axes, y)
        is_left, is_lowest = number % columns == 0, number >= len(winners) - columns
        label(axes, x="weights and biases" if is_lowest else "", y="validation loss" if is_left else "", legend=False)
    handles, names = all_axes[0].get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=2)
    record.figure("figures/cost", figure)


def read_network(run: Result) -> tuple[Any, Any]:
    """Return the model of a run on the playground with its best weights, and what is known about its training.

    Raise UsageError for a run with another dataset or model.
    """
    import torch

    from dlhw.data import playground as points
    from dlhw.models import playground as models
    from dlhw.storage import checkpoint, stored
    from dlhw.storage.record import Record
    from dlhw.views.playground import snapshots

    config = stored.read_config(run.path)
    assert config is not None
    dataset, options = ({**config[group]} for group in ("dataset", "model"))
    if (dataset["_target_"], options["_target_"]) != (
        "dlhw.data.playground.playground",
        "dlhw.models.playground.playground",
    ):
        raise UsageError("comparison=winners: for dataset=playground and model=playground only")
    data = points.playground(data_dir="", seed=config["seed"], **without_target(dataset))
    model = models.playground(data.shape, data.outputs, **without_target(options))
    model.to(torch.float64).load_state_dict(checkpoint.load(run.path / "best.pt")["model"])
    record = Record(run.path)
    record.rows = [dict(row) for row in run.rows]
    return model.eval(), snapshots.Training.of(data, record)


def without_target(options: Row) -> Row:
    """Return the options of a group without the name of its target."""
    return {name: value for name, value in options.items() if name != "_target_"}
