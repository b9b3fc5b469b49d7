//! A process comes from another host: the receiving side, before there is any service.
//!
//! ```text
//!   Bound      listens where it will serve
//!     | pull      the source serves on, then is frozen; all is here
//!     | prepare   there is room for it, and it makes sense
//!   Prepared
//!     | serve     others have decided that this is the process
//!     v
//! ```

use std::sync::Arc;
use std::time::Duration;

use praas_transport::clock;
use praas_transport::{
    Address, Buf, BufPool, ChannelId, ChannelInfo, CloseReason, Dial, Disposition, Endpoint, Flow,
    Handler, Incarnation, Incoming, LargeMessage, Message, Ops, Posted, SendFailure, StatsPage,
};

use super::stepped::Meanwhile;
use super::{Process, ProcessConfig, Restore, StartError, endpoint_make};
use crate::swap::ProcessImage;
use crate::transfer::{
    AM_TRANSFER, FromSource, FromTarget, PullError, Shape, Target, TargetLimits, WORD_HEADER,
    shape, word_decode, word_encode,
};

/// How often whoever waits looks whether it still shall.
const LOOK: Duration = Duration::from_millis(50);

/// Where the process is that a new host is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullFrom {
    /// Where its host listens.
    pub addresses: Vec<Address>,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// What its host was told to expect.
    pub token: [u8; 16],
}

/// A process that listens where it will serve, and serves nobody yet.
pub struct Bound {
    pub(super) endpoint: Endpoint,
    pub(super) config: ProcessConfig,
    pub(super) vouched: Vec<u64>,
    /// Of a process that will have no threads.
    pub(super) stepped: Option<Meanwhile>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Bound {
    /// Where it listens.
    pub fn addresses(&self) -> &[Address] {
        self.endpoint.addresses()
    }

    /// Listens at the addresses of a process that is to be, which counts what it does in `page`.
    ///
    /// # Errors
    /// As [`Process::start`], but for those of an image.
    pub fn new(config: ProcessConfig, page: Arc<StatsPage>) -> Result<Self, StartError> {
        config.settings.check()?;
        let mut endpoint = endpoint_make(&config)?;
        endpoint.count_in(page);
        endpoint.listen_any(&config.listen)?;
        Ok(Self {
            endpoint,
            config,
            vouched: Vec::new(),
            stepped: None,
        })
    }

    /// The memory that the process will have.
    pub fn pool(&self) -> &BufPool {
        self.endpoint.pool()
    }

    /// Fetches the process from where it serves, until all of it is here and it is frozen there.
    /// Whether this is the process from now on, others decide.
    ///
    /// # Errors
    /// It serves on where it is.
    pub fn pull(
        &mut self,
        from: &PullFrom,
        mut cancelled: impl FnMut() -> bool,
    ) -> Result<ProcessImage, PullError> {
        let mut puller = self.puller(from)?;
        let wait = self.config.settings.wait;
        while !puller.is_over() {
            if cancelled() {
                puller.failed = Some(PullError::Cancelled);
                break;
            }
            let until = clock::now() + LOOK;
            self.endpoint.progress_wait(&mut puller, Some(until), wait);
        }
        self.pulled(puller, from)
    }

    /// Dials the source.
    pub(super) fn puller(&mut self, from: &PullFrom) -> Result<Puller, PullError> {
        let dial = Dial {
            credential: self.config.credential.clone(),
            expect: from.incarnation,
            deadline: None,
        };
        let channel = self
            .endpoint
            .connect_any(&from.addresses, self.config.transports, dial)
            .map_err(|error| PullError::Lost(error.to_string()))?;
        let pool = self.endpoint.pool().clone();
        let settings = &self.config.settings;
        let limits = TargetLimits {
            state_max_bytes: settings.state_max_bytes,
            mailbox_messages_max: settings.mailbox_messages_max,
            mailbox_max_bytes: settings.mailbox_max_bytes,
            files_max: settings.files_max,
            files_max_bytes: settings.files_max_bytes,
        };
        Ok(Puller {
            channel,
            begin: Some(FromTarget::Begin { token: from.token }),
            unsent: None,
            target: Target::new(pool, limits),
            failed: None,
        })
    }

    /// What was fetched, once it is over.
    pub(super) fn pulled(
        &mut self,
        puller: Puller,
        from: &PullFrom,
    ) -> Result<ProcessImage, PullError> {
        if let Some(error) = puller.failed {
            self.endpoint.close(puller.channel);
            return Err(error);
        }
        let identity = self.endpoint.identity();
        let (application, name) = (identity.application.clone(), identity.name.clone());
        self.vouched = puller.target.vouched().to_vec();
        puller.target.image(&application, &name, from.incarnation)
    }

    /// Makes the process of its image, all but its threads: whether there is room for it, in memory
    /// and on disk, and whether it makes sense, is known before anybody decides that this is it.
    ///
    /// # Errors
    /// It does not fit, or makes no sense.
    pub fn prepare(self, image: ProcessImage) -> Result<Prepared, StartError> {
        let restore = Some(Restore::from(image));
        let (endpoint, vouched) = (self.endpoint, self.vouched);
        let process = Process::start_on(endpoint, self.config, restore, self.stepped, vouched)?;
        Ok(Prepared(process))
    }
}

/// A process that is all here, and serves nobody yet.
#[derive(Debug)]
pub struct Prepared(pub(super) Process);

impl Prepared {
    /// Becomes the process: it serves when this returns.
    ///
    /// # Errors
    /// There are no threads.
    pub fn serve(self) -> Result<Process, StartError> {
        match self.0.is_stepped() {
            true => self.0.stack_make(),
            false => self.0.threads_start()?,
        }
        Ok(self.0)
    }
}

/// The receiving side while it is all that the endpoint is for.
#[derive(Debug)]
pub(super) struct Puller {
    channel: ChannelId,
    begin: Option<FromTarget>,
    /// A word that found no room.
    unsent: Option<FromTarget>,
    target: Target,
    failed: Option<PullError>,
}

impl Puller {
    /// Whether all is here, or nothing more will come.
    pub(super) fn is_over(&self) -> bool {
        self.failed.is_some() || (self.target.is_complete() && self.unsent.is_none())
    }

