// What of the programs is IPv6's own, as ipv4.h has it for IPv4.
//
// Everywhere but in packets and in questions to sockets a VIP of IPv6 has a number of 32 bits in the place of its address (addresses6_v1,
// of the block 240.0.0.0/4; by is_number() no packet of IPv4 has one): the maps of VIPs, attachments, counts and shares are IPv4's own, and
// stay as small.
//
// Of extension headers (RFC 8200, 4.1) so many are walked; what lies behind more isn't known, and is treated as a protocol without ports.
#ifndef VIPROUTE_IPV6_H
#define VIPROUTE_IPV6_H

#include <linux/ipv6.h>

#define EXTENSIONS 8

// linux/icmpv6.h includes the C library's headers.
#define ICMPV6_PKT_TOOBIG 2
#define ICMPV6_PARAMPROB 4
#define ICMPV6_ECHO_REPLY 129
#define ICMP_HEADER 8
#define ICMP_CHECKSUM 2
#define IPPROTO_ERRORS IPPROTO_ICMPV6

// RFC 8200, 4.5.
#define FRAGMENT_OFFSET 0xfff8
#define FRAGMENT_MORE 1

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct ipv6);
	__type(value, __be32);	// the VIP's number
} addresses6_v1 SEC(".maps");

// 100::a9fe:7602:0:N, of the block that nothing is reached at (RFC 6666), in the place of the Nth of a pod's own addresses where the pod
// calls its VIP and is the replica that is called (own.h).
#define STAND_IN_BLOCK htonl(0x01000000)
#define STAND_IN_LINK htonl(0xa9fe7602)

// The reverse: whose a number is.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);
	__type(value, struct ipv6);
} numbers6_v1 SEC(".maps");

// So many addresses of a pod's own are known.
#define OWN 4

// `::` where it has fewer.
struct own6 {
	struct ipv6 address[OWN];
};

// Beside an attachment's entry of such a VIP.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct attached_key);
	__type(value, struct own6);
} own6_v1 SEC(".maps");

typedef struct ipv6 client_address;

// A flow as the replica's sockets know it, in the packet's direction.
struct flow {
	client_address client;
	__be32 vip;	// its number
	__be16 client_port;
	__be16 vip_port;
};

#define WORDS(address) { (address).w[0], (address).w[1], (address).w[2], (address).w[3] }

// What a namespace's sockets are asked by (`ipv6` of struct bpf_sock_tuple).
struct tuple {
	__be32 saddr[4], daddr[4];
	__be16 sport, dport;
};

_Static_assert(sizeof(struct tuple) == sizeof(((struct bpf_sock_tuple *)0)->ipv6), "");

// By a flow, with what the pod has in the place of its port.
#define TUPLE(p, port) { WORDS((p)->flow.client), WORDS((p)->address), (p)->flow.client_port, (__be16)(port) }
// And by the flow of the answers, as one that has begun it here: the pod's own.
#define REVERSE_TUPLE(p) { WORDS((p)->address), WORDS((p)->flow.client), (p)->flow.vip_port, (p)->flow.client_port }
// And by a call (shared.h).
#define CALL_TUPLE(of, call) { WORDS((call)->client), WORDS((of)->address), (call)->client_port, (call)->target }

// A datagram in fragments whose first one was handed to another replica, or to another node: the others, which name no port, follow
// it.
struct datagram {
	struct ipv6 client;
	__be32 vip;
	__be32 id;
};

// A packet on its way to a replica, or from one, as far as it is read.
struct packet {
	struct flow flow;
	struct datagram datagram;
	struct ipv6 address;	// the VIP's
	struct tcphdr tcp;	// only where the packet is TCP's own, not an error about it
	__u32 inner;		// offset of what follows the headers of IPv6
	__u32 self;		// the host veth the packet came by
	__u32 end;		// offset of what lies behind the packet; 0: it is longer than its header can say
	__u16 offset;		// of a fragment, as its header has it, in the machine's order
	__u8 protocol;		// what follows the headers of IPv6
	__u8 in_fragments;
	__u8 cookie;		// may be the end of a handshake by SYN cookie
	__u8 for_opening;	// a SYN-ACK, a RST or an error: what a socket that opens a connection may get
	__u8 first;		// first of several fragments
	__u8 held;		// the replica it has come to has its connection
	__u8 settled;		// no other replica can have answered the flow's SYN before: whoever listens gets it
	__u8 is_own;		// from the very pod that the group has chosen: by which of its own addresses, from 1 on
	__u8 policed;		// of some ports of its VIP Services ask something
	__u8 kept_here;		// it begins a flow, and is for the replicas here
};

