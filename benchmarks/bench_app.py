"""Measure `spad app`: the page's latencies in Chromium, then fifty requests by ten clients.

Run: python benchmarks/bench_app.py > benchmarks/results/app-MACHINE.md

The server runs in a process of its own, as `spad app` starts it. Latencies are taken in the page,
by `performance.now`; a frame is what `Rig.redraw` takes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from playwright.sync_api import Page, sync_playwright

from spad.app.messages import camera_fields
from spad.cameras import Cameras

IDLE = "spad.state.model !== null && spad.state.abort === null"
FIRST_PREVIEW = """() => new Promise((resolve) => {
  const began = performance.now();
  const watch = () => [...spad.state.results.values()].some(({ isPreview }) => isPreview)
    ? resolve(performance.now() - began) : setTimeout(watch, 2);
  document.querySelector("#draw").click();
  watch();
})"""
STOP = """() => new Promise((resolve) => {
  const began = performance.now();
  const watch = () => spad.state.abort === null ? resolve(performance.now() - began)
    : setTimeout(watch, 2);
  document.querySelector("#stop").click();
  watch();
})"""


@contextmanager
def server(model: str, waiting: int) -> Iterator[tuple[subprocess.Popen, int]]:
    command = [sys.executable, "-m", "spad", "app", "--no-browser", "--port", "0"]
    command += ["--model", model, "--waiting", str(waiting)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
        try:
            yield process, port
        finally:
            process.terminate()


@contextmanager
def browser_page(port: int) -> Iterator[Page]:
    chromium = shutil.which("chromium") or os.environ["SPAD_CHROMIUM"]
    with sync_playwright() as driver:
        arguments = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1360, "height": 900}, bypass_csp=True)
        yield page
        browser.close()


def milliseconds(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} (worst {max(values):.0f})"


def latencies(port: int, repeats: int) -> Iterator[tuple[str, str, str]]:
    """Name, value and goal of each."""
    with browser_page(port) as page:
        began = time.perf_counter()
        page.goto(f"http://127.0.0.1:{port}/#still")
        page.wait_for_selector("article")
        yield "first view of the page, s", f"{time.perf_counter() - began:.2f}", "1.5"
        page.evaluate("document.querySelector('#draw').click()")
        page.wait_for_function(f"{IDLE} && spad.state.phase === 'done'", timeout=120_000)
        previews, stops = [], []
        for _ in range(repeats):
            page.evaluate("spad.state.results.clear()")
            previews.append(page.evaluate(FIRST_PREVIEW))
            stops.append(page.evaluate(STOP))
            page.wait_for_timeout(1000)
        yield "Draw to first preview, ms", milliseconds(previews), "250"
        yield "Stop, ms", milliseconds(stops), "300"
        page.evaluate("document.querySelector('#rigs').value = 1")
        page.select_option("#rigs", label="For mvgbench")
        page.evaluate("spad.rig.frameTimes.length = 0")
        for step in range(60):
            page.evaluate(
                "(step) => { const one = spad.state.cameras[3]; one.azimuth += 2; one.pose = null;"
                " spad.show(); }",
                step,
            )
            page.wait_for_timeout(20)
        frames = page.evaluate("spad.rig.frameTimes")
        yield "a frame of a drag, 16 cameras, ms", milliseconds(frames), "16"


def load(process: subprocess.Popen, port: int, clients: int, each: int) -> Iterator[str]:
    """Requests by several clients at once; sentences about what came of them."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    token = re.search(r'spad-token" content="([^"]+)', connection.getresponse().read().decode())[1]
    connection.request("GET", "/api/model", headers={"x-spad-token": token})
    model = json.loads(connection.getresponse().read())
    size = model["image_size"]
    cameras = Cameras.ring(2, 20, -60, height=size, width=size)
    body = {"prompt": "a red mushroom", "steps": 2, "cameras": camera_fields(cameras)}
    memory = psutil.Process(process.pid)
    done, order, lock = [], [], threading.Lock()
    before = memory.memory_info().rss / 1e6

    def client(number: int) -> None:
        for turn in range(each):
            wire = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            with lock:
                began = time.perf_counter()
                wire.request("POST", "/api/draw", json.dumps(body), {"x-spad-token": token})
                answer = wire.getresponse()
                order.append((number, turn))
            last = json.loads([line for line in answer.read().splitlines() if line][-1])
            with lock:
                done.append((last["kind"], (number, turn), time.perf_counter() - began))
            wire.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    finished = [key for kind, key, _ in done if kind == "done"]
    waits = [seconds for _, _, seconds in done]
    after = memory.memory_info().rss / 1e6
    yield f"{len(finished)} of {clients * each} requests by {clients} clients done in {took:.0f} s"
    yield f"served in the order they came: {finished == order}"
    yield f"wait: median {statistics.median(waits):.1f} s, worst {max(waits):.1f} s"
    yield f"memory before {before:.0f} MB, after {after:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--repeats", type=int, default=7)
    settings = parser.parse_args()
    print(f"# `spad app`, {platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print("Command: `python benchmarks/bench_app.py`. Chromium without a graphics card.\n")
    print("| what | median | goal |\n|---|---|---|")
    with server(settings.model, 60) as (process, port):
        for name, value, goal in latencies(port, settings.repeats):
            print(f"| {name} | {value} | {goal} |", flush=True)
        print()
        for sentence in load(process, port, 10, 5):
            print(f"- {sentence}", flush=True)


if __name__ == "__main__":
    main()
