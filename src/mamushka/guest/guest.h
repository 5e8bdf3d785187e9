/*
 * The first process of a guest: what its parts know of each other.
 *
 * One thread, one loop around poll(2). Whatever may block or fail in another's files (mounting, opening, executing) is
 * done by a forked child, which answers over a socket pair. The protocol is docs/reference/guest-protocol.md.
 */
#ifndef GUEST_H
#define GUEST_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define VERSION 1

/* mount_setattr(2), open_tree(2), move_mount(2): one C library has them, another not. */
struct mount_attributes {
	uint64_t set, clear, propagation, userns_fd;
};
#define ATTR_RDONLY 1
#define ATTR_NOSUID 2
#define ATTR_NODEV 4
#define ATTR_NOEXEC 8
#define FS_CLOEXEC 1 /* FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC */
#define FS_CREATE 6  /* FSCONFIG_CMD_CREATE */
#define TREE_CLONE 1
#define TREE_CLOEXEC O_CLOEXEC
#define MOVE_EMPTY (4 | 0x40) /* MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH */
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif

/* Bounds. A frame from the host holds the arguments and environment of one execve at most, which the kernel limits to
 * 2 MiB where the stack may have 8 (execve(2)). Strings are paths, arguments and the like: MAX_ARG_STRLEN is 128 KiB. */
#define FRAME_MAX (4u << 20)
#define REPLY_MAX (1u << 20)
#define STRING_MAX (128u << 10)
#define LIST_MAX 65536 /* arguments, variables, groups, steps */
#define DEPTH_MAX 4
#define PROCESSES_MAX 4096 /* each holds some descriptors and two pumps */
#define PUMP_SIZE 65536    /* a pipe's size */
#define HEADER_SIZE 12
#define RECORD_MAX 8192 /* what a child says in one packet */
#define TOKEN_SIZE 16
#define HOST_PORT 1024

/* Kinds of frames: requests, the greeting of both, answers and events. */
enum {
	HELLO = 1,
	STEPS,
	NETWORK,
	CREATE,
	START,
	EXEC,
	SIGNAL,
	RESIZE,
	CLOSE,
	ATTACH,
	FREEZE,
	UPDATE,
	READ,
	PROCESSES,
	FILES,
	RENEW,
	SYNC,
	POWER,
	DELETE,
	REPLY = 64,
	ERROR,
	EXITED,
	LOG,
	STREAM,
};

