"""An L2 penalty in the loss against shrinking the weights: when they are equal, and the stable range of decay (E3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from dlhw.errors import UsageError
from dlhw.runtime.randomness import generator
from dlhw.storage.answer import Answer, Check, at_most, equal
from dlhw.views.plots import COLORS, PALETTE, label, new_figure

Direction = Callable[[Tensor], Tensor]
"""A function from the gradient to the vector that the learning rate multiplies; it may depend on earlier gradients."""

FEATURES, CLASSES, SAMPLES = 6, 3, 256
TOLERANCE = 1e-12


def plain(gradient: Tensor) -> Tensor:
    """Return SGD's direction: the gradient itself."""
    return gradient


def momentum(rho: float) -> Direction:
    """Return the direction v of momentum: v <- rho v + g, from v = 0."""
    velocity: Tensor | float = 0.0

    def direction(gradient: Tensor) -> Tensor:
        nonlocal velocity
        velocity = rho * velocity + gradient
        return velocity

    return direction


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Direction:
    """Return the direction m^ / (sqrt(s^) + epsilon) of Adam (Kingma and Ba, 2015).

    m <- beta1 m + (1 - beta1) g and s <- beta2 s + (1 - beta2) g^2 start at 0. m^ = m / (1 - beta1^t) and
    s^ = s / (1 - beta2^t) correct the bias of this start.
    """
    mean: Tensor | float = 0.0
    square: Tensor | float = 0.0
    t = 0

    def direction(gradient: Tensor) -> Tensor:
        nonlocal mean, square, t
        t += 1
        mean = beta1 * mean + (1 - beta1) * gradient
        square = beta2 * square + (1 - beta2) * gradient.square()
        return mean / (1 - beta1**t) / ((square / (1 - beta2**t)).sqrt() + epsilon)

    return direction


def penalized(w: Tensor, gradient: Tensor, direction: Direction, alpha: float, strength: float) -> Tensor:
    """Return w - alpha d(g + 2 lambda w): a step on L(w) + lambda |w|^2, whose gradient is g + 2 lambda w (E3.a, b)."""
    return w - alpha * direction(gradient + 2 * strength * w)


def shrunk(w: Tensor, gradient: Tensor, direction: Direction, alpha: float, strength: float) -> Tensor:
    """Return (1 - 2 alpha lambda) w - alpha d(g): shrink the weights, then step on L alone (E3.c).

    If the direction is the gradient, this equals ``penalized``: w - alpha (g + 2 lambda w). With momentum it does not:
    there 2 lambda w enters v and has an effect in later steps, multiplied by rho in each step. After two steps
    ``penalized`` is ahead by -2 alpha lambda rho w_0. Adam divides 2 lambda w by the size of the gradients.
    """
    return (1 - 2 * alpha * strength) * w - alpha * direction(gradient)


