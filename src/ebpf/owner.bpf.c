// A flow belongs to the socket that holds it. Two programs on the host veth of every replica's pair:
//
//   owner (tc egress)   the VIP's group has chosen this replica. A TCP packet that opens no connection is handed to the
//                       replica of the VIP whose network namespace holds its socket, wherever the group's hash sent it. New
//                       connections go where the hash says, and where nobody listens there, to another replica that does.
//                       The replicas' own socket tables are the connection table: nothing is stored that could be wrong,
//                       nothing times out, nothing is lost on a restart. It drops what isn't for a VIP of this
//                       pod, and what comes from one of its own addresses.
//   guard (tc ingress)  what comes out of the pod's vip0 must have one of the pod's VIPs as its source, and be an answer.
//                       It drops the rest.
//
// Both have a part in express (express.h), whose own two programs run on uplinks. Two more run on the tunnel between nodes (nodes.h), and
// three in pods whose UDP ports are named (answers.h).
//
// Headers are copied to the stack before they are read (peek), so it doesn't matter whether they lie in the linear part
// of the packet; what is too short to be read, or is no IPv4, is never guessed at. GSO packets carry the headers
// of all their segments.
//
// The form of the maps is part of their names (…_v1): a program of another form never sees them. src/ebpf/layout.rs compares the
// structs with those of the Rust side, src/ebpf/spec.rs says which program has which map.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "helpers.h"

// Replicas of a VIP that are asked for a flow's socket. Where no function can be verified alone the verifier walks the question to
// each of them: fewer, in a map of another form.
#ifdef WITHOUT_BTF
#define MEMBERS 8
#define vips_v3 vips_few_v3
// One search more would be too much for it.
#define WITHHOLDS_RESETS 0
// Nor is there room in it for what other nodes have: such a node stands alone.
#define HAS_TUNNEL 0
// Nor for whose a flow is where several ports have one number in a pod: one client's port at two of them at once is mixed up there.
#define ASKS_NOTES 0
// What one way through a function knows of a pointer is looked up again, so that it goes on as the other ones.
#define FEW_WAYS 1
#else
#define MEMBERS 256
#define WITHHOLDS_RESETS 1
#define HAS_TUNNEL 1
#define ASKS_NOTES 1
#define FEW_WAYS 0
#endif
// Maps whose keys have a client's address.
#ifdef IPV6
#define hints_v3 hints6_v1
#define sticky_v2 sticky6_v1
#define heard_v1 heard6_v1
#define fragments_v2 fragments6_v1
#define calls_v1 calls6_v1
#define sources_v1 sources6_v1
#define clients_v1 clients6_v1
#define owner owner6
#define outward outward6
#define inward inward6
#define answerers_v1 answerers6_v1
#define asked_v1 asked6_v1
#define express_in express_in6
#define express_seen express_seen6
#endif
// Ports a VIP may be limited to.
#define PORTS 64
// Where headers may begin that are read without a call. (The verifier wants a bound.)
#define LINEAR 256
#define SECOND 1000000000ULL
// Of each CPU's time one nanosecond in so many is an allowance, and up to a second's worth of it may be used at once: 7 % for
// searches for connections, as much for retransmitted SYNs, and as much for asking other nodes; 1.8 % for what ends a handshake, for ICMP errors about UDP, and
// for asking other nodes for UDP flows that stay.
// A flood of one kind takes nothing from the others.
#define ONE_IN 14
#define ONE_IN_FEW 56
// A VIP's own share of each, which no flood of another VIP's packets can take away. What is used of it is charged to the
// allowance too, which may owe a second's worth at most: so the sum of all shares is bounded, however many VIPs there are.
#define SHARE_ONE_IN 1024
// What it costs a VIP's share to remember a UDP flow, in nanoseconds: 8,192 new ones a second and CPU.
#define FLOW_COSTS ((__s64)(SECOND / 8192))
// A replica's part of a search is never charged with more, in nanoseconds: an interrupt or a hypervisor may have come between.
#define QUESTION_COSTS 2000
// For so long after a SYN for a replica was handed to another one, as nobody listened there, those that follow may be its
// repetitions, in nanoseconds: a SYN-ACK is repeated for about a minute (tcp_synack_retries 5).
#define REPEATED_FOR (64 * SECOND)
// What a copy of a packet costs where it arrives.
#define COPY_COSTS 1000
// skb->tc_index of what the owner has made itself (none of express' kinds): it has the VIP's number already. A pod that may set it can
// send from a port of its VIP that it doesn't serve.
#define MADE_HERE 1

// An address of IPv6: nodes have such, whatever the packets are of.
struct ipv6 {
	__be32 w[4];
};

#include "vips.h"

