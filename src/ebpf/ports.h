// Ports of a VIP that a pod has under another number (80:8080/tcp). What a host veth lets through to the pod gets the pod's number as
// its destination, what comes from the pod the VIP's as its source, and ICMP errors likewise in the packet that they quote. Nothing
// is remembered (but where several ports have one number in the pod: shared.h): the pod's entry says it all. Everywhere else, to every other program and map, a flow is what the wire shows; only
// who asks a pod's sockets for it asks by the pod's number, which may differ from replica to replica.
//
// A number that is neither is the same on both sides. One that a pod has in another one's place is closed on the VIP, and one that the
// VIP has in another one's place never comes from the pod: else two flows were one.
#ifndef VIPROUTE_PORTS_H
#define VIPROUTE_PORTS_H

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
	__be16 noted = noted_port(&p->flow, ifindex, port, protocol);
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

// Where a packet has the port that gets another number. In an ICMP error that is in the packet that it quotes, which went the other way.
struct place {
	__u32 at;
	__u32 check;	// the checksum that has it in its sum
	__u32 protocol;
};

static inline_always __u32 checksum_at(__u32 protocol)
{
	return protocol == IPPROTO_UDP ? __builtin_offsetof(struct udphdr, check) : __builtin_offsetof(struct tcphdr, check);
}

static inline_always int has_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

// In the packet that the ICMP error at `error` quotes, whose header with ports is at `inner`. Where its checksum is quoted too, and changes
// with the port, the error's own stays. Not 0: it has none.
static inline_always int at_quoted(struct __sk_buff *skb, const headers *of, __u32 error, __u32 inner, __u32 way, struct place *place)
{
	__be16 check;
	place->at = inner + (way == INTO_POD ? 0 : 2);
	place->check = inner + checksum_at(place->protocol);
	if (load_of(skb, of, place->check, &check, sizeof(check)) || !check)
		place->check = error + ICMP_CHECKSUM;
	return !has_ports(place->protocol);
}

// In a packet whose header with ports is at `inner`. Not 0: it has none.
static inline_always int at_header(__u32 inner, __u32 way, struct place *place)
{
	place->at = inner + (way == INTO_POD ? 2 : 0);
	place->check = inner + checksum_at(place->protocol);
	return !has_ports(place->protocol);
}

#ifdef IPV6
#include "ports6.h"
#else
#include "ports4.h"
#endif

// A datagram without a checksum stays one, and one with a checksum has one that isn't 0.
static inline_always int renumber(struct __sk_buff *skb, const struct place *place, __be16 from, __be16 to)
{
	__u64 flags = sizeof(to) | (place->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	return bpf_l4_csum_replace(skb, place->check, from, to, flags) || bpf_skb_store_bytes(skb, place->at, &to, sizeof(to), 0);
}

// Where several ports have one number in the pod: which of them a flow is of is noted on the way in, and known on the way out. Not 0: it
// isn't known, or the flow can't pass.
static inline_always int tell_apart(struct __sk_buff *skb, headers *of, const struct place *place, __be16 from, __be16 *to,
				    __u32 way)
{
	int quotes = is_icmp(of);
	struct call call = { .ifindex = skb->ifindex, .protocol = place->protocol };
	call.client = peer_of(of, way);
	call.vip = vip_of(of, way);
	if (way == INTO_POD) {
		if (quotes)	// the VIP's port
			return 0;
		call.target = *to;
		if (load_of(skb, of, place->at - 2, &call.client_port, sizeof(call.client_port)))
			return -1;
		return note_call(skb, of, &call, from);
	}
	call.target = from;
	if (load_of(skb, of, quotes ? place->at - 2 : place->at + 2, &call.client_port, sizeof(call.client_port)))
		return -1;
	*to = port_of_call(&call, *to);
	return !*to;
}

// Gives a packet that passes a host veth the number that its port has on the other side. Not 0: it has none there. (By itself where an
// address needs much of the stack.)
#ifdef IPV6
verified_alone
#else
static inline_always
#endif
int renumbered(struct __sk_buff *skb, headers *of, struct place *place, __u32 way, __u32 flags)
{
	__be16 from = 0;
	if (!of || !place || load_of(skb, of, place->at, &from, sizeof(from)))
		return -1;
	__be16 to = counterpart(skb->ifindex, vip_of(of, way), numbered(place->protocol, from), way);
	if (!to || (flags & SHARES && tell_apart(skb, of, place, from, &to, way)))
		return -1;
	return to != from && renumber(skb, place, from, to);
}

static inline_always int exchanged(struct __sk_buff *skb, headers *of, __u32 way, __u32 flags)
{
	struct place place = {};
	if (find_port(skb, of, way, &place) || !renumbered(skb, of, &place, way, flags))
		return TC_ACT_OK;
	count(vip_of(of, way), way == INTO_POD ? PORT_DENIED : EGRESS_DENIED);
	return TC_ACT_SHOT;
}

// The verdict on such a packet. `flags`: the replica's.
#ifdef IPV6
verified_alone int translate(struct __sk_buff *skb, headers *of, __u32 way, __u32 flags)
{
	return of ? exchanged(skb, of, way, flags) : TC_ACT_SHOT;
}
#else
verified_alone int translate(struct __sk_buff *skb, __u32 way, __u32 flags)
{
	headers ip;
	return peek(skb, ETH_HLEN, &ip, sizeof(ip)) ? TC_ACT_SHOT : exchanged(skb, &ip, way, flags);
}
#endif

// A packet has come to a host veth, and passes to the pod.
static inline_always int delivered(struct __sk_buff *skb, struct packet *p, const struct attached *replica, int verdict)
{
	if (verdict != TC_ACT_OK || !(replica->flags & TRANSLATES))
		return verdict;
#ifdef IPV6
	return translate(skb, p, INTO_POD, replica->flags);
#else
	(void)p;	// its header is read again: it may have another source
	return translate(skb, INTO_POD, replica->flags);
#endif
}

#endif
