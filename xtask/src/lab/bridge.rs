//! Pods on one bridge, as the plugin `bridge` and kindnet's ancestors make them: a segment of their own, the bridge is
//! their gateway.

use anyhow::Result;

use super::netns::ip;
use super::{Lab, namespace};

/// The bridge's addresses, in the node's own ranges.
const GATEWAY: [&str; 2] = ["10.77.1.129", "fd77:0:0:1:1::1"];
const LENGTH: [u8; 2] = [25, 80];

impl Lab {
    /// Two pods `p1x` and `p1y` of node1 on ports of a bridge `cni0`.
    ///
    /// # Errors
    /// When a command fails or the servers don't come up.
    pub(crate) fn add_bridged_pods(&mut self) -> Result<()> {
        let node = self.nodes[0].namespace.clone();
        ip(
            &node,
            &[
                "link add cni0 type bridge mcast_snooping 0".into(),
                format!("address add {}/{} dev cni0", GATEWAY[0], LENGTH[0]),
                format!("address add {}/{} dev cni0 nodad", GATEWAY[1], LENGTH[1]),
                "link set cni0 up".into(),
            ],
        )?;
        for (letter, host) in [("x", 140), ("y", 141)] {
            let name = format!("p1{letter}");
            let own = namespace(&self.tag, &name)?;
            let addresses = [format!("10.77.1.{host}"), format!("fd77:0:0:1:1::{host}")];
            let device = format!("veth{name}");
            ip(
                &node,
                &[
                    format!("link add {device} type veth peer name eth0 netns {own}"),
                    format!("link set {device} master cni0"),
                    format!("link set {device} up"),
                ],
            )?;
            ip(
                &own,
                &[
                    "link set eth0 up".into(),
                    format!("address add {}/{} dev eth0", addresses[0], LENGTH[0]),
                    format!("address add {}/{} dev eth0 nodad", addresses[1], LENGTH[1]),
                    format!("route add default via {} dev eth0", GATEWAY[0]),
                    format!("route add default via {} dev eth0", GATEWAY[1]),
                ],
            )?;
            self.start_pod(name, 0, own, device, addresses)?;
        }
        Ok(())
    }
}
