"""Our messages against nft(8): the table that we make is the one a person would write."""

from __future__ import annotations

import json
import os

import pytest

from mamushka.linux.nftables import Element, Nftables, add_elements, delete_elements
from mamushka.network import firewall, portmap
from mamushka.network.namespace import Entered
from mamushka.network.network import Network, PortMapping, Scope
from tests import peers
from tests.integration.network.conftest import Place

pytestmark = [pytest.mark.root, pytest.mark.network]
SCOPE = Scope("mamushka-test", "mk-default", 4242)


@pytest.fixture
def place():
    peers.need_root()
    place = Place()
    yield place
    place.close()


@pytest.fixture
def filter(place):
    with Entered(place.fd):
        filter = Nftables()
    with filter:
        firewall.ensure(filter, SCOPE)
        yield filter


def _ruleset(place: Place) -> object:
    """The ruleset without handles; chains and sets in order of their names, rules in theirs."""

    def bare(item: object) -> object:
        if isinstance(item, dict):
            return {key: bare(entry) for key, entry in item.items() if key not in ("handle", "metainfo")}
        return [bare(entry) for entry in item] if isinstance(item, list) else item

    items = bare(json.loads(place.run("nft", "-j", "list", "ruleset"))["nftables"])
    assert isinstance(items, list)
    return sorted((item for item in items if item), key=lambda item: json.dumps(item) if "rule" not in item else "{r")


def test_the_table_is_the_one_written_by_hand(place, filter):
    other = Place()
    try:
        other.run("nft", "-f", os.path.join(os.path.dirname(__file__), "table.nft"))
        assert _ruleset(place) == _ruleset(other)
    finally:
        other.close()


def test_elements_read_as_a_person_would_write_them(place, filter):
    network = Network("1", "mk-default", "172.30.0.0/16", "172.30.0.1")
    filter.commit(firewall.admit(SCOPE, network))
    filter.commit(firewall.admit(SCOPE, network))
    mappings = [
        PortMapping("172.30.0.2", 80, 8080),
        PortMapping("172.30.0.2", 53, 5353, "udp", "127.0.0.1"),
        PortMapping("fd00::2", 80, 8080),
    ]
    portmap.publish(filter, SCOPE, mappings)
    shown = place.run("nft", "list", "table", "inet", SCOPE.table)
    for line in (
        'elements = { "mk-default" }',
        'elements = { "mk-default" . "mk-default" }',
        "elements = { tcp . 8080 : 172.30.0.2 . 80 }",
        "elements = { 127.0.0.1 . udp . 5353 : 172.30.0.2 . 53 }",
        "elements = { tcp . 8080 : fd00::2 . 80 }",
        "elements = { 172.30.0.2 . 172.30.0.2 }",
    ):
        assert line in shown
    portmap.unpublish(filter, SCOPE, mappings)
    firewall.dismiss(filter, SCOPE, network.bridge)
    assert "elements" not in place.run("nft", "list", "table", "inet", SCOPE.table)


def test_a_transaction_is_all_or_nothing(filter):
    good = add_elements(SCOPE.table, "bridges", [Element(firewall.interface_key("good"))])
    bad = delete_elements(SCOPE.table, "bridges", [Element(firewall.interface_key("bad"))])
    with pytest.raises(FileNotFoundError, match="delete from set mamushka-test bridges"):
        filter.commit([good, bad])
    assert filter.elements(SCOPE.table, "bridges") == []
    filter.commit([good])
    assert len(filter.elements(SCOPE.table, "bridges")) == 1


def test_a_table_of_another_layout_is_replaced(place, filter):
    firewall.remove(filter, SCOPE)
    place.run("nft", 'add table inet mamushka-test { comment "mamushka layout 0"; }')
    place.run("nft", "add chain inet mamushka-test old")
    assert firewall.ensure(filter, SCOPE)
    assert "chain old" not in place.run("nft", "list", "ruleset")
    assert not firewall.ensure(filter, SCOPE)


def test_chains_that_drop_what_is_forwarded_are_named(place, filter):
    place.run("nft", "add table ip filter")
    place.run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    assert filter.forward_drops() == ["ip filter FORWARD"]
