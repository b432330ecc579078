"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Tab:
    """An open page."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.sent = socket, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of a command; other messages that arrive meanwhile are kept in `events`."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": arguments}))
        while True:
            message = json.loads(self.socket.recv(timeout=60))
            if message.get("id") == self.sent:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"{script} never came true"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def size(self, width: int, height: int) -> None:
        """Give the window another size, CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 700
        )

    def drop(self, path: Path, selector: str) -> None:
        """Drag a file over an element and let go of it."""
        box = self.run(f"(({{x, y}}) => [x + 9, y + 9])(document.querySelector('{selector}').getBoundingClientRect())")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write the visible part of the page as PNG, or the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the page threw, and what the browser refused it, since it was opened."""
        self.run("0")
        thrown = [
            one["params"]["exceptionDetails"]["text"]
            for one in self.events
            if one["method"] == "Runtime.exceptionThrown"
        ]
        logged = [one["params"]["entry"] for one in self.events if one["method"] == "Log.entryAdded"]
        return thrown + [
            entry["text"] for entry in logged if entry["level"] == "error" and entry["source"] != "network"
        ]


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser with one tab and a profile of its own, for the block."""
    assert CHROMIUM is not None
    words = [
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--disable-gpu",
    ]
    words += [
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    process = subprocess.Popen([CHROMIUM, *words, "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = next(
            filter(None, (re.search(r"DevTools listening on ws://([\w.:]+)", line) for line in process.stderr))
        )
        with urlopen(f"http://{found[1]}/json/list", timeout=60) as response:
            tabs = json.load(response)
        page = next(tab for tab in tabs if tab["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None, ping_interval=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.communicate()
