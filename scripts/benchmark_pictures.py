"""Compare the time of training on a folder of pictures with that of a usual torchvision program.

    python scripts/benchmark_pictures.py                     all tables, face_mask and hymenoptera in --data-dir
    python scripts/benchmark_pictures.py --data DIR          another folder of pictures, with a subfolder per class
    python scripts/benchmark_pictures.py --quick             a quick test with generated pictures

The script prints Markdown tables:

- cnn: training and validation of a small CNN at 128 pixels.
- frozen: training the last layer of a ResNet18 at 224 pixels, and the effect of computing its frozen part only once.
- whole: training steps of a whole ResNet18.
- augmentation: augmentation of pictures, without a model.
- cache: finding out at the start of a run whether pictures or their cache have changed, and alternatives.

The first two tables measure whole commands, ``python -m dlhw.train`` and reference_pictures.py, with the same initial
weights and the same pictures, which this script links into train and val folders. Cold means that dlhw has not decoded
the pictures before; the files are in the operating system's cache in all cases. The time of an epoch is that between
the ends of two epochs and includes training, validation and checkpoint. The time of a whole run is that of its process.
The reference trains for --reference-epochs, and the time of further epochs is extrapolated. The programs take turns in
every round, and ratios are between times of the same round.

The script verifies that both programs do the same work: they use the same numbers of pictures and steps, and the
weights trained by dlhw have the same validation loss and accuracy in the reference. OMP_NUM_THREADS limits the number
of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmark_loop import OVERRIDES, machine
from benchmark_sweeps import seconds_of_steps
from dlhw.cli.assembly import load_data, set_up_process
from dlhw.cli.build import validate
from dlhw.cli.program import compose
from dlhw.data.batches import Batches
from dlhw.data.file_hashes import PictureFile, hash_files, known_hashes
from dlhw.data.picture_cache import load
from dlhw.runtime import devices
from picture_programs import BATCH, TASKS, Bench, Timed, generate_pictures, link_by_split

WORKERS = (0, 2)


def parts_of(setting: str) -> list[str]:
    """Return the overrides of a combination such as channels_last+bf16."""
    return [OVERRIDES[part] for part in setting.split("+")]


def compare(bench: Bench, settings: Sequence[str], plain: Sequence[str] = ()) -> None:
    """Print the times of the reference and of dlhw, cold and warm, and warm in further settings.

    With ``plain``, also measure dlhw with these overrides, for as many epochs as the reference.
    """
    options, results = bench.options, dict[str, list[Timed]]()
    flip = options.flip and bench.task is TASKS["cnn"]
    ours, theirs = (["augmentation=flip"], ["--flip"]) if flip else ([], [])

    def add(name: str, result: Timed) -> Timed:
        results.setdefault(name, []).append(result)
        print(f"{bench.task.name}: {name}: {result.epoch:.3f} s per epoch", file=sys.stderr)
        return result

    fewer = options.epochs if options.full else options.reference_epochs
    for turn in range(options.rounds):
        cache = bench.directory / f"cache-{turn}"
        add("dlhw, cold", bench.ours(*ours, epochs=options.epochs, cache=cache))
        weights = bench.initial(cache)
        references = [
            add(f"reference, {n} workers", bench.theirs(f"--workers={n}", *theirs, epochs=fewer, weights=weights))
            for n in WORKERS
        ]
        warm = add("dlhw, warm", bench.ours(*ours, epochs=options.epochs, cache=cache))
        if not turn:
            bench.check(warm, references[0])
        for setting in settings:
            add(f"dlhw, warm, {setting}", bench.ours(*ours, *parts_of(setting), epochs=options.epochs, cache=cache))
        if plain:
            plain_run = add(f"dlhw, warm, {' '.join(plain)}", bench.ours(*plain, epochs=fewer, cache=cache))
    train, val = (references[0].rows[0][part] for part in ("train", "val"))
    title = f"{bench.task.name}, {train} + {val} pictures, rounds: {options.rounds}, epochs of the reference: {fewer}"
    print_table(title, results, options.epochs)
    if plain:
        epoch_ratio = plain_run.epoch / warm.epoch
        ratio = plain_run.whole(options.epochs) / warm.whole(options.epochs)
        print(
            f"\nWith {' '.join(plain)} a later epoch takes {epoch_ratio:.1f} times as long, and {options.epochs} "
            f"epochs take {ratio:.1f} times as long (last round). "
            f"In metrics.csv {largest_difference(warm.rows, plain_run.rows)}."
        )


def largest_difference(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> str:
    """Describe the largest relative difference between two runs, over the epochs that both have."""
    differences = {
        f"{name} of epoch {row['epoch']}": abs(row[name] - other[name]) / max(abs(other[name]), 1e-12)
        for row, other in zip(rows, others, strict=False)
        for name in row
        if name != "at"
    }
    where = max(differences, key=lambda name: differences[name])
    count = min(len(rows), len(others))
    if not differences[where]:
        return f"nothing differs in the {count} epochs that both have"
    return f"{where} differs most in the {count} epochs that both have, by {100 * differences[where]:.1g} %"


def print_table(title: str, results: dict[str, list[Timed]], epochs: int) -> None:
    """Print medians over the rounds, and ratios to the reference with the faster number of workers."""

    def best(value: Callable[[Timed], float]) -> list[float]:
        references = [[value(run) for run in runs] for name, runs in results.items() if name.startswith("reference")]
        return min(references, key=statistics.median)

    def cells(runs: Sequence[Timed], value: Callable[[Timed], float]) -> list[str]:
        seconds = [value(run) for run in runs]
        ratios = [reference / time for reference, time in zip(best(value), seconds, strict=True)]
        return [
            f"{statistics.median(seconds):.2f}",
            f"{statistics.median(ratios):.1f}",
            f"{min(ratios):.1f}–{max(ratios):.1f}",
        ]

    print(f"\n{title}\n")
    print(
        f"| | until the end of epoch 1, s | a later epoch, s | times reference | min–max "
        f"| {epochs} epochs, s | times reference | min–max |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for name, runs in results.items():
        first = f"{statistics.median(run.first for run in runs):.2f}"
        row = [first, *cells(runs, lambda run: run.epoch), *cells(runs, lambda run: run.whole(epochs))]
        print(f"| {name} | {' | '.join(row)} |", flush=True)


def whole(bench: Bench, settings: Sequence[str], cache: Path) -> None:
    """Print the pictures per second of training a whole ResNet18."""
    print("\nTraining steps of a whole ResNet18 at 224 pixels\n")
    print("| dlhw | pictures per second | times fp32 |\n|---|--:|--:|")
    rates: list[float] = []
    for setting in ["fp32", *settings]:
        cfg = compose(*bench.overrides("trainer.trains=all", *parts_of(setting), cache=cache))
        rates.append(BATCH / statistics.median(seconds_of_steps([cfg], steps=bench.options.steps + 1)[1:]))
        print(f"| {setting} | {rates[-1]:.1f} | {rates[-1] / rates[0]:.1f} |", flush=True)


def augmentation(bench: Bench, cache: Path) -> None:
    """Print the pictures per second of augmentation: ours, and a DataLoader with decoded pictures and with files."""
    from torchvision import datasets
    from torchvision.transforms import v2

    from reference_pictures import AUGMENTATIONS, Transformed, make_loader

    decode = [v2.Resize(bench.task.resize), v2.CenterCrop(bench.task.crop), v2.PILToTensor()]
    print("\nPictures of 224 pixels augmented per second\n")
    print(
        "| augmentation | workers | dlhw | DataLoader, decoded pictures | times | ImageFolder and DataLoader | times |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, transforms in AUGMENTATIONS.items():
        for workers in WORKERS:
            chosen = [f"augmentation={name}", f"augmentation.workers={workers}"]
            cfg = compose(*bench.overrides(*chosen, cache=cache))
            components = validate(cfg)
            data = load_data(components, set_up_process(components)[1])
            steps = -(-len(data.train) // BATCH)
            batches = Batches(data, [0], size=BATCH, steps=steps)
            x, y = data.train[:]
            decoded = Transformed(x, y.tolist(), v2.Compose(transforms))
            files = datasets.ImageFolder(bench.root / "train", v2.Compose([*decode, *transforms]))
            ours = per_second(batches, len(data.train), bench.options.passes)
            others = []
            for pictures in (decoded, files):
                loader = make_loader(pictures, batch_size=BATCH, workers=workers)
                rate = per_second(lambda epoch, loader=loader: loader, len(data.train), bench.options.passes)  # type: ignore[misc]
                others += [f"{rate:.0f}", f"{ours / rate:.1f}"]
            print(f"| {name} | {workers} | {ours:.0f} | {' | '.join(others)} |", flush=True)


def per_second(epochs: Callable[[int], Iterable[Any]], count: int, passes: int) -> float:
    """Return the median pictures per second over several epochs, after one that starts the workers."""
    seconds = []
    for epoch in range(1, passes + 2):
        started = time.perf_counter()
        for _ in epochs(epoch):
            pass
        seconds.append(time.perf_counter() - started)
    return count / statistics.median(seconds[1:])


def cache(bench: Bench, directory: Path) -> None:
    """Print the milliseconds per 1,000 pictures of each check at the start of a run, and of its alternatives."""
    paths = sorted(path for path in bench.root.rglob("*") if path.is_file())
    files = [PictureFile(path.resolve(), path.relative_to(bench.root).as_posix()) for path in paths]
    sizes: dict[str, Any] = {"root": bench.root, "resize": bench.task.resize, "crop": bench.task.crop}
    pixels = load(files, **sizes, cache_dir=directory).pixels.numpy()
    memo = next(directory.glob("*.hashes"))

    def hash_all() -> None:
        memo.unlink(missing_ok=True)
        hash_files(files, memo)

    def sample(file: PictureFile) -> bytes:
        with file.path.open("rb", buffering=0) as content:
            size, blocks = os.fstat(content.fileno()).st_size, hashlib.blake2b()
            for start in (0, size // 2, max(0, size - 4096)):
                blocks.update(os.pread(content.fileno(), 4096, start))
        return blocks.digest()

    checks: dict[str, Callable[[], object]] = {
        "size, times and inode of the files, and the saved hashes (used)": lambda: known_hashes(files, memo),
        "reading three blocks of 4 KB of each file": lambda: [sample(file) for file in files],
        "SHA-256 of the files (used if they are new)": hash_all,
        "CRC-32 of the cached pixels (used)": lambda: [zlib.crc32(picture.data) for picture in pixels],
        "SHA-256 of the cached pixels": lambda: [hashlib.sha256(picture.data) for picture in pixels],
        "BLAKE2b of the cached pixels": lambda: [hashlib.blake2b(picture.data) for picture in pixels],
    }
    print(f"\nChecks at the start of a run, {len(files)} pictures of {bench.task.crop} pixels\n")
    print("| check | ms per 1,000 pictures | min–max |\n|---|--:|--:|")
    for name, check in checks.items():
        times = [1e6 * seconds / len(files) for seconds in (seconds_of(check) for _ in range(bench.options.repeats))]
        print(f"| {name} | {statistics.median(times):.1f} | {min(times):.1f}–{max(times):.1f} |", flush=True)


def seconds_of(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, tables = parser.add_argument, ["cnn", "frozen", "whole", "augmentation", "cache"]
    add("--tables", nargs="+", choices=tables, default=tables)
    add("--data", type=Path, help="folder of pictures; default: face_mask for cnn, hymenoptera for the others")
    add("--data-dir", type=Path, default=os.environ.get("DLHW_DATA", "data"), help="folder with these two datasets")
    add("--pictures", type=int, help="maximum number of training pictures, and of validation pictures")
    add("--rounds", type=int, default=3, help="number of rounds")
    add("--epochs", type=int, default=20, help="of dlhw in the first two tables, at least 2")
    add("--reference-epochs", type=int, default=2, help="of the reference, at least 2")
    add("--full", action="store_true", help="train the reference for all epochs, too")
    add("--flip", action="store_true", help="random horizontal flips for the small CNN")
    add("--steps", type=int, default=5, help="measured training steps, for each setting of the whole ResNet18")
    add("--passes", type=int, default=3, help="measured passes over the pictures, for each augmentation")
    add("--repeats", type=int, default=9, help="measured repetitions of each check of the cache")
    add("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to train")
    add("--quick", action="store_true", help="generated pictures unless --data is set, 3 epochs, one round")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.epochs, options.steps, options.passes, options.repeats = 1, 3, 1, 1, 1
    if min(options.epochs, options.reference_epochs) < 2:
        parser.error("--epochs, --reference-epochs: must be at least 2, because the first epoch includes the start-up")
    return options


def main() -> None:
    options = parse_arguments()
    print(machine(devices.pick_device(options.device)), flush=True)
    settings = ["channels_last", "bf16", "channels_last+bf16"]
    with tempfile.TemporaryDirectory() as temporary:
        if options.quick and options.data is None:
            options.data = generate_pictures(Path(temporary, "made_up"))
        benches = {}
        for name, task in TASKS.items():
            directory = Path(temporary, name)
            directory.mkdir()
            benches[name] = Bench(task, link_by_split(task, directory, options), directory, options)
        decoded = Path(temporary, "cache")
        for table in options.tables:
            if table == "cnn":
                compare(benches["cnn"], settings)
            elif table == "frozen":
                compare(benches["frozen"], settings[2:], plain=["trainer.frozen_once=false"])
            elif table == "whole":
                whole(benches["frozen"], settings, decoded)
            elif table == "augmentation":
                augmentation(benches["frozen"], decoded)
            else:
                cache(benches["frozen"], decoded)


if __name__ == "__main__":
    main()
