"""How long an update of reinforcement takes on one GPU, beside TRL's GRPOTrainer with vLLM in its process.

    python benchmarks/gpu_rl_step.py --model FOLDER --problems FILE.jsonl [--steps 20] [--no-peer]

PROBLEMS has rows of `problem` and `answer` (a number). Both sides: 32 prompts x 8 rollouts of at most 384 tokens at
temperature 1, all weights trained in bfloat16 autocast by AdamW at 1e-6, plain GRPO (lambda 0, per-sequence mean, no KL
term), rewards by the final answer. `ours` is `vibethinker signal`; `peer` is TRL with its stock settings but for those
that make the work the same, and 32 rollouts a pass in place of its default of 8. Seconds are medians over the
updates after the third, from one report to the next. Both get the file's first `steps` x 32 problems, each of them
once, in an order of their own.

`rewards` has the mean reward of each update, and the difference of the two sides' means with its 95 % interval: the
problems are the same, so an engine that samples something else would show. The interval is wider than what chance
leaves, since it holds the spread between problems, which both sides share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from outcome import installed, invocation, measured, peer, tell

from vibethinker.environment import versions

RESULT = Path(__file__).parent / "results" / "gpu_rl_step.json"
PROMPTS, GROUP, TOKENS, PROMPT_TOKENS, RATE, WARM = 32, 8, 384, 256, 1e-6, 3
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
OURS = {
    "base_model.precision": "bfloat16",
    "deterministic": "false",
    "prompts.math_suffix": json.dumps(SUFFIX),
    "signal.objective.lambda": 0,
    "signal.objective.group_size": GROUP,
    "signal.objective.batch_size": PROMPTS * GROUP,
    "signal.objective.learning_rate": RATE,
    "signal.objective.max_prompt_tokens": PROMPT_TOKENS,
    "signal.micro_tokens": 16384,
    "verification.workers": 8,
}
PEER = """
import json, os, sys, time
os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", TRL_EXPERIMENTAL_SILENCE="1")

def main():
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.rewards import accuracy_reward

    given = json.load(open(sys.argv[1]))

    class Clock(TrainerCallback):
        def __init__(self):
            self.rows = []
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "reward" in logs:
                kept = ("reward", "completions/mean_length", "step_time")
                self.rows.append({"time": time.time(), **{name: logs.get(name) for name in kept}})

    clock = Clock()
    trainer = GRPOTrainer(
        model=given["model"],
        reward_funcs=accuracy_reward,
        args=GRPOConfig(
            output_dir=given["output"], max_steps=given["steps"], learning_rate=given["rate"],
            per_device_train_batch_size=given["prompts"], gradient_accumulation_steps=given["group"],
            num_generations=given["group"], max_completion_length=given["tokens"], temperature=1.0, beta=0.0,
            loss_type="grpo", lr_scheduler_type="constant", use_vllm=True, vllm_mode="colocate",
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        train_dataset=load_dataset("json", data_files=given["data"], split="train"),
        callbacks=[clock],
    )
    trainer.train()
    import torch
    free, total = torch.cuda.mem_get_info()
    json.dump({"rows": clock.rows, "memory": (total - free) / 2**30}, open(sys.argv[2], "w"))

if __name__ == "__main__":
    main()
"""


def main() -> None:
    """Run both and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--problems", type=Path, required=True, help="JSONL file with problem and answer")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="more settings of ours")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibethinker-gpu-rl-") as name:
        folder = Path(name)
        lines = [line for line in arguments.problems.read_text().splitlines() if line.strip()]
        if len(lines) < PROMPTS * arguments.steps:
            raise SystemExit(
                f"{arguments.problems} has {len(lines)} problems, fewer than {PROMPTS} x {arguments.steps}."
            )
        arguments.problems = folder / "problems.jsonl"
        arguments.problems.write_text("\n".join(lines[: PROMPTS * arguments.steps]) + "\n")
        ours = stage(arguments, folder)
        print(json.dumps(ours), file=sys.stderr, flush=True)  # in case the other one doesn't end
        theirs = None if arguments.no_peer else trl(arguments, folder)
    result = {
        "ours": round(ours["seconds_an_update"], 2),
        "peer": theirs and round(theirs["seconds_an_update"], 2),
        "ratio": theirs and round(theirs["seconds_an_update"] / ours["seconds_an_update"], 2),
        "unit": "s an update",
        "aim": 4.0,
        "rewards": theirs and difference(ours["rewards"], theirs["rewards"]),
        "details": {"ours": ours, "peer": theirs},
        "versions": versions() | installed("vllm"),
        "command": invocation(),
    }
    tell(result, arguments.output)


