"""`voxsam serve`: the page in the browser, and the HTTP server behind it."""

from __future__ import annotations

import os
import socket
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from voxsam.cli.parse import three_lengths
from voxsam.cli.segment import set_threads
from voxsam.errors import InputError
from voxsam.extras import require_extra

if TYPE_CHECKING:
    from voxsam.server.settings import Settings

GIB = 1 << 30
DEFAULT_MODEL = "voxsam-tiny"


def command(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Scans in these folders, or DICOMweb archives, may be opened."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0: every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    key: Annotated[str | None, typer.Option(envvar="VOXSAM_KEY", help="What clients must show.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A name or a .safetensors file; default: voxsam-tiny, or the project's.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Where uploads and the work are kept; default: the user's folder for state.")
    ] = None,
    upload_limit: Annotated[float, typer.Option(min=1e-6, help="GiB of one upload.")] = 2.0,
    memory: Annotated[float, typer.Option(min=1e-3, help="GiB of all that is in work and open together.")] = 4.0,
    sessions: Annotated[int, typer.Option(min=1, help="That may be open at once.")] = 16,
    idle: Annotated[float, typer.Option(min=1, help="Seconds until an unused session is closed.")] = 1800.0,
    alive: Annotated[float, typer.Option(min=1, help="Seconds without a sign of life until one is closed.")] = 60.0,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name that the server is called by, as by a proxy.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help="Let pages of another site call.")] = None,
    spacing: Annotated[
        str, typer.Option(metavar="X,Y,Z", help="mm of the voxels of ITK-SNAP's images, which come without.")
    ] = "1,1,1",
    project: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A project whose scans are worked through in the page.")
    ] = None,
    learn_minutes: Annotated[float, typer.Option(min=0.1, max=600, help="That a learning of it may take.")] = 20.0,
    web: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also serve the page that segments in the browser, built by `make web`."),
    ] = None,
    demo: Annotated[bool, typer.Option(help="Offer the generated scan.")] = True,
    browser: Annotated[bool, typer.Option(help="Open the page; only where this machine's user can see it.")] = False,
) -> None:
    """Serve the page and the API, until Ctrl+C."""
    require_extra("serve", "`voxsam serve`")
    from voxsam.server.settings import Settings

    if project is not None and model is not None:
        raise InputError(f"--model {model} with a project", "its own model", "choose it with `voxsam project use`")
    settings = Settings(
        host=host,
        port=port,
        key=key,  # type: ignore[arg-type]  # pydantic wraps it
        hosts=tuple(allow_host or ()),
        model=model or DEFAULT_MODEL,
        project=project,
        learn_minutes=learn_minutes,
        device=device,
        folders=tuple(folders or ()),
        demo=demo,
        web=web,
        state=state or state_folder(),
        upload_bytes=int(upload_limit * GIB),
        memory_bytes=int(memory * GIB),
        capacity=sessions,
        idle_s=idle,
        alive_s=alive,
        cors=tuple(cors or ()),
        spacing_mm=three_lengths("--spacing", spacing),
    )
    set_threads(threads)
    serve(settings, browser)


def serve(settings: Settings, browser: bool) -> None:
    """Run the server until it is interrupted. Raises InputError if it cannot start."""
    from voxsam.protocols import PROTOCOLS
    from voxsam.server.app import make_app
    from voxsam.server.guard import make_server
    from voxsam.server.observe import log_to_stderr

    listener = _listen(settings.host, settings.port)
    with listener:
        host = settings.host
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        log_to_stderr()  # before the application, whose warm-up logs what it chose
        app = make_app(settings, protocols=PROTOCOLS)
        _log(settings, address)
        if browser:
            threading.Timer(0.5, webbrowser.open, [_first_page(settings, address)]).start()
        try:
            make_server(app, settings).run(sockets=[listener])
        finally:
            app.state.service.close()


def state_folder() -> Path:
    """The default folder for the server's state: in $VOXSAM_HOME, or the platform's state folder."""
    from voxsam.weights.registry import user_folder

    return user_folder("Application Support", "XDG_STATE_HOME", ".local/state") / "server"


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, so that a port already in use is reported before the model is loaded."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name != "nt":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
    except OSError as error:
        given = f"--host {host} --port {port} ({error.strerror})"
        raise InputError(given, "an address of this machine and a free port", "choose another --port") from error
    return listener


def _first_page(settings: Settings, address: str) -> str:
    """The address that the browser opens, with the key in its fragment (never sent); without folders, the demo."""
    key = "" if settings.key is None else f"key={quote(settings.key.get_secret_value(), safe='')}&"
    start = "demo" if settings.demo and not settings.folders and not settings.project else ""
    return f"{address}#{key}{start}" if key or start else address


def _log(settings: Settings, address: str) -> None:
    if settings.key is None and not settings.is_local:
        warning = f"anyone who reaches {settings.host} can open the served folders and every session"
        typer.echo(f"voxsam: warning: no key; {warning}; give --key or VOXSAM_KEY", err=True)
    if not settings.is_local:
        typer.echo("voxsam: the connection is not encrypted: put a TLS proxy in front of it", err=True)
    served = f"the project {settings.project}" if settings.project else settings.model
    typer.echo(f"VoxSAM with {served} at {address} (Ctrl+C ends it; the work is kept in {settings.state})")
