"""How far one run goes: many stub specialists through a Prefect server on PostgreSQL or SQLite, by threads or Ray.

    python benchmarks/scale.py [--steps 1000] [--databases …] [--runners …] [--flows 1 4 16] [--output FILE]

The stubs go the whole way of real ones: a Prefect task, a slot or a Ray worker, a child process, an output with its
manifest, MLflow, the run's summary; only their work takes no time. So `seconds_a_step` is what orchestration costs,
where two steps run at once. Beside it: CPU seconds of the server, its database and the rest, sampled from the outside,
what the database grew by, and `late`, the seconds after the last step until the server had every step's end.

`flood` is the server alone: flows of 250 tasks that do nothing, each in a process of its own, as many at once as
`--flows` says; its limit shows in tasks a second that don't grow any more, in `late`, and in tasks that are `missing`
(LATE_SECONDS later, the server knew no end of them) or flows that failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from outcome import installed, invocation, tell

TASKS_A_FLOW = 250
LATE_SECONDS = 120.0
POSTGRES = Path("/usr/lib/postgresql")  # Debian's; elsewhere initdb and postgres are looked for in PATH


def main() -> None:
    """Measure every combination and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--databases", nargs="+", default=["postgresql", "sqlite"], choices=["postgresql", "sqlite"])
    parser.add_argument("--runners", nargs="+", default=["threads", "ray"], choices=["threads", "ray"])
    parser.add_argument("--flows", type=int, nargs="*", default=[1, 4, 16], help="flows at once")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)  # what runs in a process of its own
    arguments = parser.parse_args()
    if arguments.inside:
        what, runner, workspace = arguments.inside
        steps(runner, arguments.steps, Path(workspace)) if what == "steps" else flood()
        return
    found: dict[str, Any] = {"steps": arguments.steps, "at_once": 2, "runs": [], "flood": []}
    load = os.getloadavg()[0]
    for database in arguments.databases:
        for runner in arguments.runners:
            with tempfile.TemporaryDirectory() as folder, serving(database, Path(folder)) as server:
                found["runs"].append(said(measure_steps(server, runner, arguments.steps, Path(folder))))
        for flows in arguments.flows:
            with tempfile.TemporaryDirectory() as folder, serving(database, Path(folder)) as server:
                found["flood"].append(said(measure_flood(server, flows)))
    found |= {
        "load_before": round(load, 1),
        "versions": installed("prefect", "prefect-ray", "ray", "sqlalchemy", "asyncpg", "aiosqlite"),
        "postgresql": postgres_version() if "postgresql" in arguments.databases else None,
        "command": invocation(),
    }
    tell(found, arguments.output)


def said(row: dict[str, Any]) -> dict[str, Any]:
    """Show one measurement at once."""
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


# ---- servers ----


