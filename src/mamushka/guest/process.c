/*
 * Processes: made here, watched by their report, by wait and by their streams, told of when all three have ended.
 *
 * A child reports over a packet socket that its execve closes: 'P' with a terminal's master, 'R' when it stands before
 * its program and waits to be let go, 'E' with what went wrong, 'D' with an answer. An end without a word is success.
 */
#include "guest.h"
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

struct process *processes;
static unsigned count;

struct process *find_process(uint64_t id)
{
	for (struct process *process = processes; process; process = process->next)
		if (process->id == id && !process->task && !process->told)
			return process;
	return NULL;
}

static struct process *container_of(uint64_t id)
{
	for (struct process *process = processes; process; process = process->next)
		if (process->id == id && process->first)
			return process;
	return NULL;
}

static void refuse(uint32_t id, int kind, int number, const char *operation, const char *path)
{
	struct failure failure;
	errno = number;
	fail(&failure, kind, operation, path);
	reply_failure(id, &failure);
}

static struct process *make(uint64_t id)
{
	if (count >= PROCESSES_MAX)
		return errno = EAGAIN, NULL;
	struct process *process = calloc(1, sizeof *process);
	if (!process)
		return NULL;
	process->id = id;
	process->pidfd = process->report = process->slot_report = -1;
	for (int i = 0; i < 4; i++) {
		process->stream[i].local = process->stream[i].remote = -1;
		process->stream[i].in.ended = process->stream[i].out.ended = 1;
	}
	process->next = processes;
	processes = process;
	count++;
	return process;
}

static void forget(struct process *process)
{
	for (struct process **at = &processes; *at; at = &(*at)->next)
		if (*at == process) {
			*at = process->next;
			break;
		}
	for (int i = 0; i < 4; i++)
		forget_stream(&process->stream[i]);
	if (process->report >= 0)
		close(process->report);
	if (process->pidfd >= 0)
		close(process->pidfd);
	if (process->cgroup && process->id == process->container)
		rmdir(process->cgroup);
	free(process->cgroup);
	free(process);
	count--;
}

/* The process's end of a stream that is wanted, or of /dev/null. Ours is kept. */
static int open_stream(struct process *process, int kind, int wanted)
{
	struct stream *stream = &process->stream[kind];
	int ends[2];
	if (!wanted)
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	if ((stream->remote = dial_stream(process->id, kind)) < 0 || pipe2(ends, O_CLOEXEC) < 0)
		return -1;
	stream->local = ends[kind == STDIN];
	nonblocking(stream->local);
	nonblocking(stream->remote);
	*(kind == STDIN ? &stream->in : &stream->out) = (struct pump){0};
	return ends[kind != STDIN];
}

/* fork, into the pid namespace of a container, or into a new one; the own one is returned to. */
static pid_t fork_into(const struct process *container, int fresh)
{
	int self = syscall(SYS_pidfd_open, getpid(), 0);
	int entered = fresh ? unshare(CLONE_NEWPID) : container ? setns(container->pidfd, CLONE_NEWPID) : 0;
	pid_t pid = self < 0 || entered < 0 ? -1 : fork();
	int number = errno;
	if (pid && self >= 0) {
		if ((fresh || container) && entered == 0 && setns(self, CLONE_NEWPID) < 0)
			abort(); /* further children would be made in there */
	}
	if (self >= 0)
		close(self);
	errno = number;
	return pid;
}

