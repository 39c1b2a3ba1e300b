//! What a plan may say.

use super::*;

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::new(0);
    for core in [0, 1] {
        let mut one = CoreSnapshot::new(core, 0, 0);
        let mut thread = ThreadSnapshot::new(core as u64 + 1, core, 0, 0);
        thread.cpumask = crate::cpu::CpuSet::single(core);
        one.threads.push(thread);
        snapshot.cores.push(one);
    }
    snapshot
}

#[test]
fn a_plan_that_makes_no_sense_is_found_and_named() {
    let said = |plan: Plan| plan.nonsense(&snapshot()).unwrap_or_default();
    let moved = |thread, core| {
        let mut plan = Plan::new();
        plan.move_thread(thread, core);
        plan
    };
    assert_eq!(said(moved(1, 0)), "");
    assert_eq!(said(moved(3, 0)), "there is no thread 3");
    let text = "thread 1 is to move to core 2, which has no reactor; cores [0-1] have";
    assert_eq!(said(moved(1, 2)), text);
    assert_eq!(
        said(moved(1, 1)),
        "thread 1 is to move to core 1 and may run on [0] only"
    );
    let mut twice = moved(2, 1);
    twice.move_thread(2, 1);
    assert_eq!(said(twice), "thread 2 is to move twice");
    let mut sleeps = Plan::new();
    sleeps.sleep(9);
    assert_eq!(said(sleeps), "core 9 has no reactor; cores [0-1] have");
    let mut faster = Plan::new();
    faster.set_frequency(7, Frequency::Up);
    assert_eq!(said(faster), "core 7 has no reactor; cores [0-1] have");
}
