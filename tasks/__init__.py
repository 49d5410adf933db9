"""Thin Prefect tasks around the steps of the recipe: cache look-up, retries, slots, artifacts. No maths."""