static int launch(struct process *process, struct child *child)
{
	int ends[2];
	unsigned wanted = number_of(child->request, K_STREAMS, 0);
	process->terminal = wanted >> TTY & 1;
	for (int i = 0; i < 3; i++) {
		child->stdio[i] = -1;
		if (!process->terminal && (child->stdio[i] = open_stream(process, i, wanted >> i & 1)) < 0)
			return -1;
	}
	if (process->terminal) {
		struct stream *stream = &process->stream[TTY];
		if ((stream->remote = dial_stream(process->id, TTY)) < 0)
			return -1;
		stream->terminal = 1;
		nonblocking(stream->remote);
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return -1;
	process->report = ends[0];
	child->report = ends[1];
	child->cgroup = process->cgroup;
	int new_pids = process->first && !(number_of(child->request, K_SHARE, 0) & CLONE_NEWPID);
	process->pid = fork_into(child->container, new_pids);
	if (process->pid == 0)
		become(child);
	int number = errno;
	close(ends[1]);
	nonblocking(process->report);
	errno = number;
	if (process->pid < 0)
		return -1;
	process->pidfd = syscall(SYS_pidfd_open, process->pid, 0);
	return process->pidfd < 0 ? -1 : 0;
}

static char *make_cgroup(struct fields fields, uint64_t id)
{
	char name[24], *path = NULL, *wanted = text_of(fields, K_CGROUP);
	unsigned length = 0;
	if (!wanted) {
		/* The host's number, in decimal. */
		char *at = name + sizeof name;
		*--at = 0;
		do
			*--at = '0' + id % 10;
		while (id /= 10);
		wanted = strdup(at);
	}
	if (cgroups && wanted && !strchr(wanted, '/') && wanted[0] != '.') {
		length = strlen(cgroups) + strlen(wanted) + 2;
		if ((path = malloc(length))) {
			strcpy(path, cgroups);
			strcat(path, "/");
			strcat(path, wanted);
			if (mkdir(path, 0755) < 0 && errno != EEXIST) {
				note("mkdir %s: %s", path, strerror(errno));
				free(path);
				path = NULL;
			}
		}
	}
	free(wanted);
	return path;
}

void create_process(uint32_t id, struct fields fields, int exec)
{
	struct child child = {.request = fields, .settings = group(fields, K_SETTINGS), .first = !exec};
	uint64_t name = number_of(fields, K_PROCESS, 0);
	uint64_t other = number_of(fields, K_CONTAINER, 0);
	child.container = container_of(other);
	if (!name || find_process(name) || container_of(name)) {
		refuse(id, BAD_REQUEST, EEXIST, "name the process", NULL);
		return;
	}
	if ((exec || other) && (!child.container || child.container->state == DEAD)) {
		refuse(id, NO_SUCH_PROCESS, ESRCH, "find the container", NULL);
		return;
	}
	struct process *process = make(name);
	if (!process) {
		refuse(id, FAILED, errno, "make the process", NULL);
		return;
	}
	process->first = !exec;
	process->container = exec ? other : name;
	process->request = id;
	process->waiting = 1;
	process->cgroup = exec ? (child.container->cgroup ? strdup(child.container->cgroup) : NULL) : make_cgroup(fields, name);
	process->oom_kills = cgroup_oom_kills(process->cgroup);
	int failed = launch(process, &child) < 0;
	int number = errno;
	for (int i = 0; i < 3; i++)
		if (child.stdio[i] > 2)
			close(child.stdio[i]);
	if (failed) {
		refuse(id, FAILED, number, "make the process", NULL);
		if (process->pid > 0)
			kill(process->pid, SIGKILL);
		process->waiting = 0;
		process->told = 1;
		forget(process);
	}
}

void start_process(uint32_t id, struct fields fields)
{
	struct process *process = find_process(number_of(fields, K_PROCESS, 0));
	if (!process || process->state != READY || process->waiting) {
		refuse(id, NO_SUCH_PROCESS, process ? EALREADY : ESRCH, "start the process", NULL);
		return;
	}
	process->request = id;
	process->waiting = 1;
	if (send(process->report, "G", 1, MSG_NOSIGNAL) < 0) {
		process->waiting = 0;
		refuse(id, NO_SUCH_PROCESS, errno, "start the process", NULL);
	}
}

/* What may block or needs another's namespaces: done by a child, answered when that has ended. */
void run_task(uint32_t id, struct fields fields, unsigned kind)
{
	uint64_t name = number_of(fields, K_CONTAINER, 0);
	struct process *container = container_of(name), *process;
	int ends[2];
	if (name && (!container || container->state == DEAD)) {
		refuse(id, NO_SUCH_PROCESS, ESRCH, "find the container", NULL);
		return;
	}
	if (!(process = make(0)) || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
		refuse(id, FAILED, errno, "make a process", NULL);
		if (process)
			forget(process);
		return;
	}
	process->task = process->waiting = 1;
	process->request = id;
	process->report = ends[0];
	process->pid = fork();
	if (process->pid == 0)
		perform_task(kind, fields, ends[1], number_of(fields, K_PROCESS, 0), container);
	int number = errno;
	close(ends[1]);
	nonblocking(ends[0]);
	if (process->pid < 0) {
		refuse(id, FAILED, number, "fork", NULL);
		forget(process);
	}
}

/* The answer to whoever waits: what the child said, or what its silent end means. */
static void answer(struct process *process, char what, struct fields said)
{
	struct out fields = {.max = REPLY_MAX};
	if (!process->waiting)
		return;
	process->waiting = 0;
	header(&fields, what == 'E' ? ERROR : REPLY, process->request);
	if (!process->task)
		put_number(&fields, K_PID, process->pid);
	struct field field;
	while (next_field(&said, &field) > 0)
		put(&fields, field.key, field.data, field.size);
	send_frame(&fields);
	if (what == 'E') {
		process->told = 1; /* the error was its end: nothing is left of it */
		process->first = 0;
	}
}

static void take_terminal(struct process *process, int master)
{
	struct stream *stream = &process->stream[TTY];
	if (stream->local >= 0 || !process->terminal) {
		close(master);
		return;
	}
	stream->local = master;
	nonblocking(master);
	stream->in = stream->out = (struct pump){0};
}

/* One packet of a child's, or the end of them. */
static void hear(struct process *process)
{
	static uint8_t packet[RECORD_MAX];
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {packet, sizeof packet};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
	ssize_t size = recvmsg(process->report, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size <= 0) {
		close(process->report);
		process->report = -1;
		if (process->state != DEAD)
			process->state = RUNNING;
		answer(process, 'D', (struct fields){NULL, NULL});
		return;
	}
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS) {
		int master;
		memcpy(&master, CMSG_DATA(header), sizeof master);
		take_terminal(process, master);
	}
	struct fields said = {packet + 1, packet + size};
	if (packet[0] == 'R') {
		process->state = READY;
		answer(process, 'R', said);
	} else if (packet[0] == 'E' || packet[0] == 'D') {
		answer(process, packet[0], said);
	}
}