def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy of a net with one hidden layer of tanh units and all parameters in a vector w."""
    hidden = (w.numel() - CLASSES) // (FEATURES + 1 + CLASSES)
    first, bias, second, last = w.split([hidden * FEATURES, hidden, CLASSES * hidden, CLASSES])
    units = torch.tanh(x @ first.view(hidden, FEATURES).T + bias)
    return functional.cross_entropy(units @ second.view(CLASSES, hidden).T + last, y)


def path(
    w: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    step: Callable[[Tensor, Tensor, Direction, float, float], Tensor],
    direction: Direction,
    *,
    alpha: float,
    strength: float,
) -> Tensor:
    """Return the weights before and after every step, (steps + 1, weights)."""
    slope = torch.func.grad(loss)
    visited = [w]
    for x, y in batches:
        visited.append(step(visited[-1], slope(visited[-1], x, y), direction, alpha, strength))
    return torch.stack(visited)


def torch_path(
    w: Tensor, batches: Iterable[tuple[Tensor, Tensor]], make: Callable[..., torch.optim.Optimizer], **options: Any
) -> Tensor:
    """Return the same for an optimizer of torch."""
    leaf = w.clone().requires_grad_()
    optimizer = make([leaf], **options)
    visited = [w]
    for x, y in batches:
        optimizer.zero_grad()
        loss(leaf, x, y).backward()
        optimizer.step()
        visited.append(leaf.detach().clone())
    return torch.stack(visited)


def decay(w: Tensor, alphas: Tensor, strength: float, steps: int) -> tuple[Tensor, Tensor]:
    """Run gradient descent on lambda |w|^2 alone, with one row of weights per learning rate.

    w <- w - alpha 2 lambda w = (1 - 2 alpha lambda) w, so |w_k| = |1 - 2 alpha lambda|^k |w_0| (E3.d). The weights
    shrink for 0 < alpha < 1 / lambda, and up to 1 / (2 lambda) without a change of sign.

    Return the directions of w_k as vectors of length 1, (steps + 1, learning rates, D), and the logarithms of
    |w_k| / |w_0|, (steps + 1, learning rates). They are separate so that nothing overflows or underflows. A zero vector
    has the direction 0 and the logarithm -inf.
    """
    directions, logarithms = [(w / w.norm()).expand(len(alphas), -1)], [torch.zeros_like(alphas)]
    for _ in range(steps):
        leaf = directions[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(strength * leaf.square().sum(), leaf)
        after = leaf.detach() - alphas[:, None] * gradient
        length = after.norm(dim=-1)
        directions.append(after / length.where(length > 0, 1)[:, None])
        logarithms.append(logarithms[-1] + length.log())
    return torch.stack(directions), torch.stack(logarithms)


def behaviour(factor: float) -> str:
    """Return the effect of repeated multiplication by ``factor``."""
    size = "constant" if abs(abs(factor) - 1) < 1e-9 else "shrinks" if abs(factor) < 1 else "grows"
    return size + (", alternating" if factor < -1e-9 else "")


@dataclass(frozen=True)
class Forms:
    """The results of each optimizer in both forms, from the same weights and batches; keys are (optimizer, form)."""

    rates: dict[str, float]
    paths: dict[tuple[str, str], Tensor]
    losses: dict[tuple[str, str], float]
    """Loss over all samples after the last step."""
    first_gradient: Tensor
    """The gradient of L at the start, on the first batch."""
    from_torch: dict[tuple[str, str], float]
    """Largest difference of a weight from torch's optimizer, if torch has this optimizer and form."""

    @property
    def differences(self) -> dict[str, Tensor]:
        """The largest difference of a weight between the forms, (steps + 1,), by optimizer."""
        return {
            name: (self.paths[name, "penalty"] - self.paths[name, "shrinking"]).abs().amax(1) for name in self.rates
        }

    @property
    def rows(self) -> list[dict[str, object]]:
        """Table rows with the state of each optimizer and form after the last step."""
        return [
            {
                "optimizer": name,
                "form": form,
                "learning_rate": self.rates[name],
                "loss": self.losses[name, form],
                "norm": visited[-1].norm().item(),
                "largest_difference_of_the_forms": self.differences[name].max().item(),
                "difference_from_torch": self.from_torch.get((name, form)),
            }
            for (name, form), visited in self.paths.items()
        ]

    def checks(self, strength: float, rho: float) -> list[Check]:
        """Compare the forms with each other, with the formulas, and with torch's optimizers."""
        differences, start = self.differences, self.paths["momentum", "penalty"][0]
        after_two = (self.paths["momentum", "penalty"] - self.paths["momentum", "shrinking"])[2]
        momentum_difference = (after_two + 2 * self.rates["momentum"] * strength * rho * start).abs().max().item()
        without, with_penalty = self.first_gradient, self.first_gradient + 2 * strength * start
        # Adam's first direction g / (|g| + epsilon) is nearly the sign: the penalty matters only if it changes it.
        alpha, signs = self.rates["Adam"], [g / (g.abs() + 1e-8) for g in (with_penalty, without)]
        adam_difference = 2 * alpha * strength * start - alpha * (signs[0] - signs[1])
        first = (self.paths["Adam", "penalty"] - self.paths["Adam", "shrinking"])[1]
        return [
            at_most(
                "SGD: largest difference between penalty and shrinking over all steps (E3.c)",
                differences["SGD"].max().item(),
                TOLERANCE,
            ),
            at_most(
                "momentum: error of the predicted difference -2 alpha lambda rho w_0 after two steps",
                momentum_difference,
                1e-13,
            ),
            at_most(
                "Adam: error of the predicted difference 2 alpha lambda w - alpha (change of sign) after one step",
                (first - adam_difference).abs().max().item(),
                1e-13,
            ),
            *(
                at_most(f"{name}, {form}: largest difference from torch's optimizer", off, 1e-10)
                for (name, form), off in self.from_torch.items()
            ),
        ]


