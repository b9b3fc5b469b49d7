//! A process goes to another host: the sending side beside its service. `pull.rs` has the other.
//!
//! ```text
//!   transfer_out (a thread of the host's)         Serve (the endpoint's owner)
//!     | installs the offer ------------------------> |  the target connects, rounds begin
//!     | <------------------------ More, Freeze ----- |
//!     | quiesces, makes the image -----------------> |  the rest, End
//!     | <------------ Complete | Doubt | Failed ---- |
//!     v frozen          or       v thawed
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use praas_transport::clock;
use praas_transport::sync::atomic::Ordering;
use praas_transport::{ChannelId, ChannelInfo, CloseReason, Incarnation, Ops, Posted, PostedBuf};

use super::Process;
use super::engine::Core;
use super::quiesce::{Outliving, QuiesceError};
use super::serve::Serve;
use crate::state::{Absent, StateError};
use crate::swap::ImageKind;
use crate::transfer::{
    AM_TRANSFER, FromTarget, Notice, Out, Shape, Source, SourceCounts, SourceLimits, Step,
    VOUCHED_MAX, WORD_HEADER, piece_header, shape, word_decode, word_encode,
};

/// Steps of the source's machine between two looks at what else there is.
const STEPS: usize = 32;
/// How often whoever waits looks whether it still shall.
const LOOK: Duration = Duration::from_millis(50);

/// Who may have the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferOffer {
    /// Its incarnation; its name is that of the process.
    pub incarnation: Incarnation,
    /// What it must know besides.
    pub token: [u8; 16],
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferStep {
    /// The target may come.
    Offered,
    /// New invocations are turned away.
    Freezing,
}

/// Why a process was not transferred; it serves on.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Another transfer of it is under way.
    #[error("the process is being transferred already")]
    Busy,
    /// Functions went on running for as long as they may.
    #[error("{running} functions still run after {waited_ms} ms (quiesce_timeout_ms)")]
    StillRunning {
        /// How many.
        running: usize,
        /// For how long they were waited for.
        waited_ms: u64,
    },
    /// What was left took too long.
    #[error("what was left took more than {0} ms (transfer_freeze_timeout_ms)")]
    TooSlow(u64),
    /// The target is gone, or makes no sense.
    #[error("the target was lost: {0}")]
    Lost(String),
    /// It was called off.
    #[error("the transfer was called off")]
    Cancelled,
    /// The process cannot be frozen.
    #[error(transparent)]
    Quiesce(#[from] QuiesceError),
}

/// What the endpoint's owner tells the thread that waits for the transfer.
#[derive(Debug)]
pub(super) enum News {
    Notice(Notice),
    /// There is more to be done at once, and others are to have a turn before.
    More,
    Cancelled,
}

/// The sending side, as the endpoint's owner has it.
#[derive(Debug)]
pub(super) struct Sending {
    source: Source,
    offer: TransferOffer,
    channel: Option<ChannelId>,
    news: Sender<News>,
    more: bool,
}

impl Process {
    /// Sends the process to the host that `offer` names, while it serves, until that host has
    /// all. The process is then frozen: [`Process::thaw`] or [`Process::stop`] is next, as whoever
    /// decides says. Not to be called by a worker.
    ///
    /// # Errors
    /// The process serves on as before; the target cannot have all of it.
    pub fn transfer_out(
        &self,
        offer: TransferOffer,
        mut step: impl FnMut(TransferStep),
    ) -> Result<SourceCounts, TransferError> {
        let heard = self.transfer_install(offer)?;
        // Before anybody may come: what is in storage still is not to be waited for by the
        // endpoint's owner.
        let ready = self.transfer_fetch().and_then(|()| self.runs_wait());
        let outcome = ready.and_then(|()| {
            step(TransferStep::Offered);
            self.transfer_follow(&heard, &mut step)
        });
        self.transfer_finish(outcome)
    }

    /// Lets the host that `offer` names come; what follows is heard of.
    pub(super) fn transfer_install(
        &self,
        offer: TransferOffer,
    ) -> Result<Receiver<News>, TransferError> {
        let (news, heard) = crossbeam_channel::unbounded();
        let settings = &self.engine.shared.settings;
        let limits = SourceLimits {
            rounds_max: settings.transfer_rounds_max,
            freeze_max_bytes: settings.transfer_freeze_max_bytes,
            window_bytes: settings.transfer_window_bytes,
            piece_max_bytes: settings.transport.message_max_bytes,
        };
        let installed = self.engine.with_core(move |core| {
            let free = core.serve.transfer.is_none() && !core.serve.quiescing;
            if free {
                core.serve
                    .shared
                    .transfer_cancelled
                    .store(false, Ordering::SeqCst);
                core.serve.transfer = Some(Box::new(Sending {
                    source: Source::new(offer.token, limits),
                    offer,
                    channel: None,
                    news,
                    more: false,
                }));
            }
            free
        });
        match installed.ok_or(QuiesceError::Ended)? {
            true => Ok(heard),
            false => Err(TransferError::Busy),
        }
    }

