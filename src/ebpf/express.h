// Express: a flow's packets go straight from an uplink into the pod, and from the pod out of an uplink, past the node's stack, while
// that stack itself has carried one of them, in that direction, a moment ago. Nothing is decided here: no route, neighbour, replica
// or firewall rule is known to these programs. Four hooks, two a direction:
//
//                 a packet sets out                              the stack has carried it there
//   request       express_in (ingress of the uplink)             owner (egress of the host veth)
//   answer        guard (ingress of the host veth)               express_seen (egress of the uplink)
//
// The first hook signs what it leaves to the stack (skb->tc_index), the second grants a lease where the sign is still right: the
// stack has carried this very flow, unchanged, and began after the last change of the node that the agent was told of. While the
// lease runs, the first hook sends packets straight. From half of its time on, one packet also goes up the stack as a
// clone, which renews the lease where it comes out, and is dropped there. A rule, route or neighbour that stops it ends the lease.
//
// The sign is the kernel's own field of a packet, which neither the network nor a socket sets. A pod that may attach tc
// programs of its own can; what it gains is that its own packets are taken for clones, and lost.
//
// To the stack always: whatever has a SYN, is a fragment, has IP options, can't be forwarded once more, has a VIP as the address it
// isn't served by, is longer than the stack has carried in this flow, or than the device takes; and every protocol but TCP and UDP.
#ifndef VIPROUTE_EXPRESS_H
#define VIPROUTE_EXPRESS_H

#define LEASES 65536
#define KEYS 10
// Units of the leases' clock: 2^24 ns, 1/60 s.
#define CLOCK_SHIFT 24
#define CLOCK_MASK 0x7fffffff
// TCP: the replica's socket is looked up for every packet, so the lease only bounds for how long a change isn't seen that nothing
// tells of. UDP: a bucket of the VIP's group must not seem idle to the kernel (idleTimer, a second) while its flow goes straight.
#define TCP_LEASE 238	// 4 s
#define UDP_LEASE 56	// 0.94 s
// Every path takes a packet of this length (RFC 791).
#define ANY_PATH 576

// skb->tc_index: what a packet is, and 14 bits of its flow's hash.
#define BY_STACK 0x4000	// the stack carries it; where it comes out, a lease may be granted
#define CLONE 0x8000	// likewise, and its original has gone straight
#define STRAIGHT 0xc000	// it has gone straight
#define KIND 0xc000
#define PROOF 0x3fff

// Whether there is any express, and the secret of the leases' hash. viprouted alone writes the first entry. The second one's
// generation is another random number whenever anybody has changed attached_v3: leases say what that said.
struct express {
	__u64 generation;	// 0: no express. Changed at every change of the node: what was granted before is void
	__u64 key[KEYS];	// random; without it nobody can aim at another flow's place
};

enum { OF_NODE, OF_REPLICAS, GENERATIONS };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATIONS);
	__type(key, __u32);
	__type(value, struct express);
} express_v1 SEC(".maps");

// One direction of a flow. Each word bears bits of the flow's hash, so words of two flows, written at the same time by two CPUs, are
// never taken for one lease.
struct way {
	__u64 from;	// tag << 32 | the device it comes in by
	__u64 to;	// tag << 32 | the device it goes out by
	__u64 when;	// short tag << 48 | longest packet the stack has carried << 32 | clock << 1 | a clone is out
	__u64 fits;	// short tag << 48 | a length that the device takes << 32 | clock, when it was asked
};

// In the place that the flow's hash gives: a flow that takes another one's place sends that one to the stack, for one packet.
struct lease {
	struct way in;		// from an uplink to a host veth
	__u64 netns;		// tag << 32 | the replica's namespace, as an id of the node's
	__u64 mac;		// short tag << 48 | the container veth's address (mac_word)
	__u64 handshake;	// tag << 32 | what acknowledges the replica's SYN
	__u64 target;		// tag << 32 | what the pod has in the place of the flow's port
	struct way out;		// from a host veth to an uplink
	__u64 destination;	// short tag << 48 | address (mac_word), as the stack wrote it
	__u64 source;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LEASES);
	__type(key, __u32);
	__type(value, struct lease);
} leases_v2 SEC(".maps");

