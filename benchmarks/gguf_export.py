"""Whether an exported GGUF file is the model: greedy answers by llama.cpp and by transformers, against the folder.

    python benchmarks/gguf_export.py --model FOLDER [--tokens 48] [--original FILE] [--output FILE]

`vibethinker export --format gguf` writes the file, from the folder as it is and from its weights in float32. llama.cpp
(the package xllamacpp, its key-value cache in float32) reads both, transformers the first one in float32, each in a
process of its own without this project, on the CPU. Each puts the same questions by the chat template that it finds in
the file, and answers greedily; the reference is the folder in transformers in float32. `ours` says how many tokens
agree until the first other one of each answer, `peer` how many there are. For each answer that parts, `gap` is by how
much the reference prefers its own token to the other there, in nats. `same` holds if prompts are equal, no gap exceeds
--near, and what computes in float32 never parts.

With --original, a GGUF file of the same model by llama.cpp's own converter, `fields` has what of the tokenizer differs.
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
    "What is 12 + 30? Answer with the number alone.",
    "Solve 3x + 4 = 19 for x.",
    "Is 91 a prime number?",
    "Write a Python function that reverses a string.",
    "Übersetze „naïve café“ ins Englische — 你好, 12345!",
    "Fix this:\n\n```py\ndef f(x):\n\treturn x+ 1  # don't\n```",
)
RESULT = Path(__file__).parent / "results" / "gguf_export.json"
FLOAT32 = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

given = json.load(open(sys.argv[1]))
AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).save_pretrained(given["target"])
AutoTokenizer.from_pretrained(given["model"]).save_pretrained(given["target"])
json.dump({}, open(sys.argv[2], "w"))
"""
LLAMA_CPP = """
import json, sys
import httpx
import xllamacpp

given = json.load(open(sys.argv[1]))
params = xllamacpp.CommonParams()
params.model.path = given["model"]
params.n_ctx, params.n_parallel, params.warmup, params.use_jinja = 1024, 1, False, True
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given["threads"]
server = xllamacpp.Server(params)
rows = []
with httpx.Client(base_url=server.listening_address, timeout=600) as client:
    for text in given["questions"]:
        def ask(path, **body):
            return client.post(path, json=body).raise_for_status().json()

        prompt = ask("/apply-template", messages=[{"role": "user", "content": text}])["prompt"]
        ids = ask("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
        more = {"n_predict": given["tokens"], "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        found = ask("/completion", prompt=ids, **more)
        rows.append({"prompt": ids, "answer": found["tokens"], "ended": found["stop_type"] == "eos"})
json.dump(rows, open(sys.argv[2], "w"))
"""
TRANSFORMERS = """
import json, os, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

given = json.load(open(sys.argv[1]))
torch.set_num_threads(given["threads"])
folder, file = given["model"], {}
if folder.endswith(".gguf"):
    folder, file = os.path.dirname(folder), {"gguf_file": os.path.basename(folder)}
tokenizer = AutoTokenizer.from_pretrained(folder, **file)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file).eval()
stops = model.generation_config.eos_token_id
stops = stops if isinstance(stops, list) else [stops]
rows = []
for text in given["questions"]:
    asked = [{"role": "user", "content": text}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = inputs["input_ids"][0].tolist()
    plain = {"do_sample": False, "repetition_penalty": 1.0, "temperature": None, "top_p": None, "top_k": None}
    with torch.no_grad():
        answer = model.generate(**inputs, **plain, max_new_tokens=given["tokens"])[0].tolist()[len(prompt):]
    ended = answer[-1] in stops
    rows.append({"prompt": prompt, "answer": answer[:-1] if ended else answer, "ended": ended})


def gap(mine, theirs, at):
    # An answer that has ended is followed by what ends it, whichever token that is.
    def chosen(row):
        return [row["answer"][at]] if at < len(row["answer"]) else stops

    before = torch.tensor([mine["prompt"] + mine["answer"][:at]])
    with torch.no_grad():
        logits = model(before).logits[0, -1].log_softmax(-1)
    return float(logits[chosen(mine)].max() - logits[chosen(theirs)].max())


def shown(row):
    # llama.cpp may give the token that ends an answer too.
    answer = row["answer"][:-1] if row["ended"] and row["answer"][-1:] and row["answer"][-1] in stops else row["answer"]
    return {**row, "answer": answer}


compared = {}
for name, others in given.get("others", {}).items():
    compared[name] = []
    for mine, theirs in zip(rows, map(shown, others)):
        ends = [[*row["answer"], *([-1] if row["ended"] else [])] for row in (mine, theirs)]
        longest = max(map(len, ends))
        both = zip(*(one + [None] * (longest - len(one)) for one in ends))
        parts = next((i for i, (a, b) in enumerate(both) if a != b), None)
        same = mine["prompt"] == theirs["prompt"]
        apart = gap(mine, theirs, parts) if same and parts is not None else None
        compared[name].append({"same_prompt": same, "tokens": len(ends[0]), "parts": parts, "gap": apart})
json.dump({"rows": rows, "compared": compared}, open(sys.argv[2], "w"))
"""
FIELDS = """
import json, sys
import gguf

given = json.load(open(sys.argv[1]))
mine, other = ({name: field.contents() for name, field in gguf.GGUFReader(given[key]).fields.items()
                if name.startswith("tokenizer.")} for key in ("model", "original"))
told = {}
for name in sorted({*mine, *other}):
    a, b = mine.get(name), other.get(name)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a != b:
        told[name] = f"{sum(x != y for x, y in zip(a, b))} of {len(a)} differ"
    elif a != b:
        told[name] = {"ours": str(a)[:80], "original": str(b)[:80]}
json.dump(told, open(sys.argv[2], "w"))
"""


