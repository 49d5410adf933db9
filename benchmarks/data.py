"""How fast and how big data preparation is: 200,000 problems against 10,000 evaluation problems, beside datasets.map.

    python benchmarks/data.py [--data DIR] [--rows N] [--evaluation N] [--rounds N] [--output FILE]

The problems are those of MATH and GSM8K in DIR, the evaluation problems those of GSM8K's test set and SVAMP, with
every number and many names changed, so that they are as long and as alike as real ones; 0.5 % are an evaluation
problem in other letters and with sentences around it, and 5 % another training problem with a word or two changed.
`ours` is `vibethinker data prepare`: parsing, filters, decontamination, exact and near duplicates, splits, Parquet,
the data card. `peer` is the straightforward script: the package datasets, 10-grams of folded words in a set, `map` in
two processes, then `MinHashLSH` of datasketch over the rows that stay. Both run as processes of their own, in turns;
seconds are medians, memory is the largest sum of proportional set sizes over a process and its children (psutil).
`resumed` is ours killed by SIGKILL half-way and run again: its seconds after the kill, and whether its output is the
same bytes as without. `quarter` is ours on the first quarter of the rows: its memory beside that of all of them shows
whether it grows.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml
from memory import proportional
from outcome import tell

from vibethinker.environment import versions

EVERY = 0.25  # seconds between samples of memory
PLANTED, ALIKE = 0.005, 0.05
PEER = """
import re, sys
from datasets import load_dataset
from datasketch import MinHash, MinHashLSH

train_file, evaluation_file, output = sys.argv[1:]
words = re.compile(r"[\\W_]+")

def grams(text, n=10):
    parts = words.sub(" ", text.lower()).split()
    return [" ".join(parts[i:i + n]) for i in range(len(parts) - n + 1)]

if __name__ == "__main__":
    evaluation = load_dataset("json", data_files=evaluation_file, split="train")
    protected = {gram for row in evaluation for gram in grams(row["problem"])}
    train = load_dataset("json", data_files=train_file, split="train")
    train = train.map(lambda row: {"bad": any(g in protected for g in grams(row["problem"]))}, num_proc=2)
    train = train.filter(lambda row: not row["bad"], num_proc=2)
    index, keep = MinHashLSH(threshold=0.8, num_perm=128), []
    for number, row in enumerate(train):
        signature = MinHash(num_perm=128)
        signature.update_batch([gram.encode() for gram in grams(row["problem"], 3)])
        if not index.query(signature):
            index.insert(number, signature)
            keep.append(number)
    train.select(keep).to_parquet(output)
