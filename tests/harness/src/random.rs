//! What the generators of random programs share: how a program is made from its
//! number, how programs are run one after the other in a process of their own, and
//! how one that fails is made small and can be run again.
//!
//! A program is a list of steps; a step may hold further ones, for whatever calls
//! back or drops. It follows from its number alone, and each step has a number of
//! its own, so that a part of a program is named by the numbers that are kept. The
//! programs run in a child process, since what is looked for may end it or hang;
//! the parent knows which program was begun last.
//!
//! | variable | |
//! |---|---|
//! | `CORESPUN_STRESS_SECONDS` | how long to make programs (2 s) |
//! | `CORESPUN_STRESS_SEED` | which programs |
//! | `CORESPUN_RANDOM_PROGRAM` | run this one only, and show it |
//! | `CORESPUN_RANDOM_KEEP` | of which only these steps |
//! | `CORESPUN_RANDOM_REDUCE` | make this one small |
//! | `CORESPUN_RANDOM_SURVEY` | if set, go on after failures and count them by kind |

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Write as _};
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::stress::{Dice, number, settings};

const CHILD: &str = "CORESPUN_RANDOM_CHILD";
const PROGRAM: &str = "CORESPUN_RANDOM_PROGRAM";
const KEEP: &str = "CORESPUN_RANDOM_KEEP";
const REDUCE: &str = "CORESPUN_RANDOM_REDUCE";
const SURVEY: &str = "CORESPUN_RANDOM_SURVEY";

/// After so long one program counts as one that hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for the parts of a program that are tried to make it small.
const SHORT_PATIENCE: Duration = Duration::from_secs(8);
/// How long a failure is made smaller.
const REDUCTION: Duration = Duration::from_secs(90);
/// How often a part is tried: with several OS threads a failure may need luck.
const TRIES: usize = 4;

/// Which user code panics, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panics {
    /// None does.
    Never,
    /// A callback, or a task.
    InCall,
    /// The destructor of its content.
    AtDrop,
}

/// One step of a program.
pub struct Step<K> {
    /// Its number in the program.
    pub number: usize,
    /// What is done.
    pub kind: K,
    /// What is chosen, modulo how much there is to choose from.
    pub a: usize,
    /// As `a`.
    pub b: usize,
    /// On which OS thread, at the top.
    pub site: usize,
    /// Which of its user code panics.
    pub panics: Panics,
    /// What its callback does, or its task, or whoever is inside.
    pub then: Script<K>,
    /// What the destructor of its content does.
    pub at_drop: Script<K>,
}

/// Steps, in their order.
pub type Script<K> = Vec<Arc<Step<K>>>;

impl<K: Debug> Debug for Step<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "#{} {:?}({}, {})",
            self.number, self.kind, self.a, self.b
        )?;
        if self.panics != Panics::Never {
            write!(f, " panics {:?}", self.panics)?;
        }
        if !self.then.is_empty() {
            write!(f, " then {:?}", self.then)?;
        }
        if !self.at_drop.is_empty() {
            write!(f, " at its drop {:?}", self.at_drop)?;
        }
        Ok(())
    }
}

/// A kind of step and how often it comes.
pub type Weighted<K> = (K, u64);

/// A first step: its kind, `a`, `b` and site, and what is inside.
pub type Beginning<K> = (K, usize, usize, usize, Vec<(K, usize, usize)>);

/// What follows from a number.
pub struct Program<K> {
    /// Which it is.
    pub number: u64,
    /// Those at the top.
    pub steps: Script<K>,
}

/// A program that has passed.
pub struct Ran {
    /// How much it did.
    pub operations: usize,
    /// That what it forgot keeps open, at most.
    pub descriptors: usize,
}

/// What makes and runs the programs of one generator.
pub trait Subject {
    /// What a step may do.
    type Kind: Copy + Debug + Send + Sync + 'static;