@dataclass
class Serving:
    """A Prefect server with its database; `processes` maps a name to the processes whose CPU seconds count under it."""

    database: str
    url: str
    environ: dict[str, str]
    processes: dict[str, psutil.Process]
    size: Any
    used: dict[tuple[str, int, float], float] = field(default_factory=dict)

    def count(self, state: str | None = None) -> int:
        """Task runs that the server knows, in this state if given."""
        body = {"task_runs": {"state": {"type": {"any_": [state]}}}} if state else {}
        answer = httpx.post(f"{self.url}/task_runs/count", json=body, timeout=60)
        answer.raise_for_status()
        return int(answer.json())

    def late(self, expected: int) -> tuple[float, int]:
        """Seconds until the server has the end of so many task runs, and how many it hasn't after LATE_SECONDS."""
        began = time.monotonic()
        while (known := self.count("COMPLETED")) < expected and time.monotonic() - began < LATE_SECONDS:
            time.sleep(0.2)
        return round(time.monotonic() - began, 1), expected - known

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Follow the CPU seconds of all processes during the `with` block."""
        ended = threading.Event()
        before = dict(self._sample())

        def follow() -> None:
            while not ended.wait(0.5):
                self.used.update(self._sample())

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            self.used.update(self._sample())
            ended.set()
            thread.join()
            for key, seconds in before.items():
                self.used[key] = self.used.get(key, seconds) - seconds

    def cpu(self) -> dict[str, float]:
        """Name → CPU seconds."""
        total: dict[str, float] = {}
        for (name, _, _), seconds in self.used.items():
            total[name] = total.get(name, 0.0) + seconds
        return {name: round(seconds, 1) for name, seconds in total.items()}

    def _sample(self) -> Iterator[tuple[tuple[str, int, float], float]]:
        for name, root in list(self.processes.items()):
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for one in family:
                try:
                    times = one.cpu_times()
                    yield (name, one.pid, one.create_time()), times.user + times.system
                except psutil.Error:
                    continue


@contextmanager
def serving(database: str, folder: Path) -> Iterator[Serving]:
    """`prefect server start` on loopback, on a database of its own."""
    port, home = free_port(), folder / "prefect"
    environ = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    }
    home.mkdir()
    file = home / "prefect.db"
    size: Any = lambda: sum(p.stat().st_size for p in home.glob("prefect.db*"))  # noqa: E731
    with postgres(folder) if database == "postgresql" else no_postgres() as started:
        if started:
            environ["PREFECT_API_DATABASE_CONNECTION_URL"] = started.address
            size = started.size
        else:
            environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{file}"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen([*command, "--no-ui"], env=environ, stdout=log, stderr=log)
        try:
            made = Serving(database, environ["PREFECT_API_URL"], environ, {"server": psutil.Process(process.pid)}, size)
            if started:
                made.processes["database"] = psutil.Process(started.pid)
            wait_for(f"{made.url}/health", process, folder / "server.log")
            yield made
        finally:
            process.terminate()
            process.wait(30)


@dataclass
class Postgres:
    """A running PostgreSQL."""

    address: str
    pid: int
    size: Any


@contextmanager
def no_postgres() -> Iterator[None]:
    """SQLite needs no server."""
    yield None


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """PostgreSQL with its defaults, on a socket in a folder, under a user of its own where this one is root."""
    data = Path(tempfile.mkdtemp(prefix="scale-pg-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(data, user)
    run: dict[str, Any] = {"user": user, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    try:
        setup = [program("initdb"), "-D", f"{data}/db", "-U", "prefect", "-A", "trust", "-E", "UTF8"]
        subprocess.run(setup, check=True, **run)
        server = subprocess.Popen(
            [program("postgres"), "-D", f"{data}/db", "-k", str(data), "-c", "listen_addresses="], **run
        )
        try:
            sql = [program("psql"), "-h", str(data), "-U", "prefect", "-d", "postgres", "-tAc"]
            while subprocess.run([*sql, "select 1"], capture_output=True).returncode:
                time.sleep(0.1)
            subprocess.run([*sql, "create database prefect"], check=True, capture_output=True)
            ask = [*sql, "select pg_database_size('prefect')"]
            size = lambda: int(subprocess.run(ask, check=True, capture_output=True).stdout)  # noqa: E731
            yield Postgres(f"postgresql+asyncpg://prefect@/prefect?host={data}", server.pid, size)
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def program(name: str) -> str:
    """A program of PostgreSQL's, of the newest version that is installed."""
    installed_here = sorted(POSTGRES.glob(f"*/bin/{name}"), key=lambda p: float(p.parents[1].name))
    if found := (str(installed_here[-1]) if installed_here else shutil.which(name)):
        return found
    raise SystemExit(f"There is no {name}: install PostgreSQL, or leave it out by --databases sqlite.")


def postgres_version() -> str:
    """What `postgres --version` says."""
    return subprocess.run([program("postgres"), "--version"], check=True, capture_output=True, text=True).stdout.strip()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a server answers."""
    while process.poll() is None:
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"The server didn't start:\n{log.read_text()[-3000:]}")


def free_port() -> int:
    """A port of this machine's that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- what is measured ----