def train_all(
    rates: dict[str, float], *, strength: float, rho: float, hidden: int, batch: int, steps: int, seed: int
) -> Forms:
    """Train a small net with each optimizer in both forms and with torch's, on classes by a noisy linear teacher."""
    source = generator(seed, "weight_decay", "problem")
    x = torch.randn(SAMPLES, FEATURES, dtype=torch.float64, generator=source)
    teacher = torch.randn(FEATURES, CLASSES, dtype=x.dtype, generator=source)
    y = (x @ teacher + torch.randn(SAMPLES, CLASSES, dtype=x.dtype, generator=source)).argmax(1)
    w = 0.5 * torch.randn(hidden * (FEATURES + 1 + CLASSES) + CLASSES, dtype=x.dtype, generator=source)
    picks = torch.randint(0, SAMPLES, (steps, batch), generator=source)
    batches = [(x[pick], y[pick]) for pick in picks]
    kinds: dict[str, Callable[[], Direction]] = {"SGD": lambda: plain, "momentum": lambda: momentum(rho), "Adam": adam}
    paths = {
        (name, form): path(w, batches, step, kinds[name](), alpha=alpha, strength=strength)
        for name, alpha in rates.items()
        for form, step in (("penalty", penalized), ("shrinking", shrunk))
    }
    torch_optimizers: dict[tuple[str, str], Callable[..., torch.optim.Optimizer]] = {
        ("SGD", "penalty"): torch.optim.SGD,
        ("momentum", "penalty"): partial(torch.optim.SGD, momentum=rho),
        ("Adam", "penalty"): torch.optim.Adam,
        ("Adam", "shrinking"): torch.optim.AdamW,
    }
    from_torch = {
        key: (torch_path(w, batches, make, lr=rates[key[0]], weight_decay=2 * strength) - paths[key]).abs().max().item()
        for key, make in torch_optimizers.items()
    }
    losses = {key: loss(visited[-1], x, y).item() for key, visited in paths.items()}
    return Forms(rates, paths, losses, torch.func.grad(loss)(w, *batches[0]), from_torch)


def compare_with_powers(
    products: list[float], logarithms: Tensor, along: Tensor
) -> tuple[list[dict[str, object]], list[Check]]:
    """Compare the weights after decay alone with |1 - 2 alpha lambda|^k: return a row per product, and the checks.

    ``logarithms`` are those of |w_k| / |w_0|, and ``along`` is w_k in units of w_0 with its sign, (steps + 1,
    products).
    """
    steps, last = len(logarithms) - 1, logarithms[-1]
    factors = 1 - 2 * torch.tensor(products, dtype=last.dtype)
    measured = (last / steps).exp()
    # A step rounds 1 and 2 alpha lambda, and the sum of the logarithms rounds.
    error = ((measured - factors.abs()).abs() / (1 + factors.abs())).max().item()
    words = [behaviour(size * (-1 if sign < 0 else 1)) for size, sign in zip(measured.tolist(), along[1], strict=True)]
    as_predicted = sum(word == behaviour(factor) for word, factor in zip(words, factors.tolist(), strict=True))
    columns = products, factors.tolist(), last.exp().tolist(), (factors.abs() ** steps).tolist(), words
    return [
        {"alpha_lambda": p, "factor": f, "size": size, "predicted": power, "behaviour": word}
        for p, f, size, power, word in zip(*columns, strict=True)
    ], [
        at_most(
            f"largest difference between |w_k / w_0|^(1/k), k = {steps}, and |1 - 2 alpha lambda|, "
            "relative to 1 + |1 - 2 alpha lambda|",
            error,
            1e-15 * (10 + steps),
        ),
        equal("learning rates at which decay behaves as predicted (E3.d)", as_predicted, len(products)),
    ]


def _plot_forms(forms: Forms, strength: float) -> Figure:
    figure, (differences, norms) = new_figure(
        2,
        title="weight_decay: a penalty and shrinking are equal for SGD only",
        subtitle=f"lambda = {strength:g}; right: solid lines for the penalty, dashed for shrinking",
        panel_inches=3.1,
    )
    for i, (name, values) in enumerate(forms.differences.items()):
        differences.plot(values.clamp(min=1e-17).numpy(), color=PALETTE[i], linewidth=1.4, label=name)
        for form, style in (("penalty", "-"), ("shrinking", "--")):
            legend, size = name if form == "penalty" else None, forms.paths[name, form].norm(dim=1)
            norms.plot(size.numpy(), style, color=PALETTE[i], linewidth=1.4, label=legend)
    differences.axhline(TOLERANCE, color=COLORS["reference"], linestyle=":", linewidth=1, label="1e-12")
    differences.set_yscale("log")
    label(differences, x="step", y="largest |difference of a weight|")
    label(norms, x="step", y="norm of the weights")
    return figure


