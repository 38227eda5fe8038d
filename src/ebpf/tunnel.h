// The tunnel between nodes: what it carries, and how a packet is sent by it. A VXLAN device of which every packet says where it
// goes (external); its inner Ethernet header and its network identifier carry all that nodes tell each other:
//
//   destination  02:76:<id of the receiver>   the address of its device, so that its stack takes the packet
//   source       02:76:<id of the origin>     the node at which the packet entered, of what its group or a hint chose
//                06:76:<id of the origin>     of everything else (VXLAN drops a frame with the device's own address as its source)
//   VNI          0x76 << 16 | kind << 8 | hop
//
// Without a program on the device a packet that a group chose is dropped: it has no tunnel key.
#ifndef VIPROUTE_TUNNEL_H
#define VIPROUTE_TUNNEL_H

#define TAG 0x76
// A walk ends after so many nodes.
#define HOPS 64
// In the hop: on this walk TIME_WAIT counts too.
#define LAST 0x80
#define VNI(kind, hop) (TAG << 16 | (kind) << 8 | (hop))
// What a walk is charged with, all nodes together.
#define WALK_COSTS 10000
// What the origin needs of a packet to know its flow: headers with options.
#define REPORTED_BYTES 128

// Why a packet is in the tunnel.
enum {
	CHOSEN,	// the group's hash chose the node
	AIMED,	// a hint did
	WALK,	// no node that was asked so far has its flow
	FOUND,	// headers, to the origin: the sender has the flow
	BACK,	// to the origin: the node that was chosen doesn't have the flow
};

// The other nodes: id -> address of their end of the tunnel. (It has no `here`.)
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __be32);
} nodes_v1 SEC(".maps");

// The same, the other way round.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __be32);
} node_at_v1 SEC(".maps");

// The same of nodes whose end of the tunnel has an address of IPv6. No node is in both.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, struct ipv6);
} nodes6_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct ipv6);
	__type(value, __be32);
} node_at6_v1 SEC(".maps");

// Whether this node knows that one.
static inline_always int is_known(__be32 node)
{
	return bpf_map_lookup_elem(&nodes_v1, &node) || bpf_map_lookup_elem(&nodes6_v1, &node);
}

struct here {
	__be32 id;	// 0: this node stands alone
	__u32 ifindex;	// of the tunnel's device
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct here);
} this_node_v1 SEC(".maps");

// This node's end of the tunnel, by which the others know it: the source of what it sends. 0: the kernel chooses one.
struct end {
	__u32 local;	// host order
	__u32 refused;	// the kernel takes no source in a key
	struct ipv6 local6;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct end);
} tunnel_end_v1 SEC(".maps");

// What became of packets in the tunnel; the first three were dropped.
enum { STRANGER, NOT_OURS, TOO_FAR, SENT_CHOSEN, SENT_AIMED, SENT_WALKING, SENT_FOUND, SENT_BACK, TUNNEL_COUNTS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TUNNEL_COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} tunnel_counts_v1 SEC(".maps");

static inline_always void count_tunnel(__u32 what)
{
	__u64 *counter = bpf_map_lookup_elem(&tunnel_counts_v1, &what);
	if (counter)
		(*counter)++;
}

static inline_always int dropped_in_tunnel(__u32 why)
{
	count_tunnel(why);
	return TC_ACT_SHOT;
}

// This node, while it knows of others.
static inline_always struct here *this_node(void)
{
	__u32 zero = 0;
	struct here *here = bpf_map_lookup_elem(&this_node_v1, &zero);
	return here && here->id ? here : 0;
}

// struct bpf_tunnel_key as far as every kernel knows it: more takes more of the stack.
struct tunnel_key {
	__u32 id;
	union {
		__u32 remote;	// host order
		struct ipv6 remote6;
	};
	__u8 tos, ttl;
	__u16 pad;
};

_Static_assert(sizeof(struct tunnel_key) == __builtin_offsetof(struct bpf_tunnel_key, tunnel_label), "");

