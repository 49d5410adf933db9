"""A file is left out unread only where nothing of it can be selected."""

from __future__ import annotations

import pytest

from tests.deselection import is_deselected

SLOW = "import pytest\n\npytestmark = pytest.mark.slow\n"
BOTH = "import pytest\n\npytestmark = [pytest.mark.service, pytest.mark.timeout(1800), pytest.mark.long]\n"
LATER = f"{SLOW}if pytest:\n    pytestmark = []\n"
NONE = "import pytest\n\n\n@pytest.mark.slow\ndef test_one():\n    pass\n"


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        (SLOW, "not slow"),
        (SLOW, "not (service or gpu or slow or long)"),
        (BOTH, "not long"),
        (BOTH, "slow and not (service or gpu)"),
    ],
)
def test_a_file_that_is_deselected_whole_is_left_out(text: str, expression: str) -> None:
    assert is_deselected(text, expression)


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        (SLOW, "slow"),
        (SLOW, "not long"),
        (SLOW, "long"),  # a test may be marked so by itself
        (BOTH, "not slow"),
        (BOTH, "not timeout(seconds=1)"),
        (LATER, "not slow"),
        (NONE, "not slow"),
        (SLOW, "not slow or"),
        ("def f(:", "not slow"),
    ],
)
def test_in_doubt_a_file_is_collected(text: str, expression: str) -> None:
    assert not is_deselected(text, expression)
