// What a pod may send of its VIPs of IPv4.
#ifndef VIPROUTE_GUARD4_H
#define VIPROUTE_GUARD4_H

// Whether a packet from a pod is an answer; if not, it may begin a flow. A connection can't begin without a SYN that has no
// ACK.
static inline_always int is_answer(struct __sk_buff *skb, const struct attached *pod, const struct iphdr *ip)
{
	__u32 inner = ETH_HLEN + ip->ihl * 4;
	__u32 offset = (ntohs(ip->frag_off) & IP_OFFSET) * 8;
	if (offset)	// nothing without its first fragment; TCP's flags are never in another one (RFC 3128)
		return ip->protocol != IPPROTO_TCP || offset >= sizeof(struct tcphdr);
	struct heard key = { .flow = { .client = ip->daddr, .vip = ip->saddr }, .protocol = ip->protocol };
	struct tcphdr tcp;
	struct udphdr udp;
	__u8 type;
	switch (ip->protocol) {
	case IPPROTO_TCP:
		return !peek(skb, inner, &tcp, sizeof(tcp)) && (tcp.ack || !tcp.syn);
	case IPPROTO_ICMP:
		return !peek(skb, inner, &type, sizeof(type)) &&
		       (type == ICMP_ECHOREPLY || type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
			type == ICMP_PARAMETERPROB || type == ICMP_TIMESTAMPREPLY);
	case IPPROTO_UDP:
		if (peek(skb, inner, &udp, sizeof(udp)) || is_refused(pod, IPPROTO_UDP, udp.source))
			return 0;
		if (pod->flags & GUARDED && ip->daddr != HOST_ADDRESS)
			return 1;
		key.flow.client_port = udp.dest;
		key.flow.vip_port = udp.source;
		break;
	default:
		if (pod->flags & GUARDED)
			return 0;
	}
	return bpf_map_lookup_elem(&heard_v1, &key) != 0;
}

// A reset that answers a SYN for which the pod has no socket, though another replica listens: the socket was closed after the
// owner had seen it. It is withheld: TCP sends the SYN again, and that one goes to the other replica. Only a segment without an
// acknowledgement is answered with the sequence number 0 (RFC 9293, 3.10.7.1).
static inline_always int is_late_reset(struct __sk_buff *skb, struct attached *pod, const struct iphdr *ip)
{
	struct tcphdr tcp;
	if (ip->protocol != IPPROTO_TCP || ip->frag_off & htons(IP_MF | IP_OFFSET))
		return 0;
	if (peek(skb, ETH_HLEN + ip->ihl * 4, &tcp, sizeof(tcp)) || !tcp.rst || !tcp.ack || tcp.seq)
		return 0;
	struct packet p = {
		.flow = { .client = ip->daddr, .vip = ip->saddr, .client_port = tcp.dest, .vip_port = tcp.source },
		.self = skb->ifindex,
	};
	p.settled = 1;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p.flow.vip);
	// What the owner itself refuses comes by here, too.
	if (!v || v->count < 2 || is_refused(pod, IPPROTO_TCP, tcp.source) ||
	    ask_opening(skb, &p, pod->netns, port_at(&p, pod->flags, p.self, IPPROTO_TCP)))
		return 0;
	struct grant grant = {};
	if (!allowed(&grant, FOR_SYNS, p.flow.vip))
		return 0;
	struct found found;
	clear(skb, &found);
	int there = search_opening(skb, &p, v, &found);
	charge(&grant, v->count);
	return there != NOTHING;
}

SEC("classifier")
int guard(struct __sk_buff *skb)
{
	// What is IPv6 guard6 has had before, and neighbours are permanent on both sides: nothing but IPv4 has business here.
	if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return TC_ACT_SHOT;
	struct iphdr ip;
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return TC_ACT_SHOT;
	struct attached *pod = is_number(ip.saddr) ? 0 : attached(skb->ifindex, ip.saddr);
	if (!pod) {
		dropped(skb->ifindex, 1);
		return TC_ACT_SHOT;
	}
	if (pod->flags & TRANSLATES && !has_left(skb) && translate(skb, OUT_OF_POD, pod->flags) != TC_ACT_OK)
		return TC_ACT_SHOT;
	if (WITHHOLDS_RESETS && is_late_reset(skb, pod, &ip)) {
		count(ip.saddr, RESET_WITHHELD);
		return TC_ACT_SHOT;
	}
	if (pod->flags & ANY_EGRESS || is_answer(skb, pod, &ip))
		return ip.daddr == STAND_IN ? go_home(skb, pod->own) : leave(skb, &ip);
	count(ip.saddr, EGRESS_DENIED);
	return TC_ACT_SHOT;
}

#endif
