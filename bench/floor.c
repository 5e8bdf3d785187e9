/* What the kernel asks for a container, in as few steps as there can be: the floor for every runtime's start.

   All namespaces that a container has by default, the root filesystem, its proc, dev, pts, shm, mqueue and sys,
   pivot_root, execve, and the end. No cgroup, no filter, no masks, no capabilities, no record. */
#define _GNU_SOURCE
#include <err.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void place(const char *kind, const char *where, unsigned long flags, const char *words)
{
    mkdir(where, 0755);
    if (mount(kind, where, kind, flags, words))
        err(1, "%s", where);
}

int main(int argc, char **argv)
{
    uint64_t flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWCGROUP;
    struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
    int status;
    pid_t pid;
    (void)argc;
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0)
        err(1, "clone3");
    if (pid == 0) {
        if (mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) || mount(argv[1], argv[1], 0, MS_BIND | MS_REC, 0) || chdir(argv[1]))
            err(1, "%s", argv[1]);
        place("proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
        place("tmpfs", "dev", MS_NOSUID, "mode=755,size=64k");
        place("devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
        place("tmpfs", "dev/shm", MS_NOSUID | MS_NODEV, "mode=1777,size=64m");
        place("mqueue", "dev/mqueue", MS_NOSUID | MS_NODEV, 0);
        place("sysfs", "sys", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0);
        if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
            err(1, "pivot_root");
        execv(argv[2], argv + 2);
        err(1, "%s", argv[2]);
    }
    if (waitpid(pid, &status, 0) != pid)
        err(1, "waitpid");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
