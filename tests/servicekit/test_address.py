import pytest

from servicekit.address import is_host, join, split

GOOD = [
    ("a:1", "a", 1),
    ("engine-0.engines.svc.cluster.local.:50051", "engine-0.engines.svc.cluster.local.", 50051),
    ("127.0.0.1:65535", "127.0.0.1", 65535),
    ("[::1]:5", "::1", 5),
    ("[::ffff:127.0.0.1]:5", "::ffff:127.0.0.1", 5),
    ("[fe80::1%eth0]:5", "fe80::1%eth0", 5),
    ("bücher.test:5", "bücher.test", 5),
]

NO_ADDRESS = [
    *("", "a", ":1", "a:b:1", "::1:5", "::1", "[::1]", "[::1]5"),
    *("[:1", "]:1", "[]:5", "[[::1]]:1", "[::1]]:1", "[a]:1", "[127.0.0.1]:1", "[::g]:1"),
    *("[fe80::1%]:1", "[fe80::1%a b]:1", "[fe80::1%25\n]:1", "a%eth0:1"),
    *("a b:1", "a\t:1", "a\n:1", "a\x00:1", "a\x1b[2J:1", "a\u2028:1", "a\ud800:1", "\u202ea:1"),
    *("http://a:1", "a/b:1", "a:1/b", "user@a:1", "unix:a:1", "a?b:1", "a#b:1", 'a"b:1'),
    "a" * 254 + ":1",
]

NO_PORT = ["a:", "a:0", "a:65536", "a:-1", "a:+1", "a: 1", "a:1 ", "a:x", "a:0080", "a:1_0", "a:٣"]
NO_PORT += ["a:" + "9" * 5000]


@pytest.mark.parametrize(("text", "host", "port"), GOOD)
def test_address_is_taken_apart_and_put_together(text, host, port):
    assert split(text) == (host, port)
    assert join(host, port) == text


@pytest.mark.parametrize("text", NO_ADDRESS)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r'^which is not "host:port"$'):
        split(text)


@pytest.mark.parametrize("text", NO_PORT)
def test_port_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match=r"^whose port is not from 1 to 65535$"):
        split(text)


@pytest.mark.parametrize("text", ["::", "0.0.0.0", "localhost", "::1", "fe80::1%eth0"])
def test_host_is_an_address_or_a_name(text):
    assert is_host(text)


@pytest.mark.parametrize("text", ["", " ", "[::]", "a:1", "a b", "a\n", ":", "::1%", "a" * 254])
def test_what_is_no_host_is_refused(text):
    assert not is_host(text)
