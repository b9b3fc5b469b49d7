//! Sockets to hosts, which never block: a host that does not read holds up nobody.
//!
//! A host gets messages over the socket that was its standard input, or, after the end of an agent
//! that had started it, over one that it dialled itself, on `agent.sock` in the run directory.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use praas_runtime::host::{FromHost, HOST_MESSAGE_MAX_BYTES, HostReader};

/// Bytes that may wait for a host; of world views only the newest waits.
const QUEUE_MAX_BYTES: usize = 4 * HOST_MESSAGE_MAX_BYTES;

/// What a socket has to say.
#[derive(Debug)]
pub(super) enum Heard {
    Message(Box<FromHost>),
    /// Nothing more for now.
    Nothing,
    /// It is closed, or what comes over it is no message.
    Closed(Option<io::Error>),
}

/// A connection to a host.
#[derive(Debug)]
pub(super) struct HostSocket {
    stream: UnixStream,
    reader: HostReader,
    /// What waits, framed, and whether it is a world view; of the first a part may be sent.
    queue: VecDeque<(Arc<[u8]>, bool)>,
    sent: usize,
    queued_bytes: usize,
    /// Nothing can be sent any more; what the host has said can still be read.
    mute: bool,
}

impl HostSocket {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            reader: HostReader::default(),
            queue: VecDeque::new(),
            sent: 0,
            queued_bytes: 0,
            mute: false,
        })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn hear(&mut self) -> Heard {
        loop {
            return match self.reader.next(&self.stream) {
                Ok(Some(message)) => Heard::Message(Box::new(message)),
                Ok(None) => Heard::Closed(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Heard::Closed(Some(error)),
            };
        }
    }

    /// Queues a framed message, and sends what goes. A host that is ending does not hear it, nor
    /// one that does not read, which is cut off; either may have said something that is not read
    /// yet, after which comes the socket's end.
    pub(super) fn send(&mut self, frame: Arc<[u8]>, world: bool) {
        if self.mute {
            return;
        }
        if world {
            // An older view that waits untouched is of no use any more.
            let begun = usize::from(self.sent > 0);
            let stale = self.queue.iter().skip(begun).position(|(_, world)| *world);
            if let Some((old, _)) = stale.and_then(|at| self.queue.remove(begun + at)) {
                self.queued_bytes -= old.len();
            }
        }
        self.queued_bytes += frame.len();
        self.queue.push_back((frame, world));
        self.flush();
        if self.queued_bytes > QUEUE_MAX_BYTES {
            self.silence("it does not read what it is sent");
        }
    }

    /// Sends what goes now.
    pub(super) fn flush(&mut self) {
        if let Err(error) = self.flush_inner() {
            self.silence(&error.to_string());
        }
    }

    fn flush_inner(&mut self) -> io::Result<()> {
        while let Some((frame, _)) = self.queue.front() {
            match (&self.stream).write(frame.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.sent >= frame.len() {
                self.queued_bytes -= frame.len();
                self.sent = 0;
                self.queue.pop_front();
            }
        }
        Ok(())
    }

    fn silence(&mut self, why: &str) {
        tracing::debug!(why, "a host cannot be told any more");
        self.mute = true;
        self.queue.clear();
        self.queued_bytes = 0;
        // It may be shut down already.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Whether something waits to be sent.
    pub(super) fn waits(&self) -> bool {
        !self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use praas_runtime::host::{ToHost, host_frame, host_send};
    use praas_runtime::world::{Member, MemberState, World};
    use praas_transport::wire::Incarnation;

    use super::*;

    fn world(generation: u64) -> Arc<[u8]> {
        let member = Member {
            name: "x".repeat(200_000),
            incarnation: Incarnation(1),
            state: MemberState::Ready,
            addresses: Vec::new(),
        };
        let members = vec![member];
        let world = World {
            generation,
            members,
        };
        host_frame(&ToHost::World(world)).unwrap().into()
    }

    #[test]
    fn of_world_views_that_wait_only_the_newest_is_sent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut socket = HostSocket::new(ours).unwrap();
        for generation in 1..=100 {
            socket.send(world(generation), true);
        }
        let stop: Arc<[u8]> = host_frame(&ToHost::Stop).unwrap().into();
        socket.send(stop, false);
        assert!(socket.waits());
        let reader = std::thread::spawn(move || {
            let (mut reader, mut seen) = (HostReader::default(), Vec::new());
            while let Some(ToHost::World(world)) = reader.next(&theirs).unwrap() {
                seen.push(world.generation);
            }
            seen
        });
        while socket.waits() {
            socket.flush();
            std::thread::yield_now();
        }
        let seen = reader.join().unwrap();
        assert!(seen.len() < 10 && seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&100));
    }

    #[test]
    fn the_last_words_of_a_host_are_heard_whatever_it_is_told_meanwhile() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut socket = HostSocket::new(ours).unwrap();
        let error = String::from("last words");
        host_send(&theirs, &FromHost::SwapFailed { error }).unwrap();
        drop(theirs);
        for generation in 1..3 {
            socket.send(world(generation), true);
        }
        assert!(!socket.waits());
        assert!(matches!(socket.hear(), Heard::Message(_)));
        assert!(matches!(socket.hear(), Heard::Closed(_)));
    }
}
