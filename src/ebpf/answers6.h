// Answers of UDP servers that bind no address, by IPv6 (answers.h). A pod has several addresses of its own there, from any of which the kernel
// may answer: a question is noted for each.
#ifndef VIPROUTE_ANSWERS6_H
#define VIPROUTE_ANSWERS6_H

// AF_INET6, without the C library's headers.
#define INET6 10

// An answer in fragments whose first one has gone by vip0: the others, which name no port, follow it.
struct answer_datagram {
	struct ipv6 client;
	struct ipv6 own;
	__be32 id;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct answer_datagram);
	__type(value, struct asked);
} answer_fragments6_v1 SEC(".maps");

// Whether a packet of IPv6 is TCP's, as most are, and has no extension header: none of the programs here has to do with it.
static inline_always int is_plain_tcp(struct __sk_buff *skb)
{
	__u8 next;
	return peek(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, nexthdr), &next, sizeof(next)) || next == IPPROTO_TCP;
}

// Reads a datagram between a client and one of the pod's own addresses, which is in the place of the VIP's; 0: it is none.
static inline_always int read_own(struct __sk_buff *skb, struct packet *p, int is_answer)
{
	struct ipv6hdr ip;
	if (is_plain_tcp(skb) || read_header(skb, p, &ip))
		return 0;
	__builtin_memcpy(&p->flow.client, is_answer ? &ip.daddr : &ip.saddr, sizeof(p->flow.client));
	__builtin_memcpy(&p->address, is_answer ? &ip.saddr : &ip.daddr, sizeof(p->address));
	read_headers(skb, p, ETH_HLEN, ip.nexthdr);
	return p->protocol == IPPROTO_UDP;
}

// The pod's own addresses; none: none is known, or the pod has left the VIP.
static inline_always const struct own6 *own_of(const struct answerer_key *of)
{
	const struct answerer *pod = bpf_map_lookup_elem(&answerers_v1, of);
	if (!pod)
		return 0;
	struct attached_key key = { .ifindex = pod->ifindex, .vip = of->vip };
	return bpf_map_lookup_elem(&own6_v1, &key);
}

static inline_always void note_asked_vip(struct __sk_buff *skb, struct packet *p, const struct answerer_key *of)
{
	__be16 ports[2];	// of the client, of the pod
	const struct own6 *own = own_of(of);
	if (!own || load(skb, p, p->inner, ports, sizeof(ports)))
		return;
	struct question question = { .client = p->flow.client, .port = ports[1], .client_port = ports[0] };
	for (__u32 i = 0; i < OWN; i++) {
		question.own = own->address[i];
		if (!is_none(&question.own))
			note_question(skb, &question, of);
	}
}

// By which of its addresses the pod has answered that question from the VIP, from 1 on; 0: it hasn't.
static inline_always __u32 answered_by(const struct own6 *own, const struct packet *p, const __be16 ports[2])
{
	for (__u32 i = 0; i < OWN; i++) {
		struct ipv6 address = own->address[i];
		const struct asked *known = asked(&address, &p->flow.client, ports[0], ports[1]);
		if (known && known->of.vip == p->flow.vip && known->flags & ANSWERED)
			return i + 1;
	}
	return 0;
}

// An ICMPv6 error about an answer that went by vip0: as IPv4's. The address is in the sum of the error's own checksum twice, in the
// pseudo-header and in the packet that it quotes.
static inline_always int error_to_sender(struct __sk_buff *skb, struct packet *p, const struct answerer_key *of)
{
	struct quoted quoted = {};
	__be16 ports[2];	// of the pod, of the client
	const struct own6 *own = own_of(of);
	if (!own || read_quoted(skb, p, 1, &quoted) || quoted.protocol != IPPROTO_UDP || load(skb, p, quoted.at, ports, sizeof(ports)))
		return TC_ACT_UNSPEC;
	if (load(skb, p, quoted.start + __builtin_offsetof(struct ipv6hdr, daddr), &p->flow.client, sizeof(p->flow.client)))
		return TC_ACT_UNSPEC;
	__u32 nth = answered_by(own, p, ports);
	if (!nth || nth > OWN)
		return TC_ACT_UNSPEC;
	struct ipv6 address = own->address[nth - 1];
	if (exchange(skb, p, quoted.start + __builtin_offsetof(struct ipv6hdr, saddr), &p->address, &address, 0) ||
	    exchange(skb, p, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr), &p->address, &address, BPF_F_PSEUDO_HDR))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

