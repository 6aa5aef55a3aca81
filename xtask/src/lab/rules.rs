//! Packet filter rules that network plugins leave in a node, for `nft -f`.

/// What a CNI with network policies may leave in a node: only what is meant for pods or nodes is forwarded.
pub(super) const HOSTILE_RULES: &str = "
table inet hostile {
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state invalid counter drop
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept
    ip daddr { 10.77.0.0/16, 192.0.2.0/24 } accept
    ip saddr 10.77.0.0/16 accept
    ip6 daddr { fd77::/32, 2001:db8:1::/64 } accept
    ip6 saddr fd77::/32 accept
  }
  chain output {
    type filter hook output priority filter;
    # redirects of the node itself, which conntrack calls INVALID by their kind
    icmpv6 type nd-redirect accept
    ct state invalid counter drop
  }
}
";

/// What flannel adds: traffic of pods that leaves the cluster's pods is masqueraded.
pub(super) const MASQUERADE_RULES: &str = "
table inet flannel {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr 10.77.0.0/16 ip daddr != { 10.77.0.0/16, 224.0.0.0/4 } masquerade fully-random
    ip6 saddr fd77::/32 ip6 daddr != { fd77::/32, ff00::/8 } masquerade fully-random
  }
}
";
