// What is counted, and what may be spent: on searches, on walks, on what is remembered of flows.
#ifndef VIPROUTE_ACCOUNTS_H
#define VIPROUTE_ACCOUNTS_H

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

#endif