#ifndef WITHOUT_BTF
// Copies from the packet's linear part. A frame begins two octets before a word (NET_IP_ALIGN), so that each header behind Ethernet's begins with
// one, and is read by words. (Of a pointer to octets the compiler knows no alignment, and would read each by itself.)
static inline_always void copy(void *to, const __u8 *from, __u32 offset, __u32 len)
{
	if (__builtin_constant_p(offset) && !offset)
		__builtin_memcpy(to, __builtin_assume_aligned(from, sizeof(__u16)), len);
	else
		__builtin_memcpy(to, __builtin_assume_aligned(from + offset, sizeof(__u32)), len);
}
#endif

// Bytes of the packet: as a rule they are in its linear part, where reading is cheaper than calling a helper.
static inline_always int peek(struct __sk_buff *skb, __u32 offset, void *to, __u32 len)
{
#ifndef WITHOUT_BTF	// the verifier would walk all that follows for either way of reading, and again for the next header
	const __u8 *from = (void *)(long)skb->data;
	if (offset <= LINEAR && from + offset + len <= (const __u8 *)(long)skb->data_end) {
		copy(to, from, offset, len);
		return 0;
	}
#endif
	return bpf_skb_load_bytes(skb, offset, to, len);
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

// The way of a packet past a host veth.
enum { INTO_POD, OUT_OF_POD };

// A port as keys and entries have it.
static inline_always __u32 numbered(__u32 protocol, __be16 port)
{
	return protocol << 16 | ntohs(port);
}

// Whether it is one of the numbers that stand for VIPs of IPv6 in the maps (ipv6.h), of 240.0.0.0/4 (RFC 1112): as the address of a packet it
// is nobody's.
static inline_always int is_number(__be32 address)
{
	return (address & htonl(0xf0000000)) == htonl(0xf0000000);
}

// The address family.
#ifdef IPV6
#include "ipv6.h"
#else
#include "ipv4.h"
#endif

#include "noted.h"

#include "accounts.h"

// Not 0 while this CPU sends copies of a packet to other host veths: the owner runs there within the call that sends one, and
// must not send copies in turn. A mark of the packet would say the same, and could be set by others.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} copying_v1 SEC(".maps");

static inline_always __u32 *copying(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&copying_v1, &zero);
}

static inline_always int is_copy(void)
{
	__u32 *flag = copying();
	return flag && *flag;
}

#include "ports.h"
#if HAS_TUNNEL
#include "tunnel.h"

// policy.h
__u64 place_of_client(struct packet *p, __u32 protocol);
int keep_client(struct packet *p, __u32 protocol, __u32 ifindex, __u32 node);
int to_place_of_client(struct __sk_buff *skb, struct packet *p, __u32 protocol, __u32 only_here);
// serving.h
__u64 appointed(struct packet *p, __u32 protocol, __u32 via, __u32 here);
int drawn(struct __sk_buff *skb, struct packet *p, __u32 protocol);
int to_server(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u32 protocol);
int begin_there(struct __sk_buff *skb, struct packet *p, __u32 node, __u32 protocol);
static int opening_elsewhere(struct __sk_buff *skb, struct packet *p, __u32 via);
#endif

#include "connections.h"

