// What is remembered of flows, the least recently used forgotten first: where misplaced ones were found, where others stay.
#ifndef VIPROUTE_NOTED_H
#define VIPROUTE_NOTED_H

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

#endif