#define PROTOCOL(p) ((p)->protocol)

static inline_always int is_fragment(const struct packet *p)
{
	return p->in_fragments;
}

static inline_always int is_later_fragment(const struct packet *p)
{
	return p->offset & FRAGMENT_OFFSET;
}

// Of which datagram the packet is a fragment is read with its header. Whether it isn't the first one.
static inline_always int read_fragment(struct packet *p)
{
	if (is_later_fragment(p))
		return 1;
	p->first = 1;
	return 0;
}

// Copies part of the packet. What lies behind its length is padding, and no part of it.
static inline_always int load(struct __sk_buff *skb, const struct packet *p, __u32 offset, void *to, __u32 len)
{
	if (p->end && offset + len > p->end)
		return -1;
	return peek(skb, offset, to, len);
}

// What is known of a packet that passes a host veth where its port is exchanged (ports.h).
typedef struct packet headers;

static inline_always int load_of(struct __sk_buff *skb, const headers *of, __u32 offset, void *to, __u32 len)
{
	return load(skb, of, offset, to, len);
}

static inline_always int is_icmp(const headers *of)
{
	return of->protocol == IPPROTO_ICMPV6;
}

static inline_always client_address peer_of(const headers *of, __u32 way)
{
	(void)way;	// it is read by it
	return of->flow.client;
}

static inline_always __be32 vip_of(const headers *of, __u32 way)
{
	(void)way;
	return of->flow.vip;
}

// No client in particular: what listens is found.
static inline_always void any_client(struct __sk_buff *skb, struct tuple *tuple)
{
	for (__u32 i = 0; i < 4; i++)
		tuple->saddr[i] = unknown(skb, 0);
	tuple->sport = unknown(skb, 0);
	(void)skb;
}

// Whether the packet brings back the cookie of a socket that listens: it is made of addresses, ports and sequence number.
static inline_always int is_cookie(struct bpf_sock *sk, struct packet *p)
{
	struct ipv6hdr ip = { .version = 6, .nexthdr = IPPROTO_TCP };
	__builtin_memcpy(&ip.saddr, &p->flow.client, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, &p->address, sizeof(ip.daddr));
	return !bpf_tcp_check_syncookie(sk, &ip, sizeof(ip), &p->tcp, sizeof(p->tcp));
}

static inline_always int is_connected(const struct bpf_sock *sk)
{
	return (sk->dst_ip6[0] | sk->dst_ip6[1] | sk->dst_ip6[2] | sk->dst_ip6[3]) != 0;
}

// What a hash is made of.
static inline_always __u32 client_of(const struct flow *flow)
{
	const __be32 *w = flow->client.w;
	return ((w[0] * 0x9e3779b1U ^ w[1]) * 0x85ebca6bU ^ w[2]) * 0xc2b2ae35U ^ w[3];
}

// The node asks with an address of its own, which is no host veth's.
static inline_always int is_from_host(const struct packet *p)
{
	(void)p;
	return 0;
}

static inline_always int is_same(const struct ipv6 *one, const struct ipv6 *other)
{
	return !((one->w[0] ^ other->w[0]) | (one->w[1] ^ other->w[1]) | (one->w[2] ^ other->w[2]) | (one->w[3] ^ other->w[3]));
}

// The number of a VIP; 0: it is none.
static inline_always __be32 number_of(const struct ipv6 *address)
{
	const __be32 *number = bpf_map_lookup_elem(&addresses6_v1, address);
	return number ? *number : 0;
}

// Goes over the extension headers behind the packet's first one, whose kind is in p->protocol. Not 0: what they lead to can't be read.
// With it a fragment's own header is read.
verified_alone int walk_headers(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return -1;
	for (__u32 i = 0; i < EXTENSIONS; i++) {
		struct {
			__u8 next, length;
			__be16 offset;
			__be32 id;
		} header;
		__u8 kind = p->protocol;
		if (kind != IPPROTO_HOPOPTS && kind != IPPROTO_ROUTING && kind != IPPROTO_DSTOPTS && kind != IPPROTO_AH &&
		    kind != IPPROTO_FRAGMENT)
			return 0;
		if (load(skb, p, p->inner, &header, sizeof(header)))
			return -1;
		p->protocol = header.next;
		if (kind == IPPROTO_AH) {
			p->inner += (header.length + 2) * 4;
		} else if (kind != IPPROTO_FRAGMENT) {
			p->inner += (header.length + 1) * 8;
		} else {
			p->inner += sizeof(header);
			p->offset = ntohs(header.offset);
			if (!(p->offset & (FRAGMENT_OFFSET | FRAGMENT_MORE)))
				continue;	// whole (RFC 6946)
			p->in_fragments = 1;
			p->datagram.id = header.id;
			if (p->offset & FRAGMENT_OFFSET)
				return 0;
		}
	}
	return -1;
}

