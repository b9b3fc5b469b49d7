//! A host's part in a transfer: its process goes to another host, or comes from one.
//!
//! ```text
//!   from the agent        this host
//!   TransferOut --------> Sending ---- little left ---> Frozen ---- Stop ----> end
//!                            |  gives up by itself         |  TransferThaw
//!                            +--------> None <-------------+
//!
//!   Start{from} --------> Receiving -- all is here ---> Prepared -- TransferServe --> serves
//! ```
//!
//! Threads do the waiting, so that the host hears its agent meanwhile. A host that is not the
//! process yet has nothing to lose: it ends as soon as it is told to, or nobody vouches for it.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Instant;

use praas_runtime::host::{FromHost, HostFrom, HostStart, HostTransfer};
use praas_runtime::process::{Bound, Prepared, Process, PullFrom, TransferOffer, TransferStep};
use praas_runtime::transfer::SourceCounts;
use praas_runtime::world::World;
use praas_transport::{Address, Credential, Incarnation, StatsPage};

use super::link::Event;
use super::{Began, Host, Opened};
use crate::errors::error_text;

/// What a fetch comes to.
pub(super) type Arrived = Result<Prepared, String>;

/// Whether there is a process.
pub(super) enum Life {
    /// It serves, or is frozen.
    Serving(Arc<Process>),
    /// It is being fetched.
    Arriving,
    /// It is here, and another host may be it.
    Prepared(Box<Prepared>),
    /// It is on its way from one to the next.
    Between,
}

impl Life {
    pub fn process(&self) -> Option<&Arc<Process>> {
        match self {
            Self::Serving(process) => Some(process),
            _ => None,
        }
    }
}

/// What the process is to hear once it is there.
#[derive(Default)]
pub(super) struct Late {
    pub world: Option<World>,
    pub credential: Option<Credential>,
    pub directory: Option<Vec<Address>>,
}

/// A transfer of our process to another host.
pub(super) struct Outgoing {
    /// While it goes on; it says in the end whether the process is frozen.
    thread: Option<JoinHandle<bool>>,
    /// Whether it is called off, if that can be.
    thaws: bool,
    /// Since when invocations are turned away.
    frozen_since: Option<Instant>,
}

impl Host {
    /// Begins to fetch the process.
    pub(super) fn arriving(
        start: &HostStart,
        from: &HostFrom,
        (opened, page): (Opened, Arc<StatsPage>),
        events: &Sender<Event>,
    ) -> Result<(Life, Began), Box<dyn Error>> {
        let mut bound = Bound::new(opened.config, page)?;
        let from = PullFrom {
            addresses: from.addresses.clone(),
            incarnation: Incarnation(from.incarnation),
            token: from.token,
        };
        let events = events.clone();
        std::thread::Builder::new()
            .name("transfer".into())
            .spawn(move || {
                let arrived = match bound.pull(&from, || false) {
                    Ok(image) => {
                        tracing::info!(
                            objects = image.state.len(),
                            messages = image.mailbox.messages.len(),
                            files = image.files.len(),
                            "the process is here"
                        );
                        let prepared = bound.prepare(image);
                        prepared.map_err(|error| error_text(&error))
                    }
                    Err(error) => Err(error_text(&error)),
                };
                // The host may be ending.
                let _ = events.send(Event::Arrived(Box::new(arrived)));
            })?;
        let began = Began {
            storage: opened.storage,
            keyring: opened.keyring,
            swap_generation: start.swap_generation,
            rejected: Vec::new(),
        };
        Ok((Life::Arriving, began))
    }

    /// What was to be fetched is here, or not to be had.
    pub(super) fn arrived(&mut self, arrived: Arrived) -> Option<ExitCode> {
        match arrived {
            Ok(prepared) => {
                tracing::info!("waiting for the word to serve");
                self.life = Life::Prepared(Box::new(prepared));
                self.transfer_say(HostTransfer::Prepared, None);
                None
            }
            Err(error) => {
                tracing::error!(error, "the process could not be fetched");
                self.send(&FromHost::Failed { error });
                Some(ExitCode::FAILURE)
            }
        }
    }

    /// From now on this is the process.
    pub(super) fn transfer_serve(&mut self) -> Option<ExitCode> {
        match std::mem::replace(&mut self.life, Life::Between) {
            Life::Prepared(prepared) => {
                let process = match prepared.serve() {
                    Ok(process) => Arc::new(process),
                    Err(error) => {
                        let error = error_text(&error);
                        tracing::error!(error, "the process cannot start");
                        self.send(&FromHost::Failed { error });
                        return Some(ExitCode::FAILURE);
                    }
                };
                let late = std::mem::take(&mut self.late);
                if let Some(directory) = late.directory {
                    process.directory_moved(directory);
                }
                if let Some(credential) = late.credential {
                    process.credential_changed(credential);
                }
                if let Some(world) = late.world {
                    process.world_update(world);
                }
                tracing::info!("the process serves here now");
                self.hello.addresses = process.addresses().to_vec();
                self.hello.transfer = HostTransfer::None;
                self.life = Life::Serving(process);
                self.send(&self.ready());
            }
            life => {
                self.life = life;
                match self.life.process() {
                    // Said again by an agent that does not know whether it was heard.
                    Some(_) => self.send(&self.ready()),
                    None => tracing::error!("told to serve what is not here yet: ignored"),
                }
            }
        }
        None
    }

