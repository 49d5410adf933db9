"""One module a group of commands; each imports what is heavy when it runs."""
