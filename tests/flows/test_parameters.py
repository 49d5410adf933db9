"""The schema by which Prefect's server refuses a run's parameters."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.utilities.callables import parameter_schema

from flows import pipeline
from vibethinker.config import profiles

SCHEMA = parameter_schema(pipeline.pipeline).model_dump()
CONFIG = SCHEMA["properties"]["config"]


def nodes(schema: Any) -> list[dict[str, Any]]:
    """All parts of a schema that are objects."""
    if isinstance(schema, list):
        return [found for part in schema for found in nodes(part)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for part in schema.values() for found in nodes(part))]


@pytest.mark.parametrize("name", profiles())
def test_what_every_profile_says_may_be_laid_over_one(name: str) -> None:
    text = (resources.files("vibethinker") / "profiles" / f"{name}.yaml").read_text()
    jsonschema.validate(yaml.safe_load(text), CONFIG)
    assert name in SCHEMA["properties"]["profile"]["enum"]


@pytest.mark.parametrize(
    "config",
    [
        {"signl": {}},
        {"signal": {"objektive": {}}},
        {"signal": {"stages": [{"name": "math"}]}},  # without its context
        {"spectrum": {"sft": {"steps": "many"}}},
        {"seed": -1},
        {"deterministic": 1},
        {"signal": None},
    ],
)
def test_what_no_profile_could_say_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, CONFIG)


def test_a_form_that_is_sent_as_it_was_opened_changes_nothing() -> None:
    # The UI sends each default, `false` for each switch, and fills a section that has fields of its own.
    assert not [node for node in nodes(CONFIG["properties"]) if "default" in node]
    fields = list(CONFIG["properties"].values())
    assert not [field for field in fields if field.get("type") == "boolean" or "properties" in field]
    assert all(field["title"] and field["description"] for field in fields)
    for name, parameter in SCHEMA["properties"].items():
        jsonschema.validate(parameter["default"], parameter)
        assert parameter["description"], name