// The rest of it, since Linux 6.0 (26101f5ab6bd); a kernel before refuses this length, and changes nothing (bpf_skb_set_tunnel_key()).
struct sent_key {
	struct tunnel_key to;
	__u32 label;
	union {
		__u32 local;	// host order
		struct ipv6 local6;
	};
};

_Static_assert(sizeof(struct sent_key) == 44, "");

// The packet gets the key, and with it the source by which other nodes know this one, as far as the kernel can do that.
static inline_always int set_key(struct __sk_buff *skb, struct sent_key *key, __u64 flags)
{
	__u32 zero = 0;
	struct end *end = bpf_map_lookup_elem(&tunnel_end_v1, &zero);
	if (end && !end->refused) {
		if (flags & BPF_F_TUNINFO_IPV6)
			key->local6 = end->local6;
		else
			key->local = end->local;
		if (!bpf_skb_set_tunnel_key(skb, (void *)key, sizeof(*key), flags))
			return 0;
		end->refused = 1;
	}
	return bpf_skb_set_tunnel_key(skb, (void *)key, sizeof(key->to), flags);
}

// The packet's key, of either family: whether that is IPv6. Below 0: it has none.
static inline_always int read_key(struct __sk_buff *skb, struct tunnel_key *key)
{
	if (!bpf_skb_get_tunnel_key(skb, (void *)key, sizeof(*key), 0))
		return 0;
	return bpf_skb_get_tunnel_key(skb, (void *)key, sizeof(*key), BPF_F_TUNINFO_IPV6) ? -1 : 1;
}

// Addresses the packet to a node. Not 0: it is none of the nodes that this one knows.
verified_alone int aim(struct __sk_buff *skb, __u32 node, __u32 origin, __u32 kind, __u32 hop)
{
	struct sent_key key = { .to = { .id = VNI(kind & 0xff, hop & 0xff), .ttl = 64 } };
	__u64 flags = BPF_F_ZERO_CSUM_TX;
	__be32 *at = bpf_map_lookup_elem(&nodes_v1, &node);
	if (at) {
		key.to.remote = ntohl(*at);
	} else {	// the checksum stays: nothing else of IPv6 protects the addresses (RFC 6936)
		struct ipv6 *at6 = bpf_map_lookup_elem(&nodes6_v1, &node);
		if (!at6)
			return -1;
		key.to.remote6 = *at6;
		flags = BPF_F_TUNINFO_IPV6;
	}
	__u8 addresses[2 * ETH_ALEN] = { 0x02, TAG, 0, 0, 0, 0, kind == CHOSEN || kind == AIMED ? 0x02 : 0x06, TAG };
	__builtin_memcpy(addresses + 2, &node, sizeof(node));
	__builtin_memcpy(addresses + ETH_ALEN + 2, &origin, sizeof(origin));
	if (set_key(skb, &key, flags))
		return -1;
	if (bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0))
		return -1;
	count_tunnel(kind == CHOSEN ? SENT_CHOSEN : kind == AIMED ? SENT_AIMED : kind == WALK ? SENT_WALKING :
		     kind == FOUND ? SENT_FOUND : SENT_BACK);
	return 0;
}

// Whether a program here has addressed the packet already; below 0: it is addressed, but not by one. (As read_transit().)
verified_alone int is_addressed(struct __sk_buff *skb)
{
	struct tunnel_key key = {};
	if (read_key(skb, &key) < 0)
		return 0;
	return key.id >> 16 == TAG ? 1 : -1;
}

// What a packet in the tunnel says of its way.
struct transit {
	__be32 sender;	// the node that sent it
	__be32 origin;	// the node at which it entered
	__u32 kind;
	__u32 hop;
};

