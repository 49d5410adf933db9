"""MLflow's pages about a workspace's latest run in a real browser: a signal stage's curves, generations, the registry.

`python -m tests.flows.mlflow_pages WORKSPACE FOLDER` keeps the pictures of docs/tracking.md. No page may ask anybody
but the server for anything: what tries to is stopped and told of.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from PIL import Image
from playwright.sync_api import Page, Route, expect, sync_playwright

from flows.server import free_port
from tests.flows.walk import CHROMIUM, COLOURS, LOOK_MS
from tests.waiting import until
from vibethinker.tracking import store_uri

WIDE, TALL = 1500, 1050
CURVES = ("p", "weight", "zero_variance", "entropy", "length", "engine_gap")
DRAWN_MS = 4000  # for charts to be drawn


@contextmanager
def served(workspace: Path) -> Iterator[str]:
    """MLflow's server over the store of a workspace, as `mlflow ui` starts it; its address."""
    port = free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store_uri(None, workspace),
        "--artifacts-destination", (workspace / "mlartifacts").as_uri(),
    ]  # fmt: skip
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: mlflow.MlflowClient(address).search_experiments(), 60)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def look(workspace: Path, stage: str, images: Path | None = None) -> set[str]:
    """Look at the pages of a stage of the workspace's latest run; returns the addresses beyond the server that a page
    asked for."""
    asked: set[str] = set()

    def stop(route: Route) -> None:
        asked.add(route.request.url)
        route.abort()

    with served(workspace) as address, sync_playwright() as driver:
        client = mlflow.MlflowClient(address)
        made = f"tags.`vibethinker.step` = '{stage}'"
        [experiment, *_] = [one for one in client.search_experiments() if client.search_runs([one.experiment_id], made)]
        child = client.search_runs([experiment.experiment_id], made, max_results=1)[0]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expect.set_options(timeout=LOOK_MS)
        page = browser.new_page(viewport={"width": WIDE, "height": TALL})
        page.set_default_timeout(LOOK_MS)
        page.route(lambda url: not url.startswith((address, "data:", "blob:")), stop)
        try:
            of_run = f"{address}/#/experiments/{experiment.experiment_id}/runs/{child.info.run_id}"
            page.goto(f"{of_run}/model-metrics")
            page.get_by_role("button", name="Close").click()  # the assistant, who covers a part
            page.get_by_placeholder("Search metric charts").fill(f"^({'|'.join(CURVES)})$")
            for name in CURVES:
                expect(page.get_by_text(name, exact=True).first).to_be_visible()
            _keep(page, images, "mlflow-signal")
            page.goto(f"{of_run}/artifacts")
            page.get_by_text("generations.json").first.click()
            expect(page.get_by_text(re.compile("disputed|good|bad")).first).to_be_visible()
            page.get_by_text(re.compile("^Path:")).evaluate("line => line.remove()")  # of the workspace, and long
            _keep(page, images, "mlflow-generations")
            [model] = client.search_registered_models()
            page.goto(f"{address}/#/models/{model.name}")
            for alias in ("champion", "candidate"):
                expect(page.get_by_text(f"@ {alias}").first).to_be_visible()
            _keep(page, images, "mlflow-registry")
        except BaseException:
            page.screenshot(path=workspace / "last.png")
            raise
        finally:
            browser.close()
    return asked


def _keep(page: Page, images: Path | None, name: str) -> None:
    if images is None:
        return
    page.wait_for_timeout(DRAWN_MS)
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    images.mkdir(parents=True, exist_ok=True)
    shown.quantize(COLOURS).save(images / f"{name}.png", optimize=True)


if __name__ == "__main__":
    print(look(Path(sys.argv[1]).resolve(), "signal-1", Path(sys.argv[2])) or "no page asked anybody else")
