//! Running an app: what starts in which order, and its end.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, Weak};

use super::builder::{AppBuilder, OnPanic};
use super::handle::{AppHandle, AppShared};
use super::os_thread::{Borrowed, name_after_core, reactor_name};
use super::subsystem::{self, Control, Lifecycle};
use super::{AppError, SubsystemError, signals};
use crate::cpu::{self, CpuSet};
use crate::io::Driver;
use crate::reactor::{Group, Lcore, Placement, Reactor, ReactorPanicked, StartError, Watcher};
use crate::task::{JoinHandle, TaskBuilder};
use crate::thread::{PanicPolicy, SpdkThread, ThreadLib};

impl AppBuilder {
    /// Runs the app to its end.
    pub(super) fn start<S>(mut self, start: S) -> Result<AppHandle, AppError>
    where
        S: AsyncFnOnce(AppHandle) + 'static,
    {
        check_caller()?;
        let subsystems = subsystem::sort(std::mem::take(&mut self.subsystems))?;
        let available = cpu::available()?;
        let places = self.places(&available)?;
        let stop_on_panic: Arc<OnceLock<Weak<AppShared>>> = Arc::default();
        let taken: CpuSet = places.iter().map(|place| place.cpu).collect();
        let free = available & !taken;
        // With a reactor on every core, helper threads have to share.
        let helper_cpus = if free.is_empty() { available } else { free };
        let library = self.library(stop_on_panic.clone(), helper_cpus);
        let driver = self.driver.helpers(library.inner.helpers.clone());
        let group = Group::new(library.clone(), &places, self.mode, self.adaptive, driver)
            .map_err(StartError::from)?;
        let app = AppHandle::new(
            self.name.clone(),
            group.clone(),
            self.shutdown,
            Control::new(&subsystems),
        );

        let _borrowed = Borrowed::new()?;
        group.configure_scheduling(self.scheduling)?;
        let start_watcher = |limit| Watcher::start(group.clone(), limit, helper_cpus);
        let watcher = self.stall_limit.map(start_watcher).transpose();
        let watcher = watcher.map_err(StartError::from)?;
        library
            .set_framework(Arc::new(Placement(Arc::downgrade(&group))))
            .expect("the library was made here");
        let app_thread = library
            .thread()
            .name(self.name)
            .cpumask(CpuSet::single(places[0].core))
            .build()?;
        let _ = app.shared.app_thread.set(app_thread.handle());
        let _ = stop_on_panic.set(Arc::downgrade(&app.shared));
        // Before the reactors: a signal that comes as they start waits for the
        // app thread.
        let register = || signals::register(&app, self.shutdown_limit, &helper_cpus);
        let signals = self.signals.then(register).transpose();
        let signals = signals.map_err(AppError::Signals)?;
        let others = OtherReactors::start(&group, &places)?;
        let mut reactor = Reactor::start(group.clone(), 0)?;
        name_after_core(places[0].core);
        let panicked = Rc::new(Cell::new(None));
        let failed = Rc::new(Cell::new(None));
        let lifecycle = Lifecycle::new(app.clone(), subsystems, failed.clone());
        let (given, report) = (app.clone(), panicked.clone());
        reactor
            .arrive(app_thread)
            .enter(|| lifecycle.launch(move || spawn_start(start, given, report)));
        let main = reactor.run();
        let others = others.join();
        drop(watcher);
        // Only now: a signal is ignored for as long as anything winds down.
        drop(signals);
        main.and(others)?;
        check_end(&group, &failed, &panicked)?;
        Ok(app)
    }

    fn library(&mut self, app: Arc<OnceLock<Weak<AppShared>>>, helper_cpus: CpuSet) -> ThreadLib {
        let mut builder = ThreadLib::builder().helper_cpus(helper_cpus);
        if let Some(clock) = &self.clock {
            builder = builder.clock(clock.clone());
        }
        if let Some(limit) = self.stall_limit {
            builder = builder.stall_limit(limit);
        }
        if let Some(hook) = self.stall_hook.take() {
            builder = builder.stall_hook(hook);
        }
        match self.on_panic {
            OnPanic::Contain => builder,
            OnPanic::Abort => builder.panic_policy(PanicPolicy::Abort),
            OnPanic::Stop(code) => builder.panic_hook(move |_| {
                // The app owns the library, so this must not own the app.
                if let Some(shared) = app.get().and_then(Weak::upgrade) {
                    AppHandle { shared }.stop(code);
                }
            }),
        }
        .build()
    }

