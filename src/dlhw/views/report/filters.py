"""The filters of a convolution before and after training, and how much each of them changed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from dlhw.errors import UsageError

FIRST = "first"


@dataclass(frozen=True)
class LayerFilters:
    """The weights (M, C, h, w) of the layer ``name``, in float64 on the CPU."""

    name: str
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, untrained: nn.Module, model: nn.Module, name: str) -> LayerFilters:
        """Return the filters of one convolution in two states of a model."""
        name, _ = convolution(model, name)
        before, after = (convolution(state, name)[1].weight.detach().cpu().double() for state in (untrained, model))
        return cls(name, before, after)

    @property
    def change(self) -> Tensor:
        """The weights after training minus those before."""
        return self.after - self.before

    @property
    def relative_change(self) -> float:
        """The norm of the change of all weights, divided by the norm before training."""
        return float(self.change.norm() / self.before.norm())

    def rows(self) -> list[dict[str, object]]:
        """Return one row per filter with its change. The relative change of a filter that was zero is nan or inf."""
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
        """Return one line on the change."""
        count, *shape = self.before.shape
        layer = f"filters of layer {self.name}: {count} of shape {'x'.join(map(str, shape))}"
        if not self.change.any():
            return f"{layer}; none changed"
        most = int(self.change.flatten(1).norm(dim=1).argmax())
        return f"{layer}; relative change {100 * self.relative_change:.3g} %, largest for filter {most}"


def convolution(model: nn.Module, name: str) -> tuple[str, nn.Conv2d]:
    """Return name and layer of the convolution ``name``, or of the first one. Raise UsageError if there is none."""
    layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    if not layers:
        raise UsageError(f"report.filters={name}: the model has no convolution; expected report.filters=null")
    key = next(iter(layers)) if name == FIRST else name
    if key not in layers:
        names = ", ".join([FIRST, *layers])
        raise UsageError(f"report.filters={name}: no such convolution in the model; expected one of {names}")
    return key, layers[key]
