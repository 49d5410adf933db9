"""GPUs, leased through Prefect, so that two runs of one server never compute on the same one.

Each GPU of a host has a global concurrency limit of its name, `gpu-<host>-<index>`, whose slots are the steps that may
share it (`execution.steps_per_gpu`). A step holds its slots from before its process starts until it has ended: a base
model, or a signal stage unless `execution.stages_share` says otherwise, all those of a GPU, a step of several processes
all those of as many GPUs, any other one share. Slots of several GPUs are taken at once or not at all, so that two runs
can't wait for each other.

A lease is renewed by this process. Where it dies, the server gives the slots back after LEASE_SECONDS at most and one
round of its repossessor (15 s). Where the server is away for so long that a renewal fails, the step goes on without a
lease and Prefect logs so: hours of training are worth more than the chance that another run asks meanwhile.

A server of the run's own gets the limits that it needs at its start. On any other a missing limit is an error, since
whoever keeps that server decides what runs on its machines. Within this process steps take turns as they came. Left
out: GPUs of other hosts, containers of one host that number its GPUs anew, and programs outside of Prefect.
"""

from __future__ import annotations

import fcntl
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tasks.slots import Turns
from vibethinker import hardware
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.holders import limit_name

_log = logging.getLogger(__name__)

LEASE_SECONDS = 120.0
LOOK_SECONDS = 1.0  # how often a GPU that another run holds is asked for


@dataclass(frozen=True)
class _Limit:
    """A GPU's limit as the server has it."""

    total: int
    active: int


@dataclass
class _Held:
    devices: tuple[str, ...]
    shares: int
    lease: ExitStack = field(default_factory=ExitStack)


