//! Deletion of applications: what their processes have left in storage goes first.
//!
//! ```text
//!   ApplicationDelete --> each process that was stopped: deleted, as if that were asked for
//!                           |  all are: the application and its tokens are removed, done
//!                           |  one cannot be, or time is up: the application stays, and why
//! ```

use super::{Action, Entry, Origin, Registry, Reply, Want};
use crate::api::ProcessState;
use crate::error::{ErrorKind, Failure};
use crate::store::Change;

/// A deletion of an application that waits for its processes'.
#[derive(Debug)]
pub(super) struct Deletion {
    application: String,
    origins: Vec<Origin>,
    /// Processes that are not deleted yet.
    left: usize,
}

impl Registry {
    /// Deletes an application whose processes are deleted, or stopped for good.
    pub(super) fn application_delete(
        &mut self,
        now: u64,
        origin: Origin,
        wait_ms: u64,
        name: &str,
    ) {
        let mut under_way = self.deletions.values_mut();
        if let Some(deletion) = under_way.find(|deletion| deletion.application == name) {
            return deletion.origins.push(origin);
        }
        if let Err(failure) = self.application_unused(name) {
            return self.answer(origin, Err(failure));
        }
        let left = self.keys(|entry| entry.record.application == name);
        if left.is_empty() {
            let removed = self.application_remove(name);
            return self.answer(origin, removed);
        }
        self.deletion_last += 1;
        let number = self.deletion_last;
        let deletion = Deletion {
            application: name.into(),
            origins: vec![origin],
            left: left.len(),
        };
        self.deletions.insert(number, deletion);
        for key in left {
            let origin = Origin::Application(number);
            self.wait_for(now, origin, wait_ms, &key, Want::Deleted);
        }
    }

    /// A process of an application that is to be deleted is, or cannot be.
    pub(super) fn deletion_answered(&mut self, number: u64, result: Result<Reply, Failure>) {
        let Some(deletion) = self.deletions.get_mut(&number) else {
            // Another could not be.
            return;
        };
        let result = match result {
            Ok(Reply::Done) => {
                deletion.left -= 1;
                if deletion.left > 0 {
                    return;
                }
                let name = deletion.application.clone();
                let removed = self.application_unused(&name);
                removed.and_then(|()| self.application_remove(&name))
            }
            // It does not wait.
            Ok(_) => {
                let name = &deletion.application;
                let detail = format!("what is left of the processes of {name:?} is being deleted");
                Err(Failure::new(ErrorKind::Timeout, detail))
            }
            Err(failure) => Err(failure),
        };
        let deletion = self.deletions.remove(&number);
        for origin in deletion.into_iter().flat_map(|deletion| deletion.origins) {
            self.answer(origin, result.clone());
        }
    }

    /// Whether nothing of an application goes on.
    fn application_unused(&self, name: &str) -> Result<(), Failure> {
        let in_use = |entry: &&Entry| {
            let rests = entry.waiters.is_empty() && entry.transfer.is_none();
            entry.record.state != ProcessState::Gone || !rests
        };
        let Some(entry) = self.app(name)?.processes.values().find(in_use) else {
            return Ok(());
        };
        let moves = match &entry.transfer {
            Some(_) => ", and whose transfer is not over",
            None => "",
        };
        let (process, state) = (&entry.record.name, entry.record.state);
        let detail = format!(
            "application {name:?} still has process {process:?}, which is {state}{moves}: stop or \
             delete its processes first"
        );
        Err(Failure::new(ErrorKind::Conflict, detail))
    }

    fn application_remove(&mut self, name: &str) -> Result<Reply, Failure> {
        self.app(name)?;
        if let Some(app) = self.apps.remove(name) {
            self.process_count -= app.processes.len();
            for process in app.processes.into_keys() {
                let change = Change::ProcessRemoved(name.into(), process);
                self.actions.push(Action::Persist(change));
            }
        }
        self.dirty.remove(name);
        let change = Change::ApplicationRemoved(name.into());
        self.actions.push(Action::Persist(change));
        // A later application of this name is not theirs.
        let orphans: Vec<[u8; 32]> = self
            .tokens
            .values()
            .filter(|token| token.application.as_deref() == Some(name))
            .map(|token| token.hash)
            .collect();
        for hash in orphans {
            self.tokens.remove(&hash);
            self.actions
                .push(Action::Persist(Change::TokenRemoved(hash)));
        }
        self.applications_tell();
        Ok(Reply::Done)
    }
}
