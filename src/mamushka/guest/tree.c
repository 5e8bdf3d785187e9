/*
 * Trees as streams of fields: a file with all below it, out of a guest and into it.
 *
 * ITEM…(NAME, MODE, UID, GID, SIZE, MTIME, DEVICE?, SOURCE?, INODE?, FILESYSTEM?, TARGET?, FILE…(NAME, DATA)), and behind
 * that of a regular file, where it was asked for, its content as DATA…, SIZE bytes in all. FILE are extended attributes. A file that shrinks while
 * it is read is filled with zeros, one that grows is cut. Programs of the container's change the tree meanwhile: names
 * are looked up in open directories only, and links are followed nowhere but in the path that was asked for.
 */
#include "guest.h"
#include <dirent.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define ITEM_MAX (256u << 10) /* a path, a link and extended attributes, of which one name may have 64 KiB (xattr(7)) */
#define LEVELS_MAX 512        /* each holds a descriptor; paths of 4096 bytes can have 2048 */
#define PATH_ROOM 4096

int write_all(int fd, const void *data, size_t size)
{
	const uint8_t *at = data;
	while (size) {
		ssize_t put = write(fd, at, size);
		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -1;
		at += put;
		size -= put;
	}
	return 0;
}

static int read_all(int fd, uint8_t *data, size_t size)
{
	while (size) {
		ssize_t got = read(fd, data, size);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return errno = got ? errno : EPROTO, -1;
		data += got;
		size -= got;
	}
	return 0;
}

/* Out */

static int with_content;

static void put_attributes(struct out *out, int fd)
{
	static char names[65536], value[65536];
	ssize_t size = flistxattr(fd, names, sizeof names);
	for (char *name = names; size > 0 && name < names + size; name += strlen(name) + 1) {
		ssize_t length = fgetxattr(fd, name, value, sizeof value);
		if (length < 0)
			continue;
		size_t mark = open_group(out, K_FILE);
		put_text(out, K_NAME, name);
		put(out, K_DATA, value, length);
		close_group(out, mark);
	}
}

static int send_content(int fd, uint64_t size, int connection)
{
	static uint8_t buffer[PUMP_SIZE];
	while (size) {
		size_t part = size < sizeof buffer ? size : sizeof buffer;
		ssize_t got = fd < 0 ? 0 : read(fd, buffer, part);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		memset(buffer + got, 0, part - got);
		struct out out = {.max = sizeof buffer + 16};
		put(&out, K_DATA, buffer, part);
		int failed = out.failed || write_all(connection, out.data, out.size) < 0;
		free(out.data);
		if (failed)
			return -1;
		size -= part;
	}
	return 0;
}

