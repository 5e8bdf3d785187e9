/*
 * Names: what programs ask 127.0.0.11 is asked by the host at the same address of the network that it joined.
 *
 * An engine puts its resolver there, on the loopback of the namespace that it made, and names it in resolv.conf. A
 * guest's loopback is its own. So datagrams go over one connection, each behind its length (two bytes, the higher first)
 * and with another id, by which the answer finds who asked.
 *
 * Who asks over TCP, as programs do when an answer was too long for a datagram, has a connection of his own to the host's
 * next port, and a small process that carries bytes between the two.
 */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define ADDRESS 0x7f00000b
#define PORT 53
#define MESSAGE_MAX 4096 /* of DNS over UDP with the largest size that resolvers offer (RFC 6891) */
#define HEAD 12
#define RELAYS_MAX 16
#define ASKED_MAX 256 /* a power of two: the oldest is given up for the newest */

struct asked {
	struct sockaddr_in from;
	uint8_t id[2];
	uint16_t number;
	int open;
};

static struct asked asked[ASKED_MAX];
static uint16_t last;
static uint8_t answer[2 + 65536];
static size_t got;

static int write_whole(int fd, const uint8_t *data, size_t size)
{
	while (size) {
		ssize_t put = send(fd, data, size, MSG_NOSIGNAL);
		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -1;
		data += put;
		size -= put;
	}
	return 0;
}

/* From a program to the host. */
static int pass_on(int datagrams, int host)
{
	uint8_t message[2 + MESSAGE_MAX];
	struct asked one = {.open = 1};
	socklen_t room = sizeof one.from;
	ssize_t size = recvfrom(datagrams, message + 2, MESSAGE_MAX, 0, (void *)&one.from, &room);
	if (size < HEAD)
		return 0;
	memcpy(one.id, message + 2, 2);
	one.number = ++last;
	asked[one.number % ASKED_MAX] = one;
	message[0] = size >> 8;
	message[1] = size;
	message[2] = one.number >> 8;
	message[3] = one.number;
	return write_whole(host, message, 2 + size);
}

/* Whole answers to those who asked; what is left of the next stays. */
static int give_back(int datagrams, int host)
{
	ssize_t more = read(host, answer + got, sizeof answer - got);
	if (more <= 0)
		return more < 0 && errno == EINTR ? 0 : -1;
	got += more;
	for (;;) {
		size_t size = got < 2 ? 0 : answer[0] << 8 | answer[1];
		if (got < 2 || got < 2 + size)
			return 0;
		if (size >= HEAD) {
			uint16_t number = answer[2] << 8 | answer[3];
			struct asked *one = &asked[number % ASKED_MAX];
			if (one->open && one->number == number) {
				memcpy(answer + 2, one->id, 2);
				sendto(datagrams, answer + 2, size, MSG_DONTWAIT, (void *)&one->from, sizeof one->from);
				one->open = 0;
			}
		}
		got -= 2 + size;
		memmove(answer, answer + 2 + size, got);
	}
}

/* Keeps these two descriptors, as 3 and 4, and no other. */
static void keep(int one, int two)
{
	int first = fcntl(one, F_DUPFD, 5), second = fcntl(two, F_DUPFD, 5);
	if (first < 0 || second < 0 || dup2(first, 3) < 0 || dup2(second, 4) < 0)
		_exit(1);
	syscall(SYS_close_range, 5, ~0u, 0);
}

/* Bytes both ways, until the host has ended or the program is gone. */
static void carry(int program, int host)
{
	struct pollfd polled[2] = {{.fd = program, .events = POLLIN}, {.fd = host, .events = POLLIN}};
	uint8_t data[MESSAGE_MAX];
	for (;;) {
		if (poll(polled, 2, -1) < 0)
			continue;
		for (int i = 0; i < 2; i++) {
			if (!polled[i].revents)
				continue;
			ssize_t size = read(polled[i].fd, data, sizeof data);
			if (size < 0 && errno == EINTR)
				continue;
			if (size > 0 && write_whole(i ? program : host, data, size) == 0)
				continue;
			if (i || size)
				return;
			shutdown(host, SHUT_WR); /* it asks no more, and may wait for answers still */
			polled[0].fd = -1;
			polled[0].revents = 0;
		}
	}
}

/* A program calls: a process for the connection, unless there are too many. */
static void take(int listener, unsigned port)
{
	static int relays;
	int program = accept4(listener, NULL, NULL, SOCK_CLOEXEC), host;
	while (relays && waitpid(-1, NULL, WNOHANG) > 0)
		relays--;
	if (program < 0)
		return;
	pid_t pid = relays < RELAYS_MAX ? fork() : -1;
	if (pid == 0) {
		if ((host = dial_port(port)) >= 0) {
			keep(program, host);
			carry(3, 4);
		}
		_exit(0);
	}
	relays += pid > 0;
	close(program);
}

static void serve(int datagrams, int listener, unsigned port)
{
	struct pollfd polled[3] = {
		{.fd = datagrams, .events = POLLIN}, {.fd = -1, .events = POLLIN}, {.fd = listener, .events = POLLIN}
	};
	for (;;) {
		if (poll(polled, 3, -1) < 0)
			continue;
		if (polled[2].revents)
			take(listener, port + 1);
		if (polled[1].fd >= 0 && polled[1].revents && give_back(datagrams, polled[1].fd) < 0) {
			close(polled[1].fd); /* the machine goes on elsewhere; the next question calls again */
			polled[1].fd = -1;
		}
		if (!(polled[0].revents & POLLIN))
			continue;
		if (polled[1].fd < 0) {
			got = 0;
			polled[1].fd = dial_port(port);
		}
		polled[1].revents = 0;
		if (pass_on(datagrams, polled[1].fd) < 0 && polled[1].fd >= 0) {
			close(polled[1].fd);
			polled[1].fd = -1;
		}
	}
}

static int here(int kind)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(ADDRESS)}};
	int fd = socket(AF_INET, kind | SOCK_CLOEXEC, 0);
	if (fd >= 0 && bind(fd, (void *)&address, sizeof address) < 0) {
		int number = errno;
		close(fd);
		errno = number;
		return -1;
	}
	return fd;
}

/* A child that serves for as long as the guest runs. The loopback is up. */
int resolve(unsigned port)
{
	int datagrams = here(SOCK_DGRAM), listener = here(SOCK_STREAM), failed = datagrams < 0 || listener < 0, number;
	pid_t pid = failed || listen(listener, RELAYS_MAX) < 0 ? -1 : fork();
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		keep(datagrams, listener);
		serve(3, 4, port);
	}
	number = errno;
	close(datagrams);
	close(listener);
	errno = number;
	return pid < 0 ? -1 : 0;
}
