"""A headless Chromium that tests drive through its DevTools protocol."""

import asyncio
import itertools
import shutil
import subprocess
import time

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-port=0",
)
_WAIT = 20  # seconds, for anything


def find_chromium():
    """Return the binary, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one tab; a context manager."""

    def __init__(self, binary, folder):
        self.loop = asyncio.new_event_loop()
        self.events = []
        self._numbers = itertools.count()
        self._answers = {}
        self._folder = folder
        self._process = subprocess.Popen(
            [binary, *OPTIONS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self):
        try:
            self._wait(self._connect())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if hasattr(self, "_session"):
            self._wait(self._disconnect())
        self._process.terminate()
        try:
            self._process.wait(_WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_WAIT)
        self.loop.close()

    def ask(self, method, **params):
        """Call a method of the tab and return its result."""
        return self._wait(self._ask(method, params))

    def run(self, script):
        """Evaluate JavaScript in the tab and return its JSON value."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, url):
        """Open a page, wait until it is loaded, and forget what happened before."""
        self.events.clear()
        self.ask("Page.navigate", url=url)
        self._wait(self._until(lambda: self.seen("Page.loadEventFired")))

    def seen(self, *methods):
        """Return the parameters of the events of these names since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def press(self, key, code, text=""):
        """Press a key and let it go; what it does is done when this returns."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        down = "keyDown" if text else "rawKeyDown"
        self.ask("Input.dispatchKeyEvent", type=down, text=text, **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, x, y):
        """Click at a place of the window, CSS px."""
        common = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.ask("Input.dispatchMouseEvent", type="mousePressed", **common)
        self.ask("Input.dispatchMouseEvent", type="mouseReleased", **common)

    def show(self, width, scheme):
        """Make the window so wide, CSS px, and the system light or dark."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def _wait(self, work):
        return self.loop.run_until_complete(asyncio.wait_for(work, _WAIT))

    async def _connect(self):
        file = self._folder / "DevToolsActivePort"
        await self._until(lambda: file.exists() and "/" in file.read_text())
        port, path = file.read_text().split()
        self._session = aiohttp.ClientSession()
        address = f"ws://127.0.0.1:{port}{path}"
        self._socket = await self._session.ws_connect(address, max_msg_size=0)
        self._reader = self.loop.create_task(self._read())
        targets = await self._ask("Target.getTargets", {}, tab=False)
        tab = next(one for one in targets["targetInfos"] if one["type"] == "page")
        asked = {"targetId": tab["targetId"], "flatten": True}
        self._tab = (await self._ask("Target.attachToTarget", asked, tab=False))["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._ask(f"{domain}.enable", {})

    async def _disconnect(self):
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._session.close()

    async def _ask(self, method, params, *, tab=True):
        number = next(self._numbers)
        answered = self._answers[number] = self.loop.create_future()
        sent = {"id": number, "method": method, "params": params}
        await self._socket.send_json(sent | ({"sessionId": self._tab} if tab else {}))
        answer = await answered
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def _read(self):
        async for message in self._socket:
            raw = message.json()
            if "id" in raw:
                self._answers.pop(raw["id"]).set_result(raw)
            else:
                self.events.append(raw)

    async def _until(self, holds):
        end = time.monotonic() + _WAIT
        while not holds():
            assert self._process.poll() is None, "the browser has ended"
            assert time.monotonic() < end, "the browser took too long"
            await asyncio.sleep(0.02)
