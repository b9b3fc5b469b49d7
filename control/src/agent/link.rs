//! The control plane's side of the agents' channels: an endpoint on a thread of its own.
//!
//! ```text
//!   agents == channels ==> [ link thread ] -- LinkEvent --> sink (the core's queue)
//!                          [             ] <-- commands --- LinkSender
//! ```

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use praas_transport::{
    Address, ChannelId, ChannelInfo, CloseReason, Disposition, Endpoint, Flow, Handler, Identity,
    Incarnation, Incoming, Keyring, LargeMessage, Listen, Message, Ops, Role, Secret,
    TransportConfig, TransportError, WaitMode, Waker,
};

use super::{AM_CLUSTER, CLUSTER_KEY_ID, FromAgent, Inbox, Outbox, ToAgent, encode};
use crate::api::CLUSTER_APPLICATION;

/// What happens on the agents' channels. Links are numbered, and no number is used again.
#[derive(Debug)]
pub enum LinkEvent {
    /// An agent says something.
    Said {
        /// Which link.
        link: u64,
        /// What.
        message: FromAgent,
    },
    /// An agent's channel has ended. Told once for each link that said something.
    Lost {
        /// Which link.
        link: u64,
    },
}

/// Why the link cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The endpoint cannot be made or cannot listen.
    #[error("cannot listen for agents")]
    Transport(#[from] TransportError),
    /// No thread could be started.
    #[error("cannot start the agents' thread")]
    Thread(#[source] io::Error),
}

enum Command {
    Send { link: u64, message: ToAgent },
    Drop { link: u64 },
    End,
}

/// Sends to agents, from any thread.
#[derive(Debug, Clone)]
pub struct LinkSender {
    commands: Sender<Command>,
    waker: Waker,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Send { .. } => "Send",
            Self::Drop { .. } => "Drop",
            Self::End => "End",
        })
    }
}

impl LinkSender {
    /// Queues a message for the agent on `link`; nothing happens if the link is gone.
    pub fn send(&self, link: u64, message: ToAgent) {
        self.command(Command::Send { link, message });
    }

    /// Closes a link. There is no [`LinkEvent::Lost`] for it.
    pub fn drop_link(&self, link: u64) {
        self.command(Command::Drop { link });
    }

    fn command(&self, command: Command) {
        // The thread is gone only after shutdown, when nobody is to be told anything.
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
    }
}

/// The listening side of the agents' protocol. Dropping it ends the thread and the channels.
#[derive(Debug)]
pub struct AgentLink {
    addresses: Vec<Address>,
    sender: LinkSender,
    thread: Option<JoinHandle<()>>,
}

