"""A specialist that trains nothing, for benchmarks/scale.py: it takes the real one's place where this is imported,
which a worker host does by VIBETHINKER_PRELOAD.
"""

from __future__ import annotations

from vibethinker import steps


def run(context: steps.StepContext) -> steps.Metrics:
    """Write one small file."""
    (context.output / "value.txt").write_text(context.step_id)
    return {"value": 1}


steps.STEP_FUNCTIONS["specialist"] = "scale_stub:run"
