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
// The form of the maps is part of their names (…_v1): a program of another form never sees them. src/ebpf/maps.rs has the same
// structs, src/ebpf/spec.rs says which program has which map.
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

// A VIP of an attachment.
struct attached_key {
	__u32 ifindex;		// the host veth
	__be32 vip;
};

#define GUARDED 1		// only the ports listed
#define STICKY 2		// UDP flows stay
#define OVER_MEMBER_LIMIT 4	// the VIP has more replicas than MEMBERS: note when this one was of use
#define ANY_EGRESS 8		// flows may begin in the pod
#define DRAINING 16		// no new flows; and a member's flag
#define TRANSLATES 32		// of some of its ports the pod has another number; and a member's flag
#define SHARES 64		// of several of its ports the pod has one number; and a member's flag
#define POLICED 128		// of some ports of the VIP Services ask something (policy.h); and a VIP's flag

struct attached {
	__u64 syn_search_until;	// CLOCK_MONOTONIC, ns, written here: SYNs for this replica may have been handed to another one
	__u32 netns;		// the pod's namespace, as an id of the node's
	__u32 flags;
	__u8 mac[ETH_ALEN];	// the container veth's address
	__u16 ports;		// how many are listed
	__u32 port[PORTS];	// protocol << 16 | port
	__u16 target[PORTS];	// what the pod has in the place of each; the programs read translations_v1
	__be32 own;		// the pod's own address
	__u32 weight;		// among the VIP's replicas on this node; 0 is 1, too
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct attached_key);
	__type(value, struct attached);
} attached_v3 SEC(".maps");

struct member {
	__u32 ifindex;
	__u32 netns;
	__u8 mac[ETH_ALEN];
	__u8 flags;		// DRAINING, TRANSLATES, SHARES
	__u8 weight;		// as its entry's
};

#define SUSPECT 1		// a node that has replicas of the VIP has fallen silent: it may have any flow
#define FLOWS_STAY 2		// of UDP, by the word of a replica here or elsewhere; where there are other nodes
#define LINGERS 4		// no replica is known, here or elsewhere: until syn_search_until packets under way are passed on
#define PORTS_DIFFER 8		// replicas serve different ports, here or elsewhere: servers_v1 says which
#define KEPT_HERE 16		// clients outside are for the replicas here, while any is ready (externalTrafficPolicy: Local)
#define ALL_KEPT_HERE 32	// all clients are (trafficDistribution: PreferSameNode)

// The replicas of a VIP on this node, draining ones too.
struct vip {
	__u64 syn_search_until;	// CLOCK_MONOTONIC, ns: buckets may move, so a SYN may be a second one for another replica
	__u32 count;
	__u32 ready;		// how many of them get new connections
	__be32 next;		// the node behind this one, in the order of their ids, that has replicas of it; 0: none
	__u32 flags;		// SUSPECT, FLOWS_STAY, LINGERS, PORTS_DIFFER, KEPT_HERE, ALL_KEPT_HERE, POLICED
	struct member member[MEMBERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);
	__type(value, struct vip);
} vips_v3 SEC(".maps");

static inline_always struct attached *attached(__u32 ifindex, __be32 vip)
{
	struct attached_key key = { .ifindex = ifindex, .vip = vip };
	return bpf_map_lookup_elem(&attached_v3, &key);
}

// Bytes of the packet: as a rule they are in its linear part, where reading is cheaper than calling a helper.
static inline_always int peek(struct __sk_buff *skb, __u32 offset, void *to, __u32 len)
{
#ifndef WITHOUT_BTF	// the verifier would walk all that follows for either way of reading, and again for the next header
	const __u8 *from = (void *)(long)skb->data;
	if (offset <= LINEAR && from + offset + len <= (const __u8 *)(long)skb->data_end) {
		__builtin_memcpy(to, from + offset, len);
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

#define OPENING 1		// of a TCP flow: a SYN went there, and nothing has been heard since
#define ASKED 2			// of a UDP flow: that is the group's choice, while other nodes are asked for the flow

// Where a misplaced TCP flow was found last: a replica here, or another node. Asked before it is believed; what leads to a node that
// doesn't have it comes back.
struct hint {
	__u32 ifindex;
	__be32 node;		// 0: a replica here
	__u32 flags;		// OPENING, ASKED
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, struct hint);
} hints_v3 SEC(".maps");

// UDP flows that stay where they began: a replica here, or another node.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, struct hint);
} sticky_v2 SEC(".maps");

// Flows of UDP, or of a protocol that has no ports here, that a client outside has begun with a VIP: what the pod sends of them
// is an answer. Any replica may give it.
struct heard {
	struct flow flow;
	__u8 protocol;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct heard);
	__type(value, __u32);	// ifindex of the replica it came to
} heard_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct datagram);
	__type(value, struct hint);	// neither a replica nor a node: round all nodes
} fragments_v2 SEC(".maps");

// What became of a VIP's packets.
enum { LOCAL_HIT, STEERED, NO_OWNER, SEARCH_THROTTLED, PORT_DENIED, EGRESS_DENIED, RESET_WITHHELD, OWN_SOURCE, SOURCE_DENIED, COUNTS };

struct counts {
	__u64 n[COUNTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);	// the VIP
	__type(value, struct counts);
} counts_v4 SEC(".maps");

// Packets that were dropped at a host veth and name no VIP of its pod's.
struct link_drops {
	__u64 spoofed;		// from the pod, with a source that isn't its own
	__u64 misrouted;	// to the pod, and for no VIP of its
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);	// ifindex
	__type(value, struct link_drops);
} link_drops_v1 SEC(".maps");

// The second in which a replica of a VIP over its member limit last had a packet of a connection.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);	// ifindex
	__type(value, __u64);
} used_v1 SEC(".maps");

enum { FOR_CONNECTIONS, FOR_SYNS, FOR_HANDSHAKES, FOR_ERRORS, FOR_WALKS, FOR_FLOWS, ALLOWANCES };

