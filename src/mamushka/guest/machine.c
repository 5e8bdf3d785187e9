/* The machine around the processes: its cgroups, clock, entropy, and its end. */
#include "guest.h"
#include <dirent.h>
#include <linux/random.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>

#define CONTENT_MAX 65536 /* of a file of statistics */
#define WAIT_MAX 2000     /* milliseconds for a cgroup to freeze */

char *cgroups;

/* Use a cgroup2 that is mounted there, with all its controllers for what is below. */
void set_cgroups(const char *path)
{
	char name[300], list[1024], word[80];
	struct stat found;
	if (snprintf(name, sizeof name, "%s/cgroup.controllers", path) >= (int)sizeof name || stat(name, &found) < 0)
		return;
	free(cgroups);
	cgroups = strdup(path);
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? -1 : read(fd, list, sizeof list - 1);
	if (fd >= 0)
		close(fd);
	list[size > 0 ? size : 0] = 0;
	snprintf(name, sizeof name, "%s/cgroup.subtree_control", path);
	for (char *at = strtok(list, " \n"); at; at = strtok(NULL, " \n")) {
		snprintf(word, sizeof word, "+%s", at);
		write_text(AT_FDCWD, name, word, strlen(word));
	}
}

static int read_file(const char *directory, const char *name, char *content, size_t room)
{
	char path[700];
	if (snprintf(path, sizeof path, "%s/%s", directory, name) >= (int)sizeof path)
		return errno = ENAMETOOLONG, -1;
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -1;
	size_t size = 0;
	ssize_t got;
	while (size < room - 1 && (got = read(fd, content + size, room - 1 - size)) > 0)
		size += got;
	close(fd);
	content[size] = 0;
	return size;
}

static char *cgroup_of(struct fields fields, struct failure *failure)
{
	uint64_t name = number_of(fields, K_CONTAINER, 0);
	for (struct process *process = processes; process; process = process->next)
		if (process->first && process->id == name && process->cgroup)
			return process->cgroup;
	errno = ESRCH;
	fail(failure, NO_SUCH_PROCESS, "find the cgroup", NULL);
	return NULL;
}

/* How often the kernel killed for want of memory. */
uint64_t cgroup_oom_kills(const char *cgroup)
{
	char content[1024], *at;
	if (!cgroup || read_file(cgroup, "memory.events", content, sizeof content) < 0)
		return 0;
	at = strstr(content, "oom_kill ");
	return at ? strtoull(at + 9, NULL, 10) : 0;
}

static void pause_briefly(void)
{
	nanosleep(&(struct timespec){0, 1000000}, NULL);
}

int freeze(struct fields fields, struct failure *failure)
{
	char path[700], content[256], *cgroup = cgroup_of(fields, failure);
	const char *wanted = number_of(fields, K_ACTION, 0) ? "1" : "0";
	if (!cgroup)
		return -1;
	snprintf(path, sizeof path, "%s/cgroup.freeze", cgroup);
	if (write_text(AT_FDCWD, path, wanted, 1) < 0)
		return fail(failure, FAILED, "write", path);
	for (int waited = 0; waited < WAIT_MAX; waited++) {
		char *at = read_file(cgroup, "cgroup.events", content, sizeof content) < 0 ? NULL : strstr(content, "frozen ");
		if (at && at[7] == *wanted)
			return 0;
		pause_briefly();
	}
	errno = ETIMEDOUT;
	return fail(failure, FAILED, "freeze", cgroup);
}

/* The pids in a cgroup: all of them get the signal, those made meanwhile too. */
int signal_cgroup(const char *cgroup, int signal, struct failure *failure)
{
	static char content[CONTENT_MAX * 4];
	char path[700];
	if (signal == SIGKILL) {
		snprintf(path, sizeof path, "%s/cgroup.kill", cgroup);
		if (write_text(AT_FDCWD, path, "1", 1) == 0)
			return 0;
	}
	if (read_file(cgroup, "cgroup.procs", content, sizeof content) < 0)
		return fail(failure, FAILED, "read", cgroup);
	for (char *at = content; *at;) {
		long pid = strtol(at, &at, 10);
		if (pid > 0)
			kill(pid, signal);
		at += strspn(at, "\n 0");
	}
	return 0;
}

