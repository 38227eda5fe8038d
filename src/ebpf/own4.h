// A pod's own calls by IPv4: how its address and STAND_IN change places.
#ifndef VIPROUTE_OWN4_H
#define VIPROUTE_OWN4_H

// Writes another address in the place of the source, or the destination, with all checksums that have it in their sum.
verified_alone int exchange(struct __sk_buff *skb, __u32 field, __u32 from, __u32 to)
{
	struct iphdr ip;
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	__u64 flags = BPF_F_PSEUDO_HDR | sizeof(to) | (ip.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	if (has_ports(ip.protocol) && !(ip.frag_off & htons(IP_OFFSET)) &&
	    bpf_l4_csum_replace(skb, after_header(&ip) + checksum_at(ip.protocol), from, to, flags))
		return -1;
	return readdress(skb, ETH_HLEN, field, from, to);
}

// Gives what enters the pod from itself another source.
static inline_always int disguise(struct __sk_buff *skb, struct packet *p)
{
	__be32 own = p->flow.client;
	p->flow.client = stand_in(p->is_own);
	return exchange(skb, __builtin_offsetof(struct iphdr, saddr), own, STAND_IN);
}

// What a pod sends to the one that stands in for it. An ICMP error quotes that one, too; its own checksum stays, as in
// error_to_sender().
verified_alone int go_home(struct __sk_buff *skb, __u32 own)
{
	struct iphdr ip, sent;
	skb->tc_classid = 0;	// no lease: what comes home leaves by no uplink
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)))
		return TC_ACT_SHOT;
	__u32 start = after_header(&ip) + ICMP_HEADER;
	__u8 type = ICMP_ECHOREPLY;
	if (ip.protocol == IPPROTO_ICMP && !(ip.frag_off & htons(IP_OFFSET)))
		peek(skb, after_header(&ip), &type, sizeof(type));
	if (type == ICMP_DEST_UNREACH && !peek(skb, start, &sent, sizeof(sent)) && sent.saddr == STAND_IN &&
	    readdress(skb, start, __builtin_offsetof(struct iphdr, saddr), STAND_IN, own))
		return TC_ACT_SHOT;
	return exchange(skb, __builtin_offsetof(struct iphdr, daddr), STAND_IN, own) ? TC_ACT_SHOT : TC_ACT_OK;
}

#endif
