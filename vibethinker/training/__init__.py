"""Training: supervised (`sft`), and by reinforcement (`signal`, with `mgpo`'s formulae and the trainer in
`trainer`)."""
