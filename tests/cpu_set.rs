//! What `CpuSet` promises: the operations and text forms of `spdk_cpuset`, set
//! semantics checked against a `BTreeSet`, and pinning that names what it
//! could not do.

use std::collections::BTreeSet;
use std::str::FromStr;

use corespun::cpu::{self, AffinityError, CpuSet, ParseCpuSetError as E};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

fn cpus(set: CpuSet) -> Vec<usize> {
    set.iter().collect()
}

/// T-CS-01.
#[test]
fn set_and_count_agree_from_the_first_core_to_the_last() {
    let mut set = CpuSet::empty();
    assert_eq!((set.count(), set.first(), set.is_empty()), (0, None, true));

    for (count, cpu) in [0, 511, 1023].into_iter().enumerate() {
        assert!(!set.contains(cpu));
        set.set(cpu);
        assert!(set.contains(cpu));
        assert_eq!(set.count(), count + 1);
    }
    assert_eq!(cpus(set), [0, 511, 1023]);
    assert_eq!(CpuSet::single(511) & set, CpuSet::single(511));

    set.clear(511);
    set.clear(511);
    assert_eq!(cpus(set), [0, 1023]);

    let all = CpuSet::all();
    assert_eq!((all.count(), all.first()), (1024, Some(0)));
    assert_eq!(!all, CpuSet::empty());
    assert_eq!(!set | set, all);

    let range = CpuSet::from_iter(60..200);
    assert_eq!(range.count(), 140);
    assert!((0..1024).all(|cpu| range.contains(cpu) == (60..200).contains(&cpu)));
}

#[test]
fn cores_that_no_set_can_hold_are_absent_and_cannot_be_added() {
    let mut set = CpuSet::all();
    assert!(!set.contains(1024));
    set.clear(1024);
    assert_eq!(set, CpuSet::all());
    assert!(std::panic::catch_unwind(move || set.set(1024)).is_err());
}

/// T-CS-02, the well-formed texts.
#[test]
fn masks_and_lists_parse_to_the_cores_they_name() {
    let with = |ranges: &[std::ops::RangeInclusive<usize>]| {
        CpuSet::from_iter(ranges.iter().cloned().flatten())
    };
    let long_mask = format!("f{}f0", "0".repeat(40));
    assert_eq!(long_mask.len(), 43);
    for (text, set) in [
        ("0x1", with(&[0..=0])),
        ("0X1", with(&[0..=0])),
        ("[1]", with(&[1..=1])),
        ("aBc", with(&[2..=5, 7..=7, 9..=9, 11..=11])),
        ("[0-10,12,128-254]", with(&[0..=10, 12..=12, 128..=254])),
        ("[0-1023]", CpuSet::all()),
        (&"F".repeat(256), CpuSet::all()),
        (&format!("0x00{}", "f".repeat(256)), CpuSet::all()),
        (&long_mask, with(&[4..=7, 168..=171])),
        ("0", CpuSet::empty()),
        ("00000000,000000ff,00000001", with(&[0..=0, 32..=39])),
        (",,f,,0,", with(&[4..=7])),
        (" [ 0 - 2 , 5 ]\n", with(&[0..=2, 5..=5])),
        (" 0x3 ", with(&[0..=1])),
        ("[5,0-2,1-3]", with(&[0..=3, 5..=5])),
    ] {
        assert_eq!(CpuSet::from_str(text), Ok(set), "{text:?}");
    }
}

