// Packets of connections, and errors about them: to the replica whose network namespace holds the socket.
#ifndef VIPROUTE_CONNECTIONS_H
#define VIPROUTE_CONNECTIONS_H

// Sends the packet out by another replica's host veth.
static inline_always int hand_over(struct __sk_buff *skb, struct packet *p, __u32 ifindex, const __u8 *mac)
{
	if (bpf_skb_store_bytes(skb, 0, mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	lead(p, ifindex, 0);
	return bpf_redirect(ifindex, 0);
}

// What a namespace knows of a flow. LISTENS is said to a SYN alone, which hears of no TIME_WAIT.
enum { NOTHING, TIME_WAIT, LISTENS, HALF_OPEN, OPEN };

// `port`: what the replica has in the place of the flow's; 0: nothing.
verified_alone int ask(struct __sk_buff *skb, struct packet *p, __u32 netns, __u32 port)
{
	if (!p)
		return NOTHING;
	struct tuple tuple = TUPLE(p, port);
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple), netns, 0);
	if (!sk)
		return NOTHING;
	int answer;
	__u32 state = sk->state;
	if (port & OCCUPIED && state != BPF_TCP_LISTEN)
		state = BPF_TCP_CLOSE;
	switch (state) {
	case BPF_TCP_LISTEN:	// holds no flow, unless this packet brings back the flow's own cookie
		answer = NOTHING;
		if (!p->cookie)
			break;
		p->tcp.dest = (__be16)port;	// the cookie is of what the replica has
		if (is_cookie(sk, p))
			answer = HALF_OPEN;
		break;
	case BPF_TCP_NEW_SYN_RECV:
		answer = HALF_OPEN;
		break;
	case BPF_TCP_SYN_SENT:	// a socket that opens a connection has none yet, whatever its ports are
		answer = p->for_opening ? HALF_OPEN : NOTHING;
		break;
	case BPF_TCP_TIME_WAIT:
		answer = TIME_WAIT;
		break;
	case BPF_TCP_CLOSE:
		answer = NOTHING;
		break;
	default:
		answer = OPEN;
	}
	bpf_sk_release(sk);
	return answer;
}

// Whether a pod has its own calls to it under STAND_IN.
static inline_always int stands_in(__u32 flags, __u32 protocol)
{
	return protocol == IPPROTO_UDP || flags & TRANSLATES;
}

// Asks a replica for a connection, which may be one that it has with itself, by that address of its own.
static inline_always __u32 ask_as(struct __sk_buff *skb, struct packet *p, const struct attached *replica, __u32 ifindex, __u32 own)
{
	client_address client = p->flow.client;
	int is_other = own && stands_in(replica->flags, IPPROTO_TCP);
	if (is_other)
		set_client(p, stand_in(own));
	__u32 answer = ask(skb, p, replica->netns, port_at(p, replica->flags, ifindex, IPPROTO_TCP));
	if (is_other)
		set_client(p, client);
	return answer;
}

// What a search has found so far.
struct found {
	__u32 answer;		// the best one
	__u32 ifindex;		// and who gave it
	__u32 netns;
	__u32 several;		// how many have the flow in TIME_WAIT; of UDP sockets: how many may have sent the packet
};

// Nothing so far.
static inline_always void clear(struct __sk_buff *skb, struct found *found)
{
	found->answer = unknown(skb, 0);
	found->ifindex = unknown(skb, 0);
	found->netns = unknown(skb, 0);
	found->several = unknown(skb, 0);
}

static inline_always void note(struct __sk_buff *skb, struct found *found, const struct member *m, __u32 answer)
{
	if (answer <= found->answer)
		return;
	found->answer = unknown(skb, answer);
	found->ifindex = m->ifindex;
	found->netns = m->netns;
}

// Asks one replica, unless it is the chosen one. Not 0: the search is over. A handshake doesn't end it: any client can begin
// one with the ports of another client's connection.
verified_alone int ask_member(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 i)
{
	if (!p || !v || !found || i >= MEMBERS)
		return 1;
	struct member *m = &v->member[i];
	if (m->ifindex == p->self)
		return 0;
	__u32 answer = ask(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_TCP));
	if (answer == TIME_WAIT)
		found->several++;
	note(skb, found, m, answer);
	return answer == OPEN;
}

