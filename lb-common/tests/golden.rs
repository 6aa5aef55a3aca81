//! The golden packets through `tc::walk`; lb-agent's test `prog` sends the same ones through the kernel.

use lb_common::testing::golden::{Event, Golden, goldens};
use lb_common::testing::{Expect, check};
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
