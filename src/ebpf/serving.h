// Replicas of a VIP that serve different ports of it: some are listed with a port that others lack. The VIP's group and route know
// nothing of ports, so what would begin a flow may come to a replica, or a node, that doesn't serve its port. From there it goes to one
// that does, a replica here or another node, drawn by lot.
//
// The lots are the flow's hash with each of those that serve the port: a flow draws the same one each time, whoever else comes or goes,
// unless that one goes itself, and each wins as often as its weight says. Nothing is stored. Where all replicas of a VIP serve the same
// ports it has no entry here, and nothing is asked.
#ifndef VIPROUTE_SERVING_H
#define VIPROUTE_SERVING_H

// A replica here, or another node with its replicas.
struct server {
	__u32 ifindex;		// the host veth; 0: another node
	__be32 node;
	__u32 weight;		// beside the others that serve the port
	__u32 of;		// what it is in the VIP's group: a node may serve the port by some of its replicas only
};

struct servers {
	__u32 count;
	__u32 pad;
	struct server server[MEMBERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct port_key);
	__type(value, struct servers);
} servers_v1 SEC(".maps");

// Who serves the packet's port; none: nobody, or all alike.
static inline_always struct servers *servers_of(const struct packet *p, __u32 protocol)
{
	struct port_key key = { .vip = p->flow.vip, .number = numbered(protocol, p->flow.vip_port) };
	struct servers *servers = bpf_map_lookup_elem(&servers_v1, &key);
	if (servers)
		return servers;
	key.number = 0;
	return bpf_map_lookup_elem(&servers_v1, &key);
}

// A flow's hash with one of those that may have it (MurmurHash3's end).
static inline_always __u32 lot(const struct flow *flow, __u32 with)
{
	__u32 hash = client_of(flow) * 0x9e3779b1U ^ ((__u32)flow->client_port << 16 | flow->vip_port) ^ with * 0xcc9e2d51U;
	hash = (hash ^ hash >> 16) * 0x85ebca6bU;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
	return hash ^ hash >> 16;
}

// -log2(lot / 2^32), 32 bits behind the point: log2(1 + f) is f + f (1 - f) (0.4427 - 0.164 f) but for 0.0006, and has the same slope at
// both ends. (A function of its own: the verifier would walk each way through it anew for each of those that draw.)
verified_alone __u64 rarity(__u32 lot)
{
	__u32 zeros = 0, value = lot | 1;
	for (__u32 step = 16; step; step >>= 1) {
		if (value >> (32 - step))
			continue;
		value <<= step;
		zeros += step;
	}
	__u64 f = (__u32)(value << 1);	// what is behind the leading one
	__u64 curve = f * ((1ULL << 32) - f) >> 32;
	__u64 slope = 1901361172ULL - (704374637ULL * f >> 32);
	return ((__u64)(zeros + 1) << 32) - f - (curve * slope >> 32);
}

// Who has drawn the best lot so far.
struct draw {
	__u64 least;
	__u32 ifindex;
	__be32 node;
	__u32 protocol;
	__u32 pad;
};

// The lowest wins: of several with such costs each as often as its weight is of theirs together (an exponential race).
static inline_always int is_least(__u32 lot, __u32 weight, struct draw *draw)
{
	__u64 scaled = rarity(lot) << 16;
	__u64 cost = scaled / (weight ? weight : 1);
	if (cost >= draw->least)
		return 0;
	draw->least = cost;
	return 1;
}

static inline_always int wins(const struct packet *p, const struct server *server, struct draw *draw)
{
	return is_least(lot(&p->flow, server->ifindex ^ server->node), server->weight, draw);
}

// Whether a flow for which the group has chosen that node stays with it: as often as its replicas serve the port.
static inline_always int stays_with(const struct flow *flow, const struct server *server)
{
	return (__u64)lot(flow, ~server->node) * server->of >> 32 < server->weight;
}

static inline_always __u32 number_of_servers(const struct servers *servers)
{
	return servers ? servers->count : 0;
}

