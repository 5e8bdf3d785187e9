"""The words of the guest protocol: kinds of frames, keys of fields, and their values.

They are those of ``guest/guest.h``; a test holds the two equal. docs/reference/guest-protocol.md explains them.
"""

from __future__ import annotations

VERSION = 1
HOST_PORT = 1024  # of vsock, where the guest calls
TOKEN_SIZE = 16
HEADER_SIZE = 12

# Kinds of frames: requests, and from REPLY what the guest says.
HELLO = 1
STEPS = 2
NETWORK = 3
CREATE = 4
START = 5
EXEC = 6
SIGNAL = 7
RESIZE = 8
CLOSE = 9
ATTACH = 10
FREEZE = 11
UPDATE = 12
READ = 13
PROCESSES = 14
FILES = 15
RENEW = 16
SYNC = 17
POWER = 18
DELETE = 19
REPLY = 64
ERROR = 65
EXITED = 66
LOG = 67
STREAM = 68

# Keys of fields: a key means the same, and has the same type, wherever it stands.
K_VERSION = 1
K_FEATURES = 2
K_TOKEN = 3
K_RELEASE = 4
K_MACHINE = 5
K_PROCESS = 6
K_CONTAINER = 7
K_STREAM = 8
K_PID = 9
K_KIND = 10
K_ERRNO = 11
K_OPERATION = 12
K_PATH = 13
K_TEXT = 14
K_CODE = 15
K_SIGNAL = 16
K_OOM = 17
K_STREAMS = 18
K_ROOT = 19
K_SETTINGS = 20
K_STEP = 21
K_ARG = 22
K_ENV = 23
K_CWD = 24
K_UID = 25
K_GID = 26
K_GROUP = 27
K_UMASK = 28
K_BOUNDING = 29
K_EFFECTIVE = 30
K_PERMITTED = 31
K_INHERITABLE = 32
K_AMBIENT = 33
K_NO_NEW_PRIVILEGES = 34
K_RLIMIT = 35
K_ROWS = 36
K_COLUMNS = 37
K_OOM_SCORE = 38
K_SECCOMP = 39
K_SECCOMP_FLAGS = 40
K_NICE = 41
K_OP = 42
K_TYPE = 43
K_SOURCE = 44
K_TARGET = 45
K_FLAGS = 46
K_DATA = 47
K_SET = 48
K_CLEAR = 49
K_PROPAGATION = 50
K_RECURSIVE = 51
K_MODE = 52
K_DEVICE = 53
K_TIMEOUT = 54
K_LINK = 55
K_INDEX = 56
K_NAME = 57
K_NEW_NAME = 58
K_MAC = 59
K_NEW_MAC = 60
K_MTU = 61
K_UP = 62
K_ADDRESS = 63
K_ROUTE = 64
K_NEIGHBOUR = 65
K_IP = 66
K_PREFIX = 67
K_GATEWAY = 68
K_METRIC = 69
K_ONLINK = 70
K_ALL = 71
K_FILE = 72
K_SIZE = 73
K_MTIME = 74
K_ACTION = 75
K_CLOCK = 76
K_ENTROPY = 77
K_ITEM = 78
K_CGROUP = 79
K_SHARE = 80
K_READONLY = 81
K_INNER = 82
K_CGROUPS = 83

# Kinds of failures.
FAILED = 0
COMMAND_NOT_FOUND = 1
CANNOT_EXECUTE = 2
BAD_DIRECTORY = 3
BAD_REQUEST = 4
NO_SUCH_PROCESS = 5

# Streams; as bits 1 << n where several are named.
STDIN = 0
STDOUT = 1
STDERR = 2
TTY = 3
CONTENT = 4

# Steps.
MOUNT = 1
UNMOUNT = 2
MKDIR = 3
WRITE_FILE = 4
SYMLINK = 5
NODE = 6
MASK = 7
READONLY = 8
WAIT = 9
SYSCTL = 10
HOSTNAME = 11
DOMAINNAME = 12
OWN = 13

# What FILES does.
FILE_READ = 1
FILE_WRITE = 2
FILE_LIST = 3

# What a guest has.
FEATURE_CGROUPS = 1
FEATURE_VSOCK = 2

# The types; what is in none of them is a number.
GROUPS = frozenset((K_SETTINGS, K_STEP, K_LINK, K_ADDRESS, K_ROUTE, K_NEIGHBOUR, K_FILE, K_ITEM))
BYTES = frozenset((K_TOKEN, K_RLIMIT, K_SECCOMP, K_DATA, K_MAC, K_NEW_MAC, K_IP, K_GATEWAY, K_ENTROPY))
TEXTS = frozenset(
    (
        K_RELEASE,
        K_MACHINE,
        K_OPERATION,
        K_PATH,
        K_TEXT,
        K_ROOT,
        K_ARG,
        K_ENV,
        K_CWD,
        K_TYPE,
        K_SOURCE,
        K_TARGET,
        K_NAME,
        K_NEW_NAME,
        K_CGROUP,
        K_CGROUPS,
    )
)
