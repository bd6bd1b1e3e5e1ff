"""Options that all our services have; each service has its own defaults."""

from servicekit.options import about
from servicekit.values import PORTS, Hosts, OneOf, Paths, Texts, seconds

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_SECONDS = 86_400
"""The maximum of any configured wait: a day."""

HOST = about(
    Hosts(),
    "address that all ports listen on; :: for all addresses of the machine, 0.0.0.0 for its IPv4 "
    "addresses only; without --tls-cert, the loopback only",
)
INSECURE_HOST = about(
    Hosts(),
    "the same, instead of --host, to serve in plain text there, beyond the loopback, too",
    unset="none",
)
PORT = about(PORTS, "gRPC port; 0 picks a free one")
OPERATIONS_PORT = about(PORTS, "HTTP port of /metrics, /livez and /readyz; 0 picks a free one")
TLS_CERT = about(
    Paths(),
    "file with the certificate of the client ports in PEM, and those between it and its CA; they "
    "then speak TLS only; it may change while the service runs",
    unset="none: no encryption",
)
TLS_KEY = about(
    Paths(), "file with the private key of --tls-cert, without a passphrase", unset="none"
)
TLS_CLIENT_CA = about(
    Paths(),
    "file with certificates of CAs; clients must then have a certificate of one of them",
    unset="none: clients need none",
)
TLS_NAMES = Texts(r"[A-Za-z0-9._:-]{1,253}", "a name or an IP address")
"""Names that the certificate of another end must have."""
OPERATIONS_TLS_CERT = about(
    Paths(),
    "file with the certificate of the operations port in PEM, and those between it and its CA; it "
    "then speaks TLS only; it may change while the service runs",
    unset="none: plain text",
)
OPERATIONS_TLS_KEY = about(
    Paths(),
    "file with the private key of --operations-tls-cert, without a passphrase",
    unset="none",
)
DRAIN_GRACE_SECONDS = about(
    seconds(0, MAX_SECONDS), "seconds that running requests get to finish after SIGTERM"
)
LOG_LEVEL = about(OneOf(LOG_LEVELS), f"lowest level that is logged: {', '.join(LOG_LEVELS)}")
