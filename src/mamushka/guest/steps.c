/*
 * Steps: what is mounted, made and written, one after the other, below one root.
 *
 * That root was filled by a stranger. So a path in it is only ever resolved by openat2 with RESOLVE_IN_ROOT, and what it
 * named is used by its descriptor and never by path a second time. A mount's source is a path of the caller's own.
 */
#include "guest.h"
#include <linux/blkpg.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>

#ifndef RESOLVE_IN_ROOT
#define RESOLVE_IN_ROOT 0x10
#endif
#ifndef RESOLVE_NO_MAGICLINKS
#define RESOLVE_NO_MAGICLINKS 0x02
#endif
#define PATH_ROOM 4096

int open_in_root(int root, const char *path, int flags, int mode)
{
	struct open_how how = {
		.flags = flags | O_CLOEXEC,
		.mode = flags & O_CREAT ? mode : 0,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};
	int fd;
	do
		fd = syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
	while (fd < 0 && errno == EAGAIN); /* a rename raced with the resolution */
	return fd;
}

/* The directory, made with its parents where missing; an O_PATH descriptor. */
int make_directory(int root, const char *path, unsigned mode)
{
	char so_far[PATH_ROOM];
	int directory = open_in_root(root, path, O_PATH | O_DIRECTORY, 0);
	size_t used = 0;
	if (directory >= 0 || errno != ENOENT)
		return directory;
	if (strlen(path) >= sizeof so_far)
		return errno = ENAMETOOLONG, -1;
	directory = open_in_root(root, ".", O_PATH | O_DIRECTORY, 0);
	while (directory >= 0 && *path) {
		size_t size = strcspn(path, "/");
		if (size) {
			char name[256];
			if (size >= sizeof name)
				return close(directory), errno = ENAMETOOLONG, -1;
			memcpy(name, path, size);
			name[size] = 0;
			so_far[used++] = '/';
			memcpy(so_far + used, path, size);
			so_far[used += size] = 0;
			if (strcmp(name, ".") && strcmp(name, "..") && mkdirat(directory, name, mode) < 0 && errno != EEXIST) {
				int number = errno;
				close(directory);
				return errno = number, -1;
			}
			close(directory);
			directory = open_in_root(root, so_far, O_PATH | O_DIRECTORY, 0);
		}
		path += size + (path[size] == '/');
	}
	return directory;
}

/* Where a path's last name begins, and the directory's path before it. */
static const char *split(const char *path, char directory[PATH_ROOM])
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return errno = EINVAL, NULL;
	if (name - path >= PATH_ROOM)
		return errno = ENAMETOOLONG, NULL;
	memcpy(directory, path, name - path);
	directory[name - path] = 0;
	return name;
}

/* The directory that a path's last name is in, made where missing; ``name`` points to that. */
static int parent(int root, const char *path, const char **name)
{
	char directory[PATH_ROOM];
	return (*name = split(path, directory)) ? make_directory(root, directory, 0755) : -1;
}

/* The same, where it is there. */
int parent_of(int root, const char *path, const char **name)
{
	char directory[PATH_ROOM];
	return (*name = split(path, directory)) ? open_in_root(root, directory, O_PATH | O_DIRECTORY, 0) : -1;
}

