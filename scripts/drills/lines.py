"""Generate command lines that are valid, or nearly so, from the files in ``conf/``.

:func:`generate` draws a valid line and changes it in one or two places, as a person's mistakes would.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import own_files
import yaml
from arguments import COMPARES, FLAGS, HYDRA_KEYS, PREDICTS, RESUMES, split
from values import INVALID, PATHS, SWEEPS, interpolations, valid_values

from dlhw.cli.composition import conf_dir

TINY = ("trainer.epochs=1", "trainer.steps_per_epoch=1", "trainer.device=cpu")
SMALL_DATASETS = ("digits", "digits", "digits", "clusters", "separable", "diabetes")
QUICK_STUDIES = {
    "cost": ("dataset=digits",),
    "jacobian": ("study.depths=[3]", "study.width=4"),
    "momentum_range": (),
    "sigmoid_window": (),
    "projection": (),
    "hand_built_networks": (),
    "conv_backprop": (),
    "computational_graph": (),
}
SMALL_EXPERIMENTS = ("flooding", "mnist_mlp", "cnn_l2", "cnn_l1")
GRID_EXPERIMENTS = ("logistic_separable", "backprop_optimizers", "flooding_search", "init_study")
NOT_HERE = ("trainer.compile", "trainer.cuda_graphs", "trainer.threads", "init.run")
"""Keys whose valid values take long or need other hardware; they still get invalid values."""


@dataclass(frozen=True)
class Line:
    """A command line, and the person's own files in the working directory."""

    arguments: tuple[str, ...]
    module: str = "dlhw.train"
    files: Mapping[str, str] = field(default_factory=dict)


@functools.cache
def groups() -> dict[str, list[str]]:
    """Return the options of each group of ``conf/``."""
    folders = [path for path in sorted(conf_dir().iterdir()) if path.is_dir() and path.name != "hydra"]
    return {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}


@functools.cache
def option_values(group: str, option: str) -> dict[str, Any]:
    """Return the keys of an option with their default values."""
    content = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text()) or {}
    parents = [parent for parent in content.pop("defaults", []) if isinstance(parent, str) and parent != "_self_"]
    inherited = [option_values(group, parent) for parent in parents]
    result = {name: value for values in inherited for name, value in values.items()} | content
    return {name: value for name, value in result.items() if name != "_target_"}


def keys_of(choices: Mapping[str, str]) -> dict[str, Any]:
    """Return all keys of a config with these options, with their default values."""
    chosen = {"dataset": "digits", "model": "mlp", "optimizer": "sgd", "trainer": "default", **choices}
    keys: dict[str, Any] = {"seed": 0, "name": "train", "data_dir": "data", "output_dir": "outputs", "resume": None}
    for group, option in chosen.items():
        if option in groups().get(group, ()):
            keys |= {f"{group}.{name}": value for name, value in option_values(group, option).items()}
    return keys


def generate(random: Random) -> Line:
    """Draw a command line: a valid one with no, one or two mistakes."""
    kinds = {_training: 55, _sweep: 15, _study: 4, _experiment: 5, _resume: 6, _flags: 6, _own: 7, _compare: 2}
    kinds[_predict] = 2
    line = random.choices(list(kinds), list(kinds.values()))[0](random)
    if line.module != "dlhw.train":
        return line
    for _ in range(random.choices((0, 1, 2), (1, 6, 2))[0]):
        line = replace(line, arguments=tuple(_mutated(random, list(line.arguments))))
    return line


def _training(random: Random) -> Line:
    choices = {"dataset": random.choice(SMALL_DATASETS)}
    words = [f"dataset={choices['dataset']}", "model.hidden=[4]", *TINY]
    for group in random.sample(
        ["optimizer", "init", "regularization", "scheduler", "augmentation", "probe", "loss"], 2
    ):
        options = [one for one in groups()[group] if one not in ("torch", "from_run")]
        choices[group] = random.choice(options)
        if group == "loss" and random.random() < 0.7:
            continue
        words.append(f"{group}={choices[group]}")
    keys = {key: value for key, value in keys_of(choices).items() if key not in (*NOT_HERE, "resume", "data_dir")}
    given = {word.partition("=")[0] for word in words}
    for key in random.sample(sorted(set(keys) - given), random.randint(0, 2)):
        words.append(f"{key}={random.choice(valid_values(key, keys[key]))}")
    random.shuffle(words)
    return Line(tuple(words))


