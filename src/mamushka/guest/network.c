/* Links, addresses, routes and neighbours, by netlink messages of our own; rtnetlink(7). */
#include "guest.h"
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define ANSWER_MAX 32768

/* A request that is being written; every field of it is small, so that it cannot outgrow its room. */
struct message {
	struct nlmsghdr header;
	uint8_t body[1024];
};

static void *append(struct message *message, size_t size)
{
	size_t at = NLMSG_ALIGN(message->header.nlmsg_len);
	if (at + NLMSG_ALIGN(size) > sizeof *message)
		abort();
	message->header.nlmsg_len = at + size;
	return (uint8_t *)message + at;
}

static void attribute(struct message *message, unsigned type, const void *data, size_t size)
{
	struct rtattr *attribute = append(message, RTA_LENGTH(size));
	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(size);
	memcpy(RTA_DATA(attribute), data, size);
}

static void *begin(struct message *message, unsigned type, unsigned flags, size_t size)
{
	memset(message, 0, sizeof *message);
	message->header = (struct nlmsghdr){
		.nlmsg_len = NLMSG_HDRLEN,
		.nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags,
	};
	return append(message, size);
}

/* 0, or -1 with errno as the kernel says. */
static int ask(int route, struct message *message)
{
	static uint8_t answer[ANSWER_MAX] __attribute__((aligned(8)));
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	if (sendto(route, message, message->header.nlmsg_len, 0, (void *)&kernel, sizeof kernel) < 0)
		return -1;
	for (;;) {
		ssize_t left = recv(route, answer, sizeof answer, 0);
		if (left < 0)
			return -1;
		for (struct nlmsghdr *at = (void *)answer; NLMSG_OK(at, (size_t)left); at = NLMSG_NEXT(at, left))
			if (at->nlmsg_type == NLMSG_ERROR) {
				const struct nlmsgerr *error = NLMSG_DATA(at);
				errno = -error->error;
				return error->error ? -1 : 0;
			}
	}
}

/* The index of the link with this hardware address; by the directory of names, for there are few. */
static unsigned find_by_mac(const uint8_t *mac)
{
	struct if_nameindex *all = if_nameindex();
	unsigned found = 0;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	for (struct if_nameindex *one = all; one && one->if_index && !found; one++) {
		struct ifreq request = {0};
		strncpy(request.ifr_name, one->if_name, IFNAMSIZ - 1);
		if (fd >= 0 && ioctl(fd, SIOCGIFHWADDR, &request) == 0 && !memcmp(request.ifr_hwaddr.sa_data, mac, 6))
			found = one->if_index;
	}
	if (all)
		if_freenameindex(all);
	if (fd >= 0)
		close(fd);
	if (!found)
		errno = ENODEV;
	return found;
}

static unsigned find_link(struct fields link)
{
	struct field field;
	if (find(link, K_MAC, &field))
		return find_by_mac(field.data);
	if (find(link, K_INDEX, &field))
		return number(&field);
	char *name = text_of(link, K_NAME);
	unsigned index = name ? if_nametoindex(name) : 0;
	free(name);
	if (!index)
		errno = ENODEV;
	return index;
}

static int change_link(int route, unsigned index, struct fields link, int up)
{
	struct message message;
	struct field field;
	struct ifinfomsg *about = begin(&message, RTM_NEWLINK, 0, sizeof *about);
	about->ifi_index = index;
	about->ifi_change = IFF_UP;
	about->ifi_flags = up ? IFF_UP : 0;
	if (find(link, K_NEW_NAME, &field) && field.size < IFNAMSIZ) {
		char name[IFNAMSIZ] = {0};
		memcpy(name, field.data, field.size);
		attribute(&message, IFLA_IFNAME, name, field.size + 1);
	}
	if (find(link, K_NEW_MAC, &field))
		attribute(&message, IFLA_ADDRESS, field.data, field.size);
	if (find(link, K_MTU, &field)) {
		uint32_t mtu = number(&field);
		attribute(&message, IFLA_MTU, &mtu, sizeof mtu);
	}
	return ask(route, &message);
}

