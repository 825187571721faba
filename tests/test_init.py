"""Initializations: distributions as published, randomness from the generator alone, weights of another run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dlhw.errors import UsageError
from dlhw.models.dense import mlp
from dlhw.storage import checkpoint
from dlhw.training import init

CONF = Path(__file__).parent.parent / "conf" / "init"

# The initializations by name, with the options that they require.
INITIALIZATIONS: dict[str, Callable[..., None]] = {
    "constant": lambda model, **options: init.constant(model, value=0.5, **options),
    "default": init.default,
    "he": init.he,
    "orthogonal": init.orthogonal,
    "uniform": lambda model, **options: init.uniform(model, d=0.1, **options),
    "xavier": init.xavier,
}
RANDOM = ["he", "orthogonal", "uniform", "xavier"]
LARGE = {"dense": lambda: nn.Linear(800, 500), "convolution": lambda: nn.Conv2d(60, 200, 5)}
FAN_IN = {"dense": 800, "convolution": 60 * 25}
FAN_OUT = {"dense": 500, "convolution": 200 * 25}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)]
    with torch.no_grad():
        for norm in (layers[1], layers[4]):
            norm.weight.uniform_()
            norm.bias.uniform_()
    return nn.Sequential(*layers)


def weight_of(layer: nn.Module) -> Tensor:
    return layer.weight.detach().double()


def assert_uniform(weight: Tensor, d: float) -> None:
    """Compare with U(-d, d), whose variance is d^2/3 and fourth moment d^4/5; sample moments within five deviations.

    The deviation of the mean is d/sqrt(3 n), that of the second moment sqrt((1/5 - 1/9)/n) d^2.
    """
    n = weight.numel()
    assert weight.abs().max() <= d * (1 + 1e-7)  # d itself is rounded to float32
    assert weight.abs().max() > d * (1 - 20 / n)  # fails with probability e^-20
    assert abs(weight.mean()) < 5 * d / math.sqrt(3 * n)
    assert abs(weight.square().mean() - d**2 / 3) < 5 * math.sqrt(4 / 45 / n) * d**2


def assert_normal(weight: Tensor, variance: float) -> None:
    """Compare with N(0, v), whose moments are v and 3 v^2; deviations sqrt(v/n), sqrt(2/n) v and sqrt(96/n) v^2."""
    n = weight.numel()
    assert abs(weight.mean()) < 5 * math.sqrt(variance / n)
    assert abs(weight.square().mean() - variance) < 5 * math.sqrt(2 / n) * variance
    assert abs(weight.pow(4).mean() - 3 * variance**2) < 5 * math.sqrt(96 / n) * variance**2


def test_every_config_has_an_initialization_in_these_tests() -> None:
    assert sorted([*INITIALIZATIONS, "from_run"]) == sorted(file.stem for file in CONF.glob("*.yaml"))


# Distributions


@pytest.mark.parametrize("kind", LARGE)
def test_uniform_draws_from_minus_d_to_d(kind: str) -> None:
    layer = LARGE[kind]()
    init.uniform(layer, generator=generator(), d=0.3)
    assert_uniform(weight_of(layer), 0.3)


@pytest.mark.parametrize("kind", LARGE)
def test_uniform_with_d_xavier_equals_xavier(kind: str) -> None:
    torch.manual_seed(0)
    model, other_model = LARGE[kind](), LARGE[kind]()
    init.uniform(model, generator=generator(3), d="xavier", bias=0.5)
    init.xavier(other_model, generator=generator(3), bias=0.5)
    assert torch.equal(model.weight, other_model.weight)
    assert model.bias.unique().tolist() == [0.5]


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("kind", LARGE)
def test_xavier_follows_equation_16(kind: str, gain: float) -> None:
    layer = LARGE[kind]()
    init.xavier(layer, generator=generator(), gain=gain)
    assert_uniform(weight_of(layer), gain * math.sqrt(6 / (FAN_IN[kind] + FAN_OUT[kind])))


@pytest.mark.parametrize("kind", LARGE)
def test_he_follows_equation_10(kind: str) -> None:
    layer = LARGE[kind]()
    init.he(layer, generator=generator())
    assert_normal(weight_of(layer), 2 / FAN_IN[kind])


@pytest.mark.parametrize("kind", LARGE)
def test_default_has_the_documented_distribution(kind: str) -> None:
    torch.manual_seed(0)
    layer = LARGE[kind]()
    init.default(layer, generator=generator())
    assert_uniform(weight_of(layer), 1 / math.sqrt(FAN_IN[kind]))


@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(300, 200), nn.Linear(200, 300), nn.Linear(100, 100), nn.Conv2d(4, 20, 5), nn.Conv2d(2, 64, 3)],
    ids=["wide", "tall", "square", "wide kernels", "tall kernels"],
)
def test_orthogonal_rows_or_columns_are_orthonormal(layer: nn.Module, gain: float) -> None:
    init.orthogonal(layer, generator=generator(), gain=gain)
    matrix = weight_of(layer).flatten(1)
    vectors = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    identity = torch.eye(len(vectors), dtype=torch.float64)
    assert torch.allclose(vectors @ vectors.T / gain**2, identity, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LARGE)
def test_constant_sets_every_weight_to_the_value(kind: str) -> None:
    layer = LARGE[kind]()
    init.constant(layer, generator=generator(), value=-0.25)
    assert weight_of(layer).unique().tolist() == [-0.25]


# Randomness, biases and other layers


@pytest.mark.parametrize("name", RANDOM)
def test_equal_generators_give_equal_weights(name: str) -> None:
    model, other_model = small_network(), small_network()
    INITIALIZATIONS[name](model, generator=generator(3))
    INITIALIZATIONS[name](other_model, generator=generator(3))
    for parameter, other_parameter in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(parameter, other_parameter)


@pytest.mark.parametrize("name", RANDOM)
def test_other_generators_give_other_weights(name: str) -> None:
    model, other_model = small_network(), small_network()
    INITIALIZATIONS[name](model, generator=generator(3))
    INITIALIZATIONS[name](other_model, generator=generator(4))
    assert not torch.equal(model[0].weight, other_model[0].weight)
    assert not torch.equal(model[3].weight, other_model[3].weight)


@pytest.mark.parametrize("name", RANDOM)
def test_layers_of_one_model_get_different_weights(name: str) -> None:
    layers_of_equal_shape = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    INITIALIZATIONS[name](layers_of_equal_shape, generator=generator())
    assert not torch.equal(layers_of_equal_shape[0].weight, layers_of_equal_shape[1].weight)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_the_global_generator_does_not_change(name: str) -> None:
    model = small_network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    INITIALIZATIONS[name](model, generator=generator())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_biases_are_set_to_the_constant(name: str) -> None:
    model = small_network()
    INITIALIZATIONS[name](model, generator=generator(), bias=0.125)
    assert model[0].bias.unique().tolist() == [0.125]
    assert model[3].bias.unique().tolist() == [0.125]


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_biases_do_not_change_without_a_constant(name: str) -> None:
    model = small_network()
    INITIALIZATIONS[name](model, generator=generator(), bias=None)
    assert torch.equal(model[0].bias, small_network()[0].bias)
    assert torch.equal(model[3].bias, small_network()[3].bias)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_batch_norm_does_not_change(name: str) -> None:
    model, untouched = small_network(), small_network()
    INITIALIZATIONS[name](model, generator=generator(), bias=0.125)
    for layer in (1, 4):
        for key, value in untouched[layer].state_dict().items():
            assert torch.equal(model[layer].state_dict()[key], value), key


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_layers_without_a_bias_are_supported(name: str) -> None:
    layer = nn.Linear(4, 4, bias=False)
    INITIALIZATIONS[name](layer, generator=generator(), bias=0.125)
    assert layer.bias is None


def test_default_does_not_change_the_weights() -> None:
    model = small_network()
    init.default(model, generator=generator())
    for parameter, original in zip(model.parameters(), small_network().parameters(), strict=True):
        assert torch.equal(parameter, original)


# From another run


def dense(hidden: int = 4, *, dropout: float = 0.0) -> nn.Sequential:
    return mlp((6,), 3, hidden=[hidden], activation="Tanh", dropout=dropout, batch_norm=True)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with the weights 1, 2, ... in ``best.pt`` and minus those in ``last.pt``."""
    for name, sign in (("best", 1), ("last", -1)):
        state = {
            key: torch.full_like(value, sign * n) for n, (key, value) in enumerate(dense().state_dict().items(), 1)
        }
        checkpoint.save(tmp_path / f"{name}.pt", {"model": state})
    return tmp_path


