//! tokio's feature names: each is here, and one that cannot be given says what to use instead.

use std::path::Path;
use std::process::Command;

/// The names in the table `[features]` of a manifest.
fn features(manifest: &str) -> Vec<&str> {
    let table = manifest
        .split("[features]\n")
        .nth(1)
        .expect("it has features");
    let table = table.split("\n[").next().expect("the table has an end");
    let names = table
        .lines()
        .filter(|line| !line.starts_with([' ', '#', ']']));
    names
        .filter_map(|line| Some(line.split_once(" = ")?.0))
        .collect()
}

#[test]
fn each_feature_of_tokio_has_its_name_here() {
    let ours = features(include_str!("../Cargo.toml"));
    let stable = [
        "default",
        "fs",
        "full",
        "io-std",
        "io-uring",
        "io-util",
        "macros",
        "net",
        "parking_lot",
        "process",
        "rt",
        "rt-multi-thread",
        "schedule-latency",
        "signal",
        "sync",
        "taskdump",
        "test-util",
        "time",
        "tracing",
    ];
    for name in stable {
        assert!(ours.contains(&name), "{name}");
    }
    // The list above is whole, as far as the registry's copy is there to tell.
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .expect("a home");
    let lock = include_str!("../../Cargo.lock");
    let version = lock
        .split("name = \"tokio\"\nversion = \"")
        .nth(1)
        .expect("it is locked");
    let version = version.split('"').next().expect("a version");
    let Ok(registries) = std::fs::read_dir(Path::new(&home).join("registry/src")) else {
        println!("skipped: no registry to compare with");
        return;
    };
    for registry in registries {
        let manifest = registry
            .expect("listed")
            .path()
            .join(format!("tokio-{version}/Cargo.toml"));
        if let Ok(manifest) = std::fs::read_to_string(manifest) {
            for name in features(&manifest) {
                assert!(stable.contains(&name), "{name} is new");
            }
        }
    }
}

/// What the compiler says of the crate with a feature. It need not get further than that.
fn refusal(feature: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a directory");
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let ended = Command::new(compiler)
        .args([
            "--edition=2024",
            "--crate-type=lib",
            "--emit=metadata",
            "--cfg=tokio_unstable",
        ])
        .arg(format!("--cfg=feature=\"{feature}\""))
        .arg("--out-dir")
        .arg(out.path())
        .arg(root.join("src/lib.rs"))
        .output()
        .expect("a compiler");
    assert!(!ended.status.success());
    String::from_utf8(ended.stderr).expect("text")
}

#[test]
fn a_feature_that_cannot_be_given_says_what_to_use() {
    for (feature, instead) in [
        ("taskdump", "SpdkThread::tasks"),
        ("tracing", "tracing-spans"),
        ("schedule-latency", "ThreadLibBuilder::task_times"),
    ] {
        let said = refusal(feature);
        let refusal = said
            .lines()
            .find(|line| line.contains("corespun-compat has no"));
        assert!(
            refusal.is_some_and(|line| line.contains(instead)),
            "{feature}: {said}"
        );
    }
    assert!(!refusal("sync").contains("corespun-compat has no"));
}