    /// The end of a transfer: the process serves on after an error, unless the target may have
    /// everything all the same.
    pub(super) fn transfer_finish(
        &self,
        outcome: Result<(), TransferError>,
    ) -> Result<SourceCounts, TransferError> {
        let ended = self.transfer_end(outcome.as_ref().err().map(ToString::to_string));
        match (outcome, ended) {
            (outcome, Some((counts, doubt))) if outcome.is_ok() || doubt => Ok(counts),
            // It has ended meanwhile: nothing is frozen, and nobody knows what was sent.
            (Ok(()), _) => Err(QuiesceError::Ended.into()),
            (Err(error), _) => {
                self.thaw();
                Err(error)
            }
        }
    }

    /// Calls a transfer off, unless the target may have everything.
    pub fn transfer_cancel(&self) {
        self.engine.with_core(|core| {
            if let Some(sending) = &core.serve.transfer {
                sending.tell(News::Cancelled);
                let cancelled = &core.serve.shared.transfer_cancelled;
                cancelled.store(true, Ordering::SeqCst);
            }
        });
    }

    /// Whether the transfer that is under way was called off.
    pub(super) fn transfer_cancelled(&self) -> bool {
        let cancelled = &self.engine.shared.transfer_cancelled;
        cancelled.load(Ordering::SeqCst)
    }

    /// As [`Process::state_fetch`], for as long as there is a transfer.
    fn transfer_fetch(&self) -> Result<(), TransferError> {
        self.engine
            .shared
            .state
            .absent()
            .into_iter()
            .try_for_each(|(key, absent)| self.transfer_fetch_one(&key, &absent))
    }

    pub(super) fn transfer_fetch_one(
        &self,
        key: &str,
        absent: &Arc<Absent>,
    ) -> Result<(), TransferError> {
        if self.transfer_cancelled() {
            return Err(TransferError::Cancelled);
        }
        let fetched = self.engine.shared.state.fetch(key, absent);
        Ok(fetched.map(drop).map_err(QuiesceError::from)?)
    }

    /// Waits until all functions that run now have ended, while the process serves on. Where one
    /// does not, callers would be turned away for nothing, and all be copied for nothing.
    fn runs_wait(&self) -> Result<(), TransferError> {
        let shared = &self.engine.shared;
        let jobs = || {
            let workers = shared.crew.workers();
            workers
                .into_iter()
                .map(|worker| worker.job.load(Ordering::Acquire))
        };
        let first: Vec<u64> = jobs().collect();
        let patience = Duration::from_millis(shared.settings.quiesce_timeout_ms).max(LOOK);
        let until = clock::now() + patience;
        loop {
            let same = jobs().zip(&first).filter(|(job, first)| *job == **first);
            let running = same.filter(|(job, _)| *job != 0).count();
            if running == 0 {
                return Ok(());
            }
            if self.transfer_cancelled() {
                return Err(TransferError::Cancelled);
            }
            if clock::now() >= until {
                let waited_ms = patience.as_millis() as u64;
                return Err(TransferError::StillRunning { running, waited_ms });
            }
            match shared.stepped {
                Some(meanwhile) => meanwhile(),
                None => std::thread::park_timeout(Duration::from_millis(5)),
            }
        }
    }

