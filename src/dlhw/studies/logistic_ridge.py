"""Logistic ridge regression: its gradient, and gradient descent to its minimum (C3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from dlhw.errors import UsageError
from dlhw.runtime.options import Count
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most
from dlhw.views.plots import PALETTE, TEXT_POINTS, add_legend, new_figure


def objective(theta: Tensor, x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Return f = 1/N sum_i [-y_i z_i + log(1 + exp z_i)] + 1/2 sum_j penalty_j theta_j^2, z = X theta, per draw (C3.1).

    log(1 + exp z) = log(exp 0 + exp z) is computed as max(z, 0) + log(1 + exp -|z|), so that no exponential overflows.

    Args:
        theta: (..., D).
        x: (..., N, D), including the constant feature.
        y: (..., N), 0 or 1.
        penalty: (..., D), lambda for each penalized coefficient, 0 for others.
    """
    z = (x @ theta[..., None])[..., 0]
    likelihood = (torch.logaddexp(z, torch.zeros_like(z)) - y * z).mean(-1)
    return likelihood + 0.5 * (penalty * theta.square()).sum(-1)


def gradient(theta: Tensor, x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """Return df/dtheta_k = 1/N sum_i (s(z_i) - y_i) x_ik + penalty_k theta_k, (..., D) (C3.1).

    d/dz log(1 + exp z) = exp z / (1 + exp z) = s(z), the sigmoid, and dz_i/dtheta_k = x_ik; the derivative of the ridge
    term is penalty_k theta_k. Descent updates theta_k <- theta_k - eta df/dtheta_k, for all k at once.
    """
    z = (x @ theta[..., None])[..., 0]
    slopes = (torch.sigmoid(z) - y)[..., None, :] @ x / x.shape[-2]
    return slopes[..., 0, :] + penalty * theta


def curvature(x: Tensor, penalty: Tensor) -> tuple[float, float]:
    """Return mu and L with mu <= f'' <= L everywhere, for f'' = 1/N sum_i s_i (1 - s_i) x_i x_i^T + diag(penalty).

    As 0 < s (1 - s) <= 1/4, f'' is at most X^T X / (4 N) + diag(penalty), and at least the smallest penalty. With the
    step 1 / L, every iteration then multiplies |theta - theta*|, and also f - f*, by at most 1 - mu / L.
    """
    hessian = x.mT @ x / (4 * x.shape[0]) + torch.diag(penalty)
    return penalty.min().item(), torch.linalg.eigvalsh(hessian)[-1].item()


def least_curvature(theta: Tensor, x: Tensor, penalty: Tensor) -> Tensor:
    """Return the smallest eigenvalue of f'' at ``theta``, (D,)."""
    s = torch.sigmoid(x @ theta)
    values: Tensor = torch.linalg.eigvalsh((x.mT * (s * (1 - s))) @ x / len(x) + torch.diag(penalty))
    return values[0]


@dataclass(frozen=True)
class Descent:
    """Gradient descent for K strengths: theta at some iterations, (T, K, D), and the last gradient norms."""

    iterations: list[int]
    thetas: Tensor
    last_gradient: Tensor


def descend(x: Tensor, y: Tensor, penalty: Tensor, *, step: Tensor, until: Tensor, max_iterations: int) -> Descent:
    """Run theta <- theta - step gradient from theta = 0 until every gradient norm is at most ``until``.

    Args:
        penalty: (K, D).
        step: (K,).
        until: (K,).
    """
    theta = torch.zeros_like(penalty)
    iterations: list[int] = []
    thetas = []
    for k in range(max_iterations + 1):
        slope = gradient(theta, x, y, penalty)
        done = k == max_iterations or bool((slope.norm(dim=-1) <= until).all())
        if done or not iterations or k >= 1.02 * iterations[-1]:
            iterations.append(k)
            thetas.append(theta)
        if done:
            break
        theta = theta - step[:, None] * slope
    return Descent(iterations, torch.stack(thetas), slope.norm(dim=-1))


def draw_problem(source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw 300 samples of five normal features and labels of the logistic model; the constant feature comes last."""
    x = torch.randn(300, 5, dtype=torch.float64, generator=source)
    logits = x @ torch.tensor([2.0, -1.0, 0.5, 0.0, 0.0], dtype=x.dtype) + 0.5
    y = (torch.rand(300, dtype=x.dtype, generator=source) < torch.sigmoid(logits)).to(x.dtype)
    return torch.cat((x, torch.ones(300, 1, dtype=x.dtype)), dim=1), y


def breast_cancer() -> tuple[Tensor, Tensor]:
    """Load 569 tumours with 30 standardized measurements each, and whether they are benign.

    The constant feature comes last.
    """
    from sklearn.datasets import load_breast_cancer

    dataset = load_breast_cancer()
    x = torch.from_numpy(dataset.data)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    return torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), dim=1), torch.from_numpy(dataset.target).to(x.dtype)


def scikit_learn(x: Tensor, y: Tensor, strength: float, *, penalize_intercept: bool) -> Tensor:
    """Return scikit-learn's theta, which minimizes C sum_i loss_i + 1/2 |theta|^2 = C N f, where lambda = 1 / (C N).

    scikit-learn does not penalize its own intercept. To penalize it, the constant feature is passed like the others.
    """
    from sklearn.linear_model import LogisticRegression

    features = x if penalize_intercept else x[:, :-1]
    model = LogisticRegression(
        C=1 / (len(x) * strength),
        solver="newton-cholesky",
        tol=1e-11,
        max_iter=1000,
        fit_intercept=not penalize_intercept,
    ).fit(features.numpy(), y.numpy())
    theta = torch.from_numpy(model.coef_[0])
    return theta if penalize_intercept else torch.cat((theta, torch.from_numpy(model.intercept_)))


def gradient_error(draws: int, source: torch.Generator) -> float:
    """Return the largest difference of the formula and autograd over drawn problems, relative to norms above 1."""
    x = 3 * torch.randn(draws, 20, 6, dtype=torch.float64, generator=source)
    y = torch.randint(0, 2, (draws, 20), generator=source).to(x.dtype)
    theta = 3 * torch.randn(draws, 6, dtype=x.dtype, generator=source)
    penalty = torch.rand(draws, 6, dtype=x.dtype, generator=source)
    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective(leaf, x, y, penalty).sum(), leaf)
    size = expected.norm(dim=-1, keepdim=True).clamp(min=1)
    largest: float = ((gradient(theta, x, y, penalty) - expected).abs() / size).max().item()
    return largest


def logistic_ridge(
    *,
    problem: Literal["breast_cancer", "drawn"],
    strengths: Annotated[list[Annotated[float, Field(ge=1e-6, le=1e6)]], Field(min_length=1, max_length=7)],
    penalize_intercept: bool,
    most_iterations: Count,
    draws: Annotated[int, Field(ge=1, le=1_000_000)],
    seed: int,
) -> Answer:
    """Compare the gradient with autograd, and gradient descent with step 1 / L with scikit-learn's minimum."""
    x, y = breast_cancer() if problem == "breast_cancer" else draw_problem(generator(seed, "logistic_ridge", "problem"))
    strengths = sorted(set(strengths))
    lambdas = torch.tensor(strengths, dtype=x.dtype)
    penalty = lambdas[:, None].repeat(1, x.shape[1])
    if not penalize_intercept:
        penalty[:, -1] = 0
    bounds = torch.tensor([curvature(x, row) for row in penalty], dtype=x.dtype)
    convexity, smoothness = bounds.unbind(-1)
    best = torch.stack([scikit_learn(x, y, s, penalize_intercept=penalize_intercept) for s in strengths])
    # Near the minimum |theta - theta*| <= |f'| / curvature, and the curvature is at least lambda if all is penalized.
    until = 1e-8 * torch.stack(
        [least_curvature(theta, x, row) for theta, row in zip(best, penalty, strict=True)]
    ).minimum(lambdas)
    descent = descend(x, y, penalty, step=1 / smoothness, until=until, max_iterations=most_iterations)
    unfinished = [s for s, above in zip(strengths, descent.last_gradient > until, strict=True) if above]
    if unfinished:
        raise UsageError(
            f"study.most_iterations={most_iterations}: too few for study.strengths={unfinished}; "
            f"use more, or {'greater strengths' if penalize_intercept else 'strengths nearer to 1'}"
        )
    distance = (descent.thetas - best).norm(dim=-1)
    excess = objective(descent.thetas, x, y, penalty) - objective(best, x, y, penalty)
    rate = (1 - convexity / smoothness) ** torch.tensor(descent.iterations, dtype=x.dtype)[:, None]
    rows = [
        {
            "strength": strength,
            "C": 1 / (len(x) * strength),
            "smoothness": smoothness[i].item(),
            "convexity": convexity[i].item(),
            "iterations_to_1e-6": next(
                (n for n, d in zip(descent.iterations, distance[:, i], strict=True) if d <= 1e-6), None
            ),
            "distance": distance[-1, i].item(),
            "excess": excess[-1, i].item(),
            "norm": best[i].norm().item(),
        }
        for i, strength in enumerate(strengths)
    ]
    source = generator(seed, "logistic_ridge", "gradient")
    return Answer(
        numbers={"iterations": descent.iterations[-1], "distance": distance[-1].max().item()},
        checks=[
            at_most(
                f"largest difference between the gradient and autograd's, {draws} draws (C3.1)",
                gradient_error(draws, source),
                1e-12,
            ),
            *_convergence_checks(distance, excess, rate),
        ],
        tables={"strengths": rows},
        figures={
            "descent": _figure(
                descent.iterations[1:],
                {"f - f*": excess, "|theta - theta*|": distance},
                rate[1:],
                strengths,
                subtitle=f"{problem}, step 1/L, constant feature {'' if penalize_intercept else 'not '}penalized; "
                "dashed: bounds, with a factor of 1 - mu/L per iteration",
            )
        },
    )


def _convergence_checks(distance: Tensor, excess: Tensor, rate: Tensor) -> list[Check]:
    """Check |theta - theta*| and f - f*, (T, K), at the end and against their bounds at each iteration."""
    return [
        at_most("largest final distance to scikit-learn's theta", distance[-1].max().item(), 1e-6),
        at_most(
            "largest excess of the distance over the bound (1 - mu/L)^k |theta*|",
            (distance - rate * distance[0]).max().item(),
            1e-7,
        ),
        at_most(
            "largest excess of f - f* over the bound (1 - mu/L)^k (f(0) - f*)",
            (excess - rate * excess[0]).max().item(),
            1e-12,
        ),
    ]


def _figure(
    iterations: list[int], shown: dict[str, Tensor], rate: Tensor, strengths: list[float], *, subtitle: str
) -> Figure:
    """Plot the ``shown`` values (T, K), given from iteration 0 on; log axes show them from iteration 1 on."""
    figure, all_axes = new_figure(
        2,
        title="logistic_ridge: gradient descent reaches scikit-learn's minimum",
        subtitle=subtitle,
        panel_inches=3.2,
        foot_inches=0.3,
    )
    for axes, (name, values), floor in zip(all_axes, shown.items(), (1e-15, 1e-9), strict=True):
        for i, strength in enumerate(strengths):
            at = values[1:, i].clamp(min=floor / 10).numpy()
            axes.plot(iterations, at, color=PALETTE[i], linewidth=1.8, label=f"lambda = {strength:g}")
            bound = (rate[:, i] * values[0, i]).clamp(min=floor / 10)
            axes.plot(iterations, bound.numpy(), color=PALETTE[i], linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        axes.set_xlabel("iteration", fontsize=TEXT_POINTS)
        axes.set_ylabel(name, fontsize=TEXT_POINTS, parse_math=False)
    handles, names = all_axes[0].get_legend_handles_labels()
    add_legend(figure, handles, names, loc="outside lower center", columns=min(4, len(names)))
    return figure