class Gpus:
    """The GPUs of this host that this run may use.

    Args:
        devices: as CUDA_VISIBLE_DEVICES names them.
        steps_per_gpu: steps of one share each that a GPU takes.
        most: steps at once, on all of them.
        leased: whether other runs may ask for them too; else Prefect's server isn't asked.
    """

    def __init__(self, devices: Sequence[str], steps_per_gpu: int, most: int, leased: bool = True) -> None:
        self.devices, self._shares, self._most, self._leased = tuple(devices), steps_per_gpu, most, leased
        self._turns = Turns()
        self._held: list[_Held] = []

    @contextmanager
    def take(
        self,
        whole: int,
        expected: Callable[[], bool] | None = None,
        *,
        check: Callable[[], None] = lambda: None,
        waits: Callable[[str], None] = lambda text: None,
    ) -> Iterator[tuple[str, ...]]:
        """Hold `whole` GPUs, or a share of one if it is 0, for the `with` block; which ones is yielded.

        Args:
            expected: see `Turns.take`.
            check: called now and then while it waits; what it raises ends the wait.
            waits: told once if other runs hold what is needed.

        Raises:
            ConfigurationError: a limit is missing, or the step needs more GPUs than there are.
            InfrastructureError: the server doesn't answer.
        """
        if whole > len(self.devices):
            raise ConfigurationError(
                f"execution.processes is {whole} but this run has {len(self.devices)} GPUs: lower it."
            )
        told = False

        def attempt() -> _Held | None:
            nonlocal told
            check()
            free = self._free_here(whole)
            if len(free) < max(1, whole) or len(self._held) >= self._most:
                return None
            held = self._lease(free, whole)
            if held is None and not told:
                told = True
                waits(f"waits for another run's end on {', '.join(map(limit_name, free))}")
            return held

        held = self._turns.take(attempt, expected, LOOK_SECONDS)
        try:
            yield held.devices
        finally:
            try:
                held.lease.close()
            except (httpx.HTTPError, OSError) as error:  # the server forgets a lease that isn't renewed
                _log.warning("%s could not be given back, and is free in %d s: %s", held.devices, LEASE_SECONDS, error)
            finally:
                with self._turns.changed:
                    self._held.remove(held)
                    self._turns.changed.notify_all()

    def check(self) -> None:
        """Refuse a server that lacks a limit.

        Raises:
            ConfigurationError: which, and the commands that create them.
            InfrastructureError: the server doesn't answer.
        """
        if self._leased:
            self._limits(self.devices)

    def _free_here(self, whole: int) -> list[str]:
        """The GPUs that steps of this process leave enough of, the emptiest first."""
        taken: Counter[str] = Counter()
        for held in self._held:
            taken.update(dict.fromkeys(held.devices, held.shares))
        needed = self._shares if whole else 1
        free = [device for device in self.devices if self._shares - taken[device] >= needed]
        return sorted(free, key=lambda device: taken[device])

    def _lease(self, free: Sequence[str], whole: int) -> _Held | None:
        """Slots of the first GPUs that no other run holds; None if there are too few."""
        if not self._leased:
            self._held.append(_Held(tuple(free[: max(1, whole)]), self._shares if whole else 1))
            return self._held[-1]
        limits = self._limits(self.devices)
        # A server may count otherwise than this run: a share is then as many slots as keep to both.
        needed = {d: limits[d].total if whole else -(-limits[d].total // self._shares) for d in free}
        open_now = [device for device in free if limits[device].active + needed[device] <= limits[device].total]
        chosen = [device for device in open_now if needed[device] == needed[open_now[0]]][: max(1, whole)]
        if len(chosen) < max(1, whole):
            return None
        held = _Held(tuple(chosen), self._shares if whole else 1)
        if not _acquire(held.lease, [limit_name(device) for device in chosen], needed[chosen[0]]):
            return None
        self._held.append(held)
        return held

    def _limits(self, devices: Sequence[str]) -> dict[str, _Limit]:
        from prefect.client.orchestration import get_client
        from prefect.exceptions import ObjectNotFound

        found, missing = {}, []
        try:
            with get_client(sync_client=True) as client:
                for device in devices:
                    try:
                        limit = client.read_global_concurrency_limit_by_name(limit_name(device))
                    except ObjectNotFound:
                        missing.append(limit_name(device))
                        continue
                    if limit.active and limit.limit:
                        found[device] = _Limit(limit.limit, limit.active_slots)
                        continue
                    raise ConfigurationError(
                        f"Prefect's limit {limit.name} is switched off: switch it on by `prefect gcl update "
                        f"{limit.name} --enable --limit {self._shares}`, or hide its GPU by CUDA_VISIBLE_DEVICES."
                    )
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if missing:
            commands = "; ".join(f"prefect gcl create {name} --limit {self._shares}" for name in missing)
            raise ConfigurationError(
                f"Prefect's server has no concurrency limit for {len(missing)} of this host's GPUs, so two runs could "
                f"take the same one: create what is missing by `{commands}`."
            )
        return found


def _acquire(lease: ExitStack, names: list[str], slots: int) -> bool:
    """Take slots of all these limits and keep them until `lease` is closed; False if another run was quicker."""
    from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    try:
        lease.enter_context(
            concurrency(
                names, occupy=slots, max_retries=0, lease_duration=LEASE_SECONDS, strict=True,
                raise_on_lease_renewal_failure=False,
            )
        )  # fmt: skip
    except ConcurrencySlotAcquisitionError as error:
        cause = error.__cause__
        if isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.LOCKED:
            return False
        raise _unreachable(cause or error) from error
    return True


def _unreachable(error: BaseException) -> InfrastructureError:
    reason = str(error).splitlines()[0] if str(error) else "no message"
    return InfrastructureError(
        f"Prefect's server gives no lease of a GPU ({type(error).__name__}: {reason}): see that it runs and answers."
    )


def create_limits(config: Config, home: Path) -> ExitStack:
    """Give a server of this run's own the limits that it needs, and free what a killed run has left taken.

    Runs of one workspace have servers of their own but one database, so slots are freed only while no other run is
    alive there, which a lock on a file in `home` tells, shared by all of them.

    Returns:
        what holds that lock; close it when the run is over.
    """
    alive = ExitStack()
    if hardware.device(config) != "cuda":
        return alive
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate

    lock = alive.enter_context((home / "runs.lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)
        alone = False
    with get_client(sync_client=True) as client:
        for name in map(limit_name, hardware.devices()):
            client.upsert_global_concurrency_limit_by_name(name, config.execution.steps_per_gpu)
            if alone:
                client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active_slots=0))
    fcntl.flock(lock, fcntl.LOCK_SH)
    return alive
