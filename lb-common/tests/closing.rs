//! Flows that end leave the established table at once, and a source port is found while there is one.

use lb_common::counter::Counter;
use lb_common::env::{Hook, Table};
use lb_common::family::{V4, V6};
use lb_common::packet::{ACK, FIN, RST, SYN};
use lb_common::testing::golden::{Net, net4, net6, world};
use lb_common::testing::packets::at;
use lb_common::testing::world::UPLINK;
use lb_common::testing::{Direction, Machine, PacketBuilder as P, Side};
use lb_common::verdict::Verdict;

const HOOK: Hook = Hook { l3: 14, ifindex: UPLINK, ingress_ifindex: UPLINK };

/// A masqueraded connection from outside to a pod of another node, seen at both hooks of the uplink.
struct Connection {
    net: Net,
    machine: Machine,
    port: u16,
}

impl Connection {
    fn open(net: Net) -> Connection {
        let mut connection = Connection { machine: world(&net).machine(), net, port: 0 };
        let sent = connection.request(SYN).expect("the SYN is sent on");
        let l4 = if connection.net.v6 { 54 } else { 34 };
        connection.port = u16::from_be_bytes([sent[l4], sent[l4 + 1]]);
        connection.reply(SYN | ACK).expect("answered");
        connection.request(ACK).expect("open");
        connection
    }

    /// What the client's packet is when it leaves for the backend.
    fn request(&mut self, flags: u8) -> Option<Vec<u8>> {
        let packet = P::tcp(at(self.net.client, 40000), at(self.net.node, 30080), flags);
        self.through(&packet)
    }

    /// What the backend's packet is when it leaves for the client.
    fn reply(&mut self, flags: u8) -> Option<Vec<u8>> {
        let packet = P::tcp(at(self.net.remote, 8080), at(self.net.node, self.port), flags);
        self.through(&packet)
    }

    /// `None`: it was refused, or left as it came.
    fn through(&mut self, packet: &P) -> Option<Vec<u8>> {
        let mut frame = packet.build();
        for direction in [Direction::In, Direction::Out] {
            if self.machine.run(direction, HOOK, &mut frame) != Verdict::Pass {
                return None;
            }
        }
        (frame != packet.build()).then_some(frame)
    }

    /// Entries in the established and in the young table.
    fn entries(&self) -> [usize; 2] {
        fn of<F: Side>(machine: &Machine) -> [usize; 2] {
            [Table::Established, Table::Young].map(|table| F::side(&machine.env).flows(table).len())
        }
        if self.net.v6 { of::<V6>(&self.machine) } else { of::<V4>(&self.machine) }
    }

    fn count(&self, counter: Counter) -> u64 {
        self.machine.env.counters.get(&counter).copied().unwrap_or(0)
    }
}

/// The last ACKs, a FIN that is sent again and data that was lost before it are still translated, whether or not the
/// endpoint has left the Service meanwhile; and none of them brings the flow back.
#[test]
fn a_closed_flow_leaves_the_established_table_and_is_still_translated() {
    for net in [net4(), net6()] {
        for client_first in [true, false] {
            let mut c = Connection::open(net);
            assert_eq!(c.entries()[0], 4);
            let half = if client_first { c.request(FIN | ACK) } else { c.reply(FIN | ACK) };
            assert!(half.is_some());
            assert_eq!(c.entries()[0], 4, "half closed is not closed");
            let whole = if client_first { c.reply(FIN | ACK) } else { c.request(FIN | ACK) };
            assert!(whole.is_some());
            assert_eq!(c.entries(), [0, 4]);
            let generations =
                if net.v6 { &mut c.machine.env.v6.generations } else { &mut c.machine.env.v4.generations };
            generations.values_mut().for_each(|generation| *generation += 1);
            for _ in 0..3 {
                for flags in [ACK, FIN | ACK] {
                    assert!(c.request(flags).is_some() && c.reply(flags).is_some());
                }
                c.machine.env.advance(1);
            }
            assert_eq!(c.entries(), [0, 4]);
            assert_eq!((c.count(Counter::FlowRetired), c.count(Counter::FlowPromoted)), (1, 1));
        }
    }
}

/// RFC 5961: a reset may be a forgery, which the other side answers by an ACK. The flow then lives on, promoted again.
#[test]
fn a_reset_that_is_not_believed_takes_nothing_away() {
    for net in [net4(), net6()] {
        let mut c = Connection::open(net);
        assert!(c.request(RST).is_some());
        assert_eq!(c.entries(), [0, 4]);
        c.machine.env.advance(1);
        assert!(c.reply(ACK).is_some() && c.request(ACK).is_some());
        assert_eq!(c.entries()[0], 4, "back among the established");
        assert_eq!(c.count(Counter::FlowPromoted), 2);
    }
}

/// A tuple that comes again begins a new flow.
#[test]
fn the_client_may_use_its_port_again_at_once() {
    for net in [net4(), net6()] {
        let mut c = Connection::open(net);
        assert!(c.request(FIN | ACK).is_some() && c.reply(FIN | ACK).is_some());
        assert!(c.request(SYN).is_some());
        assert_eq!(c.count(Counter::NewFlow), 2);
        assert_eq!(c.entries()[0], 0);
    }
}

/// With 95 of 100 ports taken a new flow finds one of the others, wherever the part in use is.
#[test]
fn a_port_is_found_at_95_percent() {
    const PORTS: u16 = 4000;
    const FULL: u16 = PORTS / 100 * 95;
    for net in [net4(), net6()] {
        let mut w = world(&net);
        w.pool(20_000, 20_000 + PORTS - 1);
        let mut machine = w.machine();
        let dial = |machine: &mut Machine, number: u16| {
            let client = at(net.client, 1024 + number);
            let mut frame = P::tcp(client, at(net.node, 30080), SYN).build();
            let within = machine.run(Direction::In, HOOK, &mut frame) == Verdict::Pass;
            within && machine.run(Direction::Out, HOOK, &mut frame) == Verdict::Pass
        };
        let refused = (0..FULL).filter(|number| !dial(&mut machine, *number)).count();
        assert_eq!(refused, 0, "up to 95 %");
        // a flow more, on a copy each time, so that it stays 95 %
        let refused = (0..200)
            .filter(|number| {
                machine.env.advance(1);
                let mut copy = machine.clone();
                copy.env.seed.set(u64::from(*number));
                !dial(&mut copy, PORTS + number)
            })
            .count();
        assert!(refused <= 3, "{refused} of 200 at 95 %");
        println!("{refused} of 200 refused");
        let dropped = machine.env.counters.get(&Counter::DropSnatExhausted);
        assert_eq!(dropped, None);
    }
}
