"""The types of the flows' parameters: what Prefect's UI makes its form of, and what its server refuses a run by.

`Overrides` is any part of the configuration, so its schema is the configuration's with nothing required and no
default told: a form that filled defaults in would lay them over the profile. Items of a list are whole, since a list
replaces the profile's. What a schema can't say (settings that must agree) is refused when the flow begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import WithJsonSchema

from vibethinker import config as configuration
from vibethinker.config import Config

# Defaults: a form sends what it shows, and null would be of no parameter's type.
NOTHING: dict[str, Any] = {}

STEPS = "^[a-z0-9]+(-[a-z0-9]+)*$"
KEPT = {
    *("type", "enum", "const", "pattern", "minLength", "maxLength", "minItems", "maxItems", "additionalProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}


def _partial(schema: Mapping[str, Any], models: Mapping[str, Any], item: bool = False) -> dict[str, Any]:
    """A setting's schema without references, defaults and, except for an item of a list, requirements."""
    if reference := schema.get("$ref"):
        return _partial({**models[reference.rpartition("/")[2]], **_words(schema)}, models, item)
    kept = {name: value for name, value in schema.items() if name in KEPT or (name == "required" and item)}
    if text := schema.get("description"):
        unit = schema.get("unit")
        kept["description"] = f"{text} [{unit}]" if unit else text
    if "properties" in schema:
        kept["properties"] = {name: _partial(one, models) for name, one in schema["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), Mapping):
            kept[name] = _partial(schema[name], models, item=True)
    for name in ("anyOf", "prefixItems"):
        if name in schema:
            kept[name] = [_partial(one, models, item) for one in schema[name]]
    return kept


def _words(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name in ("description", "unit")}


def _overrides() -> dict[str, Any]:
    """One field a section. What a section may hold stands in `then`, which the server heeds and the UI's form doesn't:
    it would be a page of hundreds of fields, and send `false` for every switch that nobody has touched."""
    whole = Config.model_json_schema(by_alias=True)
    del whole["properties"]["profile"]  # a parameter of its own
    schema = _partial(whole, whole["$defs"])
    for name, section in schema["properties"].items():
        text = section.pop("description")
        text = f"{text[0].upper()}{text[1:]}."
        if section.get("type") == "object":
            text += f" JSON with any of: {', '.join(section['properties'])}."
            section = {"type": "object", "if": True, "then": section}
        elif section.get("type") == "boolean":
            text += " JSON: true or false."
            section = {"if": True, "then": section}
        schema["properties"][name] = {**section, "title": name, "description": text}
    text = 'Settings laid over the profile, as in {"signal": {"objective": {"group_size": 8}}}; empty for the profile.'
    return {**schema, "description": text}


Profile = Annotated[
    str,
    WithJsonSchema(
        {"type": "string", "enum": configuration.profiles(), "description": "The profile that the settings come from."}
    ),
]
Overrides = Annotated[dict[str, Any] | None, WithJsonSchema(_overrides())]
Workspace = Annotated[
    str | None,
    WithJsonSchema(
        {
            "type": "string",
            "description": "Folder of outputs and runs on the worker's machine; the worker's own if it is empty.",
        }
    ),
]
Refresh = Annotated[
    list[str] | None,
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "pattern": STEPS},
            "description": "Steps to run again although their output is there, such as fusion or signal-1.",
        }
    ),
]
Replaced = Annotated[
    dict[str, str] | None,
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "propertyNames": {"pattern": STEPS},
            "description": 'Model folders that take the place of steps\' outputs, as in {"fusion": "/models/mine"}.',
        }
    ),
]
