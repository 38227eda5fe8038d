// The kernel's helper functions that the programs here call, by their numbers in linux/bpf.h (their meaning is written there), and
// how a map is declared. All are in Linux 5.14. Written out so that nothing but the UAPI headers is needed to compile.
#ifndef VIPROUTE_HELPERS_H
#define VIPROUTE_HELPERS_H

struct tcphdr;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name

#define inline_always inline __attribute__((always_inline))
// A function with external linkage is verified once, by itself, with any arguments (Linux 5.12 for those that point to memory):
// a loop with questions to sockets in it would otherwise be walked anew for each way that leads there. That one of its arguments
// is the packet's context the kernel knows by its own BTF alone: the objects for kernels without have no such functions.
#ifdef WITHOUT_BTF
#define verified_alone static inline_always
#else
#define verified_alone __attribute__((noinline))
#endif

// The value, of which the verifier then knows as little as of what a function returns that is verified alone: else it would walk
// all that follows once for each value there can be.
#ifdef WITHOUT_BTF
static inline_always __u32 unknown(struct __sk_buff *skb, __u32 value)
{
	__u32 zero;	// the tag, which no packet has that gets so far; in assembly, or its address would be computed first
	asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(zero) : "r"(skb), "i"(__builtin_offsetof(struct __sk_buff, vlan_present)));
	return value ^ zero;
}
#else
#define unknown(skb, value) ((void)(skb), (value))
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((__be16)__builtin_bswap16(x))
#define htonl(x) ((__be32)__builtin_bswap32(x))
#else
#define htons(x) ((__be16)(x))
#define htonl(x) ((__be32)(x))
#endif
#define ntohs(x) htons(x)
#define ntohl(x) htonl(x)

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) =
	(void *)BPF_FUNC_map_update_elem;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) =
	(void *)BPF_FUNC_skb_load_bytes;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*const bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 size) =
	(void *)BPF_FUNC_l3_csum_replace;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags) =
	(void *)BPF_FUNC_l4_csum_replace;
static __s64 (*const bpf_csum_diff)(const __be32 *from, __u32 from_size, const __be32 *to, __u32 to_size, __u32 seed) =
	(void *)BPF_FUNC_csum_diff;
static long (*const bpf_csum_update)(struct __sk_buff *skb, __u32 sum) = (void *)BPF_FUNC_csum_update;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *by, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;
static long (*const bpf_check_mtu)(void *skb, __u32 ifindex, __u32 *mtu, __s32 longer_by, __u64 flags) =
	(void *)BPF_FUNC_check_mtu;
static long (*const bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) =
	(void *)BPF_FUNC_clone_redirect;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*const bpf_skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) =
	(void *)BPF_FUNC_skb_get_tunnel_key;
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) =
	(void *)BPF_FUNC_skb_set_tunnel_key;
static struct bpf_sock *(*const bpf_skc_lookup_tcp)(void *ctx, const void *tuple, __u32 size, __u64 netns,
						   __u64 flags) = (void *)BPF_FUNC_skc_lookup_tcp;
static struct bpf_sock *(*const bpf_sk_lookup_tcp)(void *ctx, const void *tuple, __u32 size, __u64 netns,
						  __u64 flags) = (void *)BPF_FUNC_sk_lookup_tcp;
static struct bpf_sock *(*const bpf_sk_lookup_udp)(void *ctx, const void *tuple, __u32 size, __u64 netns,
						  __u64 flags) = (void *)BPF_FUNC_sk_lookup_udp;
static long (*const bpf_sk_release)(void *sock) = (void *)BPF_FUNC_sk_release;
static long (*const bpf_tcp_check_syncookie)(void *sk, void *iph, __u32 iph_len, struct tcphdr *th, __u32 th_len) =
	(void *)BPF_FUNC_tcp_check_syncookie;

#endif
