"""Limits of cgroups, read from files as the two versions write them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from dlhw.runtime import cgroups

GROUPS = "sys/fs/cgroup"


def written(root: Path, files: Mapping[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(content))
    return root


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param(None, {}, None, id="no cgroups"),
        pytest.param("0::/\n", {}, None, id="no files"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="2, container"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="2, no limit"),
        pytest.param("0::/../..\n", {"cpu.max": "50000 100000\n"}, 0.5, id="2, group above the container's"),
        pytest.param("0::/a:b/c\n", {"a:b/c/cpu.max": "300000 100000\n"}, 3, id="2, own group"),
        pytest.param(
            "0::/a/b\n", {"a/cpu.max": "100000 50000\n", "a/b/cpu.max": "max 100000\n"}, 2, id="2, group above"
        ),
        pytest.param(
            "0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "100000 100000\n"}, 1, id="2, the smaller one"
        ),
        pytest.param("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None, id="2, another group"),
        pytest.param(
            "2:memory:/x\n1:cpu,cpuacct:/a/b\n",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2.5,
            id="1, group above",
        ),
        pytest.param(
            "1:cpu:/docker/0123\n",
            {"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "10000\n"},
            2,
            id="1, container",
        ),
        pytest.param(
            "1:cpu:/\n0::/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="1, no limit",
        ),
        pytest.param(
            "1:cpuset:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            None,
            id="1, another controller",
        ),
        pytest.param(
            "1:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            1,
            id="1, without a link to the controller",
        ),
        pytest.param(
            "\nno group\n0::/caf\udce9\x0c/a\n",
            {"caf\udce9\x0c/a/cpu.max": "100000 100000\n"},
            1,
            id="2, a name that is not UTF-8",
        ),
    ],
)
def test_cpu_quota_is_that_of_the_tightest_group_in_cores(
    own: str | None, files: Mapping[str, str], expected: float | None, tmp_path: Path
) -> None:
    process = {} if own is None else {"proc/self/cgroup": own}
    root = written(tmp_path, process | {f"{GROUPS}/{name}": content for name, content in files.items()})
    assert cgroups.cpu_quota(root) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param("0::/\n", {}, None, id="no files"),
        pytest.param("0::/\n", {"memory.max": "1000\n", "memory.current": "400\n"}, 600, id="2"),
        pytest.param("0::/\n", {"memory.max": "max\n", "memory.current": "400\n"}, None, id="2, no limit"),
        pytest.param(
            "0::/a\n",
            {
                "a/memory.max": "900\n",
                "a/memory.current": "100\n",
                "memory.max": "1000\n",
                "memory.current": "950\n",
            },
            50,
            id="2, another group uses it",
        ),
        pytest.param(
            "0::/\n",
            {
                "memory.max": "1000\n",
                "memory.current": "900\n",
                "memory.stat": "file 500\ninactive_file 400\nactive_file 100\n",
            },
            500,
            id="2, files that are not in use",
        ),
        pytest.param(
            "3:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "1000\n", "memory/a/memory.usage_in_bytes": "300\n"},
            700,
            id="1",
        ),
        pytest.param(
            "3:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "1000\n",
                "memory/a/memory.usage_in_bytes": "900\n",
                "memory/a/memory.stat": "inactive_file 100\ntotal_inactive_file 300\n",
            },
            400,
            id="1, files that are not in use",
        ),
    ],
)
def test_free_memory_is_that_of_the_tightest_group(
    own: str, files: Mapping[str, str], expected: int | None, tmp_path: Path
) -> None:
    files = {"proc/self/cgroup": own} | {f"{GROUPS}/{name}": content for name, content in files.items()}
    assert cgroups.free_memory(written(tmp_path, files)) == expected