// What went straight, as the devices count.
struct express_counts {
	__u64 in_packets;
	__u64 in_bytes;
	__u64 out_packets;
	__u64 out_bytes;
};

// By a host veth's ifindex, modulo so many: the first one that comes has the place.
#define COUNTED 4096

struct express_place {
	struct express_counts counts;
	__u64 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTED);
	__type(key, __u32);
	__type(value, struct express_place);
} express_places_v1 SEC(".maps");

// Those that found their place taken.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, COUNTED);
	__type(key, __u32);	// ifindex of the host veth
	__type(value, struct express_counts);
} express_counts_v1 SEC(".maps");

// Since when no socket of a pod has a port: datagrams to it go by the stack, which lets the owner ask another replica, until the
// stack has brought one there again. In the place that device and port give; the error that came last has it.
#define CLOSED 4096

struct closed {
	__u64 what;	// ifindex of the host veth << 16 | port
	__u64 when;	// the leases' clock
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CLOSED);
	__type(key, __u32);
	__type(value, struct closed);
} closed_v1 SEC(".maps");

// A packet of a flow that may have a lease.
struct crossing {
	struct flow flow;
	__u64 hash;
	__u32 length;		// of its longest IP packet, once it is segmented
	__be32 sequence;	// TCP's
	__be32 acknowledged;
	__u8 protocol;
	__u8 syn;
	__u8 last_hop;		// the stack must answer that it can't be forwarded
};

enum { REQUEST, ANSWER };

// None: there is no express.
static inline_always struct express *express(void)
{
	__u32 zero = 0;
	struct express *x = bpf_map_lookup_elem(&express_v1, &zero);
	return x && x->generation && x->key[0] ? x : 0;
}

// Multilinear hashing: of any two flows one in 2^32 keys makes either half equal, whoever chose the flows.
static inline_always __u64 hash(const struct express *x, const struct crossing *c)
{
	const __u64 *k = x->key;
	__u64 client = c->flow.client, vip = c->flow.vip;
	__u64 ports = (__u32)c->flow.client_port << 16 | c->flow.vip_port;
	__u32 key = OF_REPLICAS;
	const struct express *replicas = bpf_map_lookup_elem(&express_v1, &key);
	__u32 changes = x->generation + (replicas ? replicas->generation : 0);
	__u64 rest = (__u32)(changes << 1) | (c->protocol == IPPROTO_TCP);
	__u64 high = k[0] + k[1] * client + k[2] * vip + k[3] * ports + k[4] * rest;
	__u64 low = k[5] + k[6] * client + k[7] * vip + k[8] * ports + k[9] * rest;
	return (high & 0xffffffff00000000ULL) | low >> 32;
}

static inline_always __u64 tagged(__u64 hash, __u32 word)
{
	return (hash & 0xffffffff00000000ULL) | word;
}

static inline_always __u64 short_tag(__u64 hash)
{
	return hash << 32 & 0xffff000000000000ULL;
}

// An Ethernet address as 48 bits, and back. In a frame, and in struct attached, it begins at an even place.
static inline_always __u64 mac_word(const void *mac)
{
	const __u16 *part = mac;
	return (__u64)part[0] << 32 | (__u32)part[1] << 16 | part[2];
}

static inline_always void write_mac(void *mac, __u64 word)
{
	__u16 *part = mac;
	part[0] = word >> 32;
	part[1] = word >> 16;
	part[2] = word;
}

static inline_always __u32 proof(__u64 hash)
{
	return hash >> 16 & PROOF;
}

static inline_always struct lease *lease_of(__u64 hash)
{
	__u32 place = hash & (LEASES - 1);
	return bpf_map_lookup_elem(&leases_v2, &place);
}

static inline_always __u32 clock(void)
{
	return bpf_ktime_get_coarse_ns() >> CLOCK_SHIFT & CLOCK_MASK;
}

