// What express remembers: the leases of flows, and what it counts (express.h).
#ifndef VIPROUTE_LEASES_H
#define VIPROUTE_LEASES_H

#define LEASES 65536
#define KEYS 10
// Units of the leases' clock: 2^24 ns, 1/60 s.
#define CLOCK_SHIFT 24
#define CLOCK_MASK 0x7fffffff
// TCP: the replica's socket is looked up for every packet, so the lease only bounds for how long a change isn't seen that nothing
// tells of. UDP: a bucket of the VIP's group must not seem idle to the kernel (idleTimer, a second) while its flow goes straight.
#define TCP_LEASE 238	// 4 s
#define UDP_LEASE 56	// 0.94 s

// skb->tc_index: what a packet is, and 14 bits of its flow's hash.
#define BY_STACK 0x4000	// the stack carries it; where it comes out, a lease may be granted
#define CLONE 0x8000	// likewise, and its original has gone straight
#define STRAIGHT 0xc000	// it has gone straight
#define KIND 0xc000
#define PROOF 0x3fff

// Whether there is any express, and the secret of the leases' hash. viprouted alone writes the first entry. The second one's
// generation is another random number whenever anybody has changed attached_v3: leases say what that said.
struct express {
	__u64 generation;	// 0: no express. Changed at every change of the node: what was granted before is void
	__u64 key[KEYS];	// random; without it nobody can aim at another flow's place
};

enum { OF_NODE, OF_REPLICAS, GENERATIONS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATIONS);
	__type(key, __u32);
	__type(value, struct express);
} express_v1 SEC(".maps");

// One direction of a flow. Each word bears bits of the flow's hash, so words of two flows, written at the same time by two CPUs, are
// never taken for one lease.
struct way {
	__u64 from;	// tag << 32 | the device it comes in by
	__u64 to;	// tag << 32 | the device it goes out by
	__u64 when;	// short tag << 48 | longest packet the stack has carried << 32 | clock << 1 | a clone is out
	__u64 fits;	// short tag << 48 | a length that the device takes << 32 | clock, when it was asked
};

// In the place that the flow's hash gives: a flow that takes another one's place sends that one to the stack, for one packet.
struct lease {
	struct way in;		// from an uplink to a host veth
	__u64 netns;		// tag << 32 | the replica's namespace, as an id of the node's
	__u64 mac;		// short tag << 48 | the container veth's address (mac_word)
	__u64 handshake;	// tag << 32 | what acknowledges the replica's SYN
	__u64 target;		// tag << 32 | what the pod has in the place of the flow's port
	struct way out;		// from a host veth to an uplink
	__u64 destination;	// short tag << 48 | address (mac_word), as the stack wrote it
	__u64 source;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LEASES);
	__type(key, __u32);
	__type(value, struct lease);
} leases_v2 SEC(".maps");

// What went straight, as the devices count.
struct express_counts {
	__u64 in_packets;
	__u64 in_bytes;
	__u64 out_packets;
	__u64 out_bytes;
};

// By a host veth's ifindex, modulo so many: the first one that comes has the place.
#define COUNTED 4096

struct express_place {
	struct express_counts counts;
	__u64 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTED);
	__type(key, __u32);
	__type(value, struct express_place);
} express_places_v1 SEC(".maps");

// Those that found their place taken.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, COUNTED);
	__type(key, __u32);	// ifindex of the host veth
	__type(value, struct express_counts);
} express_counts_v1 SEC(".maps");

// Since when no socket of a pod has a port: datagrams to it go by the stack, which lets the owner ask another replica, until the
// stack has brought one there again. In the place that device and port give; the error that came last has it.
#define CLOSED 4096

struct closed {
	__u64 what;	// ifindex of the host veth << 16 | port
	__u64 when;	// the leases' clock
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CLOSED);
	__type(key, __u32);
	__type(value, struct closed);
} closed_v1 SEC(".maps");

// A packet of a flow that may have a lease.
struct crossing {
	struct flow flow;
#ifdef IPV6
	struct ipv6 address;	// the VIP's
#endif
	__u64 hash;
	__u32 length;		// of its longest IP packet, once it is segmented
	__be32 sequence;	// TCP's
	__be32 acknowledged;
	__u8 protocol;
	__u8 syn;
	__u8 last_hop;		// the stack must answer that it can't be forwarded
};

enum { REQUEST, ANSWER };

// TCP's or UDP's part of read_crossing(), whose octets are added to those of the headers before; 0: of another protocol, or it can't be read.
static inline_always int read_transport(struct crossing *c, const struct udphdr *udp, const __u8 *end, __u32 *headers)
{
	const struct tcphdr *tcp = (const void *)udp;
	c->syn = 0;
	if (c->protocol == IPPROTO_UDP) {
		*headers += sizeof(*udp);
		return 1;
	}
	if (c->protocol != IPPROTO_TCP || (const void *)(tcp + 1) > (const void *)end)
		return 0;
	c->syn = tcp->syn;
	c->sequence = tcp->seq;
	c->acknowledged = tcp->ack_seq;
	*headers += tcp->doff * 4;
	return 1;
}

// None: there is no express.
static inline_always struct express *express(void)
{
	__u32 zero = 0;
	struct express *x = bpf_map_lookup_elem(&express_v1, &zero);
	return x && x->generation && x->key[0] ? x : 0;
}

// What the hash of each lease has of the node's changes: other leases are void.
static inline_always __u32 changes(const struct express *x)
{
	__u32 key = OF_REPLICAS;
	const struct express *replicas = bpf_map_lookup_elem(&express_v1, &key);
	return x->generation + (replicas ? replicas->generation : 0);
}