def main() -> None:
    """Export, ask all, and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    parser.add_argument("--near", type=float, default=0.25, help="nats below which two tokens are as good as equal")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each that answers")
    parser.add_argument("--original", help="GGUF file of the same model by llama.cpp's own converter")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    given: dict[str, Any] = {"questions": QUESTIONS, "tokens": args.tokens, "threads": args.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, precise = folder / "stored.gguf", folder / "float32.gguf"
        seconds = export(args.model, file)
        fields = peer(FIELDS, {"model": str(file), "original": args.original}, folder) if args.original else None
        peer(FLOAT32, {"model": args.model, "target": str(folder / "float32")}, folder)
        export(str(folder / "float32"), precise)
        others: dict[str, Any] = {
            "llama.cpp": peer(LLAMA_CPP, given | {"model": str(file)}, folder),
            "llama.cpp, float32": peer(LLAMA_CPP, given | {"model": str(precise)}, folder),
            "transformers": peer(TRANSFORMERS, given | {"model": str(file)}, folder)["rows"],
        }
        found = peer(TRANSFORMERS, given | {"model": args.model, "others": others}, folder)
    compared: dict[str, list[dict[str, Any]]] = found["compared"]
    exact = ("llama.cpp, float32", "transformers")
    result = {
        "ours": {name: sum(agreed(row) for row in rows) for name, rows in compared.items()},
        "peer": sum(len(row["answer"]) + row["ended"] for row in found["rows"]),
        "unit": "greedy tokens that are the reference's",
        "same": all(row["same_prompt"] and (row["gap"] or 0) <= args.near for rows in compared.values() for row in rows)
        and all(row["parts"] is None for name in exact for row in compared[name]),
        "largest_gap": {
            name: max((row["gap"] for row in rows if row["gap"] is not None), default=None)
            for name, rows in compared.items()
        },
        "ended": sum(row["ended"] for row in found["rows"]),
        "answers": compared,
        "export_seconds": seconds,
        "fields": fields,
        "versions": installed("vibethinker", "gguf", "xllamacpp", "transformers", "torch"),
        "command": invocation(),
    }
    tell(result, args.output)
    sys.exit(not result["same"])


def export(model: str, output: Path) -> float:
    """Export by this project's own command; the seconds that it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "vibethinker", "export", model, "--format", "gguf", "--output", str(output)]
    subprocess.run(command, stdout=sys.stderr, check=True)
    return round(time.perf_counter() - began, 1)


def agreed(row: dict[str, Any]) -> int:
    """How many of an answer's tokens, its end included, come before the first other one."""
    if not row["same_prompt"]:
        return 0
    return int(row["tokens"] if row["parts"] is None else row["parts"])


if __name__ == "__main__":
    main()