// Reads a packet that may have a lease; 0: it can't. Headers that aren't in the linear part are none of a common packet's.
static inline_always int read_crossing(struct __sk_buff *skb, struct crossing *c, int direction)
{
	const __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const struct ethhdr *eth = (const void *)data;
	const struct iphdr *ip = (const void *)(eth + 1);
	const struct udphdr *udp = (const void *)(ip + 1);
	const struct tcphdr *tcp = (const void *)(ip + 1);
	if ((const void *)(udp + 1) > (const void *)end || eth->h_proto != htons(ETH_P_IP) || skb->vlan_present)
		return 0;
	if (*(const __u8 *)ip != 0x45 || ip->frag_off & (__be16)~htons(0x4000))
		return 0;
	__u32 headers = sizeof(*ip) + sizeof(*udp);
	c->protocol = ip->protocol;
	c->syn = 0;
	if (ip->protocol == IPPROTO_TCP) {
		if ((const void *)(tcp + 1) > (const void *)end)
			return 0;
		c->syn = tcp->syn;
		c->sequence = tcp->seq;
		c->acknowledged = tcp->ack_seq;
		headers = sizeof(*ip) + tcp->doff * 4;
	} else if (ip->protocol != IPPROTO_UDP) {
		return 0;
	}
	c->last_hop = ip->ttl <= 1;
	c->length = skb->gso_size ? headers + skb->gso_size : ntohs(ip->tot_len);
	if (direction == REQUEST) {
		c->flow.client = ip->saddr;
		c->flow.vip = ip->daddr;
		c->flow.client_port = udp->source;
		c->flow.vip_port = udp->dest;
	} else {
		c->flow.client = ip->daddr;
		c->flow.vip = ip->saddr;
		c->flow.client_port = udp->dest;
		c->flow.vip_port = udp->source;
	}
	return 1;
}

// Whether the device takes a packet of that length: asked once a unit of the clock.
static inline_always int fits(struct __sk_buff *skb, const struct crossing *c, struct way *way, __u32 ifindex, __u32 now)
{
	__u64 known = *(volatile __u64 *)&way->fits, tag = short_tag(c->hash);
	if ((__u32)known == now && !((known ^ tag) >> 48) && c->length <= (known >> 32 & 0xffff))
		return 1;
	__u32 mtu = 0;
	if (bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS))
		return 0;
	*(volatile __u64 *)&way->fits = tag | (__u64)c->length << 32 | now;
	return 1;
}

// The device a flow's packet goes straight to; 0: it goes by the stack. `*clone` is where to note that a clone is out, if one is
// due.
static inline_always __u32 leased(struct __sk_buff *skb, const struct crossing *c, struct way *way, __u64 **clone)
{
	__u64 to = *(volatile __u64 *)&way->to, when = *(volatile __u64 *)&way->when;
	if (way->from != tagged(c->hash, skb->ifindex) || to >> 32 != c->hash >> 32)
		return 0;
	if ((when ^ short_tag(c->hash)) >> 48)
		return 0;
	__u32 now = clock(), age = (now - (__u32)(when >> 1)) & CLOCK_MASK;
	__u32 term = c->protocol == IPPROTO_TCP ? TCP_LEASE : UDP_LEASE;
	if (age > term)
		return 0;
	if (c->length > ANY_PATH && (c->length > (when >> 32 & 0xffff) || !fits(skb, c, way, (__u32)to, now)))
		return 0;
	if (age > term / 2 && !(when & 1))
		*clone = &way->when;
	return (__u32)to;
}

// The stack has carried a packet of the flow this way. A SYN begins anew, and so reads nothing of a place that no CPU has in its cache.
static inline_always void grant(struct way *way, const struct crossing *c, __u32 from, __u32 to)
{
	__u64 tag = short_tag(c->hash), tagged_from = tagged(c->hash, from), tagged_to = tagged(c->hash, to);
	__u64 longest = c->length > 0xffff ? 0xffff : c->length;
	if (!c->syn && way->from == tagged_from && way->to == tagged_to) {
		__u64 before = *(volatile __u64 *)&way->when;
		if (!((before ^ tag) >> 48) && (before >> 32 & 0xffff) > longest)
			longest = before >> 32 & 0xffff;
	}
	*(volatile __u64 *)&way->from = tagged_from;
	*(volatile __u64 *)&way->to = tagged_to;
	*(volatile __u64 *)&way->when = tag | longest << 32 | (__u64)clock() << 1;
	*(volatile __u64 *)&way->fits = 0;
}

