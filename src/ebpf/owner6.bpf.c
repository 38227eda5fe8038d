// The programs once more, for VIPs of IPv6: compiled of the same, with IPv6's own packets (ipv6.h). They run beside those of IPv4, on
// packets of IPv6 alone, and have their maps of VIPs and express' leases in common.
#define IPV6
#include "owner.bpf.c"