def stage(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What one `vibethinker signal` took."""
    settings = [f"{name}={value}" for name, value in OURS.items()] + arguments.overrides
    command = ["signal", str(arguments.model), "--train-data", str(arguments.problems)]
    command += ["--max-seq-length", str(PROMPT_TOKENS + TOKENS), "--max-steps", str(arguments.steps)]
    began = time.time()
    rows = measured([*command, *(word for one in settings for word in ("--set", one))], folder, "ours")
    parts = ("seconds_generation", "seconds_training", "seconds_grading")
    rates = ("generated_tokens_per_second", "trained_tokens_per_second")
    return {
        "seconds_an_update": pace([row["time"] for row in rows]),
        **{name: statistics.median(row[name] for row in rows[WARM:]) for name in (*parts, *rates)},
        "until_first_update": round(rows[0]["time"] - began, 1),
        "rewards": [round(row["reward"], 4) for row in rows],
        "length": statistics.mean(row["length"] for row in rows),
        "zero_variance": statistics.mean(row["zero_variance"] for row in rows),
        "importance": [round(row["importance"], 4) for row in rows if "importance" in row],
        "engine_gap": [round(row["engine_gap"], 5) for row in rows if "engine_gap" in row],
        "memory_gib": max(row.get("gpu_used_gib_training", 0.0) for row in rows),
        "seconds": [round(b["time"] - a["time"], 2) for a, b in itertools.pairwise(rows)],
    }


def trl(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What TRL's trainer took."""
    data = folder / "peer.jsonl"
    with data.open("w") as file:
        for line in arguments.problems.read_text().splitlines():
            row = json.loads(line)
            prompt = [{"role": "user", "content": row["problem"] + SUFFIX}]
            file.write(json.dumps({"prompt": prompt, "solution": f"\\boxed{{{row['answer']}}}"}) + "\n")
    given = {"model": str(arguments.model), "data": str(data), "output": str(folder / "trl"), "rate": RATE}
    given |= {"steps": arguments.steps, "prompts": PROMPTS, "group": GROUP, "tokens": TOKENS}
    found = peer(PEER, given, folder)
    rows = found["rows"]
    return {
        "seconds_an_update": pace([row["time"] for row in rows]),
        "rewards": [round(row["reward"], 4) for row in rows],
        "length": statistics.mean(row["completions/mean_length"] for row in rows),
        "memory_gib": found["memory"],
        "seconds": [round(b["time"] - a["time"], 2) for a, b in itertools.pairwise(rows)],
    }


def pace(times: list[float]) -> float:
    """The median of the seconds between reports, the first ones left out."""
    return statistics.median(b - a for a, b in zip(times[WARM - 1 :], times[WARM:], strict=False))


def difference(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of two sides' mean rewards, with the 95 % interval that the updates' spread gives."""
    means = statistics.mean(ours), statistics.mean(theirs)
    error = math.sqrt(sum(statistics.variance(side) / len(side) for side in (ours, theirs)))
    apart = means[0] - means[1]
    values = {"ours": means[0], "peer": means[1], "difference": apart, "low": apart - 1.96 * error}
    return {name: round(value, 4) for name, value in (values | {"high": apart + 1.96 * error}).items()}


if __name__ == "__main__":
    main()