static inline_always struct closed *closed(__u32 ifindex, __be16 port)
{
	__u32 place = (ifindex * 31 + port) & (CLOSED - 1);
	return bpf_map_lookup_elem(&closed_v1, &place);
}

// Whether the pod has refused a datagram to that port since the lease was given.
static inline_always int refused_since(__u32 ifindex, __be16 port, __u64 when)
{
	const struct closed *last = closed(ifindex, port);
	if (!last || *(volatile __u64 *)&last->what != ((__u64)ifindex << 16 | port))
		return 0;
	__u32 now = clock(), given = (__u32)(when >> 1) & CLOCK_MASK;
	return ((now - (__u32)last->when) & CLOCK_MASK) <= ((now - given) & CLOCK_MASK);
}

// An ICMP error from a pod says that it has no socket for a datagram (RFC 792). One error speaks for all flows of the port: a
// namespace sends few to one address. A pod can say so of its own ports alone, and then its flows go by the stack.
static inline_always void note_refusal(struct __sk_buff *skb, const struct iphdr *ip)
{
	struct {
		__u8 type, code, rest[ICMP_HEADER - 2];
		struct iphdr ip;
		__be16 source, dest;
	} error;
	if (ip->ihl != sizeof(*ip) / 4 || peek(skb, ETH_HLEN + sizeof(*ip), &error, sizeof(error)))
		return;
	if (error.type != ICMP_DEST_UNREACH || error.code != ICMP_PORT_UNREACH || *(__u8 *)&error.ip != 0x45 ||
	    error.ip.protocol != IPPROTO_UDP || error.ip.frag_off & htons(IP_OFFSET))
		return;
	struct closed *last = closed(skb->ifindex, error.dest);
	if (!last)
		return;
	*(volatile __u64 *)&last->when = clock();
	*(volatile __u64 *)&last->what = (__u64)skb->ifindex << 16 | error.dest;
}

// One packet of a lease asks the stack whether it would carry it still.
static inline_always void send_clone(struct __sk_buff *skb, const struct crossing *c, __u64 *when)
{
	*(volatile __u64 *)when |= 1;
	skb->tc_index = CLONE | proof(c->hash);
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
}

static inline_always struct express_counts *express_counts(__u32 ifindex)
{
	__u32 key = ifindex & (COUNTED - 1);
	struct express_place *place = bpf_map_lookup_elem(&express_places_v1, &key);
	if (place && !place->ifindex)
		place->ifindex = ifindex;
	if (place && place->ifindex == ifindex)
		return &place->counts;
	struct express_counts *counts = bpf_map_lookup_elem(&express_counts_v1, &ifindex);
	if (counts)
		return counts;
	struct express_counts none = {};
	bpf_map_update_elem(&express_counts_v1, &ifindex, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&express_counts_v1, &ifindex);
}

static inline_always int is_vip(__be32 address)
{
	return bpf_map_lookup_elem(&vips_v3, &address) != 0;
}

// A router's part: one hop less (RFC 1141). None: the headers are no longer where they were.
static inline_always struct ethhdr *forwarded(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)data;
	struct iphdr *ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)end)
		return 0;
	__u32 check = ip->check + (__u32)htons(0x0100);
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
	return eth;
}

// Whether the replica has the connection. Where that is a handshake's, the packet must acknowledge the replica's SYN: any client
// can begin a handshake with the ports of another replica's connection.
static inline_always int has_connection(struct __sk_buff *skb, const struct crossing *c, const struct lease *lease, __be16 target)
{
	struct packet p = { .flow = c->flow };
	__u64 netns = lease->netns;
	if (netns >> 32 != c->hash >> 32)
		return 0;
	__u32 here = ask(skb, &p, (__u32)netns, target);
	return here == OPEN || (here == HALF_OPEN && lease->handshake == tagged(c->hash, c->acknowledged));
}

// Whether it is known that the flow is of that port, and of no other one that the pod has under the same number.
static inline_always int is_noted(__u32 ifindex, const struct crossing *c, __be16 target)
{
	struct flow flow = c->flow;
	return (__be16)noted_port(&flow, ifindex, target, c->protocol) == c->flow.vip_port;
}

