"""Files of hub data sets, fetched by the hub's own client from a fake hub into a cache of each test's own."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import close_session

from tests.data.fake_hub import FakeHub
from vibethinker.data.hub import fetch
from vibethinker.data.presets import presets
from vibethinker.data.readers import LAYOUT, files_of
from vibethinker.data.settings import DataFile, Hub
from vibethinker.errors import ConfigurationError, InfrastructureError, VibeThinkerError

pytestmark = pytest.mark.slow

ID, COMMIT, OTHER = "someone/problems", "5" * 40, "6" * 40
TOKEN = "hf_averysecrettoken"
FILES = {
    "README.md": b"# Problems\n",
    "data/train-00001-of-00002.parquet": b"second",
    "data/train-00000-of-00002.parquet": b"first",
    "data/test-00000-of-00001.parquet": b"held out",
    "extra.jsonl": b'{"problem": "1+1?"}\n',
}
SHARDS = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
BOTH_WAYS = pytest.mark.parametrize("files", [("extra.jsonl",), ("data/train-*.parquet",)], ids=["names", "patterns"])


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[FakeHub]:
    """A fake hub with the commit of one data set, known to the hub's client, which has a token and an empty cache and
    doesn't wait before it tries again."""
    with FakeHub() as fake:
        fake.add(ID, COMMIT, FILES)
        # The client reads its environment when it is imported.
        for name, value in {
            "ENDPOINT": fake.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": fake.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        for module in ("utils._http", "file_download"):
            monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=lambda _: None))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1,localhost")
        close_session()
        yield fake
        close_session()


@pytest.fixture(params=["gone", "switched off"])
def away(request, monkeypatch):
    """A function that takes the network away, and what the client holds in memory, as if a new process began."""

    def leave(fake: FakeHub) -> None:
        monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
        if request.param == "gone":
            fake.stop()
        else:
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    return leave


def wanted(*files: str, name: str = ID, commit: str = COMMIT) -> Hub:
    return Hub(id=name, revision=commit, files=files)


def contents(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def refusal(kind: type[VibeThinkerError], asked: Hub) -> str:
    """The message of the error that `fetch` raises; neither it nor what led to it tells the token."""
    with pytest.raises(kind) as raised:
        fetch(asked, "mine")
    assert raised.type is kind
    assert TOKEN not in "".join(traceback.format_exception(raised.value))
    return str(raised.value)


def test_files_come_in_the_order_of_the_patterns_and_then_of_their_names(hub):
    paths = fetch(wanted("extra.jsonl", "data/train-*.parquet"), "mine")
    assert contents(paths) == [FILES["extra.jsonl"], b"first", b"second"]
    assert [path.name for path in paths] == ["extra.jsonl", *(Path(shard).name for shard in SHARDS)]
    assert contents(fetch(wanted("data/t*.parquet"), "mine")) == [b"held out", b"first", b"second"]
    assert contents(fetch(wanted("data/train-*.parquet", "data/*"), "mine")) == [b"first", b"second", b"held out"]


def test_plain_names_come_in_their_order_without_a_listing(hub):
    assert contents(fetch(wanted("extra.jsonl", *SHARDS[::-1]), "mine")) == [FILES["extra.jsonl"], b"second", b"first"]
    assert not any(seen.target.startswith("/api/") for seen in hub.seen)


@pytest.mark.parametrize("files", [("extra.jsonl", SHARDS[1]), ("data/*", "extra.jsonl")], ids=["names", "patterns"])
def test_what_was_fetched_is_served_without_asking_and_without_a_network(hub, away, files):
    first = fetch(wanted(*files), "mine")
    asked = len(hub.seen)
    assert hub.contents == len(first)
    assert fetch(wanted(*files), "mine") == first
    assert len(hub.seen) == asked
    away(hub)
    assert fetch(wanted(*files), "mine") == first


def test_another_commit_is_other_files(hub):
    hub.add(ID, OTHER, {"extra.jsonl": b"new"})
    assert contents(fetch(wanted("*.jsonl", commit=OTHER), "mine")) == [b"new"]
    assert contents(fetch(wanted("extra.jsonl"), "mine")) == [FILES["extra.jsonl"]]


@pytest.mark.parametrize("files", [("extra.jsonl", SHARDS[0]), ("data/train-*.parquet",)], ids=["names", "patterns"])
def test_a_part_of_the_files_is_not_passed_off_as_all_of_them(hub, away, files):
    fetch(wanted(SHARDS[0]), "mine")
    fetch(wanted("README*"), "mine")
    away(hub)
    assert "its cache lacks it" in refusal(InfrastructureError, wanted(*files))


@BOTH_WAYS
def test_without_a_network_the_error_says_what_to_lay_where(hub, away, files):
    away(hub)
    said = refusal(InfrastructureError, wanted(*files))
    assert f"can't be reached for {ID}" in said
    assert f"set the `path` of the source mine to a folder with its files ({files[0]}) or to {LAYOUT}" in said
    assert f"hf download {ID} --repo-type dataset --revision {COMMIT} --include {shlex.quote(files[0])}" in said


@pytest.fixture
def laid(hub, tmp_path) -> Path:
    """The folder that the command of the error for patterns and a name has filled, its DIR."""
    hub.fault = 503, "Service Unavailable"
    said = refusal(InfrastructureError, wanted("data/train-*.parquet", "extra.jsonl"))
    hub.fault = None
    folder = tmp_path / "laid"
    command = shlex.split(re.search(r"hf (download .* --local-dir) DIR", said)[1])
    code = "from huggingface_hub.cli.hf import main; main()"
    settings = {"ENDPOINT": hub.url, "HOME": str(tmp_path / "home"), "HUB_OFFLINE": "0"}
    settings |= {f"HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "UPDATE_CHECK")}
    environment = {**os.environ, **{f"HF_{name}": value for name, value in settings.items()}}
    subprocess.run([sys.executable, "-c", code, *command, str(folder)], env=environment, check=True, timeout=60)
    return folder


def test_the_command_of_the_error_fetches_the_files_and_no_others(laid):
    files = {path.relative_to(laid).as_posix(): path for path in laid.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in files.items() if not name.startswith(".")} == {
        name: FILES[name] for name in (*SHARDS, "extra.jsonl")
    }


def test_the_folder_that_the_command_fills_is_read_as_its_files(laid):
    assert files_of(laid) == [laid / file for file in (*SHARDS, "extra.jsonl")]


@BOTH_WAYS
def test_an_unknown_data_set_is_named(hub, files):
    for name in ("someone/else", "some--one/problems"):
        said = refusal(ConfigurationError, wanted(*files, name=name))
        assert f"no data set {name}" in said and "`hf auth login`" in said and "path" in said


@BOTH_WAYS
def test_a_gated_data_set_asks_to_accept_its_terms_and_log_in(hub, files):
    hub.datasets[ID].gated = True
    said = refusal(ConfigurationError, wanted(*files))
    assert "is gated" in said and "accept its terms" in said and "`hf auth login`" in said


@BOTH_WAYS
def test_an_unknown_revision_is_named(hub, files):
    assert f"no revision {OTHER!r}" in refusal(ConfigurationError, wanted(*files, commit=OTHER))


def test_each_pattern_and_name_without_a_file_is_named(hub):
    said = refusal(ConfigurationError, wanted("data/train-*.parquet", "data/dev-*.parquet", "gone.jsonl"))
    assert f"{ID} has no file like data/dev-*.parquet, gone.jsonl at {COMMIT}" in said
    assert f"lacks one of extra.jsonl, gone.jsonl at {COMMIT}" in refusal(
        ConfigurationError, wanted("extra.jsonl", "gone.jsonl")
    )


@BOTH_WAYS
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble_is_worth_another_try(hub, files, status):
    hub.fault = status, "Internal Error - We're working hard to fix this as soon as possible!"
    assert "can't be reached" in refusal(InfrastructureError, wanted(*files))
    hub.fault = None
    assert fetch(wanted(*files), "mine")


@BOTH_WAYS
def test_a_connection_that_breaks_leaves_no_half_file(hub, files):
    hub.cut = True
    assert "can't be reached" in refusal(InfrastructureError, wanted(*files))
    hub.cut = False
    expected = [FILES["extra.jsonl"]] if files == ("extra.jsonl",) else [b"first", b"second"]
    assert contents(fetch(wanted(*files), "mine")) == expected


@BOTH_WAYS
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "Invalid credentials in Authorization header"),
        (403, "Please enable access to public gated repositories in your fine-grained token settings."),
    ],
)
def test_a_token_that_the_hub_refuses_is_not_tried_again(hub, files, status, message):
    hub.fault = status, message
    said = refusal(ConfigurationError, wanted(*files))
    assert f"refuses this account's token for {ID}" in said and "HF_TOKEN" in said
    # The token that the messages are searched for was sent.
    assert {seen.token for seen in hub.seen} == {TOKEN}


