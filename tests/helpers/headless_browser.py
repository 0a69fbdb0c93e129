"""Debian's chromium without a window: a page is opened in frames of given widths, and says what a probe found in each.

The browser is driven by its command line alone: a wrapper page holds the page in one frame a width, each with a probe script
before everything else, and what the probes found is read from the document that the browser prints.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parents[2] / "build" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
_COLLECT = """<script>
const found = {}, frames = WIDTHS;
addEventListener("message", (event) => {
  found[event.data.width] = event.data;
  if (Object.keys(found).length === frames.length) {
    document.getElementById("found").textContent = JSON.stringify(found);
  }
});
</script>"""
_ERRORS = """<script>
window.errors = [];
addEventListener("error", (event) => errors.push(event.message || "missing " + event.target.outerHTML.slice(0, 80)), true);
addEventListener("securitypolicyviolation", (event) => errors.push("blocked " + event.blockedURI));
</script>"""


def why_no_browser() -> str | None:
    """Return why no page can be opened here; None where one can."""
    if BROWSER is None:
        return "no chromium: apt-get install chromium"
    if not AXE.is_file():
        return "no axe-core: npm install --prefix build/browser axe-core@4"
    return None


def probe_page(page: str, folder: Path, probe: str, widths: list[int]) -> dict[int, dict[str, Any]]:
    """Open a page at each width; return what the `probe` (the body of an async function, which returns a mapping) found."""
    axe = AXE.read_text().replace("</script", "<\\/script")
    frames = []
    for width in widths:
        report = f"parent.postMessage({{width: {width}, ...found}}, '*')"
        failed = f"parent.postMessage({{width: {width}, failed: String(error)}}, '*')"
        script = f"(async () => {{ {probe} }})().then((found) => {report}, (error) => {failed})"
        probed = page.replace("<head>", f"<head>{_ERRORS}", 1)
        probed = probed.replace(
            "</body>", f"<script>{axe}</script><script>addEventListener('load', () => {{ {script} }})</script></body>"
        )
        frames.append(f'<iframe width="{width}" height="900" srcdoc="{html.escape(probed)}"></iframe>')
    collect = _COLLECT.replace("WIDTHS", json.dumps(widths))
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f'<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre>{collect}{"".join(frames)}')
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    shown = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=300, cwd=folder)
    found = re.search(r'<pre id="found">(.*?)</pre>', shown.stdout, flags=re.DOTALL)
    assert found is not None, shown.stderr[-2000:]
    assert found[1], "no probe ended"
    return {int(width): each for width, each in json.loads(html.unescape(found[1])).items()}
