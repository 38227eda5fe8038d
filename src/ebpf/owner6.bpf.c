// The two programs on host veths once more, for VIPs of IPv6: compiled of the same, with IPv6's own packets (ipv6.h). They run beside those
// of IPv4, on packets of IPv6 alone, and have their maps of VIPs in common. A node's other ways to a VIP, express and the tunnel, are of
// IPv4 alone.
#define IPV6
#include "owner.bpf.c"
