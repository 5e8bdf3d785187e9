/*
 * Streams: each is a connection of its own, so that the transport's credit is the flow control and a half-closed
 * connection is the end of the file. What is read is kept until it is written, and meanwhile nothing more is read.
 */
#include "guest.h"
#include <sys/socket.h>

void nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void forget_stream(struct stream *stream)
{
	shut(&stream->local);
	shut(&stream->remote);
	free(stream->in.buffer);
	free(stream->out.buffer);
	stream->in = stream->out = (struct pump){.ended = 1};
}

static int wants_more(const struct pump *pump)
{
	return !pump->ended && !pump->size;
}

/* Adds what is waited for; every descriptor once. Hang-ups are only waited for where something can be done then. */
int poll_stream(struct stream *stream, struct pollfd *polled, int count)
{
	short local = 0, remote = 0;
	stream->slot_local = stream->slot_remote = -1;
	if (stream->local < 0 || stream->remote < 0)
		return count;
	if (wants_more(&stream->in))
		remote |= POLLIN;
	if (wants_more(&stream->out))
		local |= POLLIN;
	if (stream->in.size)
		local |= POLLOUT;
	if (stream->out.size)
		remote |= POLLOUT;
	if (local || (!stream->in.ended && !stream->terminal)) {
		/* Also without a wish: a pipe whose reader went says so. */
		stream->slot_local = count;
		polled[count++] = (struct pollfd){stream->local, local, 0};
	}
	if (remote) {
		stream->slot_remote = count;
		polled[count++] = (struct pollfd){stream->remote, remote, 0};
	}
	return count;
}

enum { NOTHING, MOVED, ENDED, BROKEN, UNWANTED };

/* ENDED: no more comes from there; BROKEN: it failed; UNWANTED: nothing more can go there. */
static int move(struct pump *pump, int from, int to)
{
	int moved = NOTHING;
	if (wants_more(pump)) {
		if (!pump->buffer && !(pump->buffer = malloc(PUMP_SIZE)))
			return NOTHING;
		ssize_t got = read(from, pump->buffer, PUMP_SIZE);
		if (got > 0) {
			pump->start = 0;
			pump->size = got;
			moved = MOVED;
		} else if (got == 0 || errno == EIO) { /* EIO: a terminal that nobody has open any more */
			pump->ended = 1;
			return ENDED;
		} else if (errno != EAGAIN && errno != EINTR) {
			return BROKEN;
		}
	}
	if (pump->size) {
		ssize_t put = write(to, pump->buffer + pump->start, pump->size);
		if (put > 0) {
			pump->start += put;
			pump->moved += put;
			pump->size -= put;
			moved = MOVED;
		} else if (put < 0 && errno != EAGAIN && errno != EINTR) {
			return UNWANTED;
		}
	}
	return moved;
}

/* A connection that broke was not closed: what the process has stays, for a host that attaches again. */
static void serve_output(struct stream *stream)
{
	int turns = 16; /* others have streams too */
	int moved;
	do
		moved = move(&stream->out, stream->local, stream->remote);
	while (moved == MOVED && --turns);
	if (moved == UNWANTED) {
		shut(&stream->remote);
	} else if (stream->out.ended && !stream->out.size) {
		shutdown(stream->remote, SHUT_WR);
		forget_stream(stream);
	}
}

static void serve_input(struct stream *stream)
{
	int moved = move(&stream->in, stream->remote, stream->local);
	if (moved == BROKEN)
		shut(&stream->remote);
	else if (!stream->terminal && (moved == UNWANTED || (stream->in.ended && !stream->in.size)))
		forget_stream(stream); /* the process reads no more, or is to meet the end of the file */
	else if (moved == UNWANTED)
		stream->in.size = 0;
}

void serve_stream(struct stream *stream, const struct pollfd *polled)
{
	short local = stream->slot_local >= 0 ? polled[stream->slot_local].revents : 0;
	short remote = stream->slot_remote >= 0 ? polled[stream->slot_remote].revents : 0;
	if (!(local | remote) || stream->local < 0 || stream->remote < 0)
		return;
	if (!stream->in.ended || stream->in.size) {
		if (!stream->terminal && local & POLLERR) {
			forget_stream(stream);
			return;
		}
		serve_input(stream);
	}
	if (stream->local >= 0 && stream->remote >= 0 && (!stream->out.ended || stream->out.size))
		serve_output(stream);
}

/* Whether others than the process that ended may still write: what it wrote itself has been read. */
int held(const struct stream *stream)
{
	/* poll and not FIONREAD: it also brings what is on its way through a terminal. */
	struct pollfd polled = {stream->local, POLLIN, 0};
	if (stream->local < 0 || stream->out.ended || stream->out.size)
		return 0;
	return poll(&polled, 1, 0) == 0;
}

/* Whether all that a process which ended wrote is with the host. */
int drained(const struct stream *stream)
{
	return stream->local < 0 || (stream->out.ended && !stream->out.size) || held(stream);
}