struct allowance {
	__u64 since;	// CLOCK_MONOTONIC, ns: when it was refilled last
	__s64 left;	// ns; below 0: more was taken than there was
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ALLOWANCES);
	__type(key, __u32);
	__type(value, struct allowance);
} allowances_v5 SEC(".maps");

// What is a VIP's own.
struct share {
	struct allowance of[ALLOWANCES];
	struct allowance flows;	// ns: what remembering UDP flows costs
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __be32);	// the VIP
	__type(value, struct share);
} shares_v3 SEC(".maps");

// Not 0 while this CPU sends copies of a packet to other host veths: the owner runs there within the call that sends one, and
// must not send copies in turn. A mark of the packet would say the same, and could be set by others.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} copying_v1 SEC(".maps");

// The fragments behind a first one that goes to a replica, or to a node, follow it there; where it goes to neither, round all nodes.
// (By itself: few packets are in fragments, and none of the others is to have their key on its stack.)
verified_alone int lead_fragments(struct packet *p, __u32 ifindex, __u32 node)
{
	if (!p)
		return 0;
	struct datagram datagram = p->datagram;
	struct hint to = { .ifindex = ifindex, .node = node };
	bpf_map_update_elem(&fragments_v2, &datagram, &to, BPF_ANY);
	return 0;
}

static inline_always void lead(struct packet *p, __u32 ifindex, __be32 node)
{
	if (p->first)
		lead_fragments(p, ifindex, node);
}

// A first fragment goes where all of its datagram do: one that had its number before is no longer followed elsewhere.
static inline_always void lead_no_more(struct packet *p, __u32 ifindex, __be32 node)
{
	struct hint *with = bpf_map_lookup_elem(&fragments_v2, &p->datagram);
	if (!with)
		return;
	with->ifindex = ifindex;
	with->node = node;
}

// What entries begin with. (Not on the stack, where those that make them have too little left.)
static const struct counts NO_COUNTS;
static const struct share NO_SHARE;

// (Functions of their own, for the key.)
verified_alone int make_counts(__u32 vip)
{
	return (int)bpf_map_update_elem(&counts_v4, &vip, &NO_COUNTS, BPF_NOEXIST);
}

static inline_always void count(__be32 vip, __u32 what)
{
	struct counts *counts = bpf_map_lookup_elem(&counts_v4, &vip);
	if (!counts) {
		make_counts(vip);
		counts = bpf_map_lookup_elem(&counts_v4, &vip);
	}
	if (counts)
		counts->n[what]++;
}

static inline_always void used(const struct attached *replica, __u32 ifindex)
{
	if (!(replica->flags & OVER_MEMBER_LIMIT))
		return;
	__u64 now = bpf_ktime_get_ns() / SECOND;
	__u64 *before = bpf_map_lookup_elem(&used_v1, &ifindex);
	if (!before || *before != now)
		bpf_map_update_elem(&used_v1, &ifindex, &now, BPF_ANY);
}

static inline_always void dropped(__u32 ifindex, int is_spoofed)
{
	struct link_drops *drops = bpf_map_lookup_elem(&link_drops_v1, &ifindex);
	if (drops) {
		drops->spoofed += is_spoofed;
		drops->misrouted += !is_spoofed;
		return;
	}
	struct link_drops first = { .spoofed = is_spoofed, .misrouted = !is_spoofed };
	bpf_map_update_elem(&link_drops_v1, &ifindex, &first, BPF_NOEXIST);
}

verified_alone int make_share(__u32 vip)
{
	return (int)bpf_map_update_elem(&shares_v3, &vip, &NO_SHARE, BPF_NOEXIST);
}

static inline_always struct share *share_of(__be32 vip)
{
	struct share *share = bpf_map_lookup_elem(&shares_v3, &vip);
	if (share)
		return share;
	make_share(vip);
	return bpf_map_lookup_elem(&shares_v3, &vip);
}

// Adds what has come to it since, one nanosecond in so many.
static inline_always void refill(struct allowance *a, __u64 now, __u32 one_in)
{
	__s64 most = SECOND / one_in;
	a->left += (now - a->since) / one_in;
	if (a->left > most)
		a->left = most;
	else if (a->left < -most)
		a->left = -most;
	a->since = now;
}

// What a search may take.
struct grant {
	struct allowance *all;	// this CPU's
	struct allowance *own;	// of it the VIP's; may be 0
};

// Whether anything is left for such a search; it begins.
static inline_always int allowed(struct grant *grant, __u32 which, __be32 vip)
{
	struct allowance *all = bpf_map_lookup_elem(&allowances_v5, &which);
	struct share *share = share_of(vip);
	__u32 place = which;
	asm volatile("" : "+r"(place));	// or the compiler leaves out the check that the verifier wants to see
	if (!all || place >= ALLOWANCES)
		return 0;
#ifdef WITHOUT_BTF	// two ways less
	if (!share)
		return 0;
#endif
	__u32 one_in = which == FOR_HANDSHAKES || which == FOR_ERRORS || which == FOR_FLOWS ? ONE_IN_FEW : ONE_IN;
	__u64 now = bpf_ktime_get_ns();
	grant->all = all;
	grant->own = share ? &share->of[place] : 0;
	refill(all, now, one_in);
	if (grant->own)
		refill(grant->own, now, SHARE_ONE_IN);
	if (all->left > 0)
		return 1;
	return grant->own && grant->own->left > 0 && all->left > -(__s64)(SECOND / one_in);
}

static inline_always void take(struct grant *grant, __s64 costs)
{
	grant->all->left -= costs;
	if (grant->own)
		grant->own->left -= costs;
}

// The search among so many replicas has ended.
static inline_always void charge(struct grant *grant, __u32 replicas)
{
	__u64 took = bpf_ktime_get_ns() - grant->all->since;
	__u64 most = (__u64)replicas * QUESTION_COSTS;
	take(grant, took < most ? took : most);
}

