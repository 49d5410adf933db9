"""A reward: right answers that are reached in few words. Used by `reward: concise` of a signal stage.

The response was written by a model and is hostile: it is compared as text, and never evaluated or run.
"""

from vibethinker.verification import extract_answer

MOST = 60  # words


def concise(response: str, gold: str, problem: str) -> bool:
    """Whether the boxed answer is the gold one to the letter, after at most MOST words."""
    return extract_answer(response, problem) == gold.strip() and len(response.split()) <= MOST
