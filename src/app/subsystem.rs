//! Subsystems of an app: what has to be up before its start function and down after
//! it, in the order of what depends on what.

mod life;

use std::error::Error;

use futures::future::LocalBoxFuture;

use super::AppHandle;

pub(super) use life::{Control, Lifecycle};

/// A part of an app that is initialised before the start function is called, and
/// finished once the app stops (`SPDK_SUBSYSTEM_REGISTER`).
///
/// [`AppBuilder::subsystem`](super::AppBuilder::subsystem) registers it. All are
/// initialised on the app thread, one at a time, each after those that it depends on;
/// those that do not depend on each other in the order registered. They are finished in
/// reverse. An `init` that fails or panics stops the app: those before it are finished,
/// it is not, and the start function is never called.
///
/// What stops the app while an `init` is under way cancels that one: its destructors
/// clean up, there is nothing to finish. While others are finished, the start function and
/// all that it spawned still run.
///
/// # Examples
///
/// ```
/// use std::error::Error;
/// use std::sync::mpsc::{Sender, channel};
/// use corespun::app::{App, AppHandle, Subsystem};
///
/// struct Journal(Sender<&'static str>);
///
/// impl Subsystem for Journal {
///     type Running = Sender<&'static str>;
///
///     fn name(&self) -> &str {
///         "journal"
///     }
///
///     async fn init(self, _app: AppHandle) -> Result<Self::Running, Box<dyn Error + Send + Sync>> {
///         self.0.send("opened")?;
///         Ok(self.0)
///     }
///
///     async fn fini(journal: Self::Running, _app: AppHandle) {
///         let _ = journal.send("closed");
///     }
/// }
///
/// struct Cache(Sender<&'static str>);
///
/// impl Subsystem for Cache {
///     type Running = ();
///
///     fn name(&self) -> &str {
///         "cache"
///     }
///
///     fn depends_on(&self) -> Vec<&str> {
///         vec!["journal"]
///     }
///
///     async fn init(self, _app: AppHandle) -> Result<(), Box<dyn Error + Send + Sync>> {
///         Ok(self.0.send("cache filled")?)
///     }
/// }
///
/// let (says, said) = channel();
/// App::builder()
///     .subsystem(Cache(says.clone()))
///     .subsystem(Journal(says.clone()))
///     .block_on(async move |_app| says.send("started").unwrap())?;
/// assert!(said.try_iter().eq(["opened", "cache filled", "started", "closed"]));
/// # Ok::<(), corespun::app::AppError>(())
/// ```
pub trait Subsystem: Send + 'static {
    /// What `init` makes and `fini` takes; it stays on the app thread.
    type Running: 'static;

    /// The name that others depend on it by, and that errors say.
    fn name(&self) -> &str;

    /// The names of those that are to be initialised before this one, and finished after
    /// it (`SPDK_SUBSYSTEM_DEPEND`); none unless overridden.
    fn depends_on(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Brings it up, on the app thread (`spdk_subsystem_init_next` once it has ended).
    ///
    /// # Errors
    ///
    /// Its own; they stop the app, and are the source of [`SubsystemError::Init`].
    ///
    /// # Cancel safety
    ///
    /// It is cancelled if the app is stopped before it has ended.
    fn init(
        self,
        app: AppHandle,
    ) -> impl Future<Output = Result<Self::Running, Box<dyn Error + Send + Sync>>>;

    /// Brings it down, on the app thread, before the reactors stop
    /// (`spdk_subsystem_fini_next` once it has ended); drops `running` unless
    /// overridden. A panic is reported, and the next one is finished.
    ///
    /// # Cancel safety
    ///
    /// It is cancelled if the app thread is asked to exit meanwhile, by the program or
    /// because a reactor has failed. Those whose turn has not come are finished then,
    /// within that thread's exit timeout.
    fn fini(running: Self::Running, app: AppHandle) -> impl Future<Output = ()> {
        drop(app);
        async { drop(running) }
    }
}

/// One subsystem of an app: its name, and those it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubsystemInfo {
    /// Its name.
    pub name: String,
    /// The names of those it depends on, as it gave them.
    pub depends_on: Vec<String>,
}

