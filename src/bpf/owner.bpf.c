// A flow belongs to the socket that holds it. Two programs on the host end of every replica's pair:
//
//   owner (tc egress)   the VIP's group has chosen this replica. A TCP packet that opens no connection is handed to the
//                       replica of the VIP whose network namespace holds its socket, wherever the group's hash sent it. New
//                       connections go where the hash says. The replicas' own socket tables are the connection table: nothing
//                       is stored that could be wrong, nothing times out, nothing is lost on a restart.
//   guard (tc ingress)  what comes out of the pod's vip0 has one of its VIPs as its source, or goes nowhere.
//
// Headers are copied to the stack before they are looked at (peek), so it doesn't matter whether they lie in the linear part
// of the packet; what is too short to be read, or is no IPv4, is never guessed at. GSO packets carry the headers
// of all their segments.
//
// The form of the maps is part of their names (…_v1): a program of another form never sees them. src/bpf/maps.rs has the same
// structs.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "helpers.h"

// Replicas of a VIP that are asked for a flow's socket.
#define MEMBERS 256
// Ports a VIP may be limited to.
#define PORTS 64
// Where headers may begin that are read without a call. (The verifier wants a bound.)
#define LINEAR 256
#define SECOND 1000000000ULL
// Searches may take one nanosecond of so many (7 % of each CPU), and up to a second's worth of it at once. Retransmitted SYNs
// have an allowance of their own, which a flood of them can't take away from connections.
#define ONE_IN 14
// A replica's part of a search is never charged with more, in nanoseconds: an interrupt or a hypervisor may have come between.
#define QUESTION_COSTS 2000
// What a copy of a packet costs where it arrives.
#define COPY_COSTS 1000
// skb->mark of a copied ICMP error between the device it came by and the one it goes to.
#define COPY 0x76567656

// linux/icmp.h brings the C library's headers along.
#define ICMP_DEST_UNREACH 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_HEADER 8

#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

// A VIP of an attachment.
struct attached_key {
	__u32 ifindex;		// the host end
	__be32 vip;
};

#define GUARDED 1		// only the ports listed
#define STICKY 2		// UDP flows stay
#define CROWDED 4		// the VIP has more replicas than MEMBERS: note when this one was of use

struct attached {
	__u32 netns;		// the pod's namespace, as an id of the node's
	__u32 flags;
	__u8 mac[ETH_ALEN];	// the pod end's address
	__u16 ports;		// how many are listed
	__u32 port[PORTS];	// protocol << 16 | port
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct attached_key);
	__type(value, struct attached);
} attached_v1 SEC(".maps");

struct member {
	__u32 ifindex;
	__u32 netns;
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

// The replicas of a VIP on this node, draining ones too.
struct vip {
	__u64 unsettled_until;	// CLOCK_MONOTONIC, ns: buckets may move, so a SYN may be a second one for another replica
	__u32 count;
	__u32 pad;
	struct member member[MEMBERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);
	__type(value, struct vip);
} vips_v1 SEC(".maps");

// A flow as the replica's sockets know it, in the packet's direction.
struct flow {
	__be32 client;
	__be32 vip;
	__be16 client_port;
	__be16 vip_port;
};

// Where a misplaced TCP flow was found last. Asked before it is believed.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u32);	// ifindex
} hints_v1 SEC(".maps");

// UDP flows that stay where they began.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, __u32);	// ifindex
} sticky_v1 SEC(".maps");

// A datagram in fragments whose first one was handed to another replica: the others, which name no port, follow it.
struct datagram {
	__be32 client;
	__be32 vip;
	__be16 id;
	__u8 protocol;
	__u8 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct datagram);
	__type(value, __u32);	// ifindex
} fragments_v1 SEC(".maps");

// What became of a VIP's packets.
enum { CHOSEN, OWNED, MISSED, LIMITED, REFUSED, COUNTS };

struct counts {
	__u64 n[COUNTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);	// the VIP
	__type(value, struct counts);
} counts_v1 SEC(".maps");