int update(struct fields fields, struct failure *failure)
{
	char *cgroup = cgroup_of(fields, failure), path[700];
	struct field field;
	if (!cgroup)
		return -1;
	while (next_field(&fields, &field) > 0) {
		if (field.key != K_FILE)
			continue;
		struct field data = {0, NULL, 0};
		char *name = text_of(inside(&field), K_NAME);
		find(inside(&field), K_DATA, &data);
		if (!name || strchr(name, '/') || !strncmp(name, "cgroup.", 7))
			return errno = EINVAL, fail(failure, BAD_REQUEST, "write", name);
		snprintf(path, sizeof path, "%s/%s", cgroup, name);
		if (write_text(AT_FDCWD, path, data.data, data.size) < 0)
			return fail(failure, FAILED, "write", name);
		free(name);
	}
	return 0;
}

/* The files that are asked for, of a container's cgroup, or by their path where that begins with a slash. */
int read_files(struct fields fields, struct out *out, struct failure *failure)
{
	static char content[CONTENT_MAX];
	struct field field;
	char *cgroup = NULL;
	if (find(fields, K_CONTAINER, &field) && !(cgroup = cgroup_of(fields, failure)))
		return -1;
	while (next_field(&fields, &field) > 0) {
		if (field.key != K_NAME)
			continue;
		char *name = copy_text(&field);
		if (!name || (*name != '/' && (!cgroup || strstr(name, "..")))) {
			free(name);
			return errno = EINVAL, fail(failure, BAD_REQUEST, "read", NULL);
		}
		int size = read_file(*name == '/' ? "" : cgroup, name + (*name == '/'), content, sizeof content);
		if (size >= 0) { /* what this kernel has not is left out */
			size_t mark = open_group(out, K_FILE);
			put_text(out, K_NAME, name);
			put(out, K_DATA, content, size);
			close_group(out, mark);
		}
		free(name);
	}
	return 0;
}

static void describe_process(long pid, struct out *out)
{
	char directory[32], content[4096];
	snprintf(directory, sizeof directory, "/proc/%ld", pid);
	int size = read_file(directory, "stat", content, sizeof content);
	if (size < 0)
		return; /* ended meanwhile */
	size_t mark = open_group(out, K_ITEM);
	put_number(out, K_PID, pid);
	put(out, K_TEXT, content, size);
	if (read_file(directory, "status", content, sizeof content) >= 0) {
		char *uid = strstr(content, "\nUid:\t"), *inner = strstr(content, "\nNSpid:\t");
		if (uid)
			put_number(out, K_UID, strtoul(uid + 6, NULL, 10));
		if (inner) {
			char *end = strchr(inner + 1, '\n');
			while (end && end > inner && end[-1] != '\t')
				end--;
			if (end)
				put_number(out, K_INNER, strtoul(end, NULL, 10));
		}
	}
	if ((size = read_file(directory, "cmdline", content, sizeof content)) > 0)
		put(out, K_DATA, content, size);
	close_group(out, mark);
}

int list_processes(struct fields fields, struct out *out, struct failure *failure)
{
	static char content[CONTENT_MAX * 4];
	char *cgroup = cgroup_of(fields, failure);
	if (!cgroup)
		return -1;
	if (read_file(cgroup, "cgroup.procs", content, sizeof content) < 0)
		return fail(failure, FAILED, "read", cgroup);
	for (char *at = content; *at;) {
		long pid = strtol(at, &at, 10);
		if (pid > 0)
			describe_process(pid, out);
		at += strspn(at, "\n ");
	}
	return 0;
}

static int seed(const struct field *field)
{
	struct {
		struct rand_pool_info head;
		uint8_t bytes[512];
	} pool;
	size_t size = field->size < sizeof pool.bytes ? field->size : sizeof pool.bytes;
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	pool.head.entropy_count = size * 8;
	pool.head.buf_size = size;
	memcpy(pool.head.buf, field->data, size);
	int failed = ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0;
	int number = errno;
	close(fd);
	errno = number;
	return failed ? -1 : 0;
}

/* After a machine was restored, another's clone may run beside it: nothing it guesses may be the same. */
int renew(struct fields fields, struct failure *failure)
{
	struct field field;
	if (find(fields, K_ENTROPY, &field) && seed(&field) < 0)
		return fail(failure, FAILED, "RNDADDENTROPY", "/dev/urandom");
	if (find(fields, K_CLOCK, &field)) {
		struct timespec now = {number(&field) / 1000000000, number(&field) % 1000000000};
		if (clock_settime(CLOCK_REALTIME, &now) < 0)
			return fail(failure, FAILED, "clock_settime", NULL);
	}
	return 0;
}

void power(int action)
{
	sync();
	if (getpid() == 1 && !socket_path)
		reboot(action ? RB_AUTOBOOT : RB_POWER_OFF);
	_exit(0);
}
