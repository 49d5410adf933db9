"""MLflow tracking that never stops or slows a run: a journal in the run's folder, delivered by a thread.

`RunTracker` is what a flow uses; `deliver` sends what an earlier run left behind. MLflow is imported when the
first operation is delivered.
"""

from __future__ import annotations

from vibethinker.tracking.addresses import without_password
from vibethinker.tracking.delivery import deliver
from vibethinker.tracking.tracker import RunTracker, StepTracker, store_uri

__all__ = ["RunTracker", "StepTracker", "deliver", "store_uri", "without_password"]