IN_TURN(ask_some, (struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found, __u32 from), 0, replicas_of(v),
	ask_member(skb, p, v, found, i))

// Asks all replicas but the chosen one; finds one that holds the flow, failing that, one that is about to, or has it in
// TIME_WAIT.
static inline_always __u32 search(struct __sk_buff *skb, struct packet *p, struct vip *v, struct found *found)
{
	clear(skb, found);
	ALL_IN_TURN(ask_some(skb, p, v, found, from));
	return found->answer;
}

// The replica that was found, if it is still one: the list of those to ask may be older than its entry.
static inline_always struct attached *found_replica(const struct packet *p, const struct found *found)
{
	struct attached *replica = attached(found->ifindex, p->flow.vip);
	return replica && replica->netns == found->netns ? replica : 0;
}

// Sends a copy to one replica, unless it is the chosen one.
verified_alone int copy_to(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	__u32 ifindex = v->member[i].ifindex;
	struct attached *replica = ifindex == p->self ? 0 : attached(ifindex, p->flow.vip);
	if (replica && !bpf_skb_store_bytes(skb, 0, replica->mac, ETH_ALEN, 0))
		bpf_clone_redirect(skb, ifindex, 0);
	return 0;
}

// A copy to one replica if it has the flow in TIME_WAIT.
verified_alone int copy_to_waiting(struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 i)
{
	if (!p || !v || i >= MEMBERS)
		return 0;
	struct member *m = &v->member[i];
	return ask(skb, p, m->netns, port_at(p, m->flags, m->ifindex, IPPROTO_TCP)) == TIME_WAIT ? copy_to(skb, p, v, i) : 0;
}

IN_TURN(copy_to_some_waiting, (struct __sk_buff *skb, struct packet *p, struct vip *v, __u32 from), 0, replicas_of(v),
	copy_to_waiting(skb, p, v, i))