/// T-CS-02, the malformed texts: each error names what is wrong and where.
#[test]
fn malformed_texts_are_refused_with_their_offence() {
    let out_of_range = |cpu: &str| E::OutOfRange { cpu: cpu.into() };
    let huge = "184467440737095516150";
    for (text, error) in [
        ("", E::Empty),
        (" \t", E::Empty),
        ("0x", E::Empty),
        (",", E::Empty),
        ("[", E::ExpectedCpu { found: None, at: 1 }),
        (
            "[]",
            E::ExpectedCpu {
                found: Some(']'),
                at: 1,
            },
        ),
        (
            "[10--11]",
            E::ExpectedCpu {
                found: Some('-'),
                at: 4,
            },
        ),
        (
            "[11-10]",
            E::Reversed {
                first: 11,
                last: 10,
            },
        ),
        (
            "[10-11,]",
            E::ExpectedCpu {
                found: Some(']'),
                at: 7,
            },
        ),
        (
            "[,10-11]",
            E::ExpectedCpu {
                found: Some(','),
                at: 1,
            },
        ),
        (
            "[10-11-12]",
            E::ExpectedSeparator {
                found: Some('-'),
                at: 6,
            },
        ),
        (
            "[-1]",
            E::ExpectedCpu {
                found: Some('-'),
                at: 1,
            },
        ),
        ("[1", E::ExpectedSeparator { found: None, at: 2 }),
        (
            "[1 2]",
            E::ExpectedSeparator {
                found: Some('2'),
                at: 3,
            },
        ),
        (
            "[0x1]",
            E::ExpectedSeparator {
                found: Some('x'),
                at: 2,
            },
        ),
        (
            "[é]",
            E::ExpectedCpu {
                found: Some('é'),
                at: 1,
            },
        ),
        ("[1]é", E::AfterList { found: 'é', at: 3 }),
        ("[1024]", out_of_range("1024")),
        ("[1-1024]", out_of_range("1024")),
        (&format!("[{huge}]"), out_of_range(huge)),
        (&format!("[1-{huge}]"), out_of_range(huge)),
        (&format!("1{}", "0".repeat(256)), out_of_range("1024")),
        ("0xG", E::NotHex { found: 'G', at: 2 }),
        ("3é1", E::NotHex { found: 'é', at: 1 }),
        ("-1", E::NotHex { found: '-', at: 0 }),
        ("0-3", E::NotHex { found: '-', at: 1 }),
        ("1]", E::NotHex { found: ']', at: 1 }),
        ("  0x0x1", E::NotHex { found: 'x', at: 5 }),
    ] {
        assert_eq!(CpuSet::from_str(text), Err(error), "{text:?}");
    }
    assert_eq!(
        CpuSet::from_str("[0-1024]").unwrap_err().to_string(),
        "core 1024 does not exist: the highest possible core number is 1023"
    );
}

/// T-CS-03.
#[test]
fn a_set_displays_as_a_bare_lowercase_mask_and_debugs_as_a_list() {
    let full = CpuSet::all();
    assert_eq!(full.to_string(), "f".repeat(256));
    assert_eq!(full, CpuSet::all());
    assert_eq!(CpuSet::empty().to_string(), "0");
    assert_eq!(CpuSet::from_str("0x51234").unwrap().to_string(), "51234");
    assert_eq!(
        CpuSet::from_iter([64, 4]).to_string(),
        "10000000000000010",
        "the lower word keeps its zeros"
    );

    let set = CpuSet::from_iter([0, 1, 2, 3, 5, 1022, 1023]);
    assert_eq!(format!("{set:?}"), "[0-3,5,1022-1023]");
    assert_eq!(set.as_list().to_string(), "[0-3,5,1022-1023]");
    assert_eq!(CpuSet::empty().as_list().to_string(), "[]");
}

/// T-CS-04.
#[test]
fn iteration_ascends_and_rebuilds_the_mask() {
    let set = CpuSet::from_str("0xF135704").unwrap();
    let mut rebuilt = 0u64;
    let mut last = None;
    for cpu in &set {
        assert!(last < Some(cpu));
        last = Some(cpu);
        rebuilt |= 1 << cpu;
    }
    assert_eq!(rebuilt, 0x0F13_5704);
    assert_eq!(set.iter().len(), set.count());
}

#[derive(Clone, Debug)]
enum Op {
    Set(usize),
    Clear(usize),
    And(BTreeSet<usize>),
    Or(BTreeSet<usize>),
    Xor(BTreeSet<usize>),
    Not,
}

fn op() -> impl Strategy<Value = Op> {
    let cpu = 0..CpuSet::CAPACITY;
    let other = btree_set(0..CpuSet::CAPACITY, 0..40);
    prop_oneof![
        6 => cpu.clone().prop_map(Op::Set),
        3 => cpu.prop_map(Op::Clear),
        1 => other.clone().prop_map(Op::And),
        1 => other.clone().prop_map(Op::Or),
        1 => other.prop_map(Op::Xor),
        1 => Just(Op::Not),
    ]
}

