/* The loop: frames from the host, ends of children, bytes of streams. */
#include "guest.h"
#include <linux/vm_sockets.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <time.h>

#define DIAL_SECONDS 30 /* as long as the host waits for an answer */
#define RECONNECT_MAX 500 /* tries, 20 ms apart: a restored machine's monitor is there long before */
#define POLLED_MAX (2 + 9 * PROCESSES_MAX)

const char *socket_path;
uint8_t token[TOKEN_SIZE];
static int host = -1, welcomed;

/* A connection to the host; blocking, so that it is there or is not. */
int dial(void)
{
	return dial_port(HOST_PORT);
}

int dial_port(unsigned port)
{
	int fd = socket(socket_path ? AF_UNIX : AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0), failed;
	struct sockaddr_un path = {.sun_family = AF_UNIX};
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
	if (fd < 0)
		return -1;
	if (socket_path) {
		if (port == HOST_PORT)
			strncpy(path.sun_path, socket_path, sizeof path.sun_path - 1);
		else
			snprintf(path.sun_path, sizeof path.sun_path, "%s.%u", socket_path, port);
		failed = connect(fd, (void *)&path, sizeof path);
	} else {
		/* A host that has other things to do answers late; the kernel's own patience is two seconds. */
		setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &(struct timeval){DIAL_SECONDS, 0}, sizeof(struct timeval));
		failed = connect(fd, (void *)&address, sizeof address);
	}
	if (failed < 0) {
		int number = errno;
		close(fd);
		errno = number;
		return -1;
	}
	return fd;
}

static int write_frame(int fd, struct out *out)
{
	size_t size = out->size - HEADER_SIZE, sent = 0;
	if (out->failed || fd < 0)
		return errno = EMSGSIZE, -1;
	for (int i = 0; i < 4; i++)
		out->data[i] = size >> 8 * i;
	while (sent < out->size) {
		ssize_t put = send(fd, out->data + sent, out->size - sent, MSG_NOSIGNAL);
		if (put < 0 && errno != EINTR)
			return -1;
		sent += put > 0 ? put : 0;
	}
	return 0;
}

int dial_stream(uint64_t process, unsigned stream)
{
	struct out frame = {.max = 256};
	int fd = dial();
	if (fd < 0)
		return -1;
	header(&frame, STREAM, 0);
	put(&frame, K_TOKEN, token, sizeof token);
	put_number(&frame, K_PROCESS, process);
	put_number(&frame, K_STREAM, stream);
	if (write_frame(fd, &frame) < 0) {
		close(fd);
		fd = -1;
	}
	free(frame.data);
	return fd;
}

/* A frame that does not fit is replaced by an error, so that nobody waits for ever. */
void send_frame(struct out *out)
{
	int lost = write_frame(host, out) < 0 && errno != EMSGSIZE;
	if (lost)
		shutdown(host, SHUT_RDWR); /* the loop meets the end */
	free(out->data);
	out->data = NULL;
}

void reply(uint32_t id)
{
	struct out out = {.max = 64};
	header(&out, REPLY, id);
	send_frame(&out);
}

void reply_failure(uint32_t id, const struct failure *failure)
{
	struct out out = {.max = 2048};
	header(&out, ERROR, id);
	put_number(&out, K_KIND, failure->kind);
	put_number(&out, K_ERRNO, failure->number);
	put_text(&out, K_OPERATION, failure->operation);
	put_text(&out, K_PATH, failure->path);
	send_frame(&out);
}

