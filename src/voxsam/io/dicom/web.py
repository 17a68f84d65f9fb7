"""DICOMweb archives (PS3.18): retrieve, store and list; dicomweb-client does the HTTP and the parsing.

    dicomweb+https://HOST/dicom-web                                  an archive
    dicomweb+https://HOST/dicom-web/studies/STUDY/series/SERIES      a series in it

Credentials come from the environment or from netrc, never from an address, and appear in no message.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pydicom
from pydicom.errors import InvalidDicomError

from voxsam.errors import FileError
from voxsam.extras import needs_extra

if TYPE_CHECKING:
    from dicomweb_client.web import DICOMwebClient

# pathlib collapses two slashes into one, and addresses are passed where paths are.
ADDRESS = re.compile(r"dicomweb\+(?P<scheme>https?):/{1,2}(?P<place>[^?#]+)", re.IGNORECASE)
SERIES = re.compile(r"(?P<archive>.+?)/studies/(?P<study>[0-9.]{1,64})/series/(?P<series>[0-9.]{1,64})/?")
UID = re.compile(r"[0-9.]{1,64}")
USER, PASSWORD, TOKEN = "VOXSAM_DICOMWEB_USER", "VOXSAM_DICOMWEB_PASSWORD", "VOXSAM_DICOMWEB_TOKEN"
TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces of a response
ATTEMPTS, FIRST_WAIT_MS = 3, 500  # of a request that fails, or that a busy archive defers; each wait doubles
ANY_SYNTAX = (("application/dicom", "*"),)  # as stored: compressed frames are not decoded for the transfer
MAX_BYTES = 16 << 30  # of one series
MAX_LISTED = 1000  # studies, or series of a study


@dataclass(frozen=True)
class Found:
    """A study or a series that an archive lists."""

    uid: str
    description: str


@dataclass(frozen=True)
class Archive:
    """One DICOMweb service at `address`, an http or https URL."""

    address: str

    @classmethod
    def at(cls, address: str | os.PathLike[str]) -> Archive:
        """The archive of an archive's or a series' address. Raises FileError for an invalid address."""
        match = ADDRESS.fullmatch(os.fspath(address))
        place = match["place"].rstrip("/") if match else ""
        if match is None or not place.partition("/")[0]:
            given = "an address of DICOMweb that cannot be read"
            raise FileError(given, "dicomweb+https://HOST/PATH/studies/STUDY/series/SERIES", "check it")
        if "@" in place.partition("/")[0]:
            remedy = f"put them into ~/.netrc, or into {USER} and {PASSWORD}"
            raise FileError("a user name in an address of DICOMweb", "an address without", remedy)
        series = SERIES.fullmatch(place)
        return cls(f"{match['scheme'].lower()}://{series['archive'] if series else place}")

    def retrieve(self, study: str, series: str, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        """Download the files of a series into a folder. Raises FileError if that fails, or exceeds `max_bytes`."""
        count = total = 0
        with self._asking("a series"):
            for dataset in self._client.iter_series(study, series, media_types=ANY_SYNTAX):
                count += 1
                file = folder / f"{count:06}.dcm"
                dataset.save_as(file)
                total += file.stat().st_size
                if total > max_bytes:
                    given = f"a series of more than {max_bytes >> 20} MiB"
                    raise FileError(given, "a series that fits", "choose another one, or raise the limit")
        if not count:
            raise FileError(f"a series without images at {self.host}", "images", "check the address")

    def store(self, file: Path) -> None:
        """Send a DICOM file to the archive. Raises FileError if it is not accepted."""
        dataset = pydicom.dcmread(file)
        with self._asking("an object to keep"):
            answer = self._client.store_instances([dataset], study_instance_uid=dataset.StudyInstanceUID)
        failed = answer.get("FailedSOPSequence")
        if failed:
            reason = failed[0].get("FailureReason", 0)
            given = f"an object that {self.host} did not take (reason {reason:04X})"
            raise FileError(given, "an archive that keeps it", "ask who runs the archive")

    def studies(self) -> list[Found]:
        """The archive's studies, latest first."""
        with self._asking("its studies"):
            listed = self._client.search_for_studies(fields=["StudyDescription"], limit=MAX_LISTED)
        found = [pydicom.Dataset.from_json(study) for study in listed]
        found.sort(key=lambda study: str(study.get("StudyDate", "")), reverse=True)
        keys = ("PatientName", "PatientID", "StudyDate", "StudyDescription")
        return [Found(str(study.StudyInstanceUID), _words(study, keys)) for study in found]

    def series_of(self, study: str) -> list[Found]:
        """The series of a study, sorted by number."""
        with self._asking("the series of a study"):
            listed = self._client.search_for_series(study, fields=["NumberOfSeriesRelatedInstances"], limit=MAX_LISTED)
        found = [pydicom.Dataset.from_json(series) for series in listed]
        found.sort(key=lambda series: int(series.get("SeriesNumber") or 0))
        keys = ("SeriesNumber", "Modality", "SeriesDescription", "NumberOfSeriesRelatedInstances")
        return [Found(str(series.SeriesInstanceUID), _words(series, keys)) for series in found]

    def study_of(self, series: str) -> str | None:
        """The study that a series belongs to; None if the archive has no such series."""
        with self._asking("a series"):
            listed = self._client.search_for_series(search_filters={"SeriesInstanceUID": series}, limit=1)
        return str(pydicom.Dataset.from_json(listed[0]).StudyInstanceUID) if listed else None

    @property
    def host(self) -> str:
        """The archive's host name, with the port if the address has one."""
        return urlsplit(self.address).netloc

    @cached_property
    def _client(self) -> DICOMwebClient:
        with needs_extra("dicom", "an address of DICOMweb"):
            import requests
            from dicomweb_client.web import DICOMwebClient
        session = requests.Session()
        user, token = os.environ.get(USER), os.environ.get(TOKEN)
        if token:
            session.auth = lambda request: request.headers.update(Authorization=f"Bearer {token}") or request
        elif user:
            session.auth = (user, os.environ.get(PASSWORD, ""))
        client = DICOMwebClient(self.address, session=session, timeout=TIMEOUT_S)
        # By default it tries five times in half a minute, even if nothing listens or a certificate is refused.
        client.set_http_retry_params(max_attempts=ATTEMPTS, wait_exponential_multiplier=FIRST_WAIT_MS // 2)
        return client

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn any failure of a request into a one-line FileError that names only the host."""
        client = self._client  # raises UnsupportedError without the extra
        import requests

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about responses that do not quite conform
                yield
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            remedy = "check the address, and that the archive runs"
            if status in (401, 403):
                remedy = f"put credentials into ~/.netrc, or into {USER} and {PASSWORD}"
            raise FileError(f"{self.host} answered {status} to {what}", "what was asked for", remedy) from None
        except requests.exceptions.SSLError:
            given, remedy = f"a certificate of {self.host} that cannot be trusted", "name its authority's file in "
            raise FileError(given, "one that is known here", f"{remedy}REQUESTS_CA_BUNDLE") from None
        except requests.RequestException as error:
            given = f"no answer from {client.host}:{client.port} ({type(error).__name__})"
            raise FileError(given, "an archive that answers", "check the address and the network") from None
        except (ValueError, KeyError, AttributeError, InvalidDicomError) as error:
            given = f"an answer of {self.host} that is no DICOMweb ({type(error).__name__})"
            raise FileError(given, "PS3.18", "check the address: it ends before /studies") from None


@contextmanager
def retrieved(address: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder with the files of the series at an address, named after its UID.

    Raises FileError for an address without a series, and as `Archive.retrieve` does.
    """
    archive, series = Archive.at(address), SERIES.fullmatch(os.fspath(address))
    if series is None:
        expected = "dicomweb+https://HOST/PATH/studies/STUDY/series/SERIES"
        raise FileError("an address of DICOMweb without a series", expected, "add the UIDs of study and series")
    with tempfile.TemporaryDirectory(prefix="voxsam-") as temporary:
        folder = Path(temporary) / series["series"]
        folder.mkdir()
        archive.retrieve(series["study"], series["series"], folder)
        yield folder


def _words(dataset: pydicom.Dataset, keys: tuple[str, ...]) -> str:
    """The values of these elements that are present, in one line."""
    values: list[Any] = [dataset.get(key, "") for key in keys]
    return " · ".join(" ".join(str(value).split()) for value in values if value not in ("", None)) or "without a name"
