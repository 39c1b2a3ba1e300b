//! The arithmetic of `dynamic`, by hand, and what it does to loads that last.

use proptest::prelude::*;

use super::*;
use crate::cpu::CpuSet;

/// The time of a round.
const PERIOD: u64 = 1_000;

/// A core of so many busy ticks, and the busy ticks of its threads by id.
type Core<'a> = (u64, &'a [(u64, u64)]);

/// What it shows, the main core, the cores, and the moves.
type Case<'a> = (&'a str, usize, &'a [Core<'a>], &'a [(u64, usize)]);

fn snapshot(main: usize, cores: &[Core<'_>]) -> Snapshot {
    let mut snapshot = Snapshot::new(main);
    for (core, (busy, threads)) in cores.iter().enumerate() {
        let mut one = CoreSnapshot::new(core, *busy, PERIOD - busy);
        let threads = threads.iter();
        let threads = threads.map(|(id, busy)| ThreadSnapshot::new(*id, core, *busy, PERIOD));
        one.threads.extend(threads);
        snapshot.cores.push(one);
    }
    snapshot
}

fn moves(snapshot: &Snapshot) -> Vec<(u64, usize)> {
    Dynamic::default().balance(snapshot).moves().to_vec()
}

/// T-X-19, SC-032 … 037: what one round does.
#[test]
fn threads_go_where_the_table_says() {
    let table: [Case<'_>; 17] = [
        (
            "idle threads gather on the main core",
            0,
            &[(0, &[(1, 0)]), (0, &[(2, 0)]), (0, &[(3, 0)])],
            &[(2, 0), (3, 0)],
        ),
        (
            "19 % is idle",
            0,
            &[(0, &[]), (199, &[(1, 199)])],
            &[(1, 0)],
        ),
        (
            "and 20 % gathers too, where it fits",
            0,
            &[(0, &[]), (200, &[(1, 200)])],
            &[(1, 0)],
        ),
        (
            "79 % fit together",
            0,
            &[(300, &[(1, 300)]), (490, &[(2, 490)])],
            &[(2, 0)],
        ),
        (
            "80 % do not",
            0,
            &[(300, &[(1, 300)]), (500, &[(2, 500)])],
            &[],
        ),
        (
            "an idle one comes to a full main core, which a busy one leaves",
            0,
            &[(900, &[(1, 900)]), (100, &[(2, 100)])],
            &[(2, 0), (1, 1)],
        ),
        (
            "a busy thread alone stays",
            0,
            &[(1_000, &[(1, 1_000)]), (0, &[])],
            &[],
        ),
        (
            "two that share a full core part",
            0,
            &[(1_000, &[(1, 500), (2, 500)]), (0, &[])],
            &[(1, 1)],
        ),
        (
            "three take three cores: the relieved core stays full for a round",
            0,
            &[(1_000, &[(1, 334), (2, 333), (3, 333)]), (0, &[]), (0, &[])],
            &[(1, 1), (2, 2)],
        ),
        (
            "a core at 80 % of two threads is left",
            0,
            &[(800, &[(1, 400), (2, 400)]), (0, &[])],
            &[(1, 1)],
        ),
        (
            "at 79 % it is not",
            0,
            &[(790, &[(1, 390), (2, 400)]), (0, &[])],
            &[],
        ),
        (
            "from one that was not full, as many go as bring it below",
            0,
            &[(900, &[(1, 300), (2, 300), (3, 300)]), (0, &[]), (0, &[])],
            &[(1, 1)],
        ),
        (
            "to the lowest core with room, if not to the main one",
            0,
            &[(500, &[(1, 500)]), (300, &[(2, 300)]), (400, &[(3, 400)])],
            &[(3, 1)],
        ),
        (
            "upwards only from a full core",
            0,
            &[(700, &[(1, 700)]), (750, &[(2, 750)]), (0, &[])],
            &[],
        ),
        (
            "with no room anywhere, to a core that is less busy then",
            0,
            &[
                (1_000, &[(1, 700), (2, 300)]),
                (900, &[(3, 900)]),
                (640, &[(4, 640)]),
            ],
            &[(2, 2)],
        ),
        (
            "another main core",
            2,
            &[(0, &[(1, 0)]), (500, &[(2, 500)]), (200, &[(3, 200)])],
            &[(1, 2), (2, 0)],
        ),
        (
            "no time has passed",
            0,
            &[(0, &[(1, 0)]), (0, &[(2, 0)])],
            &[(2, 0)],
        ),
    ];
    for (name, main, cores, expected) in table {
        assert_eq!(moves(&snapshot(main, cores)), expected, "{name}");
    }
}

/// SC-031, 035: masks, isolated cores, bound threads (T-RE-06).
#[test]
fn what_may_not_move_does_not() {
    let idle: [Core<'_>; 3] = [(0, &[(1, 0)]), (0, &[(2, 0)]), (0, &[(3, 0)])];
    let mut masked = snapshot(0, &idle);
    masked.cores[1].threads[0].cpumask = CpuSet::single(1);
    assert_eq!(moves(&masked), [(3, 0)]);
    let mut isolated = snapshot(0, &idle);
    isolated.cores[2].isolated = true;
    let plan = Dynamic::default().balance(&isolated);
    assert_eq!(plan.moves(), [(2, 0)]);
    assert!(plan.frequencies().iter().all(|(core, _)| *core != 2));
    // Wanted, for the report; but its core is not counted as empty.
    let mut bound = snapshot(0, &idle);
    bound.cores[1].threads[0].bound = true;
    let plan = Dynamic::default().balance(&bound);
    assert_eq!(plan.moves(), [(2, 0), (3, 0)]);
    assert!(plan.waking().eq([1]));
}

/// SC-038, 039. A core that is emptied in this round sleeps in the next.
#[test]
fn empty_cores_sleep_and_the_main_core_is_as_quick_as_it_must() {
    let power = |cores: &[Core<'_>]| {
        let plan = Dynamic::default().balance(&snapshot(0, cores));
        let (sleep, wake) = (plan.sleeping().collect(), plan.waking().collect());
        let frequencies = plan.frequencies().to_vec();
        (sleep, wake, frequencies)
    };
    let (none, one) = (Vec::<usize>::new(), vec![1]);
    let down = vec![(0, Frequency::Down)];
    assert_eq!(
        power(&[(0, &[(1, 0)]), (0, &[(2, 0)])]),
        (none.clone(), none.clone(), down)
    );
    let at_rest = vec![(1, Frequency::Min), (0, Frequency::Down)];
    assert_eq!(
        power(&[(500, &[(1, 500)]), (0, &[])]),
        (one.clone(), none.clone(), at_rest)
    );
    let at_work = vec![(1, Frequency::Min), (0, Frequency::Up)];
    assert_eq!(
        power(&[(501, &[(1, 501)]), (0, &[])]),
        (one.clone(), none.clone(), at_work)
    );
    let both = vec![(1, Frequency::Max), (0, Frequency::Max)];
    assert_eq!(power(&[(0, &[(1, 0)]), (900, &[(2, 900)])]).2.len(), 2);
    assert_eq!(
        power(&[(700, &[(1, 700)]), (900, &[(2, 900)])]),
        (none, one, both)
    );
}

/// A machine of `cores` cores: threads get what they want, or where that is more than
/// there is, equal shares of it at most.
struct Machine {
    cores: usize,
    /// By id: what the thread wants of a period, and where it is.
    threads: Vec<(u64, usize)>,
}

impl Machine {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(0);
        for core in 0..self.cores {
            let here: Vec<_> = (0..self.threads.len())
                .filter(|id| self.threads[*id].1 == core)
                .collect();
            let got = shares(here.iter().map(|id| self.threads[*id].0).collect());
            let busy = got.iter().sum::<u64>();
            let mut one = CoreSnapshot::new(core, busy, PERIOD - busy);
            for (id, busy) in here.into_iter().zip(got) {
                one.threads
                    .push(ThreadSnapshot::new(id as u64, core, busy, PERIOD));
            }
            snapshot.cores.push(one);
        }
        snapshot
    }

    fn round(&mut self, dynamic: &mut Dynamic) -> usize {
        let plan = dynamic.balance(&self.snapshot());
        for (id, core) in plan.moves() {
            self.threads[*id as usize].1 = *core;
        }
        plan.moves().len()
    }
}

/// Equal shares of a period at most, for those that want more.
fn shares(wanted: Vec<u64>) -> Vec<u64> {
    let mut left = PERIOD;
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by_key(|index| wanted[*index]);
    let mut got = vec![0; wanted.len()];
    for (done, index) in order.iter().enumerate() {
        let fair = left / (wanted.len() - done) as u64;
        got[*index] = wanted[*index].min(fair);
        left -= got[*index];
    }
    got
}

/// T-X-19, issue 2080: with a load that stays, nothing moves after round 2.
#[test]
fn a_steady_load_is_at_rest_after_two_rounds() {
    let cases: [(usize, &[u64]); 9] = [
        (2, &[1_000, 1_000]),
        (3, &[1_000, 1_000, 1_000]),
        (4, &[900, 900, 100]),
        (4, &[100, 100, 100]),
        (4, &[100, 100, 100, 250, 250, 250]),
        (3, &[800, 30, 30, 30]),
        (4, &[450, 450, 450]),
        (3, &[100; 12]),
        (2, &[1_000, 1_000, 1_000, 10]),
    ];
    for (cores, wanted) in cases {
        let threads = wanted.iter().map(|wanted| (*wanted, 0)).collect();
        let mut machine = Machine { cores, threads };
        let mut dynamic = Dynamic::default();
        let moved: Vec<_> = (0..8).map(|_| machine.round(&mut dynamic)).collect();
        assert!(
            moved[2..].iter().all(|count| *count == 0),
            "{cores} cores, {wanted:?}: {moved:?}"
        );
    }
}

/// T-SC-17, the arithmetic of it.
#[test]
fn loads_find_their_cores() {
    let mut dynamic = Dynamic::default();
    let mut machine = Machine {
        cores: 4,
        threads: vec![(900, 0)],
    };
    let mut settle = |machine: &mut Machine| {
        (0..3).for_each(|_| _ = machine.round(&mut dynamic));
        let cores = machine.threads.iter().map(|(_, core)| *core);
        cores.collect::<Vec<_>>()
    };
    assert_eq!(settle(&mut machine), [0]);
    machine.threads.push((900, 0));
    let parted = settle(&mut machine);
    assert_ne!(parted[0], parted[1]);
    machine.threads.push((100, 0));
    let pushed = settle(&mut machine);
    assert_eq!(pushed[2], 0);
    assert!(pushed[0] != 0 && pushed[1] != 0 && pushed[0] != pushed[1]);
    machine
        .threads
        .iter_mut()
        .for_each(|(wanted, _)| *wanted = 100);
    assert_eq!(settle(&mut machine), [0, 0, 0]);
    machine.threads.extend([(250, 0); 3]);
    let settled = settle(&mut machine);
    let on_main = settled.iter().filter(|core| **core == 0).count();
    assert!((4..=5).contains(&on_main), "{settled:?}");
}

/// Loads that go up and down a little do not move threads to and fro.
#[test]
fn a_load_that_trembles_does_not_move_threads_to_and_fro() {
    let mut dynamic = Dynamic::default();
    let threads = vec![(265, 0), (265, 0), (265, 0)];
    let mut machine = Machine { cores: 2, threads };
    let mut moved = 0;
    for round in 0..40 {
        for (index, thread) in machine.threads.iter_mut().enumerate() {
            thread.0 = 260 + 5 * ((round * 7 + index as u64 * 3) % 5);
        }
        moved += machine.round(&mut dynamic);
    }
    assert!(moved <= 2, "{moved} moves");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the load, as long as it stays: every plan makes sense, it comes to
    /// rest, and then no core with threads to spare is full while another has room.
    #[test]
    fn any_load_comes_to_rest(
        cores in 1_usize..6,
        wanted in prop::collection::vec((0_u64..1_000, 0_usize..6), 0..20),
    ) {
        let place = |(wanted, core)| (wanted, core % cores);
        let threads: Vec<_> = wanted.into_iter().map(place).collect();
        let mut machine = Machine { cores, threads };
        let mut dynamic = Dynamic::default();
        let mut last = 0;
        for _ in 0..40 {
            let snapshot = machine.snapshot();
            let plan = dynamic.balance(&snapshot);
            prop_assert_eq!(plan.nonsense(&snapshot), None);
            last = plan.moves().len();
            for (id, core) in plan.moves() {
                machine.threads[*id as usize].1 = *core;
            }
        }
        prop_assert_eq!(last, 0, "still moving: {:?}", machine.threads);
    }
}
