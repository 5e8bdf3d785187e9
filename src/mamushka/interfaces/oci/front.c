/* The front of mamushka-oci: what needs no interpreter, and the interpreter for all else.

   Engines start a runtime several times for each container, and an interpreter's start is most of what they wait for.
   Two commands need none in the ordinary case: `start` opens a gate, `delete` removes what a list names; ``create`` has
   written that list into the container's record (``removal``, see mamushka/record.py) where nothing else is to be done:
   no hooks, no systemd unit. Whatever is out of the ordinary, here or on the command line, is left to the interpreter
   before anything is changed, or at a point from which it goes on: both commands may be repeated. So this program decides
   nothing, and says nothing.

   PYTHON and MAIN are given by whoever compiles it (startup.py). */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LIST_MAX = 1 << 16, NAME_MAX_OURS = 1024, OPTIONS = 5 };

static const char *const KNOWN[] = {"cgroup", "failure", "gate", "process", "removal", "seccomp", "state.json"};

static char **given;
static int given_count;

/* Become the interpreter with the same arguments; it looks into no environment and no site's packages. */
static _Noreturn void interpret(void)
{
    signal(SIGPIPE, SIG_DFL);
    const char *words[OPTIONS] = {PYTHON, "-I", "-S", "-Xno_debug_ranges", MAIN};
    char **all = calloc((size_t)given_count + OPTIONS + 1, sizeof *all);
    if (all) {
        memcpy(all, words, sizeof words);
        for (int number = 1; number < given_count; number++)
            all[OPTIONS + number - 1] = given[number];
        execv(PYTHON, all);
    }
    dprintf(2, "mamushka-oci: cannot execute %s: %s\n\nhint: python -m mamushka.startup makes this program anew\n", PYTHON,
            strerror(errno));
    _exit(1);
}

/* The value of a flag that takes one, as `--name value` or `--name=value`; null where the word is another. */
static const char *value_of(const char *name, int *number)
{
    const char *word = given[*number];
    size_t length = strlen(name);
    if (strncmp(word, name, length) != 0)
        return 0;
    if (word[length] == '=')
        return word + length + 1;
    if (word[length] != 0 || *number + 1 >= given_count)
        return 0;
    return given[++*number];
}

/* A whole small file, ended by a zero byte; its length, or -1. */
static long content(int directory, const char *name, char *into, size_t size)
{
    int file = openat(directory, name, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    long length = read(file, into, size - 1);
    close(file);
    if (length < 0 || (size_t)length == size - 1)
        return -1;
    into[length] = 0;
    return length;
}

/* Whether the container's first process has certainly ended: it is gone, a zombie, or another has its number by now. */
static int ended(int record)
{
    char text[1024], path[64];
    long pid;
    unsigned long long start, now;
    if (content(record, "process", text, sizeof text) < 0 || sscanf(text, "%ld %llu\n", &pid, &start) != 2)
        return 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", pid);
    if (content(AT_FDCWD, path, text, sizeof text) < 0)
        return errno == ENOENT || errno == ESRCH;
    /* The name may itself hold brackets and spaces; the state and the start are the first and the twentieth after it. */
    char *after = strrchr(text, ')');
    char state;
    if (!after || sscanf(after + 1,
                         " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &state, &now) != 2)
        return 0;
    return state == 'Z' || state == 'X' || now != start;
}

/* Whether the record holds what an ordinary one holds and no more. */
static int ordinary(int record)
{
    DIR *directory = fdopendir(dup(record));
    struct dirent *entry;
    int fine = directory != 0;
    while (fine && (entry = readdir(directory))) {
        int known = !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
        for (size_t number = 0; number < sizeof KNOWN / sizeof *KNOWN; number++)
            known |= !strcmp(entry->d_name, KNOWN[number]);
        fine = known;
    }
    if (directory)
        closedir(directory);
    return fine;
}

static void start(int record)
{
    struct stat outcome;
    int gate = openat(record, "gate", O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (gate < 0)
        interpret();
    if (write(gate, "\n", 1) != 1)
        interpret();
    /* Until nobody has it open for reading: the program has been executed, or has failed. */
    struct pollfd wait = {.fd = gate, .events = 0};
    while (poll(&wait, 1, -1) < 0 && errno == EINTR)
        continue;
    if (fstatat(record, "failure", &outcome, 0) != 0 || outcome.st_size != 0)
        interpret(); /* it finds nobody behind the gate, and why */
}

/* The list: what kills the rest, the cgroup's directories, an empty line, and those above that may be empty now. */
static void delete(int record, const char *root, const char *id)
{
    static char list[LIST_MAX];
    char *rest = list, *line, *above = 0;
    if (!ordinary(record) || !ended(record) || content(record, "removal", list, sizeof list) < 0)
        interpret();
    line = strsep(&rest, "\n");
    if (!rest)
        interpret();
    if (*line) {
        int kill = open(line, O_WRONLY | O_CLOEXEC);
        if (kill >= 0) {
            if (write(kill, "1", 1) != 1)
                interpret();
            close(kill);
        } else if (errno != ENOENT)
            interpret();
    }
    while ((line = strsep(&rest, "\n")) && *line)
        if (rmdir(line) != 0 && errno != ENOENT)
            interpret(); /* somebody is still inside, or has made a cgroup of his own */
    above = rest;
    for (size_t number = 0; number < sizeof KNOWN / sizeof *KNOWN; number++)
        unlinkat(record, KNOWN[number], 0);
    int state = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (state < 0 || unlinkat(state, id, AT_REMOVEDIR) != 0)
        interpret();
    /* With the last container go the directories that held the cgroups of all. */
    DIR *others = fdopendir(state);
    struct dirent *entry;
    int last = others != 0;
    while (last && (entry = readdir(others)))
        last = !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
    while (last && above && (line = strsep(&above, "\n")) && *line)
        rmdir(line);
}

int main(int count, char **words)
{
    const char *root = "/run/mamushka-oci", *log = "", *found, *verb = 0, *id = 0;
    int number, force = 0;
    given = words;
    given_count = count;
    signal(SIGPIPE, SIG_IGN); /* nobody may be behind the gate any more */
    for (number = 1; number < count && words[number][0] == '-'; number++) {
        if ((found = value_of("--root", &number)))
            root = found;
        else if ((found = value_of("--log", &number)))
            log = found;
        else if (!value_of("--log-format", &number))
            interpret();
    }
    if (number < count)
        verb = words[number++];
    for (; number < count; number++) {
        if (verb && !strcmp(verb, "delete") && (!strcmp(words[number], "--force") || !strcmp(words[number], "-f")))
            force = 1;
        else if (!id && words[number][0] != '-')
            id = words[number];
        else
            interpret();
    }
    (void)force; /* who has ended is deleted with it and without */
    if (!verb || !id || geteuid() != 0 || root[0] != '/' || strchr(log, ':') || strchr(id, '/') || id[0] == '.' ||
        strlen(id) > NAME_MAX_OURS || (strcmp(verb, "start") && strcmp(verb, "delete")))
        interpret();
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", root, id) >= (int)sizeof path)
        interpret();
    int record = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (record < 0 || faccessat(record, "removal", R_OK, 0) != 0)
        interpret();
    if (*log) { /* callers look for the file, whatever it says */
        int file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        if (file < 0)
            interpret();
        close(file);
    }
    if (!strcmp(verb, "start"))
        start(record);
    else
        delete(record, root, id);
    return 0;
}
