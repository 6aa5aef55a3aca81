//! Packets that become each other: rings of known flows, and SYNs that begin one after the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{HashMap, MapData};
use lb_common::abi::{CT_MASQ, CT_REPLIED, CT_XDP, CtKey, CtValue, names, neighbour_row};
use lb_common::env::ticks;
use lb_common::flow::{Flow, Role};
use lb_common::packet::{ACK, SYN, TCP};
use lb_common::testing::packets::{at, checksums};
use lb_common::testing::{PacketBuilder, Side};

use super::super::testrun::test_run;
use super::loaded::{Loaded, monotonic};
use super::{MAC, TURNS, XDP_TX, ip4};

/// Flows whose packets are each other's.
pub(super) struct Ring {
    pub(super) v6: bool,
    pub(super) proto: u8,
    pub(super) reply: bool,
    pub(super) flows: usize,
    pub(super) ifindex: u32,
}

impl Ring {
    pub(super) fn name(&self) -> String {
        format!(
            "{} {} {}",
            if self.reply { "reply" } else { "established" },
            if self.proto == TCP { "TCP" } else { "UDP" },
            if self.v6 { "IPv6" } else { "IPv4" }
        )
    }

    /// Ends of the packet that flow `number` takes. Sources differ; destinations alternate, so that they are rewritten, too.
    fn ends(&self, number: usize) -> (SocketAddr, SocketAddr) {
        // one flow: two, so that there is something to rewrite
        let number = number % self.flows.max(2);
        let side = (number % 2) as u8;
        let src = match self.v6 {
            // each ring its own
            false => ip4(0, number / 16 + 256 + self.flows),
            true => Ipv6Addr::from(0x2001_0db8_0010_u128 << 80 | (number / 16 + self.flows) as u128).into(),
        };
        let port = 2000 + (number % 16) as u16;
        (at(src, 40_000 + (number % 16) as u16), at(self.front(side), port))
    }

    /// What the packets are sent to: a frontend, or the node's own masquerade address.
    pub(super) fn front(&self, side: u8) -> IpAddr {
        let last = 10 + side + if self.reply { 100 } else { 0 };
        match self.v6 {
            false => Ipv4Addr::new(203, 0, 113, last).into(),
            true => Ipv6Addr::new(0x2001, 0xdb8, 0x80, 0, 0, 0, 0, last.into()).into(),
        }
    }

    pub(super) fn packet(&self, number: usize, hops: u8) -> PacketBuilder {
        let (src, dst) = self.ends(number);
        let packet = match self.proto {
            TCP => PacketBuilder::tcp(src, dst, ACK),
            _ => PacketBuilder::udp(src, dst),
        };
        packet.with(|p| (p.macs, p.ttl) = ([MAC, MAC], hops))
    }

    pub(super) fn fill<F: Side>(&self, kernel: &mut Loaded) -> Result<()>
    where
        CtKey<F>: Pod,
        CtValue<F>: Pod,
    {
        let gateway: IpAddr = if F::V6 { "2001:db8:1::1".parse()? } else { IpAddr::from([192, 0, 2, 1]) };
        let row = neighbour_row(self.ifindex, &F::wide(F::addr(gateway)));
        let tick = ticks(monotonic());
        let mut map: HashMap<&mut MapData, CtKey<F>, CtValue<F>> = kernel
            .ebpf
            .map_mut(if F::V6 { names::LB_CT6 } else { names::LB_CT4 })
            .context("flows")?
            .try_into()?;
        let port = |end: SocketAddr| end.port().to_be_bytes();
        for number in 0..self.flows.max(2) {
            let ((a, b), (c, d)) = (self.ends(number), self.ends(number + 1));
            let ends = if self.reply { [d, c, a, b] } else { [a, b, d, c] };
            let [client, frontend, backend, snat] = ends;
            let flow = Flow::<F> {
                client: F::addr(client.ip()),
                client_port: port(client),
                moved_port: port(client),
                frontend: F::addr(frontend.ip()),
                frontend_port: port(frontend),
                backend: F::addr(backend.ip()),
                backend_port: port(backend),
                snat: F::addr(snat.ip()),
                snat_port: port(snat),
                flags: CT_MASQ | CT_XDP | CT_REPLIED,
                proto: self.proto,
                nexthop: row | row << 16,
                backend_id: 1,
                generation: 1001,
                born_tick: tick.wrapping_sub(10),
                last_tick: tick.wrapping_sub(10),
                ifindex: self.ifindex,
                ..Flow::default()
            };
            for role in [Role::XdpForward, Role::XdpReply] {
                let (mut key, mut value) = (CtKey::default(), CtValue::default());
                flow.entry(role, &mut key, &mut value);
                map.insert(key, value, 0)?;
            }
        }
        Ok(())
    }
}

/// SYNs, each of which becomes the SYN of another flow: backends that are frontends.
pub(super) struct NewFlows {
    pub(super) ifindex: u32,
    pub(super) place: usize,
}

impl NewFlows {
    pub(super) const FRONTS: usize = 64;

    pub(super) fn front(number: usize) -> IpAddr {
        Ipv4Addr::new(203, 0, 114, 100 + (number % Self::FRONTS) as u8).into()
    }

    pub(super) fn call(&mut self, fd: &OwnedFd) -> Result<f64> {
        self.place += 1;
        let packet = PacketBuilder::tcp(at(ip4(1, self.place), 5000), at(Self::front(self.place), 80), SYN)
            .with(|p| (p.macs, p.ttl) = ([MAC, MAC], 255));
        let ran = test_run(fd, &packet.build(), self.ifindex, TURNS)?;
        ensure!(ran.code == XDP_TX, "a new flow: code {}", ran.code);
        checksums(&ran.frame, 14).map_err(anyhow::Error::msg)?;
        Ok(ran.ns)
    }
}
