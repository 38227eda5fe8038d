// What of the programs is IPv4's own; ipv6.h has the same for IPv6.
#ifndef VIPROUTE_IPV4_H
#define VIPROUTE_IPV4_H

// 169.254.118.1, the address of every host veth: the pod's gateway for its answers.
#define HOST_ADDRESS htonl(0xa9fe7601)
// 169.254.118.2, in the place of a pod's own address where the pod calls its VIP and is the replica that is called (own.h).
#define STAND_IN htonl(0xa9fe7602)

// linux/icmp.h includes the C library's headers.
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_PORT_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_TIMESTAMPREPLY 14
#define ICMP_HEADER 8
#define ICMP_CHECKSUM 2

#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

typedef __be32 client_address;

// A flow as the replica's sockets know it, in the packet's direction.
struct flow {
	client_address client;
	__be32 vip;
	__be16 client_port;
	__be16 vip_port;
};

// What a namespace's sockets are asked by (`ipv4` of struct bpf_sock_tuple, alone: the stack is small).
struct tuple {
	__be32 saddr, daddr;
	__be16 sport, dport;
};

_Static_assert(sizeof(struct tuple) == sizeof(((struct bpf_sock_tuple *)0)->ipv4), "");

// By a flow, with what the pod has in the place of its port.
#define TUPLE(p, port) { (p)->flow.client, (p)->flow.vip, (p)->flow.client_port, (__be16)(port) }
// And by the flow of the answers, as one that has begun it here: the pod's own.
#define REVERSE_TUPLE(p) { (p)->flow.vip, (p)->flow.client, (p)->flow.vip_port, (p)->flow.client_port }
// And by a call (shared.h).
#define CALL_TUPLE(of, call) { (call)->client, (call)->vip, (call)->client_port, (call)->target }

// A datagram in fragments whose first one was handed to another replica, or to another node: the others, which name no port, follow
// it.
struct datagram {
	__be32 client;
	__be32 vip;
	__be16 id;
	__u8 protocol;
	__u8 pad;
};

// A packet on its way to a replica, as far as it is read.
struct packet {
	struct flow flow;
	struct datagram datagram;
	struct iphdr ip;
	struct tcphdr tcp;	// only where the packet is TCP's own, not an error about it
	__u32 inner;		// offset of what follows the IP header
	__u32 self;		// the host veth the packet came by
	__u8 cookie;		// may be the end of a handshake by SYN cookie
	__u8 for_opening;	// a SYN-ACK, a RST or an error: what a socket that opens a connection may get
	__u8 first;		// first of several fragments
	__u8 held;		// the replica it has come to has its connection
	__u8 settled;		// no other replica can have answered the flow's SYN before: whoever listens gets it
	__u8 is_own;		// from the very pod that the group has chosen: by which of its own addresses, from 1 on
	__u8 policed;		// of some ports of its VIP Services ask something
	__u8 kept_here;		// it begins a flow, and is for the replicas here
};

// The protocol of what the packet carries.
#define PROTOCOL(p) ((p)->ip.protocol)
#define IPPROTO_ERRORS IPPROTO_ICMP

static inline_always int is_fragment(const struct packet *p)
{
	return p->ip.frag_off & htons(IP_MF | IP_OFFSET);
}

static inline_always int is_later_fragment(const struct packet *p)
{
	return p->ip.frag_off & htons(IP_OFFSET);
}

// Reads of which datagram the packet is a fragment. Whether it isn't the first one.
static inline_always int read_fragment(struct packet *p)
{
	p->datagram.client = p->ip.saddr;
	p->datagram.vip = p->ip.daddr;
	p->datagram.id = p->ip.id;
	p->datagram.protocol = p->ip.protocol;
	if (p->ip.frag_off & htons(IP_OFFSET))
		return 1;
	p->first = 1;
	return 0;
}

// Copies part of the packet. What lies behind its total length is padding, and no part of it. (A GSO packet of more than 64 KB
// has a total length of 0.)
static inline_always int load_within(struct __sk_buff *skb, const struct iphdr *ip, __u32 offset, void *to, __u32 len)
{
	__u32 total = ntohs(ip->tot_len);
	if (total && offset + len > ETH_HLEN + total)
		return -1;
	return peek(skb, offset, to, len);
}

