"""How many tokens a second supervised training takes on one GPU, beside TRL's SFTTrainer, and what share of its FLOP/s.

    python benchmarks/gpu_sft_mfu.py --model FOLDER --traces FILE.jsonl [--steps 10] [--unsloth] [--peak 989e12]

TRACES has rows of `problem` and `solution`. Both sides train all weights on the same traces, packed to 2,048 tokens, 64
rows an update, loss on the answers alone. `ours` is `vibethinker train-specialist`; `peer` is TRL's trainer as its
documentation sets it up (bfloat16 and gradient checkpointing are its defaults) at 8 rows a pass, its packing without
bounds between traces, since the other one wants flash-attn. Rates are medians over the updates after the third.

MFU counts 6 floating-point operations a token and weight, but for an embedding that is no matrix product, and
6 · layers · width · length of the attention (its mean over each trace, forward and backward), against the card's dense
bfloat16 peak. Ours leaves out the output projection of tokens that no loss counts, such as a prompt's: `mfu_computed`
counts what is computed. `unsloth_nf4_lora` is the same command with Unsloth's 4-bit LoRA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from outcome import conversations, installed, invocation, measured, peer, tell

from vibethinker.environment import versions
from vibethinker.footprint import Shape

RESULT = Path(__file__).parent / "results" / "gpu_sft_mfu.json"
LENGTH, ROWS, WARM = 2048, 64, 3
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
PEER = """
import json, statistics, sys, time
from datasets import load_dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

given = json.load(open(sys.argv[1]))

class Clock(TrainerCallback):
    def __init__(self):
        self.rows = []
    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "num_tokens" in logs and "loss" in logs:
            self.rows.append((time.perf_counter(), logs["num_tokens"], logs["loss"]))

clock = Clock()
trainer = SFTTrainer(
    model=given["model"],
    args=SFTConfig(
        output_dir=given["output"], max_steps=given["steps"], packing=True, packing_strategy="wrapped",
        max_length=given["length"], per_device_train_batch_size=8, gradient_accumulation_steps=given["rows"] // 8,
        learning_rate=1e-5, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    ),
    train_dataset=load_dataset("json", data_files=given["data"], split="train"),
    callbacks=[clock],
)
trainer.train()
import torch
json.dump({"rows": clock.rows, "memory": torch.cuda.max_memory_allocated() / 2**30}, open(sys.argv[2], "w"))
"""


def main() -> None:
    """Run all and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--traces", type=Path, required=True, help="JSONL file with problem and solution")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--micro-tokens", type=int, default=32768)
    parser.add_argument("--unsloth", action="store_true", help="also time Unsloth's 4-bit LoRA")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--peak", type=float, default=989e12, help="the card's dense bfloat16 FLOP/s")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibethinker-gpu-sft-") as name:
        folder = Path(name)
        ours = train(arguments, folder, "full")
        print(json.dumps(ours), file=sys.stderr, flush=True)  # in case another one doesn't end
        length, counted = of_traces(arguments)
        lora = train(arguments, folder, "unsloth", UNSLOTH) if arguments.unsloth else None
        theirs = None if arguments.no_peer else trl(arguments, folder)
    shape = Shape.of(json.loads((arguments.model / "config.json").read_text()))
    computing = shape.parameters - (0 if shape.tied else shape.vocabulary * shape.hidden)
    flops = 6 * computing + 6 * shape.layers * shape.query * length
    mfu = ours["tokens_per_second"] * flops / arguments.peak
    skipped = 6 * shape.vocabulary * shape.hidden * (1 - counted)
    tell(
        {
            "ours": round(ours["tokens_per_second"]),
            "peer": theirs and round(theirs["tokens_per_second"]),
            "ratio": theirs and round(ours["tokens_per_second"] / theirs["tokens_per_second"], 2),
            "unit": "trained tokens/s",
            "aim": {"mfu": 0.4, "ratio": 1.3},
            "mfu": round(mfu, 3),
            "mfu_computed": round(mfu * (1 - skipped / flops), 3),
            "peer_mfu": theirs and round(theirs["tokens_per_second"] * flops / arguments.peak, 3),
            "parameters": computing,
            "mean_length": round(length),
            "counted": round(counted, 3),
            "details": {"ours": ours, "peer": theirs, "unsloth_nf4_lora": lora},
            "versions": versions() | installed("unsloth", "liger-kernel", "bitsandbytes"),
            "command": invocation(),
        },
        arguments.output,
    )


