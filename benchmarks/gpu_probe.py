"""How fast probing is beside vLLM alone: domains x checkpoints x problems x samples on one GPU.

    python benchmarks/gpu_probe.py --model FOLDER --problems FILE.jsonl [--domains 4] [--checkpoints 5] [--limit 100]
        [--samples 32] [--max-tokens 512] [--fraction 1.0] [--batch 1024] [--at-once 1] [--output FILE]

The checkpoints are copies of the model with a little noise on their weights, so that they can't share a cache; a
domain is the next `limit` problems of the file. `ours` is `vibethinker probe` once a domain, as a run has a step a
domain: each starts Python and vLLM anew, swaps the checkpoints' weights in one engine, and grades. It is counted by the
clock around the processes. `peer` is `vllm.LLM.generate` with `n` on the same prompts (their first `fraction` in each
domain), with the model's own weights, in a process of its own; its settings are the defaults but for the GPU's memory.

Both are generated tokens a second over the whole work: ours with all it does, the peer's start counted once. `domains`
has for each of ours the seconds of its process and those of sampling, and `peer_generating` what the peer does once it
is warm. The first start of either
compiles where vLLM's cache on disk is empty: `--warm` runs both on a few problems before, and tells how long ours took.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from outcome import installed, invocation, peer, tell

from vibethinker.environment import versions

NOISE = 1e-3  # of each tensor's standard deviation
RESULT = Path(__file__).parent / "results" / "gpu_probe.json"
PEER = """
import json, os, sys, time
began = time.perf_counter()
os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    given = json.load(open(sys.argv[1]))
    llm = LLM(given["model"], gpu_memory_utilization=0.9)
    started = time.perf_counter()
    sampling = SamplingParams(n=given["samples"], temperature=1.0, top_p=1.0, max_tokens=given["max_tokens"])
    found = llm.generate([{"prompt_token_ids": ids} for ids in given["prompts"]], sampling, use_tqdm=False)
    ended = time.perf_counter()
    tokens = sum(len(one.token_ids) for output in found for one in output.outputs)
    with open(sys.argv[2], "w") as file:
        json.dump({"start": started - began, "seconds": ended - started, "tokens": tokens}, file)
"""


def main() -> None:
    """Run both and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--problems", type=Path, required=True, help="JSONL file of at least domains x limit problems")
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--checkpoints", type=int, default=5)
    parser.add_argument("--limit", type=int, default=100, help="problems a domain")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the prompts that the peer gets")
    parser.add_argument("--batch", type=int, default=1024, help="execution.generation_batch")
    parser.add_argument("--at-once", type=int, default=1, help="domains that share the GPU")
    parser.add_argument("--warm", action="store_true", help="fill vLLM's cache on disk before the clock runs")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibethinker-gpu-probe-") as name:
        folder = Path(name)
        models = checkpoints(arguments.model, arguments.checkpoints, folder)
        files = split(arguments.problems, arguments.domains, arguments.limit, folder)
        warming = probe(models[:1], files[0], arguments, folder, limit=2)["seconds"] if arguments.warm else None
        if arguments.warm:
            alone_on(arguments, files, folder, 2)
        began = time.perf_counter()
        with ThreadPoolExecutor(arguments.at_once) as pool:
            domains = list(pool.map(lambda file: probe(models, file, arguments, folder), files))
        seconds = time.perf_counter() - began
        alone = alone_on(arguments, files, folder, max(1, round(arguments.limit * arguments.fraction)))
    tokens = sum(domain["tokens"] for domain in domains)
    warm = alone["tokens"] / alone["seconds"]
    ours, theirs = tokens / seconds, tokens / (alone["start"] + tokens / warm)
    tell(
        {
            "ours": round(ours),
            "peer": round(theirs),
            "ratio": round(ours / theirs, 3),
            "unit": "generated tokens/s, starts included",
            "aim": 0.7,
            "peer_generating": round(warm),
            "ratio_to_warm_peer": round(ours / warm, 3),
            "tokens": tokens,
            "seconds": round(seconds, 1),
            "domains": domains,
            "peer_start": round(alone["start"], 1),
            "warming_seconds": warming and round(warming, 1),
            "work": {name: getattr(arguments, name) for name in WORK},
            "versions": versions() | installed("vllm"),
            "command": invocation(),
        },
        arguments.output,
    )


