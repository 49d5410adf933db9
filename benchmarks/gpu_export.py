"""Whether an exported model is the same in vLLM: greedy answers there and in transformers.

    python benchmarks/gpu_export.py --model FOLDER [--tokens 64] [--output FILE]

`vibethinker export --format hf` writes the model (with --shard-size 500MB, so that there are shards); a process of its
own loads that folder by `vllm.LLM` with its stock settings, another by transformers on the same GPU, both without this
project. vLLM's FlashInfer sampler is off: greedy answers need none, and where it has yet to be compiled, vLLM starts
for minutes without a word (vllm-project/vllm#54529). Each answers the same prompts greedily. In 16 bits the two round
differently, so an answer may part where two tokens are all but equally likely: for each one that parts, `gap` is by how
much transformers prefers its own token to vLLM's there, in nats. `same` holds if no gap exceeds --near.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from outcome import installed, invocation, peer, tell

QUESTIONS = (
    "What is 12 + 30?",
    "Solve 3x + 4 = 19 for x.",
    "Is 91 a prime number?",
    "Write a Python function that reverses a string.",
    "A train travels 180 km in 2.5 hours. What is its average speed?",
)
RESULT = Path(__file__).parent / "results" / "gpu_export.json"
VLLM = """
import json, os, sys
os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_USE_FLASHINFER_SAMPLER="0")
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    given = json.load(open(sys.argv[1]))
    llm = LLM(given["model"], gpu_memory_utilization=0.5)
    messages = [[{"role": "user", "content": text}] for text in given["questions"]]
    found = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=given["tokens"]), use_tqdm=False)
    rows = [{"prompt": list(one.prompt_token_ids), "answer": list(one.outputs[0].token_ids)} for one in found]
    json.dump(rows, open(sys.argv[2], "w"))
"""
TRANSFORMERS = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

given = json.load(open(sys.argv[1]))
tokenizer = AutoTokenizer.from_pretrained(given["model"])
model = AutoModelForCausalLM.from_pretrained(given["model"], dtype="auto").to("cuda").eval()
rows = []
for text, other in zip(given["questions"], given["others"]):
    asked = [{"role": "user", "content": text}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = inputs["input_ids"][0].tolist()
    with torch.no_grad():
        ids = model.generate(**inputs.to("cuda"), do_sample=False, max_new_tokens=given["tokens"])[0].tolist()
        answer = ids[len(prompt):]
        pairs = enumerate(zip(answer, other["answer"]))
        parts = next((i for i, (mine, theirs) in pairs if mine != theirs), None)
        gap = None
        if parts is not None:
            before = torch.tensor([prompt + answer[:parts]], device="cuda")
            logits = model(before).logits[0, -1].float().log_softmax(-1)
            gap = float(logits[answer[parts]] - logits[other["answer"][parts]])
    rows.append({"prompt": prompt, "answer": answer, "parts": parts, "gap": gap})
json.dump(rows, open(sys.argv[2], "w"))
"""


def main() -> None:
    """Export, ask both, and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--near", type=float, default=0.25, help="nats below which two tokens are as good as equal")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, began = Path(folder) / "exported", time.perf_counter()
        command = [sys.executable, "-m", "vibethinker", "export", args.model, "--format", "hf"]
        command += ["--shard-size", "500MB", "--output", str(model)]
        subprocess.run(command, stdout=sys.stderr, check=True)
        seconds = time.perf_counter() - began
        given: dict[str, Any] = {"model": str(model), "questions": QUESTIONS, "tokens": args.tokens}
        theirs: Any = peer(VLLM, given, Path(folder))
        ours: Any = peer(TRANSFORMERS, given | {"others": theirs}, Path(folder))
        files = sorted(path.name for path in model.iterdir())
    rows = [
        {"question": question, "tokens": len(a["answer"]), "parts": a["parts"], "gap": a["gap"]}
        for question, a in zip(QUESTIONS, ours, strict=True)
    ]
    prompts = all(a["prompt"] == b["prompt"] for a, b in zip(ours, theirs, strict=True))
    near = all(row["gap"] is None or row["gap"] <= args.near for row in rows)
    result = {
        "command": invocation(), "files": files, "export_seconds": round(seconds, 1), "same_prompts": prompts,
        "same": prompts and near, "answers": rows, "versions": installed("vllm", "transformers", "torch"),
    }  # fmt: skip
    tell(result, args.output)
    sys.exit(not result["same"])


if __name__ == "__main__":
    main()
