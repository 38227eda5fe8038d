// The reset that answers a SYN of IPv6 for a port that isn't served.
#ifndef VIPROUTE_RESET6_H
#define VIPROUTE_RESET6_H

// The sum over TCP's pseudo-header (RFC 8200, 8.1), `len` below 64 KB.
static inline_always __u16 pseudo(const struct ipv6 *from, const struct ipv6 *to, __u16 len)
{
	struct {
		struct ipv6 from, to;
		__be16 high, len, zero, protocol;
	} header = { .from = *from, .to = *to, .len = htons(len), .protocol = htons(IPPROTO_TCP) };
	return sum(&header, sizeof(header) / 2, 0);
}

// A SYN to a port that isn't served: turned into the reset that answers it, as ipv4.h has it. One with extension headers, or too long
// to have its length in its header, isn't answered.
verified_alone int reset(struct __sk_buff *skb, struct packet *p)
{
	if (!p || p->tcp.rst || p->inner != ETH_HLEN + sizeof(struct ipv6hdr) || !p->end)
		return TC_ACT_SHOT;
	int len = (int)p->end - (int)p->inner;
	int data = len - p->tcp.doff * 4;
	if (data < 0)
		return TC_ACT_SHOT;
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct tcphdr tcp;
	} __attribute__((packed)) answer = {};
	struct ethhdr eth;
	if (peek(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_SHOT;
	__builtin_memcpy(answer.eth.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(answer.eth.h_source, eth.h_dest, ETH_ALEN);
	answer.eth.h_proto = htons(ETH_P_IPV6);
	answer.ip.version = 6;
	answer.ip.payload_len = htons(sizeof(struct tcphdr));
	answer.ip.nexthdr = IPPROTO_TCP;
	answer.ip.hop_limit = 64;
	__builtin_memcpy(&answer.ip.saddr, &p->address, sizeof(p->address));
	__builtin_memcpy(&answer.ip.daddr, &p->flow.client, sizeof(p->flow.client));

	struct tcphdr tcp = {
		.source = p->tcp.dest, .dest = p->tcp.source, .ack_seq = htonl(ntohl(p->tcp.seq) + 1 + p->tcp.fin + data),
		.doff = sizeof(struct tcphdr) / 4, .rst = 1, .ack = 1,
	};
	__u16 header = pseudo(&p->address, &p->flow.client, sizeof(tcp));
	int partial = p->tcp.check == pseudo(&p->flow.client, &p->address, len);
	tcp.check = partial ? header : (__u16)~sum(&tcp, sizeof(tcp) / 2, header);
	answer.tcp = tcp;
	if (bpf_skb_change_tail(skb, sizeof(answer), 0) || bpf_skb_store_bytes(skb, 0, &answer, sizeof(answer), 0))
		return TC_ACT_SHOT;
	skb->tc_index = MADE_HERE;
	return bpf_redirect(p->self, BPF_F_INGRESS);
}

#endif