/* Where something can be mounted: what is there, or a new empty directory or file. */
static int make_target(int root, const char *path, int directory)
{
	const char *name;
	int place, fd;
	if (directory)
		return make_directory(root, path, 0755);
	fd = open_in_root(root, path, O_PATH, 0);
	if (fd >= 0 || errno != ENOENT || (place = parent(root, path, &name)) < 0)
		return fd;
	fd = openat(place, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
	if (fd >= 0) {
		close(fd);
		fd = openat(place, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	}
	close(place);
	return fd;
}

int write_text(int directory, const char *path, const void *text, size_t size)
{
	int fd = openat(directory, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t put = write(fd, text, size);
	int number = errno;
	close(fd);
	errno = put < 0 ? number : EIO;
	return put == (ssize_t)size ? 0 : -1;
}

static int set_attributes(int fd, struct fields step)
{
	struct mount_attributes attributes = {
		.set = number_of(step, K_SET, 0),
		.clear = number_of(step, K_CLEAR, 0),
		.propagation = number_of(step, K_PROPAGATION, 0),
	};
	int flags = AT_EMPTY_PATH | (number_of(step, K_RECURSIVE, 0) ? AT_RECURSIVE : 0);
	if (!attributes.set && !attributes.clear && !attributes.propagation)
		return 0;
	return syscall(SYS_mount_setattr, fd, "", flags, &attributes, sizeof attributes);
}

static int bind(int from, const char *source, int root, const char *target, struct fields step, struct failure *failure)
{
	int flags = TREE_CLONE | TREE_CLOEXEC | (number_of(step, K_RECURSIVE, 0) ? AT_RECURSIVE : 0);
	int tree = syscall(SYS_open_tree, from, source, flags | (*source ? 0 : AT_EMPTY_PATH)), place;
	struct stat found;
	if (tree < 0 || fstat(tree, &found) < 0)
		return fail(failure, FAILED, "open_tree", *source ? source : target);
	if (set_attributes(tree, step) < 0)
		return fail(failure, FAILED, "mount_setattr", target);
	if ((place = make_target(root, target, S_ISDIR(found.st_mode))) < 0)
		return fail(failure, FAILED, "open", target);
	if (syscall(SYS_move_mount, tree, "", place, "", MOVE_EMPTY) < 0)
		return fail(failure, FAILED, "move_mount", target);
	close(tree);
	close(place);
	return 0;
}

int bind_descriptor(int fd, int root, const char *target, struct failure *failure)
{
	return bind(fd, "", root, target, (struct fields){NULL, NULL}, failure);
}

static int mount_step(int root, struct fields step, const char *target, struct failure *failure)
{
	char *type = text_of(step, K_TYPE), *source = text_of(step, K_SOURCE), *data = text_of(step, K_DATA);
	unsigned long flags = number_of(step, K_FLAGS, 0);
	int place, result, from = -1;
	if (flags & MS_BIND)
		return bind(AT_FDCWD, source ? source : "", root, target, step, failure);
	if ((place = make_directory(root, target, 0755)) < 0)
		return fail(failure, FAILED, "open", target);
	if (number_of(step, K_COPY_UP, 0) && (from = openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
		return fail(failure, FAILED, "open", target);
	/* By ".", because no path leads safely to what the descriptor names. */
	if (fchdir(place) < 0 || mount(source ? source : "none", ".", type, flags, data) < 0)
		return fail(failure, FAILED, "mount", source && *source == '/' ? source : target);
	close(place);
	if ((place = open_in_root(root, target, O_PATH, 0)) < 0)
		return fail(failure, FAILED, "open", target);
	if (from >= 0) {
		int to = open_in_root(root, target, O_RDONLY | O_DIRECTORY, 0);
		if (to < 0 || copy_up(from, to, 0) < 0)
			return fail(failure, FAILED, "copy what is in", target);
		close(to);
		close(from);
	}
	result = set_attributes(place, step) < 0 ? fail(failure, FAILED, "mount_setattr", target) : 0;
	close(place);
	free(type);
	free(source);
	free(data);
	return result;
}

/* An empty directory that nobody can write to, mounted nowhere as yet. */
static int empty_directory(void)
{
	int fs = syscall(SYS_fsopen, "tmpfs", FS_CLOEXEC), made = -1, number;
	if (fs < 0)
		return -1;
	if (syscall(SYS_fsconfig, fs, FS_CREATE, NULL, NULL, 0) == 0)
		made = syscall(SYS_fsmount, fs, FS_CLOEXEC, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC);
	number = errno;
	close(fs);
	errno = number;
	return made;
}

/* The container's null device, if it is one: it is behind the same mount as all that it opens itself. Else ours. */
static int null_device(int root)
{
	struct stat found;
	int fd = open_in_root(root, "/dev/null", O_PATH | O_NOFOLLOW, 0), tree;
	if (fd < 0 || fstat(fd, &found) < 0 || !S_ISCHR(found.st_mode) || found.st_rdev != makedev(1, 3))
		tree = syscall(SYS_open_tree, AT_FDCWD, "/dev/null", TREE_CLONE | TREE_CLOEXEC);
	else
		tree = syscall(SYS_open_tree, fd, "", TREE_CLONE | TREE_CLOEXEC | AT_EMPTY_PATH);
	int number = errno;
	if (fd >= 0)
		close(fd);
	errno = number;
	return tree;
}

/* Hide what is there: a directory by an empty one, a file by the null device. */
static int mask(int root, const char *target, struct failure *failure)
{
	struct stat found;
	int place = open_in_root(root, target, O_PATH, 0), tree;
	if (place < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : fail(failure, FAILED, "open", target);
	int directory = fstat(place, &found) == 0 && S_ISDIR(found.st_mode);
	if ((tree = directory ? empty_directory() : null_device(root)) < 0 ||
	    syscall(SYS_move_mount, tree, "", place, "", MOVE_EMPTY) < 0)
		return fail(failure, FAILED, "mask", target);
	close(tree);
	close(place);
	return 0;
}

static int make_readonly(int root, const char *target, struct failure *failure)
{
	struct mount_attributes attributes = {.set = ATTR_RDONLY};
	int place = open_in_root(root, target, O_PATH, 0), tree;
	if (place < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : fail(failure, FAILED, "open", target);
	tree = syscall(SYS_open_tree, place, "", TREE_CLONE | TREE_CLOEXEC | AT_RECURSIVE | AT_EMPTY_PATH);
	if (tree < 0 || syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attributes, sizeof attributes) < 0 ||
	    syscall(SYS_move_mount, tree, "", place, "", MOVE_EMPTY) < 0)
		return fail(failure, FAILED, "make read-only", target);
	close(tree);
	close(place);
	return 0;
}

static int own(int fd, const char *name, int flags, struct fields step)
{
	struct field field;
	uid_t uid = number_of(step, K_UID, -1);
	gid_t gid = number_of(step, K_GID, -1);
	if (fchownat(fd, name, uid, gid, flags | AT_SYMLINK_NOFOLLOW) < 0)
		return -1;
	if (find(step, K_MTIME, &field)) {
		uint64_t when = number(&field);
		struct timespec times[2] = {{0, UTIME_OMIT}, {when / 1000000000, when % 1000000000}};
		return utimensat(fd, name, times, AT_SYMLINK_NOFOLLOW);
	}
	return 0;
}

static int write_file(int root, const char *target, struct fields step)
{
	struct field content = {0, NULL, 0};
	unsigned mode = number_of(step, K_MODE, 0644) & 07777;
	const char *name;
	int place = parent(root, target, &name);
	if (place < 0)
		return -1;
	close(place);
	int fd = open_in_root(root, target, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK, mode);
	if (fd < 0)
		return -1;
	find(step, K_DATA, &content);
	while (content.size) {
		ssize_t put = write(fd, content.data, content.size);
		if (put < 0)
			return close(fd), -1;
		content.data += put;
		content.size -= put;
	}
	int failed = fchmod(fd, mode) < 0 || own(fd, "", AT_EMPTY_PATH, step) < 0;
	close(fd);
	return failed ? -1 : 0;
}

/* A node, a directory or a symbolic link, with its owner; one that is there already is kept. */
static int make_name(int root, const char *target, struct fields step, int op)
{
	char *to = op == SYMLINK ? text_of(step, K_SOURCE) : NULL;
	uint64_t device = number_of(step, K_DEVICE, 0);
	unsigned mode = number_of(step, K_MODE, op == MKDIR ? 0755 : 0644);
	const char *name;
	int place = parent(root, target, &name), made;
	if (place < 0)
		return -1;
	if (op == MKDIR)
		made = mkdirat(place, name, mode & 07777);
	else if (op == SYMLINK)
		made = symlinkat(to ? to : "", place, name);
	else
		made = mknodat(place, name, mode, makedev(device >> 32, device & 0xffffffff));
	if (made < 0)
		return errno == EEXIST ? 0 : -1;
	if (own(place, name, 0, step) < 0 || (op != SYMLINK && fchmodat(place, name, mode & 07777, 0) < 0))
		return -1;
	close(place);
	free(to);
	return 0;
}

/* Whether it can be used: a disk's node is there a moment before the disk. */
static int usable(int root, const char *target, int found)
{
	struct stat what;
	if (fstat(found, &what) < 0 || !S_ISBLK(what.st_mode))
		return 1;
	int fd = open_in_root(root, target, O_RDONLY | O_NONBLOCK, 0);
	if (fd >= 0)
		close(fd);
	return fd >= 0 || errno != ENXIO;
}

/* Until a device that is being found is there. */
static int wait_for(int root, const char *target, uint64_t milliseconds)
{
	struct timespec pause = {0, 2000000};
	for (uint64_t waited = 0;; waited += 2) {
		int fd = open_in_root(root, target, O_PATH, 0), there = fd >= 0 && usable(root, target, fd);
		int number = fd < 0 ? errno : ENXIO;
		if (fd >= 0)
			close(fd);
		if (there)
			return 0;
		if ((number != ENOENT && number != ENXIO) || waited >= milliseconds)
			return errno = number, -1;
		nanosleep(&pause, NULL);
	}
}

/* A stretch of a disk as a disk of its own, which nothing on the disk tells of. */
static int partition(int root, const char *target, struct fields step)
{
	struct blkpg_partition part = {
		.start = number_of(step, K_OFFSET, 0),
		.length = number_of(step, K_SIZE, 0),
		.pno = number_of(step, K_INDEX, 0),
	};
	struct blkpg_ioctl_arg argument = {BLKPG_ADD_PARTITION, 0, sizeof part, &part};
	int fd = open_in_root(root, target, O_RDONLY, 0), failed;
	if (fd < 0)
		return -1;
	failed = ioctl(fd, BLKPG, &argument);
	int number = errno;
	close(fd);
	errno = number;
	return failed;
}

static int sysctl(const char *name, struct fields step)
{
	char path[300];
	struct field field = {0, NULL, 0};
	if (strstr(name, "..") || snprintf(path, sizeof path, "/proc/sys/%s", name) >= (int)sizeof path)
		return errno = EINVAL, -1;
	find(step, K_DATA, &field);
	return write_text(AT_FDCWD, path, field.data, field.size);
}

static int change_owner(int root, const char *target, struct fields step)
{
	struct field field;
	const char *name;
	int place = parent(root, target, &name), failed;
	if (place < 0)
		return -1;
	failed = own(place, name, 0, step) < 0 ||
		 (find(step, K_MODE, &field) && fchmodat(place, name, number(&field) & 07777, 0) < 0);
	close(place);
	return failed ? -1 : 0;
}

static int unmount(int root, const char *target)
{
	int place = open_in_root(root, target, O_PATH, 0);
	char path[40];
	if (place < 0)
		return -1;
	/* umount2 at "." would need a place that is not the mount itself; this process's own procfs names it. */
	snprintf(path, sizeof path, "/proc/self/fd/%d", place);
	return umount2(path, MNT_DETACH);
}

static int perform(int root, struct fields step, struct failure *failure)
{
	char *target = text_of(step, K_TARGET);
	int failed = 0, op = number_of(step, K_OP, 0);
	static const char *const names[] = {
		"", "mount", "umount", "mkdir", "write", "symlink", "mknod", "mask", "make read-only", "wait for", "sysctl",
		"sethostname", "setdomainname", "chown", "make a partition of",
	};
	if (!target || op < MOUNT || op > PARTITION)
		return errno = EINVAL, fail(failure, BAD_REQUEST, "understand a step", target);
	switch (op) {
	case MOUNT: return mount_step(root, step, target, failure);
	case MASK: return mask(root, target, failure);
	case READONLY: return make_readonly(root, target, failure);
	case UNMOUNT: failed = unmount(root, target); break;
	case WRITE_FILE: failed = write_file(root, target, step); break;
	case MKDIR: case SYMLINK: case NODE: failed = make_name(root, target, step, op); break;
	case WAIT: failed = wait_for(root, target, number_of(step, K_TIMEOUT, 0)); break;
	case SYSCTL: failed = sysctl(target, step); break;
	case HOSTNAME: failed = sethostname(target, strlen(target)); break;
	case DOMAINNAME: failed = setdomainname(target, strlen(target)); break;
	case OWN: failed = change_owner(root, target, step); break;
	case PARTITION: failed = partition(root, target, step); break;
	}
	if (failed)
		return fail(failure, FAILED, names[op], target);
	free(target);
	return 0;
}

int perform_steps(int root, struct fields fields, struct failure *failure)
{
	struct field field;
	while (next_field(&fields, &field) > 0)
		if (field.key == K_STEP && perform(root, inside(&field), failure) < 0)
			return -1;
	return 0;
}
