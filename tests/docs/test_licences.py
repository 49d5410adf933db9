"""That docs/licences.md is up to date, and which licences there are."""

from __future__ import annotations

import re

import pytest

from docs.tools import licences

pytestmark = pytest.mark.slow


def test_the_page_has_the_licence_of_every_package_that_is_brought_along() -> None:
    rows = {tuple(line.strip("| ").split(" | ")) for line in licences.PAGE.read_text(encoding="utf-8").splitlines()}
    wanted = {(name, said, ", ".join(extras)) for name, (said, extras) in licences.brought().items()}
    assert wanted <= rows, "docs/licences.md is out of date: python -m docs.tools.licences"


def test_every_package_can_be_had_under_a_licence_that_programs_of_any_licence_may_use() -> None:
    said = {name: re.split(r" · | OR ", licence) for name, (licence, _) in licences.brought().items()}
    assert len(said) > 100
    strict = re.compile(r"\bA?GPL|GNU (Affero )?General|^not stated$")
    assert not {name: choices for name, choices in said.items() if all(strict.search(one) for one in choices)}
