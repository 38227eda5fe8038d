// Datagrams that have come to a replica's host veth, and ICMP errors about them.
#ifndef VIPROUTE_UDP_H
#define VIPROUTE_UDP_H

// Keeps a UDP flow where it began: TC_ACT_UNSPEC where it has no such place.
static inline_always int stay(struct __sk_buff *skb, struct packet *p)
{
	struct hint *kept = bpf_map_lookup_elem(&sticky_v2, &p->flow);
	if (!kept)
		return TC_ACT_UNSPEC;
	__u32 ifindex = kept->ifindex;
#if HAS_TUNNEL
	if (kept->flags & ASKED)
		return TC_ACT_UNSPEC;
	if (kept->node)
		return came_by_tunnel(skb) ? TC_ACT_UNSPEC : to_node(skb, p, kept->node);
#endif
	if (ifindex == p->self)
		return TC_ACT_OK;
	struct attached *other = attached(ifindex, p->flow.vip);
	if (!other)
		return TC_ACT_UNSPEC;
	count(p->flow.vip, STEERED);
	return hand_over(skb, p, ifindex, other->mac);
}

// Whether a namespace has a UDP socket that would take the packet; as of TCP, one that is tied to a device doesn't count.
verified_alone int ask_datagram(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return 0;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return 0;
	int takes = !sk->bound_dev_if;
	bpf_sk_release(sk);
	return takes;
}

// Asks one replica about a datagram, unless it is the chosen one. Not 0: it takes it.
verified_alone int ask_member_datagram(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self || !ask_datagram(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_UDP)))
		return 0;
	return takes_new(m, p, IPPROTO_UDP) ? m->ifindex : 0;
}

IN_TURN(ask_some_datagram, (struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 from),
	start_of_search(p, v), replicas_of(v), ask_member_datagram(skb, p, v, place_in_turn(v, start, i)))

// The host veth of a replica other than the chosen one that takes a datagram, the first one from where the flow's hash says; 0:
// none does.
verified_alone int search_datagram(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
	if (!p || !v)
		return 0;
	int ifindex = 0;
	for (__u32 from = 0; from < MEMBERS && !ifindex; from += SOME)
		ifindex = ask_some_datagram(skb, p, v, from);
	return ifindex == NO_MORE ? 0 : ifindex;
}

// The same, by lot among those that serve the port where not all of them do.
static inline_always __u32 search_taker(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
#if HAS_TUNNEL
	if (v->flags & PORTS_DIFFER)
		return drawn(skb, p, IPPROTO_UDP);
#endif
	return search_datagram(skb, p, v);
}

// Who takes a datagram in the place of the replica at `at`, which has no socket for it; `at` where nobody does, or too many are
// looked for.
static inline_always __u32 receiver(struct __sk_buff *skb, struct packet *p, struct attached *chosen, __u32 at)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	struct grant grant = {};
	if (!v || v->count < 2 || !allowed(&grant, FOR_SYNS, p->flow.vip))
		return at;
	at = unknown(skb, at);
	__u32 there = 0;
	if (at != p->self && ask_datagram(skb, p, chosen->netns, port_at(p, chosen->flags, p->self, IPPROTO_UDP)))
		there = p->self;
	else
		there = unknown(skb, search_taker(skb, p, v));
	charge(&grant, v->count);
	return there ? there : at;
}

// Whether a flow has a replica here. (Without other nodes it has no other place: the verifier has enough to do there.)
static inline_always int has_replica(const struct hint *kept)
{
	return kept && (!HAS_TUNNEL || kept->ifindex);
}

// The host veth of a flow that has its replica here, and of which nobody is asked; 0: none.
static inline_always __u32 place_of(const struct hint *kept)
{
	return kept && (!HAS_TUNNEL || !kept->flags) ? kept->ifindex : 0;
}

