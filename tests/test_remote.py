"""The shared store: on a folder and on an S3 server, what is whole is reused, and what isn't is nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pytest

from tests.stores import s3
from vibethinker.artifacts import Artifact, Store
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.remote import Remote

pytestmark = pytest.mark.slow

DATA, MODEL = ("data", "d" * 64), ("specialist-algebra", "e" * 64)


@dataclass(frozen=True)
class Place:
    """A store's address, and its objects as a file system has them."""

    url: str
    fs: fsspec.AbstractFileSystem
    root: str

    def objects(self) -> list[str]:
        self.fs.invalidate_cache()
        return sorted(name.removeprefix(f"{self.root}/") for name in self.fs.find(self.root))


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3("runs") as made:
        before = {name: os.environ.get(name) for name in made.environ}
        os.environ.update(made.environ)
        yield made.url
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        url = f"file://{tmp_path}/store"
    else:
        url = f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    fs, root = fsspec.core.url_to_fs(url)
    return Place(url, fs, root)


def publish(store: Store, named: tuple[str, str], files: dict[str, str], **inputs: Artifact) -> Artifact:
    staging = store.staging(*named)
    for name, text in files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_text(text)
    digests = {role: artifact.digest for role, artifact in inputs.items()}
    return store.publish(staging, *named, inputs=digests, record={"metrics": {"n": 1}, "seconds": 1.0})


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return Store(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> Store:
    return Store(tmp_path / "there")


def test_another_workspace_gets_what_one_has_put_there(place: Place, here: Store, there: Store) -> None:
    made = publish(here, DATA, {"rl/rows.txt": "rows", "card.json": "{}"})
    Remote(place.url).check()
    assert Remote(place.url).share(made, {}) is None
    taken, reason = Remote(place.url).fetch(there, *DATA)
    assert reason is None
    assert taken == there.find(*DATA)[0]
    assert taken.digest == made.digest
    assert (taken.folder / "manifest.json").read_bytes() == (made.folder / "manifest.json").read_bytes()
    assert (taken.folder / "rl" / "rows.txt").read_text() == "rows"
    assert list((there.workspace / "staging").iterdir()) == []


def test_the_manifest_is_the_last_object_and_without_it_there_is_nothing(
    place: Place, here: Store, there: Store
) -> None:
    remote, written, died_at = Remote(place.url), [], 0

    class Watched:
        def __getattr__(self, name):
            if name in ("put_file", "pipe_file"):
                written.append(name)
                if len(written) == died_at:
                    raise OSError("the line was cut")
            return getattr(whole, name)

    made = publish(here, DATA, {"a": "1", "b": "2"})
    whole, remote._fs = remote._fs, Watched()
    for nth in (1, 2, 3):
        died_at = nth
        written.clear()
        with pytest.raises(InfrastructureError, match="the line was cut"):
            remote.share(made, {})
        assert Remote(place.url).fetch(there, *DATA) == (None, None)
    assert written == ["put_file", "put_file", "pipe_file"]
    died_at = 0
    assert remote.share(made, {}) is None
    assert Remote(place.url).fetch(there, *DATA)[0] is not None


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_object_is_never_used_and_the_next_maker_mends_the_store(
    place: Place, here: Store, there: Store, how: str
) -> None:
    made = publish(here, DATA, {"a": "one", "b": "two"})
    Remote(place.url).share(made, {})
    [victim] = [name for name in place.objects() if name.endswith("/b")]
    if how == "missing":
        place.fs.rm_file(f"{place.root}/{victim}")
    else:
        place.fs.pipe_file(f"{place.root}/{victim}", b"twp" if how == "flipped" else b"tw")
    artifact, reason = Remote(place.url).fetch(there, *DATA)
    assert artifact is None
    assert "b" in reason
    assert not there.folder(*DATA).exists()
    assert [name for name in place.objects() if name.startswith("attic/data-")]
    assert Remote(place.url).fetch(there, *DATA) == (None, None)
    assert Remote(place.url).share(publish(there, DATA, {"a": "one", "b": "two"}), {}) is None
    assert Remote(place.url).fetch(Store(there.workspace / "third"), *DATA)[0].digest == made.digest


def test_a_half_manifest_is_none_and_is_written_over(place: Place, here: Store, there: Store) -> None:
    made = publish(here, DATA, {"a": "1"})
    Remote(place.url).share(made, {})
    manifest = f"{place.root}/artifacts/data/{DATA[1]}/manifest.json"
    place.fs.pipe_file(manifest, place.fs.cat_file(manifest)[:-20])
    artifact, reason = Remote(place.url).fetch(there, *DATA)
    assert artifact is None
    assert "manifest.json" in reason
    assert Remote(place.url).share(made, {}) is None
    assert Remote(place.url).fetch(there, *DATA)[0].digest == made.digest


def test_of_two_machines_that_make_one_step_the_first_manifest_stays(place: Place, here: Store, there: Store) -> None:
    mine, theirs = publish(here, DATA, {"a": "1"}), publish(there, DATA, {"a": "1"})
    assert Remote(place.url).share(mine, {}) is None
    before = place.objects()
    first = place.fs.cat_file(f"{place.root}/artifacts/data/{DATA[1]}/manifest.json")
    assert Remote(place.url).share(theirs, {}) is None  # the same bytes: nothing is lost
    assert place.objects() == before
    assert place.fs.cat_file(f"{place.root}/artifacts/data/{DATA[1]}/manifest.json") == first


def test_a_machine_whose_bytes_differ_keeps_its_own_and_shares_nothing_made_of_them(
    place: Place, here: Store, there: Store
) -> None:
    Remote(place.url).share(publish(here, DATA, {"a": "1"}), {})
    other = publish(there, DATA, {"a": "2"})
    assert "was first" in Remote(place.url).share(other, {})
    model = publish(there, MODEL, {"w": "2"}, data=other)
    assert "another output of data" in Remote(place.url).share(model, {"data": DATA})
    assert Remote(place.url).fetch(here, *MODEL) == (None, None)
    mine = publish(here, MODEL, {"w": "1"}, data=here.read(*DATA))
    assert Remote(place.url).share(mine, {"data": DATA}) is None
    artifact, reason = Remote(place.url).fetch(there, *MODEL, {"data": other.digest})
    assert artifact is None
    assert "other inputs" in reason
    assert there.read(*MODEL).digest == model.digest


def test_what_was_made_from_a_refreshed_input_takes_its_place(place: Place, here: Store, there: Store) -> None:
    old = publish(here, DATA, {"a": "1"})
    Remote(place.url).share(old, {})
    Remote(place.url).share(publish(here, MODEL, {"w": "1"}, data=old), {"data": DATA})
    Remote(place.url).retire(*DATA)
    new = publish(there, DATA, {"a": "2"})
    assert Remote(place.url).share(new, {}) is None
    model = publish(there, MODEL, {"w": "2"}, data=new)
    assert Remote(place.url).share(model, {"data": DATA}) is None
    third = Store(there.workspace / "third")
    assert Remote(place.url).fetch(third, *DATA)[0].digest == new.digest
    assert Remote(place.url).fetch(third, *MODEL, {"data": new.digest})[0].digest == model.digest


def test_what_another_process_makes_is_left_to_it(place: Place, here: Store, there: Store) -> None:
    Remote(place.url).share(publish(here, DATA, {"a": "1"}), {})
    with there.lock(*DATA):
        assert Remote(place.url).fetch(there, *DATA) == (None, None)


def test_a_damaged_output_of_the_workspace_is_taken_anew(place: Place, here: Store) -> None:
    made = publish(here, DATA, {"a": "1"})
    Remote(place.url).share(made, {})
    (made.folder / "a").write_text("2")
    assert Remote(place.url).fetch(here, *DATA)[0] is not None
    assert here.find(*DATA)[1] is None
    assert len(list((here.workspace / "attic").iterdir())) == 1


def test_a_manifest_cannot_write_outside_its_folder(tmp_path: Path, here: Store, there: Store) -> None:
    from vibethinker import validation

    url = f"file://{tmp_path}/store"
    made = publish(here, DATA, {"a": "1"})
    Remote(url).share(made, {})
    entries = {**made.manifest, "files": {"../../outside": made.manifest["files"]["a"]}}
    entries.pop("seal")
    _, text = validation.sealed(entries)
    (tmp_path / "store" / "artifacts" / "data" / DATA[1] / "manifest.json").write_text(text)
    with pytest.raises(InfrastructureError, match="outside"):
        Remote(url).fetch(there, *DATA)


def test_a_store_that_cannot_be_used_is_refused_with_a_sentence(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"storage\.url 'nonsense://a'"):
        Remote("nonsense://a")
    with pytest.raises(ConfigurationError, match="see that it exists"):
        Remote("s3://no-such-bucket/x").check()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can't be written"):
        Remote(f"file://{tmp_path}/file/store").check()