/* Keys of fields. A key means the same, and has the same type, wherever it stands. */
enum {
	K_VERSION = 1, /* number */
	K_FEATURES,    /* number: bits FEATURE_ */
	K_TOKEN,       /* bytes */
	K_RELEASE,     /* string */
	K_MACHINE,     /* string */
	K_PROCESS,     /* number: the host's name for a process */
	K_CONTAINER,   /* number: the process that a container began with */
	K_STREAM,      /* number: STDIN … */
	K_PID,         /* number */
	K_KIND,        /* number: kind of error, FAILED … */
	K_ERRNO,       /* number */
	K_OPERATION,   /* string */
	K_PATH,        /* string */
	K_TEXT,        /* string */
	K_CODE,        /* number */
	K_SIGNAL,      /* number */
	K_OOM,         /* number: 1 when the kernel's memory limit killed */
	K_OPEN,        /* fields: STREAM, SIZE: one that others hold open still */
	K_STREAMS,     /* number: bits of streams that are wanted */
	K_ROOT,        /* string */
	K_SETTINGS,    /* fields: a process's */
	K_STEP,        /* fields */
	K_ARG,         /* string, repeated */
	K_ENV,         /* string, repeated */
	K_CWD,         /* string */
	K_UID,         /* number */
	K_GID,         /* number */
	K_GROUP,       /* number, repeated */
	K_UMASK,       /* number */
	K_BOUNDING,    /* number: capability sets, bit n for capability n */
	K_EFFECTIVE,
	K_PERMITTED,
	K_INHERITABLE,
	K_AMBIENT,
	K_NO_NEW_PRIVILEGES, /* number: 1 */
	K_RLIMIT,            /* three numbers: resource, soft, hard */
	K_ROWS,              /* number */
	K_COLUMNS,           /* number */
	K_OOM_SCORE,         /* number, signed */
	K_SECCOMP,           /* bytes: struct sock_filter, repeated */
	K_SECCOMP_FLAGS,     /* number */
	K_NICE,              /* number, signed */
	K_OP,                /* number: kind of step */
	K_TYPE,              /* string */
	K_SOURCE,            /* string */
	K_TARGET,            /* string */
	K_FLAGS,             /* number: MS_ of mount(2) */
	K_DATA,              /* string or bytes */
	K_SET,               /* number: MOUNT_ATTR_ */
	K_CLEAR,             /* number */
	K_PROPAGATION,       /* number: MS_SHARED … */
	K_RECURSIVE,         /* number: 1 */
	K_MODE,              /* number */
	K_DEVICE,            /* number: major << 32 | minor */
	K_TIMEOUT,           /* number: milliseconds */
	K_LINK,              /* fields */
	K_INDEX,             /* number */
	K_NAME,              /* string */
	K_NEW_NAME,          /* string */
	K_MAC,               /* 6 bytes */
	K_NEW_MAC,           /* 6 bytes */
	K_MTU,               /* number */
	K_UP,                /* number: 1 or 0 */
	K_ADDRESS,           /* fields: IP, PREFIX */
	K_ROUTE,             /* fields: IP, PREFIX, GATEWAY, METRIC, ONLINK */
	K_NEIGHBOUR,         /* fields: IP, MAC */
	K_IP,                /* 4 or 16 bytes */
	K_PREFIX,            /* number */
	K_GATEWAY,           /* 4 or 16 bytes */
	K_METRIC,            /* number */
	K_ONLINK,            /* number: 1 */
	K_ALL,               /* number: 1 */
	K_FILE,              /* fields: NAME, DATA */
	K_SIZE,              /* number */
	K_MTIME,             /* number: nanoseconds since the epoch */
	K_ACTION,            /* number: of FILES, of POWER, of FREEZE */
	K_CLOCK,             /* number: nanoseconds since the epoch */
	K_ENTROPY,           /* bytes */
	K_ITEM,              /* fields, repeated, in replies */
	K_CGROUP,            /* string */
	K_SHARE,             /* number: CLONE_NEW bits that are CONTAINER's */
	K_READONLY,          /* number: 1 */
	K_INNER,             /* number: the pid as the container counts */
	K_CGROUPS,           /* string: where cgroup2 is mounted */
	K_COPY_UP,           /* number: 1 */
	K_RESOLVER,          /* number: the host's port that answers for names */
	K_OFFSET,            /* number: bytes */
	K_INODE,             /* number: with FILESYSTEM, the same for all names of one file */
	K_FILESYSTEM,        /* number */
};

enum { FAILED, COMMAND_NOT_FOUND, CANNOT_EXECUTE, BAD_DIRECTORY, BAD_REQUEST, NO_SUCH_PROCESS };
enum { STDIN, STDOUT, STDERR, TTY, CONTENT };
enum { MOUNT = 1, UNMOUNT, MKDIR, WRITE_FILE, SYMLINK, NODE, MASK, READONLY, WAIT, SYSCTL, HOSTNAME, DOMAINNAME, OWN,
       PARTITION };
enum { FILE_READ = 1, FILE_WRITE, FILE_LIST, FILE_PACK, FILE_UNPACK, FILE_REMOVE };
enum { FEATURE_CGROUPS = 1, FEATURE_VSOCK = 2 };

/* Fields: a view of a frame's body, or of a field's. */
struct fields {
	const uint8_t *at, *end;
};

struct field {
	unsigned key;
	const uint8_t *data;
	size_t size;
};

int next_field(struct fields *from, struct field *into);
int valid(struct fields fields, int depth);
int find(struct fields fields, unsigned key, struct field *into);
uint64_t number(const struct field *field);
uint64_t number_of(struct fields fields, unsigned key, uint64_t otherwise);
struct fields inside(const struct field *field);
struct fields group(struct fields fields, unsigned key);
char *text_of(struct fields fields, unsigned key);
char *copy_text(const struct field *field);

/* A frame or a list of fields that grows; ``failed`` when it outgrew its bound, and is then not sent. */
struct out {
	uint8_t *data;
	size_t size, room, max;
	int failed;
};

void put(struct out *out, unsigned key, const void *data, size_t size);
void put_number(struct out *out, unsigned key, uint64_t value);
void put_text(struct out *out, unsigned key, const char *text);
size_t open_group(struct out *out, unsigned key);
void close_group(struct out *out, size_t mark);
void header(struct out *out, unsigned kind, uint32_t id);

/* What went wrong, as it is told to the host. ``path`` is cut to fit. */
struct failure {
	int kind, number;
	const char *operation;
	char path[512];
};

