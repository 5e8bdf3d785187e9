/* What a process sees of its container, a line "what TAB value" each. Static, so that any root can hold it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <unistd.h>

extern char **environ;

static void file(const char *what, const char *path) {
    char line[8192];
    FILE *stream = fopen(path, "r");
    if (!stream) {
        printf("%s\tcannot open: %s\n", what, strerror(errno));
        return;
    }
    while (fgets(line, sizeof line, stream)) {
        line[strcspn(line, "\n")] = 0;
        printf("%s\t%s\n", what, line);
    }
    fclose(stream);
}

static void walk(const char *directory, int depth) {
    char path[4096], target[4096];
    struct dirent *entry;
    struct stat found;
    DIR *stream = opendir(directory);
    if (!stream) {
        printf("device\t%s cannot open: %s\n", directory, strerror(errno));
        return;
    }
    while ((entry = readdir(stream))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (lstat(path, &found))
            continue;
        if (S_ISLNK(found.st_mode)) {
            ssize_t size = readlink(path, target, sizeof target - 1);
            target[size < 0 ? 0 : size] = 0;
            printf("device\t%s -> %s\n", path, target);
            continue;
        }
        printf("device\t%s %o %u:%u %u:%u\n", path, found.st_mode, found.st_uid, found.st_gid,
               major(found.st_rdev), minor(found.st_rdev));
        if (S_ISDIR(found.st_mode) && depth)
            walk(path, depth - 1);
    }
    closedir(stream);
}

/* Whether it can be read and written, and whether anything is in it. */
static void touch(const char *path) {
    char byte;
    struct stat found;
    if (stat(path, &found)) {
        printf("path\t%s: %s\n", path, strerror(errno));
        return;
    }
    if (S_ISDIR(found.st_mode)) {
        int entries = 0;
        char name[4096];
        DIR *stream = opendir(path);
        while (stream && readdir(stream))
            entries++;
        if (stream)
            closedir(stream);
        snprintf(name, sizeof name, "%s/new", path);
        int made = open(name, O_CREAT | O_WRONLY, 0600);
        printf("path\t%s: directory, %s, create: %s\n", path, entries > 2 ? "filled" : "empty",
               made < 0 ? strerror(errno) : "done");
        if (made >= 0) {
            close(made);
            unlink(name);
        }
        return;
    }
    int reading = open(path, O_RDONLY | O_NONBLOCK), error = errno;
    ssize_t got = reading < 0 ? -1 : read(reading, &byte, 1);
    int writing = open(path, O_WRONLY | O_NONBLOCK);
    printf("path\t%s: type %o, read: %s, write: %s\n", path, found.st_mode & S_IFMT,
           reading < 0 ? strerror(error) : got < 0 ? "fails" : got ? "something" : "nothing",
           writing < 0 ? strerror(errno) : "open");
}

int main(int count, char **arguments) {
    static const char *kinds[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    char path[4096], target[4096];
    struct utsname names;
    if (count > 1 && !strcmp(arguments[1], "wait"))
        for (;;)
            pause();
    for (char **entry = environ; *entry; entry++)
        printf("env\t%s\n", *entry);
    printf("cwd\t%s\n", getcwd(path, sizeof path) ? path : strerror(errno));
    file("mount", "/proc/self/mountinfo");
    file("status", "/proc/self/status");
    file("limit", "/proc/self/limits");
    file("oom", "/proc/self/oom_score_adj");
    file("cgroup", "/proc/self/cgroup");
    file("uids", "/proc/self/uid_map");
    file("gids", "/proc/self/gid_map");
    file("setgroups", "/proc/self/setgroups");
    file("label", "/proc/self/attr/current");
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        snprintf(path, sizeof path, "/proc/self/ns/%s", kinds[i]);
        ssize_t size = readlink(path, target, sizeof target - 1);
        target[size < 0 ? 0 : size] = 0;
        printf("namespace\t%s %s\n", kinds[i], target);
    }
    uname(&names);
    printf("hostname\t%s\ndomainname\t%s\nmachine\t%s\n", names.nodename, names.domainname, names.machine);
    printf("personality\t%x\n", personality(0xffffffff));
    printf("scheduler\t%d nice %d\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
    printf("ioprio\t%ld\n", syscall(SYS_ioprio_get, 1, 0));
    printf("session\t%d\n", getsid(0) == getpid());
    long size = syscall(SYS_keyctl, 6 /* KEYCTL_DESCRIBE */, -3 /* the session's */, target, sizeof target - 1);
    target[size < 0 ? 0 : size] = 0;
    printf("keyring\t%s\n", size < 0 ? strerror(errno) : target);
    for (int fd = 0; fd < 256; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            printf("descriptor\t%d\n", fd);
    walk("/dev", 2);
    for (int i = 1; i < count; i++)
        if (!strncmp(arguments[i], "/proc/sys/", 10))
            file(arguments[i], arguments[i]);
        else
            touch(arguments[i]);
    struct stat root;
    stat("/", &root);
    printf("root\t%o %u:%u\n", root.st_mode, root.st_uid, root.st_gid);
    return 0;
}