// Copies go to so many replicas.
static inline_always void charge_copies(struct grant *grant, __u32 replicas)
{
	take(grant, (__s64)replicas * COPY_COSTS);
}

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
#endif

#if HAS_TUNNEL
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

// Sends the packet out by another replica's host veth.
static inline_always int hand_over(struct __sk_buff *skb, struct packet *p, __u32 ifindex, const __u8 *mac)
{
	if (bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	lead(p, ifindex, 0);
	return bpf_redirect(ifindex, 0);
}

// What a namespace knows of a flow. LISTENS is said to a SYN alone, which hears of no TIME_WAIT.
enum { NOTHING, TIME_WAIT, LISTENS, HALF_OPEN, OPEN };

// `port`: what the replica has in the place of the flow's; 0: nothing.
verified_alone int ask(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return NOTHING;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return NOTHING;
	int answer;
	__u32 state = sk->state;
	if (port & OCCUPIED && state != BPF_TCP_LISTEN)
		state = BPF_TCP_CLOSE;
	switch (state) {
	case BPF_TCP_LISTEN:	// holds no flow, unless this packet brings back the flow's own cookie
		answer = NOTHING;
		if (!p->cookie)
			break;
		p->tcp.dest = (__be16)port;	// the cookie is of what the replica has
		if (is_cookie(sk, p))
			answer = HALF_OPEN;
		break;
	case BPF_TCP_NEW_SYN_RECV:
		answer = HALF_OPEN;
		break;
	case BPF_TCP_SYN_SENT:	// a socket that opens a connection has none yet, whatever its ports are
		answer = p->for_opening ? HALF_OPEN : NOTHING;
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

// Whether a pod has its own calls to it under STAND_IN.
static inline_always int stands_in(__u32 flags, __u32 protocol)
{
	return protocol == IPPROTO_UDP || flags & TRANSLATES;
}

// Asks a replica for a connection, which may be one that it has with itself, by that address of its own.
static inline_always __u32 ask_as(struct __sk_buff *skb, struct packet *p, const struct attached *replica, __u32 ifindex, __u32 own)
{
	client_address client = p->flow.client;
	int is_other = own && stands_in(replica->flags, IPPROTO_TCP);
	if (is_other)
		set_client(p, stand_in(own));
	__u32 answer = ask(skb, p, replica->netns, port_at(p, replica->flags, ifindex, IPPROTO_TCP));
	if (is_other)
		set_client(p, client);
	return answer;
}

// What a search has found so far.
struct found {
	__u32 answer;		// the best one
	__u32 ifindex;		// and who gave it
	__u32 netns;
	__u32 several;		// how many have the flow in TIME_WAIT; of UDP sockets: how many may have sent the packet
};

// Nothing so far.
static inline_always void clear(struct __sk_buff *skb, struct found *found)
{
	found->answer = unknown(skb, 0);
	found->ifindex = unknown(skb, 0);
	found->netns = unknown(skb, 0);
	found->several = unknown(skb, 0);
}

static inline_always void note(struct __sk_buff *skb, struct found *found, const struct member *m, __u32 answer)
{
	if (answer <= found->answer)
		return;
	found->answer = unknown(skb, answer);
	found->ifindex = m->ifindex;
	found->netns = m->netns;
}

// Asks one replica, unless it is the chosen one. Not 0: the search is over. A handshake doesn't end it: any client can begin
// one with the ports of another client's connection.
verified_alone int ask_member(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_TCP));
	if (answer == TIME_WAIT)
		found->several++;
	note(skb, found, m, answer);
	return answer == OPEN;
}

// Asks all replicas but the chosen one; finds one that holds the flow, failing that, one that is about to, or has it in
// TIME_WAIT.
static inline_always __u32 search(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	clear(skb, found);
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count || ask_member(skb, p, v, found, i))
			break;
	}
	return found->answer;
}

// The replica that was found, if it is still one: the list of those to ask may be older than its entry.
static inline_always struct attached *found_replica(const struct packet *p, const struct found *found)
{
	struct attached *replica = attached(found->ifindex, p->flow.vip);
	return replica && replica->netns == found->netns ? replica : 0;
}

// Sends a copy to one replica, unless it is the chosen one.
verified_alone int copy_to(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	__u32 ifindex = v->member[i].ifindex;
	struct attached *replica = ifindex == p->self ? 0 : attached(ifindex, p->flow.vip);
	if (replica && !bpf_skb_store_bytes(skb, 0, replica->mac, ETH_ALEN, 0))
		bpf_clone_redirect(skb, ifindex, 0);
	return 0;
}

// A copy to one replica if it has the flow in TIME_WAIT.
verified_alone int copy_to_waiting(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	return ask(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_TCP)) == TIME_WAIT ? copy_to(skb, p, v, i) : 0;
}

// More than one replica has a flow of these ports and addresses in TIME_WAIT: the client has used its port again and reached
// another one. Whose last packet this is only they can tell (to the others it is old), so each gets a copy.
static inline_always int to_waiting(struct __sk_buff *skb, struct packet *p, struct vip *v, struct attached *chosen)
{
	__u32 *flag = copying();
	if (!flag)
		return TC_ACT_OK;
	*flag = 1;
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count)
			break;
		copy_to_waiting(skb, p, v, i);
	}
	*flag = 0;
	return bpf_skb_store_bytes(skb, 0, chosen->mac, ETH_ALEN, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

#if HAS_TUNNEL
// For so long nothing has changed that no flow of the VIP can be in TIME_WAIT where it was opened before, and open elsewhere.
static inline_always int is_settled(const struct vip *v)
{
	return bpf_ktime_get_ns() >= v->syn_search_until;
}
#endif

// Where the flow was found before, if it is still there: TC_ACT_UNSPEC if not. `here` is what the chosen replica has.
static inline_always int try_hint(struct __sk_buff *skb, struct packet *p, __u32 here)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (!hint || hint->ifindex == p->self)
		return TC_ACT_UNSPEC;
	__u32 ifindex = hint->ifindex;
#if HAS_TUNNEL
	if (hint->node) {
		struct vip *v = here ? bpf_map_lookup_elem(&vips_v3, &p->flow.vip) : 0;
		// Any host can send a SYN: that one went there tells nothing of whose the flow is.
		if (hint->flags & OPENING || (here && (!v || is_settled(v))))
			return TC_ACT_UNSPEC;
		return to_node(skb, p, hint->node);
	}
#else
	(void)here;
#endif
	struct attached *replica = attached(ifindex, p->flow.vip);
	if (!replica || ask_as(skb, p, replica, ifindex, own_address(&p->flow, replica, ifindex)) != OPEN)
		return TC_ACT_UNSPEC;
	used(replica, ifindex);
	count(p->flow.vip, STEERED);
	return hand_over(skb, p, ifindex, replica->mac);
}

