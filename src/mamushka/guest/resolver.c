/*
 * Names: what programs ask 127.0.0.11 is asked by the host at the same address of the network that it joined.
 *
 * An engine puts its resolver there, on the loopback of the namespace that it made, and names it in resolv.conf. A
 * guest's loopback is its own. So datagrams go over one connection, each behind its length (two bytes, the higher first)
 * and with another id, by which the answer finds who asked.
 */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define ADDRESS 0x7f00000b
#define PORT 53
#define MESSAGE_MAX 4096 /* of DNS over UDP with the largest size that resolvers offer (RFC 6891) */
#define HEAD 12
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

static void serve(int datagrams, unsigned port)
{
	struct pollfd polled[2] = {{.fd = datagrams, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
	for (;;) {
		if (poll(polled, 2, -1) < 0)
			continue;
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

/* A child that serves for as long as the guest runs. The loopback is up. */
int resolve(unsigned port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(ADDRESS)}};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), number;
	if (fd < 0 || bind(fd, (void *)&here, sizeof here) < 0)
		return -1;
	pid_t pid = fork();
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		if (dup2(fd, 3) < 0)
			_exit(1);
		syscall(SYS_close_range, 4, ~0u, 0);
		serve(3, port);
	}
	number = errno;
	close(fd);
	errno = number;
	return pid < 0 ? -1 : 0;
}
