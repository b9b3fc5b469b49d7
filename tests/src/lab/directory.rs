//! The lab's directory: what agents serve, over a fixed list.

use std::sync::Arc;
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use praas_runtime::codec;
use praas_runtime::directory::{DirectoryAnswer, DirectoryRequest};
use praas_runtime::invocation::AM_DIRECTORY;
use praas_transport::{
    Address, ChannelId, CloseReason, Disposition, Endpoint, Flow, Handler, Identity, Incarnation,
    Incoming, Keyring, LargeMessage, Listen, Message, Ops, Secret, TransportConfig, WaitMode,
    Waker,
};

use super::{APPLICATION, Known, lock};

/// A thread that answers where processes are. Dropping it ends it.
#[derive(Debug)]
pub(super) struct DirectoryServer {
    addresses: Vec<Address>,
    waker: Waker,
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DirectoryServer {
    pub fn start(secret: &Secret, key_id: u32, known: Known) -> Self {
        let ring = Keyring::new();
        ring.insert(APPLICATION, key_id, secret.clone());
        let identity = Identity {
            application: APPLICATION.into(),
            name: "_directory".into(),
            incarnation: Incarnation(0),
            client_id: 1,
        };
        let config = TransportConfig::default();
        let endpoint = Endpoint::new(config, identity, Some(Arc::new(ring)));
        let mut endpoint = endpoint.expect("an endpoint");
        let tcp = Listen::Tcp("127.0.0.1:0".parse().expect("an address"));
        for listen in [Listen::Shm { name: None }, tcp] {
            endpoint.listen(&listen).expect("the directory listens");
        }
        let (addresses, waker) = (endpoint.addresses().to_vec(), endpoint.waker());
        let (alive, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut handler = Answers { known };
            while ended.try_recv() == Err(TryRecvError::Empty) {
                endpoint.progress_wait(&mut handler, None, WaitMode::Warm);
            }
        });
        Self {
            addresses,
            waker,
            alive: Some(alive),
            thread: Some(thread),
        }
    }

    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }
}

impl Drop for DirectoryServer {
    fn drop(&mut self) {
        self.alive = None;
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // What it had to say about a panic it has said.
            let _ = thread.join();
        }
    }
}

struct Answers {
    known: Known,
}

impl Handler for Answers {
    fn on_message(&mut self, ops: &mut Ops, channel: ChannelId, message: Message<'_>) -> Flow {
        assert_eq!(message.am, AM_DIRECTORY);
        let request = codec::decode(message.payload).expect("a request");
        let DirectoryRequest::Resolve { process, .. } = request;
        let answer = match lock(&self.known).get(&process) {
            Some(resolved) => DirectoryAnswer::Resolved(resolved.clone()),
            None => DirectoryAnswer::Failed(format!("the lab has no process '{process}'")),
        };
        let bytes = codec::encode(&answer).expect("an answer");
        // A host that has gone needs none; so few never fill a channel.
        let _ = ops.send(channel, AM_DIRECTORY, message.tag, &[], &[&bytes]);
        Flow::Continue
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, _: CloseReason) -> Flow {
        Flow::Continue
    }
}