// Whether another node may have a flow of the VIP.
static inline_always int may_be_far(const struct vip *v)
{
	return HAS_TUNNEL && (v->next || v->flags & SUSPECT);
}

#if HAS_TUNNEL
// No replica here has the flow, whose SYN went to another node: there. TC_ACT_UNSPEC: none did.
static inline_always int after_syn(struct __sk_buff *skb, struct packet *p)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (!hint || !(hint->flags & OPENING))
		return TC_ACT_UNSPEC;
	hint->flags = 0;
	return to_node(skb, p, hint->node);
}
#endif

// A packet of a connection that the chosen replica doesn't have: `here` is what it does have.
static inline_always int elsewhere(struct __sk_buff *skb, struct packet *p, struct attached *chosen, __u32 here)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	struct grant grant = {};
	if (!v || (v->count < 2 && (here == HALF_OPEN || !may_be_far(v))))
		goto stays;
	if (here == HALF_OPEN) {
		// The end of a handshake, as a rule; but a client may have begun it with the ports of another client's connection.
		if (!allowed(&grant, FOR_HANDSHAKES, p->flow.vip))
			goto stays;
	} else if (!allowed(&grant, FOR_CONNECTIONS, p->flow.vip)) {
		// Not to the chosen replica: it would reset a connection that may well live in another one. TCP sends again,
		// and the chosen replica refuses packets that no replica owns when they come at a lower rate.
		count(p->flow.vip, SEARCH_THROTTLED);
		return here ? TC_ACT_OK : TC_ACT_SHOT;
	}
	here = unknown(skb, here);
	struct found found;
	__u32 there = search(skb, p, v, &found);
	charge(&grant, v->count);
#if HAS_TUNNEL
	__u32 best = there > here ? there : here;
	if (best == NOTHING || (best == TIME_WAIT && !is_settled(v))) {
		int verdict = after_syn(skb, p);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
		if (v->next)
			return begin_walk(skb, p, v->next, 0);
		if (best == NOTHING && v->flags & SUSPECT) {
			count(p->flow.vip, RESET_WITHHELD);
			return TC_ACT_SHOT;
		}
	}
#endif
	if (there == TIME_WAIT && here <= TIME_WAIT && found.several + here > 1) {
		charge_copies(&grant, v->count);
		count(p->flow.vip, STEERED);
		int verdict = to_waiting(skb, p, v, chosen);
		return here ? verdict : TC_ACT_STOLEN;
	}
	struct attached *replica = there > here ? found_replica(p, &found) : 0;
	if (!replica)	// no replica has the connection: the chosen one answers with a reset, as a host should
		goto stays;
	if (there == OPEN) {
		struct hint hint = { .ifindex = found.ifindex };
		bpf_map_update_elem(&hints_v3, &p->flow, &hint, BPF_ANY);
	}
	count(p->flow.vip, STEERED);
	return hand_over(skb, p, found.ifindex, replica->mac);
stays:
	if (here == HALF_OPEN)
		used(chosen, p->self);
	count(p->flow.vip, here ? LOCAL_HIT : NO_OWNER);
	return TC_ACT_OK;
}

// A packet of a connection, or an error about one: to the replica that has it.
static inline_always int connection(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	p->cookie = unknown(skb, p->cookie);
	p->for_opening = unknown(skb, p->for_opening);
	__u32 here = unknown(skb, ask_as(skb, p, chosen, p->self, p->is_own));
	if (here == OPEN) {
		used(chosen, p->self);
		count(p->flow.vip, LOCAL_HIT);
		p->held = 1;
		return TC_ACT_OK;
	}
	if (is_copy())
		return TC_ACT_OK;
	int verdict = try_hint(skb, p, here);
	return verdict == TC_ACT_UNSPEC ? elsewhere(skb, p, chosen, here) : verdict;
}

static inline_always int is_listed(const struct attached *replica, __u8 protocol, __be16 port)
{
	__u32 wanted = (__u32)protocol << 16 | ntohs(port);
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

// What a namespace has for a SYN: the connection, or a socket that would take it. One that is tied to a device takes only what
// comes by that one, which can't be told from here: it doesn't count.
verified_alone int ask_opening(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return NOTHING;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	if (sk && sk->state == BPF_TCP_TIME_WAIT) {	// it gives way to a socket that listens
		bpf_sk_release(sk);
		any_client(skb, &tuple);
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	}
	if (!sk)
		return NOTHING;
	int answer;
	__u32 state = sk->state;
	if (port & OCCUPIED && state != BPF_TCP_LISTEN)
		state = BPF_TCP_CLOSE;
	switch (state) {
	case BPF_TCP_LISTEN:
		answer = sk->bound_dev_if ? NOTHING : LISTENS;
		break;
	case BPF_TCP_NEW_SYN_RECV:
		answer = HALF_OPEN;
		break;
	case BPF_TCP_SYN_SENT:
	case BPF_TCP_TIME_WAIT:
	case BPF_TCP_CLOSE:
		answer = NOTHING;
		break;
	default:
		answer = OPEN;
	}
	bpf_sk_release(sk);
	return answer;
}

// The place among so many replicas where a flow's search begins: each packet's is the same, other flows' are others.
static inline_always __u32 begin_at(const struct flow *flow, __u32 replicas)
{
	__u32 hash = client_of(flow) * 0x9e3779b1U ^ ((__u32)flow->client_port << 16 | flow->vip_port);
	hash = (hash ^ hash >> 16) * 0x85ebca6bU;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
	hash ^= hash >> 16;
	return (__u64)hash * replicas >> 32;
}

// Whether a replica takes new flows of that port.
static inline_always int takes_new(const struct member *m, struct packet *p, __u8 protocol)
{
	if (m->flags & DRAINING)
		return 0;
	struct attached *replica = attached(m->ifindex, p->flow.vip);
	if (!replica)
		return 0;
#ifdef WITHOUT_BTF	// as is_listed()
	__u32 limited = replica->flags & GUARDED;
	return (replica->netns == m->netns) & (!limited | is_listed(replica, protocol, p->flow.vip_port));
#endif
	return replica->netns == m->netns && !is_refused(replica, protocol, p->flow.vip_port);
}

// Asks one replica about a SYN, unless it is the chosen one. Not 0: the search is over.
verified_alone int ask_member_opening(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask_opening(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_TCP));
	if (answer == LISTENS && !takes_new(m, p, IPPROTO_TCP))
		return 0;
	note(skb, found, m, answer);
	return answer == OPEN || (answer && p->settled);
}

