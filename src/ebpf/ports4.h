// Where a packet of IPv4 has the port that gets another number.
#ifndef VIPROUTE_PORTS4_H
#define VIPROUTE_PORTS4_H

// In the packet that an ICMP error quotes. Not 0: it quotes none.
static inline_always int find_quoted_port(struct __sk_buff *skb, const struct iphdr *ip, __u32 way, struct place *place)
{
	struct iphdr quoted;
	__u32 error = ETH_HLEN + ip->ihl * 4, start = error + ICMP_HEADER;
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
	place->protocol = quoted.protocol;
	return at_quoted(skb, ip, error, start + quoted.ihl * 4, way, place);
}

// Not 0: the packet has none.
static inline_always int find_port(struct __sk_buff *skb, const struct iphdr *ip, __u32 way, struct place *place)
{
	if (ip->frag_off & htons(IP_OFFSET))
		return -1;
	if (ip->protocol == IPPROTO_ICMP)
		return find_quoted_port(skb, ip, way, place);
	place->protocol = ip->protocol;
	return at_header(ETH_HLEN + ip->ihl * 4, way, place);
}

#endif
