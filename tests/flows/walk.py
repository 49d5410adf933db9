"""A person's walk through a service in a real browser: Prefect's pages and MLflow's, from the deployments to a run that
waits for somebody, goes on and ends.

`python -m tests.flows.walk --images docs/images` takes the pictures of README and docs. No page may ask anybody but the
service for anything: what tries to is stopped and told of.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect, sync_playwright

from tests.flows.conftest import ROOT
from tests.flows.serving import Service, started
from tests.waiting import until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH, HEIGHT = 1440, 900
LOOK_MS = 30_000  # for a page to show something, on a busy machine
DRAWN_MS = 3000  # for a graph to be drawn, with some movement
SCREENS = 100  # of a long page, half of each new
COLOURS = 255  # of a picture that is kept
GREEN = (34, 160, 80)  # about the colour of completed steps


class Walk:
    """One browser before one service."""

    def __init__(self, service: Service, context: BrowserContext, images: Path | None = None) -> None:
        self.service, self.images = service, images
        self.prefect = service.state["prefect"]["url"].removesuffix("/api")
        self.asked_outside: set[str] = set()
        expect.set_options(timeout=LOOK_MS)
        context.set_default_timeout(LOOK_MS)
        context.route(lambda url: urlsplit(url).hostname not in ("127.0.0.1", None), self._stop)
        self.page = context.new_page()

    def _stop(self, route: Route) -> None:
        self.asked_outside.add(route.request.url)
        route.abort()

    def picture(self, name: str, of: Page | None = None) -> None:
        """Keep what is shown, if pictures are wanted."""
        if self.images is None:
            return
        page = of or self.page
        page.mouse.move(WIDTH - 2, HEIGHT - 2)
        page.wait_for_timeout(1500)  # what moves comes to rest
        shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        self.images.mkdir(parents=True, exist_ok=True)
        shown.quantize(COLOURS).save(self.images / f"{name}.png", optimize=True)

    def shows(self, *texts: str | re.Pattern[str], within: Page | Locator | None = None) -> None:
        """Wait until the page shows each of these texts."""
        for text in texts:
            expect((within or self.page).get_by_text(text).first).to_be_visible()

    def field(self, name: str, within: Page | Locator | None = None) -> Locator:
        """A field of one of Prefect's forms, with its label and description."""
        label = "./div[1]//span[contains(@class, 'schema-form-property__label')]"
        named = f"normalize-space({label})='{name}' or normalize-space({label})='{name} (Optional)'"
        return (within or self.page).locator(f"xpath=.//div[contains(@class, 'schema-form-property')][{named}]").last

    # ---- the pages ----

    def deployments(self) -> None:
        """The address that `up` prints leads to a list of all deployments."""
        # Each is Ready from the worker's first look at its queue on, which may come some seconds after `up` has ended.
        until(lambda: {one["status"] for one in self.service.api.filter("deployments")} == {"READY"}, LOOK_MS / 1000)
        self.page.goto(self.prefect)
        expect(self.page).to_have_url(f"{self.prefect}/dashboard")  # not the newer UI, which asks others
        self.page.get_by_role("button", name="Deployments").click()
        wanted = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
        self.shows(f"{len(wanted)} Deployments")
        for one in wanted:
            expect(self.page.get_by_role("link", name=one["name"], exact=True).first).to_be_visible()
        self.shows("vibethinker-spectrum", "phase:signal", "At 08:00 PM, only on Friday", "Ready")
        self.picture("deployments")

    def form(self, profile: str) -> None:
        """A deployment tells what it does; its form has typed fields with descriptions and refuses what can't be."""
        self.page.get_by_role("link", name=profile, exact=True).first.click()
        self.page.get_by_text("Description", exact=True).click()
        self.shows("The whole recipe")
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        self.shows("The profile that the settings come from.")
        expect(self.field("profile").locator("button").last).to_have_text(profile)
        for name, said in (
            ("seed", "Seed of everything random."),
            ("deterministic", "true or false"),
            ("signal", "JSON with any of: seed, objective, stages"),
            ("approvals", "JSON with any of: signal, promotion, hours."),
            ("refresh", "Steps to run again although their output is there"),
        ):
            expect(self.field(name)).to_contain_text(said)
        self.field("seed").locator("input").fill("1.5")
        self._submit()
        expect(self.field("seed")).to_contain_text("is not valid")  # by the form itself
        self.field("seed").locator("input").fill("-1")
        self._submit()
        self.shows("Validation failed for field 'config.seed'. Failure reason: -1 is less than the minimum of 0")
        self.field("seed").scroll_into_view_if_needed()
        self.picture("form")
        assert self.service.api.filter("flow_runs") == []

    def _submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def run(self, profile: str) -> str:
        """Start a run from the command line that asks before its signal phase; its flow run's id."""
        config = json.dumps({"approvals": {"signal": True}})
        words = ["deployment", "run", f"vibethinker/{profile}", "--param", f"config={config}"]
        command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
        environ = {**self.service.environ, "PREFECT_API_URL": self.service.api.url}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        [address] = re.findall(r"URL: (\S+)", done.stdout)
        self.page.goto(address)
        return address.rpartition("/")[2]

    def running(self, profile: str) -> None:
        """While it runs, the page has the run's name, and steps that wait are called by theirs."""
        self.shows(re.compile(rf"^{profile}-\d{{8}}-\d{{6}}"))
        self.shows("Running", f"profile:{profile}", "model:embedded")
        self._tab("Task Runs")
        self.shows(re.compile("^evaluation-fusion"), re.compile("^probe-algebra"), re.compile("^specialist-code"))
        self.page.reload()  # the graph has what was there when it was opened
        self._tab("Task Runs")
        self.page.wait_for_timeout(DRAWN_MS)
        self.picture("running")

    def _tab(self, name: str) -> None:
        self.page.locator(".p-tabs").get_by_text(name, exact=True).click()

    def approval(self, seconds: float) -> None:
        """The run waits, shows what there is to decide on, and goes on once somebody has filled in the form."""
        resume = self.page.get_by_role("button", name="Resume")
        expect(resume).to_be_visible(timeout=seconds * 1000)
        self.shows("Suspended")
        resume.click()
        dialog = self.page.get_by_role("dialog")
        self.shows("Approve the signal phase of", "Scores in %, with 95 % intervals:", within=dialog)
        self.shows("specialist-algebra", re.compile("^pass@"), "Estimate for signal-1", within=dialog)
        expect(dialog.get_by_role("link", name="MLflow")).to_have_attribute("href", re.compile("/experiments/1/runs/"))
        self.field("Approve", dialog).get_by_role("switch").click()
        self.field("By", dialog).locator("textarea").fill("Ada")
        self.field("Note", dialog).locator("textarea").fill("Fused, it is no worse than its parts.")
        self.picture("approval")
        dialog.get_by_role("button", name="Submit").click()
        self.shows("Flow run resumed")

    def ended(self, flow_run: str, seconds: float) -> None:
        """The run is completed: its graph is drawn, and its states tell what was computed from what was there."""
        assert self.service.ended(flow_run, seconds)["state_type"] == "COMPLETED"
        self.page.reload()
        self.shows("Completed")
        self._tab("Task Runs")
        self.page.wait_for_timeout(DRAWN_MS)
        assert greens(self.page.locator("canvas").first) > 200, "no completed step in the graph"
        self.shows("report", "evaluation-signal-2")
        self.picture("run")
        for name, state in (("signal-1", "Completed"), ("specialist-code", "Cached"), ("probe-algebra", "Cached")):
            self.page.get_by_placeholder("Search by run name").fill(name)
            found = self.page.locator(".task-run-list, .p-list, .state-list-item").filter(has_text=name)
            expect(found.filter(has_text=state).first).to_be_visible()

    def logs(self) -> None:
        """The log has lines of the steps' processes, each with its step, and who approved."""
        self._tab("Logs")
        self._finds(re.compile(r"\d+/\d+ loss \d"))
        self._finds("The signal phase was approved by Ada (Fused, it is no worse than its parts)")

    def _finds(self, text: str | re.Pattern[str]) -> None:
        """Scroll down to a text on a long page, which is drawn only where it is looked at."""
        line = self.page.get_by_text(text).first
        self.page.mouse.move(WIDTH / 2, HEIGHT * 0.8)
        for _ in range(SCREENS):
            if line.is_visible():
                line.scroll_into_view_if_needed()
                return
            self.page.mouse.wheel(0, HEIGHT / 2)
            self.page.wait_for_timeout(200)
        raise AssertionError(f"the page has no {text!r}")

    def artifacts(self, profile: str) -> None:
        """The run's artifacts are listed with what they say, and open as tables."""
        self._tab("Artifacts")
        self.shows(f"summary-{profile}")
        for text in ("data-card", "probe-algebra-table", "evaluation-fusion-table", re.compile(r"^\d+ of \d+ loss \d")):
            self._finds(text)
        for key, texts in {
            "probe-algebra-table": ("goes on: it solved most", "pass@1", "chosen", "✓", "cut off"),
            "fusion-table": ("Linear mean of these checkpoints", "specialist", "weight", "algebra"),
            "evaluation-signal-2-table": ("Scores of signal-2 in %", "set", "problems", "algebra", "tokens"),
            "data-card": ("What the data is made of", "training problems", "Licences"),
        }.items():
            self.page.goto(f"{self.prefect}/artifacts/artifact/{self._artifact(key)}")
            self.shows(*texts)
            if key.startswith("evaluation-"):
                self.picture("evaluation")

    def _artifact(self, key: str) -> str:
        body = {"artifacts": {"key": {"any_": [key]}}}
        [found] = self.service.api.filter("artifacts/latest", **body)
        return found["latest_id"]

    def summary(self, profile: str, run: str) -> None:
        """The run's summary links to MLflow, which has the run, its steps and the report."""
        self.page.goto(f"{self.prefect}/artifacts/artifact/{self._artifact(f'summary-{profile}')}")
        self.shows(f"{run}: completed", "Scores in %, with 95 % intervals:", "Whole recipe")
        self.picture("summary")
        address = self.page.get_by_role("link", name="MLflow").get_attribute("href")
        report = self.page.get_by_role("link", name="Report").get_attribute("href")
        assert address and report
        self.page.goto(address)
        self.shows(run, "Finished", "Child runs", "evaluation-signal-2", f"vibethinker-{profile}", "Model registry")
        expect(self.page.get_by_text("Evaluation runs")).to_have_count(0)  # of agents, as MLflow shows runs by itself
        self.page.get_by_role("button", name="Close").click()  # the assistant, who covers a part
        self.picture("mlflow")
        self.page.goto(report)
        self.page.reload()
        shown = self.page.frame_locator("iframe")
        expect(shown.get_by_text("What it achieved")).to_be_visible()


