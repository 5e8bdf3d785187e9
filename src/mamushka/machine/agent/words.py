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
K_OPEN = 18
K_STREAMS = 19
K_ROOT = 20
K_SETTINGS = 21
K_STEP = 22
K_ARG = 23
K_ENV = 24
K_CWD = 25
K_UID = 26
K_GID = 27
K_GROUP = 28
K_UMASK = 29
K_BOUNDING = 30
K_EFFECTIVE = 31
K_PERMITTED = 32
K_INHERITABLE = 33
K_AMBIENT = 34
K_NO_NEW_PRIVILEGES = 35
K_RLIMIT = 36
K_ROWS = 37
K_COLUMNS = 38
K_OOM_SCORE = 39
K_SECCOMP = 40
K_SECCOMP_FLAGS = 41
K_NICE = 42
K_OP = 43
K_TYPE = 44
K_SOURCE = 45
K_TARGET = 46
K_FLAGS = 47
K_DATA = 48
K_SET = 49
K_CLEAR = 50
K_PROPAGATION = 51
K_RECURSIVE = 52
K_MODE = 53
K_DEVICE = 54
K_TIMEOUT = 55
K_LINK = 56
K_INDEX = 57
K_NAME = 58
K_NEW_NAME = 59
K_MAC = 60
K_NEW_MAC = 61
K_MTU = 62
K_UP = 63
K_ADDRESS = 64
K_ROUTE = 65
K_NEIGHBOUR = 66
K_IP = 67
K_PREFIX = 68
K_GATEWAY = 69
K_METRIC = 70
K_ONLINK = 71
K_ALL = 72
K_FILE = 73
K_SIZE = 74
K_MTIME = 75
K_ACTION = 76
K_CLOCK = 77
K_ENTROPY = 78
K_ITEM = 79
K_CGROUP = 80
K_SHARE = 81
K_READONLY = 82
K_INNER = 83
K_CGROUPS = 84
K_COPY_UP = 85
K_RESOLVER = 86
K_OFFSET = 87
K_INODE = 88
K_FILESYSTEM = 89

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
PARTITION = 14

# What FILES does.
FILE_READ = 1
FILE_WRITE = 2
FILE_LIST = 3
FILE_PACK = 4
FILE_UNPACK = 5
FILE_REMOVE = 6

# What a guest has.
FEATURE_CGROUPS = 1
FEATURE_VSOCK = 2

# The types; what is in none of them is a number.
GROUPS = frozenset((K_SETTINGS, K_STEP, K_LINK, K_ADDRESS, K_ROUTE, K_NEIGHBOUR, K_FILE, K_ITEM, K_OPEN))
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
