"""What Prefect imports by the entry point `prefect.collections`: this environment's process worker.

Prefect's servers and flows import it too, which have no use for a worker and would wait a second for it. Whoever looks
for a worker's class has imported the base of all of them. A worker of somebody else's that has taken the place of
Prefect's stays.
"""

from __future__ import annotations

import sys

if "prefect.workers.base" in sys.modules:
    from prefect.utilities.dispatch import lookup_type
    from prefect.workers.base import BaseWorker
    from prefect.workers.process import ProcessWorker

    found = lookup_type(BaseWorker, ProcessWorker.type)
    if found is ProcessWorker:
        from flows import worker  # noqa: F401
    elif "flows.worker" not in {base.__module__ for base in found.__mro__}:
        print(
            f"{found.__module__}.{found.__name__} stays the worker of the type process, and may kill flow runs of "
            "vibethinker when it ends: derive it from flows.worker.Worker to have them save.",
            file=sys.stderr,
        )
