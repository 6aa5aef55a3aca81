//! The golden packets through `tc::walk`; lb-agent's test `prog` sends the same ones through the kernel.

use lb_common::testing::golden::{Event, Golden, goldens};
use lb_common::testing::{Direction, Expect, check};
use lb_common::verdict::Verdict;

fn play(golden: &Golden, faults: &mut Vec<String>) {
    let mut machine = golden.world.machine();
    for (number, event) in golden.events.iter().enumerate() {
        let walk = match event {
            Event::Packet(walk) => walk,
            Event::Advance(ticks) => {
                machine.env.advance(*ticks);
                continue;
            }
            Event::Generation { v6, id, value } => {
                let env = &mut machine.env;
                let generations = if *v6 { &mut env.v6.generations } else { &mut env.v4.generations };
                generations.insert(*id, *value);
                continue;
            }
        };
        let what = format!("{} ({}), event {number}", golden.name, golden.rules);
        machine.env.counters.clear();
        let mut frame = walk.frame.clone();
        let verdict = machine.run(walk.direction, walk.hook, &mut frame);
        let (wanted, bytes) = match &walk.expect {
            Expect::Pass => (Verdict::Pass, &walk.frame),
            Expect::Rewritten(bytes) => (Verdict::Pass, bytes),
            Expect::Drop => (Verdict::Drop, &walk.frame),
            Expect::Reply(bytes) => (Verdict::Reply, bytes),
        };
        let counters: Vec<_> =
            machine.env.counters.iter().map(|(counter, count)| (*counter, *count)).collect();
        let mut wanted_counters = walk.counters.clone();
        wanted_counters.sort();
        if verdict != wanted || counters != wanted_counters {
            faults.push(format!("{what}: {verdict:?} {counters:?}, not {wanted:?} {wanted_counters:?}"));
        }
        if &frame != bytes {
            faults
                .push(format!("{what}:\n   in {:02x?}\n  got {frame:02x?}\n want {bytes:02x?}", walk.frame));
        }
        check(&walk.frame, walk.hook.l3, &what);
        check(bytes, walk.hook.l3, &what);
    }
}

#[test]
fn golden_packets_walk_as_written() {
    let mut faults = Vec::new();
    let all = goldens();
    for golden in &all {
        play(golden, &mut faults);
    }
    assert!(all.len() > 50 && faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// I1: at ingress only destinations of requests and of masqueraded replies change, at egress only sources.
#[test]
fn i1_ingress_changes_destinations_and_egress_sources() {
    let mut seen = 0;
    for golden in lb_common::testing::goldens() {
        if ["colliding", "a_straight", "straight"].iter().any(|name| golden.name.starts_with(name)) {
            continue; // a moved flow's source port changes at ingress as well
        }
        for walk in golden.walks() {
            let lb_common::testing::Expect::Rewritten(_) = walk.expect else { continue };
            let mut machine = golden.world.machine();
            for earlier in golden.walks().take_while(|w| !std::ptr::eq(*w, walk)) {
                let _ = machine.run(earlier.direction, earlier.hook, &mut earlier.frame.clone());
            }
            let mut frame = walk.frame.clone();
            assert_eq!(machine.run(walk.direction, walk.hook, &mut frame), Verdict::Pass);
            let l3 = walk.hook.l3;
            let (src, dst) = if frame[l3] >> 4 == 4 { (12..16, 16..20) } else { (8..24, 24..40) };
            let same = |range: std::ops::Range<usize>| {
                walk.frame[l3 + range.start..l3 + range.end] == frame[l3 + range.start..l3 + range.end]
            };
            match walk.direction {
                Direction::In => assert!(same(src) && !same(dst), "{}", golden.name),
                // an error of a router in between keeps its source
                Direction::Out => {
                    assert!((!same(src) || golden.name.starts_with("icmp")) && same(dst), "{}", golden.name)
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

/// I5: what is not ours leaves tables and counters alone, whatever its bytes.
#[test]
fn i5_a_packet_that_is_not_ours_changes_nothing() {
    for golden in lb_common::testing::goldens().iter().filter(|golden| golden.name.starts_with("not_ours")) {
        let mut machine = golden.world.machine();
        for walk in golden.walks() {
            let mut frame = walk.frame.clone();
            assert_eq!(machine.run(walk.direction, walk.hook, &mut frame), Verdict::Pass);
            assert_eq!(frame, walk.frame);
        }
        let env = &machine.env;
        assert!(env.counters.is_empty() && env.v4.entries().is_empty() && env.v6.entries().is_empty());
        assert!(env.v4.affinity.is_empty() && env.v6.affinity.is_empty());
    }
}
