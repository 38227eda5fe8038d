// Several ports of a VIP that a pod has under one number (80:8080/tcp and 443:8080/tcp). What comes out of the pod doesn't say which of
// them it answers, so for such numbers alone a flow's port is noted on its way in; every packet of the flow that comes in says it again,
// so that what is forgotten (the least recently used) is known again with the next one.
//
// To the pod's sockets the flows of one client's port to two such ports are one. While the pod has a connection by one of them, a
// packet to the other doesn't get there: another replica takes it, or nobody does.
#ifndef VIPROUTE_SHARED_H
#define VIPROUTE_SHARED_H

// A number of a pod's that several ports of its VIP have.
struct shared_key {
	__u32 ifindex;	// the host veth
	__be32 vip;
	__u32 number;	// protocol << 16 | the pod's port
};

struct shared {
	__u64 alone_until;	// CLOCK_MONOTONIC, ns: a flow that isn't noted may be from when one port had it alone
	__u32 alone;		// that one, in network order
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct shared_key);
	__type(value, struct shared);
} shared_v1 SEC(".maps");

// A flow as the pod's sockets know it.
struct call {
	client_address client;
	__be32 vip;
	__be16 client_port;
	__be16 target;
	__u32 ifindex;
	__u32 protocol;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct call);
	__type(value, __u32);	// the VIP's port that it is of, in network order
} calls_v1 SEC(".maps");

// Beside a number by which a pod's sockets are asked: what they have there is another port's flow.
#define OCCUPIED 0x10000
// Beside a number in a lease: the flow must be noted.
#define NOTED 0x20000

static inline_always struct shared *shared_target(__u32 ifindex, __be32 vip, __u32 number)
{
	struct shared_key key = { .ifindex = ifindex, .vip = vip, .number = number };
	return bpf_map_lookup_elem(&shared_v1, &key);
}

// The port that is noted for a call, in network order; 0: none is.
static inline_always __be16 noted(const struct call *call)
{
	const __u32 *port = bpf_map_lookup_elem(&calls_v1, call);
	return port ? (__be16)*port : 0;
}

// The same for a flow that comes to a pod. `target`: what that has in the place of its port.
verified_alone int noted_port(struct flow *flow, __u32 ifindex, __u32 target, __u32 protocol)
{
	if (!flow)
		return 0;
	struct call call = {
		.client = flow->client, .vip = flow->vip, .client_port = flow->client_port, .target = (__be16)target, .ifindex = ifindex,
		.protocol = protocol,
	};
	return noted(&call);
}

// Whether the pod has a connection of that flow, or one is about to be.
verified_alone int is_live(struct __sk_buff *skb, headers *of, struct call *call, __u32 netns)
{
	if (!of || !call)
		return 0;
	struct tuple tuple = CALL_TUPLE(of, call);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return 0;
	int live = sk->state != BPF_TCP_LISTEN && sk->state != BPF_TCP_TIME_WAIT && sk->state != BPF_TCP_CLOSE;
	bpf_sk_release(sk);
	return live;
}

// A packet of a flow passes to the pod. Not 0: it can't.
static inline_always int note_call(struct __sk_buff *skb, headers *of, struct call *call, __be16 port)
{
	__u32 value = port;
	if (!shared_target(call->ifindex, call->vip, call->protocol << 16 | ntohs(call->target)))
		return 0;
	__be16 known = noted(call);
	if (known == port)
		return 0;
	struct attached *pod = attached(call->ifindex, call->vip);
	if (known && pod && call->protocol == IPPROTO_TCP && is_live(skb, of, call, pod->netns))
		return -1;
	bpf_map_update_elem(&calls_v1, call, &value, BPF_ANY);
	return 0;
}

// The port that a packet from the pod has on the VIP, in network order; `port` where one alone has its number. 0: it isn't known.
static inline_always __be16 port_of_call(const struct call *call, __be16 port)
{
	const struct shared *shared = shared_target(call->ifindex, call->vip, call->protocol << 16 | ntohs(call->target));
	if (!shared)
		return port;
	__be16 known = noted(call);
	if (known)
		return known;
	return bpf_ktime_get_ns() < shared->alone_until ? (__be16)shared->alone : 0;
}

#endif
