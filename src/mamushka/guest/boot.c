/* From the kernel's hand to the loop: modules, the few mounts of its own, and a root that can be pivoted away from. */
#include "guest.h"
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define ORDER_MAX 65536 /* of /modules/order: some hundred names */

static void make(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	mkdir(target, 0755);
	if (mount(source, target, type, flags, data) < 0 && errno != EBUSY)
		note("mount %s: %s", target, strerror(errno));
}

/* 1: it is in; 0: it needs another one first; -1: it cannot be had, and that was told. */
static int insert(const char *name, int last)
{
	char path[300];
	snprintf(path, sizeof path, "/modules/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC), opened = fd >= 0;
	int failed = !opened || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST), number = errno;
	if (opened)
		close(fd);
	if (failed && opened && number == ENOENT && !last)
		return 0; /* an unknown symbol */
	if (failed)
		note("insert %s: %s", name, strerror(number));
	unlink(path); /* its memory is the guest's */
	return failed ? -1 : 1;
}

/* In the order of /modules/order, one file's name a line; what comes too early is tried again while others go in. */
static void insert_modules(void)
{
	static char order[ORDER_MAX], *names[ORDER_MAX / 2];
	int count = 0, left, before, fd = open("/modules/order", O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, order, sizeof order - 1);
	if (fd >= 0)
		close(fd);
	order[size > 0 ? size : 0] = 0;
	for (char *name = strtok(order, "\n"); name; name = strtok(NULL, "\n"))
		names[count++] = name;
	for (before = count + 1, left = count; left; before = count, count = left) {
		int last = before == count;
		left = 0;
		for (int i = 0; i < count; i++)
			if (insert(names[i], last) == 0)
				names[left++] = names[i];
	}
}

/* The kernel's first root cannot be pivoted away from, so a container would never be rid of it: lie another over it. */
static void change_root(void)
{
	make("tmpfs", "/root", "tmpfs", 0, "mode=755,size=16m");
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		note("change the root: %s", strerror(errno));
}

void boot(void)
{
	umask(022);
	mkdir("/dev", 0755);
	make("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
	insert_modules();
	umount2("/dev", MNT_DETACH);
	change_root();
	make("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755");
	make("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	make("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	make("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	make("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	set_cgroups("/sys/fs/cgroup");
}