// Packets that came from a pod with a source that isn't its own, by host end: they name no VIP.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);	// ifindex
	__type(value, __u64);
} spoofed_v1 SEC(".maps");

// The second in which a replica of a crowded VIP last had a packet of a connection.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);	// ifindex
	__type(value, __u64);
} used_v1 SEC(".maps");

enum { FOR_CONNECTIONS, FOR_SYNS, ALLOWANCES };

struct allowance {
	__u64 since;	// CLOCK_MONOTONIC, ns: when it was looked at last
	__s64 left;	// ns; below 0: more was taken than there was
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ALLOWANCES);
	__type(key, __u32);
	__type(value, struct allowance);
} allowances_v2 SEC(".maps");

// A packet on its way to a replica, as far as it is read.
struct packet {
	struct flow flow;
	struct datagram datagram;
	struct iphdr ip;
	struct tcphdr tcp;	// only where the packet is TCP's own, not an error about it
	__u32 inner;		// offset of what follows the IP header
	__u32 self;		// the host end the packet came by
	__u8 cookie;		// may be the end of a handshake by SYN cookie
	__u8 first;		// first of several fragments
};

// Bytes of the packet: as a rule they are in its linear part, where looking is cheaper than asking.
static inline_always int peek(struct __sk_buff *skb, __u32 offset, void *to, __u32 len)
{
	const __u8 *from = (void *)(long)skb->data;
	if (offset <= LINEAR && from + offset + len <= (const __u8 *)(long)skb->data_end) {
		__builtin_memcpy(to, from + offset, len);
		return 0;
	}
	return bpf_skb_load_bytes(skb, offset, to, len);
}

// Copies part of the packet. What lies behind its total length is padding, and no part of it. (A GSO packet of more than 64 KB
// has a total length of 0.)
static inline_always int load(struct __sk_buff *skb, const struct packet *p, __u32 offset, void *to, __u32 len)
{
	__u32 total = ntohs(p->ip.tot_len);
	if (total && offset + len > ETH_HLEN + total)
		return -1;
	return peek(skb, offset, to, len);
}

static inline_always void count(__be32 vip, __u32 what)
{
	struct counts *counts = bpf_map_lookup_elem(&counts_v1, &vip);
	if (counts) {
		counts->n[what]++;
		return;
	}
	struct counts fresh = {};
	fresh.n[what] = 1;
	bpf_map_update_elem(&counts_v1, &vip, &fresh, BPF_NOEXIST);
}

static inline_always struct attached *attached(__u32 ifindex, __be32 vip)
{
	struct attached_key key = { .ifindex = ifindex, .vip = vip };
	return bpf_map_lookup_elem(&attached_v1, &key);
}

static inline_always void used(const struct attached *replica, __u32 ifindex)
{
	if (!(replica->flags & CROWDED))
		return;
	__u64 now = bpf_ktime_get_ns() / SECOND;
	__u64 *before = bpf_map_lookup_elem(&used_v1, &ifindex);
	if (!before || *before != now)
		bpf_map_update_elem(&used_v1, &ifindex, &now, BPF_ANY);
}

// This CPU's allowance, if anything is left of it; a search begins.
static inline_always struct allowance *allowed(__u32 which)
{
	struct allowance *mine = bpf_map_lookup_elem(&allowances_v2, &which);
	if (!mine)
		return 0;
	__u64 now = bpf_ktime_get_ns();
	mine->left += (now - mine->since) / ONE_IN;
	if (mine->left > (__s64)(SECOND / ONE_IN))
		mine->left = SECOND / ONE_IN;
	mine->since = now;
	return mine->left > 0 ? mine : 0;
}

// The search among so many replicas has ended.
static inline_always void charge(struct allowance *mine, __u32 replicas)
{
	__u64 took = bpf_ktime_get_ns() - mine->since;
	__u64 most = (__u64)replicas * QUESTION_COSTS;
	mine->left -= took < most ? took : most;
}

