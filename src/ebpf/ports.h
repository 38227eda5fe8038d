// Ports of a VIP that a pod has under another number (80:8080/tcp). What a host veth lets through to the pod gets the pod's number as
// its destination, what comes from the pod the VIP's as its source, and ICMP errors likewise in the packet that they quote. Nothing
// is remembered (but where several ports have one number in the pod: shared.h): the pod's entry says it all. Everywhere else, to every other program and map, a flow is what the wire shows; only
// who asks a pod's sockets for it asks by the pod's number, which may differ from replica to replica.
//
// A number that is neither is the same on both sides. One that a pod has in another one's place is closed on the VIP, and one that the
// VIP has in another one's place never comes from the pod: else two flows were one.
#ifndef VIPROUTE_PORTS_H
#define VIPROUTE_PORTS_H

// The way of a packet past a host veth.
enum { INTO_POD, OUT_OF_POD };

struct translation_key {
	__u32 ifindex;	// the host veth
	__be32 vip;
	__u32 number;	// protocol << 16 | port
	__u32 way;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct translation_key);
	__type(value, __u32);	// what the other side has in its place, in network order; 0: nothing
} translations_v1 SEC(".maps");

// What the other side has in a port's place, in network order; 0: nothing.
verified_alone int counterpart(__u32 ifindex, __u32 vip, __u32 number, __u32 way)
{
	struct translation_key key = { .ifindex = ifindex, .vip = vip, .number = number, .way = way };
	const __u32 *other = bpf_map_lookup_elem(&translations_v1, &key);
	return other ? (__be16)*other : htons(number & 0xffff);
}

#include "shared.h"

// (A function of its own: its caller has no room for the key.) `flags`: the replica's.
verified_alone int port_there(struct packet *p, __u32 flags, __u32 ifindex, __u32 protocol)
{
	if (!p)
		return 0;
	__be16 port = counterpart(ifindex, p->flow.vip, numbered(protocol, p->flow.vip_port), INTO_POD);
	if (ASKS_NOTES == 0 || !port || !(flags & SHARES))
		return port;
	__be16 noted = noted_port(ifindex, p->flow.vip, p->flow.client, both(p->flow.client_port, port), protocol);
	return noted && noted != p->flow.vip_port ? OCCUPIED | port : port;
}

// The number by which the sockets of a replica, or member, with these flags are asked for the packet's flow; 0, which no socket has:
// it doesn't serve it. OCCUPIED: of this flow they have nothing.
static inline_always __u32 port_at(struct packet *p, __u32 flags, __u32 ifindex, __u32 protocol)
{
	return flags & TRANSLATES ? (__u32)port_there(p, flags, ifindex, protocol) : p->flow.vip_port;
}

// The same as a lease has it.
static inline_always __u32 leased_port(struct packet *p, __u32 flags, __u32 ifindex, __u32 protocol)
{
	__be16 port = (__be16)port_at(p, flags, ifindex, protocol);
	if (flags & SHARES && shared_target(ifindex, p->flow.vip, numbered(protocol, port)))
		return NOTED | port;
	return port;
}

// Where a packet has the port that gets another number.
struct place {
	__u32 at;
	__u32 check;	// the checksum that has it in its sum
	__u32 protocol;
};

static inline_always __u32 checksum_at(__u32 protocol)
{
	return protocol == IPPROTO_UDP ? __builtin_offsetof(struct udphdr, check) : __builtin_offsetof(struct tcphdr, check);
}

// In the packet that an ICMP error quotes, which went the other way. Where its checksum is quoted too, and changes with the port, the
// error's own stays. Not 0: it quotes none.
static inline_always int find_quoted_port(struct __sk_buff *skb, const struct iphdr *ip, __u32 way, struct place *place)
{
	struct iphdr quoted;
	__u32 error = place->at, start = error + ICMP_HEADER;
	__be16 check;
	__u8 type;
	if (load_within(skb, ip, error, &type, sizeof(type)))
		return -1;
	if (type != ICMP_DEST_UNREACH && type != ICMP_TIME_EXCEEDED && type != ICMP_PARAMETERPROB)
		return -1;
	if (load_within(skb, ip, start, &quoted, sizeof(quoted)) || quoted.version != 4 || quoted.ihl < 5)
		return -1;
	if (way == INTO_POD ? quoted.saddr != ip->daddr : quoted.daddr != ip->saddr)
		return -1;
	if (quoted.frag_off & htons(IP_OFFSET))
		return -1;
	start += quoted.ihl * 4;
	place->protocol = quoted.protocol;
	place->at = start + (way == INTO_POD ? 0 : 2);
	place->check = start + checksum_at(quoted.protocol);
	if (load_within(skb, ip, place->check, &check, sizeof(check)) || !check)
		place->check = error + ICMP_CHECKSUM;
	return quoted.protocol != IPPROTO_TCP && quoted.protocol != IPPROTO_UDP;
}

