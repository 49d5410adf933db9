"""What to do when a step's memory doesn't suffice, and what this machine has learned of it.

A step that ran out of memory is run again with less of it at once and the same result: half the micro-batch, down to
one row of the longest sequence; then activations computed again in the backward pass; then, where vLLM samples beside
a trainer, a smaller share for it, and sleep between the phases. Where completions are sampled and nothing is trained,
it is the number of them at once, with vLLM's share. None of this changes what is computed.

What worked and what failed is kept in `memory.json` of the workspace, for each model's shape, way of training, longest
sequence and GPU, so that the next run starts from what is known to work; delete the file to forget. It is written only
once memory ran out. A setting is a flat mapping of the execution settings that memory grows with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vibethinker.artifacts import Store, write_json
from vibethinker.errors import OutOfMemoryError

SCHEMA = 1
FILE = "memory.json"
Setting = dict[str, Any]
Result = TypeVar("Result", bound=Mapping[str, Any])

# What memory grows with → the name of the setting, as users write it.
NAMES = {
    "sft_micro_tokens": "spectrum.sft.micro_tokens",
    "signal_micro_tokens": "signal.micro_tokens",
    "generation_batch": "execution.generation_batch",
    "gradient_checkpointing": "execution.gradient_checkpointing",
    "vllm.memory": "execution.vllm.memory",
    "vllm.shared_memory": "execution.vllm.shared_memory",
    "vllm.sleep": "execution.vllm.sleep",
}
MICRO_TOKENS = ("sft_micro_tokens", "signal_micro_tokens")
FRUGAL = ("gradient_checkpointing", "vllm.sleep")  # settings that take less memory when they are true
LEAST_BATCH = 16  # sequences that vLLM decodes at once; fewer save nothing worth having
LEAST_SHARE = 0.1  # of a whole GPU that vLLM starts with, whatever the model
LEAST_ALONE, STEP_ALONE = 0.5, 0.1  # of vLLM's share where it has the GPU alone
MODEL_WORDS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Need:
    """What, beside its execution settings, a step's memory depends on.

    Attributes:
        role: what it does with memory: sft, signal or sampling.
        row: tokens of the longest sequence, which no micro-batch is smaller than.
        vllm: whether vLLM samples in it.
        identity: what makes it the same case as another run's: model, training, device.
        least_share: of the step's part of the GPU that vLLM can start with.
    """

    role: str
    row: int
    vllm: bool
    identity: Mapping[str, Any]
    least_share: float = LEAST_SHARE

    @property
    def key(self) -> str:
        """The name of the case in the file."""
        said = json.dumps([self.role, self.row, self.vllm, self.identity], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def keys(self) -> tuple[str, ...]:
        """The execution settings that its memory grows with."""
        if self.role == "sft":
            return ("sft_micro_tokens", "gradient_checkpointing")
        if self.role == "signal":
            beside = ("vllm.shared_memory", "vllm.sleep") if self.vllm else ()
            return ("signal_micro_tokens", "generation_batch", "gradient_checkpointing", *beside)
        return ("generation_batch", "vllm.memory") if self.vllm else ("generation_batch",)

    @property
    def advice(self) -> str:
        """What to change when nothing else is left."""
        if self.role == "sft":
            what = "lower spectrum.sft.max_length, or set spectrum.sft.method to lora or its optimizer to adamw_8bit"
        elif self.role == "signal":
            what = "lower the stage's context, or set signal.objective.method to lora or its optimizer to adamw_8bit"
        else:
            what = "lower the longest completion (max_tokens)"
        return f"{what}, or use a GPU with more memory"


def need_of(
    settings: Mapping[str, Any],
    model: Mapping[str, Any] | None,
    how: Mapping[str, Any],
    *,
    vllm: bool,
    least_share: float = LEAST_SHARE,
) -> Need | None:
    """The need of a step, told by its semantic settings; None where nothing in it can be made smaller.

    Args:
        model: words of the config.json of the model that it reads.
        how: what else makes a case: the device's name and memory, how many steps share it, backend, processes.
        vllm: whether vLLM samples completions.
    """
    identity = dict(how)
    if model is not None:
        identity["model"] = {word: model.get(word) for word in MODEL_WORDS}
    base = settings.get("base_model", {})
    identity |= {word: base.get(word) for word in ("precision", "quantization")}
    if "stage" in settings:
        role, row, trained = "signal", settings["stage"]["context"], settings["objective"]
    elif "sft" in settings:
        role, row, trained = "sft", settings["sft"]["max_length"], settings["sft"]
    elif base.get("source") == "embedded" and "prompts" in settings:
        role, row, trained = "sft", base["embedded"]["positions"], {}
    else:
        sampling = settings.get("probing") or settings.get("evaluation") or settings.get("data", {}).get("teacher")
        if not sampling or ("data" in settings and not sampling.get("model")):
            return None
        identity["sampled"] = sampling.get("model")
        return Need("sampling", sampling["max_tokens"], vllm, identity)
    identity |= {word: trained.get(word) for word in ("method", "optimizer")}
    identity["rank"] = trained["lora"]["rank"] if trained.get("method") == "lora" else None
    return Need(role, row, vllm and role == "signal", identity, least_share)


def setting_of(need: Need, execution: Mapping[str, Any]) -> Setting:
    """The part of the execution settings that a step's memory grows with."""
    found = {}
    for key in need.keys:
        section, _, name = key.rpartition(".")
        found[key] = execution[section][name] if section else execution[name]
    return found


