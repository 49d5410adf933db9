"""How much of a GPU's memory long training takes: a 4k specialist in 4 bits, a 16k signal stage with vLLM beside it.

    python benchmarks/gpu_memory.py --tokenizer FOLDER --traces FILE.jsonl --problems FILE.jsonl [--only qlora]
        [--updates 2] [--no-peer]

The models have random weights: of Qwen3-0.6B's shape, and of Qwen2.5-7B's where `--only qlora-7b` asks for it. Memory
depends on the shape alone; and random weights hardly ever end a completion, so every rollout has the longest length.

- `qlora`: `vibethinker train-specialist` with the profile qwen3-0.6b (NF4, LoRA, packed to 4,096 tokens), by
  transformers and by Unsloth. `peer` is TRL's SFTTrainer with the same quantisation and adapters, a row of 4,096 a
  pass. The aim is 24 GB.
- `signal`: `vibethinker signal` with all weights in training, 32 rollouts an update of 16,384 tokens with their
  prompt, on one 80 GB GPU. No verdict differs, so a KL term has every rollout trained on; it costs a second copy of the
  weights.

`used` is what was taken of the GPU at the end of a phase, CUDA's own share and vLLM's included, in GiB: torch's
allocator keeps what it took at its peak, unless vLLM's waking had it give that back. `allocated` is the peak of what
tensors held, `reserved` of what torch's allocator had. `ours` is the greater of `used` and `reserved`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from outcome import conversations, installed, invocation, measured, peer, tell

from vibethinker import config
from vibethinker.environment import versions
from vibethinker.models.trainable import PROJECTIONS

PROFILE = "qwen3-0.6b"
RESULT = Path(__file__).parent / "results" / "gpu_memory.json"
GB = 1e9 / (1 << 30)  # of a GPU's name, in GiB
CASES = ("qlora", "qlora-unsloth", "qlora-7b", "signal")
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip
PEER = """
import json, sys
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

given = json.load(open(sys.argv[1]))
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                         bnb_4bit_compute_dtype=torch.bfloat16)
trainer = SFTTrainer(
    model=given["model"],
    args=SFTConfig(
        output_dir=given["output"], max_steps=given["steps"], packing=True, packing_strategy="wrapped",
        max_length=4096, per_device_train_batch_size=1, gradient_accumulation_steps=16, report_to="none",
        save_strategy="no", disable_tqdm=True, bf16=True,
        model_init_kwargs={"quantization_config": nf4, "dtype": "bfloat16", "device_map": {"": 0}},
    ),
    train_dataset=load_dataset("json", data_files=given["data"], split="train"),
    peft_config=LoraConfig(**given["lora"], task_type="CAUSAL_LM"),
)
trainer.train()
free, total = torch.cuda.mem_get_info()
json.dump({"used": (total - free) / 2**30, "allocated": torch.cuda.max_memory_allocated() / 2**30},
          open(sys.argv[2], "w"))
"""


def main() -> None:
    """Run the cases and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer and a chat template")
    parser.add_argument("--traces", type=Path, required=True, help="JSONL file with problem and solution")
    parser.add_argument("--problems", type=Path, required=True, help="JSONL file with problem and answer")
    parser.add_argument("--only", action="append", choices=CASES, help="this case; may be repeated [all but qlora-7b]")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--context", type=int, default=16384, help="of the signal stage, in tokens")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="more settings of ours")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    cases = arguments.only or [case for case in CASES if case != "qlora-7b"]
    ours: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vibethinker-gpu-memory-") as name:
        folder = Path(name)
        small = model(folder, "qwen3-0.6b", arguments.tokenizer)
        for case in cases:
            if case == "signal":
                ours[case] = signal(arguments, small, folder)
            else:
                start = model(folder, "qwen2.5-7b", arguments.tokenizer) if case == "qlora-7b" else small
                backend = "unsloth" if case == "qlora-unsloth" else "transformers"
                ours[case] = specialist(arguments, start, folder, case, backend)
            print(case, json.dumps(ours[case]), file=sys.stderr, flush=True)
        with_peer = "qlora" in cases and not arguments.no_peer
        theirs = trl(arguments, small, folder) if with_peer else None
    tell(
        {
            "ours": {case: round(taken_at_most(found), 1) for case, found in ours.items()},
            "peer": theirs and {"qlora": round(theirs["used"], 1)},
            "ratio": theirs and round(theirs["used"] / taken_at_most(ours["qlora"]), 2),
            "unit": "GiB of the GPU",
            "aim": {case: round((80 if case == "signal" else 24) * GB, 1) for case in cases},
            "details": {"ours": ours, "peer": theirs},
            "versions": versions() | installed("vllm", "unsloth", "bitsandbytes"),
            "command": invocation(),
        },
        arguments.output,
    )