WORK = ("domains", "checkpoints", "limit", "samples", "max_tokens", "fraction", "batch", "at_once")


def checkpoints(model: Path, count: int, folder: Path) -> list[Path]:
    """Copies of a model folder with a little noise on their weights."""
    import torch
    from safetensors.torch import save_file

    from vibethinker.models import ModelWeights

    weights, made = ModelWeights(model), []
    for number in range(count):
        copy = folder / f"step-{number:06d}"
        shutil.copytree(model, copy, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin"))
        noise = torch.Generator().manual_seed(number)
        tensors = {}
        for name, tensor in weights.items():
            deviation = tensor.float().std(correction=0) * NOISE
            tensors[name] = (tensor + torch.randn(tensor.shape, generator=noise) * deviation).to(tensor.dtype)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        made.append(copy)
    return made


def split(problems: Path, domains: int, limit: int, folder: Path) -> list[Path]:
    """A file of `limit` problems for each domain."""
    lines = [line for line in problems.read_text().splitlines() if line.strip()]
    if len(lines) < domains * limit:
        raise SystemExit(f"{problems} has {len(lines)} problems, fewer than {domains} x {limit}: lower --limit")
    files = []
    for number in range(domains):
        files.append(folder / f"domain-{number}.jsonl")
        files[-1].write_text("\n".join(lines[number * limit : (number + 1) * limit]) + "\n")
    return files


def probe(
    models: list[Path], file: Path, arguments: argparse.Namespace, folder: Path, limit: int | None = None
) -> dict[str, Any]:
    """Wall seconds of one `vibethinker probe`, the tokens it generated, and the seconds that these took."""
    output = folder / f"{file.stem}.json"
    command = [sys.executable, "-m", "vibethinker", "probe", *map(str, models), "--data", str(file)]
    command += ["--samples", str(arguments.samples), "--max-tokens", str(arguments.max_tokens)]
    command += ["--set", f"execution.generation_batch={arguments.batch}", "--output", str(output)]
    command += ["--set", f"execution.vllm.memory={0.9 / arguments.at_once}"]
    command += ["--limit", str(limit)] if limit else []
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{done.stdout[-4000:]}")
    found = json.loads(output.read_text())["candidates"]
    counts = [round(one["mean_tokens"] * one["problems"] * one["samples"]) for one in found]
    generating = sum(count / one["tokens_per_second"] for count, one in zip(counts, found, strict=True))
    result = {"seconds": round(seconds, 1), "tokens": sum(counts), "generating": round(generating, 1)}
    print(json.dumps(result), file=sys.stderr, flush=True)  # in case the next one doesn't end
    return result


def alone_on(arguments: argparse.Namespace, files: list[Path], folder: Path, share: int) -> dict[str, float]:
    """Seconds of plain vLLM's start and of its generation for `share` problems a domain, and the latter's tokens."""
    from vibethinker import config
    from vibethinker.data.prompts import all_prompt_ids
    from vibethinker.evaluation.benchmarks import read_file
    from vibethinker.models import load_tokenizer

    tokenizer, prompts = load_tokenizer(arguments.model), config.load(None, None, ()).prompts
    ids = [some for file in files for some in all_prompt_ids(tokenizer, read_file(file)[:share], prompts)]
    given = {"model": str(arguments.model.resolve()), "prompts": ids}
    given |= {"samples": arguments.samples, "max_tokens": arguments.max_tokens}
    return peer(PEER, given, folder)


if __name__ == "__main__":
    main()
