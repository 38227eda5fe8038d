// Packets of IPv4 that may go straight (express.h).
#ifndef VIPROUTE_EXPRESS4_H
#define VIPROUTE_EXPRESS4_H

// Every path takes a packet of this length (RFC 791).
#define ANY_PATH 576
#define FAMILY ETH_P_IP
#define IP_HEADER sizeof(struct iphdr)

static inline_always const __u64 *secret(const struct express *x)
{
	return x->key;
}

// Multilinear hashing: of any two flows one in 2^32 keys makes either half equal, whoever chose the flows.
static inline_always __u64 hash(const struct express *x, const __u64 *k, const struct crossing *c)
{
	__u64 client = c->flow.client, vip = c->flow.vip;
	__u64 ports = (__u32)c->flow.client_port << 16 | c->flow.vip_port;
	__u64 rest = (__u32)(changes(x) << 1) | (c->protocol == IPPROTO_TCP);
	__u64 high = k[0] + k[1] * client + k[2] * vip + k[3] * ports + k[4] * rest;
	__u64 low = k[5] + k[6] * client + k[7] * vip + k[8] * ports + k[9] * rest;
	return (high & 0xffffffff00000000ULL) | low >> 32;
}

// Reads a packet that may have a lease; 0: it can't. Headers that aren't in the linear part are none of a common packet's.
static inline_always int read_crossing(struct __sk_buff *skb, struct crossing *c, int direction, __be32 vip)
{
	(void)vip;	// it is read as well
	const __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (const void *)data;
	const struct iphdr *ip = (const void *)(eth + 1);
	const struct udphdr *udp = (const void *)(ip + 1);
	if ((const void *)(udp + 1) > (const void *)end || eth->h_proto != htons(ETH_P_IP) || skb->vlan_present)
		return 0;
	if (*(const __u8 *)ip != 0x45 || ip->frag_off & (__be16)~htons(0x4000))
		return 0;
	c->protocol = ip->protocol;
	__u32 headers = sizeof(*ip);
	if (!read_transport(c, udp, end, &headers))
		return 0;
	c->last_hop = ip->ttl <= 1;
	c->length = skb->gso_size ? headers + skb->gso_size : ntohs(ip->tot_len);
	if (direction == REQUEST) {
		c->flow.client = ip->saddr;
		c->flow.vip = ip->daddr;
		c->flow.client_port = udp->source;
		c->flow.vip_port = udp->dest;
	} else {
		c->flow.client = ip->daddr;
		c->flow.vip = ip->saddr;
		c->flow.client_port = udp->dest;
		c->flow.vip_port = udp->source;
	}
	return 1;
}

// What a crossing's flow is asked by.
#define CROSSING(c) { .flow = (c)->flow }

static inline_always int is_vip(const __be32 *address)
{
	return bpf_map_lookup_elem(&vips_v3, address) != 0;
}

static inline_always int is_for_vip(const struct crossing *c)
{
	__be32 vip = c->flow.vip;
	return is_vip(&vip);
}

// A router's part: one hop less (RFC 1141). None: the headers are no longer where they were.
static inline_always struct ethhdr *forwarded(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)data;
	struct iphdr *ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)end)
		return 0;
	__u32 check = ip->check + (__u32)htons(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
	return eth;
}

// skb->priority as ip_forward() sets it: rt_tos2priority().
static inline_always void set_priority(struct __sk_buff *skb, const struct ethhdr *eth)
{
	__u8 tos = ((const struct iphdr *)(eth + 1))->tos;
	skb->priority = 0x4620 >> ((tos & 0x18) >> 1) & 0xf;
}

// Where a packet ends by its own word.
static inline_always __u32 end_of(const headers *of)
{
	return ETH_HLEN + (__u32)ntohs(of->tot_len);
}

// The port of a pod that has no socket, by an ICMP error of the pod's about a datagram to it (RFC 792); 0: it is none.
static inline_always __be16 refused_port(struct __sk_buff *skb, const headers *of)
{
	struct {
		__u8 type, code, rest[ICMP_HEADER - 2];
		struct iphdr ip;
		__be16 source, dest;
	} error;
	if (of->ihl != sizeof(*of) / 4 || peek(skb, ETH_HLEN + sizeof(*of), &error, sizeof(error)))
		return 0;
	if (error.type != ICMP_DEST_UNREACH || error.code != ICMP_PORT_UNREACH || *(__u8 *)&error.ip != 0x45 ||
	    error.ip.protocol != IPPROTO_UDP || error.ip.frag_off & htons(IP_OFFSET))
		return 0;
	return error.dest;
}

#endif