    /// Lets another host fetch the process.
    pub(super) fn transfer_out(&mut self, incarnation: u64, token: [u8; 16]) {
        let (Some(process), None) = (self.life.process(), &self.outgoing) else {
            let error = "it does not serve, or is being transferred already".into();
            return self.transfer_say(self.hello.transfer, Some(error));
        };
        let process = Arc::clone(process);
        let events = self.events.clone();
        let offer = TransferOffer {
            incarnation: Incarnation(incarnation),
            token,
        };
        let spawned = std::thread::Builder::new()
            .name("transfer".into())
            .spawn(move || {
                let step_events = events.clone();
                let step = move |step| {
                    // The host may be ending.
                    let _ = step_events.send(Event::Sending(step));
                };
                let outcome = process.transfer_out(offer, step);
                let outcome = outcome.map_err(|error| error_text(&error));
                let frozen = outcome.is_ok();
                let _ = events.send(Event::Sent(outcome));
                frozen
            });
        match spawned {
            Ok(thread) => {
                tracing::info!(incarnation, "another host may fetch the process");
                self.outgoing = Some(Outgoing {
                    thread: Some(thread),
                    thaws: false,
                    frozen_since: None,
                });
            }
            Err(error) => self.transfer_say(HostTransfer::None, Some(error.to_string())),
        }
    }

    pub(super) fn sending(&mut self, step: TransferStep) -> Option<ExitCode> {
        if let Some(outgoing) = &mut self.outgoing {
            let state = match step {
                TransferStep::Offered => HostTransfer::Sending,
                TransferStep::Freezing => {
                    tracing::info!("little is left: calls are turned away");
                    outgoing.frozen_since = Some(Instant::now());
                    HostTransfer::Frozen
                }
            };
            self.transfer_say(state, None);
        }
        None
    }

    /// The thread that sends has ended.
    pub(super) fn sent(&mut self, outcome: Result<SourceCounts, String>) -> Option<ExitCode> {
        let outgoing = self.outgoing.as_mut()?;
        outgoing.thread = None;
        match outcome {
            Ok(counts) => {
                let SourceCounts {
                    rounds,
                    bytes,
                    frozen_bytes,
                } = counts;
                let frozen = outgoing
                    .frozen_since
                    .map_or(0, |at| at.elapsed().as_micros());
                tracing::info!(
                    rounds,
                    bytes,
                    frozen_bytes,
                    frozen_us = frozen as u64,
                    "another host has the process: waiting for the word on who serves"
                );
                if outgoing.thaws {
                    self.transfer_thaw();
                }
            }
            Err(error) => {
                tracing::warn!(error, "not transferred: serving on");
                self.outgoing = None;
                self.transfer_say(HostTransfer::None, Some(error));
            }
        }
        None
    }

    /// There is no transfer, or none any more.
    pub(super) fn transfer_thaw(&mut self) {
        let Some(process) = self.life.process() else {
            return;
        };
        match &mut self.outgoing {
            Some(outgoing) if outgoing.thread.is_some() => {
                outgoing.thaws = true;
                process.transfer_cancel();
            }
            _ if self.hello.transfer != HostTransfer::None => {
                process.thaw();
                self.outgoing = None;
                tracing::info!("the transfer is called off: serving on");
                let error = Some("it was called off".into());
                self.transfer_say(HostTransfer::None, error);
            }
            _ => self.transfer_say(HostTransfer::None, None),
        }
    }

    /// Ends a transfer under way before the process itself does: it must not thaw meanwhile.
    pub(super) fn outgoing_end(&mut self) {
        let thread = self.outgoing.take().and_then(|outgoing| outgoing.thread);
        if let (Some(thread), Some(process)) = (thread, self.life.process()) {
            process.transfer_cancel();
            match thread.join() {
                Ok(true) => {}
                // Nobody takes its last word any more.
                Ok(false) => {
                    let error = Some("it was called off".into());
                    self.transfer_say(HostTransfer::None, error);
                }
                Err(_) => tracing::error!("the thread of a transfer panicked"),
            }
        }
    }

    fn transfer_say(&mut self, state: HostTransfer, error: Option<String>) {
        self.hello.transfer = state;
        self.send(&FromHost::Transfer { state, error });
    }
}
