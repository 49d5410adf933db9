"""What Prefect imports by the entry point `prefect.collections`: this environment's process worker.

Prefect's servers and flows import it too, which have no use for a worker and would wait a second for it. Whoever looks
for a worker's class has imported the base of all of them.
"""

from __future__ import annotations

import sys

if "prefect.workers.base" in sys.modules:
    from flows import worker  # noqa: F401
