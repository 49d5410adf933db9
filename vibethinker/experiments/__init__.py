"""Experiments: arms of one recipe over several seeds, compared as the file said before the first of them ran."""
