//! The governor `cpufreq` and the limit of idle states, against a tree of files like
//! the kernel's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corespun::cpu::{self, CpuSet};
use corespun::reactor::governor::{Cpufreq, Frequency, Governor, GovernorError, ResumeLatency};
use corespun::reactor::scheduler::Schedulers;
use harness::reactors::{app, must_end};
use serde_json::json;

/// A machine with a driver that can be told a frequency, or one that cannot.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(cpus: usize, named: bool) -> Self {
        let machine = Machine(tempfile::tempdir().unwrap());
        for cpu in 0..cpus {
            let governors = if named {
                "userspace ondemand"
            } else {
                "performance powersave"
            };
            let files = [
                ("cpufreq/cpuinfo_min_freq", "800000"),
                ("cpufreq/cpuinfo_max_freq", "1100000"),
                ("cpufreq/scaling_min_freq", "800000"),
                ("cpufreq/scaling_max_freq", "1100000"),
                ("cpufreq/scaling_cur_freq", "900000"),
                ("cpufreq/scaling_setspeed", "<unsupported>"),
                ("cpufreq/scaling_governor", "ondemand"),
                ("cpufreq/scaling_available_governors", governors),
                ("power/pm_qos_resume_latency_us", "0"),
                ("topology/thread_siblings_list", &cpu.to_string()),
            ];
            for (file, text) in files {
                machine.put(&format!("cpu{cpu}/{file}"), text);
            }
        }
        machine.put("cpufreq/boost", "0");
        machine
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn put(&self, file: &str, text: &str) {
        let path: PathBuf = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn get(&self, file: &str) -> String {
        fs::read_to_string(self.path().join(file))
            .unwrap()
            .trim()
            .to_owned()
    }

    /// Every file and its text.
    fn all(&self) -> Vec<(PathBuf, String)> {
        let mut files = Vec::new();
        let mut rest = vec![self.path().to_owned()];
        while let Some(path) = rest.pop() {
            match fs::read_dir(&path) {
                Ok(entries) => rest.extend(entries.map(|entry| entry.unwrap().path())),
                Err(_) => files.push((path.clone(), fs::read_to_string(&path).unwrap())),
            }
        }
        files.sort();
        files
            .iter_mut()
            .for_each(|file| file.1 = file.1.trim().to_owned());
        files
    }
}

fn cpus(list: &[usize]) -> CpuSet {
    list.iter().copied().collect()
}

#[test]
fn a_driver_that_takes_frequencies_is_told_them_and_gets_everything_back() {
    let machine = Machine::new(2, true);
    machine.put(
        "cpu0/cpufreq/scaling_available_frequencies",
        "1100000 950000 800000",
    );
    let before = machine.all();
    let mut governor = Cpufreq::at(machine.path());
    governor.init(&cpus(&[0, 1])).unwrap();
    assert_eq!(machine.get("cpufreq/boost"), "1");
    assert_eq!(machine.get("cpu0/cpufreq/scaling_governor"), "userspace");
    let speed = || machine.get("cpu0/cpufreq/scaling_setspeed");
    assert_eq!(speed(), "1100000");
    for (change, changed, khz) in [
        (Frequency::Up, false, "1100000"),
        (Frequency::Down, true, "950000"),
        (Frequency::Down, true, "800000"),
        (Frequency::Down, false, "800000"),
        (Frequency::Min, false, "800000"),
        (Frequency::Up, true, "950000"),
        (Frequency::Max, true, "1100000"),
    ] {
        assert_eq!(governor.set(0, change), Ok(changed), "{change:?}");
        assert_eq!(speed(), khz, "{change:?}");
    }
    assert_eq!(governor.frequency(1), Ok(900_000));
    let other = governor.set(7, Frequency::Max).unwrap_err();
    assert!(matches!(other, GovernorError::NotTaken { cpu: 7, .. }));
    governor.deinit();
    let after = machine.all();
    let speed = |path: &Path| path.ends_with("scaling_setspeed");
    for ((path, before), (_, after)) in before.iter().zip(&after) {
        assert!(
            before == after || speed(path),
            "{path:?}: {before} and {after}"
        );
    }
}

/// The administrator's own frequency is one of the things to give back.
#[test]
fn a_frequency_that_was_set_by_name_before_is_set_again() {
    let machine = Machine::new(1, true);
    machine.put("cpu0/cpufreq/scaling_governor", "userspace");
    machine.put("cpu0/cpufreq/scaling_setspeed", "1000000");
    let before = machine.all();
    let mut governor = Cpufreq::at(machine.path());
    governor.init(&cpus(&[0])).unwrap();
    governor.set(0, Frequency::Min).unwrap();
    assert_eq!(machine.get("cpu0/cpufreq/scaling_setspeed"), "800000");
    governor.deinit();
    assert_eq!(machine.all(), before);
}

