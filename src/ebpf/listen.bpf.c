// Who listens: many questions, each about sockets of another network namespace, in one run (BPF_PROG_TEST_RUN). No packet meets
// this program, it is attached to no device and has no maps: the questions are the "packet", behind what would be its
// Ethernet header, and the answers are written into them. src/ebpf/listening.rs has the same struct.
#include <linux/bpf.h>
#include <linux/in.h>

#include "helpers.h"

// In one run.
#ifdef WITHOUT_BTF
#define QUESTIONS 32
#else
#define QUESTIONS 256
#endif
// Where they begin: at an address that is a multiple of 4, behind an Ethernet header (which is not).
#define START 18

struct question {
	__u32 netns;		// as an id of the caller's namespace
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 answer;		// 1: a packet from any source to there would find a socket that takes it
};

// By the lookup that a packet has. A socket that is tied to a device takes only what comes by that one, so it doesn't count.
static inline_always int listens(struct __sk_buff *skb, const struct question *q)
{
	struct bpf_sock_tuple tuple = { .ipv4 = { .daddr = q->address, .dport = q->port } };
	struct bpf_sock *sk;
	if (q->protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), q->netns, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &tuple, sizeof(tuple.ipv4), q->netns, 0);
	if (!sk)
		return 0;
	int takes = !sk->bound_dev_if && (q->protocol == IPPROTO_UDP || sk->state == BPF_TCP_LISTEN);
	bpf_sk_release(sk);
	return takes;
}

// 0: there is no such question.
verified_alone int answer(struct __sk_buff *skb, __u32 i)
{
	if (i >= QUESTIONS)
		return 0;
	struct question *q = (struct question *)((__u8 *)(long)skb->data + START) + i;
	asm volatile("" : "+r"(q));	// computed once, or what is checked is not what is used, to the verifier
	if ((__u8 *)(q + 1) > (__u8 *)(long)skb->data_end)
		return 0;
	q->answer = (__u8)listens(skb, q);
	return 1;
}

SEC("classifier")
int listening(struct __sk_buff *skb)
{
	for (__u32 i = 0; i < QUESTIONS; i++) {
		if (!answer(skb, i))
			break;
	}
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
