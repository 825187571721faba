"""Which figures a comparison draws, and their contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlhw.views.comparison import Comparison, compare_runs, figures
from support.run_directories import CURVES, NO_CURVES, make_study_run, make_sweep, read_rows


def test_requested_figures_are_drawn(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {f"lr={lr} b={b}": [float(b) + lr] for lr in (1, 2) for b in (1, 2, 3)})
    for run in runs:
        (run / "probes").mkdir()
        for epoch in (0, 1, 3):
            (run / "probes" / f"epoch_000{epoch}.csv").write_text("layer,name,weight_norm\n1,in,3\n2,out,40\n")
    comparison = Comparison(
        curves=["val_loss"], x="epoch", log_x=False, overlay="lr", against=["b"], probes=["weight_norm"]
    )
    assert compare_runs(tmp_path, runs, comparison=comparison).notes == ()
    for name in ("comparison", "figures/against_b", "figures/probe_weight_norm"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_probe_figure_is_drawn_with_missing_values(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {"b=0": [2.0, 3.0]})
    for run in runs:
        (run / "probes").mkdir()
        for epoch in (0, 3):
            (run / "probes" / f"epoch_000{epoch}.csv").write_text("layer,name,saturated_percent\n1,in,3\n2,out,nan\n")
    comparison = Comparison(curves=[], x="epoch", log_x=False, overlay=None, against=[], probes=["saturated_percent"])
    assert compare_runs(tmp_path, runs, comparison=comparison).notes == ()
    assert (tmp_path / "figures" / "probe_saturated_percent.png").is_file()


@pytest.mark.parametrize(
    ("results", "drawn"),
    [
        ({"b=0": [1.0], "b=1": [2.0], "b=2": [2.0]}, ["against_b.png"]),
        ({"b=0": [1.0], "b=1": [2.0]}, []),
        ({f"b={b} c={c}": [1.0] for b in range(3) for c in range(3)}, []),
        ({f"b={b} c={c}": [1.0] for b in range(3) for c in range(2)}, ["against_b.png"]),
    ],
)
def test_results_are_drawn_against_the_only_key_with_three_numbers_by_default(
    tmp_path: Path, results: dict[str, list[float]], drawn: list[str]
) -> None:
    compare_runs(tmp_path, make_sweep(tmp_path, results), comparison=CURVES)
    assert [path.name for path in (tmp_path / "figures").glob("*.png")] == drawn


def test_study_results_are_drawn_against_a_numeric_key(tmp_path: Path) -> None:
    runs = [
        make_study_run(tmp_path / f"{n}", f"model.hidden=[{n}]", multiply_adds=10 * n, bytes=n) for n in (1, 20, 300)
    ]
    assert compare_runs(tmp_path, runs, comparison=CURVES).notes == ()
    assert (tmp_path / "figures" / "against_model.hidden.png").is_file()


def test_curves_are_drawn_against_the_step_on_a_log_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = figures.compared_curves

    def recording_draw(panels: Any, **options: Any) -> Any:
        drawn.append((panels, draw(panels, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(figures, "compared_curves", recording_draw)
    runs = make_sweep(tmp_path, {"b=0.1": [2.0], "b=0.2": [3.0]})
    for run in runs:
        text = (run / "metrics.csv").read_text().splitlines()
        steps = ["step", *(str(7 * epoch) for epoch in range(1, len(text)))]
        (run / "metrics.csv").write_text("".join(f"{line},{step}\n" for line, step in zip(text, steps, strict=True)))
    comparison = Comparison(curves=["train_loss"], x="step", log_x=True, overlay=None, against=[], probes=[])
    compare_runs(tmp_path, runs, comparison=comparison)
    ((panels, figure),) = drawn
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_xscale()) == ("step", "log")
    assert [list(series.x) for series in panels[0].series] == [[7, 14, 21]] * 2


def test_figures_that_are_not_drawn_are_noted_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ValueError("invalid limits")

    monkeypatch.setattr("dlhw.views.comparison.figures.compared_curves", fail)
    runs = make_sweep(tmp_path, {"b=0": [2.0], "b=1": [1.0]})
    comparison = Comparison(
        curves=["train_loss"], x="epoch", log_x=False, overlay="lr", against=["c"], probes=["weight_norm"]
    )
    conclusion = compare_runs(tmp_path, runs, comparison=comparison)
    assert conclusion.notes == (
        "comparison.overlay=lr: this key does not vary; expected one of b",
        "comparison.png: not drawn (ValueError: invalid limits)",
        "figures/against_c.png: not drawn (c has fewer than two numeric values among the finished settings)",
        "figures/probe_weight_norm.png: not drawn (no run has two probes with the column weight_norm)",
    )
    assert conclusion.winner is not None
    assert len(read_rows(tmp_path / "sweep.csv")) == 2


def test_only_figures_of_an_earlier_comparison_are_removed(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, {f"b={b}": [float(b)] for b in range(3)})
    (tmp_path / "figures").mkdir()
    for name in ("comparison", "figures/against_lr", "figures/probe_norm", "figures/filters"):
        (tmp_path / f"{name}.png").write_text("old")
    compare_runs(tmp_path, runs, comparison=NO_CURVES)
    assert sorted(path.stem for path in tmp_path.glob("**/*.png")) == ["against_b", "filters"]
