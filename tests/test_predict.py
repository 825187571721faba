"""``dlhw predict``: pictures and tables are prepared as in training; output and errors of the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dlhw import load_run
from dlhw.applying import Network
from dlhw.cli.build import build
from dlhw.data.normalization import Normalization
from dlhw.data.pictures import Unreadable
from dlhw.data.tensors import Dataset, Split, assemble
from dlhw.errors import UsageError
from dlhw.predict import main, picture_files, picture_pixels, predict
from dlhw.runtime.devices import Precision
from dlhw.storage.record import Record
from dlhw.train import run as train
from support.composing import compose

SMALL = ["model=cnn", "model.channels=[2]", "trainer.epochs=1", "trainer.batch_size=8", "trainer.device=cpu"]
SIZES = ((40, 30), (30, 40), (24, 24), (20, 61), (300, 200), (25, 25))


def random_picture(seed: int, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def train_run(path: Path, *overrides: str) -> Path:
    """Train a run with this config into a new directory. Return the directory."""
    path.mkdir()
    cfg = compose(*overrides)
    train(cfg, Record(path))
    return path


def dataset_of_run(path: Path) -> Dataset:
    cfg = load_run(path).config
    data: Dataset = build(cfg, "dataset", data_dir=cfg.data_dir, seed=cfg.seed)
    return data.to("cpu", torch.float32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs and PNGs of six sizes in the classes ``cat`` and ``[dog]``, and one that EXIF rotates."""
    root = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("cat", "[dog]")):
        (root / name).mkdir()
        for i, size in enumerate(SIZES):
            random_picture(10 * number + i, size).save(root / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    exif = Image.Exif()
    exif[0x0112] = 6
    random_picture(99, (50, 30)).save(root / "cat" / "rotated.jpg", exif=exif)
    return root


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = ["dataset=image_folder", f"dataset.root={pictures}", "dataset.resize=24", "dataset.crop=20"]
    home = tmp_path_factory.mktemp("run")
    return train_run(home / "run", *SMALL, *folder, f"dataset.cache_dir={home / 'cache'}")


@pytest.fixture(scope="module")
def grey_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(tmp_path_factory.mktemp("grey") / "run", *SMALL, "dataset=digits", "trainer.batch_size=500")


def test_files_are_prepared_as_in_their_dataset(run: Path, pictures: Path) -> None:
    data, opened = dataset_of_run(run), load_run(run)
    assert len(data.names) == 13
    for row, name in enumerate(data.names):
        pixels = picture_pixels(pictures / name, opened.network().shape, opened.config.dataset)
        assert pixels.equal(data.val.pool_x[row])
        assert opened.network().normalize(pixels).equal(data.normalize(pixels))


@pytest.mark.parametrize(
    ("channels", "side", "size"), [(1, 28, None), (3, 32, None), (3, 32, 40), (3, 32, 20)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pictures_saved_to_files_are_prepared_as_in_a_tensor_dataset(
    tmp_path: Path, channels: int, side: int, size: int | None, dtype: torch.dtype
) -> None:
    """Pictures as in MNIST and CIFAR-10, saved to files, give the dataset's inputs, resized to ``size``."""
    mode = "L" if channels == 1 else "RGB"
    arrays = [np.asarray(random_picture(i, (side, side), mode)).reshape(side, side, channels) for i in range(4)]
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    options: dict[str, Any] = {"mean": [0.1, 0.2, 0.3][:channels], "std": [0.4, 0.5, 0.6][:channels], "size": size}
    split = Split(x, torch.tensor([0, 1, 0, 1]))
    data = assemble(
        "random", split, split, seed=0, validation_fraction=0.5, largest=255, classes=("a", "b"), **options
    ).to("cpu", dtype)
    for row, array in enumerate(arrays):
        Image.fromarray(array.squeeze()).save(tmp_path / f"{row}.png")
        pixels = picture_pixels(tmp_path / f"{row}.png", data.shape, options)
        assert pixels.equal(x[row])
        normalize = Normalization.from_state(data.normalize.state).for_pixels_up_to(255)
        assert normalize(pixels[None]).equal(data.normalize(x[row : row + 1]))


def test_digits_saved_with_256_levels_give_the_same_inputs_up_to_rounding(grey_run: Path, tmp_path: Path) -> None:
    """Digits have pixels from 0 to 16. In a file, white is 255: rounding changes a pixel by half a level at most."""
    data, opened = dataset_of_run(grey_run), load_run(grey_run)
    normalize = opened.network().normalize.for_pixels_up_to(255)
    for row in range(5):
        pixels = data.val.pool_x[row]
        Image.fromarray((pixels[0].double() * 255 / 16).round().byte().numpy()).save(tmp_path / "x.png")
        in_file = picture_pixels(tmp_path / "x.png", data.shape, opened.config.dataset)
        difference = (normalize(in_file) - data.normalize(pixels)).abs().max()
        assert float(difference) <= 0.501 / 255 / opened.config.dataset["std"]


def test_colours_are_converted_to_grey_as_by_pillow(tmp_path: Path) -> None:
    picture = random_picture(3, (28, 28))
    picture.save(tmp_path / "x.png")
    pixels = picture_pixels(tmp_path / "x.png", (1, 28, 28), {})
    assert pixels[0].equal(torch.from_numpy(np.array(picture.convert("L"))))


def test_invalid_picture_raises_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(Unreadable, match="not a picture"):
        picture_pixels(tmp_path / "x.png", (1, 8, 8), {})


def test_predictions_equal_the_network_probabilities(
    run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlhw.predict.BATCH_SIZE", 5)
    data = dataset_of_run(run)
    files = [pictures / name for name in data.names]
    for weights in ("best", "last"):
        entries = predict(load_run(run), files, top=5, weights=weights, device="cpu")
        model = load_run(run).model(weights)
        with torch.no_grad():
            expected = model(data.normalize(data.val.pool_x)).double().softmax(1)
        assert [entry["picture"] for entry in entries] == [str(file) for file in files]
        for entry, row in zip(entries, expected, strict=True):
            by_class = {prediction["class"]: prediction["probability"] for prediction in entry["predictions"]}
            assert by_class == pytest.approx(dict(zip(data.classes, row.tolist(), strict=True)), abs=1e-6)
            assert list(by_class.values()) == sorted(by_class.values(), reverse=True)


def run_predict(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Run the command. Return its exit code, stdout and stderr."""
    code: object = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def test_table_has_a_line_for_each_picture_and_class(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pictures / "cat" / "0.jpg", pictures / "[dog]" / "1.png"
    code, out, err = run_predict(run, first, second, "--device", "cpu", capsys=capsys)
    assert (code, err) == (0, "")
    header, *lines = out.splitlines()
    assert header.split() == ["sample", "probability", "class"]
    assert len(lines) == 4
    entries = predict(load_run(run), [first, second], top=5, weights="best", device="cpu")
    expected = [
        [*([entry["picture"]] if rank == 0 else []), f"{100 * prediction['probability']:.2f}", "%", prediction["class"]]
        for entry in entries
        for rank, prediction in enumerate(entry["predictions"])
    ]
    assert [line.split() for line in lines] == expected
    assert len({line.index("%") for line in lines}) == 1


def test_unreadable_pictures_are_reported_and_the_others_classified(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes((pictures / "cat" / "0.jpg").read_bytes()[:200])
    files = [tmp_path / "broken.jpg", pictures / "cat" / "0.jpg", tmp_path / "none.png"]
    code, out, err = run_predict(run, *files, "--json", "--top", 1, capsys=capsys)
    assert code == 1
    lines = err.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(files[0]), str(files[2])]
    assert lines[1] == f"{files[2]}: No such file or directory"
    entries = json.loads(out)
    assert [entry["picture"] for entry in entries] == list(map(str, files))
    assert ["error" in entry for entry in entries] == [True, False, True]
    assert [prediction["class"] for prediction in entries[1]["predictions"]] in (["cat"], ["[dog]"])
    code, out, err = run_predict(run, files[2], capsys=capsys)
    assert (code, out, len(err.splitlines())) == (1, "", 1)


def test_folder_argument_means_all_pictures_below_it(pictures: Path, tmp_path: Path) -> None:
    for folder in ("deeper", ".thumbnails"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    for name in (".thumbnails/a.png", "b.JPG", "a.png", "notes.txt", ".hidden.png", "deeper/c.webp"):
        (tmp_path / "in" / name).touch()
    files = picture_files([tmp_path / "in" / "notes.txt", tmp_path / "in"])
    names = [path.relative_to(tmp_path / "in").as_posix() for path in files]
    assert names == ["notes.txt", "a.png", "b.JPG", "deeper/c.webp"]
    assert len(picture_files([pictures])) == 13
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: a folder without pictures$"):
        picture_files([tmp_path / "empty"])


def test_file_names_that_are_not_utf8_are_escaped(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    try:
        shutil.copy(pictures / "cat" / "0.jpg", file)
    except OSError:
        pytest.skip("the file system requires UTF-8 names")
    code, out, _ = run_predict(run, file, capsys=capsys)
    assert code == 0
    assert "caf\\xe9.jpg" in out


def test_predictions_use_the_default_number_of_threads(
    run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[object] = []
    monkeypatch.setattr("dlhw.runtime.devices.use_threads", lambda: used.append(torch.get_num_threads()))
    predict(load_run(run), [pictures / "cat" / "0.jpg"], top=1, weights="best", device="cpu")
    assert len(used) == 1


def copy_with_config(run: Path, target: Path, **config: Any) -> Path:
    """Copy a run to ``target`` and change values of its config."""
    shutil.copytree(run, target)
    OmegaConf.save(OmegaConf.merge(load_run(run).config, config), target / "config.yaml")
    return target


def test_unsuitable_run_directories_give_one_line_errors(
    grey_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, empty, unfinished = tmp_path / "sweep", tmp_path / "empty", tmp_path / "unfinished"
    for path in (sweep, empty):
        path.mkdir()
    (sweep / "multirun.yaml").touch()
    shutil.copytree(grey_run, sweep / "b=1")
    shutil.copytree(grey_run, unfinished)
    for name in ("best.pt", "summary.json"):
        (unfinished / name).unlink()
    study = copy_with_config(grey_run, tmp_path / "study", study={"_target_": "dlhw.studies.jacobian.jacobian"})
    small = ["model=mlp", "model.hidden=[3]", "trainer.epochs=1", "trainer.device=cpu", "optimizer.lr=0.001"]
    diabetes = ["dataset=diabetes", "loss=mse", "trainer.monitor=val_mse", "trainer.batch_size=64"]
    regression = train_run(tmp_path / "regression", *small, *diabetes)
    points = train_run(tmp_path / "points", *small, "dataset=clusters")
    messages = {
        empty: "not a run directory (it has no config.yaml)",
        sweep: f"the directory of a sweep; expected one of its runs, such as {sweep / 'b=1'}",
        unfinished: "has no best.pt (unfinished)",
        study: "a run of a study, which does not save a network; expected a training run",
        regression: "a regression run (dataset=diabetes); expected a run on pictures with classes",
        points: "a run on samples that are not pictures (dataset=clusters); expected a run on pictures with classes",
    }
    for path, message in messages.items():
        assert run_predict(path, "x.png", capsys=capsys) == (1, "", f"{path}: {message}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_missing_device_error_names_the_option(grey_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_predict(grey_run, "x.png", "--device", "cuda", capsys=capsys)
    assert (code, out) == (1, "")
    assert err.startswith("--device cuda: not available; expected one of auto, ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("top", ["0", "-1", "1.5", "all"])
def test_top_must_be_a_positive_whole_number(top: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_predict("RUN", "x.png", f"--top={top}", capsys=capsys)
    assert code == 2
    assert err.splitlines()[-1].endswith("argument --top: must be a whole number, 1 or greater")


def test_help_does_not_import_torch() -> None:
    code = "import sys, dlhw.predict\ntry: dlhw.predict.main(['-h'])\nfinally: assert 'torch' not in sys.modules"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert "RUN FILE [FILE ...]" in process.stdout


def test_predictions_use_the_precision_of_the_run() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    x = torch.full((1, 3, 2, 2), 1.001)  # rounds to 1 in bfloat16
    unchanged = Normalization.of_pixels(0.0, 1.0, largest=1, shape=(3, 2, 2)).to("cpu", torch.float32)
    full, reduced = (
        Network(model, (3, 2, 2), ("no", "yes"), None, unchanged, Precision(name, torch.device("cpu"))).probabilities(x)
        for name in ("fp32", "bf16")
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x).double().softmax(1).numpy()
    assert (reduced == expected).all()
    assert (full != expected).all()