/// What is wrong with the subsystems of an app, or which of them could not be
/// initialised.
///
/// # Examples
///
/// ```
/// use corespun::app::SubsystemError;
///
/// let names = ["bdev", "sock"].map(String::from).to_vec();
/// let error = SubsystemError::Cycle { names };
/// assert_eq!(error.to_string(), "subsystems depend on each other: bdev -> sock -> bdev");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubsystemError {
    /// Two have the same name; nothing was started.
    #[error("two subsystems are named {name:?}")]
    Registered {
        /// The name.
        name: String,
    },
    /// One depends on another that is not there; nothing was started.
    #[error("subsystem {name:?} depends on {dependency:?}, which is not registered")]
    Missing {
        /// Its name.
        name: String,
        /// What it depends on.
        dependency: String,
    },
    /// Some depend on each other, so that none can be the first; nothing was started.
    #[error("subsystems depend on each other: {} -> {}", .names.join(" -> "), .names[0])]
    Cycle {
        /// Each depends on the next, and the last on the first.
        names: Vec<String>,
    },
    /// The init of one failed.
    #[error("subsystem {name:?} could not be initialised: {source}")]
    Init {
        /// Its name.
        name: String,
        /// Its own error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The init of one panicked.
    #[error("the init of subsystem {name:?} panicked: {message}")]
    InitPanicked {
        /// Its name.
        name: String,
        /// The panic's text.
        message: String,
    },
}

/// Ends one subsystem.
type Fini = Box<dyn FnOnce(AppHandle) -> LocalBoxFuture<'static, ()>>;
/// What the init of one comes to.
type Inited = Result<Fini, Box<dyn Error + Send + Sync>>;
type Init = Box<dyn FnOnce(AppHandle) -> LocalBoxFuture<'static, Inited> + Send>;

/// A subsystem that was not initialised yet, whatever its type.
pub(super) struct Registered {
    info: SubsystemInfo,
    init: Init,
}

impl Registered {
    pub(super) fn new<S: Subsystem>(subsystem: S) -> Self {
        let depends_on = subsystem.depends_on();
        let info = SubsystemInfo {
            name: subsystem.name().to_owned(),
            depends_on: depends_on.into_iter().map(str::to_owned).collect(),
        };
        let init = |app: AppHandle| -> LocalBoxFuture<'static, Inited> {
            Box::pin(async move {
                let running = subsystem.init(app).await?;
                let fini: Fini = Box::new(|app| Box::pin(finish::<S>(running, app)));
                Ok(fini)
            })
        };
        let init = Box::new(init);
        Registered { info, init }
    }

    pub(super) fn info(&self) -> &SubsystemInfo {
        &self.info
    }
}

/// Calls `fini` in its own task, where a panic of the call itself is contained too.
async fn finish<S: Subsystem>(running: S::Running, app: AppHandle) {
    S::fini(running, app).await;
}

/// Sorts them so that each comes after those that it depends on, as SPDK does: passes
/// over those that are left take out each whose dependencies are all taken out.
pub(super) fn sort(mut left: Vec<Registered>) -> Result<Vec<Registered>, SubsystemError> {
    check_names(&left)?;
    let mut sorted: Vec<Registered> = Vec::new();
    while !left.is_empty() {
        let before = sorted.len();
        let mut waiting = Vec::new();
        for one in left {
            let is_sorted = |name: &String| sorted.iter().any(|it| it.info.name == *name);
            if one.info.depends_on.iter().all(is_sorted) {
                sorted.push(one);
            } else {
                waiting.push(one);
            }
        }
        if sorted.len() == before {
            let names = cycle(&waiting);
            return Err(SubsystemError::Cycle { names });
        }
        left = waiting;
    }
    Ok(sorted)
}

fn check_names(all: &[Registered]) -> Result<(), SubsystemError> {
    for (index, Registered { info, .. }) in all.iter().enumerate() {
        if all[..index]
            .iter()
            .any(|other| other.info.name == info.name)
        {
            let name = info.name.clone();
            return Err(SubsystemError::Registered { name });
        }
    }
    for Registered { info, .. } in all {
        let is_missing = |name: &&String| all.iter().all(|other| other.info.name != **name);
        if let Some(dependency) = info.depends_on.iter().find(is_missing) {
            return Err(SubsystemError::Missing {
                name: info.name.clone(),
                dependency: dependency.clone(),
            });
        }
    }
    Ok(())
}

/// The names of a cycle among those that are left, each of which depends on another of
/// them.
fn cycle(left: &[Registered]) -> Vec<String> {
    let mut path = vec![&left[0].info];
    loop {
        let last = path[path.len() - 1];
        let next = left.iter().map(Registered::info).find(|info| {
            // The first by its own list would do as well; any that is left leads on.
            last.depends_on.contains(&info.name)
        });
        let Some(next) = next else {
            unreachable!("one whose dependencies are sorted is sorted");
        };
        if let Some(start) = path.iter().position(|info| info.name == next.name) {
            return path[start..].iter().map(|info| info.name.clone()).collect();
        }
        path.push(next);
    }
}