// Gives a request the number that its port has in the pod. (It has no IP options.)
static inline_always int enter_at(struct __sk_buff *skb, const struct crossing *c, __be16 target)
{
	__u32 inner = ETH_HLEN + sizeof(struct iphdr);
	struct place place = { .at = inner + 2, .check = inner + checksum_at(c->protocol), .protocol = c->protocol };
	return renumber(skb, &place, c->flow.vip_port, target);
}

// Sends a request straight into its replica's pod. TC_ACT_UNSPEC: it goes by the stack.
static inline_always int enter(struct __sk_buff *skb, struct crossing *c)
{
	struct lease *lease = lease_of(c->hash);
	if (!lease || c->syn || c->last_hop || skb->pkt_type)	// PACKET_HOST: it came for this node, not just by it
		return TC_ACT_UNSPEC;
	__u64 mac = lease->mac, target = lease->target, *clone = 0;
	if ((mac ^ short_tag(c->hash)) >> 48 || target >> 32 != c->hash >> 32)
		return TC_ACT_UNSPEC;
	__u32 ifindex = leased(skb, c, &lease->in, &clone);
	if (!ifindex || (target & NOTED && !is_noted(ifindex, c, (__be16)target)))
		return TC_ACT_UNSPEC;
	if (c->protocol == IPPROTO_TCP) {
		if (!has_connection(skb, c, lease, (__be16)target))
			return TC_ACT_UNSPEC;
		if (!clone)	// the owner counts that
			count(c->flow.vip, LOCAL_HIT);
	} else if (refused_since(ifindex, c->flow.vip_port, *(volatile __u64 *)&lease->in.when)) {
		return TC_ACT_UNSPEC;
	}
	struct express_counts *counts = express_counts(ifindex);
	if (counts) {
		counts->in_packets++;
		counts->in_bytes += skb->len;
	}
	if (clone)
		send_clone(skb, c, clone);
	skb->tc_index = 0;
	skb->mark = 0;	// the node's; redirect_peer takes it away itself since Linux 6.16
	if ((__be16)target != c->flow.vip_port && enter_at(skb, c, (__be16)target))
		return TC_ACT_SHOT;
	struct ethhdr *eth = forwarded(skb);
	if (!eth)
		return TC_ACT_SHOT;
	write_mac(eth->h_dest, mac);
	return bpf_redirect_peer(ifindex, 0);
}

// On every uplink: what comes in.
SEC("classifier")
int express_in(struct __sk_buff *skb)
{
	struct express *x = express();
	struct crossing c = {};
	if (!x || !read_crossing(skb, &c, REQUEST))
		return TC_ACT_UNSPEC;
	c.hash = hash(x, &c);
	if (skb->tc_index == (CLONE | proof(c.hash)))
		return TC_ACT_UNSPEC;
	int verdict = enter(skb, &c);
	if (verdict == TC_ACT_UNSPEC && is_vip(c.flow.vip))
		skb->tc_index = BY_STACK | proof(c.hash);
	return verdict;
}

// A packet has come to a host veth by way of the stack, and the owner has let it through to the pod: the replica may be reached
// straight. A clone has served its purpose.
static inline_always int arrived(struct __sk_buff *skb, struct packet *p, struct attached *replica, int verdict)
{
	__u32 sign = skb->tc_index;
	if (verdict != TC_ACT_OK || !(sign & KIND))
		return verdict;
	struct express *x = express();
	if (!x)
		return verdict;
	int done = (sign & KIND) == CLONE ? TC_ACT_SHOT : verdict;
	struct crossing c = {};
	if (!read_crossing(skb, &c, REQUEST) || (c.protocol == IPPROTO_TCP && !p->held && (!c.syn || p->tcp.ack)))
		return done;
	c.hash = hash(x, &c);
	struct lease *lease = lease_of(c.hash);
	if (!lease || (sign & PROOF) != proof(c.hash) || is_vip(c.flow.client))
		return done;
	*(volatile __u64 *)&lease->netns = tagged(c.hash, replica->netns);
	*(volatile __u64 *)&lease->mac = short_tag(c.hash) | mac_word(replica->mac);
	*(volatile __u64 *)&lease->target = tagged(c.hash, leased_port(p, replica->flags, skb->ifindex, c.protocol));
	grant(&lease->in, &c, skb->ingress_ifindex, skb->ifindex);
	return done;
}

