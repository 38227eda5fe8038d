// A replica's own calls: the group has chosen the very pod that calls. In the pod its own address is local, so an answer to it would
// never come by the host veth. That is right for TCP where no port gets another number: the pod's loopback carries it. Everywhere else,
// of UDP always (a server that binds no address would answer from the pod's own one), the packet gets another source, STAND_IN, to which
// the pod answers as to any client; what it sends there gets the pod's own address back at the host veth, and goes home by the stack.
//
// Anybody on the network can write a pod's address as a source. What the pod itself hasn't sent is dropped: a connection begins where the
// pod has a socket that opens it; a datagram comes from a socket that is connected to the VIP, or that has another port than the one
// that gets it (a server would answer itself, and that answer again). What follows a SYN finds its connection or none, as ever; RFC 9293's
// resets are never answered.
#ifndef VIPROUTE_OWN_H
#define VIPROUTE_OWN_H

// Whether the pod has a socket that may have sent the packet to the VIP. `port`: what the pod has in the place of the flow's.
verified_alone int is_sent_there(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 own, __u32 port)
{
	if (!p)
		return 0;
	struct bpf_sock_tuple tuple = {
		.ipv4 = { p->flow.vip, own, p->flow.vip_port, p->flow.client_port },
	};
	struct bpf_sock *sk;
	int is;
	if (p->ip.protocol == IPPROTO_TCP) {
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), netns, 0);
		if (!sk)
			return 0;
		is = sk->state == BPF_TCP_SYN_SENT;
	} else {
		sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), netns, 0);
		if (!sk)
			return 0;
		is = sk->dst_ip4 || p->flow.client_port != (__be16)port;
	}
	bpf_sk_release(sk);
	return is;
}

// Writes another address in the place of the source, or the destination, with all checksums that have it in their sum.
verified_alone int exchange(struct __sk_buff *skb, __u32 field, __u32 from, __u32 to)
{
	struct iphdr ip;
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)))
		return -1;
	__u64 flags = BPF_F_PSEUDO_HDR | sizeof(to) | (ip.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	int has_ports = ip.protocol == IPPROTO_TCP || ip.protocol == IPPROTO_UDP;
	if (has_ports && !(ip.frag_off & htons(IP_OFFSET)) &&
	    bpf_l4_csum_replace(skb, after_header(&ip) + checksum_at(ip.protocol), from, to, flags))
		return -1;
	return readdress(skb, ETH_HLEN, field, from, to);
}

// The replica that has the connection, for when its packets come to another one's host veth: a search among all asks by the pod's own
// address, which such a connection isn't known by there.
static inline_always void note_own(struct __sk_buff *skb, struct packet *p)
{
	struct flow flow = p->flow;
	struct hint hint = { .ifindex = skb->ifindex };
	bpf_map_update_elem(&hints_v3, &flow, &hint, BPF_ANY);
}

// A pod's own packet is about to enter it.
verified_alone int come_home(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 own, __u32 flags)
{
	if (!p)
		return TC_ACT_SHOT;
	__u32 protocol = p->ip.protocol;
	if (protocol == IPPROTO_ICMP)	// an echo, which is answered by the loopback, or an error, which is not
		return TC_ACT_OK;
	int is_later = p->ip.frag_off & htons(IP_OFFSET), opens = 0;
	if (protocol == IPPROTO_TCP)
		opens = p->tcp.syn && !p->tcp.ack;
	else if (protocol == IPPROTO_UDP)
		opens = !is_later;
	else
		return TC_ACT_SHOT;
	if (opens && !is_sent_there(skb, p, netns, own, port_at(p, flags, skb->ifindex, protocol)))
		return TC_ACT_SHOT;
	if (!stands_in(flags, protocol))
		return TC_ACT_OK;
	if (protocol == IPPROTO_TCP && opens)
		note_own(skb, p);
	return exchange(skb, __builtin_offsetof(struct iphdr, saddr), own, STAND_IN) ? TC_ACT_SHOT : TC_ACT_OK;
}

// What the owner has decided on, of a packet from the pod itself.
static inline_always int homeward(struct __sk_buff *skb, struct packet *p, const struct attached *chosen, int verdict)
{
	if (!p->is_own || verdict != TC_ACT_OK)
		return verdict;
	verdict = come_home(skb, p, chosen->netns, chosen->own, chosen->flags);
	if (verdict != TC_ACT_OK)
		count(p->flow.vip, OWN_SOURCE);
	return verdict;
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