def _plot_range(products: list[float], sizes: Tensor, path: Tensor) -> Figure:
    steps = len(sizes) - 1
    figure, (end, along) = new_figure(
        2,
        title="weight_decay: decay alone, by learning rate",
        subtitle="no change of sign up to alpha lambda = 1/2, where w_1 = 0; convergence up to 1; divergence above",
        panel_inches=3.1,
    )
    fine = torch.linspace(0, max(1.1, products[-1]), 2001, dtype=sizes.dtype)
    end.plot(fine, (1 - 2 * fine).abs().pow(steps), color="black", linewidth=1, label="|1 - 2 alpha lambda|^k")
    end.plot(products, sizes[-1].numpy(), "o", color=PALETTE[1], markersize=4, label="measured")
    for border, style in ((0.5, ":"), (1.0, "--")):
        end.axvline(
            border, color=COLORS["reference"], linestyle=style, linewidth=1, label=f"alpha = {border:g} / lambda"
        )
    end.set_yscale("log")
    end.set_ylim(1e-24, 1e14)
    label(end, x="alpha lambda", y=f"|w_k| / |w_0| after k = {steps}", place="upper left")
    shown = sorted({round(i * (len(products) - 1) / 4) for i in range(5)})
    for color, i in zip(PALETTE, shown, strict=False):
        along.plot(path[:, i].numpy(), marker=".", color=color, linewidth=1.1, label=f"alpha lambda = {products[i]:g}")
    along.set_ylim(-2.8, 6.0)
    along.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    label(along, x="step k", y="w_k / w_0", place="upper right")
    return figure


def weight_decay(
    *,
    strength: Annotated[float, Field(ge=1e-12)],
    learning_rate: Annotated[float, Field(gt=0, le=0.5)],
    adam_learning_rate: Annotated[float, Field(gt=0, le=0.1)],
    rho: Annotated[float, Field(gt=0, lt=1)],
    hidden: Annotated[int, Field(ge=1, le=10_000)],
    batch: Annotated[int, Field(ge=1, le=SAMPLES)],
    steps: Annotated[int, Field(ge=2, le=1_000_000)],
    products: Annotated[list[Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1)],
    decay_steps: Annotated[int, Field(ge=1, le=10_000)],
    seed: int,
) -> Answer:
    """Train a small net with both forms of SGD, momentum and Adam; then run decay alone for many learning rates."""
    if strength * max(learning_rate, adam_learning_rate) >= 0.5:
        raise UsageError(
            f"study.strength={strength}: its products with the learning rates ({learning_rate}, {adam_learning_rate}) "
            "must be below 0.5, so that shrinking preserves the sign; greater products are in study.products"
        )
    rates = {"SGD": learning_rate, "momentum": learning_rate * (1 - rho), "Adam": adam_learning_rate}
    forms = train_all(rates, strength=strength, rho=rho, hidden=hidden, batch=batch, steps=steps, seed=seed)

    products = sorted(set(products))
    start = torch.randn(4, dtype=torch.float64, generator=generator(seed, "weight_decay", "decay"))
    alphas = torch.tensor(products, dtype=start.dtype) / strength
    directions, logarithms = decay(start, alphas, strength, decay_steps)
    along = directions @ start / start.norm() * logarithms.exp()
    decays, decay_checks = compare_with_powers(products, logarithms, along)
    return Answer(
        numbers={
            **{f"difference_{name.lower()}": values.max().item() for name, values in forms.differences.items()},
            "norm_adam": forms.paths["Adam", "penalty"][-1].norm().item(),
            "norm_adamw": forms.paths["Adam", "shrinking"][-1].norm().item(),
        },
        checks=forms.checks(strength, rho) + decay_checks,
        tables={"optimizers": forms.rows, "decay": decays},
        figures={"forms": _plot_forms(forms, strength), "range": _plot_range(products, logarithms.exp(), along[:11])},
    )
