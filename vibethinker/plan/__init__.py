"""The steps of a run, their fingerprints and their states, without executing anything.

A step is a function of its inputs. Its fingerprint is sha256 over its kind, the version of that kind's code, its
semantic settings but for limits at which it only stops, the fingerprints of what it reads and the digests of outside
files, so all fingerprints are known before anything runs. What a step decides (which checkpoint probing chose) is
content of its output, not of its name. Loads no torch. What each step will cost is estimated in
`vibethinker.estimates`.
"""

from vibethinker.plan.building import build, decided_by, plugin_notes
from vibethinker.plan.reuse import StepState, reuse_warnings, states
from vibethinker.plan.steps import Plan, Step, role_of

__all__ = ["Plan", "Step", "StepState", "build", "decided_by", "plugin_notes", "reuse_warnings", "role_of", "states"]
