//! [`World`]: what the agent would have written, as plain lists in ABI types.

use core::net::IpAddr;
use std::vec::Vec;

use super::fake::{FakeEnv, Side, Tables};
use super::machine::Machine;
use crate::abi::*;
use crate::env::NO_CONFIG;
use crate::family::{Family, V4, V6};

/// ifindex of the uplink of every world.
pub const UPLINK: u32 = 11;
/// ifindex of an interface behind which are pods.
pub const POD: u32 = 12;
/// ifindex of an interface without an address to masquerade to.
pub const BARE: u32 = 13;

/// Row of `LB_NH` of a neighbour behind an interface.
#[must_use]
pub fn row(ifindex: u32, neighbour: IpAddr) -> u32 {
    let wide = match neighbour {
        IpAddr::V4(ip) => V4::wide(ip.octets().into()),
        IpAddr::V6(ip) => ip.octets().into(),
    };
    crate::abi::neighbour_row(ifindex, &wide)
}

/// Content of the tables that the agent writes.
#[derive(Clone, Debug)]
pub struct World {
    pub config: LbConfig,
    pub svc4: Vec<(SvcKey4, SvcValue)>,
    pub svc6: Vec<(SvcKey6, SvcValue)>,
    pub node4: Vec<(Addr4, u32)>,
    pub node6: Vec<(Addr6, u32)>,
    /// With the prefix length in bits.
    pub cidr4: Vec<(u32, Addr4)>,
    pub cidr6: Vec<(u32, Addr6)>,
    /// With the prefix length in bits, the service id's 32 included.
    pub range4: Vec<(u32, RangeKey4)>,
    pub range6: Vec<(u32, RangeKey6)>,
    pub be4: Vec<(u32, Backend4)>,
    pub be6: Vec<(u32, Backend6)>,
    pub gen4: Vec<(u32, u32)>,
    pub gen6: Vec<(u32, u32)>,
    pub slots: Vec<(u32, u32)>,
    pub ifaces: Vec<(u32, Iface)>,
    pub roles: Vec<(IpAddr, u8)>,
    services: u32,
}

impl Default for World {
    fn default() -> Self {
        World {
            config: NO_CONFIG,
            svc4: Vec::new(),
            svc6: Vec::new(),
            node4: Vec::new(),
            node6: Vec::new(),
            cidr4: Vec::new(),
            cidr6: Vec::new(),
            range4: Vec::new(),
            range6: Vec::new(),
            be4: Vec::new(),
            be6: Vec::new(),
            gen4: Vec::new(),
            gen6: Vec::new(),
            slots: Vec::new(),
            ifaces: Vec::new(),
            roles: Vec::new(),
            services: 0,
        }
    }
}

impl World {
    pub fn role(&mut self, ip: IpAddr, role: u8) {
        self.roles.push((ip, role));
    }

    /// Adds a backend: a row, a generation, and its role. Returns its id. `flags`: `BE_*` beyond membership.
    pub fn backend(&mut self, ip: IpAddr, port: u16, proto: u8, flags: u8) -> u32 {
        let port = port.to_be_bytes();
        self.role(ip, ROLE_BACKEND);
        match ip {
            IpAddr::V4(ip) => {
                let id = self.be4.len() as u32 + 1;
                let row = Backend4 { addr: ip.octets(), port, proto, flags, service: 0, nexthop: 0 };
                self.be4.push((id, row));
                self.gen4.push((id, 1000 + id));
                id
            }
            IpAddr::V6(ip) => {
                let id = self.be6.len() as u32 + 1;
                let addr = ip.octets();
                self.be6
                    .push((id, Backend6 { addr, port, proto, flags, service: 0, nexthop: 0, _pad: [0; 4] }));
                self.gen6.push((id, 1000 + id));
                id
            }
        }
    }

    fn set(&mut self, ids: &[u32]) -> (u32, u32) {
        let start = self.slots.len() as u32 + 1;
        self.slots.extend(ids.iter().zip(start..).map(|(id, slot)| (slot, *id)));
        (start, ids.len() as u32)
    }

