"""The filters of a convolution before and after training: how far each moved."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from dlhw.errors import UsageError

FIRST = "first"


@dataclass(frozen=True)
class LayerFilters:
    """Of the layer ``name``, its weights (M, C, h, w) in float64 on the CPU."""

    name: str
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, untrained: nn.Module, model: nn.Module, name: str) -> LayerFilters:
        """Those of one convolution in two states of a model."""
        name, _ = convolution(model, name)
        before, after = (convolution(each, name)[1].weight.detach().cpu().double() for each in (untrained, model))
        return cls(name, before, after)

    @property
    def change(self) -> Tensor:
        """What training added."""
        return self.after - self.before

    @property
    def relative_change(self) -> float:
        """Norm of the change of all weights over the norm of before."""
        return float(self.change.norm() / self.before.norm())

    def rows(self) -> list[dict[str, object]]:
        """How far each filter moved; nan or inf, relatively, for one that was zero."""
        before, change = (weights.flatten(1).norm(dim=1) for weights in (self.before, self.change))
        columns = {
            "norm_before": before,
            "norm_of_change": change,
            "relative_change": change / before,
            "cosine": functional.cosine_similarity(self.before.flatten(1), self.after.flatten(1), dim=1),
        }
        return [
            {"filter": index, **{name: values[index].item() for name, values in columns.items()}}
            for index in range(len(self.before))
        ]

    def summary(self) -> str:
        """One line on how much they changed."""
        count, *shape = self.before.shape
        layer = f"filters of {self.name}: {count} of {'x'.join(map(str, shape))}"
        if not self.change.any():
            return f"{layer}, none changed"
        most = int(self.change.flatten(1).norm(dim=1).argmax())
        return f"{layer}, changed by {100 * self.relative_change:.3g} % of their norm, filter {most} most"


def convolution(model: nn.Module, name: str) -> tuple[str, nn.Conv2d]:
    """The convolution of this name, or the first one. Raises UsageError where there is none."""
    found = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    if not found:
        raise UsageError(f"report.filters={name}: the model has no convolution; use report.filters=null")
    chosen = next(iter(found)) if name == FIRST else name
    if chosen not in found:
        raise UsageError(f"report.filters={name}: no convolution of the model; legal are {', '.join([FIRST, *found])}")
    return chosen, found[chosen]
