"""How every benchmark tells its result: one JSON object with the machine, on stdout and in a file."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any


def tell(result: dict[str, Any], output: Path | None) -> None:
    """Print the result and write it to `output`, if given."""
    text = json.dumps(result | {"machine": f"{os.cpu_count()} cores, {platform.machine()}"}, indent=1)
    print(text)
    if output:
        output.write_text(text + "\n")
