"""What a wrong setting is told as: one sentence with its full name and, for an unknown name, the nearest one."""

from __future__ import annotations

import difflib
import unicodedata
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem of a validation as one sentence with the setting's full name."""
    first = error.errors()[0]
    location = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        parent = _model_at(root, first["loc"][:-1])
        names = [f.alias or n for n, f in parent.model_fields.items()] if parent else []
        return f"There is no setting {location!r}; {did_you_mean(str(first['loc'][-1]), names)}."
    if first["type"] == "value_error":
        return f"{str(first['ctx']['error']).rstrip('.')}."
    if first["type"] == "missing":
        return f"The setting {location} is missing: set it, since it has no default."
    return f"The setting {location} can't be {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _model_at(root: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = root
    for part in location:
        if model is None or isinstance(part, int):
            continue
        field = next((f for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        model = _model_in(field.annotation) if field else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, get_args(annotation)) if m), None)


def did_you_mean(name: str, valid: list[str]) -> str:
    """The end of a sentence about a name that doesn't exist."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}" if near else "valid names are " + ", ".join(valid)


def printable(text: str) -> str:
    """A text that others wrote, as a terminal may be given it: control characters, and marks that reorder what is
    read, as escapes; line breaks and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _UNPRINTABLE else _escape(c) for c in text)


_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()
