// The two programs on host veths once more, for VIPs of IPv6: compiled of the same, with IPv6's own packets (ipv6.h). They run beside those
// of IPv4, on packets of IPv6 alone, and have their maps of VIPs in common. The tunnel carries both families (inward6, outward6); express
// is of IPv4 alone.
#define IPV6
#include "owner.bpf.c"