/* To the host when there is one, else to the kernel's log: only for what went wrong. */
void note(const char *format, ...)
{
	char text[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (welcomed) {
		struct out out = {.max = 1024};
		header(&out, LOG, 0);
		put_text(&out, K_TEXT, text);
		send_frame(&out);
		return;
	}
	int fd = open(socket_path ? "/dev/stderr" : "/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		dprintf(fd, "%smamushka: %s\n", socket_path ? "" : "<3>", text); /* an error: also shown where it is quiet */
		close(fd);
	}
}

static void greet(void)
{
	struct out out = {.max = 1024};
	struct utsname name;
	uname(&name);
	header(&out, HELLO, 0);
	put_number(&out, K_VERSION, VERSION);
	put_number(&out, K_FEATURES, (cgroups ? FEATURE_CGROUPS : 0) | (socket_path ? 0 : FEATURE_VSOCK));
	put_text(&out, K_RELEASE, name.release);
	put_text(&out, K_MACHINE, name.machine);
	if (welcomed)
		put(&out, K_TOKEN, token, sizeof token); /* this is the same guest, again */
	send_frame(&out);
}

static void welcome(uint32_t id, struct fields fields)
{
	struct field field;
	char *path = text_of(fields, K_CGROUPS);
	struct failure failure;
	if (number_of(fields, K_VERSION, 0) != VERSION || !find(fields, K_TOKEN, &field)) {
		errno = EPROTONOSUPPORT;
		fail(&failure, BAD_REQUEST, "understand the greeting", NULL);
		reply_failure(id, &failure);
		return;
	}
	memcpy(token, field.data, sizeof token);
	welcomed = 1;
	if (path)
		set_cgroups(path);
	free(path);
	reply(id);
}

static void answer(uint32_t id, int failed, struct failure *failure)
{
	if (failed < 0)
		reply_failure(id, failure);
	else
		reply(id);
}

static void obey(unsigned kind, uint32_t id, struct fields fields)
{
	struct failure failure = {0};
	struct out out = {.max = REPLY_MAX};
	if (!valid(fields, 0) || (!welcomed && kind != HELLO)) {
		errno = EBADMSG;
		fail(&failure, BAD_REQUEST, "understand the request", NULL);
		reply_failure(id, &failure);
		return;
	}
	switch (kind) {
	case HELLO: welcome(id, fields); break;
	case STEPS: case FILES: run_task(id, fields, kind); break;
	case NETWORK: answer(id, network(fields, &failure), &failure); break;
	case CREATE: create_process(id, fields, 0); break;
	case START: start_process(id, fields); break;
	case EXEC: create_process(id, fields, 1); break;
	case SIGNAL: signal_process(id, fields); break;
	case RESIZE: resize(id, fields); break;
	case CLOSE: close_stream(id, fields); break;
	case ATTACH: attach(id, fields); break;
	case FREEZE: answer(id, freeze(fields, &failure), &failure); break;
	case UPDATE: answer(id, update(fields, &failure), &failure); break;
	case RENEW: answer(id, renew(fields, &failure), &failure); break;
	case SYNC: sync(); reply(id); break;
	case POWER: reply(id); power(number_of(fields, K_ACTION, 0));
	case DELETE: delete_container(id, fields); break;
	case READ: case PROCESSES:
		header(&out, REPLY, id);
		if ((kind == READ ? read_files : list_processes)(fields, &out, &failure) < 0)
			reply_failure(id, &failure);
		else
			send_frame(&out);
		free(out.data);
		break;
	default:
		errno = ENOSYS;
		fail(&failure, BAD_REQUEST, "understand the kind of request", NULL);
		reply_failure(id, &failure);
	}
}

/* Frames as they come; 0: the connection has ended, or said what no host says. */
static int listen_to_host(void)
{
	static uint8_t *frame;
	static size_t room, have;
	if (room - have < PUMP_SIZE) {
		uint8_t *larger = realloc(frame, room + PUMP_SIZE);
		if (!larger)
			return 0;
		frame = larger;
		room += PUMP_SIZE;
	}
	ssize_t got = recv(host, frame + have, room - have, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 1;
	if (got <= 0)
		return have = 0;
	have += got;
	size_t at = 0;
	while (have - at >= HEADER_SIZE) {
		const uint8_t *head = frame + at;
		size_t size = head[0] | head[1] << 8 | head[2] << 16 | (size_t)head[3] << 24;
		if (size > FRAME_MAX || head[6] | head[7])
			return have = 0;
		if (have - at - HEADER_SIZE < size)
			break;
		uint32_t id = head[8] | head[9] << 8 | head[10] << 16 | (uint32_t)head[11] << 24;
		obey(head[4] | head[5] << 8, id, (struct fields){head + HEADER_SIZE, head + HEADER_SIZE + size});
		at += HEADER_SIZE + size;
	}
	have -= at;
	memmove(frame, frame + at, have);
	return 1;
}

static void reconnect(void)
{
	if (host >= 0)
		close(host);
	host = -1;
	connection_lost();
	for (int tries = 0; tries < (socket_path && welcomed ? 1 : RECONNECT_MAX) && (host = dial()) < 0; tries++)
		nanosleep(&(struct timespec){0, 20000000}, NULL);
	if (host < 0) {
		welcomed = 0;
		note("no host at port %d: %s", HOST_PORT, strerror(errno));
		power(0);
	}
	greet();
}

/* A container's program that is none: it is there until nobody wants it any more. */
static int hold(void)
{
	char word;
	ssize_t got;
	while ((got = read(0, &word, 1)) > 0 || (got < 0 && errno == EINTR))
		;
	return 0;
}

int main(int count, char **arguments)
{
	static struct pollfd polled[POLLED_MAX];
	sigset_t all;
	struct signalfd_siginfo told;
	if (count > 2 && !strcmp(arguments[1], "--socket"))
		socket_path = arguments[2];
	if (count > 1 && !strcmp(arguments[1], "--hold"))
		return hold();
	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	sigprocmask(SIG_BLOCK, &all, NULL);
	signal(SIGPIPE, SIG_IGN);
	int ended = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (!socket_path)
		boot();
	reconnect();
	for (;;) {
		polled[0] = (struct pollfd){host, POLLIN, 0};
		polled[1] = (struct pollfd){ended, POLLIN, 0};
		int used = poll_processes(polled + 2, POLLED_MAX - 2);
		if (poll(polled, used + 2, -1) < 0)
			continue;
		if (polled[1].revents) {
			while (read(ended, &told, sizeof told) > 0)
				;
			reap();
		}
		serve_processes(polled + 2);
		if (polled[0].revents && !listen_to_host())
			reconnect();
	}
}
