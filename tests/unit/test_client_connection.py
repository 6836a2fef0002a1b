"""Where Redis is found, and that a password shows nowhere (contract, sections 2 and 6)."""

import pytest

from client import connection
from client.connection import Address, Tls, address, configure, working_directory

SECRET = "p@ss:w/ö?#%rd"
ENCODED = "p%40ss%3Aw%2F%C3%B6%3F%23%25rd"


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch):
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("_url", "_resolver", "_found"):
        monkeypatch.setattr(connection, name, None)


def parsed(url):
    configure(url)
    return address()


def test_without_anything_it_is_localhost():
    assert address() == Address("localhost", 6379)


def test_host_and_port_of_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_HOST", "wepp1")
    monkeypatch.setenv("REDIS_PORT", "6380")
    assert address() == Address("wepp1", 6380)


def test_url_of_the_environment_goes_before_host_and_port(monkeypatch):
    monkeypatch.setenv("REDIS_HOST", "wepp1")
    monkeypatch.setenv("REDIS_URL", "redis://wepp2:7000/9")
    assert address() == Address("wepp2", 7000)


def test_configure_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://wepp2")
    assert parsed("redis://wepp3") == Address("wepp3", 6379)


def test_an_empty_variable_counts_as_unset(monkeypatch):
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE"):
        monkeypatch.setenv(name, "")
    assert address() == Address("localhost", 6379)


def test_configure_reads_the_environment_again(monkeypatch):
    assert address().host == "localhost"
    monkeypatch.setenv("REDIS_HOST", "wepp1")
    assert address().host == "localhost"
    configure()
    assert address().host == "wepp1"


def test_configure_keeps_what_is_not_given():
    configure("redis://wepp3")
    configure(resolver=lambda run_id: f"/runs/{run_id}")
    configure()
    assert (address().host, working_directory("r1")) == ("wepp3", "/runs/r1")


def test_a_refused_url_changes_nothing():
    configure("redis://wepp3")
    with pytest.raises(ValueError, match="must start with"):
        configure("http://wepp4")
    assert address().host == "wepp3"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", Address()),
        ("redis://wepp1", Address("wepp1")),
        ("redis://wepp1:6380/4", Address("wepp1", 6380)),
        ("redis://wepp1?db=4&health_check_interval=30&socket_timeout=99", Address("wepp1")),
        ("redis://[::1]:6380", Address("::1", 6380)),
        (f"redis://:{ENCODED}@wepp1", Address("wepp1", password=SECRET)),
        (f"redis://us%40er:{ENCODED}@wepp1", Address("wepp1", username="us@er", password=SECRET)),
        ("redis://wepp1?username=u&password=p", Address("wepp1", username="u", password="p")),
        ("rediss://wepp1", Address("wepp1", tls=Tls())),
        (
            "rediss://wepp1?ssl_cert_reqs=none&ssl_ca_certs=/ca&ssl_certfile=/c&ssl_keyfile=/k",
            Address("wepp1", tls=Tls("none", False, "/ca", "/c", "/k")),
        ),
        ("rediss://wepp1?ssl_check_hostname=False", Address("wepp1", tls=Tls(ssl_check_hostname=False))),
        ("unix:///run/redis/redis.sock?db=1", Address(path="/run/redis/redis.sock")),
        ("unix://user@/tmp/a%20b.sock?password=p", Address(path="/tmp/a b.sock", username="user", password="p")),
    ],
)
def test_urls_as_redis_py_names_them(url, expected):
    assert parsed(url) == expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("wepp1:6379", "must start with"),
        ("", "must start with"),
        ("http://wepp1", "must start with redis://, rediss:// or unix://"),
        ("redis://wepp1:port", "is no URL of Redis"),
        ("redis://wepp1:70000", "is no URL of Redis"),
        ("redis://[::1", "is no URL of Redis"),
        ("redis://wepp1/prod", "no database number"),
        ("redis://wepp1?db", "is no URL of Redis"),
        ("redis://wepp1..org", "no host name"),
        ("redis:// wepp1", "no host name"),
        ("redis://wepp1,wepp2", "no host name"),
        ("redis://wepp1:0", "names port 0"),
        ("unix://", "names no socket"),
        ("rediss://wepp1?ssl_ca_cert=/ca", "ssl_ca_cert is not known here"),
        ("rediss://wepp1?ssl_cert_reqs=maybe", "required, optional or none"),
        ("rediss://wepp1?ssl_check_hostname=maybe", "true or false"),
    ],
)
def test_a_malformed_url_says_what_is_wrong_and_where(url, message):
    with pytest.raises(ValueError, match=message) as caught:
        configure(url)
    assert str(caught.value).startswith("configure(url=...)")


@pytest.mark.parametrize(
    "url",
    ["redis://:se#cret@wepp1", "redis://:12#cret@wepp1", "redis://:12?se3cret@wepp1", "redis://:12/se/cret@wepp1"],
)
def test_an_unencoded_password_is_refused_and_not_repeated(monkeypatch, url):
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(ValueError, match=r"REDIS_URL .*percent-encoded") as caught:
        address()
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "6379 ", "٣"])
def test_a_malformed_port_says_so(monkeypatch, port):
    monkeypatch.setenv("REDIS_PORT", port)
    with pytest.raises(ValueError, match=r"REDIS_PORT=.* is no port; write a number from 1 to 65535"):
        address()


def test_password_url_then_file_then_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("REDIS_PASSWORD", "of-variable")
    assert parsed("redis://wepp1").password == "of-variable"
    (tmp_path / "password").write_text(f"\n  {SECRET} \n")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    assert parsed("redis://wepp1").password == SECRET
    assert parsed("redis://:of-url@wepp1").password == "of-url"


def test_password_beside_host_and_port(monkeypatch, tmp_path):
    (tmp_path / "password").write_text("of-file")
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    assert address().password == "of-file"


def test_an_unreadable_or_empty_password_file_is_an_error(monkeypatch, tmp_path):
    name = tmp_path / "password"
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(name))
    with pytest.raises(ValueError, match=r"REDIS_PASSWORD_FILE=.*/password cannot be read \(No such file"):
        address()
    name.write_text(" \n")
    with pytest.raises(ValueError, match="is empty; write the password into it or unset"):
        address()
    name.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        address()


@pytest.mark.parametrize("url", [f"redis://user:{ENCODED}@wepp1:7000", f"unix://user:{ENCODED}@/tmp/s"])
def test_the_password_is_in_no_repr(url):
    shown = f"{parsed(url)} {parsed(url)!r} {vars(connection)['_found']}"
    assert "w/" not in shown
    assert ENCODED not in shown
    assert "user" not in shown
    assert "7000" in shown or "/tmp/s" in shown


def test_credentials_are_the_arguments_of_auth():
    assert Address().credentials() == ()
    assert Address(password="p").credentials() == ("p",)
    assert Address(username="u", password="p").credentials() == ("u", "p")
    assert Address(username="u").credentials() == ("u", "")


def test_a_run_has_no_directory_without_a_resolver():
    with pytest.raises(RuntimeError, match=r"run 'r1'.*client\.configure\(resolver="):
        working_directory("r1")
    with pytest.raises(TypeError, match="takes a function"):
        configure(resolver="/runs")
