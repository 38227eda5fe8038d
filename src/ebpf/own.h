// A replica's own calls: the group has chosen the very pod that calls. In the pod its own address is local, so an answer to it would
// never come by the host veth. That is right for TCP where no port gets another number: the pod's loopback carries it. Everywhere else,
// of UDP always (a server that binds no address would answer from the pod's own one), the packet gets another source, STAND_IN, to which
// the pod answers as to any client; what it sends there gets the pod's own address back at the host veth, and goes home by the stack.
//
// Anybody on the network can write a pod's address as a source. What the pod itself hasn't sent is dropped: a connection begins where the
// pod has a socket that opens it; a datagram comes from a socket that is connected to the VIP, or that has another port than the one
// that gets it (a server would answer itself, and that answer again). What follows a SYN finds its connection or none, as ever; RFC 9293's
// resets are never answered.
#ifndef VIPROUTE_OWN_H
#define VIPROUTE_OWN_H

#ifdef IPV6
#include "own6.h"
#else
#include "own4.h"
#endif

// Whether the pod has a socket that may have sent the packet to the VIP. `port`: what the pod has in the place of the flow's.
verified_alone int is_sent_there(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return 0;
	struct tuple tuple = REVERSE_TUPLE(p);
	struct bpf_sock *sk;
	int is;
	if (PROTOCOL(p) == IPPROTO_TCP) {
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
		if (!sk)
			return 0;
		is = sk->state == BPF_TCP_SYN_SENT;
	} else {
		sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple), netns, 0);
		if (!sk)
			return 0;
		is = is_connected(sk) || p->flow.client_port != (__be16)port;
	}
	bpf_sk_release(sk);
	return is;
}

// The replica that has the connection, for when its packets come to another one's host veth: a search among all asks by the pod's own
// address, which such a connection isn't known by there.
static inline_always void note_own(struct __sk_buff *skb, struct packet *p)
{
	struct flow flow = p->flow;
	struct hint hint = { .ifindex = skb->ifindex };
	bpf_map_update_elem(&hints_v3, &flow, &hint, BPF_ANY);
}

// A pod's own packet is about to enter it.
verified_alone int come_home(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 flags)
{
	if (!p)
		return TC_ACT_SHOT;
	__u32 protocol = PROTOCOL(p);
	if (protocol == IPPROTO_ERRORS)	// an echo, which is answered by the loopback, or an error, which is not
		return TC_ACT_OK;
	int is_later = is_later_fragment(p), opens = 0;
	if (protocol == IPPROTO_TCP)
		opens = p->tcp.syn && !p->tcp.ack;
	else if (protocol == IPPROTO_UDP)
		opens = !is_later;
	else
		return TC_ACT_SHOT;
	if (opens && !is_sent_there(skb, p, netns, port_at(p, flags, skb->ifindex, protocol)))
		return TC_ACT_SHOT;
	if (!stands_in(flags, protocol))
		return TC_ACT_OK;
	if (protocol == IPPROTO_TCP && opens)
		note_own(skb, p);
	return disguise(skb, p) ? TC_ACT_SHOT : TC_ACT_OK;
}

// What the owner has decided on, of a packet from the pod itself.
static inline_always int homeward(struct __sk_buff *skb, struct packet *p, const struct attached *chosen, int verdict)
{
	if (!p->is_own || verdict != TC_ACT_OK)
		return verdict;
	verdict = come_home(skb, p, chosen->netns, chosen->flags);
	if (verdict != TC_ACT_OK)
		count(p->flow.vip, OWN_SOURCE);
	return verdict;
}

#endif