// In the place of the node that the group has chosen: another one has sent the packet, and it goes to none. (No node's address: RFC 919.)
#define HERE_ALONE 0xffffffff

// One of those that serve the port draws. Not 0: it is the node that the group has chosen, and keeps the flow.
verified_alone int draw_one(struct packet *p, struct servers *servers, struct draw *draw, __u32 via, __u32 i)
{
	if (!p || !servers || !draw || i >= MEMBERS)
		return 1;
	const struct server *server = &servers->server[i];
	if (via == HERE_ALONE && !server->ifindex)
		return 0;
	int stays = via && server->node == via && stays_with(&p->flow, server);
	if (stays || wins(p, server, draw)) {
		draw->ifindex = server->ifindex;
		draw->node = server->node;
	}
	return stays;
}

IN_TURN(draw_some, (struct packet *p, struct servers *servers, struct draw *draw, __u32 via, __u32 from), 0, number_of_servers(servers),
	draw_one(p, servers, draw, via, i))

// Who gets a packet that would begin a flow: node << 32 | host veth; 0: nobody serves its port. `via`: the node that the group has
// chosen; 0: a replica here, which doesn't serve the port. `here`: another node has sent it, and it goes to none.
verified_alone __u64 appointed(struct packet *p, __u32 protocol, __u32 via, __u32 here)
{
	if (!p)
		return 0;
	struct servers *servers = servers_of(p, protocol);
	if (!servers)
		return 0;
	struct draw draw = { .least = ~0ULL };
	if (here)
		via = HERE_ALONE;
	ALL_IN_TURN(draw_some(p, servers, &draw, via, from));
	return (__u64)draw.node << 32 | draw.ifindex;
}

// Sends a packet to a replica here that serves its port.
verified_alone int to_server(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u32 protocol)
{
	if (!p)
		return TC_ACT_SHOT;
	struct attached *replica = attached(ifindex, p->flow.vip);
	// What is known of its ports is a moment older than what serves them: TCP sends again.
	if (!replica || ifindex == p->self || is_refused(replica, protocol, p->flow.vip_port))
		return TC_ACT_SHOT;
	count(p->flow.vip, STEERED);
	if (p->policed)
		keep_client(p, protocol, ifindex, 0);
	return hand_over(skb, p, ifindex, replica->mac);
}

// Whether a replica here has a socket that takes such a packet, and serves its port.
verified_alone int is_taken_by(struct __sk_buff *skb, struct packet *p, __u32 ifindex, __u32 protocol)
{
	if (!p)
		return 0;
	struct attached *replica = attached(ifindex, p->flow.vip);
	if (!replica || replica->flags & DRAINING || is_refused(replica, protocol, p->flow.vip_port))
		return 0;
	__u32 netns = replica->netns, port = port_at(p, replica->flags, ifindex, protocol);
	return protocol == IPPROTO_UDP ? ask_datagram(skb, p, netns, port) : ask_opening(skb, p, netns, port) == LISTENS;
}

// A replica here draws, if it takes the packet; the one that it has come to doesn't.
verified_alone int draw_if_taken(struct __sk_buff *skb, struct packet *p, struct servers *servers, struct draw *draw, __u32 i)
{
	if (!p || !servers || !draw || i >= MEMBERS)
		return 0;
	const struct server *server = &servers->server[i];
	__u64 before = draw->least;
	if (!server->ifindex || server->ifindex == p->self || !wins(p, server, draw))
		return 0;
	if (is_taken_by(skb, p, server->ifindex, draw->protocol))
		draw->ifindex = server->ifindex;
	else
		draw->least = before;
	return 0;
}

IN_TURN(draw_some_if_taken, (struct __sk_buff *skb, struct packet *p, struct servers *servers, struct draw *draw, __u32 from),
	0, number_of_servers(servers), draw_if_taken(skb, p, servers, draw, i))

