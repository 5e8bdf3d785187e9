/*
 * From fork to execve: namespaces, root, terminal, descriptors, privileges. One failure ends it, and tells which.
 *
 * The order is the container wall's, so that a program meets the same behind both.
 */
#include "guest.h"
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define STANDARD_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define ISOLATED (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP)
#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO('T', 0x41)
#endif

void tell(int report, char what, struct out *fields)
{
	uint8_t kind = what;
	struct iovec parts[2] = {{&kind, 1}, {fields ? fields->data : NULL, fields && !fields->failed ? fields->size : 0}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	sendmsg(report, &message, MSG_NOSIGNAL);
}

void tell_failure(int report, const struct failure *failure)
{
	struct out fields = {.max = RECORD_MAX - 1};
	put_number(&fields, K_KIND, failure->kind);
	put_number(&fields, K_ERRNO, failure->number);
	put_text(&fields, K_OPERATION, failure->operation);
	put_text(&fields, K_PATH, failure->path);
	tell(report, 'E', &fields);
	_exit(failure->kind == COMMAND_NOT_FOUND ? 127 : 126);
}

int enter(const struct process *container, int namespaces, struct failure *failure)
{
	if (setns(container->pidfd, namespaces) < 0)
		return fail(failure, errno == ESRCH ? NO_SUCH_PROCESS : FAILED, "setns", NULL);
	return 0;
}

static int join_cgroup(const char *cgroup, struct failure *failure)
{
	char path[600];
	if (!cgroup)
		return 0;
	snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
	return write_text(AT_FDCWD, path, "0", 1) < 0 ? fail(failure, FAILED, "enter the cgroup", path) : 0;
}

static int score(struct fields settings, struct failure *failure)
{
	char text[16];
	struct field field;
	if (!find(settings, K_OOM_SCORE, &field))
		return 0;
	int size = snprintf(text, sizeof text, "%d", (int)number(&field));
	if (write_text(AT_FDCWD, "/proc/self/oom_score_adj", text, size) < 0)
		return fail(failure, FAILED, "write", "/proc/self/oom_score_adj");
	return 0;
}

/* The terminal's slave side, from the master and never by a path that the image could have prepared. */
static int open_terminal(const struct child *child, int root, struct failure *failure)
{
	struct winsize size = {
		.ws_row = number_of(child->settings, K_ROWS, 0),
		.ws_col = number_of(child->settings, K_COLUMNS, 0),
	};
	struct stat found;
	int unlock = 0, slave, master = open_in_root(root, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW, 0);
	if (master < 0)
		return fail(failure, FAILED, "open", "/dev/pts/ptmx");
	if (fstat(master, &found) < 0 || !S_ISCHR(found.st_mode) || found.st_rdev != makedev(5, 2))
		return errno = ENODEV, fail(failure, FAILED, "open", "/dev/pts/ptmx");
	if (ioctl(master, TIOCSPTLCK, &unlock) < 0 || (slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
		return fail(failure, FAILED, "TIOCGPTPEER", NULL);
	if (size.ws_row || size.ws_col)
		ioctl(slave, TIOCSWINSZ, &size);
	if (fchown(slave, number_of(child->settings, K_UID, 0), -1) < 0)
		return fail(failure, FAILED, "fchown", "the terminal");
	if (child->first && bind_descriptor(slave, root, "/dev/console", failure) < 0)
		return -1;
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {
		.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS},
	};
	memcpy(CMSG_DATA(&control.header), &master, sizeof master);
	struct iovec part = {"P", 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	if (sendmsg(child->report, &message, MSG_NOSIGNAL) < 0)
		return fail(failure, FAILED, "sendmsg", "the terminal");
	close(master);
	return slave;
}

/* Namespaces and root of a container's first process; gives the terminal where one is wanted, else -1. -2: failed. */
static int build(const struct child *child, struct failure *failure)
{
	int share = number_of(child->request, K_SHARE, 0) & (CLONE_NEWUTS | CLONE_NEWIPC), terminal = -1, root;
	char *path = text_of(child->request, K_ROOT);
	struct mount_attributes readonly = {.set = ATTR_RDONLY};
	if (child->container && share && enter(child->container, share, failure) < 0)
		return -2;
	if (unshare(ISOLATED & ~(child->container ? share : 0)) < 0)
		return fail(failure, FAILED, "unshare", NULL), -2;
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return fail(failure, FAILED, "mount", "/"), -2;
	if (!path)
		return errno = EINVAL, fail(failure, BAD_REQUEST, "find the root", NULL), -2;
	/* pivot_root wants a mount of its own. */
	if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) < 0 || mount(NULL, path, NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return fail(failure, FAILED, "mount", path), -2;
	if ((root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0)
		return fail(failure, FAILED, "open", path), -2;
	if (perform_steps(root, child->request, failure) < 0)
		return -2;
	if (child->stdio[0] < 0 && (terminal = open_terminal(child, root, failure)) < 0)
		return -2;
	if (number_of(child->request, K_READONLY, 0) &&
	    syscall(SYS_mount_setattr, root, "", AT_EMPTY_PATH, &readonly, sizeof readonly) < 0)
		return fail(failure, FAILED, "mount_setattr", path), -2;
	if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return fail(failure, FAILED, "pivot_root", path), -2;
	return terminal;
}

static int join(const struct child *child, struct failure *failure)
{
	if (enter(child->container, ISOLATED, failure) < 0)
		return -2;
	if (child->stdio[0] >= 0)
		return -1;
	int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int terminal = open_terminal(child, root, failure);
	return terminal < 0 ? -2 : terminal;
}

static int arrange(const struct child *child, int terminal, struct failure *failure)
{
	int given[3];
	for (int i = 0; i < 3; i++)
		if ((given[i] = fcntl(terminal >= 0 ? terminal : child->stdio[i], F_DUPFD_CLOEXEC, 3)) < 0)
			return fail(failure, FAILED, "fcntl", NULL);
	for (int i = 0; i < 3; i++)
		if (dup2(given[i], i) < 0)
			return fail(failure, FAILED, "dup2", NULL);
	setsid();
	if (terminal >= 0 && ioctl(0, TIOCSCTTY, 0) < 0)
		return fail(failure, FAILED, "TIOCSCTTY", NULL);
	return 0;
}

static int change_directory(struct fields settings, int make, struct failure *failure)
{
	char *path = text_of(settings, K_CWD), here[4096];
	if (!path)
		path = "/";
	if (chdir(path) < 0) {
		int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (errno == ENOENT && make && make_directory(root, path, 0755) >= 0) {
			if (chown(path, number_of(settings, K_UID, 0), number_of(settings, K_GID, 0)) < 0)
				return fail(failure, BAD_DIRECTORY, "chown", path);
		} else {
			errno = errno ? errno : ENOENT;
		}
		if (root >= 0)
			close(root);
		if (chdir(path) < 0)
			return fail(failure, BAD_DIRECTORY, "chdir", path);
	}
	if (syscall(SYS_getcwd, here, sizeof here) < 0 || here[0] != '/')
		return errno = EACCES, fail(failure, BAD_DIRECTORY, "getcwd", path);
	return 0;
}

/* A list of strings, ended by NULL; ``spare`` more fit. */
static char **strings(struct fields fields, unsigned key, int spare)
{
	struct fields again = fields;
	struct field field;
	size_t count = 0;
	while (next_field(&again, &field) > 0)
		count += field.key == key;
	char **list = calloc(count + spare + 1, sizeof *list);
	for (count = 0; list && next_field(&fields, &field) > 0;)
		if (field.key == key && !(list[count++] = copy_text(&field)))
			return NULL;
	return list;
}

/* The user's by the image's accounts; "/" where they tell none. */
static char *home(uint32_t uid)
{
	static char content[1 << 20], entry[4096]; /* a passwd file of a real distribution has a few KiB */
	int accounts = open("/etc/passwd", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ssize_t size = accounts < 0 ? 0 : read(accounts, content, sizeof content - 1);
	char *found = uid == 0 && size <= 0 ? "/root" : "/", *rest, *line = content;
	content[size > 0 ? size : 0] = 0;
	if (accounts >= 0)
		close(accounts);
	for (; line && *line; line = rest) {
		char *field[7], *at = line;
		int count = 0;
		if ((rest = strchr(line, '\n')))
			*rest++ = 0;
		while (at && count < 7) {
			field[count++] = at;
			if ((at = strchr(at, ':')))
				*at++ = 0;
		}
		if (count >= 6 && *field[2] && strtoul(field[2], &at, 10) == uid && !*at) {
			found = *field[5] ? field[5] : "/";
			break;
		}
	}
	snprintf(entry, sizeof entry, "HOME=%s", found);
	return entry;
}

static const char *value_of(char **environment, const char *name)
{
	size_t length = strlen(name);
	for (; *environment; environment++)
		if (!strncmp(*environment, name, length) && (*environment)[length] == '=')
			return *environment + length + 1;
	return NULL;
}

/* 0: a regular file that somebody may execute. */
static int executable(const char *path)
{
	struct stat found;
	if (stat(path, &found) < 0)
		return -1;
	if (S_ISREG(found.st_mode) && found.st_mode & 0111)
		return 0;
	errno = S_ISDIR(found.st_mode) ? EISDIR : EACCES;
	return -1;
}

static const char *find_program(const char *name, char **environment, struct failure *failure)
{
	static char candidate[4096];
	const char *search = value_of(environment, "PATH"), *end;
	int denied = 0;
	if (strchr(name, '/')) {
		if (executable(name) == 0)
			return name;
		int absent = errno == ENOENT || errno == ENOTDIR;
		fail(failure, absent ? COMMAND_NOT_FOUND : CANNOT_EXECUTE, "execve", name);
		return NULL;
	}
	for (search = search ? search : STANDARD_PATH; search; search = *end ? end + 1 : NULL) {
		end = strchrnul(search, ':');
		int size = snprintf(candidate, sizeof candidate, "%.*s/%s", (int)(end - search), search, name);
		if (end == search)
			size = snprintf(candidate, sizeof candidate, "./%s", name);
		if (size < (int)sizeof candidate && *name && executable(candidate) == 0)
			return candidate;
		denied |= errno != ENOENT && errno != ENOTDIR && errno != EISDIR;
	}
	errno = denied ? EACCES : ENOENT;
	fail(failure, denied ? CANNOT_EXECUTE : COMMAND_NOT_FOUND, "find in $PATH", name);
	return NULL;
}

static void wait_at_gate(int report)
{
	char word;
	tell(report, 'R', NULL);
	while (recv(report, &word, 1, 0) < 0)
		if (errno != EINTR)
			_exit(1);
	if (word != 'G')
		_exit(1);
}

static void reset_signals(void)
{
	struct sigaction standard = {.sa_handler = SIG_DFL};
	sigset_t none;
	for (int number = 1; number < 65; number++)
		sigaction(number, &standard, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

void become(const struct child *child)
{
	struct failure failure = {0};
	struct fields settings = child->settings;
	char **arguments = strings(settings, K_ARG, 0), **environment = strings(settings, K_ENV, 1), **end;
	const char *program;
	int terminal;
	prctl(PR_SET_NAME, "mamushka-init");
	umask(0);
	if (!arguments || !arguments[0] || !environment) {
		errno = arguments && environment ? EINVAL : ENOMEM;
		fail(&failure, BAD_REQUEST, "find the program's name", NULL);
		tell_failure(child->report, &failure);
	}
	if (score(settings, &failure) < 0 || join_cgroup(child->cgroup, &failure) < 0)
		tell_failure(child->report, &failure);
	terminal = child->first ? build(child, &failure) : join(child, &failure);
	if (terminal == -2 || arrange(child, terminal, &failure) < 0 ||
	    change_directory(settings, child->first, &failure) < 0)
		tell_failure(child->report, &failure);
	if (!value_of(environment, "HOME")) {
		for (end = environment; *end; end++)
			;
		*end = home(number_of(settings, K_UID, 0));
	}
	if (!(program = find_program(arguments[0], environment, &failure)))
		tell_failure(child->report, &failure);
	umask(022);
	reset_signals();
	if (child->first)
		wait_at_gate(child->report);
	syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
	if (confine(settings, &failure) < 0)
		tell_failure(child->report, &failure);
	execve(program, arguments, environment);
	int absent = errno == ENOENT || errno == ENOTDIR;
	fail(&failure, absent ? COMMAND_NOT_FOUND : CANNOT_EXECUTE, "execve", arguments[0]);
	tell_failure(child->report, &failure);
}