def model(folder: Path, shape: str, tokenizer: Path) -> Path:
    """A model folder with random bfloat16 weights."""
    place = folder / shape
    if place.is_dir():
        return place
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    shaped = AutoConfig.for_model(**SHAPES[shape], vocab_size=151936, max_position_embeddings=32768, dtype="bfloat16")
    # Made on the GPU where there is one: billions of normal variates take a CPU minutes.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(shaped, dtype=torch.bfloat16)
    words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    made.config.eos_token_id = made.generation_config.eos_token_id = words.eos_token_id
    made.save_pretrained(place)
    words.save_pretrained(place)
    del made
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return place


def specialist(arguments: argparse.Namespace, start: Path, folder: Path, case: str, backend: str) -> dict[str, float]:
    """What `vibethinker train-specialist` took with the profile's settings."""
    command = ["train-specialist", str(start), "--domain", "math", "--train-data", str(arguments.traces)]
    command += ["--profile", PROFILE, "--max-steps", str(arguments.updates), "--set", "spectrum.sft.checkpoints=1"]
    command += ["--set", f"base_model.backend={backend}"]
    return taken(command, arguments, folder, case)


def signal(arguments: argparse.Namespace, start: Path, folder: Path) -> dict[str, float]:
    """What `vibethinker signal` took at its longest rollouts."""
    settings = {
        "base_model.precision": "bfloat16",
        "deterministic": "false",
        "signal.objective.beta": 0.001,
        "signal.objective.group_size": 8,
        "signal.objective.batch_size": 32,
        "signal.objective.max_prompt_tokens": 512,
        "signal.micro_tokens": arguments.context,
    }
    command = ["signal", str(start), "--train-data", str(arguments.problems)]
    command += ["--max-seq-length", str(arguments.context), "--max-steps", str(arguments.updates)]
    return taken([*command, *sets(settings)], arguments, folder, "signal")


def sets(settings: dict[str, Any]) -> list[str]:
    """The settings as options of the command line."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def taken(command: list[str], arguments: argparse.Namespace, folder: Path, name: str) -> dict[str, float]:
    """The highest measurements over a command's updates."""
    rows = measured([*command, *(word for one in arguments.overrides for word in ("--set", one))], folder, name)
    shutil.rmtree(folder / name, ignore_errors=True)
    kept = {"used": "gpu_used_gib", "reserved": "gpu_reserved_gib", "allocated": "gpu_allocated_gib"}
    found = {
        kind: max(value for row in rows for key, value in row.items() if key.startswith(prefix))
        for kind, prefix in kept.items()
    }
    for rate in ("trained_tokens_per_second", "generated_tokens_per_second", "length"):
        if rate in rows[-1]:
            found[rate] = rows[-1][rate]
    return found


def taken_at_most(found: dict[str, float]) -> float:
    """GiB of the GPU at the peak, but for CUDA's own share where torch gave memory back."""
    return max(found["used"], found["reserved"])


def trl(arguments: argparse.Namespace, start: Path, folder: Path) -> dict[str, float]:
    """What TRL's trainer took."""
    data = folder / "peer.jsonl"
    conversations(arguments.traces, data)
    lora = config.load(PROFILE, None, ()).spectrum.sft.lora
    adapters = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": list(PROJECTIONS)}
    given = {"model": str(start), "data": str(data), "output": str(folder / "trl"), "steps": arguments.updates}
    given["lora"] = adapters
    return peer(PEER, given, folder)


if __name__ == "__main__":
    main()
