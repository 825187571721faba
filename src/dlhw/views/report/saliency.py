"""Saliency maps of a trained network: Grad-CAM and the input gradient. The network is not changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Method = Literal["grad_cam", "gradient"]


class SaliencyUnavailable(ValueError):
    """The method does not apply to this network; the message says why."""


def grad_cam(model: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, str]:
    """Return Grad-CAM of the logits ``classes`` (N,) for inputs (N, C, H, W) (Selvaraju et al. 2017).

    With A^k the K feature maps of a layer and y the logit, alpha_k is the mean over the positions ij of dy / dA^k_ij
    (eq. 1), and the map is ReLU(sum_k alpha_k A^k) (eq. 2), resized to (N, H, W). The layer is the last one whose
    output has four dimensions and more than one position. The second result describes it. The model must be in
    evaluation mode. Raise SaliencyUnavailable if there is no such layer.
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
        raise SaliencyUnavailable(f"no layer of {type(model).__name__} outputs feature maps")
    (gradient,) = torch.autograd.grad(score, maps)
    alpha = gradient.to(x.dtype).mean((2, 3), keepdim=True)  # with autocast the maps may have a lower precision
    cam = (alpha * maps.detach().to(x.dtype)).sum(1, keepdim=True).relu()
    return functional.interpolate(cam, x.shape[-2:], mode="bilinear", align_corners=False)[:, 0], layer


def gradient(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Return the maximum over the channels of |d logit / d x|, (N, H, W) (Simonyan et al. 2014, section 3.1).

    The model must be in evaluation mode. Raise SaliencyUnavailable if the logits do not depend on the input.
    """
    score, x = _score(model, x, classes)
    (input_gradient,) = torch.autograd.grad(score, x, allow_unused=True)
    if input_gradient is None:
        raise SaliencyUnavailable(f"{type(model).__name__} has no gradient with respect to its input")
    return input_gradient.abs().amax(1)


def _score(model: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of one logit per sample, and the input with respect to which it can be differentiated.

    The gradient of the sum holds the gradient of each sample's logit. Only the input must require a gradient, so the
    model's parameters may be frozen.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return model(x).gather(1, classes[:, None]).sum(), x
