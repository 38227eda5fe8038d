// The VIPs of this node and of each attachment: what viprouted and the plugin say of them.
#ifndef VIPROUTE_VIPS_H
#define VIPROUTE_VIPS_H

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

// Replicas that one call asks: the verifier would walk a loop over all of them once for each. So it walks the loop over these once for each
// of these, by itself, and the loop of calls once for each call.
#ifdef WITHOUT_BTF
#define SOME MEMBERS
#else
#define SOME 16
#endif

// Of a function by IN_TURN: there are no more.
#define NO_MORE (-1)

// Defines `name`, one of whose parameters is `from`: `step`, which may name `i`, and `start` as it was before the first one, for SOME in turn
// from that one on, below `all`. It returns the first that isn't 0; NO_MORE; or 0.
#define IN_TURN(name, parameters, begin, all, step)	\
	verified_alone int name parameters		\
	{						\
		const __u32 start = begin, end = all;	\
		(void)start;				\
		for (__u32 n = 0; n < SOME; n++) {	\
			__u32 i = from + n;		\
			if (i >= end)			\
				return NO_MORE;		\
			int done = step;		\
			if (done)			\
				return done;		\
		}					\
		return 0;				\
	}

// Calls such a function for all, until it gives something else than 0. `call` names `from`.
#define ALL_IN_TURN(call)								\
	do {										\
		for (__u32 from = 0; from < MEMBERS && !(call); from += SOME)		\
			;								\
	} while (0)

static inline_always __u32 replicas_of(const struct vip *v)
{
	return v ? v->count : 0;
}

// The place of the one in turn when the first was at `start`, which is below the VIP's count, as its turn is.
static inline_always __u32 place_in_turn(const struct vip *v, __u32 start, __u32 turn)
{
	__u32 place = start + turn;
	return place >= v->count ? place - v->count : place;
}

static inline_always struct attached *attached(__u32 ifindex, __be32 vip)
{
	struct attached_key key = { .ifindex = ifindex, .vip = vip };
	return bpf_map_lookup_elem(&attached_v3, &key);
}

#endif
