"""Certificates from files, for one end of TLS connections; read again when the files change."""

import logging
import math
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from servicekit.errors import StartupError
from servicekit.plain_file import read_plain_file

_MAX_BYTES = 1 << 20
_MAX_ROUNDS = 8
"""More than a handshake takes."""
_RETRY_SECONDS = 5.0
"""Between two looks at files that could not be used, though they stay the same."""
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH")

_logger = logging.getLogger(__name__)

_Signature = tuple[tuple[int, ...] | None, ...]


class TlsUse(Enum):
    """What certificates are for: what their options begin with, and how that of the CA ends."""

    CLIENTS = "tls", "client-ca"
    """At a service, towards its clients."""
    OPERATIONS = "operations-tls", "client-ca"
    """At a service, towards those who ask its operations port."""
    ENGINES = "engine-tls", "ca"
    """At a router, towards engines."""
    ROUTER = "tls", "ca"
    """At a client, towards routers."""
    SERVICES = "operations-tls", "ca"
    """At a client, towards operations ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of one end, and the options that name them.

    Attributes:
        cert: A certificate, followed by those between it and its CA.
        key: Its private key, without a passphrase.
        ca: Certificates of the CAs that the other end's certificate may be of.
        use: What they are for.

    Raises:
        StartupError: There is a certificate without its key, or a key without its certificate.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    use: TlsUse = TlsUse.CLIENTS

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            cert, key, _ = self.options
            given, lacking = (key, cert) if self.cert is None else (cert, key)
            raise StartupError(f"{given} needs {lacking}, too")

    @property
    def is_server(self) -> bool:
        """Whether it is the end that listens."""
        return self.use in (TlsUse.CLIENTS, TlsUse.OPERATIONS)

    @property
    def options(self) -> tuple[str, str, str]:
        """The options of certificate, key and CA."""
        prefix, ca = self.use.value
        return f"--{prefix}-cert", f"--{prefix}-key", f"--{prefix}-{ca}"


@dataclass(frozen=True, slots=True)
class Tls:
    """What the files held at one time; all of it was checked.

    Attributes:
        cert: The certificate and those between it and its CA, or None.
        key: Its private key, or None.
        ca: The CAs, or None.
        context: For a server on asyncio; None at the end that connects.
        expirations: By option, when the first of the certificates that are shown expires, or the
            last of the CAs: seconds since 1970.
    """

    cert: bytes | None
    key: bytes | None
    ca: bytes | None
    context: ssl.SSLContext | None
    expirations: Mapping[str, float]


class TlsSource:
    """The latest good content of some files. Threads may share it.

    The files are looked at whenever a connection begins. If they are wrong then, as while they are
    being replaced, the content before stays in use, and they are soon read again.
    """

    def __init__(self, files: TlsFiles, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the files.

        Args:
            files: The files.
            clock: Returns seconds; tests set it.

        Raises:
            StartupError: One is missing, wrong or expired; the message names it.
        """
        self.files = files
        self._lock = threading.Lock()
        self._clock = clock
        self._retry_at = math.inf
        self._problem = ""
        self._signature = self._sign()
        self._tls = _load(files)

    def current(self) -> Tls:
        """Returns what a new connection uses: the same object until the files change."""
        with self._lock:
            signature = self._sign()
            if signature != self._signature or self._clock() >= self._retry_at:
                self._reload(signature)
            return self._tls

    def _reload(self, signature: _Signature) -> None:
        is_changed, self._signature = signature != self._signature, signature
        try:
            self._tls = _load(self.files)
        except StartupError as error:
            # The files may be right, as when the process had no file descriptor left.
            self._retry_at = self._clock() + _RETRY_SECONDS
            if is_changed or str(error) != self._problem:
                self._problem = str(error)
                _logger.error("certificates not reloaded, those before stay in use error=%s", error)
        else:
            self._retry_at, self._problem = math.inf, ""
            _logger.info("certificates reloaded cert=%s ca=%s", self.files.cert, self.files.ca)

    def _sign(self) -> _Signature:
        paths = (self.files.cert, self.files.key, self.files.ca)
        return tuple(_sign(path) for path in paths if path is not None)


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsSource | None:
    """Returns what a server presents to clients and asks of them; None is plain text.

    Raises:
        StartupError: A file is missing, wrong or expired, or an option lacks another.
    """
    files = TlsFiles(cert=cert, key=key, ca=client_ca)
    if cert is None:
        if client_ca is not None:
            raise StartupError("--tls-client-ca needs --tls-cert and --tls-key, too")
        return None
    return TlsSource(files)


def operations_tls(cert: Path | None, key: Path | None) -> TlsSource | None:
    """Returns what an operations port presents to those who ask; None is plain text.

    Raises:
        StartupError: A file is missing, wrong or expired, or an option lacks the other.
    """
    files = TlsFiles(cert=cert, key=key, use=TlsUse.OPERATIONS)
    return None if cert is None else TlsSource(files)