// Whether it is from a node that this one knows, addressed to this one, and its way can be as it says.
// (A function of its own: what it needs of the stack is free again when sockets are asked.)
verified_alone int read_transit(struct __sk_buff *skb, struct transit *t)
{
	struct here *here = this_node();
	struct tunnel_key key = {};
	struct {
		__u8 to[2];
		__be32 receiver;
		__u8 from[2];
		__be32 origin;
	} __attribute__((packed)) eth;
	int is_ipv6 = here && t ? read_key(skb, &key) : -1;
	if (is_ipv6 < 0)
		return -1;
	if (key.id >> 16 != TAG || peek(skb, 0, &eth, sizeof(eth)))
		return -1;
	__be32 *sender;
	if (is_ipv6) {
		sender = bpf_map_lookup_elem(&node_at6_v1, &key.remote6);
	} else {
		key.remote = htonl(key.remote);
		sender = bpf_map_lookup_elem(&node_at_v1, &key.remote);
	}
	if (!sender || eth.receiver != here->id || eth.to[0] != 0x02 || eth.to[1] != TAG || eth.from[1] != TAG)
		return -1;
	__be32 origin = eth.origin;	// a key is on the function's own stack
	t->sender = *sender;
	t->origin = origin;
	t->kind = key.id >> 8 & 0xff;
	t->hop = key.id & 0xff;
	switch (t->kind) {
	case BACK:
		return t->origin == here->id ? 0 : -1;
	case WALK:
		return origin == here->id || is_known(origin) ? 0 : -1;
	case CHOSEN:
	case AIMED:
	case FOUND:
		return t->origin == t->sender ? 0 : -1;
	}
	return -1;
}

// On to the next node that has replicas of the VIP, in the order of their ids; home to the origin where that is the next one, or
// lies before it.
verified_alone int walk(struct __sk_buff *skb, __u32 next, __u32 origin, __u32 hop)
{
	struct here *here = this_node();
	if (!here)
		return TC_ACT_SHOT;
	__u32 me = ntohl(here->id);
	if (origin != here->id && (!next || ntohl(next) - me >= ntohl(origin) - me))
		next = origin;
	if (!next || (hop & ~LAST) > HOPS || aim(skb, next, origin, WALK, hop))
		return dropped_in_tunnel(TOO_FAR);
	return bpf_redirect(here->ifindex, 0);
}

// It has come by the tunnel: the node where it entered has decided about it.
static inline_always int came_by_tunnel(struct __sk_buff *skb)
{
	struct here *here = this_node();
	return here && skb->ingress_ifindex == here->ifindex;
}

// Round the other nodes, from the one behind this one.
verified_alone int set_out(struct __sk_buff *skb, __u32 next)
{
	struct here *here = this_node();
	return here ? walk(skb, next, here->id, 1) : TC_ACT_SHOT;
}

// A packet of a flow that nobody here has, and that no hint tells of: round the other nodes, if that is still allowed. If not it
// is dropped: TCP sends again.
verified_alone int begin_walk(struct __sk_buff *skb, struct packet *p, __u32 next, __u32 last)
{
	struct here *here = this_node();
	if (!p || !here)
		return TC_ACT_SHOT;
	struct grant grant = {};
	if (!allowed(&grant, FOR_WALKS, p->flow.vip)) {
		count(p->flow.vip, SEARCH_THROTTLED);
		return TC_ACT_SHOT;
	}
	take(&grant, WALK_COSTS);
	lead(p, 0, 0);
	return walk(skb, next, here->id, last | 1);
}

// A packet of a flow that this node doesn't have: back to its origin, which begins a walk, and a second one if nobody has it. No more
// of them than this node might begin itself: the origin can't either. What is beyond is dropped: TCP sends again.
verified_alone int send_back(struct __sk_buff *skb, struct packet *p, __u32 origin)
{
	struct here *here = this_node();
	if (!p || !here)
		return TC_ACT_SHOT;
	struct grant grant = {};
	if (!allowed(&grant, FOR_WALKS, p->flow.vip)) {
		count(p->flow.vip, SEARCH_THROTTLED);
		return TC_ACT_SHOT;
	}
	take(&grant, 2 * WALK_COSTS);
	return aim(skb, origin, origin, BACK, 0) ? TC_ACT_SHOT : bpf_redirect(here->ifindex, 0);
}

