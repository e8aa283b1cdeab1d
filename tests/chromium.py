"""A headless Chromium for tests, driven over a pipe in its own protocol: no driver, no port, no package.

https://chromedevtools.github.io/devtools-protocol: JSON messages that end with a zero byte, commands into the
browser's file descriptor 3, answers and events out of 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

SETUP = "tests/setup-chromium.sh"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
"""Longest wait for an answer: a browser that starts on a busy machine takes its time."""


def found() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """One page of one browser: what it requested and what it said are kept."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """The answer of a command. Raises AssertionError with the browser's own message."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a file and waits until it is loaded; what an earlier page said is forgotten."""
        self.emulate(width, height, dark)
        self.requests.clear()
        self.said.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def emulate(self, width: int, height: int, dark: bool, reduced_motion: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if reduced_motion else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's too. Raises AssertionError where it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE_S) -> None:
        """Waits until a JavaScript expression is true."""
        until = monotonic() + seconds
        while not self.ask(f"Boolean({expression})"):
            assert monotonic() < until, f"never came true: {expression}"
            self.ask("new Promise(done => setTimeout(done, 50))")

    def click(self, selector: str) -> None:
        """A click of the mouse, which browsers tell from a script's: sound needs one."""
        place = self.ask(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key of the keyboard, down and up, as Chromium names it (Enter, Tab, ArrowRight)."""
        values: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._receive], [], [], PATIENCE_S)
            assert readable, "Chromium does not answer"
            part = os.read(self._receive, 1 << 16)
            assert part, "Chromium has ended"
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            self.said.append(f"{values['type']}: {values['args']}")
        elif event == "Runtime.exceptionThrown":
            self.said.append(f"exception: {values['exceptionDetails']}")
        elif event == "Log.entryAdded":
            self.said.append(f"{values['entry']['level']}: {values['entry']['text']}")


@contextmanager
def running(program: str, profile: Path) -> Iterator[Page]:
    """A browser with an empty page. profile: an empty folder for what it keeps."""
    command_out, command_in = os.pipe()
    answer_out, answer_in = os.pipe()
    options = [
        "--headless=new",
        "--remote-debugging-pipe",
        "--no-sandbox",  # its sandbox needs rights that containers do not give; the page is our own
        "--no-first-run",
        "--disable-gpu",
        "--disable-dev-shm-usage",  # /dev/shm is small in containers
        "--mute-audio",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
    ]
    # The shell gives the pipes the numbers that Chromium expects.
    shell = f'exec "$0" "$@" 3<&{command_out} 4>&{answer_in}'
    with (profile / "stderr.txt").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *options],
            pass_fds=(command_out, answer_in),
            stdout=log,
            stderr=log,
        )
    os.close(command_out)
    os.close(answer_in)
    try:
        yield Page(command_in, answer_out)
    finally:
        os.close(command_in)  # its end of the conversation: Chromium quits
        os.close(answer_out)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
