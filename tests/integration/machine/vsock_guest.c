/* A program in the guest that uses vsock as programs do; what it finds is written to its output.
 *
 *   send N      to the host's port 1024: N bytes of a pattern, half a close; then print what comes back
 *   echo        accept one connection at port 52, send back what comes until its end
 *   refused     connect to a port that nobody listens to
 *   stop        stop receiving at port 1025 and write on; print how writing ends when the host stops receiving
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char block[65536];

static int reach(unsigned port)
{
	struct sockaddr_vm there = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&there, sizeof(there))) {
		printf("connect %u: %s\n", port, strerror(errno));
		return -1;
	}
	return fd;
}

static void send_all(long long total)
{
	int fd = reach(1024);
	long long done = 0;

	while (fd >= 0 && done < total) {
		long long count = total - done < (long long)sizeof(block) ? total - done : (long long)sizeof(block);
		for (long long at = 0; at < count; at++)
			block[at] = (char)((done + at) % 251);
		ssize_t sent = write(fd, block, count);
		if (sent < 0) {
			printf("write: %s\n", strerror(errno));
			return;
		}
		done += sent;
	}
	shutdown(fd, SHUT_WR);
	for (ssize_t got; (got = read(fd, block, sizeof(block) - 1)) > 0;) {
		block[got] = 0;
		printf("%s", block);
	}
	printf("\nsent %lld\n", done);
}

static void echo(void)
{
	struct sockaddr_vm here = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 52 };
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) || listen(listener, 4))
		printf("listen: %s\n", strerror(errno));
	printf("listening\n");
	fflush(stdout);
	int fd = accept(listener, NULL, NULL);
	long long total = 0;
	for (ssize_t got; (got = read(fd, block, sizeof(block))) > 0; total += got)
		for (ssize_t at = 0, put; at < got; at += put)
			if ((put = write(fd, block + at, got - at)) < 0) {
				printf("echo: %s\n", strerror(errno));
				return;
			}
	printf("echoed %lld\n", total);
	close(fd);
}

static void stop(void)
{
	int fd = reach(1025);
	ssize_t put = 0;

	while (fd >= 0 && (put = send(fd, block, sizeof(block), MSG_NOSIGNAL)) > 0)
		;
	printf("stopped by: %s\n", strerror(errno));
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "send"))
		send_all(atoll(argv[2]));
	else if (argc > 1 && !strcmp(argv[1], "echo"))
		echo();
	else if (argc > 1 && !strcmp(argv[1], "stop"))
		stop();
	else
		reach(9);
	return 0;
}
