"""Where in a picture a prediction comes from: two maps of a trained network, which they leave as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Method = Literal["grad_cam", "gradient"]


class SaliencyUnavailable(ValueError):
    """The network computes in a way that a method cannot look into; the message says how."""


def grad_cam(model: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, str]:
    """Grad-CAM of the logits ``classes`` (N,) for inputs (N, C, H, W), in evaluation mode (Selvaraju et al. 2017).

    With A^k the K maps of a layer and y the logit, alpha_k = mean over the positions ij of dy / dA^k_ij (eq. 1), and
    the map is ReLU(sum_k alpha_k A^k) (eq. 2), here enlarged to (N, H, W). The layer is the last whose output has
    four dimensions and more than one position; the second result is its name.

    Raises SaliencyUnavailable if there is none.
    """
    maps: Tensor | None = None
    layer = ""

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal maps, layer
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:].numel() > 1:
                maps, layer = output, f"{name} ({type(module).__name__}, {output.shape[-2]} x {output.shape[-1]})"

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        score, _ = _score(model, x, classes)
    finally:
        for handle in handles:
            handle.remove()
    if maps is None:
        raise SaliencyUnavailable(f"no layer of {type(model).__name__} gives maps")
    (gradient,) = torch.autograd.grad(score, maps)
    alpha = gradient.to(x.dtype).mean((2, 3), keepdim=True)  # with autocast the maps may be of lower precision
    cam = (alpha * maps.detach().to(x.dtype)).sum(1, keepdim=True).relu()
    return functional.interpolate(cam, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0], layer


def gradient(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """max over the channels of |d logit / d x|, (N, H, W), in evaluation mode (Simonyan et al. 2014, section 3.1).

    Raises SaliencyUnavailable where the network gives no gradient by its input.
    """
    score, x = _score(model, x, classes)
    (found,) = torch.autograd.grad(score, x, allow_unused=True)
    if found is None:
        raise SaliencyUnavailable(f"{type(model).__name__} gives no gradient by its input")
    return found.abs().amax(1)


def _score(model: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of one logit of each sample, whose gradient is that of each by itself, and the input to ask for it.

    The input alone requires a gradient for this, so that frozen parameters are no obstacle.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return model(x).gather(1, classes[:, None]).sum(), x
