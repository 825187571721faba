"""Find the words that a misspelt word was probably meant to be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")

MOST = 5
"""The largest number of words that a hint shows."""
LONGEST_LIST = 12
"""Longer lists of valid words are not shown in full."""
MISSING_PART = 0.25
WRONG_PREFIX = 1.5
UNUSED = 0.6
"""Added to the distance of keys that the config does not have, and of Hydra's, so that the config's own come first."""
TIED = 0.5
"""A hint shows the words that are at most so much further away than the nearest."""


@dataclass(frozen=True)
class Key:
    """A key or group that exists: in the config, or with the options and experiments in ``owners``."""

    name: str
    owners: tuple[str, ...] = ()


def distance(one: str, other: str) -> int:
    """Return the optimal string alignment distance; case is ignored, and ``-`` equals ``_``.

    It is the number of characters that are missing, extra, replaced or transposed with their neighbour.
    """
    a, b = (word.casefold().replace("-", "_") for word in (one, other))
    rows = [list(range(len(b) + 1))]
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            cost = min(rows[i - 1][j] + 1, row[j - 1] + 1, rows[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                cost = min(cost, rows[i - 2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def nearest(word: str, valid: Iterable[str]) -> list[str]:
    """Return the valid words that are similar to ``word``, the nearest first."""
    return _best([(score, name) for name in valid if (score := _word_score(word, name)) is not None])


def nearest_keys(name: str, keys: Iterable[Key]) -> list[Key]:
    """Return the keys that are similar to ``name``, the nearest first.

    A part of ``name`` may be misspelt, its prefix missing (``epochs`` for ``trainer.epochs``) or wrong (``model.lr``).
    """
    scored = []
    for key in keys:
        score = _key_score(name, key.name, in_config=not key.owners)
        if score is not None:
            is_hydra = key.name.startswith("hydra") and not name.startswith("h")
            scored.append((score + (UNUSED if key.owners or is_hydra else 0), key))
    return _best(scored)


def _best(scored: Sequence[tuple[float, Item]]) -> list[Item]:
    best = min((score for score, _ in scored), default=0.0)
    return [item for score, item in sorted(scored, key=lambda pair: pair[0]) if score <= best + TIED][:MOST]


def _word_score(word: str, valid: str, *, is_likely: bool = False) -> float | None:
    """Return how different two words are; None if too different.

    Words of one letter are similar only if ``is_likely``.
    """
    longest = max(len(word), len(valid))
    scores: list[float] = []
    if abs(len(word) - len(valid)) <= 3:
        errors = distance(word, valid)
        if errors <= (1 if longest <= 5 else 2 if longest <= 8 else 3) and (errors < longest or is_likely):
            scores.append(errors)
    if len(word) >= 3 and word.casefold() in valid.casefold():
        is_start = valid.casefold().startswith(word.casefold())
        scores.append((1.2 if is_start else 2.5) + 0.01 * (len(valid) - len(word)))
    return min(scores, default=None)


def _key_score(name: str, key: str, *, in_config: bool) -> float | None:
    if abs(len(name) - len(key)) <= 1 < len(name) - 1 and distance(name, key) <= 1:  # also of the separator
        return distance(name, key)
    parts, key_parts = re.split(r"[./]", name), re.split(r"[./]", key)
    missing = len(key_parts) - len(parts)
    if missing < 0 and not ("." in key and "." in name):  # a part too many
        return None
    compared = key_parts[max(missing, 0) :]
    scores = [
        _word_score(part, other, is_likely=in_config and not missing)
        for part, other in zip(parts, compared, strict=False)
    ]
    if all(score is not None for score in scores):
        extra = MISSING_PART * missing if missing >= 0 else -WRONG_PREFIX * missing
        return sum(score for score in scores if score is not None) + extra
    last = _word_score(parts[-1], key_parts[-1]) if len(parts) > 1 and len(key_parts) > 1 else None
    return None if last is None else last + WRONG_PREFIX


def expected_one_of(word: str, valid: Sequence[str], *, shown_by: str = "") -> str:
    """Return `` (did you mean ...?); expected one of ...`` for an invalid word.

    A list of more than twelve words is not shown, only how many there are. ``shown_by`` is the flag that shows it.
    """
    if not valid:
        return "; none is valid here"
    near = nearest(word, valid)
    hint = f" (did you mean {either(near)}?)" if near else ""
    if len(valid) <= LONGEST_LIST:
        return f"{hint}; expected one of {', '.join(valid)}"
    return f"{hint}; {f'{shown_by} lists all {len(valid)}' if shown_by else f'expected one of {len(valid)} names'}"


def either(words: Sequence[str], *, most: int = MOST) -> str:
    """Return ``a, b or c``; of more than ``most`` words, the last are only counted."""
    *others, last = words if len(words) <= most else [*words[: most - 1], f"{len(words) - most + 1} others"]
    return f"{', '.join(others)} or {last}" if others else last