// What is known of a packet that passes a host veth where its port is exchanged (ports.h): on its way out of a pod nothing else is read.
typedef struct iphdr headers;

static inline_always int load_of(struct __sk_buff *skb, const headers *of, __u32 offset, void *to, __u32 len)
{
	return load_within(skb, of, offset, to, len);
}

static inline_always int is_icmp(const headers *of)
{
	return of->protocol == IPPROTO_ICMP;
}

static inline_always client_address peer_of(const headers *of, __u32 way)
{
	return way == INTO_POD ? of->saddr : of->daddr;
}

static inline_always __be32 vip_of(const headers *of, __u32 way)
{
	return way == INTO_POD ? of->daddr : of->saddr;
}

static inline_always int load(struct __sk_buff *skb, const struct packet *p, __u32 offset, void *to, __u32 len)
{
	return load_within(skb, &p->ip, offset, to, len);
}

// No client in particular: what listens is found.
static inline_always void any_client(struct __sk_buff *skb, struct tuple *tuple)
{
	tuple->saddr = unknown(skb, 0);
	tuple->sport = unknown(skb, 0);
	(void)skb;
}

// Whether the packet brings back the cookie of a socket that listens.
static inline_always int is_cookie(struct bpf_sock *sk, struct packet *p)
{
	return !bpf_tcp_check_syncookie(sk, &p->ip, sizeof(p->ip), &p->tcp, sizeof(p->tcp));
}

static inline_always int is_connected(const struct bpf_sock *sk)
{
	return sk->dst_ip4 != 0;
}

// What a hash is made of.
static inline_always __u32 client_of(const struct flow *flow)
{
	return flow->client;
}

static inline_always int is_from_host(const struct packet *p)
{
	return p->flow.client == HOST_ADDRESS;
}

static inline_always __u32 after_header(const struct iphdr *ip)
{
	return ETH_HLEN + ip->ihl * 4;
}

// Writes another address in the place of one that the IP header at that offset has.
static inline_always int readdress(struct __sk_buff *skb, __u32 header, __u32 field, __be32 from, __be32 to)
{
	__u32 check = header + __builtin_offsetof(struct iphdr, check);
	return bpf_l3_csum_replace(skb, check, from, to, sizeof(to)) || bpf_skb_store_bytes(skb, header + field, &to, sizeof(to), 0);
}

// The sum over TCP's pseudo-header.
static inline_always __u16 pseudo(__be32 from, __be32 to, __u16 len)
{
	struct {
		__be32 from, to;
		__be16 protocol, len;
	} header = { from, to, htons(IPPROTO_TCP), htons(len) };
	return sum(&header, sizeof(header) / 2, 0);
}

