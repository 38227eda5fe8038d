// ICMPv6 errors, and the packets that they quote.
#ifndef VIPROUTE_ERRORS6_H
#define VIPROUTE_ERRORS6_H

// A packet that an ICMPv6 error quotes.
struct quoted {
	__u32 start;
	__u32 at;		// offset of what follows its headers
	__u32 protocol;
};

// The packet that an ICMPv6 error quotes, which went the other way (RFC 4443, 2.1): sent from the VIP, or to it. Not 0: it is none, or
// can't be read.
verified_alone int read_quoted(struct __sk_buff *skb, struct packet *p, __u32 is_from_vip, struct quoted *quoted)
{
	struct {
		__u8 version, label[3];
		__be16 length;
		__u8 next, hops;
	} sent;
	struct ipv6 ours;
	__u8 type;
	if (!p || !quoted)
		return -1;
	if (load(skb, p, p->inner, &type, sizeof(type)) || !type || type > ICMPV6_PARAMPROB)
		return -1;
	__u32 outer = p->inner, start = outer + ICMP_HEADER;
	__u32 ours_at = start + (is_from_vip ? __builtin_offsetof(struct ipv6hdr, saddr) : __builtin_offsetof(struct ipv6hdr, daddr));
	__u16 offset = p->offset;
	__u8 in_fragments = p->in_fragments;
	__be32 id = p->datagram.id;
	if (load(skb, p, start, &sent, sizeof(sent)) || sent.version >> 4 != 6)
		return -1;
	if (load(skb, p, ours_at, &ours, sizeof(ours)) || !is_same(&ours, &p->address))
		return -1;
	p->offset = 0;
	read_headers(skb, p, start, sent.next);
	int is_later = is_later_fragment(p);
	quoted->start = start;
	quoted->at = p->inner;
	quoted->protocol = p->protocol;
	p->inner = outer;
	p->protocol = IPPROTO_ICMPV6;
	p->offset = offset;
	p->in_fragments = in_fragments;
	p->datagram.id = id;
	return is_later;
}

// An ICMPv6 error follows the packet it speaks of, which a replica has sent. Returns that one's protocol; below 0: it is none, or can't be
// read.
static inline_always int read_error(struct __sk_buff *skb, struct packet *p)
{
	struct quoted quoted = {};
	__be16 ports[2];	// of the sender, of the receiver
	if (read_quoted(skb, p, 1, &quoted) || load(skb, p, quoted.at, ports, sizeof(ports)))
		return -1;
	if (load(skb, p, quoted.start + __builtin_offsetof(struct ipv6hdr, daddr), &p->flow.client, sizeof(p->flow.client)))
		return -1;
	p->flow.client_port = ports[1];
	p->flow.vip_port = ports[0];
	p->for_opening = 1;
	return quoted.protocol;
}

#endif
