"""Each block of code in the documentation is executed, or says why not; and what it says can be said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import yaml

from tests.docs.blocks import PAGES, ROOT, Block, blocks, commands
from vibethinker import config as configuration
from vibethinker.cli import cli
from vibethinker.experiments.design import Design
from vibethinker.settings import Objective

ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in ALL if block.language == "sh"]
OBJECTIVES = {"grpo", "mgpo", "dr_grpo", "dapo", "gspo", "grpo_kl"}  # of docs/objectives.md
# What a block may call beside this project's own command.
OTHERS = {
    ".", "cat", "cd", "cp", "createdb", "docker", "export", "git", "head", "hf", "kubectl", "make", "mkdir", "mlflow",
    "pg_dump", "pg_restore", "pip", "prefect", "python", "rm", "sed", "sqlite3", "tail", "tar", "true",
}  # fmt: skip
FOLDERS = ("benchmarks", "deployments", "docs", "examples", "flows", "tasks", "tests")
LINKED = (*FOLDERS, "Makefile", "prefect.yaml", "pyproject.toml")  # what a page's blocks find in their folder


def by_name(block: Block) -> str:
    return str(block)


def test_pages_have_blocks() -> None:
    assert len(SHELL) > 40


@pytest.mark.parametrize("block", [b for b in ALL if b.language in ("sh", "python")], ids=by_name)
def test_a_block_is_executed_or_says_why_not(block: Block) -> None:
    assert block.mark, f"{block}: say in a comment in front of it what executes it, or why nothing does"
    assert bool(block.said) == (block.mark in ("run by", "not run"))
    for name in block.said.split(", ") if block.mark == "run by" else ():
        path, _, test = name.partition("::")
        assert re.search(rf"^def {test}\b", (ROOT / path).read_text(), re.MULTILINE), f"{block}: there is no {name}"


@pytest.mark.parametrize("block", SHELL, ids=by_name)
def test_commands_and_files_of_a_block_exist(block: Block) -> None:
    for words in commands(block.text):
        program = words[0]
        if program == "vibethinker":
            _parse(words[1:], settings=not block.mark.startswith("run"))
            continue
        assert program in OTHERS, f"{block}: {program!r} is no command that the pages use"
        if program == "make":
            targets = [word for word in words[1:] if "=" not in word]
            made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(made), f"{block}: {targets}"
        if words[:2] == ["python", "-m"]:
            assert words[2] == "vibethinker" or find_spec(words[2]), f"{block}: {words[2]}"
        if words[:3] == ["prefect", "deployment", "run"]:
            name = words[3].partition("/")[2]
            assert name in _deployments() or f"--name {name} " in block.text, f"{block}: {words[3]}"
            continue
        for word in words[1:]:
            if word.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and not _is_made(block, word):
                assert (ROOT / word.partition(":")[0]).exists(), f"{block}: {word}"


@pytest.mark.parametrize("block", [b for b in ALL if b.language not in ("sh", "text")], ids=by_name)
def test_what_a_block_holds_is_of_its_language(block: Block) -> None:
    if block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        assert [json.loads(line) for line in block.text.splitlines()]
    elif block.language != "yaml":
        pytest.fail(f"{block}: nothing here reads {block.language!r}")
    elif "arms" in (values := yaml.safe_load(block.text)):
        Design.model_validate(values)
    elif values.keys() & configuration.Config.model_fields.keys():
        configuration.load(partial=values, environ={})
    else:
        assert set(values) == OBJECTIVES, f"{block}: neither settings nor an experiment, nor objectives"
        for objective in values.values():
            Objective.model_validate(objective)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.mark == "run" for b in blocks(p))], ids=lambda p: p.name)
def test_the_short_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    _run([block for block in blocks(page) if block.mark == "run"], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.mark == "run: long" for b in blocks(p))], ids=lambda p: p.name
)
def test_all_blocks_of_a_page_that_trains_run(page: Path, tmp_path: Path) -> None:
    _run([block for block in blocks(page) if block.mark.startswith("run") and block.mark != "run by"], tmp_path)


@pytest.mark.slow
def test_commands_in_running_text_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`vibethinker ([a-z][a-z-]*)\b[^`]*`", page.read_text(encoding="utf-8")):
            assert cli.get_command(click.Context(cli), name), f"{page}: there is no command {name}"


def test_files_in_running_text_exist() -> None:
    named = re.compile(rf"(?<![\w/.])(?:{'|'.join((*FOLDERS, 'vibethinker'))})/[\w./-]+\.(?:py|yaml|md|json|sh|txt)\b")
    for page in PAGES:
        for path in named.findall(page.read_text(encoding="utf-8")):
            assert (ROOT / path).exists() or (page.parent / path).exists(), (
                f"{page.relative_to(ROOT)} names {path}, which isn't there"
            )


def test_files_that_a_page_links_to_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / path).exists(), f"{page.relative_to(ROOT)} links to {path}, which isn't there"


def _run(given: list[Block], folder: Path) -> None:
    """Execute blocks one after the other by one shell, in a folder that has what a clone has."""
    for name in LINKED:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    installed = str(folder / "installed")  # where a page's pip installs, and Python finds it
    here = {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": installed,
        "PIP_TARGET": installed,
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip reads its own option from there
    }
    others = ("VIBETHINKER_", "PREFECT_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    script = "\n".join(["set -euo pipefail", *(_shell(block) for block in given)])
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=folder,
        env=kept | here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _shell(block: Block) -> str:
    return block.text if block.language == "sh" else f"python - <<'PYTHON'\n{block.text}\nPYTHON"


def _parse(words: list[str], *, settings: bool) -> None:
    """Have click take the words apart, and see whether the settings among them hold, where nothing runs them."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(context, name)
        assert found, f"there is no command {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    if "--help" in words:
        return
    given = command.make_context(command.name, words, parent=context.parent).params
    file = given.get("file")
    if settings and "overrides" in given and "profile" in given and (file is None or (ROOT / str(file)).exists()):
        path = ROOT / str(file) if file else None
        configuration.load(given["profile"], path, given["overrides"], environ={"DATA_DIR": "data"})


def _deployments() -> set[str]:
    return {one["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


def _is_made(block: Block, word: str) -> bool:
    """Whether it names a file that a block of the page makes first."""
    return any(f"> {word}" in other.text or f" {word}\n" in other.text for other in blocks(block.page))
