"""Data: records, sources, procedural problems, decontamination and splits."""
