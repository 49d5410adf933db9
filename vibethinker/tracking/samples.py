"""Generations that a person may read in MLflow: good ones, bad ones, and those about which there is dispute.

They are chosen from what a step has published: generations.jsonl of an evaluation and samples.jsonl of a signal stage,
whose rows are problems with samples. Of each set, or update, come first the problems that are disputed: their
samples disagree, or the verifier has failed or run out of time on one; then those solved always, then those never
solved. The table has MLflow's own form, so that its pages and `load_table` show it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vibethinker.verification.schema import LEFT_OUT, RIGHT

EACH = 3  # problems of each sort, of each set or update
TEXT = 4000  # characters of a text
UNDECIDED = {*LEFT_OUT, "timeout"}
COLUMNS = ("set", "sort", "right", "problem", "gold", "verdict", "extracted", "truncated", "tokens", "text")


def table(file: Path) -> dict[str, Any]:
    """The table of a file of generations, as `mlflow.log_table` writes it.

    Raises:
        FileNotFoundError: it is gone.
    """
    with file.open(encoding="utf-8") as lines:
        chosen = list(select(json.loads(line) for line in lines))
    return {"columns": list(COLUMNS), "data": [[row[name] for name in COLUMNS] for row in chosen]}


def select(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The table's rows: one sample of a problem, and two that contradict each other of a disputed one."""
    taken: dict[tuple[str, str], int] = {}
    for row in rows:
        samples = row["samples"]
        if not samples:
            continue
        right = [sample for sample in samples if sample["verdict"] in RIGHT]
        undecided = [sample for sample in samples if sample["verdict"] in UNDECIDED]
        wrong = [sample for sample in samples if sample not in right and sample not in undecided]
        if undecided or (right and wrong):
            sort, shown = "disputed", [*undecided[:1], *right[:1], *wrong[:1]][:2]
        else:
            sort, shown = ("good", right[:1]) if right else ("bad", wrong[:1])
        group = str(row.get("set", f"update {row.get('update', '')}"))
        taken[group, sort] = taken.get((group, sort), 0) + 1
        if taken[group, sort] > EACH:
            continue
        for sample in shown:
            yield {
                "set": group,
                "sort": sort,
                "right": f"{row.get('correct', len(right))} of {row.get('count', len(samples))}",
                "problem": _cut(row["problem"]),
                "gold": row["gold"],
                "verdict": sample["verdict"],
                "extracted": sample.get("extracted"),
                "truncated": sample["truncated"],
                "tokens": sample["tokens"],
                "text": _cut(sample["text"]),
            }


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[: TEXT - 2]} …"
