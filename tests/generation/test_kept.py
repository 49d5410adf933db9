"""Completions that are kept: what is sampled again, and what is not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import pytest

from vibethinker.errors import DataError
from vibethinker.generation import Completion
from vibethinker.generation.kept import KeptEngine, model_digest, sampler
from vibethinker.generation.opening import Engines
from vibethinker.generation.replies import ReplyStore
from vibethinker.models.files import positions

EXECUTION = {"device": "cpu", "generation_batch": 4}
SAMPLING = {"samples": 3, "max_tokens": 6, "temperature": 1.0, "top_p": 0.95, "seed": 5}
PROMPTS = [[5, 6], [7], [8, 9, 10], [7]]


@pytest.fixture
def opened(tiny_model_folder):
    """A function → a new engine of the tiny model; `count` says how often it was called."""

    class Opened:
        count = 0

        def __call__(self):
            self.count += 1
            return Engines(EXECUTION, lambda _: None).at(tiny_model_folder)

    return Opened()


@pytest.fixture
def kept(tmp_path, opened, tiny_tokenizer):
    """A function **changes → an engine that keeps into one file."""
    stores = []

    def make(model="m", engine="e", only_kept=False):
        stores.append(ReplyStore(tmp_path / "c.sqlite"))
        return KeptEngine(opened, tiny_tokenizer, stores[-1], model, engine, only_kept)

    yield make
    for store in stores:
        store.close()


def said(found):
    return [[(c.text, c.tokens, c.truncated) for c in some] for some in found]


def test_what_is_kept_is_not_sampled_again_and_is_the_same(kept, opened):
    plain = opened().generate(PROMPTS, **SAMPLING)
    first, heard = kept(), []
    assert said(first.generate(PROMPTS, **SAMPLING)) == said(plain) and first.sampled == 12 and first.speed()
    opened.count = 0
    second = kept()
    found = second.generate(PROMPTS, **SAMPLING, ended=lambda *place: heard.append(place[:2]))
    assert said(found) == said(plain) and (second.sampled, second.found, opened.count) == (0, 12, 0)
    assert sorted(heard) == [(i, s) for i in range(4) for s in range(3)] and second.speed() == {}


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.9}, {"top_p": 1.0}, {"seed": 6}, {"max_tokens": 7}, {"first": 1}],
)
def test_another_setting_is_sampled_anew(kept, change):
    kept().generate(PROMPTS, **SAMPLING)
    other = kept()
    other.generate(PROMPTS[:1], **{**SAMPLING, **change})
    assert (other.sampled, other.found) == (3, 0)


def test_another_model_engine_or_prompt_is_sampled_anew_and_more_samples_use_the_first_ones(kept):
    kept().generate(PROMPTS, **SAMPLING)
    for one in (kept(model="n"), kept(engine="f")):
        one.generate(PROMPTS[:1], **SAMPLING)
        assert one.sampled == 3
    changed = kept()
    changed.generate([[5, 7]], **SAMPLING)
    assert changed.sampled == 3
    more = kept()
    more.generate(PROMPTS[:2], **{**SAMPLING, "samples": 5})
    assert (more.sampled, more.found) == (4, 6)


def test_only_what_is_kept_is_scored_whichever_engine_has_sampled_it(kept, opened):
    expected = kept(engine="vllm: one").generate(PROMPTS, **SAMPLING)
    opened.count = 0
    again = kept(engine="transformers: other", only_kept=True)
    assert said(again.generate(PROMPTS, **SAMPLING)) == said(expected)
    assert again.engine == "vllm: one" and opened.count == 0
    with pytest.raises(DataError, match="8 of 14 completions are not kept"):
        kept(only_kept=True).generate(PROMPTS[:2], **{**SAMPLING, "samples": 7})
    assert opened.count == 0


def test_a_models_digest_is_of_its_content_wherever_it_lies(
    tiny_model_folder, tmp_path, new_tiny_model, tiny_tokenizer
):
    from vibethinker.artifacts import Store
    from vibethinker.models import save_model

    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    (copy / "README.md").write_text("a card")
    digest = model_digest(tiny_model_folder)
    assert model_digest(copy) == digest
    store = Store(tmp_path / "w")
    staging = store.staging("probe", "f")
    shutil.copytree(tiny_model_folder, staging / "checkpoints" / "step-1")
    published = store.publish(staging, "probe", "f", inputs={}, record={"metrics": {}})
    assert model_digest(published.folder / "checkpoints" / "step-1") == digest
    save_model(new_tiny_model(1), tiny_tokenizer, tmp_path / "other")
    assert model_digest(tmp_path / "other") != digest


def test_a_folder_within_an_output_that_is_none_of_its_files_counts_by_its_own(
    tmp_path, new_tiny_model, tiny_tokenizer
):
    from vibethinker.artifacts import Store
    from vibethinker.models import save_model

    store = Store(tmp_path / "w")
    staging = store.staging("base", "f")
    (staging / "config.json").write_text("{}")
    published = store.publish(staging, "base", "f", inputs={}, record={"metrics": {}})
    for seed in (1, 2):
        save_model(new_tiny_model(seed), tiny_tokenizer, published.folder / f"mine-{seed}")
    assert model_digest(published.folder / "mine-1") != model_digest(published.folder / "mine-2")


class Short:
    """An engine whose memory ends a completion after two tokens."""

    meter = None

    def generate(self, prompts, *, ended, **_):
        for index in range(len(prompts)):
            ended(index, 0, Completion("cut", 2, True, ()))
            ended(index, 1, Completion("whole", 2, False, ()))


@pytest.mark.parametrize(("positions", "kept"), [(None, 2), (9, 2), (4, 3)])
def test_what_memory_has_cut_off_is_not_kept(tmp_path, tiny_tokenizer, positions, kept):
    how = {**SAMPLING, "samples": 2}
    with ReplyStore(tmp_path / "c.sqlite") as store:
        first, again = (KeptEngine(Short, tiny_tokenizer, store, "m", "e", positions=positions) for _ in range(2))
        prompts = [[5], [5, 6]]
        assert [[c.text for c in some] for some in first.generate(prompts, **how)] == [["cut", "whole"]] * 2
        again.generate(prompts, **how)
        assert again.found == kept


def test_what_the_model_s_positions_end_is_kept(tiny_model_folder, tmp_path):
    long = {**SAMPLING, "max_tokens": 10_000, "samples": 1}
    prompts = [[5] * (positions(tiny_model_folder) - 3), [5] * positions(tiny_model_folder)]
    for found in (0, 2):
        with sampler(Engines(EXECUTION, lambda _: None), tiny_model_folder, None, EXECUTION, tmp_path) as engine:
            some = engine.generate(prompts, **long)
        assert engine.found == found and some[1][0].tokens == 0


KILLED = """
import sys, os, signal
from pathlib import Path
from vibethinker.generation import kept
from vibethinker.generation.opening import Engines
kept._FLUSH_COUNT = 1
execution, folder, path = {"device": "cpu", "generation_batch": 4}, Path(sys.argv[1]), Path(sys.argv[2])
put = kept.ReplyStore.put_all
calls = 0
def put_all(self, scope, replies):
    global calls
    put(self, scope, replies)
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
kept.ReplyStore.put_all = put_all
with kept.sampler(Engines(execution, lambda _: None), folder, None, execution, path) as engine:
    engine.generate([[5, 6], [7], [8, 9, 10], [7]], samples=3, max_tokens=6, temperature=1.0, top_p=0.95, seed=5)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_it_sampled_and_the_next_ends_with_the_same(tiny_model_folder, tmp_path):
    whole = Engines(EXECUTION, lambda _: None).at(tiny_model_folder).generate(PROMPTS, **SAMPLING)
    folder = tmp_path / "new"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tiny_model_folder), str(folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with sampler(Engines(EXECUTION, lambda _: None), tiny_model_folder, None, EXECUTION, folder) as engine:
        assert said(engine.generate(PROMPTS, **SAMPLING)) == said(whole)
    assert (engine.found, engine.sampled) == (6, 6)
