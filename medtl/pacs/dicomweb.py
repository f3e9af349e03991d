"""DICOMweb (PS3.18): search a PACS, fetch instances as bytes, store bytes; no data set is parsed here."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from email.message import Message
from typing import Any

import requests

from medtl.errors import PacsError, ReadError
from medtl.pacs.instance import UID, Instance, read_file
from medtl.pacs.peer import Tls, WebPeer, client_tls, unexpected, unreachable

TIMEOUT_SECONDS = (10.0, 60.0)  # to connect; between bytes
PAGE = 100
LARGEST_LIST = 64 * 2**20
LARGEST_INSTANCE = 2**30
CHUNK = 2**16
# The tag of the UID at each level.
LEVELS = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}
REFERENCED, FAILED, REFERENCED_INSTANCE, FAILURE = "00081199", "00081198", "00081155", "00081197"
ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
UNAVAILABLE = (502, 503, 504)
TOKEN = "MEDTL_PACS_TOKEN"


class WebService(AbstractContextManager["WebService"]):
    """A DICOMweb service and its connection. Credentials: ~/.netrc, or a token in the variable TOKEN."""

    def __init__(self, peer: WebPeer, tls: Tls | None = None) -> None:
        self.peer = peer
        self.session = requests.Session()
        if os.environ.get(TOKEN):
            self.session.auth = _authorise
        tls = tls or Tls()
        client_tls(tls)  # reports faulty files in our words
        cert = (str(tls.certificate), str(tls.key or tls.certificate)) if tls.certificate else None
        self.tls: Any = {"verify": str(tls.authority) if tls.authority else True, "cert": cert}

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def find(self, query: Mapping[str, str], *above: str, limit: int | None = None) -> Iterator[str]:
        """Yield the UIDs of studies, of the series of a study, or of the instances of a series (QIDO-RS).

        query: attributes to match; above: the UIDs of that study and series. A page at a time, until one has
        nothing new: not every PACS supports offset and limit. Raises PacsError.
        """
        level = list(LEVELS)[len(above)]
        seen: set[str] = set()
        offset = 0
        while limit is None or len(seen) < limit:
            asked = {**query, "limit": str(PAGE), "offset": str(offset)}
            page = self._page(f"{_path(*above)}{level}", asked, LEVELS[level])
            news = [uid for uid in dict.fromkeys(page) if uid not in seen]
            yield from news[: None if limit is None else limit - len(seen)]
            seen.update(news)
            offset += len(page)
            if not news:
                return

    def retrieve(self, study: str, series: str, instance: str) -> bytes:
        """Return an instance as a DICOM file, in the transfer syntax in which it is stored (WADO-RS).

        Raises PacsError pacs-answer.
        """
        path = _path(study, series, instance).rstrip("/")
        response, content = self._ask("GET", path, LARGEST_INSTANCE, headers={"Accept": ANY_SYNTAX})
        if response.status_code != 200:
            raise unexpected(self.peer, f"answered {response.status_code} for an instance")
        return self._single_part(response.headers.get("Content-Type", ""), content)

    def store(self, instances: Sequence[Instance]) -> Iterator[tuple[Instance, str | ReadError]]:
        """Store instances (STOW-RS); yield each with the reason if it was refused, "" once acknowledged."""
        for instance in instances:
            try:
                yield instance, self._store(instance)
            except ReadError as error:
                yield instance, error

    def _store(self, instance: Instance) -> str:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + read_file(instance.path) + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        response, content = self._ask("POST", "studies", LARGEST_LIST, headers=headers, data=body)
        # It is stored only if the answer lists it as stored.
        answer, status, uid = _parsed(content), response.status_code, instance.sop_instance
        failed = {_value(item, REFERENCED_INSTANCE): item for item in _values(answer, FAILED)}
        stored = {_value(item, REFERENCED_INSTANCE) for item in _values(answer, REFERENCED)}
        if uid in stored and uid not in failed and status in (200, 202):
            return ""
        reason = _value(failed.get(uid), FAILURE)
        return f"the PACS answered {status}{f', failure reason {reason[:8]}' if reason else ''}"

    def _page(self, path: str, query: Mapping[str, str], tag: str) -> list[str]:
        headers = {"Accept": "application/dicom+json"}
        response, content = self._ask("GET", path, LARGEST_LIST, headers=headers, params=query)
        if response.status_code == 204:
            return []
        answer = _parsed(content)
        if response.status_code != 200 or not isinstance(answer, list):
            raise unexpected(self.peer, f"answered {response.status_code} to a search")
        uids = [_value(item, tag) for item in answer]
        if not all(map(UID.fullmatch, uids)):
            raise unexpected(self.peer, "listed an item without a valid UID")
        return uids

    def _ask(self, method: str, path: str, largest: int, **more: Any) -> tuple[requests.Response, bytes]:
        """Send a request; return the answer and its body. Raises PacsError."""
        content = bytearray()
        try:
            with self.session.request(
                method,
                f"{self.peer.url}/{path}",
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,  # a redirection could lead anywhere
                stream=True,
                **self.tls,  # not in the session, where environment variables would take precedence
                **more,
            ) as response:
                self._check_status(response.status_code)
                for chunk in response.iter_content(CHUNK):
                    content += chunk
                    if len(content) > largest:
                        raise unexpected(self.peer, f"sent more than {largest // 2**20} MB at once")
        except (requests.RequestException, OSError) as error:
            raise unreachable(self.peer, f"does not answer ({type(error).__name__})") from error
        return response, bytes(content)

    def _check_status(self, status: int) -> None:
        """Raise PacsError pacs-refused, pacs-unreachable, or pacs-answer for a redirection."""
        if status in (401, 403):
            fix = f"put user and password into ~/.netrc, or a token into {TOKEN}"
            reason = f"answered {status}, not authorised"
            raise PacsError("pacs-refused", reason, where=self.peer.url, fix=fix)
        if status in UNAVAILABLE:
            raise unreachable(self.peer, f"does not answer (status {status})")
        if 300 <= status < 400:
            raise unexpected(self.peer, f"answered with a redirection ({status})")

    def _single_part(self, content_type: str, body: bytes) -> bytes:
        """Return the only part of a multipart message (RFC 2046 5.1.1), or the body of a plain one."""
        header = Message()
        header["Content-Type"] = content_type
        boundary = header.get_param("boundary")
        if header.get_content_type() == "application/dicom":
            return body
        if header.get_content_maintype() != "multipart" or not isinstance(boundary, str):
            raise unexpected(self.peer, "sent something other than DICOM for an instance")
        mark = b"--" + boundary.encode()
        start = body.find(b"\r\n\r\n", body.find(mark))
        end = body.rfind(b"\r\n" + mark + b"--")
        if not 0 <= start < end or body.find(b"\r\n" + mark + b"\r\n", start, end) >= 0:
            raise unexpected(self.peer, "did not send one whole part for an instance")
        return body[start + 4 : end]


def _path(*uids: str) -> str:
    """Return the path of a study, series or instance, with a slash at its end."""
    return "".join(f"{level}/{uid}/" for level, uid in zip(LEVELS, uids))


def _authorise(request: requests.PreparedRequest) -> requests.PreparedRequest:
    request.headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
    return request


def _parsed(content: bytes) -> Any:
    """Return an answer as plain data, None if it is not JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _values(item: Any, tag: str) -> list[Any]:
    """Return the values of an element of the DICOM JSON model (PS3.18 F.2), none where it is malformed."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _value(item: Any, tag: str) -> str:
    """Return the first value of an element, or ""."""
    values = _values(item, tag)
    return str(values[0]) if values else ""
