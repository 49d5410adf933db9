"""What is released: built as `make dist` does from the files that git tracks, installed into an environment of its own,
and used from an empty folder. Dependencies are those of the environment that runs the tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from flows.server import free_port
from vibethinker import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "tasks", "vibethinker")
UV = shutil.which("uv", path=sysconfig.get_path("scripts"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only git knows which files are released"),
    pytest.mark.skipif(UV is None, reason="uv builds and installs the wheel; `make` installs it"),
]


def uv(*arguments: str | Path) -> None:
    done = subprocess.run([UV, *arguments, "--offline"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tracked(*folders: str) -> list[str]:
    """Paths of the files that git tracks, or would track once they are added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, which was built from the sdist beside it."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    uv("build", "--no-build-isolation", "--python", sys.executable, "--out-dir", out, tree)
    return out


@dataclass(frozen=True)
class Installed:
    """The wheel in an environment of its own, and an empty folder to use it from."""

    scripts: Path
    folder: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end, without the settings of whoever runs the tests."""
        theirs = ("PREFECT_", "MLFLOW_", "VIBETHINKER_", "PYTHON")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        command = [self.scripts / program, *arguments]
        return subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True)

    def vibethinker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("vibethinker", *arguments)


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the environment's programs."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home)})
    [wheel] = built.glob("*.whl")
    uv("pip", "install", "--no-deps", "--python", Path(paths["scripts"]) / "python", wheel)
    # Its own packages come first, and .pth files of that folder, such as that of an editable install, aren't read.
    Path(paths["purelib"], "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(paths["scripts"])


@pytest.fixture
def installed(environment: Path, tmp_path: Path) -> Installed:
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    return Installed(environment, folder)


def test_the_wheel_holds_every_file_of_the_packages(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if PurePosixPath(name).parts[0] in PACKAGES}
        assert held == set(tracked(*PACKAGES))
        assert archive.read("flows/prefect.yaml") == (ROOT / "prefect.yaml").read_bytes()


def test_the_sdist_holds_the_packages_and_the_licence(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    assert held >= {*tracked(*PACKAGES), "LICENSE", "README.md", "pyproject.toml"}


def test_what_is_imported_is_the_wheel_s(installed: Installed) -> None:
    code = "import flows, tasks, vibethinker; print(flows.__file__, tasks.__file__, vibethinker.__file__, sep='\\n')"
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(installed.scripts.parent) for line in done.stdout.splitlines()), done.stdout
    assert installed.vibethinker("--version").stdout == f"vibethinker, version {__version__}\n"


def test_plan_works_in_an_empty_folder_and_writes_nothing(installed: Installed) -> None:
    done = installed.vibethinker("plan", "--profile", "micro", "--json")
    assert done.returncode == 0, done.stderr
    assert {"data", "base", "fusion", "signal-1", "report"} <= {step["id"] for step in json.loads(done.stdout)["steps"]}
    assert not list(installed.folder.iterdir())


@pytest.mark.long
@pytest.mark.service
def test_the_whole_recipe_runs_in_an_empty_folder(installed: Installed) -> None:
    done = installed.vibethinker("run", "--profile", "micro")
    assert done.returncode == 0, done.stderr
    [run] = installed.folder.glob("workspace/runs/*")
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    assert (run / "report.html").stat().st_size


@pytest.mark.long
@pytest.mark.service
def test_a_service_is_deployed_from_an_empty_folder(installed: Installed) -> None:
    up = installed.vibethinker("up", "--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    try:
        assert up.returncode == 0, up.stderr
        assert "9 deployments" in up.stdout
    finally:
        down = installed.vibethinker("down")
    assert down.returncode == 0, down.stderr


def test_the_changelog_s_first_entry_is_this_version() -> None:
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert first.split()[1] == __version__