fn set_of(model: &BTreeSet<usize>) -> CpuSet {
    model.iter().copied().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_agrees_with_an_ordered_set(ops in vec(op(), 0..60)) {
        let mut model = BTreeSet::new();
        let mut set = CpuSet::empty();
        for op in ops {
            match op {
                Op::Set(cpu) => { model.insert(cpu); set.set(cpu); }
                Op::Clear(cpu) => { model.remove(&cpu); set.clear(cpu); }
                Op::And(other) => { model = &model & &other; set &= set_of(&other); }
                Op::Or(other) => { model = &model | &other; set |= set_of(&other); }
                Op::Xor(other) => { model = &model ^ &other; set ^= set_of(&other); }
                Op::Not => { model = &BTreeSet::from_iter(0..1024) - &model; set = !set; }
            }
            prop_assert_eq!(set.count(), model.len());
            prop_assert_eq!(set.first(), model.first().copied());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert!((0..1024).all(|cpu| set.contains(cpu) == model.contains(&cpu)));
        }
    }

    #[test]
    fn both_text_forms_parse_back_to_the_set(model in btree_set(0..CpuSet::CAPACITY, 1..80)) {
        let set = set_of(&model);
        prop_assert_eq!(set.to_string().parse(), Ok(set));
        prop_assert_eq!(set.as_list().to_string().parse(), Ok(set));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[\\[\\]0-9a-fxX,\\- é]{0,20}") {
        let _ = CpuSet::from_str(&text);
    }
}

/// Runs `f` on an OS thread of its own: affinity is per thread, and the test
/// runner's threads are not ours to pin.
/// However long the text, and whatever is in it.
#[test]
fn an_error_is_one_line_that_fits_on_a_screen() {
    for text in [
        format!("[{}]", "9".repeat(5_000)),
        "f".repeat(5_000),
        format!("[1]{}", "x".repeat(5_000)),
        "[\u{1b}[2J]".to_owned(),
        "\u{1b}[2J".to_owned(),
        "[1]\u{1b}".to_owned(),
    ] {
        let error = CpuSet::from_str(&text).unwrap_err().to_string();
        assert!(error.len() < 120, "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

/// The advice fits the refusal.
#[test]
fn an_error_of_the_kernel_gives_the_hint_that_belongs_to_it() {
    let read = |errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        AffinityError::Read { source }.to_string()
    };
    assert!(read(libc::EINVAL).contains("1024 CPUs"));
    let refused = read(libc::EPERM);
    assert!(
        !refused.contains("1024") && refused.contains("sandbox"),
        "{refused}"
    );
    let pin = |errno| {
        let source = std::io::Error::from_raw_os_error(errno);
        AffinityError::Pin { core: 3, source }.to_string()
    };
    assert!(pin(libc::EINVAL).contains("online"));
    assert!(!pin(libc::EPERM).contains("online"));
}

fn on_own_thread<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(f).join().unwrap()
}

#[test]
fn a_pinned_thread_runs_on_that_core_only() {
    on_own_thread(|| {
        for core in cpu::available().unwrap() {
            // Pinning from a pinned thread works too: no detour over the full set.
            cpu::pin_current_thread(core).unwrap();
            assert_eq!(cpu::current_affinity().unwrap(), CpuSet::single(core));
        }
    });
}

#[test]
fn a_helper_of_a_pinned_thread_gets_the_process_cores_back() {
    on_own_thread(|| {
        let all = cpu::available().unwrap();
        cpu::pin_current_thread(all.first().unwrap()).unwrap();
        on_own_thread(move || {
            assert_eq!(cpu::available().unwrap().count(), 1, "inherits the pin");
            cpu::set_current_affinity(&all).unwrap();
            assert_eq!(cpu::current_affinity().unwrap(), all);
        });
    });
}

#[test]
fn pinning_to_a_core_that_is_not_there_names_it_and_changes_nothing() {
    on_own_thread(|| {
        let before = cpu::current_affinity().unwrap();
        let absent = (0..1024).rev().find(|&c| !before.contains(c)).unwrap();
        for core in [absent, 1024, usize::MAX] {
            let error = cpu::pin_current_thread(core).unwrap_err();
            assert!(matches!(error, AffinityError::Pin { core: named, .. } if named == core));
            assert!(
                error.to_string().contains(&format!("core {core}:")),
                "{error}"
            );
        }
        let error = cpu::set_current_affinity(&CpuSet::empty()).unwrap_err();
        assert!(error.to_string().contains("cores []:"), "{error}");
        assert_eq!(cpu::current_affinity().unwrap(), before);
    });
}