    /// The test's, for the command that runs a program again.
    const NAME: &'static str;
    /// How many OS threads the steps at the top are shared out to.
    const SITES: usize;
    /// Whether programs leak on purpose.
    const FORGETS: bool;
    /// The kinds at the top.
    const TOP: &'static [Weighted<Self::Kind>];
    /// Those inside of others, if there are any.
    const INSIDE: &'static [Weighted<Self::Kind>];

    /// What each program begins with.
    fn beginning(dice: &mut Dice) -> Vec<Beginning<Self::Kind>>;

    /// Runs it to its end, or says what was wrong.
    fn run(&mut self, program: &Program<Self::Kind>) -> Result<Ran, String>;
}

struct Maker<S: Subject> {
    dice: Dice,
    next: usize,
    site: usize,
    /// The kinds at the top and inside, with how often they come in this program.
    kinds: [Vec<Weighted<S::Kind>>; 2],
}

/// Each program leaves some kinds out and has others often (swarm testing): what
/// rarely meets in an even mixture does so in one that is not.
fn swarm<K: Copy>(dice: &mut Dice, kinds: &[Weighted<K>], factors: &[u64]) -> Vec<Weighted<K>> {
    let mut draw = || factors[dice.below(factors.len() as u64) as usize];
    kinds
        .iter()
        .map(|(kind, weight)| (*kind, weight * draw()))
        .collect()
}

impl<S: Subject> Maker<S> {
    fn step(
        &mut self,
        kind: S::Kind,
        choice: (usize, usize, usize),
        depth: u64,
    ) -> Arc<Step<S::Kind>> {
        let number = self.next;
        self.next += 1;
        let panics = match self.dice.below(24) {
            0 => Panics::InCall,
            1 => Panics::AtDrop,
            _ => Panics::Never,
        };
        let mut inside = |one_in, most| match self.dice.below(one_in) {
            0 if depth < 3 && !S::INSIDE.is_empty() => self.dice.below(most) + 1,
            _ => 0,
        };
        let (calls, drops) = (inside(2, 4), inside(8, 2));
        let [then, at_drop] = [calls, drops].map(|n| self.script(n, depth + 1));
        let (a, b, site) = choice;
        Arc::new(Step {
            number,
            kind,
            a,
            b,
            site,
            panics,
            then,
            at_drop,
        })
    }

    fn script(&mut self, len: u64, depth: u64) -> Script<S::Kind> {
        let kinds = self.kinds[usize::from(depth > 0)].clone();
        let total = kinds.iter().map(|(_, weight)| weight).sum();
        (0..len)
            .map(|_| {
                let mut at = self.dice.below(total);
                let chosen = kinds.iter().find(|(_, weight)| {
                    let found = at < *weight;
                    at = at.wrapping_sub(*weight);
                    found
                });
                let (kind, _) = chosen.expect("below the sum of the weights");
                // Mostly where the one before was.
                if self.dice.below(3) == 0 {
                    self.site = self.dice.below(S::SITES as u64) as usize;
                }
                let choice = (self.pick(), self.pick(), self.site);
                self.step(*kind, choice, depth)
            })
            .collect()
    }

    fn pick(&mut self) -> usize {
        self.dice.below(64) as usize
    }
}

fn make<S: Subject>(number: u64) -> Program<S::Kind> {
    let mut dice = Dice::of(number, 0);
    for _ in 0..8 {
        // Neighbours begin alike.
        dice.below(2);
    }
    let top = swarm(&mut dice, S::TOP, &[1, 1, 2, 4]);
    let inside = swarm(&mut dice, S::INSIDE, &[0, 1, 1, 2, 6]);
    let mut maker = Maker::<S> {
        dice,
        next: 0,
        site: 0,
        kinds: [top, inside],
    };
    let beginning = S::beginning(&mut maker.dice);
    let beginning = beginning.into_iter();
    let mut steps: Script<S::Kind> = beginning
        .map(|(kind, a, b, site, inside)| {
            let mut step = maker.step(kind, (a, b, site), 3);
            let inside = inside.into_iter();
            let inside = inside.map(|(kind, a, b)| maker.step(kind, (a, b, site), 3));
            let then = inside.collect();
            if let Some(step) = Arc::get_mut(&mut step) {
                (step.then, step.panics) = (then, Panics::Never);
            }
            step
        })
        .collect();
    let len = 10 + maker.dice.below(90);
    steps.extend(maker.script(len, 0));
    Program { number, steps }
}