def applied(setting: Setting, execution: Mapping[str, Any]) -> dict[str, Any]:
    """The execution settings with this one laid over them."""
    result = dict(execution)
    for key, value in setting.items():
        section, _, name = key.rpartition(".")
        if section:
            result[section] = {**result[section], name: value}
        else:
            result[name] = value
    return result


def lower(setting: Setting, need: Need) -> Setting | None:
    """The next setting that takes less memory; None where there is no other. See the module for the order."""
    if halved := _halved(setting, need):
        return {**setting, **halved}
    if setting.get("gradient_checkpointing", True) is not True:
        return {**setting, "gradient_checkpointing": True}
    share = setting.get("vllm.shared_memory")
    if share is not None and share / 2 >= need.least_share:
        return {**setting, "vllm.shared_memory": round(share / 2, 3)}
    if setting.get("vllm.sleep", True) is not True:
        return {**setting, "vllm.sleep": True}
    if need.role == "signal" and need.vllm and setting["generation_batch"] > LEAST_BATCH:
        return {**setting, "generation_batch": max(LEAST_BATCH, setting["generation_batch"] // 2)}
    return None


def _halved(setting: Setting, need: Need) -> Setting:
    changes: Setting = {}
    for key in MICRO_TOKENS:
        if setting.get(key, 0) > need.row:
            changes[key] = max(need.row, setting[key] // 2)
    batch = setting.get("generation_batch", 0)
    if need.role == "sampling" and need.vllm:  # each start of vLLM takes minutes, so both at once
        if batch > LEAST_BATCH:
            changes["generation_batch"] = max(LEAST_BATCH, batch // 2)
        if setting["vllm.memory"] > LEAST_ALONE:
            changes["vllm.memory"] = round(max(LEAST_ALONE, setting["vllm.memory"] - STEP_ALONE), 3)
    elif not need.vllm and batch > 1:
        changes["generation_batch"] = batch // 2
    return changes


def demands(one: Setting, other: Setting, need: Need) -> bool:
    """Whether the first takes at least as much memory as the second, in everything."""

    def amount(setting: Setting, key: str) -> float:
        if key in FRUGAL:
            return 0.0 if setting[key] is True else 1.0
        return max(setting[key], need.row) if key in MICRO_TOKENS else setting[key]

    return all(amount(one, key) >= amount(other, key) for key in need.keys)


def said(setting: Setting, before: Setting | None = None) -> str:
    """A setting as users write it; with `before` only what differs from it."""
    changed = {key: value for key, value in setting.items() if before is None or before[key] != value}
    return ", ".join(f"{NAMES[key]}={json.dumps(value)}" for key, value in changed.items())


class Memory:
    """The workspace's memory.json.

    Args:
        warn: told when the file can't be used.
    """

    def __init__(self, workspace: Path, warn: Callable[[str], None]) -> None:
        self._store, self.file, self._warn = Store(workspace), workspace / FILE, warn

    def start(self, need: Need, wanted: Setting) -> Setting:
        """`wanted`, or the most that is known to work where that is known to fail."""
        entry = _entry(self._read() or {}, need)
        failed, worked = entry.get("failed"), entry.get("worked")
        if failed is None or not demands(wanted, failed, need):
            return wanted
        if worked is not None and demands(wanted, worked, need):
            return worked
        setting: Setting | None = wanted
        while setting is not None and demands(setting, failed, need):
            setting = lower(setting, need)
        return wanted if setting is None else setting

    def sufficed(self, need: Need, setting: Setting) -> bool:
        """Whether this much has worked before."""
        worked = _entry(self._read() or {}, need).get("worked")
        return worked is not None and demands(worked, setting, need)

    def failed(self, need: Need, setting: Setting) -> None:
        """Note that a setting took too much."""

        def change(entry: dict[str, Any]) -> dict[str, Any]:
            if "failed" not in entry or demands(entry["failed"], setting, need):
                entry["failed"] = setting
            if "worked" in entry and demands(entry["worked"], setting, need):
                del entry["worked"]
            return entry

        self._change(need, change)

    def worked(self, need: Need, setting: Setting) -> None:
        """Note that a setting sufficed, where another has failed before."""

        def change(entry: dict[str, Any]) -> dict[str, Any]:
            if not entry:
                return entry
            if "worked" not in entry or demands(setting, entry["worked"], need):
                entry["worked"] = setting
            if "failed" in entry and demands(setting, entry["failed"], need):
                del entry["failed"]
            return entry

        if need.key in (self._read() or {}):
            self._change(need, change)

    def _change(self, need: Need, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        with self._store.lock("memory", "settings"):
            entries = self._read()
            if entries is None:
                return
            entry = change(_entry(entries, need))
            entries[need.key] = {**entry, "role": need.role, "row": need.row, "case": dict(need.identity)}
            write_json(self.file, {"schema": SCHEMA, "entries": entries})

    def _read(self) -> dict[str, Any] | None:
        """The file's entries, none where it is damaged; None where another version has written it."""
        try:
            document = json.loads(self.file.read_text())
            schema, entries = document["schema"], document["entries"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._warn(
                f"{self.file} can't be read ({type(error).__name__}), so what fits into memory is found out anew: "
                "delete it to be rid of this warning."
            )
            return {}
        if schema == SCHEMA and isinstance(entries, dict):
            return entries
        self._warn(f"{self.file} has schema {schema!r}, this version reads {SCHEMA}: what it knows isn't used.")
        return None


def _entry(entries: Mapping[str, Any], need: Need) -> dict[str, Setting]:
    """What is known of a case, but for settings that aren't whole."""
    entry = entries.get(need.key)
    found = entry if isinstance(entry, dict) else {}
    return {name: found[name] for name in ("worked", "failed") if name in found and _is_whole(found[name], need)}


def _is_whole(setting: Any, need: Need) -> bool:
    if not isinstance(setting, dict) or set(setting) != set(need.keys):
        return False
    kinds = {key: (bool, type(None)) if key in FRUGAL else (int, float) for key in need.keys}
    return all(isinstance(setting[key], kind) for key, kind in kinds.items())


def run_within(
    attempt: Callable[[dict[str, Any]], Result],
    need: Need | None,
    execution: Mapping[str, Any],
    memory: Memory,
    tell: Callable[[str], None],
) -> Result:
    """Run a step, again with less memory as often as it runs out of it, and remember how it came to an end.

    Args:
        attempt: runs it with these execution settings and returns its result; one that is `reused` proves nothing.
        tell: told of each setting that is lowered, and why.

    Raises:
        OutOfMemoryError: there is nothing left to lower; it names what to change.
    """
    if need is None:
        return attempt(dict(execution))
    wanted = setting_of(need, execution)
    setting = memory.start(need, wanted)
    if setting != wanted:
        tell(f"Starting with {said(setting, wanted)}, since more has run out of memory before ({memory.file}).")
    while True:
        try:
            result = attempt(applied(setting, execution))
        except OutOfMemoryError as error:
            memory.failed(need, setting)
            lowered, reason = lower(setting, need), str(error).rstrip(".")
            if lowered is None:
                raise OutOfMemoryError(
                    f"{reason}; {said(setting)} is the least it can do with: {need.advice}."
                ) from error
            tell(f"{reason}; running again with {said(lowered, setting)}.")
            setting = lowered
        else:
            if not result.get("reused"):
                memory.worked(need, setting)
            return result
