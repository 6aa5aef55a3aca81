//! The world of the golden packets: its addresses, and the Services behind them.

use core::net::IpAddr;

use super::world::{BARE, POD, UPLINK, World};
use crate::abi::*;
use crate::packet::{SCTP, TCP, UDP};

/// The addresses of the golden world in one family.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    pub v6: bool,
    /// Outside of the cluster, inside the VIP's source ranges.
    pub client: IpAddr,
    /// Outside of the cluster and of the ranges.
    pub stranger: IpAddr,
    /// A pod of this node.
    pub pod: IpAddr,
    /// A backend on another node.
    pub remote: IpAddr,
    /// A backend on this node.
    pub local: IpAddr,
    pub cluster: IpAddr,
    /// A ClusterIP without endpoints.
    pub empty: IpAddr,
    /// A ClusterIP with ITP Local and no local endpoint.
    pub itp: IpAddr,
    /// In the service CIDR, and nobody's.
    pub nobody: IpAddr,
    pub external: IpAddr,
    pub vip: IpAddr,
    pub node: IpAddr,
}

/// IPv4.
#[must_use]
pub fn net4() -> Net {
    let ip = |a: [u8; 4]| IpAddr::from(a);
    Net {
        v6: false,
        client: ip([192, 0, 2, 10]),
        stranger: ip([198, 18, 0, 1]),
        pod: ip([10, 244, 0, 5]),
        remote: ip([10, 244, 1, 7]),
        local: ip([10, 244, 0, 9]),
        cluster: ip([10, 96, 0, 10]),
        empty: ip([10, 96, 0, 20]),
        itp: ip([10, 96, 0, 30]),
        nobody: ip([10, 96, 0, 99]),
        external: ip([198, 51, 100, 5]),
        vip: ip([203, 0, 113, 80]),
        node: ip([172, 18, 0, 2]),
    }
}

/// IPv6.
#[must_use]
pub fn net6() -> Net {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    Net {
        v6: true,
        client: ip("2001:db8:1::10"),
        stranger: ip("2001:db8:bad::1"),
        pod: ip("fd00:244::5"),
        remote: ip("fd00:244:0:1::7"),
        local: ip("fd00:244::9"),
        cluster: ip("fd00:96::10"),
        empty: ip("fd00:96::20"),
        itp: ip("fd00:96::30"),
        nobody: ip("fd00:96::99"),
        external: ip("2001:db8:5::5"),
        vip: ip("2001:db8:80::80"),
        node: ip("fd00:172::2"),
    }
}

/// The only port of the pool, so that what is drawn from it is known.
pub const POOL: u16 = 61000;

/// The world of the golden packets.
#[must_use]
pub fn world(n: &Net) -> World {
    let mut w = World::default();
    let zero = |a: IpAddr| match a {
        IpAddr::V4(a) => IpAddr::from([a.octets()[0], a.octets()[1], 0, 0]),
        IpAddr::V6(a) => {
            let mut a = a.octets();
            let from = if a[0] == 0x20 { 6 } else { 4 };
            a[from..].fill(0);
            a.into()
        }
    };
    w.config.flags = CFG_REJECT_UNKNOWN;
    w.config.nodeports = PortRange { min: 30000, max: 32767 };
    w.pool(POOL, POOL);
    w.cidr(zero(n.cluster), if n.v6 { 32 } else { 16 });
    w.pod_cidr(zero(n.pod), if n.v6 { 32 } else { 16 });
    w.node(n.node, NODE_NODEPORT | NODE_LOCAL);
    w.iface(UPLINK, 0, &[n.node]);
    w.iface(POD, IF_POD, &[n.node]);
    w.iface(BARE, 0, &[]);

    let web = w.backend(n.remote, 8080, TCP, 0);
    let near = w.backend(n.local, 8080, TCP, BE_LOCAL);
    let dns = w.backend(n.remote, 5353, UDP, 0);
    let sctp = w.backend(n.remote, 9999, SCTP, 0);
    let sctp_moved = w.backend(n.remote, 8080, SCTP, 0);
    let me = w.backend(n.pod, 8080, TCP, BE_LOCAL);

    let any = SVC_HAS_ANY;
    let service = w.service(any, &[web], &[]);
    w.cluster_ip(n.cluster, 80, TCP, service);
    w.frontend(n.external, 80, TCP, service);
    w.nodeport(n.node, 30080, TCP, service);
    let service = w.service(any, &[dns], &[]);
    w.cluster_ip(n.cluster, 53, UDP, service);
    w.nodeport(n.node, 30053, UDP, service);
    let service = w.service(any, &[sctp], &[]);
    w.cluster_ip(n.cluster, 9999, SCTP, service);
    let service = w.service(any, &[sctp_moved], &[]);
    w.cluster_ip(n.cluster, 9998, SCTP, service);
    w.nodeport(n.node, 30098, SCTP, service);
    let service = w.service(any, &[me], &[]);
    w.cluster_ip(n.cluster, 81, TCP, service);
    let service = w.service(0, &[], &[]);
    for proto in [TCP, UDP, SCTP] {
        w.cluster_ip(n.empty, 80, proto, service);
    }
    let service = w.service(any | SVC_LOCAL, &[web], &[]);
    w.cluster_ip(n.itp, 80, TCP, service);
    let service = w.service(any | SVC_LOCAL, &[web], &[near]);
    w.nodeport(n.node, 30081, TCP, service);
    let service = w.service(any | SVC_LOCAL, &[web], &[]);
    w.nodeport(n.node, 30082, TCP, service);
    let service = w.service(any | SVC_RANGES, &[web], &[]);
    w.frontend(n.vip, 443, TCP, service);
    w.range(service.id, zero(n.client), if n.v6 { 48 } else { 16 });
    w
}