impl AgentLink {
    /// Listens on shared memory and at `listen`, admits holders of `secret`, and hands what they
    /// say to `sink`, which may block.
    ///
    /// `queue_max_bytes` may wait for one agent; one that lets more gather is cut off.
    ///
    /// # Errors
    /// The endpoint cannot be made, cannot listen, or there is no thread for it.
    pub fn start(
        transport: TransportConfig,
        listen: SocketAddr,
        secret: &Secret,
        queue_max_bytes: usize,
        sink: impl FnMut(LinkEvent) + Send + 'static,
    ) -> Result<Self, LinkError> {
        let keyring = Keyring::new();
        keyring.insert(CLUSTER_APPLICATION, CLUSTER_KEY_ID, secret.clone());
        let identity = Identity {
            application: CLUSTER_APPLICATION.into(),
            name: "control".into(),
            incarnation: Incarnation(0),
            client_id: 0,
        };
        let mut endpoint = Endpoint::new(transport, identity, Some(Arc::new(keyring)))?;
        endpoint.listen(&Listen::Shm { name: None })?;
        endpoint.listen(&Listen::Tcp(listen))?;
        let addresses = endpoint.addresses().to_vec();
        let (commands, commanded) = channel();
        let sender = LinkSender {
            commands,
            waker: endpoint.waker(),
        };
        let links = Links {
            sink,
            queue_max_bytes,
            last: 0,
            by_channel: HashMap::new(),
            by_link: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("praas-agents".into())
            .spawn(move || run(endpoint, links, &commanded))
            .map_err(LinkError::Thread)?;
        Ok(Self {
            addresses,
            sender,
            thread: Some(thread),
        })
    }

    /// Where agents dial.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The way to send to agents.
    pub fn sender(&self) -> LinkSender {
        self.sender.clone()
    }
}

impl Drop for AgentLink {
    fn drop(&mut self) {
        self.sender.command(Command::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the agents' thread panicked");
        }
    }
}

fn run<S: FnMut(LinkEvent)>(
    mut endpoint: Endpoint,
    mut links: Links<S>,
    commands: &Receiver<Command>,
) {
    loop {
        while let Ok(command) = commands.try_recv() {
            match command {
                Command::Send { link, message } => links.send(&mut endpoint, link, &message),
                Command::Drop { link } => links.drop_link(&mut endpoint, link),
                Command::End => return,
            }
        }
        endpoint.progress_wait(&mut links, None, WaitMode::Warm);
    }
}

struct Link {
    number: u64,
    inbox: Inbox,
    outbox: Outbox,
    said: bool,
}

struct Links<S> {
    sink: S,
    queue_max_bytes: usize,
    last: u64,
    by_channel: HashMap<ChannelId, Link>,
    by_link: HashMap<u64, ChannelId>,
}

impl<S: FnMut(LinkEvent)> Links<S> {
    fn send(&mut self, ops: &mut Ops, number: u64, message: &ToAgent) {
        let Some(&channel) = self.by_link.get(&number) else {
            return;
        };
        let Some(link) = self.by_channel.get_mut(&channel) else {
            return;
        };
        match encode(message) {
            Ok(bytes) => link.outbox.push(bytes),
            Err(error) => {
                tracing::error!(%error, "cannot encode a message for an agent");
                return self.cut(ops, channel);
            }
        }
        if link.outbox.pump(ops, channel).is_err() {
            // The end of the channel is on its way to `on_close`.
            return;
        }
        if link.outbox.queued_bytes() > self.queue_max_bytes {
            tracing::warn!(
                "an agent does not read: more than {} bytes wait for it",
                self.queue_max_bytes
            );
            self.cut(ops, channel);
        }
    }

    fn drop_link(&mut self, ops: &mut Ops, number: u64) {
        if let Some(channel) = self.by_link.remove(&number) {
            self.by_channel.remove(&channel);
            ops.close(channel);
        }
    }

    /// Ends a channel from here, and says so.
    fn cut(&mut self, ops: &mut Ops, channel: ChannelId) {
        ops.close(channel);
        self.lost(channel);
    }

    fn lost(&mut self, channel: ChannelId) {
        if let Some(link) = self.by_channel.remove(&channel) {
            self.by_link.remove(&link.number);
            if link.said {
                (self.sink)(LinkEvent::Lost { link: link.number });
            }
        }
    }
}

impl<S: FnMut(LinkEvent)> Handler for Links<S> {
    fn on_open(&mut self, ops: &mut Ops, channel: ChannelId, info: &ChannelInfo) -> Flow {
        if info.peer.role != Some(Role::Agent) {
            tracing::warn!(role = ?info.peer.role, "refusing a peer that is no agent");
            ops.close(channel);
            return Flow::Continue;
        }
        self.last += 1;
        self.by_link.insert(self.last, channel);
        let link = Link {
            number: self.last,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            said: false,
        };
        self.by_channel.insert(channel, link);
        Flow::Continue
    }

    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        let Some(link) = self.by_channel.get_mut(&channel) else {
            return Flow::Continue;
        };
        if message.am != AM_CLUSTER {
            tracing::warn!(am = message.am, "an agent speaks another protocol");
            self.cut(ops, channel);
            return Flow::Continue;
        }
        match link.inbox.feed(message.tag, message.payload) {
            Ok(None) => {}
            Ok(Some(message)) => {
                link.said = true;
                let link = link.number;
                (self.sink)(LinkEvent::Said { link, message });
            }
            Err(error) => {
                tracing::warn!(%error, "an agent sends what is no message");
                self.cut(ops, channel);
            }
        }
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        // Messages come in pieces that fit; nothing is announced in good faith.
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_writable(&mut self, ops: &mut Ops, channel: ChannelId) -> Flow {
        if let Some(link) = self.by_channel.get_mut(&channel) {
            // An error here is the channel's end, of which `on_close` tells.
            let _ = link.outbox.pump(ops, channel);
        }
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, channel: ChannelId, reason: CloseReason) -> Flow {
        tracing::debug!(%reason, "an agent's channel has ended");
        self.lost(channel);
        Flow::Continue
    }
}
