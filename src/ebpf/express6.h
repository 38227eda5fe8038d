// Packets of IPv6 that may go straight (express.h): those without extension headers.
#ifndef VIPROUTE_EXPRESS6_H
#define VIPROUTE_EXPRESS6_H

// Every path takes a packet of this length (RFC 8200, 5).
#define ANY_PATH 1280
#define FAMILY ETH_P_IPV6
#define IP_HEADER sizeof(struct ipv6hdr)
#define KEYS6 16
#define ICMPV6_DEST_UNREACH 1
#define ICMPV6_PORT_UNREACH 4

// The secret of the leases' hash, beside IPv4's. viprouted alone writes it.
struct secret6 {
	__u64 key[KEYS6];	// 0: there is no express for IPv6
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct secret6);
} express6_v1 SEC(".maps");

static inline_always const __u64 *secret(const struct express *x)
{
	__u32 zero = 0;
	(void)x;
	const struct secret6 *secret = bpf_map_lookup_elem(&express6_v1, &zero);
	return secret && secret->key[0] ? secret->key : 0;
}

// As IPv4's, by another secret: what it makes equal of flows of both families is as rare.
static inline_always __u64 hash(const struct express *x, const __u64 *k, const struct crossing *c)
{
	__u64 rest = (__u32)(changes(x) << 1) | (c->protocol == IPPROTO_TCP);
	__u64 ports = (__u32)c->flow.client_port << 16 | c->flow.vip_port;
	__u64 high = k[0] + k[1] * rest + k[2] * ports + k[3] * (__u64)c->flow.vip;
	__u64 low = k[8] + k[9] * rest + k[10] * ports + k[11] * (__u64)c->flow.vip;
	for (__u32 i = 0; i < 4; i++) {
		__u64 word = c->flow.client.w[i];
		high += k[4 + i] * word;
		low += k[12 + i] * word;
	}
	return (high & 0xffffffff00000000ULL) | low >> 32;
}

// Reads a packet that may have a lease; 0: it can't, or is for no VIP. `vip`: the VIP's number; 0: it is to be looked up.
static inline_always int read_crossing(struct __sk_buff *skb, struct crossing *c, int direction, __be32 vip)
{
	const __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (const void *)data;
	const struct ipv6hdr *ip = (const void *)(eth + 1);
	const struct udphdr *udp = (const void *)(ip + 1);
	if ((const void *)(udp + 1) > (const void *)end || eth->h_proto != htons(ETH_P_IPV6) || skb->vlan_present)
		return 0;
	if ((*(const __u8 *)ip & 0xf0) != 0x60 || (!ip->payload_len && !skb->gso_size))
		return 0;
	c->protocol = ip->nexthdr;
	__u32 headers = sizeof(*ip);
	if (!read_transport(c, udp, end, &headers))
		return 0;
	c->last_hop = ip->hop_limit <= 1;
	c->length = skb->gso_size ? headers + skb->gso_size : sizeof(*ip) + ntohs(ip->payload_len);
	int is_request = direction == REQUEST;
	const __be32 *client = (const __be32 *)(is_request ? &ip->saddr : &ip->daddr);
	const __be32 *address = (const __be32 *)(is_request ? &ip->daddr : &ip->saddr);
	for (__u32 i = 0; i < 4; i++) {
		c->flow.client.w[i] = client[i];
		c->address.w[i] = address[i];
	}
	c->flow.client_port = is_request ? udp->source : udp->dest;
	c->flow.vip_port = is_request ? udp->dest : udp->source;
	c->flow.vip = vip ? vip : number_of(&c->address);
	return c->flow.vip != 0;
}

// What a crossing's flow is asked by.
#define CROSSING(c) { .flow = (c)->flow, .address = (c)->address }

static inline_always int is_vip(const struct ipv6 *address)
{
	return number_of(address) != 0;
}

static inline_always int is_for_vip(const struct crossing *c)
{
	(void)c;	// or it couldn't be read
	return 1;
}

// A router's part: one hop less. None: the headers are no longer where they were.
static inline_always struct ethhdr *forwarded(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)data;
	struct ipv6hdr *ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)end)
		return 0;
	ip->hop_limit--;
	// What the link has summed of the whole packet, if it has: IPv6 has no header checksum that would even it out. The hop limit is the
	// lower byte of a word that is one less now. (Nothing is done for other packets.)
	bpf_csum_update(skb, htons(0xfffe));
	return eth;
}

// ip6_forward() leaves it as it is.
static inline_always void set_priority(struct __sk_buff *skb, const struct ethhdr *eth)
{
	(void)skb, (void)eth;
}

// Where a packet ends by its own word; 0: it can't say.
static inline_always __u32 end_of(const headers *of)
{
	return of->end;
}

// The port of a pod that has no socket, by an ICMPv6 error of the pod's about a datagram to it (RFC 4443, 3.1); 0: it is none.
static inline_always __be16 refused_port(struct __sk_buff *skb, const headers *of)
{
	__u8 kind[2];	// type, code
	__u8 first, next;	// of the packet that it quotes: the version, what follows its header
	__be16 port;
	__u32 sent = of->inner + ICMP_HEADER;
	if (of->inner != ETH_HLEN + sizeof(struct ipv6hdr) || load(skb, of, of->inner, kind, sizeof(kind)) ||
	    load(skb, of, sent, &first, sizeof(first)) || load(skb, of, sent + __builtin_offsetof(struct ipv6hdr, nexthdr), &next, sizeof(next)) ||
	    load(skb, of, sent + sizeof(struct ipv6hdr) + __builtin_offsetof(struct udphdr, dest), &port, sizeof(port)))
		return 0;
	int is_of_datagram = first >> 4 == 6 && next == IPPROTO_UDP;
	return kind[0] == ICMPV6_DEST_UNREACH && kind[1] == ICMPV6_PORT_UNREACH && is_of_datagram ? port : 0;
}

#endif
