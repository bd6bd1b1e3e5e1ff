"""Files of certificates: what is refused at start, and what happens when they change."""

import base64
import logging
import os
import resource
import shutil
import ssl
import subprocess
import time

import pytest

from pagestream.certs.authority import Authority
from servicekit.certificate_metrics import CertificateCollector
from servicekit.errors import StartupError
from servicekit.tls import TlsFiles, TlsSource, client_tls, operations_tls, server_tls
from tests.fakes.certificates import DAYS, LOCAL, make_certificates, replace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = make_certificates(tmp_path_factory.mktemp("certificates"))
    os.mkfifo(made / "pipe")
    return made


def paths(folder, *names):
    return [None if name is None else folder / name for name in names]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("server.pem", None, None), "--tls-cert needs --tls-key, too"),
        ((None, "server.key", None), "--tls-key needs --tls-cert, too"),
        ((None, None, "ca.pem"), "--tls-client-ca needs --tls-cert and --tls-key, too"),
        (("pipe", "server.key", None), "--tls-cert {}/pipe: it is a pipe or a device, must be a"),
        (("none.pem", "server.key", None), "--tls-cert {}/none.pem: No such file or directory"),
        (("server.pem", "none.key", None), "--tls-key {}/none.key: No such file or directory"),
        (("server.pem", "server.key", "other"), "--tls-client-ca {}/other: Is a directory"),
        (("server.key", "server.key", None), "--tls-cert {}/server.key: holds no certificate in"),
        (
            ("server.pem", "client.key", None),
            "--tls-key {0}/client.key: does not belong to --tls-cert {0}/server.pem",
        ),
        (("server.pem", "ca.pem", None), "--tls-key {}/ca.pem: holds no private key"),
        (("server.pem", "server.key", "server.key"), "--tls-client-ca {}/server.key: holds no"),
        (("expired.pem", "expired.key", None), "{}/expired.pem: is refused: certificate has expir"),
        (("client.pem", "client.key", None), "{}/client.pem: is refused: unsuitable certificate"),
    ],
)
def test_wrong_files_of_a_server_are_refused_by_name(made, files, said):
    with pytest.raises(StartupError) as caught:
        server_tls(*paths(made, *files))
    assert said.format(made) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("client.pem", "client.key", None), "--engine-tls-cert needs --engine-tls-ca, too"),
        (("client.pem", None, "ca.pem"), "--engine-tls-cert needs --engine-tls-key, too"),
        (("gone.pem", "gone.key", "ca.pem"), "{}/gone.pem: is refused: certificate has expired"),
        (("server.pem", "server.key", "ca.pem"), "--engine-tls-cert {}/server.pem: is refused"),
    ],
)
def test_wrong_files_of_a_client_are_refused_by_name(made, files, said):
    with pytest.raises(StartupError) as caught:
        client_tls(*paths(made, *files))
    assert said.format(made) in caught.value.message


def test_expired_ca_is_refused(made, tmp_path):
    again = ["openssl", "x509", "-in", made / "ca.pem", "-signkey", made / "ca.key"]
    again += ["-days", "-1", "-out", tmp_path / "old.pem"]
    subprocess.run(again, check=True, capture_output=True)
    with pytest.raises(StartupError, match=r"--engine-tls-ca .*/old\.pem: .* have expired"):
        client_tls(None, None, tmp_path / "old.pem")


def test_key_with_a_passphrase_is_refused_without_asking(made, tmp_path):
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", made / "server.key", "-aes128", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", locked], check=True, capture_output=True)
    with pytest.raises(StartupError, match=r"locked\.key: holds no private key without a"):
        server_tls(made / "server.pem", locked, None)


def test_without_files_there_is_no_tls():
    assert server_tls(None, None, None) is None
    assert client_tls(None, None, None) is None


def test_changed_files_are_read_once_both_fit(made, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(made / "server.pem", cert)
    shutil.copy(made / "server.key", key)
    source = server_tls(cert, key, None)
    first = source.current()
    assert source.current() is first
    replace(cert, made / "other" / "server.pem")
    # Asked twice, it is told once.
    assert source.current() is source.current() is first
    [line] = caplog.messages
    assert f"--tls-key {key}: does not belong to" in line
    replace(key, made / "other" / "server.key")
    second = source.current()
    assert second.cert == (made / "other" / "server.pem").read_bytes()
    assert second.context is not first.context
    assert caplog.messages[1:] == [f"certificates reloaded cert={cert} ca=None"]


def test_good_files_that_could_not_be_read_are_read_again(made, tmp_path, caplog):
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(made / "server.pem", cert)
    shutil.copy(made / "server.key", key)
    now = [0.0]
    source = TlsSource(TlsFiles(cert=cert, key=key), clock=lambda: now[0])
    first = source.current()
    replace(key, made / "other" / "server.key")
    replace(cert, made / "other" / "server.pem")
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, old[1]))
    try:
        assert source.current() is first
        now[0] = 60.0
        assert source.current() is first
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert source.current() is first
    now[0] = 120.0
    assert source.current().cert == (made / "other" / "server.pem").read_bytes()
    [line] = caplog.messages
    assert line.endswith(f"--tls-cert {cert}: Too many open files")


