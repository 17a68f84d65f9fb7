# %% [markdown]
# # Serve
#
# `voxsam serve` is the page in the browser, and an HTTP server for programs. A click over HTTP needs no library.

# %%
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = f"http://127.0.0.1:{port}"
words = ["serve", "--port", str(port), "--state", tempfile.mkdtemp(), "--threads", "2"]
process = subprocess.Popen([sys.executable, "-m", "voxsam.cli", *words], stderr=subprocess.DEVNULL)


def ask(path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


for _ in range(240):
    try:
        print(ask("/healthz"))
        break
    except OSError:
        time.sleep(0.5)

# %% [markdown]
# A session opens a scan: of a served folder, an upload, or the generated one.

# %%
info = ask("/api/info")
session = ask("/api/sessions", {"source": {"demo": True}})
print(info["model"], session["id"])

# %% [markdown]
# Prompts are what they are everywhere. The page at the same address shows the same session.

# %%
click = {"kind": "point", "index": [133, 91, 35], "positive": True}
answer = ask(f"/api/sessions/{session['id']}/prompts", {"prompts": [click]})
print(sorted(answer), [(one["number"], one["volume_ml"]) for one in answer["objects"]])

# %%
process.terminate()
process.wait()