static void tell_end(struct process *process)
{
	struct out event = {.max = REPLY_MAX};
	header(&event, EXITED, 0);
	put_number(&event, K_PROCESS, process->id);
	if (WIFSIGNALED(process->status))
		put_number(&event, K_SIGNAL, WTERMSIG(process->status));
	else
		put_number(&event, K_CODE, WEXITSTATUS(process->status));
	if (WIFSIGNALED(process->status) && cgroup_oom_kills(process->cgroup) > process->oom_kills)
		put_number(&event, K_OOM, 1);
	for (int i = 0; i < 4; i++)
		if (i != STDIN && held(&process->stream[i])) {
			size_t mark = open_group(&event, K_OPEN);
			put_number(&event, K_STREAM, i);
			put_number(&event, K_SIZE, process->stream[i].out.moved);
			close_group(&event, mark);
		}
	send_frame(&event);
	process->told = 1;
}

static int all_drained(const struct process *process)
{
	for (int i = 0; i < 4; i++)
		if (i != STDIN && !drained(&process->stream[i]))
			return 0;
	return 1;
}

static int has_streams(const struct process *process)
{
	for (int i = 0; i < 4; i++)
		if (process->stream[i].local >= 0 && i != STDIN)
			return 1;
	return 0;
}

void reap(void)
{
	int status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct process *process = processes; process; process = process->next)
			if (process->pid == pid) {
				process->status = status;
				process->state = DEAD;
				process->pid = -1; /* the number may be another's now */
				forget_stream(&process->stream[STDIN]);
			}
}

int poll_processes(struct pollfd *polled, int room)
{
	int used = 0;
	for (struct process *process = processes; process; process = process->next) {
		process->slot_report = -1;
		for (int i = 0; i < 4; i++)
			process->stream[i].slot_local = process->stream[i].slot_remote = -1;
		if (used + 9 > room)
			continue;
		if (process->report >= 0) {
			process->slot_report = used;
			polled[used++] = (struct pollfd){process->report, POLLIN, 0};
		}
		for (int i = 0; i < 4; i++)
			used = poll_stream(&process->stream[i], polled, used);
	}
	return used;
}

void serve_processes(const struct pollfd *polled)
{
	struct process *next;
	for (struct process *process = processes; process; process = process->next) {
		if (process->slot_report >= 0 && polled[process->slot_report].revents)
			hear(process);
		for (int i = 0; i < 4; i++)
			serve_stream(&process->stream[i], polled);
	}
	for (struct process *process = processes; process; process = next) {
		next = process->next;
		if (process->state != DEAD)
			continue;
		if (process->report >= 0)
			hear(process); /* said before it ended */
		if (process->report >= 0)
			continue;
		if (process->task || (process->told && !process->first && !has_streams(process))) {
			forget(process);
			continue;
		}
		if (!process->told && all_drained(process))
			tell_end(process);
	}
}