// Copies go to so many replicas.
static inline_always void charge_copies(struct allowance *mine, __u32 replicas)
{
	mine->left -= (__s64)replicas * COPY_COSTS;
}

// Sends the packet out by another replica's host end.
static inline_always int hand_over(struct __sk_buff *skb, struct packet *p, __u32 ifindex, const __u8 *mac)
{
	if (bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	if (p->first)
		bpf_map_update_elem(&fragments_v1, &p->datagram, &ifindex, BPF_ANY);
	return bpf_redirect(ifindex, 0);
}

// What a namespace knows of a flow.
enum { NOTHING, TIME_WAIT, HALF_OPEN, OPEN };

verified_alone int ask(struct __sk_buff *skb, struct packet *p, __u32 netns)
{
	if (!p)
		return NOTHING;
	struct bpf_sock_tuple tuple = {
		.ipv4 = { p->flow.client, p->flow.vip, p->flow.client_port, p->flow.vip_port },
	};
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), netns, 0);
	if (!sk)
		return NOTHING;
	int answer;
	switch (sk->state) {
	case BPF_TCP_LISTEN:	// holds no flow, unless this packet brings back the flow's own cookie
		answer = NOTHING;
		if (p->cookie && !bpf_tcp_check_syncookie(sk, &p->ip, sizeof(p->ip), &p->tcp, sizeof(p->tcp)))
			answer = HALF_OPEN;
		break;
	case BPF_TCP_NEW_SYN_RECV:
		answer = HALF_OPEN;
		break;
	case BPF_TCP_TIME_WAIT:
		answer = TIME_WAIT;
		break;
	case BPF_TCP_CLOSE:
		answer = NOTHING;
		break;
	default:
		answer = OPEN;
	}
	bpf_sk_release(sk);
	return answer;
}

// What a search has found so far.
struct found {
	__u32 answer;		// the best one
	__u32 ifindex;		// and who gave it
	__u8 mac[ETH_ALEN];
	__u16 waiting;		// how many have the flow in TIME_WAIT
};

// Asks one replica, unless it is the chosen one. Not 0: the search is over.
verified_alone int ask_member(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask(skb, p, m->netns);
	if (answer == TIME_WAIT)
		found->waiting++;
	if (answer <= found->answer)
		return 0;
	found->answer = answer;
	found->ifindex = m->ifindex;
	__builtin_memcpy(found->mac, m->mac, ETH_ALEN);
	return answer >= HALF_OPEN;
}

// Asks all replicas but the chosen one; finds one that holds the flow, failing that, one that has it in TIME_WAIT.
static inline_always __u32 search(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count || ask_member(skb, p, v, found, i))
			break;
	}
	return found->answer;
}

// Sends a copy to one replica, unless it is the chosen one.
verified_alone int copy_to(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	if (m->ifindex != p->self && !bpf_skb_store_bytes(skb, 0, m->mac, ETH_ALEN, 0))
		bpf_clone_redirect(skb, m->ifindex, 0);
	return 0;
}

// A copy to one replica if it has the flow in TIME_WAIT.
verified_alone int copy_to_waiting(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS || ask(skb, p, v->member[i].netns) != TIME_WAIT)
		return 0;
	return copy_to(skb, p, v, i);
}