verified_alone int is_listed(const struct attached *replica, __u32 protocol, __u32 port)
{
	__u32 wanted = numbered(protocol, (__be16)port);
	if (!replica)
		return 0;
#ifdef WITHOUT_BTF	// one way through, and not one for each port; two ports a step: a borrow tells that one is the wanted one
	const __u64 ones = 0x0000000100000001ULL, *pair = (const void *)replica->port;
	__u64 listed = 0;
	for (__u32 i = 0; i < PORTS / 2; i++) {
		__u64 differs = pair[i] ^ wanted * ones;
		listed |= (differs - ones) & ~differs;
	}
	return (listed & ones << 31) != 0;
#endif
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

// Whether one more flow of the VIP's may be remembered: not more new ones than its share, or one VIP's flood would push out what is
// known of others.
static inline_always int may_remember(__be32 vip)
{
	struct share *share = share_of(vip);
	if (!share)
		return 0;
	refill(&share->flows, bpf_ktime_get_ns(), 1);
	if (share->flows.left <= 0)
		return 0;
	share->flows.left -= FLOW_COSTS;
	return 1;
}

#include "policy.h"

#include "openings.h"

// Remembers a flow that a client outside has begun by a protocol whose sockets don't tell of it. Called only where the guard
// reads the entry.
static inline_always void hear(struct packet *p)
{
	struct heard key = { .flow = p->flow, .protocol = PROTOCOL(p) };
	if (p->is_own)
		key.flow.client = stand_in(p->is_own);
	if (!bpf_map_lookup_elem(&heard_v1, &key) && may_remember(p->flow.vip))
		bpf_map_update_elem(&heard_v1, &key, &p->self, BPF_ANY);
}

// What may be for a port that isn't served: it has no port, or none that can be read.
static inline_always int portless(struct packet *p, struct attached *chosen)
{
	if (!(chosen->flags & GUARDED)) {
		hear(p);
		return TC_ACT_OK;
	}
	count(p->flow.vip, PORT_DENIED);
	return TC_ACT_SHOT;
}

// What a packet is to the programs.
enum { NO_FLOW, OPENS, BELONGS, DATAGRAM, REPORTS, FOLLOWS };

static inline_always int read_tcp(struct __sk_buff *skb, struct packet *p)
{
	if (load(skb, p, p->inner, &p->tcp, sizeof(p->tcp)) || p->tcp.doff < sizeof(p->tcp) / 4)
		return NO_FLOW;
	p->flow.client_port = p->tcp.source;
	p->flow.vip_port = p->tcp.dest;
	p->cookie = p->tcp.ack && !p->tcp.syn && !p->tcp.rst;
	p->for_opening = p->tcp.syn || p->tcp.rst;
	return p->tcp.syn && !p->tcp.ack ? OPENS : BELONGS;
}

#include "udp.h"

// What an ICMP packet is.
static inline_always int read_icmp(struct __sk_buff *skb, struct packet *p)
{
	int protocol = read_error(skb, p);
	return protocol == IPPROTO_TCP ? BELONGS : protocol == IPPROTO_UDP ? REPORTS : NO_FLOW;
}

static inline_always int reports(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	int verdict = chosen->flags & STICKY ? stay(skb, p) : TC_ACT_UNSPEC;
	return verdict == TC_ACT_UNSPEC ? udp_error(skb, p, chosen) : verdict;
}

// A fragment that isn't the first: after it.
static inline_always int later_fragment(struct __sk_buff *skb, struct packet *p)
{
	struct hint *with = bpf_map_lookup_elem(&fragments_v2, &p->datagram);
	if (!with || with->ifindex == p->self)
		return TC_ACT_OK;
	__u32 ifindex = with->ifindex;
#if HAS_TUNNEL
	if (!ifindex)
		return came_by_tunnel(skb) ? TC_ACT_SHOT : follow_far(skb, p, with->node);
#endif
	struct attached *replica = attached(ifindex, p->flow.vip);
	return replica ? hand_over(skb, p, ifindex, replica->mac) : TC_ACT_OK;
}

// Nothing but packets for VIPs has business there: neighbours are permanent on both sides, and either family has programs of its own.
static inline_always int misrouted(struct __sk_buff *skb)
{
	dropped(skb->ifindex, 0);
	return TC_ACT_SHOT;
}

#include "express.h"
#if HAS_TUNNEL
#include "serving.h"
#include "nodes.h"
#endif

#include "own.h"
#include "answers.h"

// What the replica is to have of a packet that its host veth was chosen for.
static inline_always int taken(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	int what = NO_FLOW;
	switch (PROTOCOL(p)) {
	case IPPROTO_TCP:
		what = read_tcp(skb, p);
		break;
	case IPPROTO_UDP:
		return arrived(skb, p, chosen, udp(skb, p, chosen));
	case IPPROTO_ERRORS:
		what = read_icmp(skb, p);
		if (what == NO_FLOW)
			return TC_ACT_OK;
	}
	switch (what) {
	case OPENS:
		return arrived(skb, p, chosen, opening(skb, p, chosen));
	case BELONGS:
		return arrived(skb, p, chosen, connection(skb, p, chosen));
	case REPORTS:
		return reports(skb, p, chosen);
	}
	return portless(p, chosen);
}

SEC("classifier")
int owner(struct __sk_buff *skb)
{
	struct packet p = {};
	if (read_packet(skb, &p))
		return misrouted(skb);
#if HAS_TUNNEL && !defined(IPV6)
	if (restore_tos(skb, &p))
		return TC_ACT_SHOT;
#endif
	struct attached *chosen = attached(p.self, p.flow.vip);
	if (!chosen)	// the VIP's group has chosen a wrong device, or the VIP's entry is missing
		return misrouted(skb);
	if (is_from_itself(&p)) {
		count(p.flow.vip, OWN_SOURCE);
		return TC_ACT_SHOT;
	}
	p.is_own = unknown(skb, own_address(&p.flow, chosen, p.self));
	if (is_fragment(&p)) {
		if (read_fragment(&p))
			return homeward(skb, &p, chosen, later_fragment(skb, &p));
		lead_no_more(&p, p.self, 0);	// should it be handed over now, that is noted then
	}
	p.first = unknown(skb, p.first);
	return delivered(skb, &p, chosen, homeward(skb, &p, chosen, taken(skb, &p, chosen)));
}

// What the programs have sent up a host veth, for the second time or in the pod's name, has the VIP's numbers already.
static inline_always int has_left(const struct __sk_buff *skb)
{
	return skb->tc_index == MADE_HERE || (skb->tc_index & KIND) == CLONE;
}

#ifdef IPV6
#include "guard6.h"
#else
#include "guard4.h"

#endif

char _license[] SEC("license") = "Dual MIT/GPL";
