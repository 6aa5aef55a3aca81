//! Refusals that really arrive: the kernel of the sender accepts the ICMP error and finds the socket (B86, B91).

use anyhow::{Result, ensure};

use super::errors::ensure_error;
use super::{Case, Context, EMPTY, Side, WEB, address, node_port, vips};
use crate::lab::probe::Probe;
use crate::lab::worker::Ask;

pub(super) const CASES: &[Case] = &[("b86_b91_refusals_are_icmp_errors_of_the_right_source", refusals)];

fn refusals(context: &mut Context) -> Result<()> {
    for family in [0, 1] {
        let node = context.lab.nodes[0].addresses[family].clone();
        let (empty, unknown) = (vips(EMPTY)[family], address(&vips(WEB)[family].ip().to_string(), 999));
        let outside = address(&node, node_port(EMPTY) + 1);
        for (side, to, sctp) in [
            (Side::Pod("p1b"), empty, false),
            (Side::Pod("p1b"), unknown, false),
            // a protocol that the Service does not have
            (Side::Pod("p1b"), vips(WEB)[family], true),
            (Side::Client, outside, false),
            (Side::Node(0), vips(WEB)[family], true),
        ] {
            // more than any error quotes, and next to nothing
            for bytes in [20, 1200] {
                let probe = Probe { to, port: 0, text: String::new(), bytes, hops: 0, sctp };
                let answer = context.ask(side, &Ask::Probe(probe))?;
                // the host's own packets are answered by the frontend: a source of this node would be a martian
                let to_text = to.ip().to_string();
                let from = if matches!(side, Side::Node(_)) { &to_text } else { &node };
                ensure_error(
                    &format!("{side:?}, SCTP {sctp}, {bytes} bytes"),
                    &answer,
                    "port",
                    to,
                    Some(from),
                )?;
                ensure!(answer.millis < 1000, "{side:?} {to}: after {} ms", answer.millis);
            }
        }
    }
    Ok(())
}
