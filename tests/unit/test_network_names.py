"""/etc/hosts and /etc/resolv.conf inside, as Docker makes them."""

from __future__ import annotations

import pytest

from mamushka.errors import Invalid
from mamushka.network import names

HOST = "# made by the host\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch example.org\noptions edns0\n"


def test_a_resolver_on_the_hosts_loopback_is_left_out():
    assert names.resolv_conf(HOST) == "nameserver 192.0.2.1\nsearch example.org\noptions edns0\n"


def test_without_any_other_the_public_ones_serve():
    assert names.resolv_conf("nameserver 127.0.0.53\n") == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"


def test_an_ipv6_resolver_serves_where_there_is_ipv6():
    text = "nameserver fd00::53\nnameserver 192.0.2.1\n"
    assert names.resolv_conf(text) == "nameserver 192.0.2.1\n"
    assert names.resolv_conf(text, ipv6=True) == text


def test_what_the_user_says_replaces_what_the_host_has():
    text = names.resolv_conf(HOST, servers=("1.1.1.1",), search=("a.test", "b.test"), options=("timeout:1",))
    assert text == "nameserver 1.1.1.1\nsearch a.test b.test\noptions timeout:1\n"
    assert "search" not in names.resolv_conf(HOST, search=(".",))


def test_the_responder_is_the_only_server():
    assert names.resolv_conf(HOST, responder=True) == "nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n"


def test_hosts_names_the_workload_and_the_users_own():
    text = names.hosts(
        [("172.17.0.2", "box")], ("db:10.0.0.1", "gw:host-gateway", "six:[fd00::1]"), gateway="172.17.0.1"
    )
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("10.0.0.1\tdb\n172.17.0.1\tgw\nfd00::1\tsix\n172.17.0.2\tbox\n")


@pytest.mark.parametrize(
    "entry", ["db", "db:", ":10.0.0.1", "db:nowhere", "gw:host-gateway", "a:1.2.3.4\nb", "a b:1.2.3.4", "a\nb:1.2.3.4"]
)
def test_a_broken_host_entry_is_invalid(entry):
    with pytest.raises(Invalid):
        names.hosts([], [entry])


@pytest.mark.parametrize("server", ["nowhere", "1.1.1.1\noptions x"])
def test_a_broken_server_is_invalid(server):
    with pytest.raises(Invalid):
        names.resolv_conf("", servers=[server])
    with pytest.raises(Invalid):
        names.resolv_conf("", search=[f"{server}\nnameserver 6.6.6.6"])
