"""What others add to the recipe: one table of names for what comes with it and what installed distributions bring.

A plugin is an entry point of one of GROUPS; docs/extending.md has what each group's object must be. Names are known
without importing anything, so that a configuration is checked in a process without torch; an object is imported where
it is used, in a step's process or a verifier's. A name of BUILT_IN can't be taken. A plugin's code is trusted as this
package's is; what a model wrote reaches it as text, and it must neither evaluate nor run that.

Of a step whose result a plugin decides, the fingerprint names the plugin's distribution and its version (`versions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from vibethinker.errors import ConfigurationError

DOMAINS, REWARDS, FUSION = "vibethinker.domains", "vibethinker.rewards", "vibethinker.fusion"
BENCHMARKS, NOTIFICATIONS = "vibethinker.benchmarks", "vibethinker.notifications"
# Group → what one of it is called in a sentence.
GROUPS = {
    DOMAINS: "domain of generated problems",
    REWARDS: "reward",
    FUSION: "fusion method",
    BENCHMARKS: "benchmark",
    NOTIFICATIONS: "notification channel",
}
# The recipe's own; its benchmarks are rows of data/benchmarks.yaml, which `vibethinker.data.registry` adds.
BUILT_IN: dict[str, dict[str, str]] = {
    DOMAINS: {
        "algebra": "vibethinker.data.procedural.algebra:FAMILIES",
        "geometry": "vibethinker.data.procedural.geometry:FAMILIES",
        "calculus": "vibethinker.data.procedural.calculus:FAMILIES",
        "statistics": "vibethinker.data.procedural.statistics:FAMILIES",
        "code": "vibethinker.data.procedural.code:FAMILIES",
    },
    REWARDS: {  # the verifier's own kinds, for which it has more than one function (`vibethinker.verification`)
        "math": "vibethinker.verification.equivalence:judge",
        "code": "vibethinker.verification.programs:judge",
    },
    FUSION: {
        "linear": "vibethinker.fusion.methods.linear:Linear",
        "pass_at_k": "vibethinker.fusion.methods.linear:Linear",  # by weights from probing
        "task_arithmetic": "vibethinker.fusion.methods.task_arithmetic:TaskArithmetic",
        "ties": "vibethinker.fusion.methods.ties:Ties",
        "dare": "vibethinker.fusion.methods.dare:Dare",
        "slerp": "vibethinker.fusion.methods.slerp:Slerp",
    },
    BENCHMARKS: {},
    NOTIFICATIONS: {  # by name alone: what the library is used by isn't imported here
        "slack": "tasks.channels:slack",
        "apprise": "tasks.channels:apprise",
    },
}


@dataclass(frozen=True)
class Plugin:
    """One name of a group.

    Attributes:
        distribution, version: of what it came with; of the recipe's own both are empty.
    """

    entry: metadata.EntryPoint
    distribution: str = ""
    version: str = ""

    @property
    def what(self) -> str:
        """It, as a sentence calls it."""
        of = f" of {self.distribution} {self.version}" if self.distribution else ""
        return f"{GROUPS[self.entry.group]} {self.entry.name!r}{of}"

    def load(self) -> Any:
        """The object itself.

        Raises:
            ConfigurationError: it can't be imported.
        """
        try:
            return self.entry.load()
        except Exception as error:  # whatever a module that others wrote does when it is imported
            if not self.distribution:
                raise
            reason = type(error).__name__ + (f": {lines[0]}" if (lines := str(error).splitlines()) else "")
            raise ConfigurationError(
                f"The {self.what} can't be loaded ({reason}): install what it needs, or mend or uninstall "
                f"{self.distribution}."
            ) from error


@cache
def installed(group: str) -> Mapping[str, tuple[Plugin, ...]]:
    """Name → the plugins that other distributions bring under it, more than one where they disagree."""
    found: dict[str, dict[str, Plugin]] = {}
    for entry in metadata.entry_points(group=group):
        of = entry.dist
        assert of is not None
        found.setdefault(entry.name, {})[of.name] = Plugin(entry, of.name, of.version)
    return {name: tuple(some.values()) for name, some in sorted(found.items())}


def names(group: str) -> list[str]:
    """All names of a group, the recipe's own first."""
    return [*BUILT_IN[group], *(name for name in installed(group) if name not in BUILT_IN[group])]


def find(group: str, name: str) -> Plugin:
    """What a name means; imports nothing.

    Raises:
        ConfigurationError: nothing, or things of two distributions.
    """
    if name in BUILT_IN[group]:
        return Plugin(metadata.EntryPoint(name, BUILT_IN[group][name], group))
    some = installed(group).get(name, ())
    if not some:
        from vibethinker.messages import did_you_mean  # pydantic, for which a verifier's process needn't wait

        raise ConfigurationError(f"There is no {GROUPS[group]} {name!r}; {did_you_mean(name, names(group))}.")
    if len(some) > 1:
        both = " and ".join(f"{one.distribution} {one.version}" for one in some)
        raise ConfigurationError(f"The {GROUPS[group]} {name!r} is brought by {both}: uninstall all but one of them.")
    return some[0]


def load(group: str, name: str) -> Any:
    """The object that a name means.

    Raises:
        ConfigurationError: there is none, or it can't be imported.
    """
    return find(group, name).load()


def versions(used: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Distribution → version of the plugins among these names of groups; nothing for what comes with the recipe."""
    found = (find(group, name) for group, name in used)
    return {one.distribution: one.version for one in found if one.distribution}


def present() -> dict[str, str]:
    """Distribution → version of all plugins here."""
    return {one.distribution: one.version for group in GROUPS for some in installed(group).values() for one in some}


def differences(planned: Mapping[str, str], here: Mapping[str, str], where: str) -> Iterator[str]:
    """Sentences about plugins that aren't, in the interpreter that runs a step, those that its fingerprint names.

    Args:
        planned: distribution → version by the plan.
        here: the same, of the interpreter.
        where: how that is called.
    """
    for name, version in planned.items():
        if here.get(name) != version:
            has = f"has {here[name]}" if name in here else "has none"
            yield f"The plan names the plugins of {name} {version}, and {where} {has}: install {name} {version} there."


@dataclass(frozen=True)
class Named:
    """Mark of a setting's type: its value is a name of the group."""

    group: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "enum": names(self.group)}

    def _known(self, name: str) -> str:
        from pydantic_core import PydanticCustomError

        try:
            find(self.group, name)
        except ConfigurationError as error:
            raise PydanticCustomError("plugin", str(error).rstrip(".")) from None
        return name
