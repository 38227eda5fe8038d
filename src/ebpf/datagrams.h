// What nodes send each other of UDP, and of datagrams in fragments.
//
// A flow of UDP goes where the group's hash says. Where flows stay (FLOWS_STAY) each node remembers those of its own replicas, and of
// those that enter here the node that has them. What it doesn't know it asks the others for, by a walk: a flow may have entered
// elsewhere so far, or have begun before another replica was there. Only one that no node has begins where the group says.
//
// An error about a datagram is for the replica that has a socket connected to that client, wherever that is; where none has, for each
// one on any node that has a socket of the port.
//
// A fragment behind the first one follows it. Those of a datagram have one hash, so the first one alone has to be noted, and only
// where it went elsewhere.
#ifndef VIPROUTE_DATAGRAMS_H
#define VIPROUTE_DATAGRAMS_H

// To the replica here that has the flow. TC_ACT_UNSPEC: none has.
static inline_always int to_kept_replica(struct __sk_buff *skb, struct packet *p, const struct hint *kept)
{
	if (!kept || kept->flags & ASKED || !kept->ifindex)
		return TC_ACT_UNSPEC;
	__u32 ifindex = kept->ifindex;
	struct attached *replica = attached(ifindex, p->flow.vip);
	return replica ? hand_over(skb, p, ifindex, replica->mac) : TC_ACT_UNSPEC;
}

// A datagram for which the group has chosen that node. TC_ACT_UNSPEC: it goes there.
static inline_always int datagram_outward(struct __sk_buff *skb, struct packet *p, struct vip *v, __be32 node)
{
	int stays = v->flags & FLOWS_STAY, differs = v->flags & PORTS_DIFFER;
	if (p->policed && !stays) {
		int verdict = to_place_of_client(skb, p, IPPROTO_UDP, 0);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
		if (!differs)
			keep_client(p, IPPROTO_UDP, 0, node);
	}
	if (!stays && !differs)
		return TC_ACT_UNSPEC;
	if (stays) {
		int verdict = to_kept_replica(skb, p, bpf_map_lookup_elem(&sticky_v2, &p->flow));
		if (verdict != TC_ACT_UNSPEC) {
			count(p->flow.vip, STEERED);
			return verdict;
		}
	}
	__u64 place = differs ? appointed(p, IPPROTO_UDP, node, 0) : 0;
	__u32 ifindex = place, to = place ? place >> 32 : node;
	if (stays) {
		p->self = ifindex;	// what is noted while other nodes are asked for the flow
		int verdict = stay_far(skb, p, to);
		p->self = 0;
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
		struct hint begins = { .ifindex = ifindex, .node = to };
		bpf_map_update_elem(&sticky_v2, &p->flow, &begins, BPF_ANY);
	}
	if (ifindex)
		return to_server(skb, p, ifindex, IPPROTO_UDP);
	return to == node ? TC_ACT_UNSPEC : begin_there(skb, p, to, IPPROTO_UDP);
}

// A datagram that no node knows the flow of has come home: the flow begins where the group had said. TC_ACT_UNSPEC: that is no more.
static inline_always int begin_flow(struct __sk_buff *skb, struct packet *p, struct hint *kept)
{
	struct here *here = this_node();
	if (!here || !kept)
		return TC_ACT_UNSPEC;
	__be32 node = kept->node, id = here->id;
	kept->flags = 0;
	if (!node)
		return to_kept_replica(skb, p, kept);
	if (aim(skb, node, id, CHOSEN, 0))
		return TC_ACT_UNSPEC;
	lead(p, 0, node);
	return bpf_redirect(here->ifindex, 0);
}

// Whether a datagram is on its way round to find who has its flow, and not who takes it.
static inline_always int asks(const struct transit *t)
{
	return t->kind == WALK && !(t->hop & LAST);
}

// A datagram of a flow that stays.
static inline_always int datagram_inward(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct transit *t)
{
	struct here *here = this_node();
	if (!here)
		return TC_ACT_SHOT;
	struct hint *kept = bpf_map_lookup_elem(&sticky_v2, &p->flow);
	int is_home = t->origin == here->id;
	int verdict = TC_ACT_UNSPEC;
	if (asks(t) && is_home) {
		verdict = begin_flow(skb, p, kept);
	} else if (asks(t)) {
		struct attached *replica = kept && kept->ifindex && !kept->flags ? attached(kept->ifindex, p->flow.vip) : 0;
		if (!replica)
			return walk(skb, v->next, t->origin, t->hop + 1);
		return report(skb, p, replica, kept->ifindex, t->origin);
	} else {
		verdict = to_kept_replica(skb, p, kept);
	}
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	if (kept && is_home)	// where it led to there is nothing for it
		bpf_map_delete_elem(&sticky_v2, &p->flow);
	if (v->ready)
		return TC_ACT_OK;
	return asks(t) && v->next ? begin_walk(skb, p, v->next, LAST) : onward(skb, p, v, t, 0);
}

