// Where a packet of IPv6 has the port that gets another number.
#ifndef VIPROUTE_PORTS6_H
#define VIPROUTE_PORTS6_H

// In the packet that an ICMPv6 error quotes. Not 0: it quotes none.
static inline_always int find_quoted_port(struct __sk_buff *skb, struct packet *p, __u32 way, struct place *place)
{
	struct quoted quoted = {};
	if (read_quoted(skb, p, way == INTO_POD, &quoted))
		return -1;
	place->protocol = quoted.protocol;
	return at_quoted(skb, p, p->inner, quoted.at, way, place);
}

// Not 0: the packet has none.
verified_alone int find_port(struct __sk_buff *skb, struct packet *p, __u32 way, struct place *place)
{
	if (!p || !place || is_later_fragment(p))
		return -1;
	if (p->protocol == IPPROTO_ICMPV6)
		return find_quoted_port(skb, p, way, place);
	place->protocol = p->protocol;
	return at_header(p->inner, way, place);
}

#endif