    /// Waits until the target has all, and freezes the process in between.
    fn transfer_follow(
        &self,
        heard: &Receiver<News>,
        step: &mut impl FnMut(TransferStep),
    ) -> Result<(), TransferError> {
        let timeout_ms = self.engine.shared.settings.transfer_freeze_timeout_ms;
        let mut frozen_until: Option<Instant> = None;
        loop {
            let news = match heard.recv_timeout(LOOK) {
                Ok(news) => Some(news),
                Err(RecvTimeoutError::Disconnected) => return Err(QuiesceError::Ended.into()),
                Err(RecvTimeoutError::Timeout) => None,
            };
            // Also while there is always more to be done. What is the end anyway comes first.
            let goes_on = matches!(news, None | Some(News::More));
            if goes_on && frozen_until.is_some_and(|until| until <= clock::now()) {
                return Err(TransferError::TooSlow(timeout_ms));
            }
            let Some(news) = news else {
                continue;
            };
            match news {
                News::More => self.transfer_more(),
                News::Notice(Notice::Freeze) => {
                    step(TransferStep::Freezing);
                    // Whoever waited may have been told not to.
                    let frozen = self.freeze();
                    let quiet_at = frozen.map_err(|error| match self.transfer_cancelled() {
                        true => TransferError::Cancelled,
                        false => error,
                    })?;
                    frozen_until = Some(quiet_at + Duration::from_millis(timeout_ms));
                }
                News::Notice(Notice::Complete) => return Ok(()),
                News::Notice(Notice::Doubt(why)) => {
                    tracing::warn!(why, "the target is out of reach, and may have everything");
                    return Ok(());
                }
                News::Notice(Notice::Failed(why)) => return Err(TransferError::Lost(why)),
                News::Cancelled => return Err(TransferError::Cancelled),
            }
        }
    }

    /// Sends what is more to be sent at once.
    pub(super) fn transfer_more(&self) {
        self.engine.with_core(|core| {
            if let Some(sending) = &mut core.serve.transfer {
                sending.more = false;
            }
            let Core {
                endpoint, serve, ..
            } = core;
            serve.transfer_pump(endpoint);
        });
    }

    /// Turns invocations away, waits for those that run, and hands all that is left to the source.
    /// Functions are not cancelled for a transfer. Says since when none runs.
    fn freeze(&self) -> Result<Instant, TransferError> {
        self.turn_away()?;
        let crew = &self.engine.shared.crew;
        let waited_ms = self.engine.shared.settings.quiesce_timeout_ms;
        if !self.quiet_wait(Duration::from_millis(waited_ms)) {
            let running = crew.running() + crew.blocked();
            return Err(TransferError::StillRunning { running, waited_ms });
        }
        let quiet_at = clock::now();
        self.one_way_settle(Duration::from_millis(waited_ms))?;
        self.transfer_rest()?;
        Ok(quiet_at)
    }

    /// Hands all that is left to the source: from here on the process is frozen.
    pub(super) fn transfer_rest(&self) -> Result<(), TransferError> {
        let Outliving { image, absent } = self.image(ImageKind::Final)?;
        if let Some((key, _)) = absent.into_iter().next() {
            let what = "it is not fetched yet".into();
            return Err(QuiesceError::from(StateError::Unavailable { key, what }).into());
        }
        let shared = &self.engine.shared;
        let mut vouched = shared.vouched.clone();
        vouched.extend(shared.restored_from.map(|incarnation| incarnation.0));
        // It has forgotten a client, and does not know any more what ran.
        match image.kind {
            ImageKind::Final => vouched.push(image.incarnation.0),
            ImageKind::Checkpoint => vouched.clear(),
        }
        let vouched = vouched.split_off(vouched.len().saturating_sub(VOUCHED_MAX));
        self.engine.with_core(move |core| {
            if let Some(sending) = &mut core.serve.transfer {
                sending.source.frozen(image, vouched);
            }
            let Core {
                endpoint, serve, ..
            } = core;
            serve.transfer_pump(endpoint);
        });
        Ok(())
    }

    /// Takes the sending side away. With an error the target is told, and this says whether it may
    /// have everything all the same. `None`: the process has ended.
    fn transfer_end(&self, error: Option<String>) -> Option<(SourceCounts, bool)> {
        self.engine.with_core(move |core| {
            let Core {
                endpoint, serve, ..
            } = core;
            let sending = serve.transfer.as_mut()?;
            let doubt = match error {
                Some(error) => !sending.source.give_up(&error),
                None => false,
            };
            serve.transfer_pump(endpoint);
            let sending = serve.transfer.take()?;
            serve
                .shared
                .transfer_cancelled
                .store(false, Ordering::SeqCst);
            serve.held = doubt || sending.source.in_doubt();
            if let Some(channel) = sending.channel.filter(|_| !doubt) {
                endpoint.close(channel);
            }
            Some((sending.source.counts(), doubt))
        })?
    }
}