static int family(const struct field *ip)
{
	return ip->size == 4 ? AF_INET : AF_INET6;
}

static int add_address(int route, unsigned index, struct fields address)
{
	struct message message;
	struct field ip;
	if (!find(address, K_IP, &ip))
		return errno = EINVAL, -1;
	struct ifaddrmsg *about = begin(&message, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof *about);
	about->ifa_family = family(&ip);
	about->ifa_prefixlen = number_of(address, K_PREFIX, ip.size * 8);
	about->ifa_index = index;
	/* The host gave it, so nobody else has it: no time is spent on asking. */
	about->ifa_flags = about->ifa_family == AF_INET6 ? IFA_F_NODAD : 0;
	attribute(&message, IFA_LOCAL, ip.data, ip.size);
	attribute(&message, IFA_ADDRESS, ip.data, ip.size);
	if (ip.size == 4 && about->ifa_prefixlen < 31) {
		uint8_t broadcast[4];
		for (int i = 0; i < 4; i++) {
			int fixed = about->ifa_prefixlen - 8 * i;
			broadcast[i] = ip.data[i] | (fixed <= 0 ? 0xff : fixed >= 8 ? 0 : 0xff >> fixed);
		}
		attribute(&message, IFA_BROADCAST, broadcast, 4);
	}
	return ask(route, &message);
}

#define HELD_MAX 32

/* Addresses that a link has, those that a kernel gives by itself apart: a guest that goes on elsewhere has another's. */
static int list_addresses(int route, unsigned index, struct message held[HELD_MAX])
{
	static uint8_t answer[ANSWER_MAX] __attribute__((aligned(8)));
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	struct message message;
	int count = 0;
	struct ifaddrmsg *every = begin(&message, RTM_GETADDR, NLM_F_DUMP, sizeof *every);
	every->ifa_family = AF_UNSPEC;
	if (sendto(route, &message, message.header.nlmsg_len, 0, (void *)&kernel, sizeof kernel) < 0)
		return -1;
	for (;;) {
		ssize_t left = recv(route, answer, sizeof answer, 0);
		if (left < 0)
			return -1;
		for (struct nlmsghdr *at = (void *)answer; NLMSG_OK(at, (size_t)left); at = NLMSG_NEXT(at, left)) {
			const struct ifaddrmsg *found = NLMSG_DATA(at);
			if (at->nlmsg_type == NLMSG_DONE)
				return count;
			if (at->nlmsg_type == NLMSG_ERROR) {
				errno = -((const struct nlmsgerr *)NLMSG_DATA(at))->error;
				return errno ? -1 : count;
			}
			if (at->nlmsg_type != RTM_NEWADDR || found->ifa_index != index || count == HELD_MAX)
				continue;
			if (found->ifa_family == AF_INET6 && found->ifa_scope == RT_SCOPE_LINK)
				continue;
			struct ifaddrmsg *about = begin(&held[count], RTM_DELADDR, 0, sizeof *about);
			*about = *found;
			int size = IFA_PAYLOAD(at);
			for (struct rtattr *part = IFA_RTA(found); RTA_OK(part, size); part = RTA_NEXT(part, size))
				if (part->rta_type == IFA_LOCAL || part->rta_type == IFA_ADDRESS)
					attribute(&held[count], part->rta_type, RTA_DATA(part), RTA_PAYLOAD(part));
			count++;
		}
	}
}

/* Take them away. With a first address its secondary ones may have gone: that is no failure. */
static int drop_addresses(int route, unsigned index)
{
	static struct message held[HELD_MAX];
	int count;
	do {
		count = list_addresses(route, index, held);
		for (int i = 0; i < count; i++)
			if (ask(route, &held[i]) < 0 && errno != EADDRNOTAVAIL)
				return -1;
	} while (count == HELD_MAX);
	return count;
}