#[test]
fn a_driver_that_takes_none_is_limited() {
    let machine = Machine::new(1, false);
    let mut governor = Cpufreq::at(machine.path());
    governor.init(&cpus(&[0])).unwrap();
    let most = || machine.get("cpu0/cpufreq/scaling_max_freq");
    assert_eq!(governor.set(0, Frequency::Down), Ok(true));
    assert_eq!(most(), "1000000");
    assert_eq!(governor.set(0, Frequency::Min), Ok(true));
    assert_eq!(most(), "800000");
    assert_eq!(machine.get("cpu0/cpufreq/scaling_governor"), "ondemand");
    drop(governor);
    assert_eq!(most(), "1100000");
    assert_eq!(machine.get("cpufreq/boost"), "0");
}

/// Nothing is changed then.
#[test]
fn a_machine_without_what_it_takes_is_refused_by_name() {
    let machine = Machine::new(2, true);
    let before = machine.all();
    let mut governor = Cpufreq::at(machine.path());
    let path = machine.path().join("cpu2/cpufreq/cpuinfo_min_freq");
    let missing = governor.init(&cpus(&[0, 2])).unwrap_err();
    assert_eq!(missing, GovernorError::NotThere { cpu: 2, path });
    assert!(
        missing
            .to_string()
            .starts_with("processor 2 has no frequency control")
    );
    assert_eq!(machine.all(), before);
    // One hardware thread of a core only.
    machine.put("cpu0/topology/thread_siblings_list", "0-1");
    machine.put("cpu1/topology/thread_siblings_list", "0-1");
    let shared = governor.init(&cpus(&[0])).unwrap_err();
    let siblings = "[0-1]".to_owned();
    assert_eq!(shared, GovernorError::Shared { cpu: 0, siblings });
    governor.init(&cpus(&[0, 1])).unwrap();
    assert_eq!(governor.siblings(0), cpus(&[0, 1]));
    governor.deinit();
    // The second processor's file cannot be written: the first is given back.
    fs::remove_file(machine.path().join("cpu1/cpufreq/scaling_setspeed")).unwrap();
    governor.init(&cpus(&[0, 1])).unwrap_err();
    assert_eq!(machine.get("cpu0/cpufreq/scaling_governor"), "ondemand");
    assert_eq!(machine.get("cpu1/cpufreq/scaling_governor"), "ondemand");
    assert_eq!(machine.get("cpufreq/boost"), "0");
}

/// T-SC-18: step by step, and the scheduler lives on where there is no such thing.
#[test]
fn an_idle_app_goes_down_to_the_lowest_frequency() {
    must_end(|| {
        let cpu = cpu::available().unwrap().first().unwrap();
        let machine = Machine::new(cpu + 1, true);
        let root = machine.path().to_owned();
        app(1, corespun::reactor::ReactorMode::Interrupt)
            .scheduler_period(Duration::ZERO)
            .block_on(async move |app| {
                let schedulers: Schedulers = app.reactors().schedulers();
                schedulers
                    .register_governor("files", Cpufreq::at(root))
                    .unwrap();
                let options = json!({ "governor": "files" });
                schedulers.set_options("dynamic", options).await.unwrap();
                schedulers.set("dynamic").await.unwrap();
                let speed = format!("cpu{cpu}/cpufreq/scaling_setspeed");
                // On a loaded machine a period may look busy, and go up again.
                for _ in 0..1_000 {
                    corespun::time::sleep(Duration::from_millis(2)).await;
                    let round = schedulers.run_round().await.unwrap();
                    assert_eq!(round.refused, Vec::<String>::new());
                    if machine.get(&speed) == "800000" {
                        break;
                    }
                }
                assert_eq!(machine.get(&speed), "800000");
                // Where there is none, it is used without one.
                let gone = json!({ "governor": "gone" });
                schedulers.set("static").await.unwrap();
                schedulers.set_options("dynamic", gone).await.unwrap();
                schedulers.set("dynamic").await.unwrap();
                assert_eq!(schedulers.state().governor, None);
            })
            .unwrap();
    });
}

#[test]
fn a_limit_of_idle_states_ends_with_its_value() {
    let machine = Machine::new(1, true);
    let file = || machine.get("cpu0/power/pm_qos_resume_latency_us");
    let latency = ResumeLatency::at(machine.path());
    let limit = latency.limit(0, Duration::from_nanos(20_900)).unwrap();
    assert_eq!((limit.cpu(), &file()[..]), (0, "20"));
    let shorter = latency.limit(0, Duration::ZERO).unwrap();
    assert_eq!(file(), "n/a");
    drop(shorter);
    assert_eq!(file(), "20");
    drop(limit);
    assert_eq!(file(), "0");
    let missing = latency.limit(3, Duration::ZERO).unwrap_err();
    assert!(matches!(missing, GovernorError::NotThere { cpu: 3, .. }));
}