int fail(struct failure *failure, int kind, const char *operation, const char *path);

/* The way to the host. */
extern const char *socket_path; /* a Unix socket in place of vsock; for tests */
extern uint8_t token[TOKEN_SIZE];
int dial(void);
int dial_port(unsigned port);
int dial_stream(uint64_t process, unsigned stream);
void send_frame(struct out *out);
void reply(uint32_t id);
void reply_with(uint32_t id, struct out *fields);
void reply_failure(uint32_t id, const struct failure *failure);
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Processes. */
struct pump {
	uint8_t *buffer;
	size_t start, size;
	uint64_t moved; /* bytes, over this connection */
	int ended;
};

struct stream {
	int local, remote; /* a pipe or the terminal's master; the connection. -1: none */
	int terminal;
	int slot_local, slot_remote;
	struct pump in, out; /* to the process; from it */
};

enum { STARTING, READY, RUNNING, DEAD };

struct process {
	struct process *next;
	uint64_t id, container; /* equal for a container's first */
	pid_t pid;
	int pidfd, report, slot_report;
	int state;
	int first;      /* of a container */
	int task;       /* not a program: steps or files, performed by a child */
	int waiting;    /* a request waits for an answer, by this id */
	uint32_t request;
	int status;     /* of waitpid, once DEAD */
	int told;
	int terminal;
	uint64_t oom_kills;
	char *cgroup; /* of the container: its directory */
	struct stream stream[4];
};

extern struct process *processes;
extern char *cgroups; /* where cgroup2 is mounted, or NULL */

struct process *find_process(uint64_t id);
void create_process(uint32_t id, struct fields fields, int exec);
void start_process(uint32_t id, struct fields fields);
void run_task(uint32_t id, struct fields fields, unsigned kind);
void signal_process(uint32_t id, struct fields fields);
void resize(uint32_t id, struct fields fields);
void close_stream(uint32_t id, struct fields fields);
void attach(uint32_t id, struct fields fields);
void delete_container(uint32_t id, struct fields fields);
void reap(void);
int poll_processes(struct pollfd *polled, int room);
void serve_processes(const struct pollfd *polled);
void connection_lost(void);

/* Streams. */
void forget_stream(struct stream *stream);
int poll_stream(struct stream *stream, struct pollfd *polled, int count);
void serve_stream(struct stream *stream, const struct pollfd *polled);
int drained(const struct stream *stream);
int held(const struct stream *stream);
void nonblocking(int fd);

/* In the child. */
struct child {
	struct fields request, settings;
	int report;
	int stdio[3]; /* or -1 with a terminal */
	int first;
	const char *cgroup;
	const struct process *container;
};

void become(const struct child *child) __attribute__((noreturn));
void perform_task(unsigned kind, struct fields request, int report, uint64_t process,
		  const struct process *container) __attribute__((noreturn));
int enter(const struct process *container, int namespaces, struct failure *failure);
int copy_up(int from, int to, int level);
int write_all(int fd, const void *data, size_t size);
struct stat;
void describe(struct out *out, const struct stat *found);
int pack(int root, const char *path, int connection, int content);
int unpack(int root, const char *path, int connection, struct failure *failure);
int remove_name(int directory, const char *name, int recursive, int level);
int perform_steps(int root, struct fields fields, struct failure *failure);
int make_directory(int root, const char *path, unsigned mode);
int parent_of(int root, const char *path, const char **name);
int bind_descriptor(int fd, int root, const char *target, struct failure *failure);
int open_in_root(int root, const char *path, int flags, int mode);
void tell(int report, char what, struct out *fields);
void tell_failure(int report, const struct failure *failure) __attribute__((noreturn));
int confine(struct fields settings, struct failure *failure);
int write_text(int directory, const char *path, const void *text, size_t size);

/* The machine. */
int resolve(unsigned port);
int network(struct fields fields, struct failure *failure);
void boot(void);
void set_cgroups(const char *path);
int freeze(struct fields fields, struct failure *failure);
int update(struct fields fields, struct failure *failure);
int read_files(struct fields fields, struct out *out, struct failure *failure);
int list_processes(struct fields fields, struct out *out, struct failure *failure);
int renew(struct fields fields, struct failure *failure);
void power(int action) __attribute__((noreturn));
int signal_cgroup(const char *cgroup, int signal, struct failure *failure);
uint64_t cgroup_oom_kills(const char *cgroup);

#endif
