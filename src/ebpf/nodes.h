// The programs of the tunnel's device (tunnel.h):
//
//   outward (tc egress)   the VIP's group has chosen another node: its address as a neighbour names it
//   inward  (tc ingress)  another node sends a packet of a VIP
//
// New connections and datagrams go where the group's hash says, and there the group of that node's own replicas chooses (to_group).
// Every other TCP packet goes to the socket that has its flow: here; else where it was found last (a hint); else to the node that
// the hash chose; and if that sends it back, once round the nodes in the order of their ids. The node that has the flow tells the
// origin, whose next packet goes straight there. A packet that a node doesn't own goes back to its origin first: a walk that began
// elsewhere would miss the nodes between the origin and that one.
//
// What is delivered here passes the replica's host veth, and the owner there, like any other packet.
#ifndef VIPROUTE_NODES_H
#define VIPROUTE_NODES_H

#include "inward.h"

// Of what comes in: up the stack, but for no replica here. (TC_ACT_OK: for the one that the group of them chooses.)
#define UNCHANGED TC_ACT_PIPE

// What read_packet_of_tunnel() says of an ICMP packet, which may be an error.
#define MAY_REPORT 100

// What the packet is: of a flow that a socket has, the first one of such; UDP's, or an ICMP error about that; a fragment that isn't
// the first; or something else. Below 0: none that can be a VIP's.
// (A function of its own, for the header.)
verified_alone int read_packet_of_tunnel(struct __sk_buff *skb, struct packet *p)
{
	if (!p || read_packet(skb, p))
		return -1;
	p->self = 0;	// it has come to no host veth
	p->settled = 1;
	if (is_fragment(p) && read_fragment(p))
		return FOLLOWS;
	if (PROTOCOL(p) == IPPROTO_TCP)
		return read_tcp(skb, p);
	__be16 ports[2];
	if (PROTOCOL(p) == IPPROTO_UDP && !load(skb, p, p->inner, ports, sizeof(ports))) {
		p->flow.client_port = ports[0];
		p->flow.vip_port = ports[1];
		return DATAGRAM;
	}
	return PROTOCOL(p) == IPPROTO_ERRORS ? MAY_REPORT : NO_FLOW;
}

// The same, errors read too.
static inline_always int read_flow(struct __sk_buff *skb, struct packet *p)
{
	int what = read_packet_of_tunnel(skb, p);
	return what == MAY_REPORT ? read_icmp(skb, p) : what;
}

// Asks all replicas of this node about a flow, as far as that is allowed; below 0: it isn't.
static inline_always int search_here(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	struct grant grant = {};
	clear(skb, found);
	if (!v->count)
		return NOTHING;
	if (!allowed(&grant, FOR_CONNECTIONS, p->flow.vip))
		return -1;
	search(skb, p, v, found);
	charge(&grant, v->count);
	if (found->answer == OPEN) {
		struct hint hint = { .ifindex = found->ifindex };
		bpf_map_update_elem(&hints_v3, &p->flow, &hint, BPF_ANY);
	}
	return found->answer;
}

// To the replica of this node that a hint names, if it has the flow. TC_ACT_UNSPEC: it doesn't.
static inline_always int to_hinted_replica(struct __sk_buff *skb, struct packet *p, const struct hint *hint)
{
	__u32 ifindex = hint->ifindex;
	struct attached *replica = attached(ifindex, p->flow.vip);
	if (!replica || ask_as(skb, p, replica, ifindex, own_address(&p->flow, replica, ifindex)) != OPEN)
		return TC_ACT_UNSPEC;
	return hand_over(skb, p, ifindex, replica->mac);
}

// A guess where a flow is.
static inline_always void guess(struct packet *p, __be32 node, __u32 flags)
{
	struct hint hint = { .node = node, .flags = flags };
	if (may_remember(p->flow.vip))
		bpf_map_update_elem(&hints_v3, &p->flow, &hint, BPF_ANY);
}

// A packet of a flow for which the group has chosen that node. TC_ACT_UNSPEC: it goes there.
static inline_always int flow_outward(struct __sk_buff *skb, struct packet *p, struct vip *v, __be32 node)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	int is_opening = hint && hint->flags & OPENING;
	__be32 first = is_opening ? hint->node : node;
	if (hint && hint->node == node && !is_opening)
		return TC_ACT_UNSPEC;
	if (hint && !is_opening) {
		int verdict = hint->node ? to_node(skb, p, hint->node) : to_hinted_replica(skb, p, hint);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	struct found found;
	if (search_here(skb, p, v, &found) >= HALF_OPEN) {
		struct attached *replica = found_replica(p, &found);
		if (replica) {
			count(p->flow.vip, STEERED);
			return hand_over(skb, p, found.ifindex, replica->mac);
		}
	}
	guess(p, first, 0);
	return first == node ? TC_ACT_UNSPEC : to_node(skb, p, first);
}

