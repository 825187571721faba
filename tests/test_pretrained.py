"""Pretrained networks of torchvision: sources of weights, loading, heads, invalid options."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from dlhw.cli import build
from dlhw.cli.assembly import assemble
from dlhw.errors import UsageError
from dlhw.models.dropout import Dropout
from dlhw.models.pretrained import StochasticDepth, classifier
from dlhw.storage import checkpoint
from support.composing import compose, compose_with_hydra

SHAPE = (3, 64, 64)
FILES = {"resnet18": "resnet18-f37072fd.pth", "alexnet": "alexnet-owt-7be5be79.pth"}


def state_of(architecture: str, **options: Any) -> dict[str, Tensor]:
    """Return a state_dict of the right shapes; each entry is one expanded value, so that files are small."""
    with torch.device("meta"):
        entries = models.get_model(architecture, weights=None, **options).state_dict().items()
    return {
        name: torch.full((), 1 / (2 + index)).to(like.dtype).expand(like.shape)
        for index, (name, like) in enumerate(entries)
    }


def assert_has_weights(network: nn.Module, state: dict[str, Tensor]) -> None:
    entries = network.state_dict()
    assert set(state) <= set(entries)
    assert [name for name, value in state.items() if not torch.equal(entries[name], value)] == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder of torch's cached weights; downloads fail, because their addresses are unreachable."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in FILES:
        url = models.get_model_weights(name).IMAGENET1K_V1.url
        value = models.get_model_weights(name).IMAGENET1K_V1.value
        monkeypatch.setattr(value, "url", f"http://127.0.0.1:9/{Path(url).name}")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address of a local web server for its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class QuietHandler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


@pytest.mark.parametrize(("architecture", "head"), [("resnet18", "fc"), ("alexnet", "classifier.6")])
def test_cached_weights_are_used_offline(cache: Path, architecture: str, head: str) -> None:
    state = state_of(architecture)
    torch.save(state, cache / FILES[architecture])
    network = classifier(SHAPE, None, architecture=architecture, weights="IMAGENET1K_V1")
    assert_has_weights(network, state)
    assert (network.fresh, network.head_name, network.architecture) == ([], head, architecture)
    assert (len(network.categories), network.categories[258]) == (1000, "Samoyed")
    with_three_classes = classifier(SHAPE, 3, architecture=architecture, weights="DEFAULT")
    assert with_three_classes.fresh == [head]
    assert_has_weights(with_three_classes, {name: value for name, value in state.items() if not name.startswith(head)})
    assert with_three_classes(torch.zeros(2, *SHAPE)).shape == (2, 3)


def test_weights_are_downloaded_once_and_their_hash_is_checked(
    cache: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    state = state_of("resnet18")
    torch.save(state, folder / "new.pth")
    name = f"resnet18-{hashlib.sha256((folder / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "new.pth").rename(folder / name)
    value = models.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(value, "url", f"{address}/{name}")
    assert_has_weights(classifier(SHAPE, None, architecture="resnet18", weights="IMAGENET1K_V1"), state)
    assert [path.name for path in cache.iterdir()] == [name]
    (folder / name).rename(folder / "resnet18-00000000.pth")
    from_cache = classifier(SHAPE, None, architecture="resnet18", weights="IMAGENET1K_V1")
    assert_has_weights(from_cache, state)
    for file_name, message in (("resnet18-00000000.pth", "invalid hash value"), (name, "404")):
        (cache / name).unlink(missing_ok=True)
        monkeypatch.setattr(value, "url", f"{address}/{file_name}")
        with pytest.raises(UsageError, match=message):
            classifier(SHAPE, None, architecture="resnet18", weights="IMAGENET1K_V1")
        assert list(cache.iterdir()) == []


def test_the_error_for_a_failed_download_gives_a_remedy(cache: Path) -> None:
    with pytest.raises(UsageError) as error:
        classifier(SHAPE, 2, architecture="alexnet", weights="IMAGENET1K_V1")
    message = str(error.value)
    assert "\n" not in message
    for part in (FILES["alexnet"], str(cache), "model.weights=null", "refused"):
        assert part in message


@pytest.mark.parametrize("damage", ["flipped", "truncated", "text", "list"])
def test_the_error_for_a_corrupt_cached_file_names_it(cache: Path, damage: str) -> None:
    path = cache / FILES["resnet18"]
    torch.save([1] if damage == "list" else state_of("resnet18"), path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        position = content.index(torch.tensor([0.5]).numpy().tobytes())
        content[position] ^= 1
    path.write_bytes({"truncated": content[:-100], "text": b"<html>not found</html>"}.get(damage, content))
    with pytest.raises(UsageError, match=f"{FILES['resnet18']}.*delete it") as error:
        classifier(SHAPE, 2, architecture="resnet18", weights="IMAGENET1K_V1")
    assert "\n" not in str(error.value)


def test_weights_of_a_run_include_the_head_if_the_number_of_classes_matches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "best.pt"
    state = state_of("squeezenet1_1", num_classes=5)
    checkpoint.save(path, {"model": state, "epoch": 3, "shape": list(SHAPE), "outputs": 5})
    caplog.set_level(logging.INFO, "dlhw")
    matching = classifier(SHAPE, 5, architecture="squeezenet1_1", weights=str(path))
    assert_has_weights(matching, state)
    assert matching.fresh == []
    assert caplog.messages == []
    other = classifier(SHAPE, 2, architecture="squeezenet1_1", weights=str(path))
    assert other.fresh == ["classifier.1"]
    assert "has 5 classes; it is replaced by a new layer" in caplog.text
    assert_has_weights(other, {name: value for name, value in state.items() if not name.startswith("classifier.1.")})
    with pytest.raises(UsageError, match="has 5 classes; expected the 1000 of ImageNet"):
        classifier(SHAPE, None, architecture="squeezenet1_1", weights=str(path))


def test_files_in_the_legacy_format_are_read(tmp_path: Path) -> None:
    state = state_of("squeezenet1_1")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = classifier(SHAPE, None, architecture="squeezenet1_1", weights=str(tmp_path / "old.pth"))
    assert_has_weights(network, state)


def test_old_names_missing_counters_and_auxiliary_classifiers_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    state = state_of("densenet121")
    old_state = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert any("denselayer1.norm.1.weight" in name for name in old_state)
    torch.save(old_state, path)
    network = classifier(SHAPE, None, architecture="densenet121", weights=str(path))
    weights = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert_has_weights(network, weights)

    state = state_of("googlenet", init_weights=False)
    torch.save(state, path)
    network = classifier(SHAPE, None, architecture="googlenet", weights=str(path))
    assert_has_weights(network, {name: value for name, value in state.items() if not name.startswith("aux")})


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("squeezenet1_1", "classifier.1"),
        ("mobilenet_v3_small", "classifier.3"),
        ("densenet121", "classifier"),
        ("efficientnet_b0", "classifier.1"),
        ("convnext_tiny", "classifier.2"),
        ("swin_t", "head"),
        ("googlenet", "fc"),
        ("regnet_y_400mf", "fc"),
    ],
)
def test_the_head_fits_the_classes_and_no_layer_uses_the_global_random_state(architecture: str, head: str) -> None:
    network = classifier(SHAPE, 7, architecture=architecture, weights=None)
    assert (network.head_name, network.fresh) == (head, [""])
    assert network.training
    before = torch.get_rng_state()
    logits = network(torch.zeros(2, *SHAPE))
    assert logits.shape == (2, 7)
    assert torch.equal(torch.get_rng_state(), before)  # no layer draws from torch's stream


def test_parameters_outputs_and_dropout_rates_equal_those_of_torchvision() -> None:
    torch.manual_seed(0)
    reference = models.mobilenet_v2(weights=None, num_classes=4).eval()
    network = classifier(SHAPE, 4, architecture="mobilenet_v2", weights=None).eval()
    assert list(network.state_dict()) == list(reference.state_dict())
    network.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(network(x), reference(x))
    rates = [float(layer.rate) for layer in network.modules() if isinstance(layer, Dropout)]
    assert rates == [layer.p for layer in reference.modules() if isinstance(layer, nn.Dropout)]


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3)
    y = layer(x)
    assert set(y.flatten(1).sum(1).tolist()) == {0.0, 8.0}
    assert abs(y.mean().item() - 1) < 0.05
    assert not torch.equal(layer(x), y)
    layer.key.zero_()
    assert torch.equal(layer(x), y)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (SHAPE, {"architecture": "resnet17"}, "did you mean resnet18"),
        (SHAPE, {"architecture": "fasterrcnn_resnet50_fpn"}, "not a classifier of torchvision"),
        ((1, 28, 28), {"architecture": "resnet18"}, r"3 channels.*dataset are \(1, 28, 28\)"),
        ((4,), {"architecture": "resnet18"}, "3 channels"),
        ((3, 32, 32), {"architecture": "alexnet"}, "32x32.*dataset.size or dataset.crop must be larger, such as 224"),
        ((3, 32, 32), {"architecture": "inception_v3"}, "must be larger, such as 299"),
        (
            SHAPE,
            {"architecture": "resnet18", "weights": "IMAGENET"},
            "one of null, IMAGENET1K_V1, DEFAULT, or a file",
        ),
        (SHAPE, {"architecture": "resnet18", "weights": "."}, "is a folder"),
        (
            SHAPE,
            {"architecture": "resnet18", "weights": "FILE"},
            "conv1.weight is missing in the file; expected 64x3x7x7",
        ),
        (
            SHAPE,
            {"architecture": "squeezenet1_0", "weights": "FILE"},
            "features.0.weight is 64x3x3x3.*expected 96x3x7x7",
        ),
    ],
)
def test_invalid_options_are_one_line_errors(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    if options.get("weights") == "FILE":
        torch.save(state_of("squeezenet1_1"), tmp_path / "weights.pth")
        options = {**options, "weights": str(tmp_path / "weights.pth")}
    with pytest.raises(UsageError, match=message) as error:
        classifier(shape, 2, **{"weights": None, **options})
    assert "\n" not in str(error.value)


def test_model_configs_set_architecture_and_weights() -> None:
    for name in FILES | {"resnet34": "", "squeezenet1_0": "", "mobilenet_v2": ""}:
        model = compose_with_hydra(f"model={name}").model
        assert (model.architecture, model.weights) == (name, "IMAGENET1K_V1")
    scratch = compose_with_hydra("model=resnet34_scratch").model
    assert (scratch.architecture, scratch.weights) == ("resnet34", None)
    with pytest.raises(UsageError, match=r"model\.architecture: missing"):
        build.validate(compose_with_hydra("model=torchvision"))
    build.validate(compose_with_hydra("model=torchvision", "model.architecture=vgg11", "model.weights=null"))


def test_missing_weights_are_reported_before_the_dataset_is_read(tmp_path: Path) -> None:
    cfg = compose(
        "model=resnet18", "model.weights=nowhere.pt", "dataset=image_folder", f"dataset.root={tmp_path / 'no'}"
    )
    with pytest.raises(UsageError, match=r"^model.weights=nowhere.pt: neither a file nor published weights"):
        assemble(cfg)
