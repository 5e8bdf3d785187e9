"""Which kernel a machine boots: the one that was named, or the newest among those that are installed and fit.

What is named is an image's file, or a directory: an unpacked package (``boot/vmlinuz-VERSION`` and
``lib/modules/VERSION``) or what an artifact has (``vmlinuz`` and ``modules``). What a kernel can do is told by what is
built into it and what modules it has. A kernel without any modules beside it is taken at its owner's word.
"""

from __future__ import annotations

import os

from mamushka.errors import Invalid, NotFound, Unsupported
from mamushka.machine.boot import linux
from mamushka.machine.boot.modules import Modules
from mamushka.values import EMPTY, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# What machines use, by the modules that make it; all of a line are needed.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "virtio-mmio": ("virtio_mmio",),
    "vsock": ("vmw_vsock_virtio_transport",),
    "overlay": ("overlay",),
    "pmem": ("nd_e820", "nd_pmem"),
    "virtio-pmem": ("virtio_pmem", "nd_pmem"),
    "erofs": ("erofs",),
    "virtiofs": ("virtiofs",),
    "block": ("virtio_blk",),
    "ext4": ("ext4",),
    "net": ("virtio_net",),
    "console": ("virtio_console",),
    "rng": ("virtio_rng",),
    "balloon": ("virtio_balloon",),
}
# Without these no image runs.
ESSENTIAL = ("virtio-mmio", "vsock", "overlay")
# And without one of these pairs it has no root: shared memory, a disk, or a directory of the host's.
ROOTS = (("virtio-pmem", "erofs"), ("block", "erofs"), ("virtiofs",))

# What an image is called that lies alone beside its modules.
PLAIN = ("vmlinuz", "bzImage", "vmlinux", "kernel")

# Which package brings a kernel that fits; by ID and ID_LIKE of os-release.
PACKAGES = {
    "ubuntu": "apt-get install linux-image-virtual",
    "debian": "apt-get install linux-image-cloud-amd64",
    "fedora": "dnf install kernel-core kernel-modules-core",
    "rhel": "dnf install kernel-core kernel-modules-core",
    "suse": "zypper install kernel-default-base",
    "alpine": "apk add linux-virt",
    "arch": "pacman -S linux",
}
_SCAN_MAX = 64 << 10  # bytes of an image in which its version is looked for: the setup code of a bzImage


@value
class Kernel:
    """A kernel that can be given to ``boot.load``."""

    image: str
    version: str = ""
    modules: str = ""  # a directory; empty where there are none
    missing: tuple[str, ...] = ()  # names of FEATURES that it has not

    @property
    def fits(self) -> bool:
        """Whether it can run images at all."""
        return not self.lacks

    @property
    def lacks(self) -> tuple[str, ...]:
        """The missing features without which it cannot."""
        without = tuple(name for name in self.missing if name in ESSENTIAL)
        rootless = all(any(name in self.missing for name in root) for root in ROOTS)
        return (*without, *(("erofs, or virtiofs",) if rootless else ()))


def choose(named: str = "", configured: str = "", *, root: str = "/") -> Kernel:
    """The kernel to boot: what the user named, else what the configuration names, else the best installed one.

    NotFound where nothing is there, Unsupported where what is there does not fit, saying what it lacks.
    """
    if named or configured:
        return at(named or configured)
    found = tuple(installed(root))
    fitting = [kernel for kernel in found if kernel.fits]
    if fitting:
        return max(fitting, key=lambda kernel: newness(kernel.version))
    raise _none(found, root)


def at(path: str) -> Kernel:
    """A kernel that somebody named: an image's file or a directory. Unsupported where it lacks what images need."""
    kernel = in_directory(path) if os.path.isdir(path) else examine(path, _modules_beside(path))
    if not kernel.fits:
        raise Unsupported(
            f"the kernel {kernel.image} cannot run images: it lacks {', '.join(kernel.lacks)}",
            hint=f"choose another kernel, or one with its modules (looked for in {kernel.modules})",
        )
    return kernel


def installed(root: str = "/") -> Iterator[Kernel]:
    """All installed kernels that may be read, in no order."""
    seen = set()
    for image, modules in _everywhere(root):
        real = os.path.realpath(image)
        if real not in seen and os.access(image, os.R_OK):
            seen.add(real)
            yield examine(image, modules)


def obstacle(named: str = "", configured: str = "", *, root: str = "/") -> str:
    """Why no kernel can be booted, with what to do about it; empty where one can. For ``doctor``."""
    try:
        choose(named, configured, root=root)
    except (NotFound, Unsupported, Invalid) as error:
        return f"{error}; {error.hint}" if error.hint else str(error)
    return ""


_examined: dict[tuple[str, str, int], Kernel] = {}


def examine(image: str, modules: str) -> Kernel:
    """What an image with these modules can do; without any, everything, for all that can be seen.

    Looked at once by each process, and those that it forks: a list of some thousand modules takes milliseconds.
    """
    if not os.path.isfile(image):
        raise NotFound(f"there is no kernel {image}", hint="name an image's file, or a directory with one in it")
    key = image, modules, os.stat(image).st_mtime_ns
    if key not in _examined:
        _examined[key] = _examine(image, modules)
    return _examined[key]


def _examine(image: str, modules: str) -> Kernel:
    version = version_of(image) or os.path.basename(modules.rstrip("/"))
    if not modules:
        return Kernel(image, version)
    there = Modules(modules)
    missing = (name for name, wanted in FEATURES.items() if not all(there.has(module) for module in wanted))
    return Kernel(image, version, modules, tuple(missing))


