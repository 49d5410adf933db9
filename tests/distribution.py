"""Which tests one xdist process runs, and in which order, under `--dist loadfile`.

A file is run by one process, as there; files whose tests look at one run of the recipe, or use one Prefect server, are
run by one process too, since every process else makes a run and a server of its own. What waits for servers begins
first, then what computes for long, so that no process is left with it when the others are through.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadFileScheduling

# In tests/flows; who uses these fixtures of tests/flows/conftest.py, in this order: test_pipeline looks at the run
# before others have begun further ones in its workspace.
SHARING = {
    "micro": (
        "test_pipeline", "test_faults", "test_approvals", "test_security", "test_disk", "test_storage", "test_budget",
        "test_experiment", "test_export",
    ),
    "api": (
        "test_automations", "test_data", "test_databases", "test_interruption", "test_leases", "test_outages",
        "test_retrying", "test_worker",
    ),
}  # fmt: skip
_GROUPS = {f"tests/flows/{file}.py": fixture for fixture, files in SHARING.items() for file in files}
_PLACES = {file: place for place, file in enumerate(_GROUPS)}


class Distribution(LoadFileScheduling):
    """See the module."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _GROUPS.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Distribution | None:
    """Take the place of `loadfile`."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # by the number of tests in a file
    return Distribution(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of whole files, those that share a fixture first, then others with a server, then slow ones; in one process the
    usual order stays."""
    if not hasattr(config, "workerinput"):
        return
    ranks: dict[str, int] = {}
    for item in items:
        rank = next((i for i, name in enumerate(("service", "slow")) if item.get_closest_marker(name)), 2)
        ranks[_file(item)] = min(rank, ranks.get(_file(item), rank))
    items.sort(key=lambda item: (_PLACES.get(_file(item), len(_PLACES)), ranks[_file(item)]))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