static int add_route(int route, unsigned index, struct fields fields)
{
	struct message message;
	struct field ip, gateway;
	if (!find(fields, K_IP, &ip))
		return errno = EINVAL, -1;
	int via = find(fields, K_GATEWAY, &gateway);
	struct rtmsg *about = begin(&message, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof *about);
	uint32_t metric = number_of(fields, K_METRIC, 0), out = index;
	about->rtm_family = family(&ip);
	about->rtm_dst_len = number_of(fields, K_PREFIX, 0);
	about->rtm_table = RT_TABLE_MAIN;
	about->rtm_protocol = RTPROT_BOOT;
	about->rtm_scope = via || ip.size == 16 ? RT_SCOPE_UNIVERSE : RT_SCOPE_LINK;
	about->rtm_type = RTN_UNICAST;
	about->rtm_flags = number_of(fields, K_ONLINK, 0) ? RTNH_F_ONLINK : 0;
	if (about->rtm_dst_len)
		attribute(&message, RTA_DST, ip.data, ip.size);
	if (via)
		attribute(&message, RTA_GATEWAY, gateway.data, gateway.size);
	if (metric)
		attribute(&message, RTA_PRIORITY, &metric, sizeof metric);
	attribute(&message, RTA_OIF, &out, sizeof out);
	return ask(route, &message);
}

static int add_neighbour(int route, unsigned index, struct fields fields)
{
	struct message message;
	struct field ip, mac;
	if (!find(fields, K_IP, &ip) || !find(fields, K_MAC, &mac))
		return errno = EINVAL, -1;
	struct ndmsg *about = begin(&message, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof *about);
	about->ndm_family = family(&ip);
	about->ndm_ifindex = index;
	about->ndm_state = NUD_PERMANENT;
	attribute(&message, NDA_DST, ip.data, ip.size);
	attribute(&message, NDA_LLADDR, mac.data, mac.size);
	return ask(route, &message);
}

/* Addresses before routes, which may need them; a gateway's hardware address before anybody asks for it. */
static int fill(int route, unsigned index, struct fields link, struct failure *failure)
{
	static const struct {
		unsigned key;
		int (*add)(int, unsigned, struct fields);
		const char *what;
	} parts[] = {
		{K_ADDRESS, add_address, "add an address"},
		{K_NEIGHBOUR, add_neighbour, "add a neighbour"},
		{K_ROUTE, add_route, "add a route"},
	};
	struct field field;
	for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
		for (struct fields again = link; next_field(&again, &field) > 0;)
			if (field.key == parts[i].key && parts[i].add(route, index, inside(&field)) < 0)
				return fail(failure, FAILED, parts[i].what, NULL);
	return 0;
}

static int bring_up(int route, struct fields link, struct failure *failure)
{
	struct field field;
	unsigned index = find_link(link);
	int renamed = find(link, K_NEW_MAC, &field) || find(link, K_NEW_NAME, &field);
	if (!index)
		return fail(failure, FAILED, "find the link", NULL);
	/* A link that is up keeps its name and address. */
	if (renamed && change_link(route, index, (struct fields){NULL, NULL}, 0) < 0)
		return fail(failure, FAILED, "take the link down", NULL);
	if (renamed && drop_addresses(route, index) < 0)
		return fail(failure, FAILED, "drop the link's addresses", NULL);
	if (change_link(route, index, link, number_of(link, K_UP, 1) != 0) < 0)
		return fail(failure, FAILED, "change the link", NULL);
	return fill(route, index, link, failure);
}

int network(struct fields fields, struct failure *failure)
{
	struct field field;
	int route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), failed = 0;
	if (route < 0)
		return fail(failure, FAILED, "socket", NULL);
	if (change_link(route, if_nametoindex("lo"), (struct fields){NULL, NULL}, 1) < 0)
		failed = fail(failure, FAILED, "bring up the loopback", NULL);
	while (!failed && next_field(&fields, &field) > 0)
		if (field.key == K_LINK)
			failed = bring_up(route, inside(&field), failure);
		else if (field.key == K_RESOLVER && resolve(number(&field)) < 0)
			failed = fail(failure, FAILED, "serve names", NULL);
	close(route);
	return failed;
}