@BOTH_WAYS
def test_a_cache_that_cannot_be_written_is_not_called_a_network(hub, tmp_path, files):
    (tmp_path / "cache").write_text("a file where the folder should be")
    said = refusal(InfrastructureError, wanted(*files))
    assert "cache can't be written" in said and str(tmp_path / "cache") in said and "HF_HUB_CACHE" in said


def test_every_preset_finds_the_files_it_names_and_no_others(hub):
    published: dict[tuple[str, str], dict[str, bytes]] = {}
    named: dict[str, list[bytes]] = {}
    for name in presets():
        asked = DataFile(preset=name).hub
        shards = [file.replace("*/", "a/").replace("*", f"0000{i}-of-00002") for file in asked.files for i in (0, 1)]
        files = {file: file.encode() for file in shards}
        named[name] = list(files.values())
        published.setdefault((asked.id, asked.revision), {"README.md": b"# Problems\n"}).update(files)
    for place, files in published.items():
        hub.add(*place, files)
    for name in presets():
        assert contents(fetch(DataFile(preset=name).hub, name)) == named[name]


def rows(numbers: range) -> list[dict[str, str]]:
    """Rows whose words are shared with no other row."""
    return [
        {"problem": f"Find w{i}, x{i} and y{i}.", "answer": str(i), "solution": f"So \\boxed{{{i}}}"} for i in numbers
    ]


def test_the_data_step_runs_from_the_hub(hub, prepare):
    shard = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(range(20))), shard)
    lines = "".join(json.dumps(row) + "\n" for row in rows(range(20, 40))).encode()
    hub.add(ID, OTHER, {"data/train-0.parquet": shard.getvalue(), "more.jsonl": lines, "README.md": b"# Problems\n"})
    source = {"id": ID, "revision": OTHER, "files": ["data/train-*.parquet", "more.jsonl"]}
    columns = {"solution": "solution"}
    train = [{"hub": source, "name": "mine", "domain": "algebra", "columns": columns}]
    prepared = prepare(("algebra",), source="files", train=train)
    assert prepared.card["domains"]["algebra"]["rows"] == 40
    parts = [problem for part in ("rl", "probe", "validation") for problem in prepared.problems(part)]
    assert {problem.problem for problem in parts} <= {row["problem"] for row in rows(range(40))}
    assert prepared.traces()
    assert f"{ID}@{OTHER}" in json.dumps(prepared.card)
    hub.stop()
    again = prepare(("algebra",), source="files", train=train)
    assert again.traces() == prepared.traces()