"""


def main() -> None:
    """Run both and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the problem sets")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--evaluation", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibethinker-data-") as name:
        folder = Path(name)
        planted = make_files(arguments.data, folder, arguments.rows, arguments.evaluation)
        rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for number in range(arguments.rounds):
            rounds["ours"].append(measured(ours(folder, f"ours-{number}"), folder))
            rounds["peer"].append(measured(peer(folder, number), folder))
        result = {
            "rows": arguments.rows,
            "evaluation": arguments.evaluation,
            "rounds": arguments.rounds,
            **{name: summary(some) for name, some in rounds.items()},
            "kept": {"ours": kept(folder / "ours-0"), "peer": rows_of(folder / "peer-0.parquet")},
            "found": found(folder / "ours-0", planted),
            "resumed": resumed(folder, rounds["ours"]),
            "quarter": quarter(folder, arguments.rows // 4),
            "versions": versions(),
        }
    tell(result, arguments.output)


def make_files(data: Path, folder: Path, rows: int, evaluation: int) -> set[str]:
    """Write train.jsonl, evaluation.jsonl and the configuration; returns the ids of the planted rows."""
    rng = random.Random(1)
    texts = [json.loads(line)["problem"] for line in (data / "math_train.jsonl").open()]
    texts += [json.loads(line)["question"] for line in (data / "gsm8k_train.jsonl").open()]
    others = [json.loads(line)["question"] for line in (data / "gsm8k_test.jsonl").open()]
    for line in (data / "svamp_test.jsonl").open():
        row = json.loads(line)
        others.append(f"{row['Body']} {row['Question']}")
    held = [varied(rng.choice(others), rng) for _ in range(evaluation)]
    with (folder / "evaluation.jsonl").open("w") as file:
        for text in held:
            file.write(json.dumps({"problem": text, "answer": "1"}) + "\n")
    planted: set[str] = set()
    before: list[tuple[int, str]] = []
    with (folder / "train.jsonl").open("w") as file:
        for number in range(rows):
            chance, answer = rng.random(), str(number)
            if chance < PLANTED:
                planted.add(str(number))
                text = f"Solve this one. {rng.choice(held).upper()} Show your work."
            elif chance < PLANTED + ALIKE and before:
                first, text = rng.choice(before)
                text, answer = reworded(text, rng), str(first)
            else:
                text = varied(rng.choice(texts), rng)
                before = [*before[-999:], (number, text)]
            file.write(json.dumps({"id": str(number), "problem": text, "answer": answer}) + "\n")
    configuration = {
        "profile": "tiny",
        "domains": ["algebra"],
        "signal": {"stages": [{"name": "math", "context": 128, "steps": 1}]},
        "data": {
            "source": "files",
            "directory": str(folder),
            "train": [{"path": "train.jsonl", "domain": "algebra", "columns": {"id": "id"}}],
            "evaluation": [{"path": "evaluation.jsonl", "domain": "algebra"}],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration))
    return planted


def varied(text: str, rng: random.Random) -> str:
    """The problem with other numbers, and other capitalised words now and then."""
    text = re.sub(r"\d+", lambda match: str(rng.randrange(10 ** len(match[0]))), text)
    return re.sub(r"\b[A-Z][a-z]{3,}\b", lambda match: match[0] + rng.choice(("", "", "an", "a", "son")), text)


def reworded(text: str, rng: random.Random) -> str:
    """The problem with one word doubled, and in lower case."""
    parts = text.lower().split(" ")
    at = rng.randrange(len(parts))
    return " ".join([*parts[:at], parts[at], *parts[at:]])


def ours(folder: Path, name: str) -> list[str]:
    """The command that prepares the files into a folder of this name."""
    command = [sys.executable, "-m", "vibethinker", "data", "prepare", "--config", str(folder / "config.yaml")]
    return [*command, "--output", str(folder / name)]


def peer(folder: Path, number: int) -> list[str]:
    """The command of the straightforward script; a cache of its own each time."""
    (folder / "peer.py").write_text(PEER)
    os.environ["HF_DATASETS_CACHE"] = str(folder / f"cache-{number}")
    files = (folder / "train.jsonl", folder / "evaluation.jsonl", folder / f"peer-{number}.parquet")
    return [sys.executable, str(folder / "peer.py"), *map(str, files)]


def measured(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Seconds and peak memory of a command."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder)
    peak = max(memory_of(process), default=0)
    if process.wait():
        assert process.stderr
        raise SystemExit(f"{' '.join(command)} failed: {process.stderr.read().decode()[-2000:]}")
    return {"seconds": time.monotonic() - began, "peak": peak}


def memory_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Proportional set sizes of the process and its children while it runs."""
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield sum(map(proportional, [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]))
        time.sleep(EVERY)


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median seconds, all of them, and the largest memory."""
    seconds = [round(one["seconds"], 1) for one in rounds]
    return {
        "seconds": statistics.median(seconds),
        "all": seconds,
        "peak_gib": round(max(one["peak"] for one in rounds) / 2**30, 2),
    }


def resumed(folder: Path, whole: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kill ours half-way, run it again, and compare."""
    command = ours(folder, "killed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(statistics.median(one["seconds"] for one in whole) / 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = measured(command, folder)
    first = folder / "ours-0"
    names = sorted(str(p.relative_to(first)) for p in first.rglob("*") if p.is_file())
    same = filecmp.cmpfiles(first, folder / "killed", names, shallow=False)[0]
    return {"seconds": round(again["seconds"], 1), "same_bytes": same == names}


def quarter(folder: Path, rows: int) -> dict[str, Any]:
    """Ours on the first rows only."""
    command = [*ours(folder, "quarter"), "--set", f"data.train.0.limit={rows}"]
    return {"rows": rows, **summary([measured(command, folder)])}


def found(output: Path, planted: set[str]) -> dict[str, float]:
    """Recall over the planted rows, and the share of the contaminated rows that were planted."""
    removed = [json.loads(line) for line in (output / "removed.jsonl").open()]
    hits = {row["id"].removeprefix("train-") for row in removed if row["filter"] == "contaminated"}
    return {"recall": len(hits & planted) / len(planted), "precision": len(hits & planted) / len(hits)}


def kept(output: Path) -> int:
    """Problems that ours keeps, in all splits and in reserve."""
    counts = json.loads((output / "card.json").read_text())["domains"]["algebra"]
    return sum(counts[name] for name in ("train", "probe", "validation", "reserved"))


def rows_of(path: Path) -> int:
    """Rows of a Parquet file."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).metadata.num_rows


if __name__ == "__main__":
    main()
