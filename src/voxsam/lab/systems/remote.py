"""Any server that speaks the nnInteractive protocol, clicked through nnInteractive's own client."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from voxsam.errors import InputError, UnsupportedError
from voxsam.lab.evaluation.systems import Images, System, turned_back
from voxsam.lab.systems.compared import EXTRA, About, Job, Untrained, register
from voxsam.prompts import Point
from voxsam.volume import Volume

if TYPE_CHECKING:
    import httpx
    from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as Client

AXES = "SPL"  # slice, row, column: the array that SimpleITK, 3D Slicer and napari send for a supine patient's scan


@register("remote")
class Remote(Untrained):
    """A server's model, used interactively; each opened scan is a session of its own."""

    name = "remote"
    about = About(
        title="nnInteractive server",
        paper="Isensee et al., nnInteractive, 2025 (the protocol; the model is the server's)",
        source="https://github.com/MIC-DKFZ/nnInteractive",
        licence="Apache-2.0 (client)",
        library="nninteractive-client",
        differences="which model runs is the server's affair; seconds include the network",
        trained=False,
        install=EXTRA,
        note="nobody here knows what its model was trained on: it may have seen the test cases",
    )
    options: Mapping[str, str] = {
        "address": "of the server: http://HOST:PORT",
        "api_key": "if the server wants one; default: what NN_INTERACTIVE_API_KEY holds",
        "title": "what tables call it: its model's name, say; default: nnInteractive server",
        "negative": "false: its model takes no negative clicks; default: true",
    }

    def check(self, job: Job) -> None:
        """Check as for every system, and the address and that the client is installed."""
        super().check(job)
        if find_spec("nnInteractive") is None:
            given, remedy = "a remote system without nnInteractive's client", EXTRA
            raise UnsupportedError(given, "the package nninteractive-client", remedy)
        address = str(job.options.get("address", ""))
        if not address.startswith(("http://", "https://")):
            given = f"the address {address!r} of a remote system"
            raise InputError(given, "http://HOST:PORT or https://HOST", "give it as the option `address`")

    def load(self, job: Job) -> System:
        """The server, after asking once whether it answers and takes clicks. Raises InputError if not."""
        options = job.options
        self.about = replace(Remote.about, title=str(options.get("title", Remote.about.title)))
        system = RemoteSystem(
            str(options["address"]),
            options.get("api_key"),
            self.about.title,
            bool(options.get("negative", True)),
        )
        with translated(system.address), system.client() as client:
            takes_points = bool(client.supported_interactions.get("points"))
        if not takes_points:
            raise UnsupportedError(f"{system.address}: its model takes no clicks", "one that does", "serve another")
        return system

    def tuned_parameters(self, job: Job) -> None:
        """None: nobody here knows the model."""


@dataclass(frozen=True)
class RemoteSystem:
    """A server at an address, as a `System` of the evaluation."""

    address: str
    api_key: str | None
    name: str
    takes_negative: bool = True
    takes_clicks: bool = True
    parameters: int | None = None

    def client(self) -> Client:
        """A new session on the server, to be closed by the caller; to be used within `translated`."""
        from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as Client

        return Client(self.address, api_key=self.api_key)

    def open(self, volume: Images) -> OpenedRemote:
        """Send a scan; of several channels the first, since the protocol's models take one."""
        return OpenedRemote(self, volume if isinstance(volume, Volume) else volume[0])


class OpenedRemote:
    """A scan on the server. The session ends when this object is garbage-collected."""

    def __init__(self, system: RemoteSystem, scan: Volume) -> None:
        self.address, self.grid = system.address, scan.grid
        sent = scan.reorient(AXES)
        self.sent_grid = sent.grid
        with translated(self.address):
            self.client = system.client()
            weakref.finalize(self, self.client.close)
            # VoxSAM's own server reads the affine, others only the spacing.
            properties = {"spacing": sent.grid.spacing_mm.tolist(), "affine": sent.grid.affine.tolist()}
            self.client.set_image(np.ascontiguousarray(sent.array)[None], properties)
            self.client.set_target_buffer(np.zeros(sent.grid.shape, np.uint8))

    def segment(self, points: Sequence[Point]) -> Volume:
        """The mask for exactly these clicks: predicted for the first, then for all others at once."""
        with translated(self.address):
            self.client.reset_interactions()
            for number, point in enumerate(points):
                at = [float(i) for i in np.rint(self.sent_grid.world_to_index(point.world_mm))]
                predict = number in (0, len(points) - 1)
                self.client.add_point_interaction(at, point.positive, run_prediction=predict)
        buffer = np.array(self.client.target_buffer)  # a copy: the client keeps writing into its own
        return turned_back(Volume((buffer != 0).astype(np.uint8), self.sent_grid, "SEG"), self.grid)


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn all errors between client and server into an InputError of one line."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        status, reason = error.response.status_code, _detail(error.response)
        remedy = "give the server's `api_key`" if status in (401, 403) else "see the server's log"
        raise InputError(
            f"{address} refused ({status}: {reason})", "a server that takes scan and clicks", remedy
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        given = f"{address} does not answer ({str(error) or type(error).__name__})"
        raise InputError(
            given, "a running nnInteractive server", "start it, or change `address` in the plan"
        ) from error
    except (RuntimeError, ValueError, KeyError) as error:  # leases, and responses of other kinds of server
        given = f"{address} speaks otherwise ({str(error) or type(error).__name__})"
        raise InputError(given, "a server of the nnInteractive protocol that has room", "try again later") from error


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
