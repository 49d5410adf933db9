"""Making a new SQLite store of MLflow, whole or not at all.

MLflow brings a new file up to date by some forty migrations, which take seconds and don't survive an end in their
middle: a second process that opens the file meanwhile, or a kill, leaves a store that refuses whoever opens it, for
good. So it is made under another name, by one process at a time, and renamed.
"""

from __future__ import annotations

import os
from pathlib import Path

from vibethinker import locks

SCHEME = "sqlite:///"


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other."""
    return Path(uri.removeprefix(SCHEME).partition("?")[0]) if uri.startswith(SCHEME) else None


def create_store(path: Path, artifacts: Path) -> None:
    """Make the store if it isn't there.

    Args:
        artifacts: where MLflow keeps the files of its default experiment.
    """
    if _made(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(path.with_name(f"{path.name}.lock")):
        if _made(path):
            return
        aside = path.with_name(f"{path.name}.new")
        for left in (aside, aside.with_name(f"{aside.name}-journal")):
            left.unlink(missing_ok=True)
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore(f"{SCHEME}{aside}", artifacts.resolve().as_uri()).engine.dispose()
        os.replace(aside, path)


def _made(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