@pytest.mark.parametrize(("weights", "sign"), [("best", 1), ("last", -1)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_from_run_loads_the_whole_state_of_the_run(run: Path, weights: str, sign: int, dropout: float) -> None:
    model = dense(dropout=dropout)
    init.from_run(model, generator=generator(), run=str(run), weights=weights)
    assert [value.unique().tolist() for value in model.state_dict().values()] == [
        [sign * n] for n in range(1, len(model.state_dict()) + 1)
    ]


def test_from_run_without_a_run_does_not_change_the_weights() -> None:
    torch.manual_seed(0)
    model = dense()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    init.from_run(model, generator=generator(), run=None)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def error_message(model: nn.Module, run: Path, **options: str) -> str:
    """Return the message of the error that init.from_run raises."""
    with pytest.raises(UsageError) as raised:
        init.from_run(model, generator=generator(), run=str(run), **options)
    return str(raised.value)


def test_the_error_for_a_missing_run_says_how_to_create_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert error_message(dense(), missing) == (
        f"init.run={missing}: best.pt is missing; expected the directory of a trained run"
    )
    assert error_message(dense(), missing, weights="last", made_by="python -m dlhw.train seed=3") == (
        f"init.run={missing}: last.pt is missing; create it with: python -m dlhw.train seed=3"
    )


def test_from_run_of_a_sweep_is_an_error(run: Path) -> None:
    (run / "multirun.yaml").touch()
    assert error_message(dense(), run) == f"init.run={run}: a sweep; expected the directory of one of its runs"


def test_from_run_of_a_corrupt_checkpoint_is_an_error(run: Path) -> None:
    (run / "best.pt").write_bytes(b"nothing")
    assert error_message(dense(), run).startswith(f"{run / 'best.pt'}: corrupt checkpoint")


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (lambda: dense(5), "1.weight is a weight of 5x6 here and a weight of 4x6 in the run"),
        (lambda: nn.Sequential(*dense(), nn.Linear(3, 3)), "5.weight is a weight of 3x3 here and missing in the run"),
        (lambda: dense()[:-1], "4.weight is missing here and a weight of 3x4 in the run"),
        (
            lambda: nn.Sequential(*dense()[:2], nn.Linear(4, 3)),
            "2.weight is a weight of 3x4 here and a weight of 4 in the run",
        ),
    ],
    ids=["wider", "deeper", "shallower", "other layers"],
)
def test_the_error_for_another_model_names_the_first_difference_and_changes_nothing(
    run: Path, model: Callable[[], nn.Module], difference: str
) -> None:
    other_model = model()
    before = {key: value.clone() for key, value in other_model.state_dict().items()}
    assert error_message(other_model, run) == f"init.run={run}: belongs to another model; {difference}"
    for key, value in other_model.state_dict().items():
        assert torch.equal(value, before[key]), key
