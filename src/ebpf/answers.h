// Answers of UDP servers that bind no address. The kernel picks the source of what such a socket sends by the route to the client, so
// it is the pod's own address, whichever address was asked. Three programs in the pod's own namespace put that right, per datagram:
//
//   udp_asked      (tc ingress of vip0)             notes who asked which VIP
//   udp_asked_own  (tc ingress of the pod's own     who asks the pod's own address asks no VIP any more
//                   interface)
//   udp_answer     (tc egress of that interface)    what answers a note gets the VIP as its source, and leaves by vip0
//
// From there on it is what a socket bound to the VIP would have sent: the guard checks and translates it, the stack or express carries
// it. So a note allows nothing: the guard alone decides what may have a VIP as its source. A pod that takes the programs off harms its
// own answers. Whoever sends with a client's address and port as the source, or runs such packets through these programs in a namespace of
// its own, can make a pod answer that client's last question from another one of its addresses, and no more.
//
// The last question counts: a client's socket that asks two addresses of a pod at once is answered from the one that it asked later.
// Ports are those of the pod's sockets: the programs on the host veth translate before and behind these.
#ifndef VIPROUTE_ANSWERS_H
#define VIPROUTE_ANSWERS_H

// A VIP of a pod's, with UDP ports that are named. The pod's namespace has no name that both its ends know at all times (a namespace's
// cookie is told to tc since Linux 6.15), but the Ethernet address of its vip0 is no other pod's.
struct answerer_key {
	__be32 vip;
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

struct answerer {
	__be32 own;		// the pod's own address; of IPv6: 0, own6_v1 has those
	__u32 ifindex;		// the host veth
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct answerer_key);
	__type(value, struct answerer);
} answerers_v1 SEC(".maps");

// Who asked: as the answer will say, but for its source.
struct question {
	client_address own;
	client_address client;
	__be16 port;		// the pod's
	__be16 client_port;
};

#define ANSWERED 1		// from the VIP, by udp_answer

// And whom.
struct asked {
	struct answerer_key of;
	__u32 vip0;		// its index in the pod
	__u32 flags;		// ANSWERED
};

// As many as nodes have sticky flows. Whoever asks many VIPs from many ports pushes out what is known of others; each VIP has a share of
// new ones a second (may_remember).
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct question);
	__type(value, struct asked);
} asked_v1 SEC(".maps");

// Whose a question is, if it is noted.
static inline_always struct asked *asked(const client_address *own, const client_address *client, __be16 port, __be16 client_port)
{
	struct question key = { .own = *own, .client = *client, .port = port, .client_port = client_port };
	return bpf_map_lookup_elem(&asked_v1, &key);
}

// A client has asked a VIP.
static inline_always void note_question(struct __sk_buff *skb, const struct question *question, const struct answerer_key *of)
{
	const struct asked *known = bpf_map_lookup_elem(&asked_v1, question);
	if (known && known->of.vip == of->vip && known->vip0 == skb->ifindex)
		return;
	if (!known && !may_remember(of->vip))
		return;
	struct asked value = { .of = *of, .vip0 = skb->ifindex };
	bpf_map_update_elem(&asked_v1, question, &value, BPF_ANY);
}

// The question that is answered; none: it was no VIP's, or the pod has left that since.
static inline_always struct asked *answered(const client_address *own, const client_address *client, __be16 port, __be16 client_port)
{
	struct asked *question = asked(own, client, port, client_port);
	if (!question)
		return 0;
	struct answerer_key of = question->of;
	return bpf_map_lookup_elem(&answerers_v1, &of) ? question : 0;
}

#ifdef IPV6
#include "answers6.h"
#else
#include "answers4.h"
#endif

#endif
