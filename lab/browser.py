"""A headless Chromium, driven over its DevTools protocol: open a page, wait for words on it, take a picture.

Source: https://chromedevtools.github.io/devtools-protocol/ (Target, Page, Runtime, Input).
"""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.sync.client import connect
from websockets.sync.connection import Connection

from lab.waiting import wait_for

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # the run graph is drawn with WebGL; there is no GPU
    "--remote-debugging-port=0",
    "--window-size=1400,1200",
)
SECONDS = 60


class Browser:
    """`with Browser(folder) as browser:`; one tab is looked at. `folder` takes its profile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes]
        self._address: str
        self._whole: Connection
        self._page: Connection

    def __enter__(self) -> Self:
        command = ["chromium", *OPTIONS, f"--user-data-dir={self._folder}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        # Chromium writes the port that it took, and the path of its own socket, into this file when it is ready.
        ready = self._folder / "DevToolsActivePort"
        wait_for(lambda: ready.exists() and len(ready.read_text().split()) == 2, "Chromium", seconds=SECONDS)
        port, path = ready.read_text().split()
        self._address = f"ws://127.0.0.1:{port}"
        self._whole = connect(f"{self._address}{path}")
        self._look_at(next(iter(self._tabs())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._page.close()
        self._whole.close()
        self._process.terminate()
        self._process.wait(SECONDS)

    def open(self, url: str) -> None:
        """Go to an address; what is on it loads late."""
        self._ask(self._page, "Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives on the page."""
        answer = self._ask(self._page, "Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def text(self) -> str:
        """All words on the page."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def wait_text(self, *words: str) -> str:
        """Wait until all of `words` are on the page; its text."""
        wait_for(lambda: all(word in self.text() for word in words), f"{words} on the page", seconds=SECONDS)
        return self.text()

    def click(self, words: str) -> None:
        """Press the innermost thing that has exactly these words."""
        same = f"item => item.innerText && item.innerText.trim() === {json.dumps(words)}"
        found = f"[...document.querySelectorAll('body *')].filter({same}).at(-1)"
        wait_for(lambda: self.value(f"!!{found}"), f"{words!r} to press", seconds=SECONDS)
        self.value(f"{found}.click()")

    def follow(self, link: str) -> None:
        """Press a link with these words with the mouse, and look at what it leads to, in this tab or in a new one.

        As a hand does it: a click from a script may open no new tab.
        """
        tabs, address = self._tabs(), self.value("location.href")
        self._press(f"[...document.querySelectorAll('a')].filter(item => item.innerText.trim() === {json.dumps(link)})")

        def led() -> bool:
            return bool(self._tabs() - tabs) or self.value("location.href") != address

        wait_for(led, f"{link!r} to lead somewhere", seconds=SECONDS)
        for new in self._tabs() - tabs:
            self._page.close()
            self._look_at(new)

    def fill(self, label: str, text: str) -> None:
        """Type `text` into the field below exactly this label, as Vue's listeners expect it."""
        same = f"item => item.innerText.split('\\n')[0].trim() === {json.dumps(label)}"
        found = f"[...document.querySelectorAll('.p-label')].filter({same}).at(-1)?.querySelector('textarea, input')"
        wait_for(lambda: self.value(f"!!({found})"), f"a field {label!r}", seconds=SECONDS)
        self.value(
            f"(field => {{ Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, "
            f"{json.dumps(text)}); field.dispatchEvent(new Event('input', {{bubbles: true}})); }})({found})"
        )

    def picture(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._ask(self._page, "Page.captureScreenshot")["data"]))

    def _press(self, found: str) -> None:
        """The left button, on the middle of the last of what a JavaScript expression finds, once it is there."""
        wait_for(lambda: self.value(f"{found}.length"), f"{found} to press", seconds=SECONDS)
        x, y = self._resting(f"{found}.at(-1)")
        for what in ("mousePressed", "mouseReleased"):
            self._ask(self._page, "Input.dispatchMouseEvent", type=what, x=x, y=y, button="left", clickCount=1)

    def _resting(self, item: str) -> tuple[float, float]:
        """The middle of an item, once it is seen and does not move any more: pages grow while they load."""
        middle = "(box => [box.x + box.width / 2, box.y + box.height / 2])"
        places: list[Any] = []

        def rests() -> bool:
            self.value(f"{item}?.scrollIntoView({{block: 'center'}})")
            places.append(self.value(f"{item} && {middle}({item}.getBoundingClientRect())"))
            return bool(places[-1]) and places[-2:-1] == places[-1:]

        wait_for(rests, f"{item} to come to rest", pause=0.2)
        x, y = places[-1]
        return x, y

    def _tabs(self) -> set[str]:
        targets = self._ask(self._whole, "Target.getTargets")["targetInfos"]
        return {target["targetId"] for target in targets if target["type"] == "page"}

    def _look_at(self, tab: str) -> None:
        self._page = connect(f"{self._address}/devtools/page/{tab}", max_size=None)

    def _ask(self, socket: Connection, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(socket.recv(SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