def version_of(image: str) -> str:
    """What a bzImage calls itself, as ``uname -r`` will; else what its file's name says."""
    with open(image, "rb") as file:
        head = memoryview(file.read(_SCAN_MAX))
    if linux.recognise(head):
        place = 0x200 + int.from_bytes(head[0x20E:0x210], "little")
        words = bytes(head[place : place + 128]).split(b"\0")[0].split()
        if words:
            return words[0].decode(errors="replace")
    return os.path.basename(image).partition("-")[2]


def newness(version: str) -> tuple[tuple[int, ...], str]:
    """By which versions are ordered: their numbers, up to what is none; then all of it."""
    numbers = []
    for part in version.replace("-", ".").replace("+", ".+").split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers), version


def in_directory(path: str) -> Kernel:
    """The newest kernel in a directory that was named, whatever it can do. NotFound where there is none."""
    plain = [name for name in PLAIN if os.path.isfile(f"{path}/{name}")]
    if plain:
        image = f"{path}/{plain[0]}"
        return examine(image, _modules_beside(image))
    found = [examine(*pair) for pair in _everywhere(path)]
    if not found:
        raise NotFound(
            f"{path} has no kernel: neither vmlinuz nor boot/vmlinuz-VERSION nor lib/modules/VERSION/vmlinuz",
            hint="name an image's file, or the directory that a kernel's package was unpacked to",
        )
    return max(found, key=lambda kernel: newness(kernel.version))


def _modules_beside(image: str) -> str:
    """The modules that go with an image that was named: beside it, or those that are installed for its version."""
    if not os.path.isfile(image):
        return ""
    above, version = os.path.dirname(os.path.abspath(image)), version_of(image)
    places = [above] if os.path.exists(f"{above}/modules.builtin") else []
    for tree in (
        f"{above}/modules",
        f"{above}/modules/lib/modules",
        f"{above}/lib/modules",
        f"{os.path.dirname(above)}/lib/modules",
    ):
        places += [f"{tree}/{version}"] if version else []
        places += [tree] if os.path.exists(f"{tree}/modules.builtin") else []
    places += [f"/lib/modules/{version}", f"/usr/lib/modules/{version}"] if version else []
    return next((place for place in places if os.path.isdir(place)), "")


def _everywhere(root: str) -> Iterator[tuple[str, str]]:
    """Images and their modules, wherever distributions put them."""
    yield from _pairs(root, "boot", "lib/modules")
    yield from _within(root, "usr/lib/modules")
    yield from _within(root, "lib/modules")


def _pairs(root: str, images: str, modules: str) -> Iterator[tuple[str, str]]:
    """``/boot/vmlinuz-VERSION`` with ``/lib/modules/VERSION``, where that is there.

    Alpine and Arch call an image after its flavour (``vmlinuz-virt``): its version is in itself alone.
    """
    for name in _listed(os.path.join(root, images)):
        kind, _, version = name.partition("-")
        image = os.path.join(root, images, name)
        if kind not in ("vmlinuz", "vmlinux") or not version or not os.access(image, os.R_OK):
            continue
        directory = _modules_of(version, root, modules) or _modules_of(version_of(image), root, modules)
        if directory:
            yield image, directory


def _modules_of(version: str, root: str, modules: str) -> str:
    places = (os.path.join(root, tree, version) for tree in (modules, f"usr/{modules}"))
    return next((place for place in places if os.path.isdir(place)), "")


def _within(root: str, modules: str) -> Iterator[tuple[str, str]]:
    """``/usr/lib/modules/VERSION/vmlinuz``, where distributions with one tree for all put it."""
    for version in _listed(os.path.join(root, modules)):
        directory = os.path.join(root, modules, version)
        if os.path.isfile(f"{directory}/vmlinuz"):
            yield f"{directory}/vmlinuz", directory


def _listed(directory: str) -> Iterable[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ()


def _none(found: tuple[Kernel, ...], root: str) -> NotFound | Unsupported:
    """Why there is no kernel to choose, and which package brings one."""
    command = package(root)
    hint = f"{command}, or name one with --kernel" if command else "install a kernel, or name one with --kernel"
    if found:
        newest = max(found, key=lambda kernel: newness(kernel.version))
        return Unsupported(
            f"none of {len(found)} installed kernels can run images: {newest.version} lacks {', '.join(newest.lacks)}",
            hint=hint,
        )
    unreadable = [name for name in _listed(os.path.join(root, "boot")) if name.startswith("vmlinuz-")]
    if unreadable:
        return NotFound(
            f"no installed kernel can be read: {os.path.join(root, 'boot', unreadable[-1])} is not readable by "
            f"uid {os.geteuid()}, or has no modules",
            hint="make a copy that may be read and name it with --kernel",
        )
    return NotFound("no kernel for machines is installed", hint=hint)


def package(root: str = "/") -> str:
    """The command that installs a kernel here; empty where the distribution is not known."""
    words = _release(root)
    kinds = (words.get("ID", ""), *words.get("ID_LIKE", "").split())
    return next((PACKAGES[kind] for kind in kinds if kind in PACKAGES), "")


def _release(root: str) -> Mapping[str, str]:
    try:
        with open(os.path.join(root, "etc/os-release"), encoding="utf-8") as file:
            rows = (line.strip().partition("=") for line in file)
            return {name: text.strip("\"'") for name, _, text in rows}
    except (FileNotFoundError, PermissionError, UnicodeDecodeError):
        return EMPTY
