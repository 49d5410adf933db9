"""Evaluation: sampling and grading of problem sets, estimators with intervals, paired comparison."""
