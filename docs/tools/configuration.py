"""Writes docs/configuration.md from the settings' own models: `python -m docs.tools.configuration`."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vibethinker.config import ENVIRONMENT, WORKSPACE_VARIABLES, Config
from vibethinker.plugins import BUILT_IN, Named

PAGE = Path(__file__).parents[1] / "configuration.md"
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "entries ≥"}
_HEAD = """\
# Configuration

<!-- Written by `python -m docs.tools.configuration` from the settings' models: change those, not this page. -->

All settings, with their defaults. A run's configuration is put together from a profile, a file (`--config`), the
environment and the command line (`--set a.b=value`), in this order; later ones win, key by key. Unknown keys are
refused. `vibethinker plan` checks a configuration and runs nothing; a run keeps its own as `runs/<run id>/config.yaml`.
Profiles change many of these defaults: they are the files of `vibethinker/profiles`.

The last column says where a default comes from: *1.5B* is the first report (arXiv 2511.06221), *3B* the second (arXiv
2606.16140), *seed* the shell pipeline that this project replaces, with the environment variable that still sets it,
*choice* this project, since the papers don't say. A setting marked *how* changes how a step runs and never what it
computes, so it is in no fingerprint: changing it makes nothing run again.
"""


def page() -> str:
    """The whole page."""
    parts, first = [_HEAD], dict[type[BaseModel], str]()
    for path, model in _models(Config, ""):
        parts.append(_section(path, model) if model not in first else f"## {path}\n\nAs `{first[model]}`.\n")
        first.setdefault(model, path)
    return "\n".join([*parts, _environment()])


def _models(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Path → model, of this one and of all below it, in the order of their fields."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner, many in _inner(field.annotation):
            yield from _models(inner, f"{path}{'.' if path else ''}{field.alias or name}{many}")


def _inner(annotation: Any, many: str = "") -> Iterator[tuple[type[BaseModel], str]]:
    """The models within a type, each with how a path goes on into one of many."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, many
    elif (origin := get_origin(annotation)) is Annotated:
        yield from _inner(get_args(annotation)[0], many)
    elif origin in (tuple, list):
        yield from _inner(get_args(annotation)[0], many + ".N")
    elif origin is dict:
        yield from _inner(get_args(annotation)[1], many + ".NAME")
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _inner(one, many)


def _section(path: str, model: type[BaseModel]) -> str:
    rows = [_row(field.alias or name, field) for name, field in model.model_fields.items()]
    said = " ".join((model.__doc__ or "").split())
    head = ["| setting | what it says | values | default | from |", "|---|---|---|---|---|"]
    return "\n".join([f"## {path or 'Top level'}", "", said, "", *head, *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    unit = f" ({extra['unit']})" if extra.get("unit") else ""
    how = ", *how*" if extra.get("execution") else ""
    kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    values = ", ".join([_type(kind), *_bounds(field)])
    source = "" if values.startswith("section") else str(extra.get("source", ""))
    cells = [f"`{name}`", f"{field.description or ''}{unit}", values, _default(field), f"{source}{how}".lstrip(", ")]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " · ".join(f"`{value}`" for value in inner)
    if origin is Annotated:
        groups = [BUILT_IN[mark.group] for mark in inner[1:] if isinstance(mark, Named)]
        return " · ".join(f"`{name}`" for name in groups[0]) + ", or a plugin's" if groups else _type(inner[0])
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _type(one) for one in inner)
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}" if len(inner) == 1 or inner[-1] is Ellipsis else "pair"
    if origin is dict:
        return f"{_type(inner[0])} → {_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {bool: "yes or no", int: "whole number", float: "number", str: "text", Any: "anything"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(field: FieldInfo) -> Iterable[str]:
    for bound in field.metadata:
        for name, sign in _BOUNDS.items():
            if (value := getattr(bound, name, None)) is not None:
                yield f"{sign} {value:g}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def _environment() -> str:
    rows = [f"| `{variable}` | {', '.join(f'`{path}`' for path in paths)} |" for variable, paths in ENVIRONMENT.items()]
    rows += [f"| `{variable}` | the workspace, where `--workspace` isn't given |" for variable in WORKSPACE_VARIABLES]
    said = "`*` is every stage; a stage that a configuration lacks isn't set."
    return "\n".join(["## Environment variables", "", said, "", "| variable | sets |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