def test_files_that_vanish_or_expire_leave_the_last_good_ones(made, tmp_path, caplog):
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(made / "server.pem", cert)
    shutil.copy(made / "server.key", key)
    source = server_tls(cert, key, made / "ca.pem")
    first = source.current()
    cert.unlink()
    assert source.current() is first
    replace(key, made / "expired.key")
    replace(cert, made / "expired.pem")
    assert source.current() is first
    assert ["No such file" in caplog.text, "certificate has expired" in caplog.text] == [True] * 2
    assert first.context.verify_mode is ssl.CERT_REQUIRED


def test_certificate_that_python_cannot_decode_is_used_without_its_expiry(made, tmp_path):
    lines = (made / "server.pem").read_text().splitlines()
    der = base64.b64decode("".join(lines[1:-1]))
    # In the last of its names; only the CA's signature suffers.
    before, _, behind = der.rpartition(b"localhost")
    spoilt = base64.encodebytes(before + b"loc\xe1lhost" + behind).decode()
    (tmp_path / "odd.pem").write_text(f"{lines[0]}\n{spoilt}{lines[-1]}\n")
    shutil.copy(made / "server.key", tmp_path / "odd.key")

    source = server_tls(*paths(tmp_path, "odd.pem", "odd.key"), None)

    assert source.current().expirations == {}


def shown(*sources):
    """What a scrape says of certificates: by option, the days from now on until they expire."""
    collector = CertificateCollector("some")
    collector.sources = sources
    (family,) = collector.collect()
    assert family.name == "some_tls_certificate_expiration_timestamp_seconds"
    return {
        one.labels["option"]: round((one.value - time.time()) / 86400) for one in family.samples
    }


def test_expiry_of_every_certificate_is_shown(made):
    server = server_tls(*paths(made, "server.pem", "server.key", "ca.pem"))
    client = client_tls(*paths(made, "client.pem", "client.key", "ca.pem"))
    operations = operations_tls(*paths(made, "server.pem", "server.key"))
    options = ("tls_cert", "tls_client_ca", "engine_tls_cert", "engine_tls_ca")
    assert shown(server, client, operations) == dict.fromkeys(
        (*options, "operations_tls_cert"), DAYS
    )
    assert shown() == {}


def test_first_of_a_chain_and_last_of_several_cas_count(made, tmp_path):
    # A CA that outlives the others by far, and a server below it.
    long = Authority.create(tmp_path, 100)
    long.issue("server", names=LOCAL, days=50, is_server=True)
    both = (made / "ca.pem").read_bytes() + (tmp_path / "ca.pem").read_bytes()
    (tmp_path / "both.pem").write_bytes(both)
    chain = (tmp_path / "server.pem").read_bytes() + (made / "ca.pem").read_bytes()
    (tmp_path / "chain.pem").write_bytes(chain)
    alone = server_tls(*paths(tmp_path, "server.pem", "server.key", "both.pem"))
    assert shown(alone) == {"tls_cert": 50, "tls_client_ca": 100}
    chained = server_tls(*paths(tmp_path, "chain.pem", "server.key", None))
    assert shown(chained) == {"tls_cert": DAYS}


def test_expiry_follows_the_files_in_use(made, tmp_path, caplog):
    for name in ("server.pem", "server.key"):
        shutil.copy(made / name, tmp_path / name)
    source = operations_tls(*paths(tmp_path, "server.pem", "server.key"))
    newer = Authority.create(tmp_path, 100)
    replace(tmp_path / "server.pem", made / "expired.pem")
    assert shown(source) == {"operations_tls_cert": DAYS}
    assert "certificates not reloaded, those before stay in use" in caplog.text
    assert f"--operations-tls-key {tmp_path}/server.key: does not belong to" in caplog.text
    newer.issue("newer", names=LOCAL, days=50, is_server=True)
    for end in ("pem", "key"):
        replace(tmp_path / f"server.{end}", tmp_path / f"newer.{end}")
    assert shown(source) == {"operations_tls_cert": 50}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("server.pem", None), "--operations-tls-cert needs --operations-tls-key, too"),
        ((None, "server.key"), "--operations-tls-key needs --operations-tls-cert, too"),
        (("none.pem", "server.key"), "--operations-tls-cert {}/none.pem: No such file"),
        (("expired.pem", "expired.key"), "{}/expired.pem: is refused: certificate has expired"),
    ],
)
def test_wrong_files_of_an_operations_port_are_refused_by_name(made, files, said):
    with pytest.raises(StartupError) as caught:
        operations_tls(*paths(made, *files))
    assert said.format(made) in caught.value.message
