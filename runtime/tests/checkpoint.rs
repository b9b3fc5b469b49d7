//! Checkpoints of a process that serves on, and what a crash goes back to.

mod alone;

use std::path::Path;
use std::time::{Duration, Instant};

use alone::Keys;
use praas_runtime::client::{CallOptions, Client};
use praas_runtime::invocation::{AM_INVOCATION, Kind, RequestHeader, Status, short_header_read};
use praas_runtime::prelude::*;
use praas_runtime::process::{Process, QuiesceError};
use praas_runtime::swap::{DirStorage, ImageKind, ProcessImage, SwapConfig, swap_in};
use praas_transport::{
    BufPool, ChannelId, ChannelInfo, CloseReason, Dial, Disposition, Endpoint, Flow, Handler,
    Identity, Incarnation, Incoming, LargeMessage, Message, Ops, Posted, Role, TransportConfig,
    WaitMode,
};

/// Counts its calls.
fn count(context: &Context, key: &str) -> Result<u64, FunctionError> {
    loop {
        let view = context.state_view(key)?;
        let (version, count) = match &view {
            None => (0, 0),
            Some(view) => (view.version(), number(view)),
        };
        let next: u64 = count + 1;
        if context
            .state_compare_swap(key, version, &next.to_le_bytes())?
            .is_ok()
        {
            return Ok(next);
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

#[praas_runtime::function]
fn counts(context: &Context) -> Result<u64, FunctionError> {
    count(context, "count")
}

#[praas_runtime::function(idempotent)]
fn counts_again(context: &Context) -> Result<u64, FunctionError> {
    count(context, "count")
}

/// Leaves an effect, waits for a message, and leaves another one.
#[praas_runtime::function]
fn waits(context: &Context) -> Result<(), FunctionError> {
    context.state_put("first", b"")?;
    context.message_get(None, "go", None)?;
    context.state_put("second", b"")?;
    Ok(())
}

/// Takes a message, counts it, and puts another one.
#[praas_runtime::function]
fn moves(context: &Context) -> Result<(), FunctionError> {
    context.message_get(None, "ball", None)?;
    count(context, "moves")?;
    context.message_put(context.process(), "ball", b"")?;
    Ok(())
}

praas_runtime::module!(static "tests", [counts, counts_again, waits, moves]);

/// A client that says itself which invocation it means, and whether it has sent it before.
struct Caller {
    endpoint: Endpoint,
    side: Side,
}

#[derive(Default)]
struct Side {
    channel: Option<ChannelId>,
    answer: Option<(u64, Status, Vec<u8>)>,
}

impl Handler for Side {
    fn on_open(&mut self, _: &mut Ops, channel: ChannelId, _: &ChannelInfo) -> Flow {
        self.channel = Some(channel);
        Flow::Continue
    }

    fn on_message(&mut self, _: &mut Ops, _: ChannelId, message: Message<'_>) -> Flow {
        let (status, _) = short_header_read(message.header).unwrap();
        let status = Status::from_code(status).unwrap();
        self.answer = Some((message.tag, status, message.payload.to_vec()));
        Flow::Stop
    }

    fn on_incoming(&mut self, _: &mut Ops, _: ChannelId, _: Incoming<'_>) -> Disposition {
        Disposition::Refuse(0)
    }

    fn on_large(&mut self, _: &mut Ops, _: ChannelId, _: LargeMessage) -> Flow {
        Flow::Continue
    }

    fn on_close(&mut self, _: &mut Ops, _: ChannelId, reason: CloseReason) -> Flow {
        panic!("the channel ended: {reason}");
    }
}

const FUNCTIONS: [&str; 3] = ["counts", "counts_again", "waits"];

impl Caller {
    /// Always the same client.
    fn new(keys: &Keys, process: &Process) -> Self {
        let identity = Identity {
            application: "app".into(),
            name: "".into(),
            incarnation: Incarnation(0),
            client_id: 77,
        };
        let mut endpoint = Endpoint::new(TransportConfig::default(), identity, None).unwrap();
        let dial = Dial {
            credential: keys.credential(Role::Client, 77),
            expect: Incarnation(0),
            deadline: None,
        };
        endpoint.connect(&process.addresses()[0], dial).unwrap();
        let side = Side::default();
        let mut caller = Self { endpoint, side };
        caller.wait(|side| side.channel.is_some());
        for (number, name) in FUNCTIONS.iter().enumerate() {
            caller.send(number as u64, &[Kind::Intern as u8], name.as_bytes());
        }
        caller
    }

    fn wait(&mut self, done: impl Fn(&Side) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(&self.side) {
            assert!(Instant::now() < until, "no answer");
            self.endpoint
                .progress_wait(&mut self.side, Some(until), WaitMode::Warm);
        }
    }

    fn send(&mut self, tag: u64, header: &[u8], payload: &[u8]) {
        let channel = self.side.channel.unwrap();
        let sent = self
            .endpoint
            .send(channel, AM_INVOCATION, tag, header, &[payload]);
        assert_eq!(sent, Ok(Posted::Done));
    }

    fn submit(&mut self, sequence: u64, function: &str, first: Option<u64>) {
        let function = FUNCTIONS.iter().position(|name| *name == function);
        let header = RequestHeader {
            function: function.unwrap() as u32,
            deadline_us: 0,
            acked_delta: sequence as u32,
            one_way: false,
            first: first.map(Incarnation),
        };
        let (header, len) = header.encode();
        self.side.answer = None;
        self.send(sequence, &header[..len], b"");
    }

    fn invoke(&mut self, sequence: u64, function: &str, first: Option<u64>) -> (Status, u64) {
        self.submit(sequence, function, first);
        self.wait(|side| matches!(side.answer, Some((tag, ..)) if tag == sequence));
        let (_, status, output) = self.side.answer.take().unwrap();
        let value = praas_runtime::codec::decode(&output).unwrap_or_default();
        (status, value)
    }
}

fn image(folder: &Path) -> ProcessImage {
    let storage = DirStorage::new(folder).unwrap();
    let loaded = swap_in(&storage, &BufPool::new(1 << 24), "app", "p");
    let loaded = loaded.unwrap().unwrap();
    assert_eq!(loaded.rejected, []);
    loaded.image
}

fn object(image: &ProcessImage, key: &str) -> Option<u64> {
    let mut state = image.state.iter();
    state
        .find(|(name, ..)| name == key)
        .map(|(_, buf, _)| number(buf))
}

#[test]
fn a_crash_goes_back_to_the_checkpoint_and_runs_nothing_twice() {
    let (keys, folder) = (Keys::new(), tempfile::tempdir().unwrap());
    let storage = DirStorage::new(folder.path()).unwrap();
    let config = SwapConfig::default();
    let process = keys.start(1, module(), None);
    let mut client = keys.client(&process);
    let mut caller = Caller::new(&keys, &process);
    assert_eq!(caller.invoke(0, "counts", None), (Status::Ok, 1));
    caller.submit(1, "waits", None);
    object_wait(&mut client, "first");
    let options = CallOptions::default();
    client.message_put("p", "box", b"kept", options).unwrap();
    assert_eq!(process.checkpoint(&storage, &config).unwrap().generation, 1);
    // It serves on.
    assert_eq!(caller.invoke(2, "counts", None), (Status::Ok, 2));
    assert_eq!(caller.invoke(3, "counts_again", None), (Status::Ok, 3));
    client.message_put("p", "box", b"lost", options).unwrap();
    client.message_put("p", "go", b"", options).unwrap();
    object_wait(&mut client, "second");
    drop((process, client, caller));

    let checkpoint = image(folder.path());
    assert_eq!(checkpoint.kind, ImageKind::Checkpoint);
    assert_eq!(object(&checkpoint, "count"), Some(1));
    assert!(object(&checkpoint, "first").is_some() && object(&checkpoint, "second").is_none());
    let messages = &checkpoint.mailbox.messages;
    assert!(matches!(&messages[..], [message] if &*message.payload == b"kept"));
    let process = keys.start(2, module(), Some(checkpoint.into()));
    let mut caller = Caller::new(&keys, &process);
    let mut retry = |sequence, function| caller.invoke(sequence, function, Some(1));
    assert_eq!(retry(0, "counts"), (Status::Ok, 1));
    assert_eq!(retry(1, "waits"), (Status::OutcomeUnknown, 0));
    assert_eq!(retry(2, "counts"), (Status::OutcomeUnknown, 0));
    assert_eq!(retry(3, "counts_again"), (Status::Ok, 2));
    assert_eq!(retry(4, "counts"), (Status::OutcomeUnknown, 0));
    // It is new, and no retry.
    assert_eq!(caller.invoke(5, "counts", None), (Status::Ok, 3));

    // Swapped out, it ended there, and what it does not know of never ran.
    let second = process.checkpoint(&storage, &config).unwrap();
    assert_eq!(second.generation, 2);
    // Nothing happened since but this.
    let third = process.checkpoint(&storage, &config).unwrap();
    assert_eq!((third.generation, third.chunks_written), (3, 0));
    assert!(
        third.bytes_reused > 0 && third.bytes < second.bytes,
        "{third:?}"
    );
    assert_eq!(process.swap_out(&storage, &config).unwrap().generation, 4);
    let ended = process.checkpoint(&storage, &config);
    assert!(matches!(ended, Err(QuiesceError::Ended)), "{ended:?}");
    drop((process, caller));
    let last = image(folder.path());
    assert_eq!(last.kind, ImageKind::Final);
    let process = keys.start(3, module(), Some(last.into()));
    let mut caller = Caller::new(&keys, &process);
    assert_eq!(caller.invoke(5, "counts", Some(2)), (Status::Ok, 3));
    assert_eq!(caller.invoke(6, "counts", Some(2)), (Status::Ok, 4));
}

/// Waits until an object is there.
fn object_wait(client: &mut Client, key: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    while client
        .invoke("p", "praas.state.get", key.as_bytes())
        .is_err()
    {
        assert!(Instant::now() < until, "the function does not get there");
    }
}

#[test]
fn results_in_a_checkpoint_imply_their_effects() {
    const BALLS: usize = 4;
    const WORKERS: u64 = 2;
    const CALLS: u64 = 8;
    let (keys, folder) = (Keys::new(), tempfile::tempdir().unwrap());
    let storage = DirStorage::new(folder.path()).unwrap();
    let process = keys.start(1, module(), None);
    let mut client = keys.client(&process);
    for _ in 0..BALLS {
        let options = CallOptions::default();
        client.message_put("p", "ball", b"", options).unwrap();
    }
    let moves = client.function("p", "moves").unwrap();
    let mut checkpoints = 0;
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let mut images = Vec::new();
            while images.len() < 30 {
                process
                    .checkpoint(&storage, &SwapConfig::default())
                    .unwrap();
                images.push(image(folder.path()));
            }
            images
        });
        while !taking.is_finished() {
            let calls: Vec<_> = (0..CALLS)
                .map(|_| client.submit(moves, b"", CallOptions::default()).unwrap())
                .collect();
            for call in calls {
                client.wait(call).unwrap();
            }
        }
        for image in taking.join().unwrap() {
            let [session] = &image.sessions[..] else {
                panic!("{:?}", image.sessions)
            };
            let done = session.results.iter().filter(|result| result.is_some());
            let (done, moved) = (
                session.base + done.count() as u64,
                object(&image, "moves").unwrap_or(0),
            );
            // Functions that ran at that moment may have moved, and have no result; so may those
            // that had ended, and whose results were on their way to the owner.
            assert!((done..=done + CALLS).contains(&moved), "{done} {moved}");
            let balls = image.mailbox.messages.len() as u64;
            assert!((BALLS as u64 - WORKERS..=BALLS as u64).contains(&balls));
            checkpoints += 1;
        }
    });
    assert_eq!(checkpoints, 30);
}
