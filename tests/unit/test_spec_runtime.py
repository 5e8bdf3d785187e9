"""Any document is a Config or Invalid; any Config survives its own document."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamushka.errors import Invalid
from mamushka.spec import codec, runtime
from mamushka.spec.runtime import Config, Linux, Memory, Namespace, Process, Resources, User

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)


def values_of(annotation: str) -> st.SearchStrategy[object]:
    """What a field of this annotation may hold."""
    if annotation.endswith(" | None"):
        return st.none() | values_of(annotation.removesuffix(" | None"))
    if annotation.startswith("tuple["):
        return st.lists(values_of(annotation[6:-6]), max_size=2).map(tuple)
    if annotation.startswith("Mapping["):
        return st.dictionaries(TEXT, values_of(annotation[13:-1]), max_size=2)
    if annotation in codec._RANGES:
        return st.integers(*codec._RANGES[annotation])
    if annotation in ("str", "bool"):
        return TEXT if annotation == "str" else st.booleans()
    return instances(getattr(runtime, annotation))


def instances(cls: type) -> st.SearchStrategy[object]:
    """Any value of this class."""
    return st.deferred(lambda: st.builds(cls, **{k: values_of(v) for k, v in cls.__annotations__.items()}))


@settings(max_examples=60, deadline=None)
@given(instances(Config))
def test_what_is_written_is_read_again(config: Config) -> None:
    written = runtime.dump(config)
    if re.fullmatch(r"1\.[0-9]+(\.([0-9].*)?)?", config.oci_version, re.S | re.A) and config.oci_version.isascii():
        assert runtime.parse(written) == config
    else:
        with pytest.raises(Invalid, match="version"):
            runtime.parse(written)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["process", "root", "mounts", "hooks", "linux", "annotations", "hostname"])


@settings(deadline=None)
@given(
    st.binary(max_size=64) | st.dictionaries(KEYS, JSON).map(lambda d: json.dumps({"ociVersion": "1.0", **d}).encode())
)
def test_any_document_is_parsed_or_invalid(raw: bytes) -> None:
    try:
        assert isinstance(runtime.parse(raw), Config)
    except Invalid:
        pass


def test_names_are_the_specifications() -> None:
    raw = b"""{"ociVersion": "1.2.0", "process": {"cwd": "/", "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
        "oomScoreAdj": -5, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1}},
        "linux": {"namespaces": [{"type": "pid"}], "resources": {"memory": {"disableOOMKiller": true, "kernelTCP": 1},
        "blockIO": {"throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "network": {"classID": 9}},
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}], "intelRdt": {"closID": "x"}},
        "somethingNew": {"a": [null]}, "hostname": null}"""
    config = runtime.parse(raw)
    assert config.process == Process(
        user=User(1, 2, additional_gids=(3,)), oom_score_adj=-5, io_priority=runtime.IOPriority("IOPRIO_CLASS_BE", 1)
    )
    assert config.linux.resources is not None
    assert config.linux.resources.memory == Memory(disable_oom_killer=True, kernel_tcp=1)
    written = json.loads(runtime.dump(config))
    given_ = json.loads(raw)
    del given_["somethingNew"], given_["hostname"]
    assert written == given_


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{}", "misses the key 'ociVersion'"),
        (b"[]", "must be an object, not a list"),
        (b'{"ociVersion": "2.0.0"}', "version '2.0.0'"),
        (b'{"ociVersion": "1.0", "process": {"user": {"uid": -1}}}', "process.user.uid is -1, outside 0 to"),
        (b'{"ociVersion": "1.0", "mounts": [{"destination": "/a"}, {}]}', "mounts.1 misses the key 'destination'"),
        (b'{"ociVersion": "1.0", "linux": {"sysctl": {"a": 3}}}', "linux.sysctl.a must be a string, not the number 3"),
        (b'{"ociVersion": "1.0", "hostname": "a\\u0000"}', "hostname contains a NUL"),
        (b'{"ociVersion": "1.0", "hostname": "\\ud800"}', "half of a surrogate pair"),
        (b'{"ociVersion": "1.0", "process": {"terminal": 1}}', "process.terminal must be true or false"),
    ],
)
def test_what_is_wrong_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        runtime.parse(raw)
    assert message in str(caught.value)


def test_the_other_documents() -> None:
    assert runtime.parse_process(b'{"cwd": "/", "args": ["true"]}') == Process(args=("true",))
    assert runtime.parse_resources(b'{"memory": {"limit": 1}}') == Resources(memory=Memory(limit=1))
    assert runtime.dump(Config("1.0", linux=Linux(namespaces=(Namespace("pid"),)))) == (
        b'{"ociVersion":"1.0","linux":{"namespaces":[{"type":"pid"}]}}'
    )
