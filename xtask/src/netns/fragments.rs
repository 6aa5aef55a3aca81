//! Datagrams larger than any MTU here.

use anyhow::{Result, ensure};

use super::{Case, Context, HAIRPIN, LOCAL, REMOTE, Side, address, node_port, vips};
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] =
    &[("datagrams_of_4000_bytes_come_through_in_both_directions", large_datagrams)];

fn large_datagrams(context: &mut Context) -> Result<()> {
    const BYTES: usize = 4000;
    let mut tries = Vec::new();
    for family in [0, 1] {
        for (number, pod) in [(LOCAL, "p1a"), (REMOTE, "p2a")] {
            tries.push((Side::Pod("p1b"), vips(number)[family], pod));
            tries.push((Side::Node(0), vips(number)[family], pod));
            let node = &context.lab.nodes[0].addresses[family];
            tries.push((Side::Client, address(node, node_port(number) + 1), pod));
        }
        tries.push((Side::Pod("p1b"), vips(HAIRPIN)[family], "p1b"));
    }
    for (side, to, pod) in tries {
        let ask = Ask::BigUdp { to, bytes: BYTES };
        if to.is_ipv6() {
            // no router fragments IPv6: the first datagram teaches the sender the path MTU, at worst
            context.ask(side, &ask)?;
        }
        for _ in 0..3 {
            let answer = context.ask(side, &ask)?;
            ensure!(
                answer.error.is_none() && answer.pod() == Some(pod) && answer.from == Some(to),
                "{side:?} to {to}: {answer:?}"
            );
        }
    }
    Ok(())
}
