"""How settings are declared, and which of them name an output: what all models of the configuration are made of. Which
settings there are, `vibethinker.settings`, `vibethinker.operations` and `vibethinker.data.settings` say.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of all settings: immutable, defaults validated, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, populate_by_name=True)

    def semantic(self) -> dict[str, Any]:
        """The settings that determine what is computed, as plain JSON values."""
        values = self.model_dump(mode="json", by_alias=True)
        return _without_execution(self, values)


def _without_execution(model: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        child, key = getattr(model, name), field.alias or name
        said = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if said.get("execution") or (said.get("later") and child == field.get_default(call_default_factory=True)):
            continue
        if isinstance(child, BaseModel):
            kept[key] = _without_execution(child, values[key])
        elif isinstance(child, (list, tuple)) and child and isinstance(child[0], BaseModel):
            kept[key] = [_without_execution(c, v) for c, v in zip(child, values[key], strict=True)]
        else:
            kept[key] = values[key]
    return kept


def setting(
    default: Any = ..., text: str = "", *, unit: str = "", source: str = "choice", execution: bool = False,
    later: bool = False, **kw: Any,
) -> Any:  # fmt: skip
    """A documented field: its meaning, unit, the source of its default, and whether it is execution only.

    One that came `later`, and whose default is what was done before, is named in fingerprints only where it differs
    from it, so that what was made before stays valid.
    """
    extra: dict[str, Any] = {"unit": unit, "source": source, "execution": execution, "later": later}
    if callable(default):
        return Field(default_factory=default, description=text, json_schema_extra=extra, **kw)
    return Field(default, description=text, json_schema_extra=extra, **kw)