def _sweep(random: Random) -> Line:
    swept = random.choice(
        ["seed=0,1", "seed=range(2)", "optimizer.lr=0.1,0.2", "optimizer=sgd,adam", "model.hidden=[4],[5]", "seed=1"]
    )
    words = ["-m", "dataset=digits", "model.hidden=[4]", *TINY, swept]
    if random.random() < 0.25:
        words.append("hydra/launcher=vectorized")
    if random.random() < 0.15:
        words.remove("-m")
    return Line(tuple(words))


def _study(random: Random) -> Line:
    study = random.choice(sorted(QUICK_STUDIES))
    word = random.choice([f"study={study}", f"experiment={study}"])
    values = option_values("study", study)
    words = [word, *QUICK_STUDIES[study]]
    if values and random.random() < 0.5:
        key = random.choice(sorted(values))
        words.append(f"study.{key}={random.choice([*INVALID, *map(str, valid_values(key, values[key]))])}")
    return Line(tuple(words))


def _experiment(random: Random) -> Line:
    if random.random() < 0.3:
        return Line((f"experiment={random.choice(GRID_EXPERIMENTS)}", "dataset=digits", "model.hidden=[4]", *TINY))
    words = [f"experiment={random.choice(SMALL_EXPERIMENTS)}", "dataset=digits", *TINY]
    if random.random() < 0.5:
        words.append(f"b={random.choice([*INVALID, '0.1', '0', *interpolations('b')])}")
    return Line(tuple(words))


def _resume(random: Random) -> Line:
    words = [f"resume={random.choice(RESUMES)}"]
    words += random.choice(
        [[], [], [], ["trainer.epochs=2"], ["trainer.epochs=abc"], ["seed=1"], ["data_dir=x"], ["-m"]]
    )
    return Line(tuple(words))


def _flags(random: Random) -> Line:
    words = [*split(random.choice(FLAGS))]
    if random.random() < 0.5:
        words += random.sample(["dataset=digits", "optimizer.lr=0.1", *TINY], 2)
    if words[0] in ("-m", "--multirun", "--run", "-r", "--", "-", "---", "--config-name", "--config-dir"):
        words += ["model.hidden=[4]", *TINY]
    return Line(tuple(words))


def _own(random: Random) -> Line:
    files, words = own_files.draw(random)
    return Line((*words, *TINY), files=files)


def _compare(random: Random) -> Line:
    return Line(split(random.choice(COMPARES)), module="dlhw.compare")


def _predict(random: Random) -> Line:
    return Line(split(random.choice(PREDICTS)), module="dlhw.predict")


def _mutated(random: Random, words: list[str]) -> list[str]:
    """Return the words with one mistake or unusual value."""
    choices = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.partition("=")[0] in groups()}
    keys = keys_of(choices)
    mutations = {
        _invalid_value: 8,
        _interpolation: 5,
        _path: 4,
        _typo: 6,
        _prefix: 4,
        _swept: 4,
        _hydra_key: 5,
        _option: 4,
        _flag: 2,
        _damage: 4,
    }
    mutation = random.choices(list(mutations), list(mutations.values()))[0]
    return mutation(random, words, keys)


def _put(random: Random, words: list[str], key: str, value: str) -> list[str]:
    """Return the words with a value for a key: instead of another one, or at some place."""
    rest = [word for word in words if word.partition("=")[0] != key or random.random() < 0.1]
    rest.insert(random.randint(0, len(rest)), f"{key}={value}")
    return rest