// Where a packet has it. Not 0: it has none.
static inline_always int find_port(struct __sk_buff *skb, const struct iphdr *ip, __u32 way, struct place *place)
{
	__u32 inner = ETH_HLEN + ip->ihl * 4;
	if (ip->frag_off & htons(IP_OFFSET))
		return -1;
	place->at = inner;
	place->protocol = ip->protocol;
	if (ip->protocol == IPPROTO_ICMP)
		return find_quoted_port(skb, ip, way, place);
	place->at = inner + (way == INTO_POD ? 2 : 0);
	place->check = inner + checksum_at(ip->protocol);
	return ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP;
}

// A datagram without a checksum stays one, and one with a checksum has one that isn't 0.
static inline_always int renumber(struct __sk_buff *skb, const struct place *place, __be16 from, __be16 to)
{
	__u64 flags = sizeof(to) | (place->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	return bpf_l4_csum_replace(skb, place->check, from, to, flags) || bpf_skb_store_bytes(skb, place->at, &to, sizeof(to), 0);
}

// Where several ports have one number in the pod: which of them a flow is of is noted on the way in, and known on the way out. Not 0: it
// isn't known, or the flow can't pass.
static inline_always int tell_apart(struct __sk_buff *skb, const struct iphdr *ip, const struct place *place, __be16 from, __be16 *to,
				    __u32 way)
{
	int is_error = ip->protocol == IPPROTO_ICMP;
	struct call call = { .ifindex = skb->ifindex, .protocol = place->protocol };
	if (way == INTO_POD) {
		if (is_error)	// it quotes the VIP's port
			return 0;
		call.client = ip->saddr;
		call.vip = ip->daddr;
		call.target = *to;
		if (load_within(skb, ip, place->at - 2, &call.client_port, sizeof(call.client_port)))
			return -1;
		return note_call(skb, &call, from);
	}
	call.client = ip->daddr;
	call.vip = ip->saddr;
	call.target = from;
	if (load_within(skb, ip, is_error ? place->at - 2 : place->at + 2, &call.client_port, sizeof(call.client_port)))
		return -1;
	*to = port_of_call(&call, *to);
	return !*to;
}

// Gives a packet that passes a host veth the number that its port has on the other side. Not 0: it has none there.
static inline_always int renumbered(struct __sk_buff *skb, const struct iphdr *ip, __be32 vip, __u32 way, __u32 flags)
{
	struct place place = {};
	__be16 from = 0;
	if (find_port(skb, ip, way, &place))
		return 0;
	if (load_within(skb, ip, place.at, &from, sizeof(from)))
		return -1;
	__be16 to = counterpart(skb->ifindex, vip, numbered(place.protocol, from), way);
	if (!to || (flags & SHARES && tell_apart(skb, ip, &place, from, &to, way)))
		return -1;
	return to != from && renumber(skb, &place, from, to);
}

// The verdict on such a packet. `flags`: the replica's.
verified_alone int translate(struct __sk_buff *skb, __u32 way, __u32 flags)
{
	struct iphdr ip;
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)))
		return TC_ACT_SHOT;
	__be32 vip = way == INTO_POD ? ip.daddr : ip.saddr;
	if (!renumbered(skb, &ip, vip, way, flags))
		return TC_ACT_OK;
	count(vip, way == INTO_POD ? PORT_DENIED : EGRESS_DENIED);
	return TC_ACT_SHOT;
}

// A packet has come to a host veth, and passes to the pod.
static inline_always int delivered(struct __sk_buff *skb, const struct attached *replica, int verdict)
{
	return verdict == TC_ACT_OK && replica->flags & TRANSLATES ? translate(skb, INTO_POD, replica->flags) : verdict;
}

#endif