// Asks all replicas but the chosen one about a SYN, beginning with one that the flow's hash gives: of those that listen the
// first one is found, so that it is the same one for each repetition; failing none, one that has the connection.
verified_alone int search_opening(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	if (!p || !v || !found)
		return NOTHING;
	__u32 replicas = v->count;
	__u32 start = begin_at(&p->flow, replicas);
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= replicas)
			break;
		__u32 place = start + i;
		if (place >= replicas)
			place -= replicas;
		if (ask_member_opening(skb, p, v, found, place))
			break;
	}
	return found->answer;
}

#if HAS_TUNNEL
// A SYN for a replica here. Where the one before it of these ports went to another node a moment ago, and buckets move, it is that
// one's repetition. Otherwise what was known of the ports is over.
static inline_always int repeated(struct __sk_buff *skb, struct packet *p)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (!hint)
		return TC_ACT_UNSPEC;
	if (!p->settled && hint->flags & OPENING)
		return to_node(skb, p, hint->node);
	bpf_map_delete_elem(&hints_v3, &p->flow);
	return TC_ACT_UNSPEC;
}
#endif

// A SYN that nobody may take: a reset.
static inline_always int refuse(struct __sk_buff *skb, struct packet *p)
{
	count(p->flow.vip, PORT_DENIED);
	return reset(skb, p);
}

// A SYN to a port that the chosen replica doesn't serve: to one that does, if there may be one. TC_ACT_UNSPEC: it is looked for among all
// replicas. (Without functions that are verified alone replicas with different ports have no equal shares: there is no room for lots.)
static inline_always int refused_opening(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
	if (!v || !(v->flags & PORTS_DIFFER) || is_copy())
		return refuse(skb, p);
#if HAS_TUNNEL
	p->settled = is_settled(v);
	p->kept_here = is_kept_here(skb, v->flags);
	int verdict = opening_elsewhere(skb, p, 0);
	return verdict == TC_ACT_UNSPEC ? refuse(skb, p) : verdict;
#else
	return v->count < 2 ? refuse(skb, p) : TC_ACT_UNSPEC;
#endif
}

// Of several replicas that listen the one whose lot is the best, where not all of them serve the port: else those that come behind one
// that doesn't would get its share.
static inline_always void draw(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
#if HAS_TUNNEL
	if (!(v->flags & PORTS_DIFFER))
		return;
	__u32 ifindex = drawn(skb, p, IPPROTO_TCP);
	struct attached *replica = ifindex ? attached(ifindex, p->flow.vip) : 0;
	if (!replica)
		return;
	found->ifindex = ifindex;
	found->netns = replica->netns;
#else
	(void)skb, (void)p, (void)v, (void)found;
#endif
}

