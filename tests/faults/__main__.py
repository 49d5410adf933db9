"""The long campaign: `python -m tests.faults --random 40 --output docs/results/faults.md`.

Cases that were played are kept in FOLDER/results.jsonl, so that the campaign itself can be killed and goes on.
"""

from __future__ import annotations

import argparse
import atexit
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from flows.server import Server, environment
from tests.faults.harness import Case, Reference, Result, cases, play


def main() -> int:
    """Play the cases that are left, and write the table; 1 if one of them went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="micro")
    parser.add_argument("--random", type=int, default=40, help="kills at random moments, beside those at every point")
    parser.add_argument("--no-points", action="store_true", help="only kills at random moments")
    parser.add_argument("--seconds", type=float, help="begin no case later than this")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--alone", action="store_true", help="undo a case's own step only, not those that follow")
    parser.add_argument("--shared-server", action="store_true", help="one Prefect server for all, not one a start")
    parser.add_argument("--folder", type=Path, default=Path("workspace-faults"))
    parser.add_argument("--output", type=Path, help="the table, in Markdown")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder.resolve()
    environ: dict[str, str] = {}
    if options.shared_server:
        server = Server(folder / "prefect", folder / "prefect.log")
        atexit.register(server.close)
        server.wait()
        environ = {**environment(folder / "prefect"), "PREFECT_API_URL": server.url}
    reference = Reference(folder, options.profile, folder / "reference", environ, options.alone)
    file = folder / "results.jsonl"
    all_cases, began = cases(reference, options.random, points=not options.no_points), time.monotonic()
    results = {r["case"]: Result(**r) for r in map(json.loads, file.read_text().splitlines())} if file.exists() else {}

    def one(case: Case) -> None:
        late = options.seconds is not None and time.monotonic() - began > options.seconds
        if case.name in results or late:
            return
        result = play(reference, case, folder / "cases" / case.name.replace(" ", "-").replace(":", "-"))
        results[case.name] = result
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(result), sort_keys=True) + "\n")
        print(f"{len(results)}/{len(all_cases)} {case.name}: {result.problems or 'identical'}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, all_cases))
    table = markdown(options.profile, all_cases, results)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(table, encoding="utf-8")
    else:
        print(table)
    return int(any(result.problems for result in results.values()))


def markdown(profile: str, all_cases: list[Case], results: dict[str, Result]) -> str:
    """The table of the cases that were played, those in which something went wrong first."""
    played = [(case, results[case.name]) for case in all_cases if case.name in results]
    played.sort(key=lambda pair: (not pair[1].problems, pair[0].at == "random", pair[0].at, pair[0].step))
    good = sum(not result.problems for _, result in played)
    lines = [
        f"# Runs that were broken: {profile}",
        "",
        f"Written by `make faults`. {len(played)} of {len(all_cases)} cases were played, {good} of them ended as they "
        "should: every output of every step byte-identical to an uninterrupted run, no step done again once it was "
        "published, one MLflow run with each metric step once, no process left behind.",
        "",
        "`run`: the whole run gets SIGKILL at that place; `process`: only the process that is there; ENOSPC, EIO: the "
        "call there fails.",
        "",
        "| where | step | what | restarts | steps begun again | as it should |",
        "|---|---|---|---|---|---|",
    ]
    for case, result in played:
        place = f"at {result.share:.0%} of its time" if case.at == "random" else f"`{case.at}`"
        again, verdict = ", ".join(result.rerun) or "–", "; ".join(result.problems) or "yes"
        row = (place, case.step, case.action, result.restarts, again, verdict)
        lines.append("| " + " | ".join(map(str, row)) + " |")
    if missing := [case.name for case in all_cases if case.name not in results]:
        lines += ["", f"Not played: {'; '.join(sorted(missing))}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
