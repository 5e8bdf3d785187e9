"""The docker command's own help, held against our tables: what it takes, we take, or it stands here why not."""

import re
import shutil
import subprocess

import pytest

from mamushka.interfaces.cli import verbs

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not shutil.which("docker"), reason="the docker command is missing: install docker-cli"),
]

WINDOWS = {"--cpu-count", "--cpu-percent", "--io-maxbandwidth", "--io-maxiops", "--isolation"}
SWARM = {
    *("--attachable", "--availability", "--cluster", "--config-from", "--config-only", "--group", "--ingress"),
    *("--limit-bytes", "--required-bytes", "--scope", "--secret", "--sharing", "--topology-preferred"),
    *("--topology-required", "--type", "--verbose", "-v"),
}
NOT_IN_THE_KERNEL_ANY_MORE = {"--cpu-rt-period", "--cpu-rt-runtime", "--kernel-memory"}
REPLACED_BY_NAMES = {"--link", "-l", "--link-local-ip"}
TRUST_WITHOUT_SERVERS = {"--disable-content-trust"}
OF_THE_DAEMON = {"--use-api-socket", "--volume-driver", "--ipam-driver", "--ipam-opt", "--driver-opt"}
OF_OTHER_ORCHESTRATORS = {"--kubeconfig"}  # of docker 20.10's version
NOT_YET = {
    *("--blkio-weight-device", "--cgroup-parent", "--storage-opt", "--health-start-interval", "--details"),
    *("--checkpoint", "--checkpoint-dir", "--platform", "--tree", "--ip6", "--gw-priority", "--aux-address", "--ipv4"),
    "--ipv6",
}
DECLINED = {
    *WINDOWS, *SWARM, *NOT_IN_THE_KERNEL_ANY_MORE, *REPLACED_BY_NAMES, *TRUST_WITHOUT_SERVERS, *OF_THE_DAEMON,
    *OF_OTHER_ORCHESTRATORS, *NOT_YET,
}  # fmt: skip
OURS_ALONE = {
    "audit", "completion", "doctor", "fork", "machine gdb", "machine run", "machine stats", "snapshot", "unshare",
}  # fmt: skip


def theirs(verb: str) -> set[str]:
    done = subprocess.run(["docker", *verb.split(), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker has no {verb}"
    long = re.findall(r"^\s+(?:-\w, )?(--[a-z0-9-]+)", done.stdout, re.MULTILINE)
    return {*long, *re.findall(r"^\s+(-\w), --", done.stdout, re.MULTILINE)}


@pytest.mark.parametrize("verb", sorted((set(verbs.verbs()) | set(verbs.ALIASES)) - OURS_ALONE))
def test_every_option_of_dockers_verb_is_taken_or_declined(verb: str) -> None:
    name = verbs.ALIASES.get(verb, verb)
    command = verbs.load(name, verbs.verbs()[name][0])
    ours = {spelling for option in command.options for spelling in option.spellings} | {"--help"}
    assert theirs(verb) - ours <= DECLINED