// A SYN: to the chosen replica, if it serves its port and listens; if not, to one that does. While buckets move, or where nobody listened a moment
// ago, it may be the repetition of one that another replica has answered already: two half-open connections would kill each
// other. Where nobody listens the chosen one answers.
static inline_always int begins(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	int refused = is_refused(chosen, IPPROTO_TCP, p->flow.vip_port);
	if (refused) {
		int verdict = refused_opening(skb, p, v);
		if (HAS_TUNNEL || verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (!v || (v->count < 2 && !may_be_far(v)))
		return TC_ACT_OK;
	__u64 now = bpf_ktime_get_ns();
	p->settled = now >= v->syn_search_until && now >= chosen->syn_search_until;
	__u32 here = NOTHING;
	if (!refused)
		here = ask_opening(skb, p, chosen->netns, port_at(p, chosen->flags, p->self, IPPROTO_TCP));
#if HAS_TUNNEL
	if (may_be_far(v) && here < HALF_OPEN && !came_by_tunnel(skb)) {
		int verdict = repeated(skb, p);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
#endif
	if (here >= HALF_OPEN || (here == LISTENS && p->settled))
		return TC_ACT_OK;
	struct grant grant = {};
	if (!allowed(&grant, FOR_SYNS, p->flow.vip)) {
		if (here)
			return TC_ACT_OK;
		// Refused though another one may listen? TCP sends again.
		count(p->flow.vip, SEARCH_THROTTLED);
		return TC_ACT_SHOT;
	}
	here = unknown(skb, here);	// one way from here on, and not one for each that led here
	refused = unknown(skb, refused);
	p->settled = unknown(skb, p->settled);
	struct found found;
	clear(skb, &found);
	__u32 there = search_opening(skb, p, v, &found);
	if (there == LISTENS && !here)
		draw(skb, p, v, &found);
	charge(&grant, v->count);
	struct attached *replica = there > here ? found_replica(p, &found) : 0;
#if HAS_TUNNEL
	if (!here && !there && v->next && !is_copy())	// nobody here listens: another node's replica may
		return begin_walk(skb, p, v->next, 0);
#endif
	if (!replica)
		return refused ? refuse(skb, p) : TC_ACT_OK;
	if (!here && !refused && chosen->syn_search_until < now + REPEATED_FOR - SECOND)	// not for each SYN
		chosen->syn_search_until = now + REPEATED_FOR;
	count(p->flow.vip, STEERED);
#if HAS_TUNNEL
	if (p->policed)
		keep_client(p, IPPROTO_TCP, found.ifindex, 0);
#endif
	return hand_over(skb, p, found.ifindex, replica->mac);
}

// The client isn't of those that the port is for.
static inline_always int not_let_in(const struct packet *p)
{
	count(p->flow.vip, SOURCE_DENIED);
	return TC_ACT_SHOT;
}

// The same, as Services ask.
static inline_always int opening(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	if (chosen->flags & POLICED) {
		if (!is_let_in(p, IPPROTO_TCP))
			return not_let_in(p);
#if HAS_TUNNEL
		p->policed = 1;
		int verdict = is_copy() ? TC_ACT_UNSPEC : to_place_of_client(skb, p, IPPROTO_TCP, came_by_tunnel(skb));
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
#endif
	}
	p->flow.client_port = unknown(skb, p->flow.client_port);	// where both ways meet
	int begun = begins(skb, p, chosen);
#if HAS_TUNNEL
	if (p->policed && begun == TC_ACT_OK)
		keep_client(p, IPPROTO_TCP, p->self, 0);
#endif
	return begun;
}

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

// Keeps a UDP flow where it began: TC_ACT_UNSPEC where it has no such place.
static inline_always int stay(struct __sk_buff *skb, struct packet *p)
{
	struct hint *kept = bpf_map_lookup_elem(&sticky_v2, &p->flow);
	if (!kept)
		return TC_ACT_UNSPEC;
	__u32 ifindex = kept->ifindex;
#if HAS_TUNNEL
	if (kept->flags & ASKED)
		return TC_ACT_UNSPEC;
	if (kept->node)
		return came_by_tunnel(skb) ? TC_ACT_UNSPEC : to_node(skb, p, kept->node);
#endif
	if (ifindex == p->self)
		return TC_ACT_OK;
	struct attached *other = attached(ifindex, p->flow.vip);
	if (!other)
		return TC_ACT_UNSPEC;
	count(p->flow.vip, STEERED);
	return hand_over(skb, p, ifindex, other->mac);
}

// Whether a namespace has a UDP socket that would take the packet; as of TCP, one that is tied to a device doesn't count.
verified_alone int ask_datagram(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return 0;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return 0;
	int takes = !sk->bound_dev_if;
	bpf_sk_release(sk);
	return takes;
}

// Asks one replica about a datagram, unless it is the chosen one. Not 0: it takes it.
verified_alone int ask_member_datagram(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self || !ask_datagram(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_UDP)))
		return 0;
	return takes_new(m, p, IPPROTO_UDP) ? m->ifindex : 0;
}

// The host veth of a replica other than the chosen one that takes a datagram, the first one from where the flow's hash says; 0:
// none does.
verified_alone int search_datagram(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
	if (!p || !v)
		return 0;
	__u32 replicas = v->count;
	__u32 start = begin_at(&p->flow, replicas);
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= replicas)
			break;
		__u32 place = start + i;
		if (place >= replicas)
			place -= replicas;
		int ifindex = ask_member_datagram(skb, p, v, place);
		if (ifindex)
			return ifindex;
	}
	return 0;
}

// The same, by lot among those that serve the port where not all of them do.
static inline_always __u32 search_taker(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
#if HAS_TUNNEL
	if (v->flags & PORTS_DIFFER)
		return drawn(skb, p, IPPROTO_UDP);
#endif
	return search_datagram(skb, p, v);
}

// Who takes a datagram in the place of the replica at `at`, which has no socket for it; `at` where nobody does, or too many are
// looked for.
static inline_always __u32 receiver(struct __sk_buff *skb, struct packet *p, struct attached *chosen, __u32 at)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	struct grant grant = {};
	if (!v || v->count < 2 || !allowed(&grant, FOR_SYNS, p->flow.vip))
		return at;
	at = unknown(skb, at);
	__u32 there = 0;
	if (at != p->self && ask_datagram(skb, p, chosen->netns, port_at(p, chosen->flags, p->self, IPPROTO_UDP)))
		there = p->self;
	else
		there = unknown(skb, search_taker(skb, p, v));
	charge(&grant, v->count);
	return there ? there : at;
}

// Whether a flow has a replica here. (Without other nodes it has no other place: the verifier has enough to do there.)
static inline_always int has_replica(const struct hint *kept)
{
	return kept && (!HAS_TUNNEL || kept->ifindex);
}

// The host veth of a flow that has its replica here, and of which nobody is asked; 0: none.
static inline_always __u32 place_of(const struct hint *kept)
{
	return kept && (!HAS_TUNNEL || !kept->flags) ? kept->ifindex : 0;
}