/// Only the steps of these numbers, and what they hold.
fn keep<K: Copy>(script: &Script<K>, kept: &[usize]) -> Script<K> {
    let chosen = script.iter().filter(|step| kept.contains(&step.number));
    chosen
        .map(|step| {
            Arc::new(Step {
                then: keep(&step.then, kept),
                at_drop: keep(&step.at_drop, kept),
                ..**step
            })
        })
        .collect()
}

fn numbers<K>(script: &Script<K>, into: &mut Vec<usize>) {
    for step in script {
        into.push(step.number);
        numbers(&step.then, into);
        numbers(&step.at_drop, into);
    }
}

fn show<K: Debug>(steps: &Script<K>) -> String {
    let mut text = String::new();
    for step in steps {
        let _ = writeln!(text, "    on {}: {step:?}", step.site);
    }
    text
}

/// The `main` of a generator.
pub fn run<S: Subject>(mut subject: S) -> ExitCode {
    if let Some(first) = std::env::var(CHILD)
        .ok()
        .and_then(|first| first.parse().ok())
    {
        return serve(&mut subject, first);
    }
    if std::env::var_os(PROGRAM).is_some() {
        return replay(&mut subject);
    }
    if std::env::var_os(REDUCE).is_some() {
        return reduce_one::<S>(number(REDUCE, 0));
    }
    let (seconds, seed) = settings(S::NAME);
    supervise::<S>(Duration::from_secs(seconds), seed.wrapping_mul(1_000_000))
}

fn replay<S: Subject>(subject: &mut S) -> ExitCode {
    let mut program = make::<S>(number(PROGRAM, 0));
    if let Ok(kept) = std::env::var(KEEP) {
        let kept: Vec<_> = kept.split(',').filter_map(|n| n.parse().ok()).collect();
        program.steps = keep(&program.steps, &kept);
    }
    println!("program {}:\n{}", program.number, show(&program.steps));
    match run_one(subject, &program) {
        Ok(operations) => {
            println!("passed, {operations} operations");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("FAILED: {what}");
            ExitCode::FAILURE
        }
    }
}

