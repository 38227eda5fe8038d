// What begins a connection: to a replica that listens, and to the same one when it is repeated.
#ifndef VIPROUTE_OPENINGS_H
#define VIPROUTE_OPENINGS_H

// What a namespace has for a SYN: the connection, or a socket that would take it. One that is tied to a device takes only what
// comes by that one, which can't be told from here: it doesn't count.
verified_alone int ask_opening(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return NOTHING;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	if (sk && sk->state == BPF_TCP_TIME_WAIT) {	// it gives way to a socket that listens
		bpf_sk_release(sk);
		any_client(skb, &tuple);
		sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	}
	if (!sk)
		return NOTHING;
	int answer;
	__u32 state = sk->state;
	if (port & OCCUPIED && state != BPF_TCP_LISTEN)
		state = BPF_TCP_CLOSE;
	switch (state) {
	case BPF_TCP_LISTEN:
		answer = sk->bound_dev_if ? NOTHING : LISTENS;
		break;
	case BPF_TCP_NEW_SYN_RECV:
		answer = HALF_OPEN;
		break;
	case BPF_TCP_SYN_SENT:
	case BPF_TCP_TIME_WAIT:
	case BPF_TCP_CLOSE:
		answer = NOTHING;
		break;
	default:
		answer = OPEN;
	}
	bpf_sk_release(sk);
	return answer;
}

// The place among so many replicas where a flow's search begins: each packet's is the same, other flows' are others.
static inline_always __u32 begin_at(const struct flow *flow, __u32 replicas)
{
	__u32 hash = client_of(flow) * 0x9e3779b1U ^ ((__u32)flow->client_port << 16 | flow->vip_port);
	hash = (hash ^ hash >> 16) * 0x85ebca6bU;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
	hash ^= hash >> 16;
	return (__u64)hash * replicas >> 32;
}

// Where a flow's search begins.
static inline_always __u32 start_of_search(const struct packet *p, const struct vip *v)
{
	return p && v ? begin_at(&p->flow, v->count) : 0;
}

// Whether a replica takes new flows of that port.
static inline_always int takes_new(const struct member *m, struct packet *p, __u8 protocol)
{
	if (m->flags & DRAINING)
		return 0;
	struct attached *replica = attached(m->ifindex, p->flow.vip);
	if (!replica)
		return 0;
#ifdef WITHOUT_BTF	// as is_listed()
	__u32 limited = replica->flags & GUARDED;
	return (replica->netns == m->netns) & (!limited | is_listed(replica, protocol, p->flow.vip_port));
#endif
	return replica->netns == m->netns && !is_refused(replica, protocol, p->flow.vip_port);
}

// Asks one replica about a SYN, unless it is the chosen one. Not 0: the search is over.
verified_alone int ask_member_opening(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask_opening(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_TCP));
	if (answer == LISTENS && !takes_new(m, p, IPPROTO_TCP))
		return 0;
	note(skb, found, m, answer);
	return answer == OPEN || (answer && p->settled);
}

IN_TURN(ask_some_opening, (struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 from),
	start_of_search(p, v), replicas_of(v), ask_member_opening(skb, p, v, found, place_in_turn(v, start, i)))

// Asks all replicas but the chosen one about a SYN, beginning with one that the flow's hash gives: of those that listen the
// first one is found, so that it is the same one for each repetition; failing none, one that has the connection.
verified_alone int search_opening(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	if (!p || !v || !found)
		return NOTHING;
	ALL_IN_TURN(ask_some_opening(skb, p, v, found, from));
	return found->answer;
}

#if HAS_TUNNEL
// A SYN for a replica here. Where the one before it of these ports went to another node a moment ago, and buckets move, it is that
// one's repetition. Otherwise what was known of the ports is over.
static inline_always int repeated(struct __sk_buff *skb, struct packet *p)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (!hint)
		return TC_ACT_UNSPEC;
	if (!p->settled && hint->flags & OPENING)
		return to_node(skb, p, hint->node);
	bpf_map_delete_elem(&hints_v3, &p->flow);
	return TC_ACT_UNSPEC;
}
#endif

// A SYN that nobody may take: a reset.
static inline_always int refuse(struct __sk_buff *skb, struct packet *p)
{
	count(p->flow.vip, PORT_DENIED);
	return reset(skb, p);
}