// The host veth of the replica here that takes such a packet and draws the best lot, the one that it has come to left out; 0: none
// takes it.
verified_alone int drawn(struct __sk_buff *skb, struct packet *p, __u32 protocol)
{
	if (!p)
		return 0;
	struct servers *servers = servers_of(p, protocol);
	if (!servers)
		return 0;
	struct draw draw = { .least = ~0ULL, .protocol = protocol };
	ALL_IN_TURN(draw_some_if_taken(skb, p, servers, &draw, from));
	return draw.ifindex;
}

// A SYN that is about to go to another node may be the repetition of one that a replica here has answered.
verified_alone int half_open_here(struct __sk_buff *skb, struct packet *p)
{
	struct grant grant = {};
	struct found found;
	if (!p)
		return 0;
	__be32 vip = p->flow.vip;
	struct vip *v = bpf_map_lookup_elem(&vips_v3, &vip);
	if (!v || !allowed(&grant, FOR_SYNS, vip))
		return 0;
	clear(skb, &found);
	int answer = search_opening(skb, p, v, &found);
	charge(&grant, v->count);
	return answer >= HALF_OPEN ? found.ifindex : 0;
}

// The node where a connection that begins is opened: that one, or the one where it was begun a moment ago. (By itself, for the stack: 512
// bytes with all that call it.)
verified_alone __u64 opened_at(struct packet *p, __u32 node)
{
	if (!p)
		return node;
	struct flow flow = p->flow;
	struct hint place = { .node = node };
	struct hint *before = bpf_map_lookup_elem(&hints_v3, &flow);
	if (before && before->flags & OPENING && !p->settled)
		place.node = before->node;
	place.flags = OPENING;
	if (before || may_remember(flow.vip))
		bpf_map_update_elem(&hints_v3, &flow, &place, BPF_ANY);
	return place.node;
}

// Begins a flow on another node.
verified_alone int begin_there(struct __sk_buff *skb, struct packet *p, __u32 node, __u32 protocol)
{
	struct here *here = this_node();
	if (!p || !here)
		return TC_ACT_SHOT;
	if (p->policed)
		keep_client(p, protocol, 0, node);
	if (protocol == IPPROTO_TCP)
		node = opened_at(p, node);
	if (aim(skb, node, here->id, CHOSEN, 0))
		return TC_ACT_SHOT;
	lead(p, 0, node);
	return bpf_redirect(here->ifindex, 0);
}

// A SYN that has come to where its port isn't served: to one that serves it. TC_ACT_UNSPEC: it stays where the group says, or nobody
// serves it. `via` as above.
static inline_always int opening_elsewhere(struct __sk_buff *skb, struct packet *p, __u32 via)
{
	int came = came_by_tunnel(skb);
	__u64 place = appointed(p, IPPROTO_TCP, via, p->kept_here || came);
	if (!place && p->kept_here)	// rather another node's than none
		place = appointed(p, IPPROTO_TCP, via, came);
	__u32 node = place >> 32, ifindex = place;
	if (node && !via && !p->settled)
		ifindex = half_open_here(skb, p);
	if (node && !ifindex)
		return node == via ? TC_ACT_UNSPEC : begin_there(skb, p, node, IPPROTO_TCP);
	return ifindex ? to_server(skb, p, ifindex, IPPROTO_TCP) : TC_ACT_UNSPEC;
}

// What begins a flow of a client whose flows have a place goes there. TC_ACT_UNSPEC: they have none, or it is here already. `only_here`:
// another node has sent it, and it goes to none.
verified_alone int to_place_of_client(struct __sk_buff *skb, struct packet *p, __u32 protocol, __u32 only_here)
{
	if (!p)
		return TC_ACT_UNSPEC;
	__u64 place = place_of_client(p, protocol);
	__u32 node = place >> 32, ifindex = place;
	if (node)
		return only_here || p->kept_here ? TC_ACT_UNSPEC : begin_there(skb, p, node, protocol);
	return ifindex && ifindex != p->self ? to_server(skb, p, ifindex, protocol) : TC_ACT_UNSPEC;
}

#endif
