"""Fusion: one model from several of one base, tensor by tensor. docs/fusion.md has the methods and when to use which.

`merging` reads and writes folders, `engine` streams their tensors through one of `methods`, `adapters` fuses adapters
as adapters, `search` looks for weights, and `step` is the recipe's step. All but adapters that are merged and what
generates goes without torch, whose import takes longer than many a fusion.
"""

from vibethinker.fusion.merging import fuse, normalised

__all__ = ["fuse", "normalised"]