def client_tls(cert: Path | None, key: Path | None, ca: Path | None) -> TlsSource | None:
    """Returns what a router presents to engines and asks of them; None is plain text.

    Raises:
        StartupError: A file is missing, wrong or expired, or an option lacks another.
    """
    files = TlsFiles(cert=cert, key=key, ca=ca, use=TlsUse.ENGINES)
    if ca is None:
        if cert is not None:
            raise StartupError("--engine-tls-cert needs --engine-tls-ca, too")
        return None
    return TlsSource(files)


def _sign(path: Path) -> tuple[int, ...] | None:
    try:
        # Of the file that a link leads to: Kubernetes replaces links.
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _load(files: TlsFiles) -> Tls:
    cert_option, key_option, ca_option = files.options
    cert = _read(cert_option, files.cert)
    key = _read(key_option, files.key)
    ca = _read(ca_option, files.ca)
    context = None
    expirations: dict[str, float] = {}
    if files.ca is not None and (moments := _check_ca(ca_option, files.ca)):
        expirations[ca_option] = max(moments)
    if files.cert is not None:
        if moments := _check_cert(files):
            expirations[cert_option] = min(moments)
        context = _context(files, is_server=files.is_server)
    if not files.is_server:
        return Tls(cert, key, ca, None, expirations)
    if context is not None and files.ca is not None:
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return Tls(cert, key, ca, context, expirations)


def _read(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return read_plain_file(path, _MAX_BYTES)
    except OSError as error:
        raise _wrong(option, path, error.strerror or "cannot be read") from None


def _check_ca(option: str, path: Path) -> list[float]:
    """Refuses CAs that have all expired; returns when each does, as far as that is known."""
    moments = _expirations(_trusting(option, path).get_ca_certs)
    # Where none is known, OpenSSL decides later.
    if moments and max(moments) < time.time():
        raise _wrong(option, path, "its certificates have expired")
    return moments


def _expirations(read: Callable[[], Iterable[Mapping[str, object] | None]]) -> list[float]:
    """Returns when certificates expire; none if one of them is beyond what Python decodes."""
    try:
        texts = [str(one["notAfter"]) for one in read() if one and "notAfter" in one]
        return [float(ssl.cert_time_to_seconds(text)) for text in texts]
    # As of a name that is not UTF-8, which OpenSSL takes.
    except (ValueError, ssl.SSLError):
        return []


def _check_cert(files: TlsFiles) -> list[float]:
    """Lets one end show the certificate to another that trusts just this one.

    Returns:
        When it, and each of those between it and its CA, expires, as far as that is known.
    """
    option, path = files.options[0], files.cert
    assert path is not None
    showing = _context(files, is_server=files.is_server)
    if files.is_server:
        server, client = showing, _trusting(option, path)
    else:
        # A server that shows none there is not, so this one shows the client's.
        server, client = _context(files, is_server=True), showing
        _trust(server, path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    try:
        for _ in range(_MAX_ROUNDS):
            done = [_shake(end) for end in ends]
            if all(done):
                break
    except ssl.SSLCertVerificationError as error:
        raise _wrong(option, path, f"is refused: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise _wrong(option, path, f"is refused: {_reason(error)}") from None
    other, file = ends[0 if files.is_server else 1], _trusting(option, path)
    # Only what is behind the first certificate of the file is a CA.
    return _expirations(lambda: [other.getpeercert(), *file.get_ca_certs()])


def _shake(end: ssl.SSLObject) -> bool:
    """Goes on with a handshake; returns whether it is done."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _context(files: TlsFiles, *, is_server: bool) -> ssl.SSLContext:
    """Returns a context that shows the certificate and trusts nobody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    cert_option, key_option, _ = files.options
    cert, key = files.cert, files.key
    assert cert is not None, "checked by the caller"
    assert key is not None, "checked with the options"
    # First, so that what is wrong afterwards is wrong with the key.
    _trusting(cert_option, cert)
    try:
        # Without the function, it would ask for a passphrase on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise _wrong(key_option, key, f"does not belong to {cert_option} {cert}") from None
        if error.reason:
            raise _wrong(key_option, key, f"cannot be used: {_reason(error)}") from None
        raise _wrong(key_option, key, "holds no private key without a passphrase") from None
    except OSError as error:
        raise _wrong(key_option, key, error.strerror or "cannot be read") from None
    return context


def _trusting(option: str, path: Path) -> ssl.SSLContext:
    """Returns a client's context that trusts the certificates of a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        _trust(context, path)
    except ssl.SSLError:
        raise _wrong(option, path, "holds no certificate in PEM") from None
    except OSError as error:
        raise _wrong(option, path, error.strerror or "cannot be read") from None
    return context


def _trust(context: ssl.SSLContext, path: Path) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    # The certificate itself is enough; nobody has to vouch for it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(os.fspath(path))


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def _wrong(option: str, path: Path, what: str) -> StartupError:
    return StartupError(f"{option} {path}: {what}")