// A SYN for which the group has chosen that node. While buckets move it may be the repetition of one that was answered elsewhere: by
// a replica here, or by the node where the one before it went. TC_ACT_UNSPEC: it goes there.
static inline_always int opening_outward(struct __sk_buff *skb, struct packet *p, struct vip *v, __be32 node)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	struct grant grant = {};
	p->settled = is_settled(v);
	if (!p->settled && v->count && allowed(&grant, FOR_SYNS, p->flow.vip)) {
		struct found found;
		clear(skb, &found);
		__u32 answer = search_opening(skb, p, v, &found);
		charge(&grant, v->count);
		struct attached *replica = answer >= HALF_OPEN ? found_replica(p, &found) : 0;
		if (replica) {
			count(p->flow.vip, STEERED);
			return hand_over(skb, p, found.ifindex, replica->mac);
		}
	}
	if (!p->settled && hint && hint->flags & OPENING && hint->node != node) {
		int verdict = to_node(skb, p, hint->node);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (p->policed) {
		int verdict = to_place_of_client(skb, p, IPPROTO_TCP, 0);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (v->flags & PORTS_DIFFER) {
		int verdict = opening_elsewhere(skb, p, node);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (p->policed)
		keep_client(p, IPPROTO_TCP, 0, node);
	if (!hint) {
		guess(p, node, OPENING);
	} else {	// the connection before it of these ports, and what was known of that, is over
		hint->ifindex = 0;
		hint->node = node;
		hint->flags = OPENING;
	}
	return TC_ACT_UNSPEC;
}

// To a replica as it is: the owner there asks nobody else.
static inline_always int as_it_is(struct __sk_buff *skb, __u32 ifindex, const __u8 *mac)
{
	__u32 *flag = copying();
	if (!flag || bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	*flag = 1;
	bpf_clone_redirect(skb, ifindex, 0);
	*flag = 0;
	return TC_ACT_SHOT;
}

// One more than the place of the replica whose turn it is, if it gets new flows; 0: it doesn't.
static inline_always int ready_in_turn(const struct vip *v, __u32 start, __u32 turn)
{
	__u32 place = place_in_turn(v, start, turn);
	return place < MEMBERS && !(v->member[place].flags & DRAINING) ? place + 1 : 0;
}

IN_TURN(ready_of_some, (struct vip *v, __u32 first, __u32 from), first, replicas_of(v), ready_in_turn(v, start, i))

// The place of the first replica here, from that one on, that gets new flows; MEMBERS: none does.
static inline_always __u32 ready_from(struct vip *v, __u32 start)
{
	int found = 0;
	for (__u32 from = 0; from < MEMBERS && !found; from += SOME)
		found = ready_of_some(v, start, from);
	return found > 0 ? found - 1 : MEMBERS;
}

// No node has it. While one is only suspected to be away the flow may be there: better no answer than a reset. Otherwise a replica
// here answers, as a host should; where there is none, the stack does: the packet has had its last hop, which the client takes like
// any other word that there is no way. What would begin a flow is never for a replica that drains.
static inline_always int of_nobody(struct __sk_buff *skb, struct packet *p, struct vip *v, int belongs)
{
	__u32 place = 0;
	if (belongs && v->flags & SUSPECT) {
		count(p->flow.vip, RESET_WITHHELD);
		return TC_ACT_SHOT;
	}
	count(p->flow.vip, NO_OWNER);
	if (!belongs)
		place = ready_from(v, 0);
	if (place >= v->count || place >= MEMBERS)
		return end_here(skb) ? TC_ACT_SHOT : UNCHANGED;
	return as_it_is(skb, v->member[place].ifindex, v->member[place].mac);
}

// Nobody here has it, or takes it: on.
static inline_always int onward(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct transit *t, int belongs)
{
	struct here *here = this_node();
	if (!here)
		return TC_ACT_SHOT;
	if (t->origin != here->id) {
		if (t->kind == WALK)
			return walk(skb, v->next, t->origin, t->hop + 1);
		if (belongs)
			return send_back(skb, p, t->origin);
		return aim(skb, t->origin, t->origin, BACK, 0) ? TC_ACT_SHOT : bpf_redirect(here->ifindex, 0);
	}
	if (v->next && t->kind == BACK)	// on the last walk any node that has something ready takes a datagram
		return begin_walk(skb, p, v->next, PROTOCOL(p) == IPPROTO_UDP ? LAST : 0);
	return of_nobody(skb, p, v, belongs);
}

// The replica gets the packet; what is left of it tells the origin where the flow is.
static inline_always int report(struct __sk_buff *skb, struct packet *p, struct attached *replica, __u32 ifindex, __be32 origin)
{
	struct here *here = this_node();
	lead(p, ifindex, 0);
	if (!here || bpf_skb_store_bytes(skb, 0, replica->mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	bpf_clone_redirect(skb, ifindex, 0);
	if (skb->len > REPORTED_BYTES && bpf_skb_change_tail(skb, REPORTED_BYTES, 0))
		return TC_ACT_SHOT;
	return aim(skb, origin, here->id, FOUND, 0) ? TC_ACT_SHOT : bpf_redirect(here->ifindex, 0);
}

// A packet of a flow: to who has it here.
static inline_always int flow_inward(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct transit *t)
{
	struct here *here = this_node();
	if (!here)
		return TC_ACT_SHOT;
	int is_home = t->origin == here->id;
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (hint && hint->node && is_home) {
		bpf_map_delete_elem(&hints_v3, &p->flow);	// it led to a node that doesn't have the flow
	} else if (hint && !hint->node && t->kind != WALK) {
		int verdict = to_hinted_replica(skb, p, hint);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	struct found found;
	int answer = search_here(skb, p, v, &found);
	if (answer < 0) {
		count(p->flow.vip, SEARCH_THROTTLED);
		return TC_ACT_SHOT;
	}
	struct attached *replica = answer ? found_replica(p, &found) : 0;
	if (replica && answer >= HALF_OPEN) {
		if (t->kind == WALK && !is_home)
			return report(skb, p, replica, found.ifindex, t->origin);
		return hand_over(skb, p, found.ifindex, replica->mac);
	}
	// A connection that the client has opened anew may be open on one node and in TIME_WAIT on another.
	int is_asked_for = t->kind == WALK ? is_home || t->hop & LAST : t->kind != BACK && is_settled(v);
	if (replica && is_asked_for)
		return as_it_is(skb, found.ifindex, replica->mac);
	if (is_home && t->kind == WALK && !(t->hop & LAST) && v->next)
		return begin_walk(skb, p, v->next, LAST);
	return onward(skb, p, v, t, 1);
}

// A SYN: to one of this node's replicas, if one listens.
static inline_always int opening_inward(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct transit *t)
{
	struct grant grant = {};
	if (t->kind == BACK) {	// it isn't where it went
		bpf_map_delete_elem(&hints_v3, &p->flow);
		if (v->flags & POLICED)
			forget_client(p, IPPROTO_TCP);
	}
	if (!v->count)
		return onward(skb, p, v, t, 0);
	if (!allowed(&grant, FOR_SYNS, p->flow.vip))
		return v->ready ? TC_ACT_OK : TC_ACT_SHOT;
	p->settled = t->kind != AIMED;	// a repetition goes to who has answered the first one
	struct found found;
	clear(skb, &found);
	int answer = search_opening(skb, p, v, &found);
	charge(&grant, v->count);
	if (answer == LISTENS && v->ready)
		return TC_ACT_OK;	// the group of them chooses
	struct attached *replica = answer >= HALF_OPEN ? found_replica(p, &found) : 0;
	return replica ? hand_over(skb, p, found.ifindex, replica->mac) : onward(skb, p, v, t, 0);
}

#include "datagrams.h"

// What begins a flow of a client outside, and is for the replicas here though the group has chosen another node: to the one where its
// client's flows go, or to the one that its hash says. The owner there sees to the rest.
verified_alone int keep_here(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 protocol)
{
	if (!p || !v)
		return TC_ACT_SHOT;
	if (p->policed) {
		int verdict = to_place_of_client(skb, p, protocol, 1);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	__u32 place = v->count ? ready_from(v, begin_at(&p->flow, v->count)) : MEMBERS;
	if (place >= v->count || place >= MEMBERS)
		return TC_ACT_SHOT;
	return hand_over(skb, p, v->member[place].ifindex, v->member[place].mac);
}

// A packet for which the group has chosen that node: where it belongs. TC_ACT_UNSPEC: there.
static inline_always int to_place(struct __sk_buff *skb, struct packet *p, struct vip *v, __be32 node, int what)
{
	if (what == OPENS || what == DATAGRAM) {
		p->policed = (v->flags & POLICED) != 0;
		p->kept_here = v->ready && is_kept_here(skb, v->flags);
		if (p->kept_here)
			return keep_here(skb, p, v, what == OPENS ? IPPROTO_TCP : IPPROTO_UDP);
	}
	switch (what) {
	case OPENS:
		return opening_outward(skb, p, v, node);
	case BELONGS:
		return flow_outward(skb, p, v, node);
	case DATAGRAM:
		return datagram_outward(skb, p, v, node);
	case REPORTS:
		return error_outward(skb, p, v);
	case FOLLOWS:
		return fragment_outward(skb, p);
	}
	return TC_ACT_UNSPEC;
}

// It has come by the tunnel, and the group of this node's replicas has not had it: the route to that is missing, or a packet filter has
// given the packet another TOS. No second node: to one of these replicas all the same.
static inline_always int stay_here(struct __sk_buff *skb, struct packet *p, struct vip *v, int what)
{
	int verdict = what == FOLLOWS ? fragment_outward(skb, p) : TC_ACT_UNSPEC;
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	__u32 place = v->count ? ready_from(v, begin_at(&p->flow, v->count)) : MEMBERS;
	if (place >= v->count || place >= MEMBERS)
		return dropped_in_tunnel(TOO_FAR);
	return hand_over(skb, p, v->member[place].ifindex, v->member[place].mac);
}

SEC("classifier")
int outward(struct __sk_buff *skb)
{
	struct packet p = {};
	struct {
		__u8 to[2];
		__be32 node;
	} __attribute__((packed)) eth;
	struct here *here = this_node();
	if (!here || peek(skb, 0, &eth, sizeof(eth)))
		return TC_ACT_SHOT;
	int addressed = is_addressed(skb);
	if (addressed)
		return addressed > 0 ? TC_ACT_OK : TC_ACT_SHOT;
	__be32 node = eth.node, id = here->id;
	int what = read_flow(skb, &p);
	struct vip *v = what < 0 ? 0 : bpf_map_lookup_elem(&vips_v3, &p.flow.vip);
	if (!v)
		return dropped_in_tunnel(NOT_OURS);
	if (skb->ingress_ifindex == here->ifindex)
		return stay_here(skb, &p, v, what);
	int verdict = to_place(skb, &p, v, node, what);
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	if (p.first)
		lead_no_more(&p, 0, node);
	return aim(skb, node, id, CHOSEN, 0) ? dropped_in_tunnel(TOO_FAR) : TC_ACT_OK;
}

// The minute is over for which the entry of a VIP without replicas stays, for what other nodes send that don't know of it yet.
static inline_always int is_over(const struct vip *v)
{
	return v->flags & LINGERS && is_settled(v);
}

static inline_always int come_in(struct __sk_buff *skb, struct packet *p)
{
	struct transit t = {};
	if (read_transit(skb, &t))
		return dropped_in_tunnel(STRANGER);
	if ((t.hop & ~LAST) > HOPS)
		return dropped_in_tunnel(TOO_FAR);
	int what = read_flow(skb, p);
	struct vip *v = what < 0 ? 0 : bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	if (!v || is_over(v))
		return dropped_in_tunnel(NOT_OURS);
	if (t.kind == FOUND) {
		struct hint hint = { .node = t.sender };
		if (what == BELONGS)
			bpf_map_update_elem(&hints_v3, &p->flow, &hint, BPF_ANY);
		else if (what == DATAGRAM)
			bpf_map_update_elem(&sticky_v2, &p->flow, &hint, BPF_ANY);
		return TC_ACT_SHOT;
	}
	switch (what) {
	case BELONGS:
		return flow_inward(skb, p, v, &t);
	case OPENS:
		return opening_inward(skb, p, v, &t);
	case DATAGRAM:
		if (v->flags & FLOWS_STAY || asks(&t))
			return datagram_inward(skb, p, v, &t);
		break;
	case REPORTS:
		return error_inward(skb, p, v, &t);
	case FOLLOWS: {
		int verdict = fragment_inward(skb, p, v, &t);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	}
	return v->ready ? TC_ACT_OK : onward(skb, p, v, &t, 0);
}

SEC("classifier")
int inward(struct __sk_buff *skb)
{
	struct packet p = {};
	int verdict = come_in(skb, &p);
	if (verdict == TC_ACT_OK)
		return to_group(skb, &p);
	return verdict == UNCHANGED ? TC_ACT_OK : verdict;
}

#endif