// More than one replica has a flow of these ports and addresses in TIME_WAIT: the client has used its port again and reached
// another one. Whose last packet this is only they can tell (to the others it is old), so each gets a copy.
static inline_always int to_waiting(struct __sk_buff *skb, struct packet *p, struct vip *v, struct attached *chosen)
{
	__u32 *flag = copying();
	if (!flag)
		return TC_ACT_OK;
	*flag = 1;
	ALL_IN_TURN(copy_to_some_waiting(skb, p, v, from));
	*flag = 0;
	return bpf_skb_store_bytes(skb, 0, chosen->mac, ETH_ALEN, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

#if HAS_TUNNEL
// For so long nothing has changed that no flow of the VIP can be in TIME_WAIT where it was opened before, and open elsewhere.
static inline_always int is_settled(const struct vip *v)
{
	return bpf_ktime_get_ns() >= v->syn_search_until;
}
#endif

// Where the flow was found before, if it is still there: TC_ACT_UNSPEC if not. `here` is what the chosen replica has.
static inline_always int try_hint(struct __sk_buff *skb, struct packet *p, __u32 here)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (!hint || hint->ifindex == p->self)
		return TC_ACT_UNSPEC;
	__u32 ifindex = hint->ifindex;
#if HAS_TUNNEL
	if (hint->node) {
		struct vip *v = here ? bpf_map_lookup_elem(&vips_v3, &p->flow.vip) : 0;
		// Any host can send a SYN: that one went there tells nothing of whose the flow is.
		if (hint->flags & OPENING || (here && (!v || is_settled(v))))
			return TC_ACT_UNSPEC;
		return to_node(skb, p, hint->node);
	}
#else
	(void)here;
#endif
	struct attached *replica = attached(ifindex, p->flow.vip);
	if (!replica || ask_as(skb, p, replica, ifindex, own_address(&p->flow, replica, ifindex)) != OPEN)
		return TC_ACT_UNSPEC;
	used(replica, ifindex);
	count(p->flow.vip, STEERED);
	return hand_over(skb, p, ifindex, replica->mac);
}

// Whether another node may have a flow of the VIP.
static inline_always int may_be_far(const struct vip *v)
{
	return HAS_TUNNEL && (v->next || v->flags & SUSPECT);
}

#if HAS_TUNNEL
// No replica here has the flow, whose SYN went to another node: there. TC_ACT_UNSPEC: none did.
static inline_always int after_syn(struct __sk_buff *skb, struct packet *p)
{
	struct hint *hint = bpf_map_lookup_elem(&hints_v3, &p->flow);
	if (!hint || !(hint->flags & OPENING))
		return TC_ACT_UNSPEC;
	hint->flags = 0;
	return to_node(skb, p, hint->node);
}
#endif

// A packet of a connection that the chosen replica doesn't have: `here` is what it does have.
static inline_always int elsewhere(struct __sk_buff *skb, struct packet *p, struct attached *chosen, __u32 here)
{
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &p->flow.vip);
	struct grant grant = {};
	if (!v || (v->count < 2 && (here == HALF_OPEN || !may_be_far(v))))
		goto stays;
	if (here == HALF_OPEN) {
		// The end of a handshake, as a rule; but a client may have begun it with the ports of another client's connection.
		if (!allowed(&grant, FOR_HANDSHAKES, p->flow.vip))
			goto stays;
	} else if (!allowed(&grant, FOR_CONNECTIONS, p->flow.vip)) {
		// Not to the chosen replica: it would reset a connection that may well live in another one. TCP sends again,
		// and the chosen replica refuses packets that no replica owns when they come at a lower rate.
		count(p->flow.vip, SEARCH_THROTTLED);
		return here ? TC_ACT_OK : TC_ACT_SHOT;
	}
	here = unknown(skb, here);
	struct found found;
	__u32 there = search(skb, p, v, &found);
	charge(&grant, v->count);
#if HAS_TUNNEL
	__u32 best = there > here ? there : here;
	if (best == NOTHING || (best == TIME_WAIT && !is_settled(v))) {
		int verdict = after_syn(skb, p);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
		if (v->next)
			return begin_walk(skb, p, v->next, 0);
		if (best == NOTHING && v->flags & SUSPECT) {
			count(p->flow.vip, RESET_WITHHELD);
			return TC_ACT_SHOT;
		}
	}
#endif
	if (there == TIME_WAIT && here <= TIME_WAIT && found.several + here > 1) {
		charge_copies(&grant, v->count);
		count(p->flow.vip, STEERED);
		int verdict = to_waiting(skb, p, v, chosen);
		return here ? verdict : TC_ACT_STOLEN;
	}
	struct attached *replica = there > here ? found_replica(p, &found) : 0;
	if (!replica)	// no replica has the connection: the chosen one answers with a reset, as a host should
		goto stays;
	if (there == OPEN) {
		struct hint hint = { .ifindex = found.ifindex };
		bpf_map_update_elem(&hints_v3, &p->flow, &hint, BPF_ANY);
	}
	count(p->flow.vip, STEERED);
	return hand_over(skb, p, found.ifindex, replica->mac);
stays:
	if (here == HALF_OPEN)
		used(chosen, p->self);
	count(p->flow.vip, here ? LOCAL_HIT : NO_OWNER);
	return TC_ACT_OK;
}

// A packet of a connection, or an error about one: to the replica that has it.
static inline_always int connection(struct __sk_buff *skb, struct packet *p, struct attached *chosen)
{
	p->cookie = unknown(skb, p->cookie);
	p->for_opening = unknown(skb, p->for_opening);
	__u32 here = unknown(skb, ask_as(skb, p, chosen, p->self, p->is_own));
	if (here == OPEN) {
		used(chosen, p->self);
		count(p->flow.vip, LOCAL_HIT);
		p->held = 1;
		return TC_ACT_OK;
	}
	if (is_copy())
		return TC_ACT_OK;
	int verdict = try_hint(skb, p, here);
	return verdict == TC_ACT_UNSPEC ? elsewhere(skb, p, chosen, here) : verdict;
}

#endif
