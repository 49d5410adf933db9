"""The tiny base model of the default: a Qwen3-architecture network and its tokenizer, trained on the spot."""
