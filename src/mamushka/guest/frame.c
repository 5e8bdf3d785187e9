/* Frames and fields: bytes in, views out; nothing here trusts a length. */
#include "guest.h"

static uint64_t little(const uint8_t *data, size_t size)
{
	uint64_t value = 0;
	while (size--)
		value = value << 8 | data[size];
	return value;
}

/* 1: a field; 0: no more; -1: a length that lies. */
int next_field(struct fields *from, struct field *into)
{
	size_t left = from->end - from->at;
	if (!left)
		return 0;
	if (left < 6)
		return -1;
	size_t size = little(from->at + 2, 4);
	if (size > left - 6)
		return -1;
	*into = (struct field){little(from->at, 2), from->at + 6, size};
	from->at += 6 + size;
	return 1;
}

static int is_group(unsigned key)
{
	switch (key) {
	case K_SETTINGS: case K_STEP: case K_LINK: case K_ADDRESS: case K_ROUTE: case K_NEIGHBOUR: case K_FILE: case K_ITEM:
	case K_OPEN:
		return 1;
	}
	return 0;
}

enum { NUMBER, TEXT, BYTES };

static int type_of(unsigned key)
{
	switch (key) {
	case K_TOKEN: case K_RLIMIT: case K_SECCOMP: case K_DATA: case K_MAC: case K_NEW_MAC: case K_IP: case K_GATEWAY:
	case K_ENTROPY:
		return BYTES;
	case K_RELEASE: case K_MACHINE: case K_OPERATION: case K_PATH: case K_TEXT: case K_ROOT: case K_ARG: case K_ENV:
	case K_CWD: case K_TYPE: case K_SOURCE: case K_TARGET: case K_NAME: case K_NEW_NAME: case K_CGROUP: case K_CGROUPS:
		return TEXT;
	}
	return NUMBER;
}

/* Whether all fields, and those inside, are of their type and size. Once this holds, the rest need not ask again. */
int valid(struct fields fields, int depth)
{
	struct field field;
	int more, count = 0;
	while ((more = next_field(&fields, &field)) > 0) {
		if (++count > LIST_MAX)
			return 0;
		if (is_group(field.key)) {
			if (depth >= DEPTH_MAX || !valid(inside(&field), depth + 1))
				return 0;
		} else if (type_of(field.key) == NUMBER) {
			if (field.size != 8)
				return 0;
		} else if (type_of(field.key) == TEXT) {
			if (field.size >= STRING_MAX || memchr(field.data, 0, field.size))
				return 0;
		} else if ((field.key == K_MAC || field.key == K_NEW_MAC) ? field.size != 6
			   : (field.key == K_IP || field.key == K_GATEWAY) ? field.size != 4 && field.size != 16
			   : field.key == K_RLIMIT ? field.size != 24
			   : field.key == K_TOKEN ? field.size != TOKEN_SIZE : 0) {
			return 0;
		}
	}
	return more == 0;
}

int find(struct fields fields, unsigned key, struct field *into)
{
	while (next_field(&fields, into) > 0)
		if (into->key == key)
			return 1;
	return 0;
}

uint64_t number(const struct field *field)
{
	return little(field->data, field->size < 8 ? field->size : 8);
}

uint64_t number_of(struct fields fields, unsigned key, uint64_t otherwise)
{
	struct field field;
	return find(fields, key, &field) ? number(&field) : otherwise;
}

struct fields inside(const struct field *field)
{
	return (struct fields){field->data, field->data + field->size};
}

/* The fields inside the first such field; none where it is absent. */
struct fields group(struct fields fields, unsigned key)
{
	struct field field;
	return find(fields, key, &field) ? inside(&field) : (struct fields){NULL, NULL};
}

char *copy_text(const struct field *field)
{
	char *copy = malloc(field->size + 1);
	if (copy) {
		memcpy(copy, field->data, field->size);
		copy[field->size] = 0;
	}
	return copy;
}

/* A copy, or NULL where it is absent. */
char *text_of(struct fields fields, unsigned key)
{
	struct field field;
	return find(fields, key, &field) ? copy_text(&field) : NULL;
}

static uint8_t *grow(struct out *out, size_t size)
{
	if (out->failed)
		return NULL;
	if (size > out->max - out->size) {
		out->failed = 1;
		return NULL;
	}
	if (out->size + size > out->room) {
		size_t room = out->room ? out->room : 256;
		while (room < out->size + size)
			room *= 2;
		uint8_t *data = realloc(out->data, room);
		if (!data) {
			out->failed = 1;
			return NULL;
		}
		out->data = data;
		out->room = room;
	}
	uint8_t *place = out->data + out->size;
	out->size += size;
	return place;
}

static void store(uint8_t *place, uint64_t value, int size)
{
	for (; size--; value >>= 8)
		*place++ = value;
}

void put(struct out *out, unsigned key, const void *data, size_t size)
{
	uint8_t *place = grow(out, 6 + size);
	if (!place)
		return;
	store(place, key, 2);
	store(place + 2, size, 4);
	if (size)
		memcpy(place + 6, data, size);
}

void put_number(struct out *out, unsigned key, uint64_t value)
{
	uint8_t data[8];
	store(data, value, 8);
	put(out, key, data, 8);
}

void put_text(struct out *out, unsigned key, const char *text)
{
	put(out, key, text, strlen(text));
}

size_t open_group(struct out *out, unsigned key)
{
	put(out, key, NULL, 0);
	return out->size;
}

void close_group(struct out *out, size_t mark)
{
	if (!out->failed)
		store(out->data + mark - 4, out->size - mark, 4);
}

/* Begins a frame; send_frame fills the size in. */
void header(struct out *out, unsigned kind, uint32_t id)
{
	uint8_t *place = grow(out, HEADER_SIZE);
	if (!place)
		return;
	store(place, 0, 4);
	store(place + 4, kind, 2);
	store(place + 6, 0, 2);
	store(place + 8, id, 4);
}

/* Notes errno too; gives -1, so that a caller can return it. */
int fail(struct failure *failure, int kind, const char *operation, const char *path)
{
	failure->kind = kind;
	failure->number = errno;
	failure->operation = operation;
	strncpy(failure->path, path ? path : "", sizeof failure->path - 1);
	failure->path[sizeof failure->path - 1] = 0;
	return -1;
}
