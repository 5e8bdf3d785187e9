/* What a process may no more, in the container wall's order; capabilities(7), seccomp(2). */
#include "guest.h"
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define CAPABILITIES_MAX 64 /* a set has 64 bits */

static int limits(struct fields settings, struct failure *failure)
{
	struct field field;
	while (next_field(&settings, &field) > 0) {
		if (field.key != K_RLIMIT)
			continue;
		struct field part[3];
		uint64_t limit[2];
		for (int i = 0; i < 3; i++)
			part[i] = (struct field){0, field.data + 8 * i, 8};
		limit[0] = number(&part[1]);
		limit[1] = number(&part[2]);
		if (syscall(SYS_prlimit64, 0, (int)number(&part[0]), limit, NULL) < 0)
			return fail(failure, FAILED, "prlimit64", NULL);
	}
	return 0;
}

static int groups(struct fields settings, struct failure *failure)
{
	gid_t *list = malloc(LIST_MAX * sizeof *list);
	size_t count = 0;
	struct field field;
	while (list && next_field(&settings, &field) > 0)
		if (field.key == K_GROUP && count < LIST_MAX)
			list[count++] = number(&field);
	if (!list || syscall(SYS_setgroups, count, list) < 0)
		return fail(failure, FAILED, "setgroups", NULL);
	free(list);
	return 0;
}

static int filter(struct fields settings, struct failure *failure)
{
	struct field field;
	if (!find(settings, K_SECCOMP, &field))
		return 0;
	/* Aligned, which the frame is not. */
	struct sock_filter *program = malloc(field.size ? field.size : 1);
	if (!program)
		return fail(failure, FAILED, "seccomp", NULL);
	memcpy(program, field.data, field.size);
	struct sock_fprog whole = {field.size / sizeof *program, program};
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, (unsigned)number_of(settings, K_SECCOMP_FLAGS, 0), &whole) < 0)
		return fail(failure, FAILED, "seccomp", NULL);
	free(program);
	return 0;
}

static int drop_bounding(uint64_t keep, struct failure *failure)
{
	for (int bit = 0; bit < CAPABILITIES_MAX; bit++)
		if (!(keep >> bit & 1) && prctl(PR_CAPBSET_DROP, bit, 0, 0, 0) < 0) {
			if (errno == EINVAL)
				break; /* beyond the kernel's last one */
			return fail(failure, FAILED, "PR_CAPBSET_DROP", NULL);
		}
	return 0;
}

static int capabilities(struct fields settings, struct failure *failure)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[2];
	if (syscall(SYS_capget, &header, sets) < 0)
		return fail(failure, FAILED, "capget", NULL);
	uint64_t held = sets[0].permitted | (uint64_t)sets[1].permitted << 32;
	uint64_t permitted = number_of(settings, K_PERMITTED, 0) & held;
	uint64_t inheritable = number_of(settings, K_INHERITABLE, 0) & held;
	uint64_t effective = number_of(settings, K_EFFECTIVE, 0) & permitted;
	uint64_t ambient = number_of(settings, K_AMBIENT, 0) & permitted & inheritable;
	sets[0] = (struct __user_cap_data_struct){effective, permitted, inheritable};
	sets[1] = (struct __user_cap_data_struct){effective >> 32, permitted >> 32, inheritable >> 32};
	if (syscall(SYS_capset, &header, sets) < 0)
		return fail(failure, FAILED, "capset", NULL);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return fail(failure, FAILED, "PR_CAP_AMBIENT", NULL);
	for (int bit = 0; bit < CAPABILITIES_MAX; bit++)
		if (ambient >> bit & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit, 0, 0) < 0)
			return fail(failure, FAILED, "PR_CAP_AMBIENT_RAISE", NULL);
	return 0;
}

/* The calls themselves and not libc's functions, which would look for threads to do the same. */
int confine(struct fields settings, struct failure *failure)
{
	struct field field;
	unsigned uid = number_of(settings, K_UID, 0), gid = number_of(settings, K_GID, 0);
	int quiet = number_of(settings, K_NO_NEW_PRIVILEGES, 0) != 0;
	int bounded = find(settings, K_BOUNDING, &field);
	uint64_t bounding = bounded ? number(&field) : 0;
	if (find(settings, K_NICE, &field) && setpriority(PRIO_PROCESS, 0, (int)number(&field)) < 0)
		return fail(failure, FAILED, "setpriority", NULL);
	if (limits(settings, failure) < 0)
		return -1;
	if (find(settings, K_UMASK, &field))
		umask(number(&field));
	if (groups(settings, failure) < 0 || (!quiet && filter(settings, failure) < 0))
		return -1;
	if (bounded && drop_bounding(bounding, failure) < 0)
		return -1;
	if (syscall(SYS_setresgid, gid, gid, gid) < 0)
		return fail(failure, FAILED, "setresgid", NULL);
	/* Leaving uid 0 would clear the permitted set; what is to stay is set just below. */
	if (uid && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		return fail(failure, FAILED, "PR_SET_KEEPCAPS", NULL);
	if (syscall(SYS_setresuid, uid, uid, uid) < 0)
		return fail(failure, FAILED, "setresuid", NULL);
	if (bounded && capabilities(settings, failure) < 0)
		return -1;
	if (quiet && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return fail(failure, FAILED, "PR_SET_NO_NEW_PRIVS", NULL);
	return quiet ? filter(settings, failure) : 0;
}
