"""Gradients by hyperparameters: their values, their cost, and how rough they are as functions (D1.1)."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad, vmap

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

HYPER = ("lambda", "learning_rate")
STEP = 1e-6  # of the central differences
DIVERGED = 100.0  # training has diverged if the validation error is nan or above this multiple of the initial one
CHUNK = 50  # learning rates of the sweep whose unrolled training is in memory at a time

Data = tuple[Tensor, Tensor]
"""Inputs (N,) and targets (N,)."""


def prediction(w: Tensor, x: Tensor) -> Tensor:
    """Return u . tanh(v x + b) + c for each x (N,): one hidden layer, with w = (v, b, u, c) in one vector."""
    v, b, u = w[:-1].reshape(3, -1)
    y: Tensor = (x[:, None] * v + b).tanh() @ u + w[-1]
    return y


def error(w: Tensor, data: Data) -> Tensor:
    """Return the mean squared error, without the penalty: the validation loss."""
    return (prediction(w, data[0]) - data[1]).square().mean()


def training_loss(w: Tensor, penalty: Tensor, data: Data) -> Tensor:
    """Return error + lambda |w|^2. Its derivative by lambda is |w|^2 >= 0, so descent on it can only lower lambda."""
    return error(w, data) + penalty * w.square().sum()


def descend_jointly(
    w: Tensor, penalty: float, rates: tuple[float, float], steps: int, data: Data
) -> tuple[Tensor, Tensor, Tensor]:
    """Run gradient descent on (w, lambda) of the training loss by ``rates``, with lambda clamped to 0 or above.

    Return the lambdas (steps + 1,) and, for each step, autograd's derivative by lambda and |w|^2, both (steps,).
    """
    now, lambdas, derivatives, norms = torch.tensor(penalty, dtype=w.dtype), [penalty], [], []
    both = grad(training_loss, argnums=(0, 1))
    for _ in range(steps):
        by_w, by_penalty = both(w, now, data)
        derivatives.append(by_penalty)
        norms.append(w.square().sum())
        w, now = w - rates[0] * by_w, (now - rates[1] * by_penalty).clamp(min=0)
        lambdas.append(float(now))
    return torch.tensor(lambdas, dtype=w.dtype), torch.stack(derivatives), torch.stack(norms)


def after_training(w: Tensor, hyper: Tensor, steps: int, training: Data, validation: Data) -> Tensor:
    """Return the validation error after ``steps`` of gradient descent as a function of hyper = (lambda, learning rate).

    Each step is w <- w - learning rate * gradient(w, lambda). The derivative by a hyperparameter therefore propagates
    back through all steps, and through the gradient in each of them, which takes second derivatives of the loss.
    """
    for _ in range(steps):
        w = w - hyper[1] * grad(training_loss)(w, hyper[0], training)
    return error(w, validation)


def hypergradient_with_cost(
    w: Tensor, hyper: Tensor, steps: int, training: Data, validation: Data
) -> tuple[Tensor, int, float]:
    """Return the gradient (2,) of :func:`after_training` by autograd, the bytes that it saves, and its seconds.

    Every storage that is saved for the backward pass counts once, also if it has a single element.
    """
    held: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is used twice

    def remember(saved: Tensor) -> Tensor:
        held[saved.untyped_storage().data_ptr()] = saved
        return saved

    start = time.perf_counter()
    hyper = hyper.detach().requires_grad_()
    w = w.detach().requires_grad_()
    with saved_tensors_hooks(remember, lambda saved: saved):
        now = w
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(training_loss(now, hyper[0], training), now, create_graph=True)
            now = now - hyper[1] * gradient
        (result,) = torch.autograd.grad(error(now, validation), hyper, allow_unused=False)
    seconds = time.perf_counter() - start
    return result, sum(tensor.untyped_storage().nbytes() for tensor in held.values()), seconds


def central_differences(
    w: Tensor, hyper: Tensor, steps: int, training: Data, validation: Data
) -> tuple[Tensor, Tensor]:
    """Return (V(hyper + d) - V(hyper - d)) / 2 d for each hyperparameter, with d = ``STEP``, and a bound on its error.

    The leading truncation error is d^2 V''' / 6. With 2 d it is four times as large, so the two differences differ by
    three times the error of the first. The rounding error, :func:`rounding` of V, is divided by d.
    """

    def slope(shift: Tensor) -> Tensor:
        plus, minus = (after_training(w, hyper + sign * shift, steps, training, validation) for sign in (1, -1))
        return (plus - minus) / (2 * shift.sum())

    shifts = STEP * torch.eye(2, dtype=hyper.dtype)
    fine, coarse = vmap(slope)(shifts), vmap(slope)(2 * shifts)
    return fine, (coarse - fine).abs() + rounding(w, hyper, steps, training, validation) / STEP


def rounding(w: Tensor, hyper: Tensor, steps: int, training: Data, validation: Data) -> Tensor:
    """Return the first-order effect of rounding on V: epsilon (V + sum over steps and weights of |w dV/dw|).

    Each step rounds each weight by a part of epsilon, which later steps may amplify a millionfold.
    """

    def rounded(relative_errors: Tensor) -> tuple[Tensor, Tensor]:
        now = w
        for relative_error in relative_errors:
            now = now * (1 + relative_error) - hyper[1] * grad(training_loss)(now, hyper[0], training)
        end = error(now, validation)
        return end, end

    effect, end = grad(rounded, has_aux=True)(w.new_zeros(steps, len(w)))
    most: Tensor = torch.finfo(w.dtype).eps * (end + effect.abs().sum())
    return most


@dataclass(frozen=True)
class Sweep:
    """The validation error after training as a function of the learning rate."""

    rates: Tensor
    losses: Tensor
    slopes: Tensor
    """Derivatives of the losses by the learning rates."""
    start: float
    """Validation error before training."""
    steps: int

    @property
    def trained(self) -> int:
        """The number of learning rates, from the smallest on, before the first at which training diverges."""
        diverged = (~(self.losses <= DIVERGED * self.start)).nonzero().flatten()
        return int(diverged[0]) if len(diverged) else len(self.rates)

    @property
    def numbers(self) -> dict[str, float | str]:
        """The rate at which training diverges, and how uneven the derivative is below it."""
        end, below = self.trained, self.slopes[: self.trained]
        return {
            "rate_where_training_diverges": float(self.rates[end]) if end < len(self.rates) else "none of the sweep",
            "sign_changes_of_derivative": int((below.sign().diff() != 0).sum()),
            "median_derivative": float(below.abs().median()),
            "largest_derivative": float(below.abs().max()),
        }

    @property
    def rows(self) -> list[dict[str, object]]:
        """One table row for each learning rate."""
        columns = zip(self.rates.tolist(), self.losses.tolist(), self.slopes.tolist(), strict=True)
        return [{"learning_rate": rate, "validation_loss": loss, "derivative": slope} for rate, loss, slope in columns]


def problem(*, hidden: int, samples: int, noise: float, seed: int) -> tuple[Tensor, Data, Data]:
    """Draw the initial weights, the training data, and ten times as many validation data."""
    source = generator(seed, "hypergradient")

    def sample(count: int) -> Data:
        x = 4 * torch.rand(count, generator=source, dtype=torch.float64) - 2
        return x, (3 * x).sin() + noise * torch.randn(count, generator=source, dtype=torch.float64)

    training, validation = sample(samples), sample(10 * samples)
    w = torch.randn(3 * hidden + 1, generator=source, dtype=torch.float64)
    w[2 * hidden :] /= hidden**0.5
    return w, training, validation


def _with_gradient(
    w: Tensor, penalty: float, rate: Tensor, steps: int, *, training: Data, validation: Data
) -> tuple[Tensor, Tensor]:
    """Return the validation error after training with one learning rate, and its derivative by the rate."""

    def loss(learning_rate: Tensor) -> tuple[Tensor, Tensor]:
        hyper = torch.stack([torch.full_like(learning_rate, penalty), learning_rate])
        result = after_training(w, hyper, steps, training, validation)
        return result, result

    slope, value = grad(loss, has_aux=True)(rate)
    return value, slope


def _costs(
    w: Tensor, hyper: Tensor, steps: list[int], repeats: int, *, training: Data, validation: Data
) -> tuple[list[dict[str, Any]], Tensor]:
    """Measure time and memory for each number of steps, and compare autograd with differences.

    Return rows with the median and quartiles of the seconds, after one warm-up run, and the saved bytes; and (steps, 2)
    differences of the derivatives, in units of the differences' error bound.
    """
    rows: list[dict[str, Any]] = []
    deviations = []
    for count in steps:
        runs = [hypergradient_with_cost(w, hyper, count, training, validation) for _ in range(repeats + 1)]
        quartiles = torch.tensor([seconds for _, _, seconds in runs[1:]]).quantile(torch.tensor([0.25, 0.5, 0.75]))
        low, median, high = quartiles.tolist()
        gradient, (differences, allowed) = runs[0][0], central_differences(w, hyper, count, training, validation)
        deviations.append((gradient - differences).abs() / allowed)
        (by, by_rate), (other, other_rate) = gradient.tolist(), differences.tolist()
        rows.append(
            {"steps": count, "held_bytes": runs[0][1], "seconds": median, "seconds_low": low, "seconds_high": high}
            | {"by_lambda": by, "by_learning_rate": by_rate, "differences": other, "differences_rate": other_rate}
        )
    return rows, torch.stack(deviations)


def _sweep(w: Tensor, penalty: float, rates: Tensor, steps: int, **data: Data) -> Sweep:
    """Train ``steps`` with each of the learning rates."""
    train = vmap(lambda rate: _with_gradient(w, penalty, rate, steps, **data), chunk_size=CHUNK)
    return Sweep(rates, *train(rates), float(error(w, data["validation"])), steps)


def _sweep_minus_unrolled(sweep: Sweep, w: Tensor, penalty: float, **data: Data) -> float:
    """Return the difference of the derivative in the sweep and that of an unrolled run, at half the rate of divergence.

    Near divergence, rounding is amplified a millionfold. The difference is relative to the derivative's size plus loss
    / rate, which is not 0 where the derivative is.
    """
    at = sweep.trained // 2
    rate, slope = sweep.rates[at], sweep.slopes[at]
    hyper = torch.stack([torch.full_like(rate, penalty), rate])
    expected = hypergradient_with_cost(w, hyper, sweep.steps, **data)[0][1]
    return float((slope - expected).abs() / (expected.abs() + sweep.losses[at] / rate))


def _checks(
    joint: tuple[Tensor, Tensor, Tensor], deviations: Tensor, sweep_difference: float, per_step: list[float]
) -> list[Check]:
    """Check the joint descent, the gradient against differences, the sweep against one run, and the saved bytes."""
    lambdas, derivatives, norms = joint
    off = ((derivatives - norms) / norms).abs().max()
    return [
        at_most(
            "training loss: largest relative difference between the derivative by lambda and |w|^2", float(off), 1e-12
        ),
        at_most("largest increase of lambda in one step", float(lambdas.diff().max()), 0.0),
        *(
            at_most(f"validation loss by {name}: largest |autograd - central differences| / error bound", value, 1.0)
            for name, value in zip(HYPER, deviations.amax(0).tolist(), strict=True)
        ),
        at_most(
            "relative difference between the derivatives in the sweep and through one unrolled run",
            sweep_difference,
            1e-8,
        ),
        at_most("bytes saved per step: largest / smallest - 1", max(per_step) / min(per_step) - 1, 0.01),
    ]


def _plot_joint(lambdas: Tensor, norms: Tensor) -> Figure:
    figure, (left, right) = new_figure(
        2,
        title="hypergradient: descent on the training loss drives lambda to 0",
        subtitle="joint gradient descent on the weights and lambda; lambda is clamped to 0 or above",
    )
    left.plot(lambdas, color=PALETTE[0], linewidth=1.8)
    label(left, x="step", y="lambda")
    right.plot(norms, color=PALETTE[1], linewidth=1.8)
    right.set_ylim(bottom=0)
    label(right, x="step", y="|w|^2 = derivative by lambda")
    return figure


def _plot_cost(rows: list[dict[str, Any]]) -> Figure:
    figure, (left, right) = new_figure(
        2,
        title="hypergradient: cost of the derivative through training",
        subtitle=f"both derivatives by autograd, on the CPU, threads: {torch.get_num_threads()}; "
        "lines: linear in the number of steps",
    )
    steps = [row["steps"] for row in rows]
    for axes, key, factor, name, color in (
        (left, "held_bytes", 1e-6, "saved for the backward pass (MB)", PALETTE[0]),
        (right, "seconds", 1e3, "time, median and quartiles (ms)", PALETTE[1]),
    ):
        values = [row[key] * factor for row in rows]
        slope = (values[-1] - values[0]) / (steps[-1] - steps[0])
        line = torch.linspace(steps[0], steps[-1], 200)
        axes.loglog(line, values[0] + slope * (line - steps[0]), color=COLORS["reference"], linewidth=1.0)
        if key == "seconds":
            spread = [
                [(row["seconds"] - row["seconds_low"]) * factor for row in rows],
                [(row["seconds_high"] - row["seconds"]) * factor for row in rows],
            ]
            axes.errorbar(steps, values, spread, fmt="o", color=color, capsize=2)
        else:
            axes.plot(steps, values, "o", color=color)
        label(axes, x="steps of training", y=name)
    return figure


def _plot_sweep(sweep: Sweep) -> Figure:
    """Plot the sweep up to the first rate at which training diverges; values beyond it are meaningless."""
    end = sweep.trained
    figure, (upper, lower) = new_figure(
        2,
        title="hypergradient: the validation error is rough before training diverges",
        subtitle=f"validation error after {sweep.steps} steps, and its derivative; {len(sweep.rates)} learning rates",
        columns=1,
        panel_inches=2.3,
    )
    upper.semilogy(sweep.rates[:end], sweep.losses[:end], color=PALETTE[0], linewidth=1.0)
    lower.plot(sweep.rates[:end], sweep.slopes[:end], color=PALETTE[1], linewidth=1.0)
    lower.set_yscale("symlog", linthresh=1.0)
    for axes, name in ((upper, "validation error"), (lower, "derivative by the learning rate")):
        axes.set_xlim(0, float(sweep.rates[-1]))
        if end < len(sweep.rates):
            axes.axvspan(
                float(sweep.rates[end]),
                float(sweep.rates[-1]),
                color="#DDDDDD",
                linewidth=0,
                label="training diverges" if axes is upper else None,
            )
        label(axes, x="learning rate", y=name)
    return figure


def hypergradient(
    *,
    hidden: Annotated[int, Field(ge=1, le=1000)],
    samples: Annotated[int, Field(ge=2, le=100_000)],
    noise: Annotated[float, Field(ge=0)],
    penalty: Annotated[float, Field(gt=0)],
    rate: Annotated[float, Field(ge=1e-4)],
    penalty_rate: Annotated[float, Field(gt=0)],
    joint_steps: Annotated[int, Field(ge=1, le=100_000)],
    steps: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=2)],
    repeats: Annotated[int, Field(ge=3, le=1000)],
    largest_rate: Annotated[float, Field(gt=0)],
    rates: Annotated[int, Field(ge=10, le=100_000)],
    seed: int,
) -> Answer:
    """Descend the training loss by lambda; differentiate the validation loss by both; sweep the learning rate."""
    if sorted(set(steps)) != steps:
        raise UsageError(f"study.steps={steps}: must be in increasing order, without duplicates")
    w, training, validation = problem(hidden=hidden, samples=samples, noise=noise, seed=seed)
    data = {"training": training, "validation": validation}
    hyper = torch.tensor([penalty, rate], dtype=torch.float64)

    start, end = error(w, validation), after_training(w, hyper, steps[-1], **data)
    if not end <= DIVERGED * start:
        raise UsageError(f"study.rate={rate:g}: training diverges within {steps[-1]} steps; use a smaller rate")
    joint = descend_jointly(w, penalty, (rate, penalty_rate), joint_steps, training)
    lambdas, _, norms = joint
    if not torch.isfinite(norms).all():
        raise UsageError(
            f"study.joint_steps={joint_steps}: the joint descent with lambda diverges; use a smaller study.rate"
        )
    reached = (lambdas == 0).nonzero().flatten()
    swept = torch.linspace(largest_rate / rates, largest_rate, rates, dtype=torch.float64)
    sweep = _sweep(w, penalty, swept, steps[-1], **data)
    if sweep.trained == 0:
        raise UsageError(
            f"study.largest_rate={largest_rate:g}: training diverges at all {rates} rates; use a smaller one"
        )
    rows, deviations = _costs(w, hyper, steps, repeats, **data)
    held = [(row["steps"], row["held_bytes"]) for row in rows]
    per_step = [(more - less) / (late - early) for (early, less), (late, more) in itertools.pairwise(held)]
    return Answer(
        numbers={
            "lambda_at_end": float(lambdas[-1]),
            "steps_until_lambda_is_0": int(reached[0]) if len(reached) else "never",
            "bytes_per_step": per_step[-1],
            "seconds_at_most_steps": rows[-1]["seconds"],
            **sweep.numbers,
        },
        checks=_checks(joint, deviations, _sweep_minus_unrolled(sweep, w, penalty, **data), per_step),
        tables={"cost": rows, "sweep": sweep.rows},
        figures={
            "training_loss": _plot_joint(lambdas, norms),
            "cost": _plot_cost(rows),
            "roughness": _plot_sweep(sweep),
        },
    )