FULL = ["base_model.precision=bfloat16", "spectrum.sft.packing=true", f"spectrum.sft.batch_size={ROWS}"]
FULL += ["spectrum.sft.learning_rate=1e-5", "spectrum.sft.checkpoints=1", "deterministic=false"]
FULL += [f"prompts.math_suffix={json.dumps(SUFFIX)}"]
UNSLOTH = ["base_model.backend=unsloth", "base_model.quantization=nf4", "spectrum.sft.method=lora"]


def train(arguments: argparse.Namespace, folder: Path, name: str, more: list[str] | None = None) -> dict[str, Any]:
    """What one `vibethinker train-specialist` took."""
    settings = [*FULL, f"spectrum.sft.micro_tokens={arguments.micro_tokens}", *(more or [])]
    command = ["train-specialist", str(arguments.model), "--domain", "math", "--train-data", str(arguments.traces)]
    command += ["--max-seq-length", str(LENGTH), "--max-steps", str(arguments.steps)]
    began = time.perf_counter()
    rows = measured([*command, *(word for one in settings for word in ("--set", one))], folder, name)
    warm = rows[WARM:]
    return {
        "tokens_per_second": statistics.median(row["trained_tokens_per_second"] for row in warm),
        "seconds_an_update": statistics.median(row["seconds_training"] for row in warm),
        "first_update_seconds": rows[0]["seconds_training"],
        "peak_gib": max(row.get("gpu_allocated_gib_training", 0.0) for row in rows),
        "losses": [round(row["loss"], 4) for row in rows],
        "seconds": round(time.perf_counter() - began, 1),
    }


def trl(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What TRL's trainer took."""
    data = folder / "peer.jsonl"
    conversations(arguments.traces, data, SUFFIX)
    given = {"model": str(arguments.model), "data": str(data), "output": str(folder / "trl")}
    given |= {"steps": arguments.steps, "length": LENGTH, "rows": ROWS}
    found = peer(PEER, given, folder)
    updates = [
        (tokens - before, seconds - at)
        for (at, before, _), (seconds, tokens, _) in zip(found["rows"], found["rows"][1:], strict=False)
    ][WARM - 1 :]
    return {
        "tokens_per_second": statistics.median(tokens / seconds for tokens, seconds in updates),
        "seconds_an_update": statistics.median(seconds for _, seconds in updates),
        "peak_gib": found["memory"],
        "losses": [round(loss, 4) for *_, loss in found["rows"]],
    }


def of_traces(arguments: argparse.Namespace) -> tuple[float, float]:
    """The mean length of the trace that a token is part of, and the share of tokens that the loss counts."""
    from vibethinker.data.prompts import all_training_ids
    from vibethinker.data.schema import Trace
    from vibethinker.models import load_tokenizer
    from vibethinker.settings import Prompts

    rows = [json.loads(line) for line in arguments.traces.read_text().splitlines()]
    traces = [Trace(str(i), "math", row["problem"], row["solution"], "given") for i, row in enumerate(rows[:2000])]
    tokenizer = load_tokenizer(arguments.model)
    masks = [mask for _, mask in all_training_ids(tokenizer, traces, Prompts(math_suffix=SUFFIX))]
    total = sum(map(len, masks))
    return sum(len(mask) ** 2 for mask in masks) / total, sum(map(sum, masks)) / total


if __name__ == "__main__":
    main()
