"""A model's way out: found by its folder or its step's name, written as what others load, with a card, and proven.

`finding` names the folder, `folder` writes what transformers and vLLM load, `gguf_file` what llama.cpp loads, `card`
the README.md that says what made it, `placing` puts a finished export in its place, and `hub` uploads it.
"""