def measure_steps(server: Serving, runner: str, number: int, folder: Path) -> dict[str, Any]:
    """One run of so many stub specialists."""
    environ = {
        **server.environ,
        "VIBETHINKER_PRELOAD": "scale_stub",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, __file__, "--steps", str(number), "--inside", "steps", runner, str(folder / "workspace")]
    size = server.size()
    run = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
    server.processes["run"] = psutil.Process(run.pid)
    with server.sampled():
        output = run.communicate()[0]
        if run.returncode:
            raise SystemExit(f"The run of {number} steps by {runner} on {server.database} failed; see above.")
        late, missing = server.late(number)
    told = json.loads(output.splitlines()[-1])
    cpu = server.cpu()
    return {
        "database": server.database,
        "runner": runner,
        **told,
        "seconds_a_step": round(told["seconds"] / number, 3),
        "late": late,
        "missing": missing,
        "cpu_seconds": cpu,
        "server_cpu_ms_a_step": round(1000 * (cpu["server"] + cpu.get("database", 0.0)) / number, 1),
        "database_bytes_a_step": round((server.size() - size) / number),
    }


def measure_flood(server: Serving, flows: int) -> dict[str, Any]:
    """So many flows at once, each of TASKS_A_FLOW tasks that do nothing."""
    command = [sys.executable, __file__, "--inside", "flood", "-", "-"]
    size = server.size()
    with server.sampled():
        runs = [
            subprocess.Popen(command, env=server.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(flows)
        ]
        for run in runs:
            assert run.stdout
            run.stdout.readline()  # it is ready
        began = time.monotonic()
        for run in runs:
            assert run.stdin
            run.stdin.close()
        failed = sum(run.wait() != 0 for run in runs)
        seconds = time.monotonic() - began
        late, missing = server.late((flows - failed) * TASKS_A_FLOW)
    total = max(1, flows - failed) * TASKS_A_FLOW
    return {
        "database": server.database,
        "flows": flows,
        "tasks": total,
        "tasks_a_second": round(total / seconds, 1),
        "late": late,
        "missing": missing,
        "failed_flows": failed,
        "cpu_seconds": server.cpu(),
        "database_bytes_a_task": round((server.size() - size) / total),
    }


# ---- inside a process of its own ----


def steps(runner: str, number: int, workspace: Path) -> None:
    """The run; prints how long its steps and its end took."""
    from prefect import flow

    from flows.pipeline import THREADS
    from flows.running import running
    from tasks import session
    from tasks.recipe import train_specialist
    from vibethinker import config
    from vibethinker.plan import Plan, Step, build

    settings = config.load("micro", overrides=[f"scaling.runner={runner}"], environ={})
    real = build(settings, workspace)["specialist-algebra"].settings
    names = [f"specialist-{n:05}" for n in range(number)]
    made = [Step(n, "specialist", real, {}, hashlib.sha256(n.encode()).hexdigest()) for n in names]
    plan, at = Plan(settings, tuple(made), workspace), {}

    class Quiet:
        def event(self, step: Any, event: Any) -> None:
            pass

        def state(self, step: Any, state: str, detail: str = "") -> None:
            at.setdefault(state, time.monotonic())
            at["last"] = time.monotonic()

    @flow(name="scale", task_runner=THREADS)
    def scale() -> None:
        with running("specialist", "micro", None, None) as run:
            at["begun"] = time.monotonic()
            run.start(train_specialist)

    with session.opened(plan, Quiet()):
        began = time.monotonic()
        scale()
        ended = time.monotonic()
    print(
        json.dumps(
            {
                "start": round(at["begun"] - began, 1),
                "seconds": round(at["last"] - at["begun"], 1),
                "first_done_after": round(at["done"] - at["begun"], 1),
                "finish": round(ended - at["last"], 1),
            }
        )
    )


def flood() -> None:
    """A flow of tasks that do nothing, begun once stdin ends."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner

    @task(cache_policy=NO_CACHE, persist_result=False)
    def nothing(n: int) -> None:
        return None

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=64))
    def many() -> None:
        for future in [nothing.submit(n) for n in range(TASKS_A_FLOW)]:
            future.wait()

    print("ready", flush=True)
    sys.stdin.read()
    many()


if __name__ == "__main__":
    main()