impl Sending {
    fn tell(&self, news: News) {
        match self.news.try_send(news) {
            // It has gone already.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// Sends what goes now; `false` if the channel is of no use any more.
    fn pump(&mut self, ops: &mut Ops, objects: &dyn crate::transfer::Objects) -> bool {
        let Some(channel) = self.channel else {
            return true;
        };
        let mut usable = true;
        let mut steps = 0;
        while usable {
            if steps == STEPS {
                if !std::mem::replace(&mut self.more, true) {
                    self.tell(News::More);
                }
                break;
            }
            steps += 1;
            match self.source.step(objects) {
                Step::Idle => break,
                Step::Again => {}
                Step::Send(out) => match self.send(ops, channel, out) {
                    Sent::Done => {}
                    Sent::Busy => break,
                    Sent::Failed => usable = false,
                },
            }
        }
        while let Some(notice) = self.source.notice() {
            self.tell(News::Notice(notice));
        }
        usable
    }

    fn send(&mut self, ops: &mut Ops, channel: ChannelId, out: Out) -> Sent {
        match out {
            Out::Word(word) => {
                let Ok(bytes) = word_encode(&word) else {
                    return Sent::Failed;
                };
                match ops.send(channel, AM_TRANSFER, 0, &WORD_HEADER, &[&bytes]) {
                    Ok(Posted::Done) => Sent::Done,
                    Ok(Posted::Busy) => {
                        self.source.put_back(Out::Word(word));
                        Sent::Busy
                    }
                    Err(error) => self.failed(&error),
                }
            }
            Out::Piece { entry, offset, buf } => {
                let (header, len) = (piece_header(offset), buf.len() as u64);
                match ops.send_buf(channel, AM_TRANSFER, entry, &header, buf, len) {
                    Ok(PostedBuf::Done(_)) => Sent::Done,
                    Ok(PostedBuf::Pending) => {
                        self.source.posted(len);
                        Sent::Done
                    }
                    Ok(PostedBuf::Busy(buf)) => {
                        self.source.put_back(Out::Piece { entry, offset, buf });
                        Sent::Busy
                    }
                    Err(error) => self.failed(&error),
                }
            }
        }
    }

    fn failed(&mut self, error: &praas_transport::SendError) -> Sent {
        self.source.lost(&error.to_string());
        Sent::Failed
    }
}

enum Sent {
    Done,
    Busy,
    Failed,
}

impl Serve {
    /// Whether a channel that was accepted is that of the host that is to be this process.
    pub(super) fn transfer_open(&mut self, channel: ChannelId, info: &ChannelInfo) -> bool {
        let name = &self.shared.identity.name;
        let Some(sending) = &mut self.transfer else {
            return false;
        };
        let meant = info.peer.name == *name && info.peer.incarnation == sending.offer.incarnation;
        if meant && sending.channel.is_none() {
            sending.channel = Some(channel);
        }
        meant
    }

    /// A word of that host; or of somebody who has no business with it.
    pub(super) fn transfer_word(
        &mut self,
        ops: &mut Ops,
        channel: ChannelId,
        header: &[u8],
        payload: &[u8],
    ) {
        let ours = |sending: &&mut Box<Sending>| sending.channel == Some(channel);
        let Some(sending) = self.transfer.as_mut().filter(ours) else {
            tracing::warn!("closed: a transfer that nobody has announced");
            self.caller_close(ops, channel);
            return;
        };
        let word = match shape(header) {
            Some(Shape::Word) => word_decode::<FromTarget>(payload).ok(),
            _ => None,
        };
        if !word.is_some_and(|word| sending.source.heard(&word)) {
            tracing::warn!("closed: a transfer's target that makes no sense");
            ops.close(channel);
            sending.channel = None;
            sending
                .source
                .lost("it made no sense, or did not know the token");
        }
        self.transfer_pump(ops);
    }

    /// A piece that went by rendezvous is there.
    pub(super) fn transfer_sent(&mut self, ops: &mut Ops, channel: ChannelId, bytes: u64) {
        if let Some(sending) = self.transfer.as_mut()
            && sending.channel == Some(channel)
        {
            sending.source.sent(bytes);
            self.transfer_pump(ops);
        }
    }

    pub(super) fn transfer_writable(&mut self, ops: &mut Ops, channel: ChannelId) {
        if let Some(sending) = &self.transfer
            && sending.channel == Some(channel)
        {
            self.transfer_pump(ops);
        }
    }

    pub(super) fn transfer_closed(&mut self, channel: ChannelId, reason: &CloseReason) {
        if let Some(sending) = self.transfer.as_mut()
            && sending.channel == Some(channel)
        {
            sending.channel = None;
            sending.source.lost(&reason.to_string());
            while let Some(notice) = sending.source.notice() {
                sending.tell(News::Notice(notice));
            }
        }
    }

    pub(super) fn transfer_pump(&mut self, ops: &mut Ops) {
        let Some(sending) = &mut self.transfer else {
            return;
        };
        sending.pump(ops, &self.shared.state);
    }
}
