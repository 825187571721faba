"""The words and keys that a misspelt one was probably meant to be."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import yaml
from hydra._internal.utils import create_config_search_path

from dlhw.cli import composition, messages
from dlhw.runtime.hints import Key, distance, either, expected_one_of, nearest, nearest_keys
from support.composing import compose_with_hydra
from support.config_files import CONF, FILES, option_names

GROUPS = sorted({path.parent.as_posix() for path in FILES} - {"."})
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "1234567890")
TYPOS, RIGHT_SHARE = 300, 0.99


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("mlp", "mlp", 0),
        ("MLP", "mlp", 0),
        ("output-dir", "output_dir", 0),
        ("mpl", "mlp", 1),
        ("mp", "mlp", 1),
        ("mllp", "mlp", 1),
        ("mkp", "mlp", 1),
        ("optimiser", "optimizer", 1),
        ("", "mlp", 3),
        ("ca", "abc", 3),  # a transposed pair is not edited again
    ],
)
def test_distance_counts_missing_extra_replaced_and_transposed_characters(one: str, other: str, expected: int) -> None:
    assert distance(one, other) == distance(other, one) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("RESNET18", ["resnet18"]),
        ("resnet", ["resnet18", "resnet34", "resnet34_scratch"]),
        ("crossentropy", ["cross_entropy"]),
        ("zzz", []),
        ("x", []),
    ],
)
def test_nearest_words(word: str, expected: list[str]) -> None:
    assert nearest(word, ["cross_entropy", "d", "resnet34_scratch", "resnet18", "resnet34"]) == expected


def test_no_more_than_five_words_are_shown() -> None:
    names = [f"experiment{number}" for number in range(30)]
    assert len(nearest("experiment", names)) == 5
    assert either(names) == "experiment0, experiment1, experiment2, experiment3 or 26 others"
    assert either(["a"]) == "a"
    assert either(["a", "b", "c"]) == "a, b or c"


def test_expected_one_of_suggests_the_nearest_word_and_lists_a_few() -> None:
    assert expected_one_of("mpl", ["cnn", "mlp"]) == " (did you mean mlp?); expected one of cnn, mlp"
    assert expected_one_of("zzz", ["cnn", "mlp"]) == "; expected one of cnn, mlp"
    names = [f"name{number}" for number in range(47)]
    assert expected_one_of("zzz", names) == "; expected one of 47 names"
    assert expected_one_of("zzz", names, shown_by="--help") == "; --help lists all 47"


KEYS = [Key("optimizer"), Key("optimizer.lr"), Key("trainer.epochs"), Key("b", ("experiment=flooding",)), Key("d")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("epochs", ["trainer.epochs"]),
        ("model.lr", ["optimizer.lr"]),
        ("optimiser.lr", ["optimizer.lr"]),
        ("trainer_epochs", ["trainer.epochs"]),
        ("opt.lr", ["optimizer.lr"]),
        ("bb", ["b"]),
        ("e", ["d"]),  # of single letters, only keys of the config
        ("trainer.zzz", []),
    ],
)
def test_nearest_keys(name: str, expected: list[str]) -> None:
    assert [key.name for key in nearest_keys(name, KEYS)] == expected


def typos(word: str) -> list[str]:
    """Return the word with two characters transposed, one missing, doubled or replaced, and in capitals."""
    result = {word.upper(), word.capitalize()}
    for i, character in enumerate(word):
        row = next((row for row in KEYBOARD if character in row), character)
        place = row.index(character)
        result |= {word[:i] + word[i + 1 : i + 2] + character + word[i + 2 :], word[:i] + word[i + 1 :]}
        result |= {word[:i] + other + word[i + 1 :] for other in (character * 2, *row[max(place - 1, 0) : place + 2])}
    return sorted(result - {word, ""})


def words() -> Iterator[tuple[str, str, str]]:
    """Yield the group, kind and name of every group, option and key in the config files."""
    for group in GROUPS:
        yield group, "group", group
        for option in option_names(group):
            yield group, "option", option
            if not group.startswith("hydra/"):
                for key in yaml.safe_load((CONF / group / f"{option}.yaml").read_text()) or {}:
                    if key not in ("_target_", "defaults", "hydra") and (group != "experiment" or key not in GROUPS):
                        yield group, "key", key if group == "experiment" else f"{group}.{key}"


def test_hints_contain_the_right_word_for_nearly_all_typos() -> None:
    composition.prepare()
    loader = composition.Loader(create_config_search_path(str(CONF)))
    cfg = compose_with_hydra()
    known = messages.known_keys(loader, cfg)
    names = {key.name for key in known}
    draw = random.Random(0)
    wrong = []
    for group, kind, word in draw.choices(sorted(set(words())), k=TYPOS):
        prefix, dot, last = word.rpartition(".")
        typo = prefix + dot + draw.choice(typos(last))
        if kind == "option":
            valid = option_names(group)
            right = typo in valid or word in nearest(typo, valid)
        else:
            right = typo in names or word in [key.name for key in nearest_keys(typo, known)]
        if not right:
            wrong.append((kind, word, typo))
    assert len(wrong) <= (1 - RIGHT_SHARE) * TYPOS, wrong
