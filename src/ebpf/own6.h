// A pod's own calls by IPv6: how its addresses and those that stand in for them change places.
#ifndef VIPROUTE_OWN6_H
#define VIPROUTE_OWN6_H

static inline_always __u32 checksum6_at(__u32 protocol)
{
	return protocol == IPPROTO_ICMPV6 ? ICMP_CHECKSUM : checksum_at(protocol);
}

// Writes another address at `at`, with the checksum that has it in its sum: by the pseudo-header, for which `flags` are. (IPv6's own header
// has none.)
static inline_always int exchange(struct __sk_buff *skb, const struct packet *p, __u32 at, const struct ipv6 *from, const struct ipv6 *to,
				  __u64 flags)
{
	__s64 differs = bpf_csum_diff((const __be32 *)from, sizeof(*from), (const __be32 *)to, sizeof(*to), 0);
	__u32 check = p->inner + checksum6_at(p->protocol);
	if (differs < 0)
		return -1;
	if (!is_later_fragment(p) && bpf_l4_csum_replace(skb, check, 0, differs, flags))
		return -1;
	return bpf_skb_store_bytes(skb, at, to, sizeof(*to), 0);
}

static inline_always __u64 pseudo_flags(const struct packet *p)
{
	return BPF_F_PSEUDO_HDR | (p->protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0);
}

// Gives what enters the pod from itself another source.
static inline_always int disguise(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6 own = p->flow.client, other = stand_in(p->is_own);
	p->flow.client = other;
	return exchange(skb, p, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), &own, &other, pseudo_flags(p));
}

// What a pod sends to one that stands in for it. An ICMPv6 error quotes that one, too.
verified_alone int go_home(struct __sk_buff *skb, struct packet *p)
{
	if (!p)
		return TC_ACT_SHOT;
	struct attached_key key = { .ifindex = p->self, .vip = p->flow.vip };
	struct ipv6 other = p->flow.client;
	struct ipv6hdr sent;
	skb->tc_classid = 0;	// no lease: what comes home leaves by no uplink
	__u32 nth = ntohl(other.w[3]) - 1, start = p->inner + ICMP_HEADER;
	const struct own6 *all = bpf_map_lookup_elem(&own6_v1, &key);
	if (!all || nth >= OWN || !(has_ports(p->protocol) || p->protocol == IPPROTO_ICMPV6))
		return TC_ACT_SHOT;
	struct ipv6 own = all->address[nth];
	if (is_none(&own))
		return TC_ACT_SHOT;
	if (exchange(skb, p, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr), &other, &own, pseudo_flags(p)))
		return TC_ACT_SHOT;
	if (p->protocol != IPPROTO_ICMPV6 || is_later_fragment(p) || load(skb, p, start, &sent, sizeof(sent)))
		return TC_ACT_OK;
	if (!is_same((const struct ipv6 *)&sent.saddr, &other))
		return TC_ACT_OK;
	return exchange(skb, p, start + __builtin_offsetof(struct ipv6hdr, saddr), &other, &own, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

#endif