    /// A new service port with these sets, to be named by frontends. Marks the members in their rows.
    pub fn service(&mut self, flags: u32, cluster: &[u32], local: &[u32]) -> SvcValue {
        self.services += 1;
        let (cluster_start, cluster_len) = self.set(cluster);
        let (local_start, local_len) = self.set(local);
        for (ids, bit) in [(cluster, BE_IN_CLUSTER), (local, BE_IN_LOCAL)] {
            for (id, row) in &mut self.be4 {
                row.flags |= if ids.contains(id) { bit } else { 0 };
            }
            for (id, row) in &mut self.be6 {
                row.flags |= if ids.contains(id) { bit } else { 0 };
            }
        }
        SvcValue {
            id: self.services,
            generation: 1,
            flags,
            affinity_s: 0,
            cluster_start,
            cluster_len,
            local_start,
            local_len,
        }
    }

    fn entry(&mut self, ip: IpAddr, port: u16, proto: u8, value: SvcValue) {
        match ip {
            IpAddr::V4(ip) => {
                self.svc4.push((V4::svc_key(ip.octets().into(), port.to_be_bytes(), proto), value))
            }
            IpAddr::V6(ip) => {
                self.svc6.push((V6::svc_key(ip.octets().into(), port.to_be_bytes(), proto), value))
            }
        }
    }

    /// An externalIP or a load balancer's address.
    pub fn frontend(&mut self, ip: IpAddr, port: u16, proto: u8, value: SvcValue) {
        self.role(ip, ROLE_FRONTEND);
        self.entry(ip, port, proto, SvcValue { flags: value.flags | SVC_EXTERNAL, ..value });
        let marker = SvcValue { flags: SVC_ADDRESS | SVC_EXTERNAL, ..SvcValue::default() };
        self.entry(ip, 0, PROTO_EXTERNAL, marker);
    }

    /// A ClusterIP with its marker (B91).
    pub fn cluster_ip(&mut self, ip: IpAddr, port: u16, proto: u8, value: SvcValue) {
        self.role(ip, ROLE_FRONTEND);
        self.entry(ip, port, proto, value);
        self.entry(ip, 0, 0, SvcValue { flags: SVC_ADDRESS, ..SvcValue::default() });
    }

    /// A NodePort of the family of `any`.
    pub fn nodeport(&mut self, any: IpAddr, port: u16, proto: u8, value: SvcValue) {
        let zero: IpAddr = if any.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
        self.entry(zero, port, proto, SvcValue { flags: value.flags | SVC_EXTERNAL, ..value });
    }

    /// An address of the node (`NODE_*` bits).
    pub fn node(&mut self, ip: IpAddr, bits: u32) {
        if bits & (NODE_NODEPORT | NODE_HOST_NODEPORT) != 0 {
            self.role(ip, ROLE_NODEPORT);
        }
        match ip {
            IpAddr::V4(ip) => self.node4.push((Addr4 { addr: ip.octets() }, bits)),
            IpAddr::V6(ip) => self.node6.push((Addr6 { addr: ip.octets() }, bits)),
        }
    }

    /// A service CIDR; the only one, so it is also the cover.
    pub fn cidr(&mut self, ip: IpAddr, len: u32) {
        match ip {
            IpAddr::V4(ip) => {
                self.config.flags |= CFG_CIDR4;
                (self.config.svc_cidr4, self.config.svc_mask4) = (ip.octets(), mask(len));
                self.cidr4.push((len, Addr4 { addr: ip.octets() }));
            }
            IpAddr::V6(ip) => {
                self.config.flags |= CFG_CIDR6;
                (self.config.svc_cidr6, self.config.svc_mask6) = (ip.octets(), mask(len));
                self.cidr6.push((len, Addr6 { addr: ip.octets() }));
            }
        }
    }