// Where the headers of IPv6 end, and what they lead to. `next`: what follows the first one.
static inline_always void read_headers(struct __sk_buff *skb, struct packet *p, __u32 start, __u8 next)
{
	p->inner = start + sizeof(struct ipv6hdr);
	p->protocol = next;
	if (next == IPPROTO_TCP || next == IPPROTO_UDP || next == IPPROTO_ICMPV6)
		return;
	if (walk_headers(skb, p))
		p->protocol = IPPROTO_RAW;	// none that can be read
}

static inline_always int read_header(struct __sk_buff *skb, struct packet *p, struct ipv6hdr *ip)
{
	if (skb->protocol != htons(ETH_P_IPV6) || skb->vlan_present)
		return -1;
	if (peek(skb, ETH_HLEN, ip, sizeof(*ip)) || ip->version != 6)
		return -1;
	p->self = skb->ifindex;
	p->end = ip->payload_len ? ETH_HLEN + sizeof(*ip) + ntohs(ip->payload_len) : 0;
	return 0;
}

// Reads a packet that has come to a host veth. Not 0: it is none that has business there.
static inline_always int read_packet(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	if (read_header(skb, p, &ip))
		return -1;
	__builtin_memcpy(&p->flow.client, &ip.saddr, sizeof(p->flow.client));
	__builtin_memcpy(&p->address, &ip.daddr, sizeof(p->address));
	p->flow.vip = number_of((const struct ipv6 *)&ip.daddr);	// on the stack, as a key has to be
	if (!p->flow.vip)
		return -1;
	read_headers(skb, p, ETH_HLEN, ip.nexthdr);
	p->datagram.client = p->flow.client;
	p->datagram.vip = p->flow.vip;
	return 0;
}

// Reads a packet that a pod sends, as the answer to one from the other direction. Not 0: it is none of a VIP's.
static inline_always int read_answer(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	if (read_header(skb, p, &ip))
		return -1;
	__builtin_memcpy(&p->flow.client, &ip.daddr, sizeof(p->flow.client));
	__builtin_memcpy(&p->address, &ip.saddr, sizeof(p->address));
	p->flow.vip = number_of(&p->address);
	if (!p->flow.vip)
		return -1;
	read_headers(skb, p, ETH_HLEN, ip.nexthdr);
	return 0;
}

// By which of a pod's own addresses a flow of its VIP is its own, from 1 on; 0: it is another's.
verified_alone int find_own(struct flow *flow, __u32 ifindex)
{
	if (!flow)
		return 0;
	struct attached_key key = { .ifindex = ifindex, .vip = flow->vip };
	const struct own6 *own = bpf_map_lookup_elem(&own6_v1, &key);
	if (!own)
		return 0;
	for (__u32 i = 0; i < OWN; i++) {
		if (is_same(&own->address[i], &flow->client))
			return i + 1;
	}
	return 0;
}

static inline_always __u32 own_address(struct flow *flow, const struct attached *pod, __u32 ifindex)
{
	(void)pod;
	return find_own(flow, ifindex);
}

// What stands in for that one.
static inline_always client_address stand_in(__u32 own)
{
	return (client_address){ .w = { STAND_IN_BLOCK, 0, STAND_IN_LINK, htonl(own) } };
}

static inline_always int is_stand_in(const struct ipv6 *address)
{
	return address->w[0] == STAND_IN_BLOCK && !address->w[1] && address->w[2] == STAND_IN_LINK;
}

static inline_always void set_client(struct packet *p, client_address client)
{
	p->flow.client = client;
}

static inline_always int is_none(const struct ipv6 *address)
{
	return !(address->w[0] | address->w[1] | address->w[2] | address->w[3]);
}

// Whether a packet for a pod comes from no address, or from one that the pod has of ours: the kernel doesn't ask, and the pod would answer
// itself.
static inline_always int is_from_itself(const struct packet *p)
{
	struct ipv6 from = p->flow.client;
	__be32 vip = number_of(&from);
	return (vip && attached(p->self, vip)) || is_none(&from) || is_stand_in(&from);
}

#include "reset6.h"
#include "errors6.h"

#endif
