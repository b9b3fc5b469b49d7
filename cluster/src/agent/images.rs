//! Deletes what incarnations have left in storage, on a thread of its own: storage may be slow.
//!
//! ```text
//!   agent --orders--> thread: one after the other, storage that stays open --done--> agent
//!     |
//!     | one takes too long: it failed, and so is said; the thread is left to itself, another one
//!     | with a storage of its own goes on with the next
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use praas_runtime::swap::{Storage, StorageError};

use super::hosts::HostKey;
use super::record::images_delete;
use crate::errors::error_text;

/// Threads that may hang in a storage at a time, before nothing more is tried.
const HANGING_MAX: usize = 16;

/// What is to be deleted: the request, whose, and below which incarnation.
type Order = (u64, HostKey, u64);

/// What came of it.
type Done = (u64, Result<(), String>);

type Open = dyn Fn() -> Result<Arc<dyn Storage>, StorageError> + Send + Sync;
type Wake = dyn Fn() + Send + Sync;

/// Deletes images.
pub(super) struct ImageWorker {
    open: Arc<Open>,
    wake: Arc<Wake>,
    timeout: Duration,
    waiting: VecDeque<Order>,
    /// What is being deleted, and until when it may be.
    under_way: Option<(u64, HostKey, Instant)>,
    orders: Sender<Order>,
    done: Receiver<Done>,
    /// Threads that have been given up, with what they will say if they ever end.
    hanging: Vec<Receiver<Done>>,
}

impl ImageWorker {
    /// `open` opens the storage, and `wake` has whoever calls [`ImageWorker::finished`] look again.
    pub(super) fn start(
        open: impl Fn() -> Result<Arc<dyn Storage>, StorageError> + Send + Sync + 'static,
        wake: impl Fn() + Send + Sync + 'static,
        timeout_ms: u64,
    ) -> io::Result<Self> {
        let (open, wake): (Arc<Open>, Arc<Wake>) = (Arc::new(open), Arc::new(wake));
        let (orders, done) = thread_start(&open, &wake)?;
        Ok(Self {
            open,
            wake,
            timeout: Duration::from_millis(timeout_ms),
            waiting: VecDeque::new(),
            under_way: None,
            orders,
            done,
            hanging: Vec::new(),
        })
    }

    /// Deletes what incarnations of a process below one have left.
    pub(super) fn order(&mut self, now: Instant, request: u64, key: HostKey, below: u64) {
        self.waiting.push_back((request, key, below));
        self.next(now);
        if self.under_way.is_none() {
            // There is nothing to wait for.
            (self.wake)();
        }
    }

    /// What is done, or failed, since the last call.
    pub(super) fn finished(&mut self, now: Instant) -> Vec<Done> {
        let mut all = Vec::new();
        // One that has ended after all hangs no more.
        let hangs = |done: &mut Receiver<Done>| {
            matches!(done.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty))
        };
        self.hanging.retain_mut(hangs);
        while let Ok(done) = self.done.try_recv() {
            // What was given up may be done late, on a thread that could not be replaced.
            let asked = |(request, ..): &mut (u64, HostKey, Instant)| *request == done.0;
            if self.under_way.take_if(asked).is_some() {
                all.push(done);
            }
        }
        let over = |(_, _, until): &mut (u64, HostKey, Instant)| *until <= now;
        if let Some((request, key, _)) = self.under_way.take_if(over) {
            let limit = self.timeout.as_millis();
            let why = format!(
                "deleting the swap images of {key} took more than {limit} ms (setting \
                 images_delete_timeout_ms)"
            );
            all.push((request, Err(why)));
            self.thread_replace();
        }
        // Also if a thread that hung has ended, so that there is room for another one.
        self.next(now);
        if self.hanging.len() >= HANGING_MAX {
            for (request, key, _) in self.waiting.drain(..) {
                let why = format!(
                    "cannot delete the swap images of {key}: {HANGING_MAX} deletions hang in the \
                     storage"
                );
                all.push((request, Err(why)));
            }
        }
        all
    }

    /// When [`ImageWorker::finished`] has something to say though nothing is done.
    pub(super) fn deadline_next(&self) -> Option<Instant> {
        self.under_way.as_ref().map(|(_, _, until)| *until)
    }

    fn next(&mut self, now: Instant) {
        if self.under_way.is_some() || self.hanging.len() >= HANGING_MAX {
            return;
        }
        let Some((request, key, below)) = self.waiting.pop_front() else {
            return;
        };
        self.under_way = Some((request, key.clone(), now + self.timeout));
        // If the thread has ended, time will be up, and another one begins.
        let _ = self.orders.send((request, key, below));
    }

    /// Leaves a thread that hangs to itself. It may delete what it was told yet: that is below the
    /// incarnation that was named then, whenever it is.
    fn thread_replace(&mut self) {
        match thread_start(&self.open, &self.wake) {
            Ok((orders, done)) => {
                self.orders = orders;
                self.hanging.push(std::mem::replace(&mut self.done, done));
            }
            Err(error) => tracing::error!(%error, "cannot start a thread that deletes images"),
        }
    }
}

