// What Services ask of a VIP's ports beyond who serves them: from which addresses their clients may come, and whether a client's flows
// go where those before them went. A VIP of which nothing is asked has no entry here, and a flag says so (POLICED).
//
// Only what begins a flow is asked about: a SYN, and every datagram. A connection that is open stays, whatever is said of its client
// meanwhile, as with kube-proxy.
#ifndef VIPROUTE_POLICY_H
#define VIPROUTE_POLICY_H

struct port_key {
	__be32 vip;
	__u32 number;		// protocol << 16 | port; 0: all ports that no other entry of the VIP names
};

#define LISTED 1		// clients come from sources_v1, and from nowhere else

struct policy {
	__u64 affinity;		// ns: for so long after its last flow a client's next one goes to the same replica; 0: anywhere
	__u32 flags;		// LISTED
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct port_key);
	__type(value, struct policy);
} policies_v1 SEC(".maps");

// Whose the client may be.
struct source_key {
	__u32 bits;		// of what follows: 64 and the range's
	__be32 vip;
	__u32 number;
	client_address client;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct source_key);
	__type(value, __u32);	// the range's bits
} sources_v1 SEC(".maps");

// Whether the packet's client may begin a flow with its port.
verified_alone int is_let_in(struct packet *p, __u32 protocol)
{
	if (!p)
		return 0;
	__u32 number = numbered(protocol, p->flow.vip_port);
	struct port_key key = { .vip = p->flow.vip, .number = number };
	const struct policy *policy = bpf_map_lookup_elem(&policies_v1, &key);
	if (!policy || !(policy->flags & LISTED))
		return 1;
	struct source_key of = { .bits = 64 + 8 * sizeof(client_address), .vip = p->flow.vip, .number = number, .client = p->flow.client };
	return bpf_map_lookup_elem(&sources_v1, &of) != 0;
}

#if HAS_TUNNEL
struct client_key {
	__be32 vip;
	__u32 number;
	client_address client;
};

// Where a client's last flow went.
struct client_place {
	__u64 last;		// CLOCK_MONOTONIC, ns
	__u32 ifindex;		// a replica here; 0: another node
	__be32 node;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct client_key);
	__type(value, struct client_place);
} clients_v1 SEC(".maps");

static inline_always __u64 affinity_of(const struct client_key *of)
{
	struct port_key key = { .vip = of->vip, .number = of->number };
	const struct policy *policy = bpf_map_lookup_elem(&policies_v1, &key);
	return policy ? policy->affinity : 0;
}

// Where the client's flows go: node << 32 | host veth; 0: anywhere.
verified_alone __u64 place_of_client(struct packet *p, __u32 protocol)
{
	if (!p)
		return 0;
	struct client_key key = { .vip = p->flow.vip, .number = numbered(protocol, p->flow.vip_port), .client = p->flow.client };
	__u64 affinity = affinity_of(&key), now = bpf_ktime_get_ns();
	struct client_place *place = affinity ? bpf_map_lookup_elem(&clients_v1, &key) : 0;
	if (!place || now - place->last > affinity)
		return 0;
	__u32 ifindex = place->ifindex;
	__be32 node = place->node;
	if (node) {
		if (!is_known(node))
			return 0;
	} else {
		struct attached *replica = attached(ifindex, p->flow.vip);
		if (!replica || replica->flags & DRAINING || is_refused(replica, protocol, p->flow.vip_port))
			return 0;
	}
	place->last = now;
	return (__u64)node << 32 | ifindex;
}

// The client's flows go there from now on.
verified_alone int keep_client(struct packet *p, __u32 protocol, __u32 ifindex, __u32 node)
{
	if (!p)
		return 0;
	struct client_key key = { .vip = p->flow.vip, .number = numbered(protocol, p->flow.vip_port), .client = p->flow.client };
	if (!affinity_of(&key))
		return 0;
	struct client_place place = { .last = bpf_ktime_get_ns(), .ifindex = ifindex, .node = node };
	if (bpf_map_lookup_elem(&clients_v1, &key) || may_remember(key.vip))
		bpf_map_update_elem(&clients_v1, &key, &place, BPF_ANY);
	return 0;
}

// What the client had is over: that node has nothing for it.
verified_alone int forget_client(struct packet *p, __u32 protocol)
{
	if (!p)
		return 0;
	struct client_key key = { .vip = p->flow.vip, .number = numbered(protocol, p->flow.vip_port), .client = p->flow.client };
	bpf_map_delete_elem(&clients_v1, &key);
	return 0;
}

// The devices by which clients outside are reached, by their indices.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} uplinks_v1 SEC(".maps");

static inline_always int is_from_outside(struct __sk_buff *skb)
{
	__u32 by = skb->ingress_ifindex;
	return by && bpf_map_lookup_elem(&uplinks_v1, &by);
}

// Whether what begins a flow of a VIP with these flags is for the replicas here, if one is ready.
static inline_always int is_kept_here(struct __sk_buff *skb, __u32 flags)
{
	return flags & ALL_KEPT_HERE || (flags & KEPT_HERE && is_from_outside(skb));
}
#endif

#endif