    fn take(&mut self, result: Result<(), PullError>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }

    fn say(&mut self, ops: &mut Ops, word: FromTarget) {
        let sent = word_encode(&word)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let sent = ops.send(self.channel, AM_TRANSFER, 0, &WORD_HEADER, &[&bytes]);
                sent.map_err(|error| error.to_string())
            });
        match sent {
            Ok(Posted::Done) => {}
            Ok(Posted::Busy) => self.unsent = Some(word),
            // That it has all needs not be heard by the source.
            Err(_) if self.target.is_complete() => {}
            Err(error) => self.take(Err(PullError::Lost(error))),
        }
    }

    fn answer(&mut self, ops: &mut Ops) {
        if self.unsent.is_none()
            && self.failed.is_none()
            && let Some(word) = self.target.says()
        {
            self.say(ops, word);
        }
    }

    fn piece(&mut self, ops: &mut Ops, number: u64, header: &[u8], bytes: Buf) {
        let taken = match shape(header) {
            Some(Shape::Piece { offset }) => self.target.piece(number, offset, bytes),
            _ => Err(PullError::Malformed("a message of unknown shape")),
        };
        self.take(taken);
        self.answer(ops);
    }
}

impl Handler for Puller {
    fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, _: &ChannelInfo) -> Flow {
        match self.begin.take_if(|_| channel == self.channel) {
            Some(begin) => {
                // It serves meanwhile.
                ops.peer_spare(channel);
                self.say(ops, begin);
            }
            // Nobody knows of us yet.
            None => ops.close(channel),
        }
        Flow::Continue
    }

    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        if channel != self.channel || message.am != AM_TRANSFER || self.failed.is_some() {
            return Flow::Continue;
        }
        if shape(message.header) == Some(Shape::Word) {
            let heard = match word_decode::<FromSource>(message.payload) {
                Ok(word) => self.target.heard(word),
                Err(_) => Err(PullError::Malformed("a word")),
            };
            self.take(heard);
            self.answer(ops);
            return Flow::Continue;
        }
        match ops.pool().copy_from(message.payload) {
            Ok(bytes) => self.piece(ops, message.tag, message.header, bytes),
            Err(error) => self.take(Err(error.into())),
        }
        Flow::Continue
    }

    fn on_incoming(
        &mut self,
        _: &mut Ops,
        channel: ChannelId,
        incoming: Incoming<'_>,
    ) -> Disposition {
        let room = match shape(incoming.header) {
            Some(Shape::Piece { offset })
                if channel == self.channel && incoming.am == AM_TRANSFER =>
            {
                self.target.piece_room(incoming.tag, offset, incoming.len)
            }
            _ => Err(PullError::Malformed("a large message of unknown shape")),
        };
        match room {
            Ok(buf) => Disposition::Accept(buf),
            Err(error) => {
                self.take(Err(error));
                Disposition::Refuse(0)
            }
        }
    }

    fn on_large(&mut self, ops: &mut Ops, channel: ChannelId, message: LargeMessage) -> Flow {
        if channel == self.channel {
            self.piece(ops, message.tag, &message.header, message.payload);
        }
        Flow::Continue
    }

    fn on_sent(
        &mut self,
        _: &mut Ops,
        _: ChannelId,
        _: u64,
        _: Buf,
        _: Result<(), SendFailure>,
    ) -> Flow {
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        if channel == self.channel
            && let Some(word) = self.unsent.take()
        {
            self.say(ops, word);
        }
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow {
        if channel == self.channel && !self.target.is_complete() {
            self.take(Err(PullError::Lost(reason.to_string())));
        }
        if channel == self.channel {
            self.unsent = None;
        }
        Flow::Continue
    }
}