#ifdef IPV6
#include "express6.h"
#else
#include "express4.h"
#endif

static inline_always __u64 tagged(__u64 hash, __u32 word)
{
	return (hash & 0xffffffff00000000ULL) | word;
}

static inline_always __u64 short_tag(__u64 hash)
{
	return hash << 32 & 0xffff000000000000ULL;
}

// An Ethernet address as 48 bits, and back. In a frame, and in struct attached, it begins at an even place.
static inline_always __u64 mac_word(const void *mac)
{
	const __u16 *part = mac;
	return (__u64)part[0] << 32 | (__u32)part[1] << 16 | part[2];
}

static inline_always void write_mac(void *mac, __u64 word)
{
	__u16 *part = mac;
	part[0] = word >> 32;
	part[1] = word >> 16;
	part[2] = word;
}

static inline_always __u32 proof(__u64 hash)
{
	return hash >> 16 & PROOF;
}

static inline_always struct lease *lease_of(__u64 hash)
{
	__u32 place = hash & (LEASES - 1);
	return bpf_map_lookup_elem(&leases_v2, &place);
}

static inline_always __u32 clock(void)
{
	return bpf_ktime_get_coarse_ns() >> CLOCK_SHIFT & CLOCK_MASK;
}

// Whether the device takes a packet of that length: asked once a unit of the clock.
static inline_always int fits(struct __sk_buff *skb, const struct crossing *c, struct way *way, __u32 ifindex, __u32 now)
{
	__u64 known = *(volatile __u64 *)&way->fits, tag = short_tag(c->hash);
	if ((__u32)known == now && !((known ^ tag) >> 48) && c->length <= (known >> 32 & 0xffff))
		return 1;
	__u32 mtu = 0;
	if (bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS))
		return 0;
	*(volatile __u64 *)&way->fits = tag | (__u64)c->length << 32 | now;
	return 1;
}

// The device a flow's packet goes straight to; 0: it goes by the stack. `*clone` is where to note that a clone is out, if one is
// due.
static inline_always __u32 leased(struct __sk_buff *skb, const struct crossing *c, struct way *way, __u64 **clone)
{
	__u64 to = *(volatile __u64 *)&way->to, when = *(volatile __u64 *)&way->when;
	if (way->from != tagged(c->hash, skb->ifindex) || to >> 32 != c->hash >> 32)
		return 0;
	if ((when ^ short_tag(c->hash)) >> 48)
		return 0;
	__u32 now = clock(), age = (now - (__u32)(when >> 1)) & CLOCK_MASK;
	__u32 term = c->protocol == IPPROTO_TCP ? TCP_LEASE : UDP_LEASE;
	if (age > term)
		return 0;
	if (c->length > ANY_PATH && (c->length > (when >> 32 & 0xffff) || !fits(skb, c, way, (__u32)to, now)))
		return 0;
	if (age > term / 2 && !(when & 1))
		*clone = &way->when;
	return (__u32)to;
}

// The stack has carried a packet of the flow this way. A SYN begins anew, and so reads nothing of a place that no CPU has in its cache.
static inline_always void grant(struct way *way, const struct crossing *c, __u32 from, __u32 to)
{
	__u64 tag = short_tag(c->hash), tagged_from = tagged(c->hash, from), tagged_to = tagged(c->hash, to);
	__u64 longest = c->length > 0xffff ? 0xffff : c->length;
	if (!c->syn && way->from == tagged_from && way->to == tagged_to) {
		__u64 before = *(volatile __u64 *)&way->when;
		if (!((before ^ tag) >> 48) && (before >> 32 & 0xffff) > longest)
			longest = before >> 32 & 0xffff;
	}
	*(volatile __u64 *)&way->from = tagged_from;
	*(volatile __u64 *)&way->to = tagged_to;
	*(volatile __u64 *)&way->when = tag | longest << 32 | (__u64)clock() << 1;
	*(volatile __u64 *)&way->fits = 0;
}

static inline_always struct closed *closed(__u32 ifindex, __be16 port)
{
	__u32 place = (ifindex * 31 + port) & (CLOSED - 1);
	return bpf_map_lookup_elem(&closed_v1, &place);
}

// Whether the pod has refused a datagram to that port since the lease was given.
static inline_always int refused_since(__u32 ifindex, __be16 port, __u64 when)
{
	const struct closed *last = closed(ifindex, port);
	if (!last || *(volatile __u64 *)&last->what != ((__u64)ifindex << 16 | port))
		return 0;
	__u32 now = clock(), given = (__u32)(when >> 1) & CLOCK_MASK;
	return ((now - (__u32)last->when) & CLOCK_MASK) <= ((now - given) & CLOCK_MASK);
}

// One packet of a lease asks the stack whether it would carry it still.
static inline_always void send_clone(struct __sk_buff *skb, const struct crossing *c, __u64 *when)
{
	*(volatile __u64 *)when |= 1;
	skb->tc_index = CLONE | proof(c->hash);
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
}

static inline_always struct express_counts *express_counts(__u32 ifindex)
{
	__u32 key = ifindex & (COUNTED - 1);
	struct express_place *place = bpf_map_lookup_elem(&express_places_v1, &key);
	if (place && !place->ifindex)
		place->ifindex = ifindex;
	if (place && place->ifindex == ifindex)
		return &place->counts;
	struct express_counts *counts = bpf_map_lookup_elem(&express_counts_v1, &ifindex);
	if (counts)
		return counts;
	struct express_counts none = {};
	bpf_map_update_elem(&express_counts_v1, &ifindex, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&express_counts_v1, &ifindex);
}

#endif