/// Runs it, and sees whether it left descriptors open. The process may open some for
/// good (a sanitizer does for its symbols), but not each time.
fn run_one<S: Subject>(subject: &mut S, program: &Program<S::Kind>) -> Result<usize, String> {
    let (mut before, mut runs) = (open_descriptors(), 0);
    loop {
        let ran = subject.run(program)?;
        let most = before + ran.descriptors;
        let patience = Instant::now() + Duration::from_secs(2);
        // Threads that end may be about to close theirs.
        while open_descriptors() > most && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        let after = open_descriptors();
        if after <= most {
            return Ok(ran.operations);
        }
        runs += 1;
        if runs > 2 {
            return Err(format!("descriptors: {before} before, {after} after"));
        }
        before = after;
    }
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Runs programs one after the other and tells the parent, by lines.
fn serve<S: Subject>(subject: &mut S, first: u64) -> ExitCode {
    let end = Instant::now() + Duration::from_secs(number("CORESPUN_STRESS_SECONDS", 2));
    let mut out = std::io::stdout();
    let survey = std::env::var_os(SURVEY).is_some();
    let (mut programs, mut operations) = (0, 0);
    for number in first.. {
        if Instant::now() >= end {
            break;
        }
        let program = make::<S>(number);
        // With what was done so far: a child that fails does not get to its end.
        let _ = writeln!(out, "begin {number} {operations}");
        match run_one(subject, &program) {
            Ok(n) => operations += n,
            Err(what) if survey => {
                let _ = writeln!(out, "failed {number} {}", what.replace('\n', " "));
            }
            Err(what) => {
                eprintln!("FAILED: {what}");
                return ExitCode::FAILURE;
            }
        }
        programs += 1;
    }
    let _ = writeln!(out, "end {programs} {operations}");
    ExitCode::SUCCESS
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed(String),
    Hung,
}

/// Runs a child, line by line; it is ended if nothing comes for `patience`.
fn child<S: Subject>(
    variables: &[(&str, String)],
    patience: Duration,
    mut line: impl FnMut(&str),
) -> Outcome {
    let exe = std::env::current_exe().expect("the path of this program");
    let mut command = Command::new(exe);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    if S::FORGETS {
        command.env("ASAN_OPTIONS", "detect_leaks=0");
    }
    // All in this thread: channels of the standard library would hide edges from
    // ThreadSanitizer.
    let mut stderr = tempfile::tempfile().expect("a file");
    command.stdout(Stdio::piped());
    command.stderr(stderr.try_clone().expect("a descriptor"));
    let mut child = command.spawn().expect("a child of this program");
    let mut stdout = child.stdout.take().expect("piped");
    let (mut heard, mut hung) = (Vec::new(), false);
    loop {
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit) {
            Ok(0) => {
                hung = true;
                let _ = child.kill();
                break;
            }
            Ok(_) => {}
            Err(_) => continue,
        }
        let mut some = [0; 4096];
        match stdout.read(&mut some) {
            Ok(0) => break,
            Ok(count) => heard.extend_from_slice(&some[..count]),
            Err(_) => continue,
        }
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let text: Vec<_> = heard.drain(..=end).collect();
            line(String::from_utf8_lossy(&text).trim_end());
        }
    }
    let status = child.wait().expect("this waits for its child only");
    let mut said = Vec::new();
    let _ = stderr.seek(SeekFrom::Start(0));
    let _ = stderr.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    if hung {
        return Outcome::Hung;
    }
    if status.success() {
        return Outcome::Passed;
    }
    let told = said.lines().find_map(|line| line.strip_prefix("FAILED: "));
    let sanitizer = said.lines().find(|line| line.contains("Sanitizer: "));
    Outcome::Failed(match (told, sanitizer) {
        (Some(told), _) => told.to_owned(),
        (None, Some(found)) => {
            for line in said.lines().take(80) {
                eprintln!("{line}");
            }
            let at = found.find("Sanitizer: ").unwrap_or(0);
            found[at..].split(" on ").next().unwrap_or(found).to_owned()
        }
        (None, None) => {
            let last: Vec<_> = said.lines().rev().take(4).collect();
            format!("{status}: {last:?}")
        }
    })
}

/// Failures of one kind differ in their numbers only.
fn kind(what: &str) -> String {
    let text: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
    text.split(':').take(2).collect::<Vec<_>>().join(":")
}