// A SYN to a port that isn't served: turned into the reset that answers it (RFC 9293, 3.10.7.1), sent back up the device as
// if it came from the pod. A reset is never answered. Nor is a SYN with IP options, which clients don't send: a checksum that is
// left to the network card would be put where the longer header ends.
verified_alone int reset(struct __sk_buff *skb, struct packet *p)
{
	if (!p || p->tcp.rst || p->ip.ihl != sizeof(p->ip) / 4)
		return TC_ACT_SHOT;
	int len = ntohs(p->ip.tot_len) - (int)sizeof(p->ip);
	int data = len - p->tcp.doff * 4;	// TCP Fast Open; what the answer acknowledges, it and the SYN
	if (data < 0)
		return TC_ACT_SHOT;
	struct {
		struct ethhdr eth;
		struct iphdr ip;
		struct tcphdr tcp;
	} __attribute__((packed)) answer = {};
	struct ethhdr eth;
	if (peek(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_SHOT;
	__builtin_memcpy(answer.eth.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(answer.eth.h_source, eth.h_dest, ETH_ALEN);
	answer.eth.h_proto = htons(ETH_P_IP);

	struct iphdr ip = {
		.version = 4, .ihl = 5, .tot_len = htons(sizeof(struct iphdr) + sizeof(struct tcphdr)), .frag_off = htons(0x4000),
		.ttl = 64, .protocol = IPPROTO_TCP, .saddr = p->ip.daddr, .daddr = p->ip.saddr,
	};
	ip.check = ~sum(&ip, sizeof(ip) / 2, 0);

	struct tcphdr tcp = {
		.source = p->tcp.dest, .dest = p->tcp.source, .ack_seq = htonl(ntohl(p->tcp.seq) + 1 + p->tcp.fin + data),
		.doff = sizeof(struct tcphdr) / 4, .rst = 1, .ack = 1,
	};
	// A checksum that was left to the network card (CHECKSUM_PARTIAL) is the pseudo-header's sum so far, and must be so again.
	__u16 header = pseudo(ip.saddr, ip.daddr, sizeof(tcp));
	int partial = p->tcp.check == pseudo(p->ip.saddr, p->ip.daddr, len);
	tcp.check = partial ? header : (__u16)~sum(&tcp, sizeof(tcp) / 2, header);

	answer.ip = ip;
	answer.tcp = tcp;
	if (bpf_skb_change_tail(skb, sizeof(answer), 0) || bpf_skb_store_bytes(skb, 0, &answer, sizeof(answer), 0))
		return TC_ACT_SHOT;
	skb->tc_index = MADE_HERE;
	return bpf_redirect(p->self, BPF_F_INGRESS);
}

// An ICMP error follows the packet it speaks of, which a replica has sent: its header is inside (RFC 792). Returns that one's
// protocol; below 0: it is none, or can't be read.
static inline_always int read_error(struct __sk_buff *skb, struct packet *p)
{
	__u8 type;
	if (load(skb, p, p->inner, &type, sizeof(type)))
		return -1;
	if (type != ICMP_DEST_UNREACH && type != ICMP_TIME_EXCEEDED)
		return -1;
	struct iphdr sent;
	__u32 start = p->inner + ICMP_HEADER;
	if (load(skb, p, start, &sent, sizeof(sent)) || sent.version != 4 || sent.ihl < 5)
		return -1;
	if (sent.saddr != p->flow.vip || sent.frag_off & htons(IP_OFFSET))
		return -1;
	__be16 ports[2];	// of the sender, of the receiver
	if (load(skb, p, start + sent.ihl * 4, ports, sizeof(ports)))
		return -1;
	p->flow.client = sent.daddr;
	p->flow.client_port = ports[1];
	p->flow.vip_port = ports[0];
	p->for_opening = 1;
	return sent.protocol;
}

// By which of a pod's own addresses a flow of its VIP is its own, from 1 on; 0: it is another's.
static inline_always __u32 own_address(const struct flow *flow, const struct attached *pod, __u32 ifindex)
{
	(void)ifindex;
	return flow->client == pod->own;
}

// What stands in for a pod's own address.
static inline_always client_address stand_in(__u32 own)
{
	(void)own;
	return STAND_IN;
}

static inline_always void set_client(struct packet *p, client_address client)
{
	p->flow.client = p->ip.saddr = client;	// the latter for a cookie
}

// Whether a packet for a pod comes from one of the pod's own addresses. The pod's namespace doesn't ask (accept_local): it would
// answer itself, and that answer again.
static inline_always int is_from_itself(const struct packet *p)
{
	__be32 from = p->ip.saddr;
	return from == p->ip.daddr || from == STAND_IN || attached(p->self, from);
}

// Reads a packet that has come to a host veth. Not 0: it is none that has business there.
static inline_always int read_packet(struct __sk_buff *skb, struct packet *p)
{
	if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return -1;
	if (peek(skb, ETH_HLEN, &p->ip, sizeof(p->ip)) || p->ip.version != 4 || p->ip.ihl < 5 || is_number(p->ip.daddr))
		return -1;
	p->self = skb->ifindex;
	p->inner = ETH_HLEN + p->ip.ihl * 4;
	p->flow.client = p->ip.saddr;
	p->flow.vip = p->ip.daddr;
	return 0;
}

#endif