fn thread_start(open: &Arc<Open>, wake: &Arc<Wake>) -> io::Result<(Sender<Order>, Receiver<Done>)> {
    let (orders, ordered) = channel::<Order>();
    let (finished, done) = channel();
    let (open, wake) = (Arc::clone(open), Arc::clone(wake));
    let work = move || {
        let mut opened = None;
        for (request, key, below) in ordered {
            let result = delete(&mut opened, &*open, &key, below).map_err(|error| {
                let error = error_text(&error);
                format!("cannot delete the swap images of {key}: {error}")
            });
            // The agent may be gone meanwhile, or have given this up.
            if finished.send((request, result)).is_err() {
                return;
            }
            wake();
        }
    };
    let thread = std::thread::Builder::new().name("praas-images".into());
    thread.spawn(work)?;
    Ok((orders, done))
}

fn delete(
    opened: &mut Option<Arc<dyn Storage>>,
    open: &Open,
    key: &HostKey,
    below: u64,
) -> Result<(), StorageError> {
    let storage = match opened.take() {
        Some(storage) => storage,
        None => open()?,
    };
    images_delete(&*storage, key, below)?;
    // One that has failed is opened anew.
    *opened = Some(storage);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Long enough for any machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// What a storage is that hangs as long as it is dead.
    #[derive(Default)]
    struct Disk {
        /// How often it was opened, and whether it hangs.
        seen: Mutex<(usize, bool)>,
        alive: Condvar,
    }

    struct Opened(Arc<Disk>);

    impl Storage for Opened {
        fn put_new(&self, _: &str, _: &[&[u8]]) -> Result<(), StorageError> {
            Ok(())
        }

        fn size(&self, _: &str) -> Result<u64, StorageError> {
            Ok(0)
        }

        fn read(&self, _: &str, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
            Ok(())
        }

        fn list(&self, prefix: &str) -> Result<Vec<String>, StorageError> {
            let seen = self.0.seen.lock().unwrap();
            let hung = self.0.alive.wait_while(seen, |(_, hangs)| *hangs);
            drop(hung.unwrap());
            match prefix.contains("bad") {
                true => Err(StorageError::NotFound {
                    name: prefix.into(),
                }),
                false => Ok(Vec::new()),
            }
        }

        fn delete(&self, _: &str) -> Result<(), StorageError> {
            Ok(())
        }
    }

    struct Lab {
        disk: Arc<Disk>,
        worker: ImageWorker,
        woken: Receiver<()>,
    }

    impl Lab {
        fn new() -> Self {
            let disk = Arc::new(Disk::default());
            let (wake, woken) = channel();
            let opens = Arc::clone(&disk);
            let open = move || -> Result<Arc<dyn Storage>, StorageError> {
                opens.seen.lock().unwrap().0 += 1;
                Ok(Arc::new(Opened(Arc::clone(&opens))))
            };
            let wake = Mutex::new(wake);
            let wake = move || {
                // Whoever looked may be gone.
                let _ = wake.lock().unwrap().send(());
            };
            let worker = ImageWorker::start(open, wake, 1_000).unwrap();
            Self {
                disk,
                worker,
                woken,
            }
        }

        fn hang(&self, hangs: bool) {
            self.disk.seen.lock().unwrap().1 = hangs;
            self.disk.alive.notify_all();
        }

        fn opens(&self) -> usize {
            self.disk.seen.lock().unwrap().0
        }

        /// What is done within `ms` of when all was ordered.
        fn finished(&mut self, begun: Instant, ms: u64) -> Vec<(u64, bool)> {
            let done = self.worker.finished(begun + Duration::from_millis(ms));
            done.into_iter().map(|(n, r)| (n, r.is_ok())).collect()
        }

        fn waited(&mut self, begun: Instant) -> Vec<(u64, bool)> {
            self.woken.recv_timeout(PATIENCE).unwrap();
            self.finished(begun, 0)
        }
    }

    fn key(process: &str) -> HostKey {
        HostKey {
            application: "a".into(),
            process: process.into(),
        }
    }

    #[test]
    fn a_storage_stays_open_until_it_fails() {
        let (mut lab, now) = (Lab::new(), Instant::now());
        for request in 1..=3 {
            lab.worker.order(now, request, key("p"), 5);
            assert_eq!(lab.waited(now), [(request, true)]);
        }
        assert_eq!(lab.opens(), 1);
        lab.worker.order(now, 4, key("bad"), 5);
        assert_eq!(lab.waited(now), [(4, false)]);
        lab.worker.order(now, 5, key("p"), 5);
        assert_eq!(lab.waited(now), [(5, true)]);
        assert_eq!((lab.opens(), lab.worker.deadline_next()), (2, None));
    }

    #[test]
    fn one_that_hangs_is_over_in_time_and_holds_up_no_other() {
        let (mut lab, now) = (Lab::new(), Instant::now());
        lab.hang(true);
        lab.worker.order(now, 1, key("p"), 5);
        lab.worker.order(now, 2, key("q"), 5);
        assert_eq!(lab.finished(now, 999), []);
        let until = now + Duration::from_millis(1_000);
        assert_eq!(lab.worker.deadline_next(), Some(until));
        let done = lab.worker.finished(until);
        let [(1, Err(why))] = done.as_slice() else {
            panic!("{done:?}");
        };
        assert!(why.contains("images_delete_timeout_ms"), "{why}");
        lab.hang(false);
        // Both threads end what they do; one of them is not asked any more.
        let mut all = Vec::new();
        while all.is_empty() {
            all.extend(lab.waited(now));
        }
        assert_eq!(all, [(2, true)]);
    }

    #[test]
    fn threads_that_hang_are_few() {
        let (mut lab, now) = (Lab::new(), Instant::now());
        lab.hang(true);
        let many = HANGING_MAX as u64 + 3;
        for request in 0..many {
            lab.worker.order(now, request, key("p"), 5);
        }
        let mut failed = Vec::new();
        for round in 1..=many {
            failed.extend(lab.finished(now, round * 1_000));
        }
        let all: Vec<_> = (0..many).map(|request| (request, false)).collect();
        assert_eq!(failed, all);
        assert_eq!(lab.worker.hanging.len(), HANGING_MAX);
        // Said at once, and the agent looks.
        while lab.woken.try_recv().is_ok() {}
        lab.worker.order(now, many, key("p"), 5);
        assert_eq!(lab.waited(now), [(many, false)]);
        // The storage comes back before the agent has looked: there is room now, and it is begun.
        lab.worker.order(now, many + 1, key("p"), 5);
        lab.hang(false);
        for _ in 0..=HANGING_MAX {
            lab.woken.recv_timeout(PATIENCE).unwrap();
        }
        assert_eq!(lab.finished(now, 0), []);
        assert_eq!(lab.waited(now), [(many + 1, true)]);
    }
}
