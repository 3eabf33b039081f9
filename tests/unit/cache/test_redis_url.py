"""URLs: what a client would ignore is refused, and no part of a URL is quoted."""

import pytest
from redis.asyncio.connection import SSLConnection

from presift.cache.redis_url import read_redis_url
from presift.core.errors import InvalidRequest


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://cache", {"host": "cache"}),
        ("redis://cache:6380/", {"host": "cache", "port": 6380}),
        ("rediss://app:p%23%2F%3F%40w@cache/15", {"username": "app", "password": "p#/?@w", "db": 15}),
        ("redis://:secret@[::1]:6379/0?db=3", {"host": "::1", "password": "secret", "db": 3}),
        ("REDIS://cache", {"host": "cache"}),
        ("unix:///run/valkey.sock", {"path": "/run/valkey.sock"}),
        ("unix://:secret@/run/valkey.sock?db=2", {"password": "secret", "path": "/run/valkey.sock", "db": 2}),
    ],
)
def test_a_url_names_a_server(url, expected):
    address = read_redis_url(url)
    assert address.options.items() >= expected.items() and not address.sentinels


def test_sentinels_name_the_server():
    address = read_redis_url("redis+sentinel://app:p%40w@one,two:26380,[::1]/main/3?sentinel_password=s%2Fp&db=4")
    assert address.sentinels == (("one", 26379), ("two", 26380), ("::1", 26379)) and address.service == "main"
    assert address.options == {"username": "app", "password": "p@w", "db": 4}
    assert address.sentinel_options == {"ssl": False, "password": "s/p"}
    assert "p@w" not in repr(address) and "s/p" not in repr(address)


def test_tls_is_for_sentinels_and_server():
    address = read_redis_url("rediss+sentinel://one/main/3?ssl_ca_certs=/ca.pem&sentinel_username=watcher")
    assert address.options == {"db": 3, "ssl_ca_certs": "/ca.pem", "connection_class": SSLConnection}
    assert address.sentinel_options == {"ssl": True, "ssl_ca_certs": "/ca.pem", "username": "watcher"}


def test_some_nodes_name_a_cluster():
    address = read_redis_url("redis+cluster://app:p%40w@one,two:7001,[::1]/0?db=0")
    assert address.nodes == (("one", 6379), ("two", 7001), ("::1", 6379)) and not address.sentinels
    assert address.options == {"username": "app", "password": "p@w"} and "p@w" not in repr(address)
    address = read_redis_url("rediss+cluster://one?ssl_ca_certs=/ca.pem")
    assert address.options == {"ssl": True, "ssl_ca_certs": "/ca.pem"} and address.nodes == (("one", 6379),)


@pytest.mark.parametrize(
    ("url", "value", "fix"),
    [
        ("redis://:sec#ret@cache", "a fragment", "%23"),
        ("redis://cache/0#sec", "a fragment", "%23"),
        ("unix:///run/valkey.sock#sec", "a fragment", "%23"),
        ("redis://", "without a host", "HOST"),
        ("redis:///0", "without a host", "HOST"),
        ("redis://:secret@/0", "without a host", "HOST"),
        ("rediss://:secret@:6379/0", "without a host", "HOST"),
        ("redis:cache", "without a host", "HOST"),
        ("redis://one:26379,two:26379/0", "a list of hosts", "redis+sentinel://"),
        ("redis+cluster://one?ssl_ca_certs=/ca.pem", "parameters of TLS", "rediss+cluster://"),
        ("redis+cluster://one?path=x", "an unknown parameter", "ssl_ca_certs"),
        ("redis://app:sec,ret@one,two", "a list of hosts", "redis+cluster://"),
        ("redis://:sec@ret@cache", "more than one @", "%40"),
        ("redis://cache/secret", "no database number", "[/NUMBER]"),
        ("redis://cache/-1", "no database number", "[/NUMBER]"),
        ("redis://cache/0/1", "no database number", "[/NUMBER]"),
        ("redis://app:123/secret@cache", "no database number", "%2F"),
        ("redis://:sec/ret@cache", "without a host", "%2F"),
        ("redis://:sec?ret@cache", "without a host", "%3F"),
        ("redis://cache:secret", "unreadable", "PORT"),
        ("redis://cache:123456", "unreadable", "PORT"),
        ("redis://cache?db=secret", "unreadable", "NUMBER"),
        ("redis+sentinel://one,two", "no service", "/SERVICE"),
        ("redis+sentinel://one,two/", "no service", "/SERVICE"),
        ("redis+sentinel://one/my main", "no service", "/SERVICE"),
        ("redis+sentinel://one/main/secret", "no service", "/NUMBER"),
        ("redis+sentinel:///main", "without a host", "HOST"),
        ("redis+sentinel://one,,two/main", "without a host", "HOST"),
        ("redis+sentinel://:sec@ret@one/main", "more than one @", "%40"),
        ("redis+sentinel://one:secret/main", "unreadable", "PORT"),
        ("redis+cluster://one,two/1", "a database", "no other than 0"),
        ("redis+cluster://one?db=2", "a database", "no other than 0"),
        ("redis+cluster://one/main", "a database", "no other than 0"),
        ("redis+cluster://", "without a host", "HOST"),
        ("redis+cluster://one,,two", "without a host", "redis+cluster://"),
        ("redis+cluster://one:secret", "unreadable", "PORT"),
        ("redis+cluster://:sec@ret@one", "more than one @", "%40"),
        ("unix://run/valkey.sock", "without an absolute path", "unix:///PATH"),
        ("unix://:secret@", "without an absolute path", "unix:///PATH"),
    ],
)
def test_any_other_is_refused_with_the_fix(url, value, fix):
    with pytest.raises(InvalidRequest) as refused:
        read_redis_url(url)
    error = refused.value
    assert error.field == "cache_url" and value in error.value and fix in error.limit
    shown = f"{error!r} {error} {error.details} {error.__cause__}"
    assert "sec" not in shown and "ret@" not in shown and "123" not in shown
