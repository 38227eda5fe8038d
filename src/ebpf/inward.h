// How what comes by the tunnel gets to this node's own replicas, where none of them has its flow: by each family's own way.
#ifndef VIPROUTE_INWARD_H
#define VIPROUTE_INWARD_H

#ifdef IPV6
// Gives the packet its last hop.
static inline_always int end_here(struct __sk_buff *skb)
{
	__u8 last = 1;
	return (int)bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit), &last, sizeof(last), 0);
}

// A replica here draws, if it gets new flows. Those of a datagram's fragments that name no port draw as the others.
verified_alone int draw_ready(struct packet *p, struct vip *v, struct draw *draw, __u32 i)
{
	if (!p || !v || !draw || i >= MEMBERS)
		return 0;
	const struct member *m = &v->member[i];
	struct flow flow = p->flow;
	if (is_fragment(p))
		flow.client_port = flow.vip_port = 0;
	if (!(m->flags & DRAINING) && is_least(lot(&flow, m->ifindex), m->weight, draw))
		draw->ifindex = m->ifindex;
	return 0;
}

IN_TURN(draw_some_ready, (struct packet *p, struct vip *v, struct draw *draw, __u32 from), 0, replicas_of(v), draw_ready(p, v, draw, i))

// IPv6 has no routes by TOS, and rules cost every packet of the node: of the replicas here that get new flows (MEMBERS of them at most) the
// one that draws the best lot takes the packet, each as often as its weight says. A flow without a socket may so come to one that joins, as it may by the group of them.
verified_alone int to_group(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return TC_ACT_SHOT;
	__be32 vip = p->flow.vip;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &vip);
	if (!v)
		return TC_ACT_SHOT;
	struct draw draw = { .least = ~0ULL };
	ALL_IN_TURN(draw_some_ready(p, v, &draw, from));
	struct attached *replica = draw.ifindex ? attached(draw.ifindex, vip) : 0;
	return replica ? hand_over(skb, p, draw.ifindex, replica->mac) : TC_ACT_SHOT;
}
#else
// What the stack gets out of the tunnel is for the group of this node's replicas: to a VIP's packets with this TOS a route of its own
// leads there (src/dataplane/plan.rs). These are all the bits that Linux compares with a route's TOS (fib_dscp_masked_match(), before
// that IPTOS_RT_MASK); as a code point it is 7, which nothing is registered for.
#define INWARD_TOS 0x1c
// Of the TOS what is ECN's (RFC 3168).
#define ECN 0x03
// skb->tc_index meanwhile: the TOS it came with. (None of express's kinds.)
#define CAME_WITH 0x1800
#define CAME_WITH_MASK 0xff00

// Writes one of the 16-bit words of the IP header's first six, the one at that offset, and corrects the checksum (RFC 1624, equation 3).
static inline_always int write_word(struct __sk_buff *skb, __be16 *header, __u32 at, __be16 word)
{
	__u32 sum = (__u16)~header[5] + (__u32)(__u16)~header[at] + word;
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	header[at] = word;
	header[5] = (__be16)~sum;
	return (int)bpf_skb_store_bytes(skb, ETH_HLEN, header, 12, 0);
}

// Gives the packet another TOS; its ECN bits stay. Not 0: it can't be changed.
verified_alone int write_tos(struct __sk_buff *skb, __u32 tos)
{
	__be16 header[6];
	if (peek(skb, ETH_HLEN, header, sizeof(header)))
		return -1;
	__u32 first = ntohs(header[0]);
	return write_word(skb, header, 0, htons((first & (0xff00 | ECN)) | (tos & 0xff & ~ECN)));
}

// Gives the packet its last hop.
verified_alone int end_here(struct __sk_buff *skb)
{
	__be16 header[6];
	if (peek(skb, ETH_HLEN, header, sizeof(header)))
		return -1;
	return write_word(skb, header, 4, htons(0x0100 | (ntohs(header[4]) & 0xff)));
}

// Up the stack, where the group of this node's replicas chooses one; its host veth is told the TOS.
static inline_always int to_group(struct __sk_buff *skb, const struct packet *p)
{
	if (write_tos(skb, INWARD_TOS))
		return TC_ACT_SHOT;
	skb->tc_classid = CAME_WITH | p->ip.tos;	// TC_ACT_OK makes it skb->tc_index
	return TC_ACT_OK;
}

// What the group has chosen a replica for gets the TOS back that it came with, unless it has been given another one meanwhile. Not 0:
// it can't.
static inline_always int restore_tos(struct __sk_buff *skb, struct packet *p)
{
	__u32 sign = skb->tc_index;
	if ((sign & CAME_WITH_MASK) != CAME_WITH || !came_by_tunnel(skb))
		return 0;
	skb->tc_index = 0;
	if ((p->ip.tos & ~ECN) != INWARD_TOS)
		return 0;
	return write_tos(skb, sign & 0xff);
}

#endif

#endif
