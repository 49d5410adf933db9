"""What llama.cpp makes of a GGUF file, in a process of its own, since it ends the process where it fails.

python llama_cpp.py FILE < {"texts": [...], "tokens": N}  →  {"prompts": [[ids]], "answers": [[ids]]}
"""

from __future__ import annotations

import json
import sys

import httpx
import xllamacpp


def main() -> None:
    asked = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    server = xllamacpp.Server(params)
    address = server.listening_address
    found = {"prompts": [], "answers": []}
    for text in asked["texts"]:
        body = {"content": text, "add_special": False, "parse_special": True}
        ids = httpx.post(f"{address}/tokenize", json=body, timeout=60).json()["tokens"]
        more = {"n_predict": asked["tokens"], "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        found["prompts"].append(ids)
        found["answers"].append(
            httpx.post(f"{address}/completion", json={"prompt": ids, **more}, timeout=60).json()["tokens"]
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
