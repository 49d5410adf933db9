"""Settings of what surrounds a run: none changes a fingerprint, and none holds a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from vibethinker.config import load
from vibethinker.errors import ConfigurationError
from vibethinker.plan import build


def test_where_steps_run_and_outputs_go_changes_no_fingerprint(tmp_path: Path) -> None:
    changes = [
        "storage.url=s3://bucket/team",
        "scaling.runner=ray",
        "scaling.ray.workspace=/data",
        "scaling.leases=false",
    ]
    plain, changed = (build(load("micro", overrides=o, environ={}), tmp_path) for o in ([], changes))
    assert changed.fingerprints == plain.fingerprints


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/team", "s3://bucket/team?token=secret"])
def test_an_address_with_a_secret_in_it_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="set them in the environment"):
        load("micro", overrides=[f"storage.url={url}"], environ={})


@pytest.mark.parametrize("url", ["bucket/team", "file://relative/folder"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        load("micro", overrides=[f"storage.url={url}"], environ={})


def test_a_cluster_s_own_workspace_needs_a_shared_store() -> None:
    with pytest.raises(ConfigurationError, match=r"set storage\.url"):
        load("micro", overrides=["scaling.ray.workspace=/data"], environ={})