fn supervise<S: Subject>(limit: Duration, first: u64) -> ExitCode {
    let survey = std::env::var_os(SURVEY).is_some();
    let end = Instant::now() + limit;
    let mut next = first;
    let (mut programs, mut operations) = (0u64, 0u64);
    // The first program of each kind of failure, and how many there were.
    let mut kinds: BTreeMap<String, (u64, u64, String)> = BTreeMap::new();
    let mut add = |number: u64, what: &str| {
        let new = || (number, 0, what.to_owned());
        kinds.entry(kind(what)).or_insert_with(new).1 += 1;
    };
    let mut failed = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = left.as_millis().div_ceil(1000);
        let variables = [
            (CHILD, next.to_string()),
            ("CORESPUN_STRESS_SECONDS", left.to_string()),
        ];
        let (mut begun, mut done) = (next, 0);
        let outcome = child::<S>(&variables, PATIENCE, |line| {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default();
            match (word(), word(), word()) {
                ("begin", number, so_far) => {
                    begun = number.parse().unwrap_or(begun);
                    done = so_far.parse().unwrap_or(done);
                }
                ("failed", number, what) => add(number.parse().unwrap_or(0), what),
                ("end", _, all) => done = all.parse().unwrap_or(done),
                _ => {}
            }
        });
        programs += begun + 1 - next;
        operations += done;
        next = begun + 1;
        let what = match outcome {
            Outcome::Passed => break,
            Outcome::Failed(what) => what,
            Outcome::Hung => "hung".to_owned(),
        };
        if !survey {
            failed = Some((begun, what));
            break;
        }
        add(begun, &what);
        if Instant::now() + Duration::from_secs(1) >= end {
            break;
        }
    }
    println!("{}: {programs} programs, {operations} operations", S::NAME);
    for (number, times, what) in kinds.values() {
        println!(
            "  {times} times, first by program {} ({number}): {what}",
            number - first + 1
        );
    }
    match failed {
        None => {
            println!("test result: ok. 1 passed; 0 failed");
            ExitCode::SUCCESS
        }
        Some((number, what)) => {
            println!(
                "program {number} (the {}th) failed: {what}",
                number - first + 1
            );
            reduce::<S>(number, &what);
            println!("test result: FAILED. 0 passed; 1 failed");
            ExitCode::FAILURE
        }
    }
}

fn reduce_one<S: Subject>(number: u64) -> ExitCode {
    let variables = [(PROGRAM, number.to_string())];
    let outcomes = (0..TRIES).map(|_| child::<S>(&variables, SHORT_PATIENCE, |_| ()));
    match outcomes
        .into_iter()
        .find(|outcome| *outcome != Outcome::Passed)
    {
        None => {
            println!("program {number} passes");
            ExitCode::SUCCESS
        }
        Some(outcome) => {
            let what = match outcome {
                Outcome::Failed(what) => what,
                _ => "hung".to_owned(),
            };
            println!("program {number} fails: {what}");
            reduce::<S>(number, &what);
            ExitCode::FAILURE
        }
    }
}

/// Leaves out steps for as long as the rest fails in the same way (delta
/// debugging), and says how to run what is left.
fn reduce<S: Subject>(number: u64, what: &str) {
    let end = Instant::now() + REDUCTION;
    let program = make::<S>(number);
    let mut kept = Vec::new();
    numbers(&program.steps, &mut kept);
    let list = |kept: &[usize]| {
        let kept: Vec<_> = kept.iter().map(usize::to_string).collect();
        kept.join(",")
    };
    let wanted = kind(what);
    let fails = |kept: &[usize]| {
        let variables = [(PROGRAM, number.to_string()), (KEEP, list(kept))];
        (0..TRIES).any(|_| match child::<S>(&variables, SHORT_PATIENCE, |_| ()) {
            Outcome::Passed => false,
            Outcome::Failed(what) => kind(&what) == wanted,
            Outcome::Hung => wanted == "hung",
        })
    };
    if fails(&kept) {
        let mut size = kept.len().div_ceil(2);
        while size > 0 && Instant::now() < end {
            let (mut at, mut smaller) = (0, false);
            while at < kept.len() && Instant::now() < end {
                let mut rest = kept.clone();
                rest.drain(at..(at + size).min(kept.len()));
                if fails(&rest) {
                    kept = rest;
                    smaller = true;
                } else {
                    at += size;
                }
            }
            if !smaller || size > 1 {
                size /= 2;
            }
        }
        println!("it fails with these steps alone:");
    } else {
        println!("it does not fail each time; all of its steps:");
    }
    print!("{}", show(&keep(&program.steps, &kept)));
    println!("run it again with");
    println!(
        "    {PROGRAM}={number} {KEEP}={} cargo test --test {}",
        list(&kept),
        S::NAME
    );
}
