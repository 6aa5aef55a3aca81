//! Fragments that come before their first: dropped only where they are ours or nobody's.

use lb_common::abi::{NODE_LOCAL, NODE_NODEPORT};
use lb_common::counter::Counter;
use lb_common::env::Hook;
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::UPLINK;
use lb_common::testing::{Direction, PacketBuilder};
use lb_common::verdict::Verdict;

fn early(n: &Net) {
    let hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };
    let to = |addr, own: bool| {
        let mut w = world(n);
        if own {
            w.node(addr, NODE_LOCAL | NODE_NODEPORT);
        }
        let mut machine = w.machine();
        let packet =
            PacketBuilder::udp(at(n.client, 4000), at(addr, 80)).with(|p| p.fragment = Some((185, false)));
        let verdict = machine.run(Direction::In, hook, &mut packet.build());
        (verdict, machine.env.counters.get(&Counter::DropFragment).copied().unwrap_or(0))
    };
    for addr in [n.external, n.vip] {
        assert_eq!(to(addr, false), (Verdict::Drop, 1), "{addr}");
        assert_eq!(to(addr, true), (Verdict::Pass, 0), "{addr}, an address of the node");
    }
    assert_eq!(to(n.cluster, false), (Verdict::Drop, 1));
    assert_eq!(to(n.node, true), (Verdict::Pass, 0), "NodePorts answer there");
    assert_eq!(to(n.stranger, false), (Verdict::Pass, 0));
}

#[test]
fn an_early_fragment_is_dropped_where_it_is_ours_or_nobodys() {
    early(&net4());
    early(&net6());
}
