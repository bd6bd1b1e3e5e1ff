"""How a command connects to a router: in plain text or through TLS, with an API key or without."""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from pagestream.environment import API_KEY
from pagestream.router_client import channel_options
from servicekit.common_options import TLS_NAMES
from servicekit.errors import StartupError
from servicekit.options import Options, about
from servicekit.tls import Tls, TlsFiles, TlsSource, TlsUse
from servicekit.values import Paths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MAX_KEY_BYTES = 4096
_KEY = re.compile(r"[\x21-\x7e]+")
_ENDS = ("Socket closed", "Server disconnected", "Connection reset", "ReadError")
"""What gRPC and httpx say if the other end leaves."""
_LATER = "Stream removed"
"""What gRPC says besides if it leaves in the middle of a call."""
_UNVERIFIED = "CERTIFICATE_VERIFY_FAILED"
_STRANGERS = ("issuer", "self signed", "self-signed")
"""What OpenSSL says of certificates that no CA has issued that is trusted."""
REFUSED = {
    "api_key": "all users of a machine can see it on a command line; set the variable "
    f"{API_KEY}, or write it to a file for --api-key-file"
}
"""Options that a person may expect, and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions(Options):
    """How the router is reached."""

    api_key_file: Path | None = field(
        default=None,
        metadata=about(
            Paths(), "file with the API key that is shown to the router", unset=f"${API_KEY}"
        ),
    )
    tls_ca: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with certificates of CAs in PEM; the router must then speak TLS and have a "
            "certificate of one of them",
            unset="plain text, or with grpcs:// and https:// the CAs that everybody trusts",
        ),
    )
    tls_cert: Path | None = field(
        default=None,
        metadata=about(
            Paths(),
            "file with the certificate that is shown to the router, and those between it and its "
            "CA",
            unset="none",
        ),
    )
    tls_key: Path | None = field(
        default=None,
        metadata=about(
            Paths(), "file with the private key of --tls-cert, without a passphrase", unset="none"
        ),
    )
    tls_name: str = field(
        default="",
        metadata=about(
            TLS_NAMES,
            "name that the router's certificate must have",
            unset="the host of the URL",
        ),
    )


class Connection:
    """What all connections of a command have in common.

    Attributes:
        is_tls: Whether they are encrypted.
        has_key: Whether they show an API key.
        metadata: Goes with each call over gRPC.
        headers: The same for HTTP.
        extensions: Of each request that httpx sends.
    """

    def __init__(self, options: ConnectionOptions, api_key: str, *, is_secure: bool) -> None:
        """Reads the files.

        Args:
            options: The options.
            api_key: The key, if no file has one; "" is none.
            is_secure: Whether the URL asks for TLS.

        Raises:
            StartupError: A file is missing or wrong; the message names it.
        """
        self._options = options
        self._tls = _read_tls(options)
        self.is_tls = is_secure or self._tls is not None or bool(options.tls_name)
        key = _read_key(options.api_key_file) if options.api_key_file else api_key.strip()
        if key and not _KEY.fullmatch(key):
            raise StartupError(f"{API_KEY} holds no API key: it has spaces, or is not ASCII")
        self.has_key = bool(key)
        self.metadata: Sequence[tuple[str, str]] = (
            (("authorization", f"Bearer {key}"),) if key else ()
        )
        self.headers: Mapping[str, str] = dict(self.metadata)
        self.extensions: Mapping[str, str] = (
            {"sni_hostname": options.tls_name} if options.tls_name else {}
        )

    def channel(self, address: str) -> grpc.Channel:
        """Returns a new channel to a router."""
        if not self.is_tls:
            return grpc.insecure_channel(address, options=channel_options())
        return grpc.secure_channel(address, self._credentials(), options=self._channel_options())

    def aio_channel(self, address: str) -> grpc.aio.Channel:
        """Returns the same for asyncio."""
        if not self.is_tls:
            return grpc.aio.insecure_channel(address, options=channel_options())
        return grpc.aio.secure_channel(
            address, self._credentials(), options=self._channel_options()
        )

    def http_context(self) -> ssl.SSLContext | None:
        """Returns how HTTP is encrypted, or None."""
        if not self.is_tls:
            return None
        context = client_context(self._options.tls_ca)
        if self._options.tls_cert is not None:
            context.load_cert_chain(self._options.tls_cert, self._options.tls_key)
        return context

    def advice(self, reason: str) -> str:
        """Returns what may help against a failure, as the end of an error.

        Args:
            reason: The failure; a router's own begins with its name, such as "UNAUTHENTICATED".
        """
        if reason.startswith("UNAUTHENTICATED") and not self.has_key:
            return f"; set {API_KEY}, or give --api-key-file"
        # What ends later has agreed on TLS, or on plain text, before.
        has_ended = _LATER not in reason and any(end in reason for end in _ENDS)
        if not self.is_tls:
            return "; if it speaks TLS, give --tls-ca" if has_ended else ""
        if "WRONG_VERSION_NUMBER" in reason:
            return "; it seems to speak plain text, so leave out the options of TLS"
        if "Hostname" in reason:
            return "; --tls-name says which name its certificate has"
        if _UNVERIFIED in reason and any(cause in reason for cause in _STRANGERS):
            return "; --tls-ca must have the CA of its certificate"
        if has_ended or "alert" in reason.lower():
            return "; it may refuse this --tls-cert, or its lack"
        return ""

    def _credentials(self) -> grpc.ChannelCredentials:
        if self._tls is None:
            return grpc.ssl_channel_credentials()
        return grpc.ssl_channel_credentials(self._tls.ca, self._tls.key, self._tls.cert)

    def _channel_options(self) -> list[tuple[str, int | str]]:
        name = self._options.tls_name
        named = [("grpc.ssl_target_name_override", name)] if name else []
        return [*channel_options(), *named]


def client_context(ca: Path | None) -> ssl.SSLContext:
    """Returns a client's context that trusts the CAs of a file, or those of the system."""
    return ssl.create_default_context(cafile=ca)


def _read_tls(options: ConnectionOptions) -> Tls | None:
    files = TlsFiles(
        cert=options.tls_cert, key=options.tls_key, ca=options.tls_ca, use=TlsUse.ROUTER
    )
    if files.cert is None and files.ca is None:
        return None
    return TlsSource(files).current()


def _read_key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise StartupError(f"--api-key-file {path} cannot be read: {error.strerror}") from None
    key = content.decode("latin-1").strip()
    # No part of it is quoted: it may be a key after all.
    if len(content) > _MAX_KEY_BYTES or not _KEY.fullmatch(key):
        raise StartupError(
            f"--api-key-file {path} must hold one API key and nothing else, of at most "
            f"{_MAX_KEY_BYTES} bytes, without spaces"
        )
    return key
