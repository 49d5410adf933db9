"""MLflow tracking that never stops or slows a run: a journal in the run's folder, delivered by a thread.

`RunTracker` is what a flow uses; `deliver_left_over` sends what earlier runs left behind. MLflow is imported when the
first operation is delivered.
"""

from __future__ import annotations

from vibethinker.tracking.addresses import without_password
from vibethinker.tracking.delivery import deliver_left_over
from vibethinker.tracking.tracker import RunTracker, StepTracker, store_uri

__all__ = ["RunTracker", "StepTracker", "deliver_left_over", "store_uri", "without_password"]