// Whose an error about a datagram is.
enum { THROTTLED = -1, ANYBODYS, ONE_REPLICAS };

// Copies of an error to the replicas here that may have sent the datagram. `costs`: of what else is done for it, nanoseconds.
verified_alone int to_senders_here(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 costs)
{
	struct found found;
	struct grant grant = {};
	__u32 *flag = copying();
	if (!p || !v || !flag || !allowed(&grant, FOR_ERRORS, p->flow.vip))
		return THROTTLED;
	search_udp(skb, p, v, &found);
	charge(&grant, v->count);
	take(&grant, costs);
	charge_copies(&grant, found.several);
	if (!found.several)
		return ANYBODYS;
	*flag = 1;
	ALL_IN_TURN(copy_to_some_senders(skb, p, v, &found, from));
	*flag = 0;
	return found.answer == CONNECTED ? ONE_REPLICAS : ANYBODYS;
}

// An error about a datagram for which the group has chosen another node: its hash says nothing of whose it is. TC_ACT_UNSPEC: it goes
// there, since more isn't allowed.
static inline_always int error_outward(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
	struct hint *kept = v->flags & FLOWS_STAY ? bpf_map_lookup_elem(&sticky_v2, &p->flow) : 0;
	if (kept && !(kept->flags & ASKED)) {
		int verdict = kept->node ? to_node(skb, p, kept->node) : to_kept_replica(skb, p, kept);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	int whose = v->next ? to_senders_here(skb, p, v, WALK_COSTS) : THROTTLED;
	if (whose == THROTTLED)
		return TC_ACT_UNSPEC;
	return whose == ONE_REPLICAS ? TC_ACT_SHOT : set_out(skb, v->next);
}

// An error about a datagram: to the replicas here that may have sent it, and on to the next node, unless it is one replica's alone.
static inline_always int error_inward(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct transit *t)
{
	struct here *here = this_node();
	if (!here || (t->kind == WALK && t->origin == here->id))
		return TC_ACT_SHOT;
	struct hint *kept = v->flags & FLOWS_STAY ? bpf_map_lookup_elem(&sticky_v2, &p->flow) : 0;
	int verdict = to_kept_replica(skb, p, kept);
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	if (to_senders_here(skb, p, v, 0) == ONE_REPLICAS || t->kind != WALK)
		return TC_ACT_SHOT;
	return walk(skb, v->next, t->origin, t->hop + 1);
}

// A fragment behind the first one, for which the group has chosen another node. TC_ACT_UNSPEC: it goes there.
static inline_always int fragment_outward(struct __sk_buff *skb, struct packet *p)
{
	struct hint *with = bpf_map_lookup_elem(&fragments_v2, &p->datagram);
	if (!with)
		return TC_ACT_UNSPEC;
	__u32 ifindex = with->ifindex;
	if (!ifindex)
		return follow_far(skb, p, with->node);
	struct attached *replica = attached(ifindex, p->flow.vip);
	return replica ? hand_over(skb, p, ifindex, replica->mac) : TC_ACT_UNSPEC;
}

// A fragment behind the first one: after that one. TC_ACT_UNSPEC: to where the group of the replicas here says, as that one.
static inline_always int fragment_inward(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct transit *t)
{
	struct here *here = this_node();
	if (!here)
		return TC_ACT_SHOT;
	struct hint *with = bpf_map_lookup_elem(&fragments_v2, &p->datagram);
	__u32 ifindex = with ? with->ifindex : 0;
	struct attached *replica = ifindex ? attached(ifindex, p->flow.vip) : 0;
	if (replica)
		return hand_over(skb, p, ifindex, replica->mac);
	int is_udp = PROTOCOL(p) == IPPROTO_UDP;
	if (t->kind == BACK && with && !with->node && v->next)	// the first one has gone round
		return begin_walk(skb, p, v->next, is_udp ? LAST : 0);
	if (is_udp && (t->kind != WALK || t->hop & LAST))
		return TC_ACT_UNSPEC;
	if (t->kind == WALK && t->origin != here->id)
		return walk(skb, v->next, t->origin, t->hop + 1);
	if (t->kind == WALK && with && with->node)	// the first one came home too, and has gone there
		return follow_far(skb, p, with->node);
	return t->kind == WALK || t->kind == BACK ? TC_ACT_SHOT : onward(skb, p, v, t, 1);
}

#endif
