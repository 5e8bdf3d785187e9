/* Tasks: what a child does for a request and answers, in the guest's own namespaces or in a container's. */
#include "guest.h"
#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

void describe(struct out *out, const struct stat *found)
{
	put_number(out, K_MODE, found->st_mode);
	put_number(out, K_UID, found->st_uid);
	put_number(out, K_GID, found->st_gid);
	put_number(out, K_SIZE, found->st_size);
	put_number(out, K_MTIME, (uint64_t)found->st_mtim.tv_sec * 1000000000 + found->st_mtim.tv_nsec);
	if (S_ISCHR(found->st_mode) || S_ISBLK(found->st_mode))
		put_number(out, K_DEVICE, (uint64_t)major(found->st_rdev) << 32 | minor(found->st_rdev));
}

static int copy(int from, int to)
{
	static uint8_t buffer[PUMP_SIZE];
	ssize_t got;
	while ((got = read(from, buffer, sizeof buffer)) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 || write_all(to, buffer, got) < 0)
			return -1;
	}
	return 0;
}

static int list_name(int directory, const char *name, int connection)
{
	struct out out = {.max = RECORD_MAX};
	struct stat found;
	char to[4096];
	if (fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
		return errno == ENOENT ? 0 : -1; /* removed meanwhile */
	size_t mark = open_group(&out, K_ITEM);
	put_text(&out, K_NAME, name);
	describe(&out, &found);
	if (S_ISLNK(found.st_mode)) {
		ssize_t size = readlinkat(directory, name, to, sizeof to);
		if (size > 0)
			put(&out, K_SOURCE, to, size);
	}
	close_group(&out, mark);
	int failed = out.failed || write_all(connection, out.data, out.size) < 0;
	free(out.data);
	return failed ? -1 : 0;
}

/* Itself first, without a name; then what a directory contains. */
static int list(int root, const char *path, int connection)
{
	struct stat found;
	struct dirent *entry;
	int place = open_in_root(root, path, O_PATH | O_NOFOLLOW, 0), fd;
	if (place < 0 || list_name(place, "", connection) < 0 || fstat(place, &found) < 0)
		return -1;
	if (!S_ISDIR(found.st_mode))
		return 0;
	fd = openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	if (!directory)
		return -1;
	while ((entry = readdir(directory)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && list_name(fd, entry->d_name, connection) < 0)
			return -1;
	return 0;
}

static int open_regular(int root, const char *path, int flags, int mode, struct stat *found)
{
	/* A fifo or a terminal of the image's must hold nobody up. */
	int fd = open_in_root(root, path, flags | O_NONBLOCK | O_NOCTTY, mode);
	if (fd < 0 || fstat(fd, found) < 0)
		return -1;
	if (!S_ISREG(found->st_mode))
		return errno = S_ISDIR(found->st_mode) ? EISDIR : EINVAL, -1;
	return fd;
}

/* Where it went wrong: in a member of the stream, or at the beginning. */
static const char *unpacked(const struct failure *failure, const char *path)
{
	static char name[sizeof failure->path];
	memcpy(name, failure->path, sizeof name);
	return *name ? name : path;
}

/* By its own name: not the root, not through a link. */
static int take_away(int root, const char *path, int recursive)
{
	const char *name;
	int place = parent_of(root, path, &name);
	if (place < 0)
		return -1;
	return remove_name(place, name, recursive, 0);
}

static int transfer(int root, struct fields request, int connection, struct out *answer, struct failure *failure)
{
	char *path = text_of(request, K_PATH);
	int action = number_of(request, K_ACTION, 0), fd, writing = action == FILE_WRITE;
	unsigned mode = number_of(request, K_MODE, 0644) & 07777;
	struct stat found;
	struct field field;
	if (!path)
		return errno = EINVAL, fail(failure, BAD_REQUEST, "find the path", NULL);
	if (action == FILE_LIST)
		return list(root, path, connection) < 0 ? fail(failure, FAILED, "list", path) : 0;
	if (action == FILE_PACK)
		return pack(root, path, connection, number_of(request, K_ALL, 1)) < 0 ? fail(failure, FAILED, "pack", path) : 0;
	if (action == FILE_UNPACK)
		return unpack(root, path, connection, failure) < 0 ? fail(failure, FAILED, "unpack", unpacked(failure, path)) : 0;
	if (action == FILE_REMOVE)
		return take_away(root, path, number_of(request, K_RECURSIVE, 0)) < 0 ? fail(failure, FAILED, "remove", path) : 0;
	if (action != FILE_READ && !writing)
		return errno = EINVAL, fail(failure, BAD_REQUEST, "understand the action", path);
	fd = open_regular(root, path, writing ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, mode, &found);
	if (fd < 0)
		return fail(failure, FAILED, "open", path);
	if ((writing ? copy(connection, fd) : copy(fd, connection)) < 0)
		return fail(failure, FAILED, writing ? "write" : "read", path);
	if (writing && (fchown(fd, number_of(request, K_UID, -1), number_of(request, K_GID, -1)) < 0 ||
			(find(request, K_MODE, &field) && fchmod(fd, mode) < 0)))
		return fail(failure, FAILED, "chown", path);
	if (writing && find(request, K_MTIME, &field)) {
		uint64_t when = number(&field);
		struct timespec times[2] = {{0, UTIME_OMIT}, {when / 1000000000, when % 1000000000}};
		if (futimens(fd, times) < 0)
			return fail(failure, FAILED, "utimensat", path);
	}
	if (fstat(fd, &found) < 0)
		return fail(failure, FAILED, "fstat", path);
	describe(answer, &found);
	return 0;
}

void perform_task(unsigned kind, struct fields request, int report, uint64_t process, const struct process *container)
{
	struct failure failure = {0};
	struct out answer = {.max = RECORD_MAX - 1};
	int connection = -1, failed, root;
	umask(0);
	/* Before another's mounts are entered: the way to the host may be a socket in a directory. */
	if (kind == FILES && (connection = dial_stream(process, CONTENT)) < 0) {
		fail(&failure, FAILED, "connect", NULL);
		tell_failure(report, &failure);
	}
	if (container && enter(container, CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC, &failure) < 0)
		tell_failure(report, &failure);
	char *below = text_of(request, K_ROOT);
	if ((root = open(below ? below : "/", O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) {
		fail(&failure, FAILED, "open", below ? below : "/");
		tell_failure(report, &failure);
	}
	failed = kind == FILES ? transfer(root, request, connection, &answer, &failure)
			       : perform_steps(root, request, &failure);
	if (failed < 0)
		tell_failure(report, &failure);
	if (connection >= 0)
		shutdown(connection, SHUT_RDWR);
	tell(report, 'D', &answer);
	_exit(0);
}