// To where its flow began, if flows stay, or to the chosen replica; of a declared port, to another one if that one has no socket
// for it.
static inline_always int datagram(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct hint *kept = chosen->flags & STICKY ? bpf_map_lookup_elem(&sticky_v2, &p->flow) : 0;
#if HAS_TUNNEL
	if (chosen->flags & STICKY && !came_by_tunnel(skb)) {
		int verdict = stay_far(skb, p, 0);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
#endif
	__u32 noted = place_of(kept), at = has_replica(kept) ? kept->ifindex : p->self;
	struct attached *replica = at == p->self ? chosen : attached(at, p->flow.vip);
	if (!replica) {
		at = p->self;
		replica = chosen;
	}
	__u32 to = at;
	if (chosen->flags & GUARDED && !ask_datagram(skb, p, replica->netns, port_at(p, replica->flags, at, IPPROTO_UDP)))
		to = receiver(skb, p, chosen, at);
	if (chosen->flags & STICKY && noted != to) {
		struct hint place = { .ifindex = to };
		bpf_map_update_elem(&sticky_v2, &p->flow, &place, BPF_ANY);
	}
	if (to == p->self)
		return TC_ACT_OK;
	if (FEW_WAYS || to != at)
		replica = attached(to, p->flow.vip);
	if (!replica)
		return TC_ACT_OK;
	count(p->flow.vip, STEERED);
#if HAS_TUNNEL
	if (p->policed)
		keep_client(p, IPPROTO_UDP, to, 0);
#endif
	return hand_over(skb, p, to, replica->mac);
}

#if HAS_TUNNEL
// `stays`: so do its flows. TC_ACT_UNSPEC: nobody serves its port.
static inline_always int datagram_elsewhere(struct __sk_buff *skb, struct packet *p, __u32 stays)
{
	struct hint *kept = stays ? bpf_map_lookup_elem(&sticky_v2, &p->flow) : 0;
	if (kept && !kept->flags && kept->ifindex && kept->ifindex != p->self)
		return to_server(skb, p, kept->ifindex, IPPROTO_UDP);
	int is_inward = came_by_tunnel(skb);
	__u64 place = appointed(p, IPPROTO_UDP, 0, is_inward);
	if (!place)
		return TC_ACT_UNSPEC;
	__u32 self = p->self;
	if (stays && !is_inward) {
		p->self = place;	// what is noted while other nodes are asked for the flow
		int verdict = stay_far(skb, p, place >> 32);
		p->self = self;
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
		struct hint begins = { .ifindex = place, .node = place >> 32 };
		bpf_map_update_elem(&sticky_v2, &p->flow, &begins, BPF_ANY);
	}
	return (__u32)place ? to_server(skb, p, place, IPPROTO_UDP) : begin_there(skb, p, place >> 32, IPPROTO_UDP);
}
#endif

// A datagram to a port that the chosen replica doesn't serve: where its flow is, or begins among those that serve it.
static inline_always int refused_datagram(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	int verdict = TC_ACT_UNSPEC;
	if (v && v->flags & PORTS_DIFFER) {
#if HAS_TUNNEL
		verdict = datagram_elsewhere(skb, p, chosen->flags & STICKY);
#else
		(void)chosen;
		__u32 ifindex = search_datagram(skb, p, v);
		struct attached *replica = ifindex ? attached(ifindex, p->flow.vip) : 0;
		if (replica)
			return hand_over(skb, p, ifindex, replica->mac);
#endif
	}
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	count(p->flow.vip, PORT_DENIED);
	return TC_ACT_SHOT;
}

static inline_always int udp(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct udphdr udp;
	if (load(skb, p, p->inner, &udp, sizeof(udp)))
		return portless(p, chosen);
	p->flow.client_port = udp.source;
	p->flow.vip_port = udp.dest;
	if (chosen->flags & POLICED) {
		if (!is_let_in(p, IPPROTO_UDP))
			return not_let_in(p);
#if HAS_TUNNEL
		p->policed = 1;
		int verdict = to_place_of_client(skb, p, IPPROTO_UDP, came_by_tunnel(skb));
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
#endif
	}
	if (is_refused(chosen, IPPROTO_UDP, udp.dest))
		return refused_datagram(skb, p, chosen);
	if (!(chosen->flags & GUARDED) || is_from_host(p))
		hear(p);
	int verdict = chosen->flags & (STICKY | GUARDED) ? datagram(skb, p, chosen) : TC_ACT_OK;
#if HAS_TUNNEL
	if (p->policed && verdict == TC_ACT_OK)
		keep_client(p, IPPROTO_UDP, p->self, 0);
#endif
	return verdict;
}

// What a namespace's UDP sockets have to do with a flow.
enum { NO_SOCKET, MAY_HAVE_SENT, CONNECTED };

verified_alone int ask_udp(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return NO_SOCKET;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return NO_SOCKET;
	int answer = is_connected(sk) ? CONNECTED : MAY_HAVE_SENT;
	bpf_sk_release(sk);
	return answer;
}

// Asks one replica, unless it is the chosen one. Not 0: the search is over.
verified_alone int ask_member_udp(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask_udp(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_UDP));
	if (answer)
		found->several++;
	note(skb, found, m, answer);
	return answer == CONNECTED;
}

// A copy to one replica if a UDP socket of it may have sent the packet.
verified_alone int copy_to_sender(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	return ask_udp(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_UDP)) ? copy_to(skb, p, v, i) : 0;
}