// skb->priority as ip_forward() sets it: rt_tos2priority().
static inline_always __u32 priority_of(__u8 tos)
{
	return 0x4620 >> ((tos & 0x18) >> 1) & 0xf;
}

// Sends an answer straight out of an uplink. TC_ACT_UNSPEC: it goes by the stack.
static inline_always int leave_straight(struct __sk_buff *skb, struct crossing *c)
{
	struct lease *lease = lease_of(c->hash);
	if (!lease || c->syn || c->last_hop)
		return TC_ACT_UNSPEC;
	__u64 destination = lease->destination, source = lease->source, tag = short_tag(c->hash), *clone = 0;
	if ((destination ^ tag) >> 48 || (source ^ tag) >> 48)
		return TC_ACT_UNSPEC;
	__u32 ifindex = leased(skb, c, &lease->out, &clone);
	if (!ifindex)
		return TC_ACT_UNSPEC;
	struct express_counts *counts = express_counts(skb->ifindex);
	if (counts) {
		counts->out_packets++;
		counts->out_bytes += skb->len;
	}
	if (clone)
		send_clone(skb, c, clone);
	skb->tc_index = STRAIGHT;
	struct ethhdr *eth = forwarded(skb);
	if (!eth)
		return TC_ACT_SHOT;
	write_mac(eth->h_dest, destination);
	write_mac(eth->h_source, source);
	skb->priority = priority_of(((struct iphdr *)(eth + 1))->tos);
	return bpf_redirect(ifindex, 0);
}

// The guard has let a packet through that comes from a pod.
static inline_always int leave(struct __sk_buff *skb, const struct iphdr *ip)
{
	struct express *x = express();
	struct crossing c = {};
	skb->tc_classid = 0;
	if (x && ip->protocol == IPPROTO_ICMP)
		note_refusal(skb, ip);
	if (!x || !read_crossing(skb, &c, ANSWER) || (!skb->gso_size && skb->len != ETH_HLEN + (__u32)ntohs(ip->tot_len)))
		return TC_ACT_OK;
	c.hash = hash(x, &c);
	if (skb->tc_index == (CLONE | proof(c.hash))) {
		skb->tc_classid = CLONE | proof(c.hash);	// TC_ACT_OK makes it skb->tc_index again
		return TC_ACT_OK;
	}
	int verdict = leave_straight(skb, &c);
	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	struct lease *lease = lease_of(c.hash);
	if (lease && c.syn)	// of what answers it only this flow's own acknowledges it
		*(volatile __u64 *)&lease->handshake = tagged(c.hash, htonl(ntohl(c.sequence) + 1));
	skb->tc_classid = BY_STACK | proof(c.hash);
	return TC_ACT_OK;
}

// On every uplink: what goes out. Of what the stack has sent there the next packets of the flow may be sent alike.
SEC("classifier")
int express_seen(struct __sk_buff *skb)
{
	__u32 sign = skb->tc_index;
	if (!(sign & KIND))
		return TC_ACT_UNSPEC;
	struct express *x = express();
	if (!x)
		return TC_ACT_UNSPEC;
	skb->tc_index = 0;
	if ((sign & KIND) == STRAIGHT)
		return TC_ACT_UNSPEC;
	int done = (sign & KIND) == CLONE ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	struct crossing c = {};
	if (!read_crossing(skb, &c, ANSWER))
		return done;
	c.hash = hash(x, &c);
	struct lease *lease = lease_of(c.hash);
	if (!lease || (sign & PROOF) != proof(c.hash) || is_vip(c.flow.client))
		return done;
	const struct ethhdr *eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return done;
	*(volatile __u64 *)&lease->destination = short_tag(c.hash) | mac_word(eth->h_dest);
	*(volatile __u64 *)&lease->source = short_tag(c.hash) | mac_word(eth->h_source);
	grant(&lease->out, &c, skb->ingress_ifindex, skb->ifindex);
	return done;
}

#endif
