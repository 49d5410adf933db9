"""The reference of all settings is that of the models."""

from __future__ import annotations

from docs.tools import configuration


def test_the_configuration_reference_is_that_of_the_models() -> None:
    written = configuration.PAGE.read_text(encoding="utf-8")
    assert written == configuration.page(), "docs/configuration.md is out of date: python -m docs.tools.configuration"


def test_every_setting_of_the_reference_has_a_meaning() -> None:
    rows = [line for line in configuration.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert not [row for row in rows if row.split("|")[2].strip() == ""]
