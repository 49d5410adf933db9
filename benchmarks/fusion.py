"""Fusion beside mergekit: linear and TIES over 4 models of the Qwen3-0.6B shape in bfloat16.

    python benchmarks/fusion.py --peer-python PATH [--rounds N] [--folder DIR] [--only METHOD] [--output FILE]

The base has random weights of that shape (profiles/qwen3-0.6b.yaml), and each specialist a third of them changed a
little. `ours` is the command `vibethinker fuse`, `peer` is mergekit's `mergekit-yaml` in an environment of its own
(`pip install mergekit`), whose interpreter --peer-python names: whole processes, imports included, with mergekit's
defaults, in turns with ours, all files in the page cache. Linear is in bfloat16 there; of TIES both `dtype: float32`
with `out_dtype: bfloat16` and bfloat16 throughout are run, and the faster one is the peer. Seconds are medians of the
rounds; memory is the largest proportional set size (PSS) over a process and its children, sampled ten times a second,
and the largest sum of its anonymous pages, which leaves out files that are mapped.

`same` compares outputs number by number. A fused number is `equal` to mergekit's within bfloat16's rounding where they
differ by at most one unit in the last place of the larger; of TIES those are `compared` of which no change is as large
as the least that is kept (mergekit keeps some of these by their order). `reference` counts numbers that aren't bit for
bit the formula's in float64, cast once. The result is written after each part, so that a run that is stopped has told
what it found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
from outcome import installed, invocation, tell

from vibethinker.environment import versions

MODELS, DENSITY, CHANGED = 4, 0.2, 1 / 3
EVERY = 0.1  # seconds between samples of memory
PROFILE = Path(__file__).parents[1] / "vibethinker" / "profiles" / "qwen3-0.6b.yaml"
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
}


def main() -> None:
    """Build the models, fuse them by both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="an interpreter that has mergekit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models lie, or are built; 10 GB [a temporary folder]")
    parser.add_argument(
        "--only", choices=["linear", "ties"], help="one method, beside what --output holds of the other"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibethinker-fusion-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        specialists = build(folder)
        result: dict[str, Any] = {"models": MODELS}
        how = {
            "rounds": arguments.rounds,
            "versions": versions() | installed("numpy") | peer_versions(arguments.peer_python),
            "command": invocation(),
        }
        if arguments.only and arguments.output and arguments.output.exists():
            result = json.loads(arguments.output.read_text()) | result
        for method in [arguments.only] if arguments.only else ["linear", "ties"]:
            for found in compare(method, folder, specialists, arguments.peer_python, arguments.rounds):
                result[method] = found | how
                tell(result, arguments.output)


def build(folder: Path) -> list[Path]:
    """The base and the specialists, unless they are there; returns the specialists."""
    import torch
    from safetensors.torch import save_file

    words = yaml.safe_load(PROFILE.read_text())["base_model"]["architecture"]
    places = [folder / "base", *(folder / f"specialist-{number}" for number in range(MODELS))]
    if all((place / "model.safetensors").is_file() for place in places):
        return places[1:]
    generator = torch.Generator().manual_seed(1)
    base = {
        name: (torch.randn(shape, generator=generator) * 0.02).bfloat16() if len(shape) > 1 else torch.ones(shape)
        .bfloat16() for name, shape in shapes(words).items()
    }  # fmt: skip
    for number, place in enumerate(places):
        state = base
        if number:
            state = {}
            for name, tensor in base.items():
                change = torch.randn(tensor.shape, generator=generator) * 0.002
                change *= torch.rand(tensor.shape, generator=generator) < CHANGED
                state[name] = (tensor.float() + change).bfloat16()
        place.mkdir(parents=True, exist_ok=True)
        save_file(state, place / "model.safetensors", metadata={"format": "pt"})
        config = {**words, "architectures": ["Qwen3ForCausalLM"], "torch_dtype": "bfloat16"}
        (place / "config.json").write_text(json.dumps(config))
        (place / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return places[1:]


def shapes(words: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a Qwen3 model with tied embeddings, as its file has them."""
    hidden, inner, head = words["hidden_size"], words["intermediate_size"], words["head_dim"]
    queries, keys = words["num_attention_heads"] * head, words["num_key_value_heads"] * head
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words["vocab_size"], hidden)}
    for layer in range(words["num_hidden_layers"]):
        for name, shape in {
            "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
            "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            found[f"model.layers.{layer}.{name}.weight"] = shape
    return found | {"model.norm.weight": (hidden,)}


def peer_versions(python: Path) -> dict[str, str]:
    """What the peer runs on."""
    script = "import json; from importlib.metadata import version; print(json.dumps({n: version(n) for n in %r}))"
    names = ["mergekit", "torch", "transformers", "numpy"]
    found = json.loads(subprocess.run([python, "-c", script % names], capture_output=True, check=True).stdout)
    return {name if name == "mergekit" else f"peer's {name}": version for name, version in found.items()}


def compare(method: str, folder: Path, specialists: list[Path], python: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """Both sides' seconds and memory, and how far their outputs agree; once for each way that the peer is run."""
    ours = [sys.executable, "-m", "vibethinker", "fuse", *map(str, specialists), "--method", method]
    if method == "ties":
        ours += ["--base", str(folder / "base"), "--density", str(DENSITY)]
    outputs = {side: folder / f"fused-{side}" for side in ("ours", "peer")}
    least: dict[str, list[float]] = {}
    for model in (folder / "base", *specialists):
        (model / "model.safetensors").read_bytes()  # into the page cache
    taken: dict[str, list[dict[str, float]]] = {"ours": []}
    same = {}
    for dtype in ("bfloat16",) if method == "linear" else ("float32", "bfloat16"):
        peer = [str(python), "-m", "mergekit.scripts.run_yaml", str(recipe(method, folder, specialists, dtype))]
        for _ in range(rounds):
            for side, command in (("ours", [*ours, "--output"]), ("peer", peer)):
                shutil.rmtree(outputs[side], ignore_errors=True)
                name = side if side == "ours" else dtype
                taken.setdefault(name, []).append(measured([*command, str(outputs[side])]))
        if method == "ties" and not least:
            least = thresholds(folder, specialists)
        same[dtype] = agreement(method, folder, specialists, outputs["ours"], outputs["peer"], least)
        found = {name: summary(rows) for name, rows in taken.items()}
        fastest = min((name for name in found if name != "ours"), key=lambda name: found[name]["seconds"])
        mine, other = found["ours"], found[fastest]
        yield {
            "ours": mine["seconds"],
            "peer": other["seconds"],
            "ratio": round(other["seconds"] / mine["seconds"], 2),
            "unit": "s",
            **{memory: {"ours": mine[memory], "peer": other[memory]} for memory in ("peak_gib", "anonymous_gib")},
            "details": found,
            "same": same,
        }
    for output in outputs.values():
        shutil.rmtree(output)


def recipe(method: str, folder: Path, specialists: list[Path], dtype: str) -> Path:
    """mergekit's configuration of the same fusion."""
    values: dict[str, Any] = {
        "merge_method": method,
        "dtype": dtype,
        "out_dtype": "bfloat16",
        "models": [{"model": str(model), "parameters": {"weight": 1.0}} for model in specialists],
    }
    if method == "ties":
        values["base_model"] = str(folder / "base")
        for model in values["models"]:
            model["parameters"]["density"] = DENSITY
        values["parameters"] = {"normalize": True}
    path = folder / f"{method}-{dtype}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def measured(command: list[str]) -> dict[str, float]:
    """Wall seconds of a process, and the most memory that it and its children had."""
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=sys.stderr)
    most = {"peak_gib": 0, "anonymous_gib": 0}
    while process.poll() is None:
        now = {"peak_gib": 0, "anonymous_gib": 0}
        try:
            for one in (process, *process.children(recursive=True)):
                about = Path(f"/proc/{one.pid}/smaps_rollup").read_text().split("\n")[1:]
                sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in about if line}
                now["peak_gib"] += sizes["Pss"]
                now["anonymous_gib"] += sizes["Anonymous"]
        except (OSError, psutil.Error, KeyError):
            continue  # it has just ended
        most = {name: max(most[name], value) for name, value in now.items()}
        time.sleep(EVERY)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command} failed with {process.returncode}.")
    return {"seconds": seconds, **{name: value / 2**30 for name, value in most.items()}}


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the rounds, of memory the largest."""
    return {
        "seconds": round(statistics.median(row["seconds"] for row in rows), 2),
        "all": [round(row["seconds"], 2) for row in rows],
        **{name: round(max(row[name] for row in rows), 3) for name in ("peak_gib", "anonymous_gib")},
    }


def thresholds(folder: Path, specialists: list[Path]) -> dict[str, list[float]]:
    """Tensor → the least size of a change that stays, for each specialist."""
    from safetensors import safe_open

    found: dict[str, list[float]] = {}
    base, *models = (safe_open(path / "model.safetensors", "pt") for path in (folder / "base", *specialists))
    for name in base.keys():  # noqa: SIM118 - the file itself can't be iterated over
        start = base.get_tensor(name).double()
        place = start.numel() - max(1, int(DENSITY * start.numel()))
        for model in models:
            size = (model.get_tensor(name).double().sub_(start)).abs_().reshape(-1).numpy()
            size.partition(place)
            found.setdefault(name, []).append(float(size[place]))
    return found


def agreement(
    method: str, folder: Path, specialists: list[Path], ours: Path, peer: Path, least: dict[str, list[float]]
) -> dict[str, Any]:
    """Our numbers beside the formula's in float64 and mergekit's."""
    import torch
    from safetensors import safe_open

    count = {"numbers": 0, "reference": 0, "compared": 0, "bit_equal": 0, "equal": 0}
    opened = [safe_open(path / "model.safetensors", "pt") for path in (folder / "base", *specialists)]
    files = sorted(peer.glob("*.safetensors"))
    theirs = {name: file for file in (safe_open(path, "pt") for path in files) for name in file.keys()}  # noqa: SIM118
    mine = safe_open(ours / "model.safetensors", "pt")
    for name in mine.keys():  # noqa: SIM118
        tensors = [mine.get_tensor(name), theirs[name].get_tensor(name), *(file.get_tensor(name) for file in opened)]
        for got, their, start, *rest in zip(*(t.reshape(-1).split(1 << 20) for t in tensors), strict=True):
            free = torch.ones(got.numel(), dtype=torch.bool)
            if method == "linear":
                expected = sum(0.25 * model.double() for model in rest)
            else:
                changes = [model.double() - start.double() for model in rest]
                for change, size in zip(changes, least[name], strict=True):
                    free &= (change.abs() != size) | (change == 0)
                expected = start.double() + ties_mean(changes, least[name])
            ulp = torch.maximum(got.float().abs(), their.float().abs())
            ulp = torch.exp2(torch.floor(torch.log2(ulp.clamp(min=2.0**-126))) - 7)
            count["numbers"] += got.numel()
            count["reference"] += int((got != expected.bfloat16()).sum())
            count["compared"] += int(free.sum())
            count["bit_equal"] += int(((got == their) & free).sum())
            count["equal"] += int((((got.float() - their.float()).abs() <= ulp) & free).sum())
    return count


def ties_mean(changes: list[Any], least: list[float]) -> Any:
    """The formula of arXiv 2306.01708 on whole arrays, uniform weights."""
    import torch

    kept = torch.stack([c * (c.abs() >= size) for c, size in zip(changes, least, strict=True)])
    sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
    agrees = (kept.sign() == sign).double()
    return (kept * agrees).sum(0) / agrees.sum(0).clamp(min=1)


if __name__ == "__main__":
    main()