// To where its flow began, if flows stay, or to the chosen replica; of a declared port, to another one if that one has no socket
// for it.
static inline_always int datagram(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct hint *kept = chosen->flags & STICKY ? bpf_map_lookup_elem(&sticky_v2, &p->flow) : 0;
#if HAS_TUNNEL
	if (chosen->flags & STICKY && !came_by_tunnel(skb)) {
		int verdict = stay_far(skb, p, 0);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
#endif
	__u32 noted = place_of(kept), at = has_replica(kept) ? kept->ifindex : p->self;
	struct attached *replica = at == p->self ? chosen : attached(at, p->flow.vip);
	if (!replica) {
		at = p->self;
		replica = chosen;
	}
	__u32 to = at;
	if (chosen->flags & GUARDED && !ask_datagram(skb, p, replica->netns, port_at(p, replica->flags, at, IPPROTO_UDP)))
		to = receiver(skb, p, chosen, at);
	if (chosen->flags & STICKY && noted != to) {
		struct hint place = { .ifindex = to };
		bpf_map_update_elem(&sticky_v2, &p->flow, &place, BPF_ANY);
	}
	if (to == p->self)
		return TC_ACT_OK;
	if (FEW_WAYS || to != at)
		replica = attached(to, p->flow.vip);
	if (!replica)
		return TC_ACT_OK;
	count(p->flow.vip, STEERED);
#if HAS_TUNNEL
	if (p->policed)
		keep_client(p, IPPROTO_UDP, to, 0);
#endif
	return hand_over(skb, p, to, replica->mac);
}

#if HAS_TUNNEL
// `stays`: so do its flows. TC_ACT_UNSPEC: nobody serves its port.
static inline_always int datagram_elsewhere(struct __sk_buff *skb, struct packet *p, __u32 stays)
{
	struct hint *kept = stays ? bpf_map_lookup_elem(&sticky_v2, &p->flow) : 0;
	if (kept && !kept->flags && kept->ifindex && kept->ifindex != p->self)
		return to_server(skb, p, kept->ifindex, IPPROTO_UDP);
	int is_inward = came_by_tunnel(skb);
	__u64 place = appointed(p, IPPROTO_UDP, 0, is_inward);
	if (!place)
		return TC_ACT_UNSPEC;
	__u32 self = p->self;
	if (stays && !is_inward) {
		p->self = place;	// what is noted while other nodes are asked for the flow
		int verdict = stay_far(skb, p, place >> 32);
		p->self = self;
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
		struct hint begins = { .ifindex = place, .node = place >> 32 };
		bpf_map_update_elem(&sticky_v2, &p->flow, &begins, BPF_ANY);
	}
	return (__u32)place ? to_server(skb, p, place, IPPROTO_UDP) : begin_there(skb, p, place >> 32, IPPROTO_UDP);
}
#endif

// A datagram to a port that the chosen replica doesn't serve: where its flow is, or begins among those that serve it.
static inline_always int refused_datagram(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	int verdict = TC_ACT_UNSPEC;
	if (v && v->flags & PORTS_DIFFER) {
#if HAS_TUNNEL
		verdict = datagram_elsewhere(skb, p, chosen->flags & STICKY);
#else
		(void)chosen;
		__u32 ifindex = search_datagram(skb, p, v);
		struct attached *replica = ifindex ? attached(ifindex, p->flow.vip) : 0;
		if (replica)
			return hand_over(skb, p, ifindex, replica->mac);
#endif
	}
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	count(p->flow.vip, PORT_DENIED);
	return TC_ACT_SHOT;
}

static inline_always int udp(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct udphdr udp;
	if (load(skb, p, p->inner, &udp, sizeof(udp)))
		return portless(p, chosen);
	p->flow.client_port = udp.source;
	p->flow.vip_port = udp.dest;
	if (chosen->flags & POLICED) {
		if (!is_let_in(p, IPPROTO_UDP))
			return not_let_in(p);
#if HAS_TUNNEL
		p->policed = 1;
		int verdict = to_place_of_client(skb, p, IPPROTO_UDP, came_by_tunnel(skb));
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
#endif
	}
	if (is_refused(chosen, IPPROTO_UDP, udp.dest))
		return refused_datagram(skb, p, chosen);
	if (!(chosen->flags & GUARDED) || is_from_host(p))
		hear(p);
	int verdict = chosen->flags & (STICKY | GUARDED) ? datagram(skb, p, chosen) : TC_ACT_OK;
#if HAS_TUNNEL
	if (p->policed && verdict == TC_ACT_OK)
		keep_client(p, IPPROTO_UDP, p->self, 0);
#endif
	return verdict;
}

// What a namespace's UDP sockets have to do with a flow.
enum { NO_SOCKET, MAY_HAVE_SENT, CONNECTED };

verified_alone int ask_udp(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return NO_SOCKET;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return NO_SOCKET;
	int answer = is_connected(sk) ? CONNECTED : MAY_HAVE_SENT;
	bpf_sk_release(sk);
	return answer;
}

// Asks one replica, unless it is the chosen one. Not 0: the search is over.
verified_alone int ask_member_udp(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask_udp(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_UDP));
	if (answer)
		found->several++;
	note(skb, found, m, answer);
	return answer == CONNECTED;
}