def _invalid_value(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    return _put(random, words, random.choice(sorted(keys)), random.choice(INVALID))


def _interpolation(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    key = random.choice(sorted(keys))
    return _put(random, words, key, random.choice(interpolations(key)))


def _path(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    key = random.choice(
        ["output_dir", "output_dir", "name", "data_dir", "hydra.run.dir", "hydra.sweep.dir", "init.run"]
    )
    return _put(random, words, key, random.choice(PATHS))


def _typo(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    key = random.choice([*sorted(keys), *groups()])
    value = str(random.choice(valid_values(key, keys[key]))) if key in keys else random.choice(groups()[key])
    name, text = (misspelt(random, key), value) if random.random() < 0.7 else (key, misspelt(random, value))
    return _put(random, words, name, text)


def misspelt(random: Random, word: str) -> str:
    """Return a word with a transposed, missing, doubled or wrong letter, in other case, or with a wrong separator."""
    if not word:
        return "x"
    at = random.randrange(len(word))
    return random.choice(
        [
            word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + random.choice("abcdefghijklmnopqrstuvwxyz") + word[at + 1 :],
            word.upper(),
            word.capitalize(),
            word + "s",
            word.replace("_", "-"),
            word.replace("_", ""),
            word.replace(".", "/"),
            word.rpartition(".")[2],
            word.replace("ize", "ise"),
        ]
    )


def _prefix(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    key = random.choice([*sorted(keys), *groups()])
    new = random.choice(
        ["new", "trainer.new", "model.new.deep", "a/b", "model", "hydra.new", "model@x", "optimizer@_global_"]
    )
    value = random.choice(["1", "abc", "null", "[1,2]", "{a:1}", "mlp", "sgd", "${seed}"])
    known = [f"~{key}", f"~{key}={value}", f"+{key}={value}", f"++{key}={value}", f"~{key}.x", f"+++{key}={value}"]
    others = [f"+{new}={value}", f"++{new}={value}", f"~{new}", f"{new}={value}", f"+{key}", f"+{new}.{key}={value}"]
    word = random.choice([*known, *others])
    return [*words, word]


def _swept(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    key = random.choice(["seed", "seed", "optimizer.lr", "model.hidden", "dataset", "optimizer", "name", "output_dir"])
    words = _put(random, words, key, random.choice(SWEEPS))
    if random.random() < 0.75 and "-m" not in words:
        words.insert(
            random.choice([0, len(words)]), random.choice(["-m", "-m", "-m", "--multirun", "hydra.mode=MULTIRUN"])
        )
    return words


def _hydra_key(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    key = random.choice(sorted(HYDRA_KEYS))
    value = random.choice([*HYDRA_KEYS[key], *HYDRA_KEYS[key], random.choice([*INVALID, *interpolations(key)])])
    if key.endswith("dir") and random.random() < 0.3:
        value = random.choice(PATHS)
    return _put(random, words, random.choice(["", "", "", "+", "++"]) + key, value)


def _option(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    group = random.choice([name for name in groups() if name != "experiment"])
    pretrained = ("alexnet", "resnet", "mobilenet", "squeezenet", "torchvision")  # weights that are not here
    options = [name for name in groups()[group] if group != "study" and not name.startswith(pretrained)]
    value = random.choice(
        [*options, *options, "null", "nope", "", "[mlp]", "[a,b]", "{a:1}", "3", "Mlp", "default", "???"]
    )
    return _put(random, words, group, value)


def _flag(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    flag = split(random.choice(FLAGS))
    return [*flag, *words] if random.random() < 0.5 else [*words, *flag]


def _damage(random: Random, words: list[str], keys: dict[str, Any]) -> list[str]:
    """Return the words with a missing, added or doubled character or word."""
    at = random.randrange(len(words)) if words else 0
    word = words[at] if words else "seed=1"
    place = random.randint(0, len(word))
    odd = random.choice(
        [*"='\",[]{}()$~+-\\/@:#%&*!?;|<> ", "\t", "\n", "é", "\x1b[31m", "\x7f", "..", "${", "==", "\u202e", "😀"]
    )
    damaged = random.choice(
        [
            [word[:place] + odd + word[place:]],
            [word[:place] + odd + word[place:]],
            [word[:place] + word[place + 1 :]],
            [word, word],
            [],
            [word.replace("=", " = ")],
            [word.replace("=", ": ")],
            word.split("="),
            [word.partition("=")[0]],
            [f"={word.partition('=')[2]}"],
            [f"{word.partition('=')[0]}="],
            [word, ""],
            [word, " "],
            [word, random.choice(["flooding", "mlp", "resume", "0.1", "null"])],
        ]
    )
    return [*words[:at], *damaged, *words[at + 1 :]]