// More than one replica has a flow of these ports and addresses in TIME_WAIT: the client has used its port again and reached
// another one. Whose last packet this is only they can tell (to the others it is old), so each gets a copy.
static inline_always int to_waiting(struct __sk_buff *skb, struct packet *p, struct vip *v, struct attached *chosen)
{
	__u32 mark = skb->mark;
	skb->mark = COPY;
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count)
			break;
		copy_to_waiting(skb, p, v, i);
	}
	skb->mark = mark;
	return bpf_skb_store_bytes(skb, 0, chosen->mac, ETH_ALEN, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

// Where the flow was found before, if it is still there: TC_ACT_UNSPEC if not.
static inline_always int try_hint(struct __sk_buff *skb, struct packet *p)
{
	__u32 *hint = bpf_map_lookup_elem(&hints_v1, &p->flow);
	if (!hint || *hint == p->self)
		return TC_ACT_UNSPEC;
	__u32 ifindex = *hint;
	struct attached *replica = attached(ifindex, p->flow.vip);
	if (!replica || ask(skb, p, replica->netns) < HALF_OPEN)
		return TC_ACT_UNSPEC;
	used(replica, ifindex);
	count(p->flow.vip, OWNED);
	return hand_over(skb, p, ifindex, replica->mac);
}

// A packet of a connection, or an error about one: to the replica that has it.
static inline_always int connection(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	__u32 here = ask(skb, p, chosen->netns);
	if (here >= HALF_OPEN) {
		used(chosen, p->self);
		count(p->flow.vip, CHOSEN);
		return TC_ACT_OK;
	}
	int verdict = try_hint(skb, p);
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	struct vip *v = bpf_map_lookup_elem(&vips_v1, &p->flow.vip);
	if (!v || v->count < 2) {
		count(p->flow.vip, here ? CHOSEN : MISSED);
		return TC_ACT_OK;
	}
	struct allowance *mine = allowed(FOR_CONNECTIONS);
	if (!mine) {
		// Not to the chosen replica: it would reset a connection that may well live in another one. TCP sends again,
		// and what belongs to nobody is refused when it comes at a slower rate.
		count(p->flow.vip, LIMITED);
		return here ? TC_ACT_OK : TC_ACT_SHOT;
	}
	struct found found = {};
	__u32 there = search(skb, p, v, &found);
	charge(mine, v->count);
	if (there == TIME_WAIT && found.waiting + here > 1) {
		charge_copies(mine, v->count);
		count(p->flow.vip, OWNED);
		verdict = to_waiting(skb, p, v, chosen);
		return here ? verdict : TC_ACT_STOLEN;
	}
	if (there <= here) {	// nobody's: the chosen replica answers with a reset, as a host should
		count(p->flow.vip, here ? CHOSEN : MISSED);
		return TC_ACT_OK;
	}
	if (there >= HALF_OPEN)
		bpf_map_update_elem(&hints_v1, &p->flow, &found.ifindex, BPF_ANY);
	count(p->flow.vip, OWNED);
	return hand_over(skb, p, found.ifindex, found.mac);
}

static inline_always int is_listed(const struct attached *replica, __u8 protocol, __be16 port)
{
	__u32 wanted = (__u32)protocol << 16 | ntohs(port);
	for (__u32 i = 0; i < PORTS; i++) {
		if (i >= replica->ports)
			return 0;
		if (replica->port[i] == wanted)
			return 1;
	}
	return 0;
}

static inline_always int is_refused(const struct attached *chosen, __u8 protocol, __be16 port)
{
	return chosen->flags & GUARDED && !is_listed(chosen, protocol, port);
}

// The Internet checksum's sum over some 16-bit words, not complemented (RFC 1071).
static inline_always __u16 sum(const void *from, __u32 words, __u32 start)
{
	const __u16 *word = from;
	for (__u32 i = 0; i < words; i++)
		start += word[i];
	start = (start & 0xffff) + (start >> 16);
	return (__u16)(start + (start >> 16));
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
// if it came from the pod. A reset is never answered. Nor is a SYN with IP options, which nobody sends: a checksum that is left
// to the network card would be put where the longer header ends.
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
	return bpf_redirect(p->self, BPF_F_INGRESS);
}

// A SYN: to the chosen replica. While buckets move it may be the repetition of one that another replica has answered
// already: two half-open connections would kill each other.
static inline_always int opening(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	if (is_refused(chosen, IPPROTO_TCP, p->flow.vip_port)) {
		count(p->flow.vip, REFUSED);
		return reset(skb, p);
	}
	struct vip *v = bpf_map_lookup_elem(&vips_v1, &p->flow.vip);
	if (!v || v->count < 2 || bpf_ktime_get_ns() >= v->unsettled_until)
		return TC_ACT_OK;
	if (ask(skb, p, chosen->netns) >= HALF_OPEN)
		return TC_ACT_OK;
	struct allowance *mine = allowed(FOR_SYNS);
	if (!mine)
		return TC_ACT_OK;
	struct found found = {};
	__u32 there = search(skb, p, v, &found);
	charge(mine, v->count);
	if (there < HALF_OPEN)
		return TC_ACT_OK;
	count(p->flow.vip, OWNED);
	return hand_over(skb, p, found.ifindex, found.mac);
}

// What may be for a port that isn't served: it has no port, or none that can be read.
static inline_always int portless(struct packet *p, struct attached *chosen)
{
	if (!(chosen->flags & GUARDED))
		return TC_ACT_OK;
	count(p->flow.vip, REFUSED);
	return TC_ACT_SHOT;
}

static inline_always int tcp(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	if (load(skb, p, p->inner, &p->tcp, sizeof(p->tcp)) || p->tcp.doff < sizeof(p->tcp) / 4)
		return portless(p, chosen);
	p->flow.client_port = p->tcp.source;
	p->flow.vip_port = p->tcp.dest;
	if (p->tcp.syn && !p->tcp.ack)
		return opening(skb, p, chosen);
	p->cookie = p->tcp.ack && !p->tcp.syn && !p->tcp.rst;
	return connection(skb, p, chosen);
}

// Keeps a UDP flow where it began: TC_ACT_UNSPEC where it has no such place.
static inline_always int stay(struct __sk_buff *skb, struct packet *p)
{
	__u32 *kept = bpf_map_lookup_elem(&sticky_v1, &p->flow);
	if (!kept)
		return TC_ACT_UNSPEC;
	__u32 ifindex = *kept;
	if (ifindex == p->self)
		return TC_ACT_OK;
	struct attached *other = attached(ifindex, p->flow.vip);
	if (!other)
		return TC_ACT_UNSPEC;
	count(p->flow.vip, OWNED);
	return hand_over(skb, p, ifindex, other->mac);
}

static inline_always int udp(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct udphdr udp;
	if (load(skb, p, p->inner, &udp, sizeof(udp)))
		return portless(p, chosen);
	p->flow.client_port = udp.source;
	p->flow.vip_port = udp.dest;
	if (is_refused(chosen, IPPROTO_UDP, udp.dest)) {
		count(p->flow.vip, REFUSED);
		return TC_ACT_SHOT;
	}
	if (!(chosen->flags & STICKY))
		return TC_ACT_OK;
	int verdict = stay(skb, p);
	if (verdict == TC_ACT_UNSPEC) {
		bpf_map_update_elem(&sticky_v1, &p->flow, &p->self, BPF_ANY);
		verdict = TC_ACT_OK;
	}
	return verdict;
}

// An error about a UDP packet: any replica may have sent it, so each gets a copy.
static inline_always int to_all(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v1, &p->flow.vip);
	if (!v || v->count < 2)
		return TC_ACT_OK;
	struct allowance *mine = allowed(FOR_CONNECTIONS);
	if (!mine)
		return TC_ACT_OK;
	charge_copies(mine, v->count);
	__u32 mark = skb->mark;
	skb->mark = COPY;	// or the program on the other host end would send copies in turn
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count)
			break;
		copy_to(skb, p, v, i);
	}
	skb->mark = mark;
	return bpf_skb_store_bytes(skb, 0, chosen->mac, ETH_ALEN, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

// An ICMP error follows the packet it speaks of, which a replica has sent: its header is inside (RFC 792).
static inline_always int icmp(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	__u8 type;
	if (load(skb, p, p->inner, &type, sizeof(type)))
		return TC_ACT_OK;
	if (type != ICMP_DEST_UNREACH && type != ICMP_TIME_EXCEEDED)
		return TC_ACT_OK;
	struct iphdr sent;
	__u32 start = p->inner + ICMP_HEADER;
	if (load(skb, p, start, &sent, sizeof(sent)) || sent.version != 4 || sent.ihl < 5)
		return TC_ACT_OK;
	if (sent.saddr != p->flow.vip || sent.frag_off & htons(IP_OFFSET))
		return TC_ACT_OK;
	__be16 ports[2];	// of the sender, of the receiver
	if (load(skb, p, start + sent.ihl * 4, ports, sizeof(ports)))
		return TC_ACT_OK;
	p->flow.client = sent.daddr;
	p->flow.client_port = ports[1];
	p->flow.vip_port = ports[0];
	if (sent.protocol == IPPROTO_TCP)
		return connection(skb, p, chosen);
	if (sent.protocol != IPPROTO_UDP)
		return TC_ACT_OK;
	int verdict = chosen->flags & STICKY ? stay(skb, p) : TC_ACT_UNSPEC;
	return verdict == TC_ACT_UNSPEC ? to_all(skb, p, chosen) : verdict;
}

// A first fragment: it is here, so a datagram that had its number before is no longer followed elsewhere. Should it be handed
// over now, that is noted then.
static inline_always void first_fragment(struct packet *p)
{
	__u32 *with = bpf_map_lookup_elem(&fragments_v1, &p->datagram);
	if (with)
		*with = p->self;
	p->first = 1;
}

// A fragment that isn't the first: after it.
static inline_always int later_fragment(struct __sk_buff *skb, struct packet *p)
{
	__u32 *with = bpf_map_lookup_elem(&fragments_v1, &p->datagram);
	if (!with || *with == p->self)
		return TC_ACT_OK;
	__u32 ifindex = *with;
	struct attached *replica = attached(ifindex, p->flow.vip);
	return replica ? hand_over(skb, p, ifindex, replica->mac) : TC_ACT_OK;
}

SEC("classifier")
int owner(struct __sk_buff *skb)
{
	struct packet p = {};
	if (skb->mark == COPY) {
		skb->mark = 0;
		return TC_ACT_OK;
	}
	if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return TC_ACT_OK;
	if (peek(skb, ETH_HLEN, &p.ip, sizeof(p.ip)) || p.ip.version != 4 || p.ip.ihl < 5)
		return TC_ACT_OK;
	p.self = skb->ifindex;
	p.inner = ETH_HLEN + p.ip.ihl * 4;
	p.flow.client = p.ip.saddr;
	p.flow.vip = p.ip.daddr;
	struct attached *chosen = attached(p.self, p.flow.vip);
	if (!chosen)
		return TC_ACT_OK;	// not to a VIP of this pod's, so not by our route
	if (p.ip.frag_off & htons(IP_MF | IP_OFFSET)) {
		p.datagram.client = p.ip.saddr;
		p.datagram.vip = p.ip.daddr;
		p.datagram.id = p.ip.id;
		p.datagram.protocol = p.ip.protocol;
		if (p.ip.frag_off & htons(IP_OFFSET))
			return later_fragment(skb, &p);
		first_fragment(&p);
	}
	switch (p.ip.protocol) {
	case IPPROTO_TCP:
		return tcp(skb, &p, chosen);
	case IPPROTO_UDP:
		return udp(skb, &p, chosen);
	case IPPROTO_ICMP:
		return icmp(skb, &p, chosen);
	}
	return portless(&p, chosen);
}

SEC("classifier")
int guard(struct __sk_buff *skb)
{
	// No IPv6 until VIPs have it, and neighbours are permanent on both sides: nothing but IPv4 has business here.
	if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return TC_ACT_SHOT;
	__u32 self = skb->ifindex;
	struct iphdr ip;
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return TC_ACT_SHOT;
	if (attached(self, ip.saddr))
		return TC_ACT_OK;
	__u64 *spoofed = bpf_map_lookup_elem(&spoofed_v1, &self);
	__u64 one = 1;
	if (spoofed)
		(*spoofed)++;
	else
		bpf_map_update_elem(&spoofed_v1, &self, &one, BPF_NOEXIST);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual MIT/GPL";
