"""What llama.cpp makes of GGUF files, in a process of its own, since it ends the process where it fails.

python llama_cpp.py < [{"file": FILE, "texts": [...], "tokens": N}]  →  [{"prompts": [[ids]], "answers": [[ids]]}]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import xllamacpp


def ask(file: str, texts: list[str], tokens: int) -> dict[str, Any]:
    """The tokens of each text, and of the greedy answer to it."""
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    more = {"n_predict": tokens, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
    found: dict[str, Any] = {"prompts": [], "answers": []}
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:
        for text in texts:
            body = {"content": text, "add_special": False, "parse_special": True}
            ids = client.post("/tokenize", json=body).json()["tokens"]
            found["prompts"].append(ids)
            found["answers"].append(client.post("/completion", json={"prompt": ids, **more}).json()["tokens"])
    return found


if __name__ == "__main__":
    print(json.dumps([ask(**one) for one in json.load(sys.stdin)]))
