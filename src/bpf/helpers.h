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
// a loop with questions to sockets in it would otherwise be walked anew for each way that leads there.
#define verified_alone __attribute__((noinline))

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
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) =
	(void *)BPF_FUNC_skb_load_bytes;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len, __u64 flags) =
	(void *)BPF_FUNC_skb_store_bytes;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const bpf_clone_redirect)(struct __sk_buff *skb, __u32 ifindex, __u64 flags) =
	(void *)BPF_FUNC_clone_redirect;
static struct bpf_sock *(*const bpf_skc_lookup_tcp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns,
						   __u64 flags) = (void *)BPF_FUNC_skc_lookup_tcp;
static struct bpf_sock *(*const bpf_sk_lookup_tcp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns,
						  __u64 flags) = (void *)BPF_FUNC_sk_lookup_tcp;
static struct bpf_sock *(*const bpf_sk_lookup_udp)(void *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u64 netns,
						  __u64 flags) = (void *)BPF_FUNC_sk_lookup_udp;
static long (*const bpf_sk_release)(void *sock) = (void *)BPF_FUNC_sk_release;
static long (*const bpf_tcp_check_syncookie)(void *sk, void *iph, __u32 iph_len, struct tcphdr *th, __u32 th_len) =
	(void *)BPF_FUNC_tcp_check_syncookie;

#endif