// On the vip0 of a pod with UDP ports: what comes to its VIPs.
SEC("classifier")
int udp_asked6(struct __sk_buff *skb)
{
	struct packet p = {};
	struct answerer_key of = {};
	if (is_plain_tcp(skb) || read_packet(skb, &p) || is_later_fragment(&p) || peek(skb, 0, of.mac, sizeof(of.mac)))
		return TC_ACT_UNSPEC;
	of.vip = p.flow.vip;
	if (p.protocol == IPPROTO_ICMPV6)
		return error_to_sender(skb, &p, &of);
	if (p.protocol == IPPROTO_UDP)
		note_asked_vip(skb, &p, &of);
	return TC_ACT_UNSPEC;
}

// On the pod's own interface: what comes to the pod's own addresses, by whatever name one was asked for.
SEC("classifier")
int udp_asked_own6(struct __sk_buff *skb)
{
	struct packet p = {};
	__be16 ports[2];	// of the client, of the pod
	if (!read_own(skb, &p, 0) || is_later_fragment(&p) || load(skb, &p, p.inner, ports, sizeof(ports)))
		return TC_ACT_UNSPEC;
	struct question key = { .own = p.address, .client = p.flow.client, .port = ports[1], .client_port = ports[0] };
	if (bpf_map_lookup_elem(&asked_v1, &key))
		bpf_map_delete_elem(&asked_v1, &key);
	return TC_ACT_UNSPEC;
}

// Sends an answer out by vip0, from the VIP. The neighbour there, fe80::1, is permanent.
static inline_always int answer_from(struct __sk_buff *skb, struct packet *p, const struct asked *question)
{
	__u32 vip0 = question->vip0, number = question->of.vip;
	const struct ipv6 *vip = bpf_map_lookup_elem(&numbers6_v1, &number);
	if (!vip)
		return TC_ACT_UNSPEC;
	struct ipv6 address = *vip;
	if (exchange(skb, p, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), &p->address, &address, pseudo_flags(p)))
		return TC_ACT_SHOT;
	struct bpf_redir_neigh by = { .nh_family = INET6, .ipv6_nh = { htonl(0xfe800000), 0, 0, htonl(1) } };
	return bpf_redirect_neigh(vip0, &by, sizeof(by), 0);
}

// On the pod's own interface: what the pod sends by it.
SEC("classifier")
int udp_answer6(struct __sk_buff *skb)
{
	struct packet p = {};
	__be16 ports[2];	// of the pod, of the client
	if (!read_own(skb, &p, 1))
		return TC_ACT_UNSPEC;
	struct answer_datagram datagram = { .client = p.flow.client, .own = p.address, .id = p.datagram.id };
	if (is_later_fragment(&p)) {
		const struct asked *with = bpf_map_lookup_elem(&answer_fragments6_v1, &datagram);
		return with ? answer_from(skb, &p, with) : TC_ACT_UNSPEC;
	}
	if (load(skb, &p, p.inner, ports, sizeof(ports)))
		return TC_ACT_UNSPEC;
	struct asked *question = answered(&p.address, &p.flow.client, ports[0], ports[1]);
	if (!question) {
		if (is_fragment(&p))
			bpf_map_delete_elem(&answer_fragments6_v1, &datagram);	// another one had its number before
		return TC_ACT_UNSPEC;
	}
	if (is_fragment(&p))
		bpf_map_update_elem(&answer_fragments6_v1, &datagram, question, BPF_ANY);
	question->flags |= ANSWERED;
	return answer_from(skb, &p, question);
}

#endif