/* One entry; the directory that it is, opened, or -1; -2 for a failure. One that is gone is left out. */
static int send_entry(int directory, const char *name, const char *told, int connection)
{
	struct out out = {.max = ITEM_MAX};
	struct stat found;
	char to[PATH_ROOM];
	int fd = -1, failed;
	if (fstatat(directory, name, &found, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
		return errno == ENOENT ? -1 : -2;
	int regular = S_ISREG(found.st_mode);
	if (regular || S_ISDIR(found.st_mode)) {
		int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
		if ((fd = openat(directory, *name ? name : ".", flags)) < 0)
			return errno == ENOENT || errno == ELOOP || errno == ENXIO ? -1 : -2;
		if (fstat(fd, &found) < 0 || S_ISREG(found.st_mode) != regular)
			return close(fd), -1; /* another one by now */
	}
	size_t mark = open_group(&out, K_ITEM);
	put_text(&out, K_NAME, told);
	describe(&out, &found);
	if (!S_ISDIR(found.st_mode) && found.st_nlink > 1) {
		put_number(&out, K_INODE, found.st_ino);
		put_number(&out, K_FILESYSTEM, found.st_dev);
	}
	if (S_ISLNK(found.st_mode)) {
		ssize_t size = readlinkat(directory, name, to, sizeof to);
		put(&out, K_SOURCE, to, size > 0 ? size : 0);
	}
	if (fd >= 0)
		put_attributes(&out, fd);
	close_group(&out, mark);
	failed = out.failed ? (errno = E2BIG, 1) : write_all(connection, out.data, out.size) < 0;
	free(out.data);
	if (!failed && regular && with_content)
		failed = send_content(fd, found.st_size, connection) < 0;
	if (fd >= 0 && (failed || regular)) {
		int number = errno;
		close(fd);
		errno = number;
		fd = -1;
	}
	return failed ? -2 : fd;
}

static int send_below(int fd, const char *path, int level, int connection)
{
	struct dirent *entry;
	char below[PATH_ROOM];
	DIR *directory = level < LEVELS_MAX ? fdopendir(fd) : NULL;
	int failed = 0;
	if (!directory)
		return close(fd), errno = level < LEVELS_MAX ? ENOMEM : ENAMETOOLONG, -1;
	while (!failed && (entry = readdir(directory))) {
		const char *name = entry->d_name;
		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		if (snprintf(below, sizeof below, "%s%s%s", path, *path ? "/" : "", name) >= (int)sizeof below) {
			errno = ENAMETOOLONG;
			failed = 1;
			break;
		}
		int inner = send_entry(dirfd(directory), name, below, connection);
		failed = inner == -2 || (inner >= 0 && send_below(inner, below, level + 1, connection) < 0);
	}
	int number = errno;
	closedir(directory);
	errno = number;
	return failed ? -1 : 0;
}

int pack(int root, const char *path, int connection, int content)
{
	struct stat found;
	with_content = content;
	char copy[PATH_ROOM];
	const char *name = "";
	if (strlen(path) >= sizeof copy)
		return errno = ENAMETOOLONG, -1;
	int place = open_in_root(root, path, O_PATH | O_NOFOLLOW, 0), inner;
	if (place < 0 || fstat(place, &found) < 0)
		return -1;
	if (!S_ISDIR(found.st_mode)) { /* by its name in its directory: content cannot be read through what has no flags */
		close(place);
		strcpy(copy, path);
		char *slash = strrchr(copy, '/');
		name = slash ? strrchr(path, '/') + 1 : path;
		if (slash)
			*slash = 0;
		if ((place = open_in_root(root, slash ? copy : ".", O_PATH | O_DIRECTORY, 0)) < 0)
			return -1;
	}
	inner = send_entry(place, name, "", connection);
	close(place);
	return inner == -2 ? -1 : inner < 0 ? 0 : send_below(inner, "", 0, connection);
}

/* In */

struct arriving {
	int root, fd; /* the file whose content comes, or -1 */
	const char *path;
	struct fields item; /* of that */
	uint8_t *kept;
	uint64_t missing;
};

static int set_attributes(int fd, struct fields item)
{
	struct field field;
	int failed = fchown(fd, number_of(item, K_UID, 0), number_of(item, K_GID, 0)) < 0 ||
		     fchmod(fd, number_of(item, K_MODE, 0644) & 07777) < 0;
	while (!failed && next_field(&item, &field) > 0) {
		if (field.key == K_FILE) {
			struct field data = {0, NULL, 0};
			char *name = text_of(inside(&field), K_NAME);
			find(inside(&field), K_DATA, &data);
			/* What this file system does not keep is not worth the file. */
			if (name && fsetxattr(fd, name, data.data, data.size, 0) < 0)
				failed = errno != EOPNOTSUPP && errno != EPERM;
			free(name);
		} else if (field.key == K_MTIME) {
			uint64_t when = number(&field);
			struct timespec times[2] = {{0, UTIME_OMIT}, {when / 1000000000, when % 1000000000}};
			failed = futimens(fd, times) < 0;
		}
	}
	return failed ? -1 : 0;
}

/* The file that came is whole. */
static int finish(struct arriving *arriving)
{
	int failed = 0;
	if (arriving->fd >= 0) {
		failed = arriving->missing ? (errno = EPROTO, 1) : set_attributes(arriving->fd, arriving->item) < 0;
		close(arriving->fd);
		free(arriving->kept);
		arriving->fd = -1;
	}
	return failed ? -1 : 0;
}

/* The directory below the root that a name of the stream is in, made where missing; ``name`` becomes its last part. */
static int place_of(const struct arriving *arriving, char **name)
{
	char whole[2 * PATH_ROOM], *slash = strrchr(*name, '/');
	for (char *at = *name; at; at = strchr(at, '/'), at = at ? at + 1 : NULL)
		if (!strcmp(at, "..") || !strncmp(at, "../", 3))
			return errno = EINVAL, -1;
	int length = slash ? (int)(slash - *name) : 0;
	if (snprintf(whole, sizeof whole, "%s/%.*s", arriving->path, length, *name) >= PATH_ROOM)
		return errno = ENAMETOOLONG, -1;
	*name = slash ? slash + 1 : *name;
	return make_directory(arriving->root, whole, 0755);
}

static int make_tree_directory(struct arriving *arriving, char *name, struct fields item)
{
	char whole[2 * PATH_ROOM];
	if (snprintf(whole, sizeof whole, "%s/%s", arriving->path, name) >= PATH_ROOM)
		return errno = ENAMETOOLONG, -1;
	int place = make_directory(arriving->root, whole, 0755), fd;
	if (place < 0)
		return -1;
	fd = openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int failed = fd < 0 || set_attributes(fd, item) < 0, number = errno;
	close(place);
	if (fd >= 0)
		close(fd);
	errno = number;
	return failed ? -1 : 0;
}

static int make_link(const struct arriving *arriving, char *target, int place, const char *name)
{
	int from = place_of(arriving, &target);
	if (from < 0)
		return -1;
	int failed = linkat(from, target, place, name, 0), number = errno;
	close(from);
	errno = number;
	return failed;
}

static int own_name(int place, const char *name, struct fields item)
{
	uint64_t when = number_of(item, K_MTIME, 0);
	struct timespec times[2] = {{0, UTIME_OMIT}, {when / 1000000000, when % 1000000000}};
	return fchownat(place, name, number_of(item, K_UID, 0), number_of(item, K_GID, 0), AT_SYMLINK_NOFOLLOW) < 0 ||
	       utimensat(place, name, times, AT_SYMLINK_NOFOLLOW) < 0 ? -1 : 0;
}

static int make_other(struct arriving *arriving, int place, const char *name, struct fields item, unsigned mode)
{
	uint64_t device = number_of(item, K_DEVICE, 0);
	char *to = text_of(item, K_SOURCE), *target = text_of(item, K_TARGET);
	int failed;
	if (unlinkat(place, name, 0) < 0 && errno != ENOENT)
		failed = -1; /* EISDIR: a directory is not replaced by what is none */
	else if (target)
		failed = make_link(arriving, target, place, name);
	else if (S_ISLNK(mode))
		failed = symlinkat(to ? to : "", place, name) < 0 || own_name(place, name, item) < 0;
	else if (S_ISREG(mode))
		failed = (arriving->fd = openat(place, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600)) < 0;
	else
		failed = mknodat(place, name, mode, makedev(device >> 32, device & 0xffffffff)) < 0 ||
			 own_name(place, name, item) < 0 || fchmodat(place, name, mode & 07777, 0) < 0;
	free(to);
	free(target);
	return failed ? -1 : 0;
}

static int arrive(struct arriving *arriving, struct fields item, struct failure *failure)
{
	unsigned mode = number_of(item, K_MODE, 0);
	char *whole = text_of(item, K_NAME), *name = whole;
	int failed, place;
	if (!whole)
		return errno = EINVAL, -1;
	strncpy(failure->path, whole, sizeof failure->path - 1);
	if (S_ISDIR(mode)) {
		failed = make_tree_directory(arriving, whole, item);
	} else if ((place = place_of(arriving, &name)) < 0) {
		failed = -1;
	} else {
		failed = make_other(arriving, place, name, item, mode);
		int number = errno;
		close(place);
		errno = number;
		arriving->missing = arriving->fd >= 0 ? number_of(item, K_SIZE, 0) : 0;
	}
	free(whole);
	return failed;
}

int unpack(int root, const char *path, int connection, struct failure *failure)
{
	struct arriving arriving = {.root = root, .path = path, .fd = -1};
	uint8_t head[6];
	ssize_t first;
	int target = open_in_root(root, path, O_PATH | O_DIRECTORY, 0);
	if (target < 0)
		return -1;
	close(target);
	while ((first = read(connection, head, 1)) != 0) {
		if (first < 0 && errno == EINTR)
			continue;
		if (first < 0 || read_all(connection, head + 1, sizeof head - 1) < 0)
			return -1;
		size_t size = head[2] | head[3] << 8 | head[4] << 16 | (size_t)head[5] << 24;
		if (size > ITEM_MAX)
			return errno = E2BIG, -1;
		uint8_t *data = malloc(sizeof head + size);
		if (!data || read_all(connection, data + sizeof head, size) < 0)
			return -1;
		memcpy(data, head, sizeof head);
		struct fields fields = {data, data + sizeof head + size};
		struct field field;
		if (!valid(fields, 0) || next_field(&fields, &field) != 1)
			return errno = EBADMSG, -1;
		if (field.key == K_DATA) {
			if (field.size > arriving.missing || write_all(arriving.fd, field.data, field.size) < 0)
				return errno = field.size > arriving.missing ? EPROTO : errno, -1;
			arriving.missing -= field.size;
		} else if (field.key != K_ITEM || finish(&arriving) < 0 || arrive(&arriving, inside(&field), failure) < 0) {
			return errno = field.key == K_ITEM ? errno : EBADMSG, -1;
		} else if (arriving.fd >= 0) {
			arriving.item = inside(&field);
			arriving.kept = data;
			data = NULL;
		}
		free(data);
	}
	return finish(&arriving);
}

/* Away */

static int remove_below(int fd, int level)
{
	struct dirent *entry;
	DIR *directory = level < LEVELS_MAX ? fdopendir(fd) : NULL;
	int failed = 0;
	if (!directory)
		return close(fd), errno = ENAMETOOLONG, -1;
	while (!failed && (entry = readdir(directory))) {
		const char *name = entry->d_name;
		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		failed = remove_name(dirfd(directory), name, 1, level + 1) < 0;
	}
	int number = errno;
	closedir(directory);
	errno = number;
	return failed ? -1 : 0;
}

int remove_name(int directory, const char *name, int recursive, int level)
{
	if (unlinkat(directory, name, 0) == 0 || (level && errno == ENOENT))
		return 0;
	if (errno != EISDIR)
		return -1;
	if (recursive) {
		int inner = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (inner < 0 || remove_below(inner, level) < 0)
			return -1;
	}
	return unlinkat(directory, name, AT_REMOVEDIR);
}