// A SYN to a port that the chosen replica doesn't serve: to one that does, if there may be one. TC_ACT_UNSPEC: it is looked for among all
// replicas. (Without functions that are verified alone replicas with different ports have no equal shares: there is no room for lots.)
static inline_always int refused_opening(struct __sk_buff *skb, struct packet *p, struct vip *v)
{
	if (!v || !(v->flags & PORTS_DIFFER) || is_copy())
		return refuse(skb, p);
#if HAS_TUNNEL
	p->settled = is_settled(v);
	p->kept_here = is_kept_here(skb, v->flags);
	int verdict = opening_elsewhere(skb, p, 0);
	return verdict == TC_ACT_UNSPEC ? refuse(skb, p) : verdict;
#else
	return v->count < 2 ? refuse(skb, p) : TC_ACT_UNSPEC;
#endif
}

// Of several replicas that listen the one whose lot is the best, where not all of them serve the port: else those that come behind one
// that doesn't would get its share.
static inline_always void draw(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
#if HAS_TUNNEL
	if (!(v->flags & PORTS_DIFFER))
		return;
	__u32 ifindex = drawn(skb, p, IPPROTO_TCP);
	struct attached *replica = ifindex ? attached(ifindex, p->flow.vip) : 0;
	if (!replica)
		return;
	found->ifindex = ifindex;
	found->netns = replica->netns;
#else
	(void)skb, (void)p, (void)v, (void)found;
#endif
}

// A SYN: to the chosen replica, if it serves its port and listens; if not, to one that does. While buckets move, or where nobody listened a moment
// ago, it may be the repetition of one that another replica has answered already: two half-open connections would kill each
// other. Where nobody listens the chosen one answers.
static inline_always int begins(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	int refused = is_refused(chosen, IPPROTO_TCP, p->flow.vip_port);
	if (refused) {
		int verdict = refused_opening(skb, p, v);
		if (HAS_TUNNEL || verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (!v || (v->count < 2 && !may_be_far(v)))
		return TC_ACT_OK;
	__u64 now = bpf_ktime_get_ns();
	p->settled = now >= v->syn_search_until && now >= chosen->syn_search_until;
	__u32 here = NOTHING;
	if (!refused)
		here = ask_opening(skb, p, chosen->netns, port_at(p, chosen->flags, p->self, IPPROTO_TCP));
#if HAS_TUNNEL
	if (may_be_far(v) && here < HALF_OPEN && !came_by_tunnel(skb)) {
		int verdict = repeated(skb, p);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
#endif
	if (here >= HALF_OPEN || (here == LISTENS && p->settled))
		return TC_ACT_OK;
	struct grant grant = {};
	if (!allowed(&grant, FOR_SYNS, p->flow.vip)) {
		if (here)
			return TC_ACT_OK;
		// Refused though another one may listen? TCP sends again.
		count(p->flow.vip, SEARCH_THROTTLED);
		return TC_ACT_SHOT;
	}
	here = unknown(skb, here);	// one way from here on, and not one for each that led here
	refused = unknown(skb, refused);
	p->settled = unknown(skb, p->settled);
	struct found found;
	clear(skb, &found);
	__u32 there = search_opening(skb, p, v, &found);
	if (there == LISTENS && !here)
		draw(skb, p, v, &found);
	charge(&grant, v->count);
	struct attached *replica = there > here ? found_replica(p, &found) : 0;
#if HAS_TUNNEL
	if (!here && !there && v->next && !is_copy())	// nobody here listens: another node's replica may
		return begin_walk(skb, p, v->next, 0);
#endif
	if (!replica)
		return refused ? refuse(skb, p) : TC_ACT_OK;
	if (!here && !refused && chosen->syn_search_until < now + REPEATED_FOR - SECOND)	// not for each SYN
		chosen->syn_search_until = now + REPEATED_FOR;
	count(p->flow.vip, STEERED);
#if HAS_TUNNEL
	if (p->policed)
		keep_client(p, IPPROTO_TCP, found.ifindex, 0);
#endif
	return hand_over(skb, p, found.ifindex, replica->mac);
}

// The client isn't of those that the port is for.
static inline_always int not_let_in(const struct packet *p)
{
	count(p->flow.vip, SOURCE_DENIED);
	return TC_ACT_SHOT;
}

// The same, as Services ask.
static inline_always int opening(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	if (chosen->flags & POLICED) {
		if (!is_let_in(p, IPPROTO_TCP))
			return not_let_in(p);
#if HAS_TUNNEL
		p->policed = 1;
		int verdict = is_copy() ? TC_ACT_UNSPEC : to_place_of_client(skb, p, IPPROTO_TCP, came_by_tunnel(skb));
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
#endif
	}
	p->flow.client_port = unknown(skb, p->flow.client_port);	// where both ways meet
	int begun = begins(skb, p, chosen);
#if HAS_TUNNEL
	if (p->policed && begun == TC_ACT_OK)
		keep_client(p, IPPROTO_TCP, p->self, 0);
#endif
	return begun;
}

#endif
