"""Fault points do nothing unless they are armed, and then once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import ROOT
from vibethinker import faults

PASSING = "from vibethinker import faults\nfor _ in range(3): faults.point('publish.rename', 'data')\nprint('alive')"


def passed(fault: str | None, notes: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "VIBETHINKER_FAULT_FILE": str(notes), **({"VIBETHINKER_FAULT": fault} if fault else {})}
    return subprocess.run([sys.executable, "-c", PASSING], env=environ, capture_output=True, text=True, cwd=ROOT)


def test_nothing_happens_and_nothing_is_noted_where_no_fault_is_asked_for(tmp_path: Path) -> None:
    assert passed(None, tmp_path / "notes").stdout == "alive\n"
    assert not (tmp_path / "notes").exists()


def test_it_dies_at_the_passing_that_was_named_and_not_again(tmp_path: Path) -> None:
    fault, notes = "publish.rename:2:kill", tmp_path / "notes"
    assert passed(fault, notes).returncode == -9
    assert [line.split()[:2] for line in notes.read_text().splitlines()] == [["publish.rename", "data"]] * 2
    assert passed(fault, notes).stdout == "alive\n"


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_it_meets_a_failing_disk(tmp_path: Path, error: str) -> None:
    done = passed(f"publish.rename:1:{error}", tmp_path / "notes")
    assert done.returncode == 1
    assert "injected at publish.rename" in done.stderr


def test_the_list_of_points_has_every_one_in_the_code() -> None:
    text = "".join(p.read_text() for room in ("vibethinker", "tasks") for p in (ROOT / room).rglob("*.py"))
    found = set(re.findall(r'faults\.point\("([a-z.]+)"', text))
    found |= {
        f"{at}.{end}" for at in ("publish", "update") for end in re.findall(r'faults\.point\(f"\{at\}\.(\w+)"', text)
    }
    assert found == set(faults.POINTS)
