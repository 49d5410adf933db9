"""One training step as several processes, its ranks, each on a GPU of its own or on a part of the CPU.

The step's child is rank 0. It forks ranks 1 … n-1 before anything heavy is imported or a GPU is touched, in its own
process group, so that what ends the group ends them all, and lets accelerate find them through the environment. All
ranks run the same step function; rank 0 alone holds the step's lock, speaks to the parent and writes the output, the
others get a folder whose content is dropped.

Where a step is spread over several machines (`execution.nodes`), each has its part of the ranks, and to rank 0 another
machine is like one more rank (`vibethinker.worker.nodes`).

Left out: restarting a single rank.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vibethinker import steps
from vibethinker.artifacts import SCRATCH
from vibethinker.errors import ConfigurationError
from vibethinker.worker import nodes
from vibethinker.worker.family import Parent, Ranks, become, compute

# The embedded base isn't among them: a network of a million weights gains nothing, and Muon wants whole matrices.
TRAINS = ("specialist", "signal", "distilled")
LOOPBACK = "127.0.0.1"


def count(kind: str, execution: Mapping[str, Any]) -> int:
    """Processes of a step: as many as its execution settings say where it trains, else one."""
    return execution.get("processes", 1) if kind in TRAINS or kind not in steps.STEP_FUNCTIONS else 1


def here(kind: str, execution: Mapping[str, Any]) -> int:
    """Processes of a step on one machine."""
    return count(kind, execution) // (execution.get("nodes", 1) if count(kind, execution) > 1 else 1)


def run(
    kind: str, context: steps.StepContext, gpus: str | None, parent: Parent, workspace: Path | None = None
) -> steps.Metrics:
    """Run a step's function in as many processes as it takes, and return what rank 0's returned.

    Args:
        workspace: in which other machines are called for.
        gpus: comma-separated names as CUDA_VISIBLE_DEVICES has them, one a process; None: those that this process sees.

    Raises:
        ConfigurationError: there are fewer GPUs than processes.
        VibeThinkerError: of the class of the rank that failed first.
    """
    execution = dict(context.execution)
    execution["processes"] = processes = count(kind, execution)
    if processes == 1:
        return compute(kind, replace(context, execution=execution))
    local = here(kind, execution)
    for name in ("threads", "verifier_workers"):
        execution[name] = max(1, execution[name] // local)
    context, scratch = replace(context, execution=execution), context.output.with_name(context.output.name + SCRATCH)
    address = _address(execution["main_address"]) if local < processes else LOOPBACK
    others = list[nodes.Node]()
    with contextlib.ExitStack() as stack:
        if local < processes:
            assert workspace is not None
            _free_port(address)  # before a wait of hours, over which none stays free
            others = stack.enter_context(nodes.called(kind, context, workspace, address))
        port = _free_port(address)
        ranks = Ranks(processes, parent, others)
        stack.callback(ranks.end, scratch)
        names = prepare(context, local, address, port, gpus)
        for node in others:
            node.begin(port)
        ranks.start(range(1, local), kind, context, scratch, names)
        become(0, names[0] if names else None)
        with ranks.watched():
            metrics = compute(kind, context)
            ranks.wait()
        return metrics


def prepare(context: steps.StepContext, local: int, address: str, port: int, gpus: str | None = None) -> list[str]:
    """Set what this machine's ranks inherit; the GPU of each, none on a CPU.

    Args:
        local: how many they are.
        address, port: of the store by which all of the step find each other.
    """
    execution = context.execution
    os.environ.update(_environment(execution["processes"], local, execution["threads"], address, port))
    return _gpus(gpus, local) if execution["device"] == "cuda" else []


def _environment(processes: int, local: int, threads: int, address: str, port: int) -> dict[str, str]:
    """What accelerate, torch and NCCL read, alike for all ranks of a machine.

    All have LOCAL_RANK 0, since each sees one GPU, which is then its first. Those of one machine talk over the
    loopback: a container's own name often leads nowhere. NVLink multicast fails in virtual machines that pass GPUs
    through, and two to eight GPUs lose little without it.
    """
    loopback = "lo" if sys.platform == "linux" else "lo0"
    fixed = {
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    usual = {"NCCL_NVLS_ENABLE": "0"}
    if is_loopback(address):
        usual |= {"NCCL_SOCKET_IFNAME": loopback, "GLOO_SOCKET_IFNAME": loopback}
    return fixed | {name: value for name, value in usual.items() if name not in os.environ}


def is_loopback(address: str) -> bool:
    """Whether an address or name is of this machine alone."""
    found = _resolved(address)
    return found is not None and found.is_loopback


def _resolved(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(socket.gethostbyname(address))
    except OSError:
        return None


def _address(given: str | None) -> str:
    """Where the step's other machines reach this one: by the address that the configuration gives, else by its name.

    Raises:
        ConfigurationError: they can't, as where its own hosts file says that the name is its loopback.
    """
    address = given or socket.gethostname()
    found = _resolved(address)
    if found is not None and (found.is_unspecified or (found.is_loopback and not given)):
        raise ConfigurationError(
            f"Other machines can't reach this one at {address!r}, which is {found} here: set execution.main_address to "
            "one of its own addresses that they reach."
        )
    return address


def _free_port(address: str) -> int:
    """A port of this machine at the address by which the step's ranks reach it."""
    try:
        with socket.create_server((address, 0)) as one:
            return one.getsockname()[1]
    except OSError as error:
        raise ConfigurationError(
            f"This machine can't be reached at {address!r} ({error.strerror}): set execution.main_address to one of "
            "its own addresses that the other machines reach."
        ) from None


def _gpus(named: str | None, processes: int) -> list[str]:
    named = named or os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(processes)))
    gpus = [name.strip() for name in named.split(",") if name.strip()]
    if len(gpus) < processes:
        raise ConfigurationError(
            f"execution.processes is {processes} but the step has {len(gpus)} GPU: lower it, or give it more GPUs."
        )
    return gpus
