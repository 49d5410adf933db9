"""One plugin of each kind, a file each; docs/extending.md has what each kind must be."""
