"""Create the report on a network of the playground after training, for ``report=playground``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from dlhw.data.tensors import Dataset
from dlhw.errors import UsageError
from dlhw.storage.answer import Answer
from dlhw.storage.record import Record
from dlhw.views.playground import networks, snapshots

MORE = "for an animation of the training, use probe=weights trainer.probe_every_epochs=10"


def check(data: Dataset) -> None:
    """Raise UsageError unless the samples are points in the plane with one number each; called before training."""
    if data.shape != (2,) or not data.numeric_targets:
        raise UsageError(
            f"report=playground: dataset={data.name} has no points in the plane with numeric targets; expected "
            "dataset=playground or report=none"
        )


def playground(
    model: nn.Module,
    data: Dataset,
    *,
    record: Record,
    resolution: Annotated[int, Field(ge=10, le=400)],
    frames: Annotated[int, Field(ge=2, le=50)],
    animation_frames: Annotated[int, Field(ge=2, le=300)],
    page_epochs: Annotated[int, Field(ge=2, le=1000)],
) -> Answer:
    """Return the pictures of a trained network in the plane, and of its training if the probe has stored weights.

    - ``network.png``: features, units, weights, output and losses, as on the page of the playground.
    - ``filmstrip.png``: the output at some epochs.
    - ``playground.html``: a page with a slider over the epochs.
    - ``playground.gif``: an animation for slides.

    The last three need the weights of at least two epochs. For a model that is not a sequence of dense layers and
    activations, only the output and the losses are drawn, and a message says so.
    """
    from dlhw.views.playground import animation, figures  # import matplotlib, which is not needed earlier

    check(data)
    training = snapshots.Training.of(data, record)
    network = networks.Network.of(model)
    if network is None:
        surface = networks.surface(model, resolution)
        message = (
            "only the output and the losses are drawn, because the model has other parts than dense layers and "
            "activations; expected model=playground"
        )
        return Answer({}, figures={"network": figures.network_figure(None, surface, training)}, messages=[message])
    drawings = {"network": figures.network_figure(network, network.surface(resolution), training)}
    if network.size > snapshots.MOST_WEIGHTS // 2:
        message = f"no figures of the training: the network has more than {snapshots.MOST_WEIGHTS // 2:,} weights"
        return Answer({}, figures=drawings, messages=[message])
    stored, messages = snapshots.read_networks(record.path / "probes", network, most=page_epochs)
    if len(stored) < 2:
        count = "no weights" if not stored else "the weights of only one epoch"
        return Answer({}, figures=drawings, messages=[*messages, f"{count} stored during training; {MORE}"])
    if len(stored) == 2:
        messages.append(f"the weights of only two epochs stored; {MORE}")
    if training.best_epoch is not None:
        stored.setdefault(training.best_epoch, network)
    drawings["filmstrip"] = figures.filmstrip(stored, training, frames=frames, side=resolution)
    files = {
        "playground.html": animation.page(stored, training, side=resolution).encode(),
        "playground.gif": animation.gif(stored, training, most=animation_frames, side=resolution),
    }
    return Answer({}, figures=drawings, messages=messages, files=files)
