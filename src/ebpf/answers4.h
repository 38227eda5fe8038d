// Answers of UDP servers that bind no address, by IPv4 (answers.h).
#ifndef VIPROUTE_ANSWERS4_H
#define VIPROUTE_ANSWERS4_H

// AF_INET, without the C library's headers.
#define INET 2

// An answer in fragments whose first one has gone by vip0: the others, which name no port, follow it.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct datagram);	// `vip` is the pod's own address here
	__type(value, struct asked);
} answer_fragments_v1 SEC(".maps");

// The header of a packet that may be a question, an answer, or an error about one. Not 0: it is none.
static inline_always int read_header(struct __sk_buff *skb, struct iphdr *ip)
{
	if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present || peek(skb, ETH_HLEN, ip, sizeof(*ip)))
		return -1;
	return ip->version != 4 || ip->ihl < 5;
}

static inline_always void note_asked_vip(struct __sk_buff *skb, const struct iphdr *ip, const struct answerer_key *of, __be32 own)
{
	__be16 ports[2];	// of the client, of the pod
	if (load_within(skb, ip, after_header(ip), ports, sizeof(ports)))
		return;
	struct question question = { .own = own, .client = ip->saddr, .port = ports[1], .client_port = ports[0] };
	note_question(skb, &question, of);
}

// An ICMP error about an answer that went by vip0: to the pod it is one about what its socket sent, which went by another route. What
// that route must know (how long packets may be) is told there. The error's own checksum stays: in its sum the changes of the quoted
// header's address and checksum are each other's contrary.
static inline_always int error_to_sender(struct __sk_buff *skb, const struct iphdr *ip, __be32 vip, __be32 own)
{
	__u32 error = after_header(ip), start = error + ICMP_HEADER;
	struct iphdr sent;
	__be16 ports[2];	// of the pod, of the client
	__u8 type;
	if (load_within(skb, ip, error, &type, sizeof(type)))
		return TC_ACT_UNSPEC;
	if (type != ICMP_DEST_UNREACH && type != ICMP_TIME_EXCEEDED && type != ICMP_PARAMETERPROB)
		return TC_ACT_UNSPEC;
	if (load_within(skb, ip, start, &sent, sizeof(sent)) || sent.version != 4 || sent.ihl < 5)
		return TC_ACT_UNSPEC;
	if (sent.protocol != IPPROTO_UDP || sent.saddr != vip || sent.frag_off & htons(IP_OFFSET))
		return TC_ACT_UNSPEC;
	if (load_within(skb, ip, start + sent.ihl * 4, ports, sizeof(ports)))
		return TC_ACT_UNSPEC;
	const struct asked *known = asked(&own, &sent.daddr, ports[0], ports[1]);
	if (!known || known->of.vip != vip || !(known->flags & ANSWERED))
		return TC_ACT_UNSPEC;
	if (readdress(skb, start, __builtin_offsetof(struct iphdr, saddr), vip, own) ||
	    readdress(skb, ETH_HLEN, __builtin_offsetof(struct iphdr, daddr), vip, own))
		return TC_ACT_SHOT;
	return TC_ACT_UNSPEC;
}

// On the vip0 of a pod with UDP ports: what comes to its VIPs.
SEC("classifier")
int udp_asked(struct __sk_buff *skb)
{
	struct iphdr ip;
	struct answerer_key of = {};
	if (read_header(skb, &ip) || ip.frag_off & htons(IP_OFFSET))
		return TC_ACT_UNSPEC;
	if (ip.protocol != IPPROTO_UDP && ip.protocol != IPPROTO_ICMP)
		return TC_ACT_UNSPEC;
	of.vip = ip.daddr;
	if (peek(skb, 0, of.mac, sizeof(of.mac)))
		return TC_ACT_UNSPEC;
	const struct answerer *pod = bpf_map_lookup_elem(&answerers_v1, &of);
	if (!pod)
		return TC_ACT_UNSPEC;
	if (ip.protocol != IPPROTO_UDP)
		return error_to_sender(skb, &ip, of.vip, pod->own);
	note_asked_vip(skb, &ip, &of, pod->own);
	return TC_ACT_UNSPEC;
}

// On the pod's own interface: what comes to the pod's own address, by whatever name it was asked for (a Service's address, say).
SEC("classifier")
int udp_asked_own(struct __sk_buff *skb)
{
	struct iphdr ip;
	__be16 ports[2];	// of the client, of the pod
	if (read_header(skb, &ip) || ip.protocol != IPPROTO_UDP || ip.frag_off & htons(IP_OFFSET))
		return TC_ACT_UNSPEC;
	if (load_within(skb, &ip, after_header(&ip), ports, sizeof(ports)) || !asked(&ip.daddr, &ip.saddr, ports[1], ports[0]))
		return TC_ACT_UNSPEC;
	struct question key = { .own = ip.daddr, .client = ip.saddr, .port = ports[1], .client_port = ports[0] };
	bpf_map_delete_elem(&asked_v1, &key);
	return TC_ACT_UNSPEC;
}

// Sends an answer out by vip0, from the VIP. The neighbour there is permanent.
static inline_always int answer_from(struct __sk_buff *skb, const struct iphdr *ip, const struct asked *question, int has_ports)
{
	__be32 vip = question->of.vip;
	__u32 vip0 = question->vip0, check = after_header(ip) + checksum_at(IPPROTO_UDP);
	__u64 flags = BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | sizeof(vip);
	if (has_ports && bpf_l4_csum_replace(skb, check, ip->saddr, vip, flags))
		return TC_ACT_SHOT;
	if (readdress(skb, ETH_HLEN, __builtin_offsetof(struct iphdr, saddr), ip->saddr, vip))
		return TC_ACT_SHOT;
	struct bpf_redir_neigh by = { .nh_family = INET, .ipv4_nh = HOST_ADDRESS };
	return bpf_redirect_neigh(vip0, &by, sizeof(by), 0);
}

// On the pod's own interface: what the pod sends by it.
SEC("classifier")
int udp_answer(struct __sk_buff *skb)
{
	struct iphdr ip;
	__be16 ports[2];	// of the pod, of the client
	if (read_header(skb, &ip) || ip.protocol != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	struct datagram datagram = { .client = ip.daddr, .vip = ip.saddr, .id = ip.id, .protocol = ip.protocol };
	if (ip.frag_off & htons(IP_OFFSET)) {
		const struct asked *with = bpf_map_lookup_elem(&answer_fragments_v1, &datagram);
		return with ? answer_from(skb, &ip, with, 0) : TC_ACT_UNSPEC;
	}
	int is_first = ip.frag_off & htons(IP_MF);
	if (load_within(skb, &ip, after_header(&ip), ports, sizeof(ports)))
		return TC_ACT_UNSPEC;
	struct asked *question = answered(&ip.saddr, &ip.daddr, ports[0], ports[1]);
	if (!question) {
		if (is_first)
			bpf_map_delete_elem(&answer_fragments_v1, &datagram);	// another one had its number before
		return TC_ACT_UNSPEC;
	}
	if (is_first)
		bpf_map_update_elem(&answer_fragments_v1, &datagram, question, BPF_ANY);
	question->flags |= ANSWERED;
	return answer_from(skb, &ip, question, 1);
}

#endif
