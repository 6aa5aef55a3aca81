//! Every prefix of every golden packet: a verdict without a panic, and nothing is half-written.

use lb_common::testing::golden::Event;
use lb_common::testing::goldens;
use lb_common::verdict::Verdict;

/// A prefix of a packet at a machine that has seen all packets before it, so that every flow entry is there.
///
/// A write is either the whole rewrite (the transport header was there to the end of its checksum) or none: TCP needs
/// 18 bytes of it, UDP 8, SCTP 13. An answer replaces the whole frame.
#[test]
fn no_prefix_of_a_packet_is_half_written() {
    let (mut prefixes, mut rewritten, mut answered) = (0, 0, 0);
    for golden in goldens() {
        let mut machine = golden.world.machine();
        for event in &golden.events {
            let Event::Packet(walk) = event else { continue };
            let mut whole = machine.clone();
            let mut expected = walk.frame.clone();
            let _ = whole.run(walk.direction, walk.hook, &mut expected);
            for length in 0..walk.frame.len() {
                prefixes += 1;
                let mut frame = walk.frame[..length].to_vec();
                let verdict = machine.clone().run(walk.direction, walk.hook, &mut frame);
                let what = format!("{}, {length} of {} bytes", golden.name, walk.frame.len());
                match verdict {
                    Verdict::Reply | Verdict::Out | Verdict::Peer(_) => answered += 1,
                    Verdict::Drop => assert_eq!(frame, walk.frame[..length], "{what}: dropped, but changed"),
                    Verdict::Pass if frame == walk.frame[..length] => {}
                    Verdict::Pass => {
                        assert_eq!(frame, expected[..length], "{what}: not the whole rewrite");
                        rewritten += 1;
                    }
                }
            }
            machine = whole;
        }
    }
    assert!(prefixes > 10_000 && rewritten > 100 && answered > 100, "{prefixes} {rewritten} {answered}");
}

/// Each byte of a golden packet replaced: no panic, and what is dropped is untouched.
#[test]
fn no_wrong_byte_panics() {
    for golden in goldens() {
        let mut machine = golden.world.machine();
        for event in &golden.events {
            let Event::Packet(walk) = event else { continue };
            for (at, byte) in walk.frame.iter().enumerate().skip(walk.hook.l3).take(96) {
                for wrong in [0x00, 0xff, byte ^ 0x01, byte ^ 0x80, byte.wrapping_add(1)] {
                    let mut frame = walk.frame.clone();
                    frame[at] = wrong;
                    let before = frame.clone();
                    if machine.clone().run(walk.direction, walk.hook, &mut frame) == Verdict::Drop {
                        assert_eq!(frame, before, "{}: byte {at} is {wrong:#04x}", golden.name);
                    }
                }
            }
            let _ = machine.run(walk.direction, walk.hook, &mut walk.frame.clone());
        }
    }
}
