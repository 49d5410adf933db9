"""report.md of an experiment with its plots, from result.json alone, so that it can be committed as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vibethinker.artifacts import write_text
from vibethinker.reporting.highlights import interval, points
from vibethinker.reporting.standing import standing_alone
from vibethinker.reporting.svg import SERIES, Bar, Series, interval_chart, line_chart
from vibethinker.reporting.text import duration, table

Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def write(folder: Path, result: Mapping[str, Any], curves: Curves) -> None:
    """Write report.md and plots/*.svg."""
    plots = dict(_plots(result, curves))
    for name, figure in plots.items():
        write_text(folder / "plots" / f"{name}.svg", figure)
    write_text(folder / "report.md", markdown(result, plots))


def summarise(result: Mapping[str, Any], folder: Path) -> str:
    """What an experiment says at its end in the terminal."""
    done = sum(run["status"] == "completed" for run in result["runs"])
    lines = [f"{result['id']}: {result['status']}, {done} runs; {_cost(result['cost'])}", ""]
    for row in result["comparisons"]:
        said = "" if row["p"] is None else f"{points(row['difference'])} points {interval(row)}, "
        said += "" if row["p"] is None else f"p {row['p_holm']:.2g} (Holm): "
        lines.append(f"{row['arm']} − {row['control']}, {what(row)}: {said}{verdict(row)}")
    bad = [run for run in result["runs"] if run["status"] != "completed"]
    lines += [f"warning: {run['arm']}, seed {run['seed']} {run['status']}: {run.get('error', '')}" for run in bad]
    return "\n".join([*lines, "", f"report   {folder / 'report.md'}", f"numbers  {folder / 'result.json'}"])


def markdown(result: Mapping[str, Any], plots: Sequence[str] | Mapping[str, str] = ()) -> str:
    """The report; `plots` are names of files in plots/."""
    said = result["registered"]
    done = sum(run["status"] == "completed" for run in result["runs"])
    parts = [
        f"# {result['name']}",
        result["question"],
        f"{result['status'].capitalize()}: {done} of {len(said['arms']) * len(said['seeds'])} runs. "
        f"Control: {said['control']}. Seeds: {', '.join(map(str, said['seeds']))} (each draws {_drawn(said)} anew).",
        "## Differences",
        table(*_differences(result)),
        _reading(said),
        "\n\n".join(f"![{name}](plots/{name}.svg)" for name in plots if name.startswith("difference")),
        "## Arms",
        table(*_means(result)),
        "\n\n".join(f"![{name}](plots/{name}.svg)" for name in plots if name.startswith("training")),
        *_futility(result),
        "## Cost",
        _cost(result["cost"]),
        "## Runs",
        table(["arm", "seed", "run", "status"], [_run(run) for run in result["runs"]]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _differences(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["arm − control", "metric", "points", "95 %", "p (Holm)", "d", "better / worse", "seeds", ""]
    rows = []
    for row in result["comparisons"]:
        start = [f"{row['arm']} − {row['control']}", what(row)]
        if row["p"] is None:
            rows.append([*start, *[""] * 6, "not measured"])
            continue
        d = "" if row["standardised"] is None else f"{row['standardised']:+.1f}".replace("-", "−")
        share = f"{row['better']:.0%} / {row['worse']:.0%}"
        rows.append(
            [
                *start,
                points(row["difference"]),
                interval(row),
                f"{row['p_holm']:.3g}",
                d,
                share,
                str(row["seeds"]),
                verdict(row),
            ]
        )
    return header, rows


def verdict(row: Mapping[str, Any]) -> str:
    """A comparison in words: what it allows one to say."""
    if row["p"] is None:
        return "not measured"
    if row["given_up"]:
        return f"given up after {row['given_up']} seeds"
    if row["diverged"]:
        return f"{row['diverged']} runs diverged"
    if row["significant"]:
        return "better" if row["difference"] > 0 else "worse"
    return "no difference shown"


def what(row: Mapping[str, Any]) -> str:
    """The metric of a comparison with its model and sets."""
    sets = f" on {', '.join(row['sets'])}" if row["sets"] else ""
    return f"{row['metric']}, {row['model']}{sets}"


def _reading(said: Mapping[str, Any]) -> str:
    return (
        "Differences are paired by seed and problem; their intervals speak of other seeds and other problems of the "
        f"same kind. p is corrected by Holm over all {said['family']} comparisons, declared before the first run; "
        f"“better” and “worse” hold together with an error of at most {said['alpha']:g}. d is the difference over the "
        "standard deviation of the seeds' differences. Better / worse: shares of problems, over seeds, on which the "
        "arm did so."
    )


def _means(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    seeds = [str(seed) for seed in result["registered"]["seeds"]]
    rows = []
    for row in result["means"]:
        cells = [f"{row['by_seed'][s] * 100:.1f}" if s in row["by_seed"] else "" for s in seeds]
        mean = "" if row["mean"] is None else f"{row['mean'] * 100:.1f}"
        rows.append([row["arm"], what(row), mean, *cells])
    return ["arm", "metric, %", "mean", *(f"seed {seed}" for seed in seeds)], rows


def _futility(result: Mapping[str, Any]) -> Iterator[str]:
    rule = result["registered"]["futility"]
    if not rule:
        return
    yield "## Futility"
    yield (
        f"After {' and '.join(map(str, rule['looks']))} seeds an arm is given up if none of its differences can still "
        f"be {rule['gain'] * 100:g} points: an arm that has so much is given up with a probability of at most "
        f"{rule['risk']:g}."
    )
    rows = [
        [str(look["after"]), one["arm"], _bounds(one["upper"]), "given up" if one["futile"] else "goes on"]
        for look in result["looks"]
        for one in look["arms"]
    ]
    if rows:
        yield table(["seeds", "arm", "upper bounds, points", ""], rows)


def _bounds(values: Sequence[float | None]) -> str:
    return ", ".join("unknown" if value is None else points(value) for value in values)


def _cost(cost: Mapping[str, Any]) -> str:
    spared = cost["seconds_unshared"] - cost["seconds"]
    usd = "" if cost["usd"] is None else f", {cost['usd']:.2f} USD"
    return (
        f"{cost['outputs']} outputs took {duration(cost['seconds'])} of work{usd}; {cost['trained_tokens']:,} tokens "
        f"were trained on and {cost['generated_tokens']:,} generated. Runs that share nothing would have taken "
        f"{duration(spared)} more."
    )


def _run(run: Mapping[str, Any]) -> list[str]:
    return [
        run["arm"],
        str(run["seed"]),
        run["run_id"],
        f"{run['status']}: {run['error']}" if "error" in run else run["status"],
    ]


def _drawn(said: Mapping[str, Any]) -> str:
    return {
        "signal": "the signal stages",
        "spectrum": "specialists, probes and stages",
        "everything": "everything",
    }[said["reseed"]]


def _plots(result: Mapping[str, Any], curves: Curves) -> Iterator[tuple[str, str]]:
    asked: dict[str, list[Mapping[str, Any]]] = {}
    for row in result["comparisons"]:
        if row["p"] is not None:
            asked.setdefault(f"{what(row)}: points over {row['control']}", []).append(row)
    for number, (title, rows) in enumerate(asked.items(), start=1):
        bars = [Bar(row["arm"], row["difference"], row["low"], row["high"], i % SERIES) for i, row in enumerate(rows)]
        yield f"difference-{number}", standing_alone(interval_chart(title, bars, difference=True))
    for step, arms in curves.items():
        control = result["registered"]["control"]
        others = [arm for arm in arms if arm != control]
        for number, start in enumerate(range(0, max(1, len(others)), SERIES - 1), start=1):
            shown = [*([control] if control in arms else []), *others[start : start + SERIES - 1]]
            series = [
                Series(arm, arms[arm]["step"], arms[arm]["mean"], arms[arm]["low"], arms[arm]["high"], i)
                for i, arm in enumerate(shown)
            ]
            title = f"{step}: mean reward, and its range over the seeds"
            yield f"training-{step}-{number}", standing_alone(line_chart(title, series, "optimizer step", share=True))
