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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

SETUP = "tests/setup-chromium.sh"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
"""Longest wait for an answer: a browser that starts on a busy machine takes its time."""
ATTACH = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
"""Of workers."""


def found() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """A running browser. Its pages share nothing: each has its own storage, workers and permissions."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._buffer = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    @contextmanager
    def page(self) -> Iterator[Page]:
        """An empty page in a profile of its own, until the block ends."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._pages[session] = page = Page(self, context, session)
        page.begin()
        try:
            yield page
        finally:
            self._pages = {name: other for name, other in self._pages.items() if other is not page}
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        """The answer of a command. Raises AssertionError with the browser's own message."""
        number = self.send(method, session, **values)
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def send(self, method: str, session: str | None = None, **values: Any) -> int:
        """A command whose answer nobody waits for; its number."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if session is not None:
            message["sessionId"] = session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        return self._number

    def adopt(self, session: str, page: Page) -> None:
        """What the worker of a page says and asks for is the page's."""
        self._pages[session] = page

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._receive], [], [], PATIENCE_S)
            assert readable, "Chromium does not answer"
            part = os.read(self._receive, 1 << 16)
            assert part, "Chromium has ended"
            self._buffer += part
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.note(message["method"], message["params"])
        return message


class Page:
    """One page of a browser: what it and its workers requested and said is kept."""

    def __init__(self, browser: Browser, context: str, session: str) -> None:
        self._browser, self._context, self._session = browser, context, session
        self._workers: list[str] = []
        self._offline = False
        self.requests: list[str] = []
        self.said: list[str] = []

    def begin(self) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Target.setAutoAttach", **ATTACH)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """The answer of a command to this page. Raises AssertionError with the browser's own message."""
        return self._browser.call(method, self._session, **values)

    def open(self, place: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a file or an address and waits until it is loaded; what an earlier page said is forgotten."""
        self.emulate(width, height, dark)
        self.requests.clear()
        self.said.clear()
        url = place if isinstance(place, str) else place.absolute().as_uri()
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer['errorText']}"
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

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
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _middle(self, selector: str) -> tuple[float, float]:
        """Of an element, which is scrolled into view."""
        x, y = self.ask(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        return x, y

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key of the keyboard, down and up, as Chromium names it (Enter, Tab, ArrowRight)."""
        values: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def key_down(self, code: str, key: str) -> None:
        """A key goes down and stays down. code: its place (KeyA, Space); key: what it means (a)."""
        self._key("rawKeyDown", code, key)

    def key_up(self, code: str, key: str) -> None:
        self._key("keyUp", code, key)

    def _key(self, kind: str, code: str, key: str) -> None:
        number = ord(key.upper()) if len(key) == 1 else 0
        self.call("Input.dispatchKeyEvent", type=kind, code=code, key=key, windowsVirtualKeyCode=number)

    def drop(self, selector: str, files: Sequence[Path]) -> None:
        """Files and folders are dragged from outside onto the middle of an element, and let go there."""
        x, y = self._middle(selector)
        data = {"items": [], "files": [str(file.absolute()) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def inject(self, script: str) -> None:
        """Runs before the scripts of every page that is opened from now on."""
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)

    def grant(self, *permissions: str) -> None:
        """As if the user had said yes: midi, midiSysex, …"""
        self._browser.call(
            "Browser.grantPermissions", permissions=permissions, browserContextId=self._context
        )

    def offline(self, offline: bool) -> None:
        """No network for the page and its workers, or network again."""
        self._offline = offline
        for session in (self._session, *self._workers):
            self._browser.send("Network.emulateNetworkConditions", session, **_conditions(offline))
        self.wait(f"navigator.onLine === {str(not offline).lower()}")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def note(self, event: str, values: dict[str, Any]) -> None:
        """Of the browser: something happened here."""
        if event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.consoleAPICalled":
            self.said.append(f"{values['type']}: {values['args']}")
        elif event == "Runtime.exceptionThrown":
            self.said.append(f"exception: {values['exceptionDetails']}")
        elif event == "Log.entryAdded":
            self.said.append(f"{values['entry']['level']}: {values['entry']['text']}")
        elif event == "Target.attachedToTarget":
            self._attach(values["sessionId"])

    def _attach(self, worker: str) -> None:
        """Nothing is waited for: this happens in the middle of another command."""
        self._browser.adopt(worker, self)
        self._workers.append(worker)
        for domain in ("Runtime", "Network", "Log"):
            self._browser.send(f"{domain}.enable", worker)
        self._browser.send("Target.setAutoAttach", worker, **ATTACH)
        if self._offline:
            self._browser.send("Network.emulateNetworkConditions", worker, **_conditions(True))


def _conditions(offline: bool) -> dict[str, Any]:
    return {"offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}


@contextmanager
def browsing(program: str, profile: Path) -> Iterator[Browser]:
    """A browser. profile: an empty folder for what it keeps."""
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
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
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
        yield Browser(command_in, answer_out)
    finally:
        os.close(command_in)  # its end of the conversation: Chromium quits
        os.close(answer_out)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


@contextmanager
def running(program: str, profile: Path) -> Iterator[Page]:
    """A browser with one empty page."""
    with browsing(program, profile) as browser, browser.page() as page:
        yield page
