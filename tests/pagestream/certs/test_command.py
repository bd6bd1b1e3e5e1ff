"""`pagestream certs` makes files that the services take, and replaces none."""

import subprocess

import pytest

from pagestream.certs.command import FILES, main
from servicekit.log import flush_log
from servicekit.tls import client_tls, server_tls


def errors(capfd):
    flush_log(10.0)
    return capfd.readouterr().err


def test_files_are_those_of_both_ends(tmp_path, capfd):
    folder = tmp_path / "a b" / "certs"
    assert main([str(folder), "--names", "x.test,127.0.0.1,::1", "--client-name", "r.test"]) == 0
    assert {path.name for path in folder.iterdir()} == set(FILES)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert {modes[name] for name in FILES if name.endswith(".key")} == {0o600}
    ca = folder / "ca.pem"
    assert server_tls(folder / "server.pem", folder / "server.key", ca) is not None
    assert client_tls(folder / "client.pem", folder / "client.key", ca) is not None
    for name, wanted in (("server", "DNS:x.test, IP Address:127.0.0.1"), ("client", "DNS:r.test")):
        command = ["openssl", "x509", "-in", folder / f"{name}.pem", "-noout", "-text"]
        assert wanted in subprocess.run(command, check=True, capture_output=True, text=True).stdout
        command = ["openssl", "verify", "-CAfile", ca, folder / f"{name}.pem"]
        subprocess.run(command, check=True, capture_output=True)
    said = capfd.readouterr().out
    assert "--tls-client-names r.test" in said
    assert f"--engine-tls-ca '{ca}'" in said


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_replaced(tmp_path, capfd, name):
    (tmp_path / name).write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    assert errors(capfd) == (
        f"pagestream certs: {tmp_path}/{name} exists and is not overwritten; remove it or name "
        "another folder\n"
    )


@pytest.mark.parametrize("names", ["", "a b", "x,", "x\n[evil]", "DNS:x", "$HOME", "fe80::1%eth0"])
def test_names_that_are_none_are_refused(tmp_path, capfd, names):
    assert main([str(tmp_path), "--names", names]) == 2
    assert "pagestream certs: --names " in errors(capfd)
    assert not list(tmp_path.iterdir())


def test_missing_openssl_is_told(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(tmp_path / "made")]) == 2
    assert "the program openssl is missing; install it" in errors(capfd)
    assert not list((tmp_path / "made").iterdir())