void delete_container(uint32_t id, struct fields fields)
{
	uint64_t name = number_of(fields, K_CONTAINER, 0);
	struct process *container = container_of(name), *next;
	if (!container || container->state != DEAD) {
		refuse(id, container ? BAD_REQUEST : NO_SUCH_PROCESS, container ? EBUSY : ESRCH, "delete the container", NULL);
		return;
	}
	for (struct process *process = processes; process; process = next) {
		next = process->next;
		if (process->container == name && process->state == DEAD && (process->first || process->told))
			forget(process);
	}
	reply(id);
}

void signal_process(uint32_t id, struct fields fields)
{
	struct process *process = find_process(number_of(fields, K_PROCESS, 0));
	int signal = number_of(fields, K_SIGNAL, 0);
	if (!process || process->state == DEAD) {
		refuse(id, NO_SUCH_PROCESS, ESRCH, "kill", NULL);
		return;
	}
	if (number_of(fields, K_ALL, 0) && process->cgroup) {
		struct failure failure;
		if (signal_cgroup(process->cgroup, signal, &failure) < 0)
			reply_failure(id, &failure);
		else
			reply(id);
		return;
	}
	if (syscall(SYS_pidfd_send_signal, process->pidfd, signal, NULL, 0) < 0) {
		refuse(id, errno == ESRCH ? NO_SUCH_PROCESS : FAILED, errno, "pidfd_send_signal", NULL);
		return;
	}
	reply(id);
}

void resize(uint32_t id, struct fields fields)
{
	struct process *process = find_process(number_of(fields, K_PROCESS, 0));
	struct winsize size = {.ws_row = number_of(fields, K_ROWS, 0), .ws_col = number_of(fields, K_COLUMNS, 0)};
	if (!process || process->stream[TTY].local < 0) {
		refuse(id, NO_SUCH_PROCESS, process ? ENOTTY : ESRCH, "resize", NULL);
		return;
	}
	if (ioctl(process->stream[TTY].local, TIOCSWINSZ, &size) < 0) {
		refuse(id, FAILED, errno, "TIOCSWINSZ", NULL);
		return;
	}
	reply(id);
}

static struct stream *stream_of(struct fields fields, struct process **process)
{
	uint64_t kind = number_of(fields, K_STREAM, 99), name = number_of(fields, K_PROCESS, 0);
	for (*process = processes; *process; *process = (*process)->next)
		if ((*process)->id == name && !(*process)->task)
			break;
	return *process && kind <= TTY ? &(*process)->stream[kind] : NULL;
}

/* The host will neither send nor take any more: the process meets end of file, or a broken pipe. */
void close_stream(uint32_t id, struct fields fields)
{
	struct process *process;
	struct stream *stream = stream_of(fields, &process);
	if (!stream) {
		refuse(id, NO_SUCH_PROCESS, ESRCH, "close the stream", NULL);
		return;
	}
	forget_stream(stream);
	reply(id);
}

/* New connections for streams whose old ones broke, as all do when a saved machine is restored. */
void attach(uint32_t id, struct fields fields)
{
	struct process *process;
	struct stream *stream = stream_of(fields, &process);
	if (!stream || stream->local < 0) {
		refuse(id, NO_SUCH_PROCESS, stream ? EPIPE : ESRCH, "attach", NULL);
		return;
	}
	int remote = dial_stream(process->id, number_of(fields, K_STREAM, 0));
	if (remote < 0) {
		refuse(id, FAILED, errno, "connect", NULL);
		return;
	}
	if (stream->remote >= 0)
		close(stream->remote);
	stream->remote = remote;
	stream->out.moved = 0;
	nonblocking(remote);
	if (stream != &process->stream[STDOUT] && stream != &process->stream[STDERR])
		stream->in.ended = 0;
	reply(id);
}

/* The host went, or another has taken its place: nobody waits for answers any more. */
void connection_lost(void)
{
	for (struct process *process = processes; process; process = process->next)
		process->waiting = 0;
}
