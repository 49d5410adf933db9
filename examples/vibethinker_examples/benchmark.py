"""A benchmark: what a clock shows some hours later. Used by `vibethinker evaluate MODEL --benchmark clock`, or by
naming `clock` in `data.evaluation`.

Its problems are a file beside this one; `hub` in place of `path` names a commit of a data set (docs/data.md).
"""

from pathlib import Path

CLOCK = {
    "source": {
        "path": str(Path(__file__).with_name("clock.jsonl")),
        "columns": {"problem": "question", "answer": "hour", "id": "id"},
        "licence": "MIT",
    },
    "protocol": {"samples": 4, "temperature": 1.0, "top_p": 0.95, "max_tokens": 1024},
}
