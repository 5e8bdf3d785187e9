/* The first process of a guest that is measured under QEMU: it does what ours does and no more.

   It inserts the modules in their order, mounts what a container has, performs a program that ends at once, writes back
   and ends the machine. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
	static char order[8192];
	int fd = open("/modules/order", O_RDONLY);
	if (fd >= 0 && read(fd, order, sizeof(order) - 1) < 0)
		return 1;
	for (char *name = order, *end; (end = strchr(name, '\n')); name = end + 1) {
		char path[256];
		*end = 0;
		snprintf(path, sizeof(path), "/modules/%s", name);
		int module = open(path, O_RDONLY);
		syscall(SYS_finit_module, module, "", 0);  /* one without its device refuses */
		close(module);
	}
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	pid_t child = fork();
	if (child == 0)
		_exit(0);
	waitpid(child, NULL, 0);
	sync();
	reboot(RB_AUTOBOOT);  /* by a triple fault (reboot=t), at which QEMU ends (-no-reboot) */
}
