"""Which verbs there are, in which group the help shows them, and which module carries each out.

A module is imported only when its verb is called; it holds ``COMMANDS``, by the verb's full words.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mamushka.interfaces.cli.options import Command

# verb: (module, summary), grouped as --help shows them.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "run": ("run", "Create a workload from an image and run it"),
        "exec": ("exec", "Run a further command in a running workload"),
        "ps": ("listing", "List workloads"),
        "logs": ("logs", "Show a workload's output"),
        "stop": ("lifecycle", "Stop workloads"),
        "rm": ("lifecycle", "Remove workloads"),
    },
    "Workloads": {
        "attach": ("exec", "Connect to a running workload's streams"),
        "cp": ("copy", "Copy files between a workload and this machine"),
        "create": ("run", "Create a workload without running it"),
        "diff": ("listing", "Show what a workload changed in its root"),
        "events": ("system", "Show what happens, as it happens"),
        "fork": ("checkpoints", "Make further workloads that go on from where one is now, or from a snapshot of it"),
        "inspect": ("inspect", "Show everything about workloads, images, volumes or networks"),
        "kill": ("lifecycle", "Send a signal to workloads"),
        "pause": ("lifecycle", "Freeze every process of workloads"),
        "port": ("listing", "Show a workload's published ports"),
        "rename": ("lifecycle", "Rename a workload"),
        "restart": ("lifecycle", "Stop and start workloads"),
        "snapshot": ("checkpoints", "Write a running workload down for others to go on from; it runs on"),
        "start": ("exec", "Start workloads that are created or have ended"),
        "stats": ("stats", "Show how much workloads use"),
        "top": ("listing", "List a workload's processes"),
        "unpause": ("lifecycle", "Let paused workloads go on"),
        "update": ("lifecycle", "Change workloads' limits"),
        "wait": ("lifecycle", "Wait until workloads end and print their exit codes"),
    },
    "Images": {
        "history": ("images", "Show how an image was made"),
        "images": ("images", "List images"),
        "load": ("archives", "Load images from an archive"),
        "login": ("login", "Log in to a registry"),
        "logout": ("login", "Log out of a registry"),
        "pull": ("transfer", "Fetch an image from a registry"),
        "push": ("transfer", "Upload an image to a registry"),
        "rmi": ("images", "Remove images"),
        "save": ("archives", "Write images to an archive"),
        "tag": ("images", "Give an image one more name"),
    },
    "This machine": {
        "audit": ("audit", "Try what a workload could reach, and score it"),
        "completion": ("completion", "Print a shell's completion script"),
        "doctor": ("doctor", "Try what this machine can do, and say how to mend what it cannot"),
        "info": ("system", "Show this machine's engine"),
        "unshare": ("unshare", "Run a program in the user namespace of your workloads"),
        "version": ("system", "Show the version"),
    },
    "container": {
        "container inspect": ("inspect", "Show everything about workloads"),
        "container checkpoint": ("checkpoints", "Write workloads down, perhaps to a file; they end"),
        "container prune": ("lifecycle", "Remove workloads that have ended"),
        "container restore": ("checkpoints", "Let workloads go on where they were written down, perhaps from a file"),
    },
    "machine": {
        "machine gdb": ("machine", "Let a debugger have a running workload's machine"),
        "machine run": ("machine", "Boot a kernel or a bare-metal program, without an image"),
        "machine stats": ("machine", "Show why a workload's machine left its processor, and what it costs"),
    },
    "checkpoint": {
        "checkpoint create": ("checkpoints", "Write a running workload down under a name"),
        "checkpoint ls": ("checkpoints", "List a workload's checkpoints"),
        "checkpoint rm": ("checkpoints", "Remove a checkpoint"),
    },
    "image": {
        "image inspect": ("inspect", "Show everything about images"),
        "image prune": ("images", "Remove images that nothing uses"),
    },
    "volume": {
        "volume create": ("volumes", "Create a volume"),
        "volume inspect": ("inspect", "Show everything about volumes"),
        "volume ls": ("volumes", "List volumes"),
        "volume prune": ("volumes", "Remove volumes that nothing uses"),
        "volume rm": ("volumes", "Remove volumes"),
    },
    "network": {
        "network connect": ("networks", "Put a workload into a network"),
        "network create": ("networks", "Create a network"),
        "network disconnect": ("networks", "Take a workload out of a network"),
        "network inspect": ("inspect", "Show everything about networks"),
        "network ls": ("networks", "List networks"),
        "network prune": ("networks", "Remove networks that nobody is in"),
        "network rm": ("networks", "Remove networks"),
    },
    "system": {
        "system df": ("system", "Show how much disk is used, and how much could be freed"),
        "system prune": ("system", "Remove what nothing uses"),
    },
}
FAMILIES = {
    "container": "Workloads, by Docker's longer names",
    "checkpoint": "What a workload was at one moment, to start from",
    "machine": "Machines without an image, and what is below those of workloads",
    "image": "Images, by Docker's longer names",
    "volume": "Storage that outlives a workload",
    "network": "Who can reach whom",
    "system": "The disk and the whole",
}
_SAME = (
    *("attach", "cp", "create", "diff", "exec", "kill", "logs", "pause", "port", "ps", "rename", "restart"),
    *("rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait"),
)
# Docker's longer names, and its second names.
ALIASES = {
    **{f"container {verb}": verb for verb in _SAME},
    **{f"container {name}": "ps" for name in ("ls", "list")},
    **{f"image {verb}": verb for verb in ("history", "load", "pull", "push", "save", "tag")},
    **{f"image {name}": "images" for name in ("ls", "list")},
    **{f"image {name}": "rmi" for name in ("rm", "remove")},
    **{f"{family} list": f"{family} ls" for family in ("volume", "network", "checkpoint")},
    **{f"{family} remove": f"{family} rm" for family in ("volume", "network", "checkpoint")},
    "container remove": "rm",
    "system events": "events",
    "system info": "info",
}


def verbs() -> dict[str, tuple[str, str]]:
    """Every verb by its full words: (module, summary)."""
    return {verb: entry for group in GROUPS.values() for verb, entry in group.items()}


def find(verb: str) -> tuple[str, str] | None:
    """(module, summary) of one verb."""
    for group in GROUPS.values():
        if verb in group:
            return group[verb]
    return None


def load(verb: str, module: str) -> Command:
    """The verb's command, from its module."""
    # __import__ and not importlib, which is 1 ms away from the start of a container.
    found = __import__(f"mamushka.interfaces.cli.{module}", fromlist=["COMMANDS"])
    command: Command = found.COMMANDS[verb]
    return command
