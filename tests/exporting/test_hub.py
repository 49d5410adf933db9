"""Uploads by the hub's real client to a hub on loopback."""

from __future__ import annotations

import pytest

from tests.exporting.conftest import export
from tests.exporting.fake_hub import FakeHub

TOKEN = "hf_" + "aB3dE5fG7h" * 3


@pytest.fixture
def hub():
    with FakeHub(TOKEN) as one:
        yield one


@pytest.fixture
def environ(tmp_path):
    """Of the hub's client, without anything of this machine's."""
    return {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
            "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip


@pytest.mark.slow
def test_an_export_is_uploaded_whole(shaped, hub, environ, tmp_path):
    output = tmp_path / "out"
    done = export(
        shaped("qwen3"), "--format", "hf", "--output", output, "--push", "someone/small",
        environ={**environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/someone/small/commit/" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert hub.repos == {"someone/small": True}  # private, since nobody asked for more
    assert hub.files["someone/small"] == {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.slow
def test_an_expired_token_is_refused_in_a_sentence_before_any_work(shaped, hub, environ, tmp_path):
    expired = TOKEN[::-1].replace("_fh", "") + "x"
    done = export(
        shaped("qwen3"), "--format", "hf", "--output", tmp_path / "out", "--push", "someone/small",
        environ={**environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": f"hf_{expired}"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "expired or revoked" in done.stderr and "hf auth login" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and expired not in done.stderr
    assert not (tmp_path / "out").exists() and hub.seen == [("GET", "/api/whoami-v2")]


@pytest.mark.slow
def test_without_a_token_nothing_is_asked(shaped, hub, environ, tmp_path):
    done = export(
        shaped("qwen3"), "--format", "hf", "--output", tmp_path / "out", "--push", "someone/small",
        environ={**environ, "HF_ENDPOINT": hub.url},
    )  # fmt: skip
    assert done.returncode == 2 and "no token" in done.stderr and hub.seen == []


def test_a_hub_that_is_away_is_told(monkeypatch):
    from huggingface_hub import HfApi

    from vibethinker.errors import InfrastructureError
    from vibethinker.exporting.hub import check_push

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(HfApi, "whoami", lambda self: (_ for _ in ()).throw(ConnectionError("refused")))
    with pytest.raises(InfrastructureError, match=r"can't be reached for someone/small \(refused\)"):
        check_push("someone/small")
