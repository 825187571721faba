"""The digits that come with scikit-learn: content, split, missing file, imports."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dlhw.data.digits import TEST_FROM, digits
from dlhw.errors import UsageError
from support.caches import forget
from support.datasets import options


def test_digits_equal_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    reference = load_digits()
    x, y = reference.images.astype(np.uint8)[:, None], reference.target.astype(np.int64)
    content = b"".join(
        array.tobytes() for rows in (slice(TEST_FROM), slice(TEST_FROM, None)) for array in (x[rows], y[rows])
    )
    data = digits(data_dir="", **options("digits"))
    assert data.sha256 == hashlib.sha256(content).hexdigest()
    assert (len(data.train), len(data.val), len(data.test)) == (1132, 283, 382)
    assert data.shape == (1, 8, 8)
    np.testing.assert_array_equal(data.test.x, x[TEST_FROM:])
    np.testing.assert_array_equal(data.test.y, y[TEST_FROM:])
    np.testing.assert_array_equal(y[TEST_FROM:][:120], y[:120])  # the next writer starts the same sequence of labels


def test_the_test_part_of_digits_does_not_depend_on_the_seed() -> None:
    one, two = (digits(data_dir="", **options("digits", seed=seed)) for seed in (1, 2))
    assert torch.equal(one.test.x, two.test.x)
    assert not torch.equal(one.val.x, two.val.x)
    assert one.sha256 == two.sha256


def test_the_error_for_a_missing_digits_file_gives_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    forget()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(UsageError, match=r"digits\.csv\.gz: cannot be read .*reinstall scikit-learn"):
        digits(data_dir="", **options("digits"))


def test_reading_digits_imports_neither_scikit_learn_nor_torchvision() -> None:
    program = (
        "import sys\n"
        "from dlhw.data import digits, idx\n"
        "digits.digits(data_dir='', seed=0, mean=0.3, std=0.4, validation_fraction=0.2)\n"
        "assert not {'sklearn', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
