/*
 * A file system in memory that starts with what lies below its mount point: directories, regular files, symbolic links.
 *
 * Both trees are walked by descriptor and no link is followed; what else there is stays behind. The new file system's
 * size bounds the bytes.
 */
#include "guest.h"
#include <dirent.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#define LEVELS_MAX 64 /* each holds two descriptors; deeper trees are no configuration or cache */
#define CHUNK (1u << 20)

static int like(int from, int to)
{
	struct stat found;
	if (fstat(from, &found) < 0 || fchown(to, found.st_uid, found.st_gid) < 0 || fchmod(to, found.st_mode & 07777) < 0)
		return -1;
	struct timespec times[2] = {found.st_atim, found.st_mtim};
	return futimens(to, times);
}

static int copy_file(int from, int to, const char *name)
{
	ssize_t sent = -1;
	int source = openat(from, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int sink = source < 0 ? -1 : openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (sink >= 0)
		do
			sent = sendfile(sink, source, NULL, CHUNK);
		while (sent > 0);
	int failed = sent < 0 || like(source, sink) < 0, number = errno;
	close(source);
	close(sink);
	errno = number;
	return failed ? -1 : 0;
}

static int copy_link(int from, int to, const char *name, const struct stat *found)
{
	char target[4096];
	ssize_t size = readlinkat(from, name, target, sizeof target - 1);
	if (size < 0)
		return -1;
	target[size] = 0;
	if (symlinkat(target, to, name) < 0)
		return -1;
	return fchownat(to, name, found->st_uid, found->st_gid, AT_SYMLINK_NOFOLLOW);
}

static int copy_directory(int from, int to, const char *name, int level)
{
	int source = openat(from, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), sink = -1;
	if (source >= 0 && mkdirat(to, name, 0700) == 0)
		sink = openat(to, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int failed = sink < 0 || copy_up(source, sink, level + 1) < 0, number = errno;
	close(source);
	close(sink);
	errno = number;
	return failed ? -1 : 0;
}

int copy_up(int from, int to, int level)
{
	struct dirent *entry;
	struct stat found;
	int listed = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = 0;
	DIR *directory = listed < 0 ? NULL : fdopendir(listed);
	if (!directory)
		return -1;
	if (level > LEVELS_MAX)
		return closedir(directory), errno = ELOOP, -1;
	while (!failed && (entry = readdir(directory))) {
		const char *name = entry->d_name;
		if (!strcmp(name, ".") || !strcmp(name, ".."))
			continue;
		if (fstatat(from, name, &found, AT_SYMLINK_NOFOLLOW) < 0)
			failed = errno != ENOENT; /* removed meanwhile */
		else if (S_ISDIR(found.st_mode))
			failed = copy_directory(from, to, name, level) < 0;
		else if (S_ISREG(found.st_mode))
			failed = copy_file(from, to, name) < 0;
		else if (S_ISLNK(found.st_mode))
			failed = copy_link(from, to, name, &found) < 0;
	}
	int number = errno;
	closedir(directory);
	errno = number;
	return failed || like(from, to) < 0 ? -1 : 0;
}