// To the node where the flow was found before. TC_ACT_UNSPEC: that one isn't known any more.
verified_alone int to_node(struct __sk_buff *skb, struct packet *p, __u32 node)
{
	struct here *here = this_node();
	if (!p || !here || aim(skb, node, here->id, AIMED, 0))
		return TC_ACT_UNSPEC;
	lead(p, 0, node);
	return bpf_redirect(here->ifindex, 0);
}

// A fragment behind a first one that went to another node, or round all of them (node 0): likewise.
verified_alone int follow_far(struct __sk_buff *skb, struct packet *p, __u32 node)
{
	if (!p)
		return TC_ACT_SHOT;
	__be32 vip = p->flow.vip;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &vip);
	if (!v)
		return TC_ACT_SHOT;
	if (!node)
		return v->next ? begin_walk(skb, p, v->next, 0) : TC_ACT_SHOT;
	int verdict = to_node(skb, p, node);
	return verdict == TC_ACT_UNSPEC ? TC_ACT_SHOT : verdict;
}

// What is kept of a datagram's flow that stays: nothing, a replica here, or another node.
enum { NO_PLACE, PLACED_HERE, PLACED_FAR };

// Which of these it is; with another node `*node` is that. (By itself, for the key.)
verified_alone int kept_place(struct packet *p, __u32 *node)
{
	if (!p || !node)
		return NO_PLACE;
	struct flow flow = p->flow;
	const struct hint *kept = bpf_map_lookup_elem(&sticky_v2, &flow);
	if (!kept || kept->flags & ASKED)
		return NO_PLACE;
	*node = kept->node;
	return kept->node ? PLACED_FAR : PLACED_HERE;
}

// The other nodes are asked for a datagram's flow, for which the group has chosen that node, or with 0 the replica here.
verified_alone int note_asked(struct packet *p, __u32 node)
{
	if (!p)
		return 0;
	struct flow flow = p->flow;
	struct hint choice = { .ifindex = node ? 0 : p->self, .node = node, .flags = ASKED };
	bpf_map_update_elem(&sticky_v2, &flow, &choice, BPF_ANY);
	return 0;
}

// Asks the other nodes for a datagram's flow, and notes what the group has chosen (as stay_far() has it) until they have answered.
// TC_ACT_UNSPEC: there is none to be asked, or no more questions are allowed.
verified_alone int ask_nodes(struct __sk_buff *skb, struct packet *p, __u32 node)
{
	struct here *here = this_node();
	if (!p || !here)
		return TC_ACT_UNSPEC;
	__be32 vip = p->flow.vip;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &vip);
	struct grant grant = {};
	if (!v || !v->next || !allowed(&grant, FOR_FLOWS, vip))
		return TC_ACT_UNSPEC;
	take(&grant, WALK_COSTS);
	note_asked(p, node);
	lead(p, 0, 0);
	return walk(skb, v->next, here->id, 1);
}

// A datagram of a flow that stays, where it enters: to the node that has the flow. Where that isn't known the other nodes are asked
// for it, and what the group has chosen, that node or with 0 the replica here, is noted until they have answered; as far as asking is
// allowed. TC_ACT_UNSPEC: the flow is a replica's here, or goes where the group says.
verified_alone int stay_far(struct __sk_buff *skb, struct packet *p, __u32 node)
{
	if (!p || !this_node() || is_from_host(p))	// each node has the host veths' address
		return TC_ACT_UNSPEC;
	__u32 far = 0;
	int kept = kept_place(p, &far);
	if (kept == PLACED_HERE)
		return TC_ACT_UNSPEC;
	if (kept == PLACED_FAR) {
		int verdict = to_node(skb, p, far);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	return ask_nodes(skb, p, node);
}

#endif