    /// Where the reactors go, the main one first.
    fn places(&self, available: &CpuSet) -> Result<Vec<Lcore>, AppError> {
        let mut places = match &self.places {
            Some(places) => places.clone(),
            None => available
                .first()
                .map(|core| Lcore { core, cpu: core })
                .into_iter()
                .collect(),
        };
        if places.is_empty() {
            return Err(AppError::NoCores);
        }
        places.sort_by_key(|place| place.core);
        if let Some(pair) = places.windows(2).find(|pair| pair[0].core == pair[1].core) {
            return Err(AppError::DuplicateCore { core: pair[0].core });
        }
        if let Some(place) = places.iter().find(|place| place.core >= CpuSet::CAPACITY) {
            return Err(AppError::CoreTooHigh { core: place.core });
        }
        if let Some(place) = places.iter().find(|place| !available.contains(place.cpu)) {
            return Err(AppError::NoSuchCore {
                core: place.cpu,
                available: available.as_list().to_string(),
            });
        }
        if let Some(core) = self.main_core {
            let Some(main) = places.iter().position(|place| place.core == core) else {
                let cores: CpuSet = places.iter().map(|place| place.core).collect();
                return Err(AppError::NotAmongCores {
                    core,
                    cores: cores.as_list().to_string(),
                });
            };
            let main = places.remove(main);
            places.insert(0, main);
        }
        Ok(places)
    }
}

/// An app blocks the OS thread that runs it, so that must not be one that polls.
fn check_caller() -> Result<(), AppError> {
    if let Some(thread) = SpdkThread::current() {
        return Err(AppError::InsideThread {
            thread: thread.name().to_owned(),
        });
    }
    match Driver::current() {
        Some(_) => Err(AppError::InsideLoop),
        None => Ok(()),
    }
}

/// Why an app has ended, if it was not because it was asked to.
fn check_end(
    group: &Group,
    failed: &Cell<Option<SubsystemError>>,
    panicked: &Cell<Option<String>>,
) -> Result<(), AppError> {
    if let Some((core, source)) = group.failure() {
        return Err(AppError::IoLost { core, source });
    }
    if let Some(error) = failed.take() {
        return Err(error.into());
    }
    match panicked.take() {
        Some(message) => Err(AppError::StartPanicked { message }),
        None => Ok(()),
    }
}

/// Has the start function run in a task of the app thread, which is current.
fn spawn_start<S>(start: S, app: AppHandle, panicked: Rc<Cell<Option<String>>>)
where
    S: AsyncFnOnce(AppHandle) + 'static,
{
    let given = app.clone();
    let start = TaskBuilder::new()
        .name("start function")
        .spawn_local(async move { start(given).await });
    let watch = TaskBuilder::new().name("start function's end");
    drop(watch.spawn_local(watch_start(start, app, panicked)));
}

/// Stops the app if its start function panics: nothing else would.
async fn watch_start(start: JoinHandle<()>, app: AppHandle, panicked: Rc<Cell<Option<String>>>) {
    if let Err(error) = start.await
        && error.is_panic()
    {
        panicked.set(Some(error.to_string()));
        app.stop(1);
    }
}

/// The reactors that run in OS threads of their own.
struct OtherReactors {
    group: Arc<Group>,
    threads: Vec<std::thread::JoinHandle<Result<(), ReactorPanicked>>>,
}

impl OtherReactors {
    /// Starts them and waits until each can poll; if one cannot, all end.
    fn start(group: &Arc<Group>, places: &[Lcore]) -> Result<Self, StartError> {
        let (report, reports) = std::sync::mpsc::channel();
        let mut others = OtherReactors {
            group: group.clone(),
            threads: Vec::new(),
        };
        for (index, place) in places.iter().enumerate().skip(1) {
            let group = group.clone();
            let report = report.clone();
            let reactor = std::thread::Builder::new()
                .name(reactor_name(place.core))
                .spawn(move || match Reactor::start(group, index) {
                    Ok(reactor) => {
                        let _ = report.send(Ok(()));
                        drop(report);
                        reactor.run()
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                        Ok(())
                    }
                })?;
            others.threads.push(reactor);
        }
        drop(report);
        let reports: Vec<_> = reports.into_iter().collect::<Result<_, _>>()?;
        if reports.len() < others.threads.len() {
            // One that panicked as it started has dropped its end.
            return Err(io::Error::other("a reactor panicked as it started").into());
        }
        Ok(others)
    }

    /// Waits until all have ended; says which was the first that panicked.
    fn join(mut self) -> Result<(), ReactorPanicked> {
        self.join_all()
    }

    fn join_all(&mut self) -> Result<(), ReactorPanicked> {
        let join = |thread: std::thread::JoinHandle<_>| {
            // What panics outside of the reactor's own loop was still starting.
            thread.join().unwrap_or(Ok(()))
        };
        let ended: Vec<_> = self.threads.drain(..).map(join).collect();
        ended.into_iter().collect()
    }
}

impl Drop for OtherReactors {
    /// An app that fails to start after its reactors did, or while they do.
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.group.stop();
            // The reason why the app fails is known, and each panic is reported.
            let _ = self.join_all();
        }
    }
}
