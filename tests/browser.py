"""A real browser for tests: the system's Chromium without a window, driven through its debugging protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websocket import WebSocket, create_connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARROWS = ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown")
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36} | {key: code for code, key in enumerate(ARROWS, 37)}
SECONDS = 180
NO_LONGER_THERE = -32000  # the protocol's code for a context or node that went away
# Scrolls an element into view and returns its middle, which has been the same for some frames.
MIDDLE = """async (selector) => {
    for (let still = 0, last = {}; ;) {
        const found = document.querySelector(selector);
        found?.scrollIntoView({block: 'center', behavior: 'instant'});
        const {x, y, width, height} = found?.getBoundingClientRect() ?? {};
        const middle = {x: x + width / 2, y: y + height / 2};
        still = middle.x === last.x && middle.y === last.y ? still + 1 : 0;
        if (still === 5) return middle;
        last = middle;
        await new Promise(requestAnimationFrame);
    }
}"""


def find_browser() -> str | None:
    """Returns the command of an installed Chromium, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser(profile: Path) -> Generator["Browser"]:
    """Starts Chromium with a fresh profile, and ends it."""
    command = find_browser()
    assert command
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([command, *flags, f"--user-data-dir={profile}", "about:blank"], **quiet)
    try:
        with Browser.connected(profile) as found:
            yield found
    finally:
        process.terminate()
        process.wait(SECONDS)


class PageChanged(AssertionError):
    """What was asked is about a page that is no longer there."""


class Browser:
    """One tab.

    Attributes:
        problems: what the console and the network complained about since the page was opened.
        allowed: how the addresses begin that the page may ask for.
    """

    def __init__(self, socket: WebSocket):
        self._socket, self._numbers = socket, itertools.count(1)
        self.problems: list[str] = []
        self.allowed: tuple[str, ...] = ("file:", "data:")
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    @classmethod
    @contextmanager
    def connected(cls, profile: Path) -> Generator["Browser"]:
        """Waits for the browser to listen, and connects to its tab."""
        port, deadline = profile / "DevToolsActivePort", time.monotonic() + SECONDS
        while not (port.exists() and "\n" in port.read_text()):
            assert time.monotonic() < deadline, "the browser did not start"
            time.sleep(0.1)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json", timeout=SECONDS) as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        socket = create_connection(
            tab["webSocketDebuggerUrl"], timeout=SECONDS, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        try:
            yield cls(socket)
        finally:
            socket.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls the protocol and returns its answer; events that come before it are looked at."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                if message.get("error", {}).get("code") == NO_LONGER_THERE:
                    raise PageChanged(message["error"])
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        """Keeps an event that a page without faults does not cause."""
        name, facts = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.problems.append(str(facts["exceptionDetails"].get("exception", facts).get("description", facts)))
        elif name == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(each.get("value", each.get("description"))) for each in facts["args"]))
        elif name == "Log.entryAdded":
            self.problems.append(facts["entry"]["text"])
        elif name == "Network.requestWillBeSent" and not facts["request"]["url"].startswith(self.allowed):
            self.problems.append(f"asked for {facts['request']['url']}")

    def open(self, page: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Opens a file in a window of a size, and waits for it."""
        self.show(width, height, dark)
        self.navigate(page.as_uri())

    def visit(self, address: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a server's page in a window of a size, and waits for it; it may ask nobody but this server."""
        self.show(width, height, dark)
        server = "/".join(address.split("/")[:3]) + "/"
        self.allowed = (server, "data:", f"blob:{server}")
        self.navigate(address)

    def show(self, width: int, height: int, dark: bool) -> None:
        """Leaves the page, sets what the window is like, and forgets problems, also those that are heard of late."""
        self.navigate("about:blank")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(width, height)
        self.problems.clear()

    def navigate(self, address: str) -> None:
        """Opens an address and waits for its page."""
        self.run("window.left = true")
        self.send("Page.navigate", url=address)
        self.wait("!window.left && document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Changes the window, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def run(self, script: str) -> Any:
        """Returns the value of an expression in the page, which may be a promise."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Waits until an expression holds; while another page is loaded, none can be asked."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(PageChanged):
                if self.run(condition):
                    return
            assert time.monotonic() < deadline, f"never: {condition}"
            time.sleep(0.05)

    def press(self, key: str, count: int = 1) -> None:
        """Presses a key."""
        code = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
        for _ in range(count):
            down = code | ({"text": " "} if key == " " else {})
            self.send("Input.dispatchKeyEvent", type="keyDown", **down)
            self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def click(self, selector: str) -> None:
        """Clicks the middle of an element with the mouse, once it is there and stays where it is."""
        self.wait(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
        at = self.run(f"({MIDDLE})({json.dumps(selector)})") | {"button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def fill(self, selector: str, text: str) -> None:
        """Replaces the text of a field, as typed."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found}?.checkVisibility() && ({found}.focus(), document.activeElement === {found})")
        self.run(f"{found}.select()")
        self.send("Input.insertText", text=text)
        self.run(f"{found}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def choose_files(self, selector: str, files: Iterable[Path]) -> None:
        """Gives files to a file field, as if chosen."""
        found = self.send("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")["result"]
        self.send("DOM.setFileInputFiles", objectId=found["objectId"], files=[str(file) for file in files])

    def move(self, x: float, y: float) -> None:
        """Moves the mouse."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """Saves a screenshot, of the whole page or of what is seen of it."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