def greens(drawn: Locator) -> int:
    """How many points of what is drawn are green."""
    image: Any = Image.open(io.BytesIO(drawn.screenshot())).convert("RGB")
    counted = image.getcolors(WIDTH * HEIGHT) or []
    return sum(n for n, colour in counted if all(abs(a - b) < 40 for a, b in zip(colour, GREEN, strict=True)))


def walk(folder: Path, profile: str = "micro", images: Path | None = None, seconds: float = 600.0) -> set[str]:
    """Walk through all of it; returns the addresses beyond the service that a page asked for.

    Args:
        folder: an empty folder.
        profile: of the run.
        images: where the pictures go.
        seconds: for the run to come to its question, and again to its end.
    """
    with started(folder) as (service, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        visited = Walk(service, browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}), images)
        try:
            visited.deployments()
            visited.form(profile)
            flow_run = visited.run(profile)
            visited.running(profile)
            visited.approval(seconds)
            visited.ended(flow_run, seconds)
            visited.logs()
            visited.artifacts(profile)
            visited.summary(profile, service.flow_run(flow_run)["name"])
        except BaseException:
            visited.page.screenshot(path=folder / "last.png")
            raise
        finally:
            browser.close()
        return visited.asked_outside


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder for the pictures")
    parser.add_argument("--profile", default="micro")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        walk(Path(temporary), given.profile, given.images, 3600.0)