    /// Pod traffic is told by this prefix.
    pub fn pod_cidr(&mut self, ip: IpAddr, len: u32) {
        match ip {
            IpAddr::V4(ip) => {
                self.config.flags |= CFG_DETECT_CIDR4;
                (self.config.pod_cidr4, self.config.pod_mask4) = (ip.octets(), mask(len));
            }
            IpAddr::V6(ip) => {
                self.config.flags |= CFG_DETECT_CIDR6;
                (self.config.pod_cidr6, self.config.pod_mask6) = (ip.octets(), mask(len));
            }
        }
    }

    /// A source range of a service port (the flag `SVC_RANGES` is the service's).
    pub fn range(&mut self, service: u32, ip: IpAddr, len: u32) {
        let service = service.to_be_bytes();
        match ip {
            IpAddr::V4(ip) => self.range4.push((32 + len, RangeKey4 { service, addr: ip.octets() })),
            IpAddr::V6(ip) => self.range6.push((32 + len, RangeKey6 { service, addr: ip.octets() })),
        }
    }

    /// An interface with the addresses it masquerades to.
    pub fn iface(&mut self, ifindex: u32, flags: u32, snat: &[IpAddr]) {
        let mut row = Iface { flags, ..Iface::default() };
        for ip in snat {
            self.role(*ip, ROLE_SNAT);
            match ip {
                IpAddr::V4(ip) => row.snat4 = ip.octets(),
                IpAddr::V6(ip) => row.snat6 = ip.octets(),
            }
        }
        self.ifaces.push((ifindex, row));
    }

    /// The pool of source ports: one range.
    pub fn pool(&mut self, min: u16, max: u16) {
        self.config.snat[0] = PortRange { min, max };
        self.config.snat_total = u32::from(max - min) + 1;
    }

    /// The bytes of the role filter.
    #[must_use]
    pub fn filter(&self) -> Vec<u8> {
        crate::hash::role_filter(self.roles.iter().copied())
    }

    /// A node with these tables.
    #[must_use]
    pub fn machine(&self) -> Machine {
        let v4 = Tables {
            services: self.svc4.iter().copied().collect(),
            nodes: self.node4.iter().map(|(addr, bits)| (addr.addr.into(), *bits)).collect(),
            cidrs: self.cidr4.iter().map(|(len, addr)| (*len, addr.addr.into())).collect(),
            ranges: ranges::<V4>(self.range4.iter().map(|(len, key)| (*len, key.service, key.addr.into()))),
            backends: self.be4.iter().map(|(id, row)| (*id, V4::backend(row))).collect(),
            generations: self.gen4.iter().copied().collect(),
            ..Tables::default()
        };
        let v6 = Tables {
            services: self.svc6.iter().copied().collect(),
            nodes: self.node6.iter().map(|(addr, bits)| (addr.addr.into(), *bits)).collect(),
            cidrs: self.cidr6.iter().map(|(len, addr)| (*len, addr.addr.into())).collect(),
            ranges: ranges::<V6>(self.range6.iter().map(|(len, key)| (*len, key.service, key.addr.into()))),
            backends: self.be6.iter().map(|(id, row)| (*id, V6::backend(row))).collect(),
            generations: self.gen6.iter().copied().collect(),
            ..Tables::default()
        };
        let env = FakeEnv {
            v4,
            v6,
            slots: self.slots.iter().copied().collect(),
            ifaces: self.ifaces.iter().copied().collect(),
            roles: self.filter().into(),
            ..FakeEnv::default()
        };
        Machine::new(env, self.config)
    }
}

fn ranges<F: Side>(from: impl Iterator<Item = (u32, [u8; 4], F::Addr)>) -> Vec<(u32, u32, F::Addr)> {
    from.map(|(len, service, addr)| (u32::from_be_bytes(service), len - 32, addr)).collect()
}

fn mask<const N: usize>(len: u32) -> [u8; N] {
    core::array::from_fn(|byte| {
        (0..8).filter(|bit| (byte * 8 + bit) < len as usize).map(|bit| 0x80 >> bit).sum()
    })
}