// Sends copies of the error to the other replicas that may have sent the packet.
static inline_always int to_senders(struct __sk_buff *skb, struct packet *p, struct vip *v, struct attached *chosen)
{
	__u32 *flag = copying();
	if (!flag)
		return TC_ACT_OK;
	*flag = 1;
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count)
			break;
		copy_to_sender(skb, p, v, i);
	}
	*flag = 0;
	return bpf_skb_store_bytes(skb, 0, chosen->mac, ETH_ALEN, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

#if HAS_TUNNEL
// The replica here that the group has chosen gets what goes to other nodes too.
static inline_always void copy_to_self(struct __sk_buff *skb)
{
	__u32 *flag = copying();
	if (!flag)
		return;
	*flag = 1;
	bpf_clone_redirect(skb, skb->ifindex, 0);
	*flag = 0;
}
#endif

// Whether other nodes get an error that no replica here has a connected socket for: where it entered, and nowhere else.
static inline_always int goes_round(struct __sk_buff *skb, const struct vip *v)
{
#if HAS_TUNNEL
	return v->next && !came_by_tunnel(skb);
#else
	(void)skb, (void)v;
	return 0;
#endif
}

// An error about a UDP packet: to the replica that has a socket connected to that client; where none has, to all that have a
// socket of the port, on this node and on the others.
static inline_always int udp_error(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	if (is_copy() || !v || (v->count < 2 && !goes_round(skb, v)) ||
	    ask_udp(skb, p, chosen->netns, port_at(p, chosen->flags, p->self, IPPROTO_UDP)) == CONNECTED)
		return TC_ACT_OK;
	struct grant grant = {};
	if (!allowed(&grant, FOR_ERRORS, p->flow.vip))
		return TC_ACT_OK;
	struct found found;
	clear(skb, &found);
	for (__u32 i = 0; i < MEMBERS; i++) {
		if (i >= v->count || ask_member_udp(skb, p, v, &found, i))
			break;
	}
	charge(&grant, v->count);
	if (found.answer == CONNECTED) {
		struct attached *replica = found_replica(p, &found);
		if (!replica)
			return TC_ACT_OK;
		count(p->flow.vip, STEERED);
		return hand_over(skb, p, found.ifindex, replica->mac);
	}
	int verdict = TC_ACT_OK;
	if (found.several) {
		charge_copies(&grant, found.several);
		verdict = to_senders(skb, p, v, chosen);
	}
#if HAS_TUNNEL
	if (verdict == TC_ACT_OK && goes_round(skb, v)) {
		take(&grant, WALK_COSTS);
		copy_to_self(skb);
		return set_out(skb, v->next);
	}
#endif
	return verdict;
}

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
// Whether a packet from a pod is an answer; if not, it may begin a flow. A connection can't begin without a SYN that has no
// ACK.
static inline_always int is_answer(struct __sk_buff *skb, const struct attached *pod, const struct iphdr *ip)
{
	__u32 inner = ETH_HLEN + ip->ihl * 4;
	__u32 offset = (ntohs(ip->frag_off) & IP_OFFSET) * 8;
	if (offset)	// nothing without its first fragment; TCP's flags are never in another one (RFC 3128)
		return ip->protocol != IPPROTO_TCP || offset >= sizeof(struct tcphdr);
	struct heard key = { .flow = { .client = ip->daddr, .vip = ip->saddr }, .protocol = ip->protocol };
	struct tcphdr tcp;
	struct udphdr udp;
	__u8 type;
	switch (ip->protocol) {
	case IPPROTO_TCP:
		return !peek(skb, inner, &tcp, sizeof(tcp)) && (tcp.ack || !tcp.syn);
	case IPPROTO_ICMP:
		return !peek(skb, inner, &type, sizeof(type)) &&
		       (type == ICMP_ECHOREPLY || type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED ||
			type == ICMP_PARAMETERPROB || type == ICMP_TIMESTAMPREPLY);
	case IPPROTO_UDP:
		if (peek(skb, inner, &udp, sizeof(udp)) || is_refused(pod, IPPROTO_UDP, udp.source))
			return 0;
		if (pod->flags & GUARDED && ip->daddr != HOST_ADDRESS)
			return 1;
		key.flow.client_port = udp.dest;
		key.flow.vip_port = udp.source;
		break;
	default:
		if (pod->flags & GUARDED)
			return 0;
	}
	return bpf_map_lookup_elem(&heard_v1, &key) != 0;
}

// A reset that answers a SYN for which the pod has no socket, though another replica listens: the socket was closed after the
// owner had seen it. It is withheld: TCP sends the SYN again, and that one goes to the other replica. Only a segment without an
// acknowledgement is answered with the sequence number 0 (RFC 9293, 3.10.7.1).
static inline_always int is_late_reset(struct __sk_buff *skb, struct attached *pod, const struct iphdr *ip)
{
	struct tcphdr tcp;
	if (ip->protocol != IPPROTO_TCP || ip->frag_off & htons(IP_MF | IP_OFFSET))
		return 0;
	if (peek(skb, ETH_HLEN + ip->ihl * 4, &tcp, sizeof(tcp)) || !tcp.rst || !tcp.ack || tcp.seq)
		return 0;
	struct packet p = {
		.flow = { .client = ip->daddr, .vip = ip->saddr, .client_port = tcp.dest, .vip_port = tcp.source },
		.self = skb->ifindex,
	};
	p.settled = 1;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p.flow.vip);
	// What the owner itself refuses comes by here, too.
	if (!v || v->count < 2 || is_refused(pod, IPPROTO_TCP, tcp.source) ||
	    ask_opening(skb, &p, pod->netns, port_at(&p, pod->flags, p.self, IPPROTO_TCP)))
		return 0;
	struct grant grant = {};
	if (!allowed(&grant, FOR_SYNS, p.flow.vip))
		return 0;
	struct found found;
	clear(skb, &found);
	int there = search_opening(skb, &p, v, &found);
	charge(&grant, v->count);
	return there != NOTHING;
}

SEC("classifier")
int guard(struct __sk_buff *skb)
{
	// What is IPv6 guard6 has had before, and neighbours are permanent on both sides: nothing but IPv4 has business here.
	if (skb->protocol != htons(ETH_P_IP) || skb->vlan_present)
		return TC_ACT_SHOT;
	struct iphdr ip;
	if (peek(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
		return TC_ACT_SHOT;
	struct attached *pod = is_number(ip.saddr) ? 0 : attached(skb->ifindex, ip.saddr);
	if (!pod) {
		dropped(skb->ifindex, 1);
		return TC_ACT_SHOT;
	}
	if (pod->flags & TRANSLATES && !has_left(skb) && translate(skb, OUT_OF_POD, pod->flags) != TC_ACT_OK)
		return TC_ACT_SHOT;
	if (WITHHOLDS_RESETS && is_late_reset(skb, pod, &ip)) {
		count(ip.saddr, RESET_WITHHELD);
		return TC_ACT_SHOT;
	}
	if (pod->flags & ANY_EGRESS || is_answer(skb, pod, &ip))
		return ip.daddr == STAND_IN ? go_home(skb, pod->own) : leave(skb, &ip);
	count(ip.saddr, EGRESS_DENIED);
	return TC_ACT_SHOT;
}
#endif

char _license[] SEC("license") = "Dual MIT/GPL";
