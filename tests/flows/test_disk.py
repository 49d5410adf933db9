"""A full or read-only disk, and a clock that was set back, cost a sentence and no output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.flows.conftest import ROOT, Finished, vibethinker

MOUNT = ("unshare", "--map-root-user", "--mount")
MATH = ("domains=[algebra]", "signal.stages=[{name: math, context: 96, steps: 2, reward: math}]",
        "evaluation.samples=1", "evaluation.k=[1]")  # fmt: skip

WORDS = " ".join(f"--set '{setting}'" for setting in MATH)


@pytest.fixture
def mounted(tmp_path: Path):
    """A function script → what it printed, in a mount namespace of its own, with `$m` a tmpfs of 200 MB."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=200m tmpfs '{folder}'"
    if shutil.which("unshare") is None or subprocess.run([*MOUNT, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of one's own (unshare --map-root-user --mount)")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ |= {"m": str(folder), "python": sys.executable, "PREFECT_HOME": str(tmp_path / "no profile")}

    def run(script: str) -> str:
        command = [*MOUNT, "bash", "-ec", f"{mount}\n{textwrap.dedent(script)}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=570)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout

    return run


PUBLISH = """
import sys, os
from pathlib import Path
from vibethinker.artifacts import Store
from vibethinker import collecting
store, fingerprint = Store(Path(os.environ["m"]) / "ws"), "f" * 64
collecting.sweep(store.workspace)
with store.lock("step", fingerprint):
    staging = store.staging("step", fingerprint)
    try:
        (staging / "weights").write_bytes(bytes(int(sys.argv[1]) << 20))
        store.publish(staging, "step", fingerprint, inputs={}, record={"metrics": {}})
    except OSError as error:
        print(error.strerror)
print(store.find("step", fingerprint)[0] is not None, *sorted(os.listdir(store.workspace)))
"""


@pytest.mark.slow
def test_a_full_disk_publishes_nothing_and_is_used_again_when_there_is_room(mounted, tmp_path: Path) -> None:
    program = tmp_path / "publish.py"
    program.write_text(PUBLISH)
    printed = mounted(f"""
        head -c 100M /dev/zero > "$m/ballast"
        $python '{program}' 150
        rm "$m/ballast"
        $python '{program}' 150
    """)
    assert printed.splitlines() == [
        "No space left on device",
        "False locks staging",
        "True artifacts locks staging trash",
    ]


SAVE = """
import os
from pathlib import Path
import torch
from safetensors.torch import save_file
from vibethinker.worker.endings import classify
weights, path = {"weight": torch.zeros(300 << 20, dtype=torch.uint8)}, os.environ["m"] + "/weights"
for save in (lambda: save_file(weights, path), lambda: torch.save(weights, path)):
    try:
        save()
    except Exception as error:
        print(type(error).__name__, type(classify(error)).__name__, classify(error))
    Path(path).unlink(missing_ok=True)
"""


@pytest.mark.slow
def test_weights_that_find_no_room_are_a_full_disk_whoever_writes_them(mounted, tmp_path: Path) -> None:
    (tmp_path / "save.py").write_text(SAVE)
    lines = mounted(f"$python '{tmp_path / 'save.py'}'").splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "InfrastructureError The disk is full" in line


@pytest.mark.slow
def test_a_read_only_workspace_is_refused_with_a_sentence(mounted) -> None:
    printed = mounted(f"""
        mkdir -p "$m/ws/runs" "$m/ws/staging/step"
        mount -o remount,ro "$m"
        set +e
        $python -m vibethinker run --profile micro {WORDS} --workspace "$m/ws" 2>&1; echo "exit $?"
        $python -m vibethinker gc --apply --workspace "$m/ws" 2>&1; echo "exit $?"
        $python -m vibethinker gc --workspace "$m/ws"; echo "exit $?"
    """)
    run, apply, look = [part.strip() for part in printed.split("exit ")[:-1]]
    assert [line for line in printed.splitlines() if line.startswith("exit")] == ["exit 2", "exit 2", "exit 0"]
    assert "can't be written" in run
    assert "Read-only file system" in apply
    assert "staging" in look


@pytest.mark.long
def test_a_run_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(mounted) -> None:
    printed = mounted(f"""
        run() {{
            set +e; $python -m vibethinker run --profile micro {WORDS} --workspace "$m/ws" 2>&1; echo "exit $?"; set -e
        }}
        fill() {{ while [ ! -d "$m/ws/artifacts/data" ]; do sleep 0.1; done; cat /dev/zero > "$m/ballast" || true; }}
        fill 2> /dev/null &
        run
        find "$m/ws" -name '.summary*' -o -name '.vibethinker*'
        for folder in "$m"/ws/artifacts/*/*; do $python -m vibethinker validate "$folder"; done
        echo full; run
        rm "$m/ballast"
        echo room; run
        ls "$m/ws"
    """)
    first, _, rest = printed.partition("full\n")
    second, _, third = rest.partition("room\n")
    assert "exit 1" in first
    assert "No space left on device" in first
    assert "go on by" in first
    assert ".summary" not in first
    assert ".vibethinker" not in first
    assert "exit 2" in second
    assert "make room" in second
    assert "exit 0" in third
    assert "data: cached" in third
    assert "attic" not in third


@pytest.mark.service
def test_what_a_run_left_is_used_whatever_the_clock_says(micro: Finished, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(micro.workspace, workspace)
    ahead = time.time() + 365 * 86400
    for path in workspace.rglob("*"):
        os.utime(path, (ahead, ahead))
    for path in workspace.glob("runs/*/state.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": ahead}))
    arguments = ("--profile", "micro", "--workspace", str(workspace))
    plan = json.loads(vibethinker("plan", *arguments, "--json").stdout)
    assert {step["state"] for step in plan["steps"]} == {"cached"}
    keep = ("--keep", "0", "--keep-run", micro.folder.name)  # other tests' runs may be newer, and share the workspace
    collected = json.loads(vibethinker("gc", "--workspace", str(workspace), *keep, "--apply", "--json").stdout)
    planned = {f"artifacts/{step['id']}/{step['fingerprint']}" for step in plan["steps"]}
    assert not planned & {str(Path(one["path"]).relative_to(workspace)) for one in collected["unneeded"]}
    done = vibethinker("run", *arguments)
    assert done.returncode == 0, done.stderr
    assert "completed" in done.stdout
