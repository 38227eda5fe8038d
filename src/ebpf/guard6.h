// What a pod may send of its VIPs of IPv6, as owner.bpf.c has it for IPv4.
#ifndef VIPROUTE_GUARD6_H
#define VIPROUTE_GUARD6_H

// Whether a packet from a pod is an answer; if not, it may begin a flow. A first fragment that hasn't all headers is none (RFC 7112): what is
// behind its length would be read in their place, and the rest of them would follow in fragments that nothing can be known of.
static inline_always int is_answer(struct __sk_buff *skb, const struct attached *pod, const struct packet *p)
{
	__u32 offset = p->offset & FRAGMENT_OFFSET;
	if (offset)	// nothing without its first fragment; TCP's flags are never in another one
		return p->protocol != IPPROTO_TCP || offset >= sizeof(struct tcphdr);
	struct heard key = { .flow = p->flow, .protocol = p->protocol };
	struct tcphdr tcp;
	struct udphdr udp;
	__u8 type;
	switch (p->protocol) {
	case IPPROTO_TCP:
		return !load(skb, p, p->inner, &tcp, sizeof(tcp)) && (tcp.ack || !tcp.syn);
	case IPPROTO_ICMPV6:
		return !load(skb, p, p->inner, &type, sizeof(type)) &&
		       (type == ICMPV6_ECHO_REPLY || (type && type <= ICMPV6_PARAMPROB));
	case IPPROTO_UDP:
		if (load(skb, p, p->inner, &udp, sizeof(udp)) || is_refused(pod, IPPROTO_UDP, udp.source))
			return 0;
		if (pod->flags & GUARDED)
			return 1;
		key.flow.client_port = udp.dest;
		key.flow.vip_port = udp.source;
		break;
	default:	// among them what is behind headers that can't be read: it may be a SYN
		if (pod->flags & GUARDED || p->protocol == IPPROTO_RAW)
			return 0;
	}
	return bpf_map_lookup_elem(&heard_v1, &key) != 0;
}

// A reset that answers a SYN for which the pod has no socket, though another replica listens (is_late_reset() of IPv4).
static inline_always int is_late_reset(struct __sk_buff *skb, struct attached *pod, struct packet *p)
{
	struct tcphdr tcp;
	if (p->protocol != IPPROTO_TCP || p->in_fragments)
		return 0;
	if (load(skb, p, p->inner, &tcp, sizeof(tcp)) || !tcp.rst || !tcp.ack || tcp.seq)
		return 0;
	p->flow.client_port = tcp.dest;
	p->flow.vip_port = tcp.source;
	p->settled = 1;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	if (!v || v->count < 2 || is_refused(pod, IPPROTO_TCP, tcp.source) ||
	    ask_opening(skb, p, pod->netns, port_at(p, pod->flags, p->self, IPPROTO_TCP)))
		return 0;
	struct grant grant = {};
	if (!allowed(&grant, FOR_SYNS, p->flow.vip))
		return 0;
	struct found found;
	clear(skb, &found);
	int there = search_opening(skb, p, v, &found);
	charge(&grant, v->count);
	return there != NOTHING;
}

// What a pod's kernel sends unasked: it leaves groups (MLD) and looks for neighbours and routers, from `::` or a link-local address.
// Neighbours are permanent on both sides.
static inline_always int is_of_link(const struct ipv6 *source)
{
	return is_none(source) || (source->w[0] & htonl(0xffc00000)) == htonl(0xfe800000);
}

// (By itself: it is the last thing that the guard does, and needs as much of the stack as all before.)
verified_alone int leave_pod(struct __sk_buff *skb, struct packet *p)
{
	return p ? leave(skb, p) : TC_ACT_SHOT;
}

SEC("classifier")
int guard6(struct __sk_buff *skb)
{
	struct packet p = {};
	struct attached *pod = read_answer(skb, &p) ? 0 : attached(skb->ifindex, p.flow.vip);
	if (!pod) {
		if (!is_of_link(&p.address))
			dropped(skb->ifindex, 1);
		return TC_ACT_SHOT;
	}
	if (pod->flags & TRANSLATES && !has_left(skb) && translate(skb, &p, OUT_OF_POD, pod->flags) != TC_ACT_OK)
		return TC_ACT_SHOT;
	if (is_late_reset(skb, pod, &p)) {
		count(p.flow.vip, RESET_WITHHELD);
		return TC_ACT_SHOT;
	}
	p.flow.client_port = 0;
	p.flow.vip_port = 0;
	if (pod->flags & ANY_EGRESS || is_answer(skb, pod, &p))
		return is_stand_in(&p.flow.client) ? go_home(skb, &p) : leave_pod(skb, &p);
	count(p.flow.vip, EGRESS_DENIED);
	return TC_ACT_SHOT;
}

#endif