IN_TURN(ask_some_udp, (struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 from), 0, replicas_of(v),
	ask_member_udp(skb, p, v, found, i))

// Asks all replicas but the chosen one who may have sent the datagram.
static inline_always void search_udp(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	clear(skb, found);
	ALL_IN_TURN(ask_some_udp(skb, p, v, found, from));
}

// A copy to one replica if a UDP socket of it may have sent the packet, and no other's is connected to its client.
verified_alone int copy_to_sender(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	if (found->answer == CONNECTED && m->ifindex != found->ifindex)
		return 0;
	return ask_udp(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_UDP)) ? copy_to(skb, p, v, i) : 0;
}

IN_TURN(copy_to_some_senders, (struct __sk_buff *skb, struct packet *p, struct vip *v, const struct found *found, __u32 from), 0,
	replicas_of(v), copy_to_sender(skb, p, v, found, i))

// Sends copies of the error to the other replicas that may have sent the packet.
static inline_always int to_senders(struct __sk_buff *skb, struct packet *p, struct vip *v, const struct found *found,
				   struct attached *chosen)
{
	__u32 *flag = copying();
	if (!flag)
		return TC_ACT_OK;
	*flag = 1;
	ALL_IN_TURN(copy_to_some_senders(skb, p, v, found, from));
	*flag = 0;
	return bpf_skb_store_bytes(skb, 0, chosen->mac, ETH_ALEN, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

#if HAS_TUNNEL
// The replica here that the group has chosen gets what goes to other nodes too.
static inline_always void copy_to_self(struct __sk_buff *skb)
{
	__u32 *flag = copying();
	if (!flag)
		return;
	*flag = 1;
	bpf_clone_redirect(skb, skb->ifindex, 0);
	*flag = 0;
}
#endif

// Whether other nodes get an error that no replica here has a connected socket for: where it entered, and nowhere else.
static inline_always int goes_round(struct __sk_buff *skb, const struct vip *v)
{
#if HAS_TUNNEL
	return v->next && !came_by_tunnel(skb);
#else
	(void)skb, (void)v;
	return 0;
#endif
}

// An error about a UDP packet: to the replica that has a socket connected to that client; where none has, to all that have a
// socket of the port, on this node and on the others.
static inline_always int udp_error(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	if (is_copy() || !v || (v->count < 2 && !goes_round(skb, v)) ||
	    ask_udp(skb, p, chosen->netns, port_at(p, chosen->flags, p->self, IPPROTO_UDP)) == CONNECTED)
		return TC_ACT_OK;
	struct grant grant = {};
	if (!allowed(&grant, FOR_ERRORS, p->flow.vip))
		return TC_ACT_OK;
	struct found found;
	search_udp(skb, p, v, &found);
	charge(&grant, v->count);
	if (found.answer == CONNECTED) {
		struct attached *replica = found_replica(p, &found);
		if (!replica)
			return TC_ACT_OK;
		count(p->flow.vip, STEERED);
		return hand_over(skb, p, found.ifindex, replica->mac);
	}
	int verdict = TC_ACT_OK;
	if (found.several) {
		charge_copies(&grant, found.several);
		verdict = to_senders(skb, p, v, &found, chosen);
	}
#if HAS_TUNNEL
	if (verdict == TC_ACT_OK && goes_round(skb, v)) {
		take(&grant, WALK_COSTS);
		copy_to_self(skb);
		return set_out(skb, v->next);
	}
#endif
	return verdict;
}

#endif
