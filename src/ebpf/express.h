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

#include "leases.h"

// An ICMP error from a pod says that it has no socket for a datagram. One error speaks for all flows of the port: a
// namespace sends few to one address. A pod can say so of its own ports alone, and then its flows go by the stack.
verified_alone int note_refusal(struct __sk_buff *skb, headers *of)
{
	__be16 port = of ? refused_port(skb, of) : 0;
	struct closed *last = port ? closed(skb->ifindex, port) : 0;
	if (!last)
		return 0;
	*(volatile __u64 *)&last->when = clock();
	*(volatile __u64 *)&last->what = (__u64)skb->ifindex << 16 | port;
	return 0;
}

// Whether the replica has the connection. Where that is a handshake's, the packet must acknowledge the replica's SYN: any client
// can begin a handshake with the ports of another replica's connection.
static inline_always int has_connection(struct __sk_buff *skb, const struct crossing *c, const struct lease *lease, __be16 target)
{
	struct packet p = CROSSING(c);
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

// Gives a request the number that its port has in the pod. (It has no options or extension headers.)
static inline_always int enter_at(struct __sk_buff *skb, const struct crossing *c, __be16 target)
{
	__u32 inner = ETH_HLEN + IP_HEADER;
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
	if (skb->protocol != htons(FAMILY))	// the other family's program is asked too
		return TC_ACT_UNSPEC;
	struct express *x = express();
	const __u64 *k = x ? secret(x) : 0;
	struct crossing c = {};
	if (!k || !read_crossing(skb, &c, REQUEST, 0))
		return TC_ACT_UNSPEC;
	c.hash = hash(x, k, &c);
	if (skb->tc_index == (CLONE | proof(c.hash)))
		return TC_ACT_UNSPEC;
	int verdict = enter(skb, &c);
	if (verdict == TC_ACT_UNSPEC && is_for_vip(&c))
		skb->tc_index = BY_STACK | proof(c.hash);
	return verdict;
}

// Whether another packet of the flow may reach the replica straight, as one that a packet signed so has come to. None from an address of
// the pod's own: come_home() (own.h) is still to say whether the pod has sent it, and what goes straight isn't asked that.
static inline_always int may_lease_in(const struct crossing *c, const struct packet *p)
{
	if (p->is_own)
		return 0;
	return c->protocol != IPPROTO_TCP || p->held || (c->syn && !p->tcp.ack);
}

// A signed packet has come to a host veth. (By itself: nothing that isn't signed is to have this on its stack.)
verified_alone int lease_in(struct __sk_buff *skb, struct packet *p, struct attached *replica)
{
	__u32 sign = skb->tc_index;
	int done = (sign & KIND) == CLONE ? TC_ACT_SHOT : TC_ACT_OK;
	struct express *x = express();
	const __u64 *k = x ? secret(x) : 0;
	struct crossing c = {};
	if (!k || !p || !replica)
		return TC_ACT_OK;
	if (!read_crossing(skb, &c, REQUEST, p->flow.vip) || !may_lease_in(&c, p))
		return done;
	c.hash = hash(x, k, &c);
	struct lease *lease = lease_of(c.hash);
	if (!lease || (sign & PROOF) != proof(c.hash) || is_vip(&c.flow.client))
		return done;
	*(volatile __u64 *)&lease->netns = tagged(c.hash, replica->netns);
	*(volatile __u64 *)&lease->mac = short_tag(c.hash) | mac_word(replica->mac);
	*(volatile __u64 *)&lease->target = tagged(c.hash, leased_port(p, replica->flags, skb->ifindex, c.protocol));
	grant(&lease->in, &c, skb->ingress_ifindex, skb->ifindex);
	return done;
}

// A packet has come to a host veth by way of the stack, and the owner has let it through to the pod: the replica may be reached
// straight. A clone has served its purpose.
static inline_always int arrived(struct __sk_buff *skb, struct packet *p, struct attached *replica, int verdict)
{
	return verdict == TC_ACT_OK && skb->tc_index & KIND ? lease_in(skb, p, replica) : verdict;
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
	set_priority(skb, eth);
	return bpf_redirect(ifindex, 0);
}

// The guard has let a packet through that comes from a pod.
static inline_always int leave(struct __sk_buff *skb, headers *of)
{
	struct express *x = express();
	const __u64 *k = x ? secret(x) : 0;
	struct crossing c = {};
	skb->tc_classid = 0;
	if (k && is_icmp(of))
		note_refusal(skb, of);
	if (!k || !read_crossing(skb, &c, ANSWER, vip_of(of, OUT_OF_POD)) || (!skb->gso_size && skb->len != end_of(of)))
		return TC_ACT_OK;
	c.hash = hash(x, k, &c);
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
	if (!(sign & KIND) || skb->protocol != htons(FAMILY))	// the other family's program reads the sign of its packets
		return TC_ACT_UNSPEC;
	struct express *x = express();
	const __u64 *k = x ? secret(x) : 0;
	if (!k)
		return TC_ACT_UNSPEC;
	skb->tc_index = 0;
	if ((sign & KIND) == STRAIGHT)
		return TC_ACT_UNSPEC;
	int done = (sign & KIND) == CLONE ? TC_ACT_SHOT : TC_ACT_UNSPEC;
	struct crossing c = {};
	if (!read_crossing(skb, &c, ANSWER, 0))
		return done;
	c.hash = hash(x, k, &c);
	struct lease *lease = lease_of(c.hash);
	if (!lease || (sign & PROOF) != proof(c.hash) || is_vip(&c.flow.client))
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
