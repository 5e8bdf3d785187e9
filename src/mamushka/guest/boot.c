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

static void insert(const char *name)
{
	char path[300];
	snprintf(path, sizeof path, "/modules/%s", name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
		note("insert %s: %s", name, strerror(errno));
	if (fd >= 0)
		close(fd);
	unlink(path); /* its memory is the guest's */
}

/* In the order of /modules/order, one file's name a line. */
static void insert_modules(void)
{
	static char order[ORDER_MAX];
	int fd = open("/modules/order", O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, order, sizeof order - 1);
	if (fd >= 0)
		close(fd);
	order[size > 0 ? size : 0] = 0;
	for (char *name = strtok(order, "\n"); name; name = strtok(NULL, "\n"))
		if (*name)
			insert(name);
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
