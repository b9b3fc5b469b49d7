//! Sockets to agents: a thread reads each of them into the host's one queue of events.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use praas_runtime::host::{FromHost, HostReader, ToHost, host_send};
use praas_runtime::process::TransferStep;
use praas_runtime::transfer::SourceCounts;

use super::checkpoint::Checkpointed;
use super::transfer::Arrived;
use crate::unix_path::socket_connect;

/// How soon an agent is looked for again, at first.
pub(super) const REDIAL_FIRST: Duration = Duration::from_millis(10);
/// And at last.
pub(super) const REDIAL_MAX: Duration = Duration::from_millis(500);

/// How long an agent may leave its socket full before it counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// What happens to a host.
pub(super) enum Event {
    /// The agent on the link of this number says something.
    Message(u64, Box<ToHost>),
    /// It is gone, or makes no sense.
    Lost(u64),
    /// SIGTERM.
    Terminate,
    /// A checkpoint is taken, or is none; and what was counted before it.
    Checkpointed(Box<Checkpointed>),
    /// A checkpoint is taken that nobody asked for.
    Unasked(Box<FromHost>),
    /// The process that was to be fetched is here, or is not to be had.
    Arrived(Box<Arrived>),
    /// A transfer of our process goes on.
    Sending(TransferStep),
    /// Another host has all of it and it is frozen, or it serves on, and why.
    Sent(Result<SourceCounts, String>),
}

/// Makes links.
pub(super) struct Links {
    events: Sender<Event>,
    next: u64,
}

/// A socket to an agent. Dropping it ends it.
pub(super) struct Link {
    number: u64,
    socket: UnixStream,
}

impl Links {
    pub fn new(events: Sender<Event>) -> Self {
        Self { events, next: 0 }
    }

    /// Reads a socket from now on.
    pub fn open(&mut self, socket: UnixStream, reader: HostReader) -> io::Result<Link> {
        let number = self.next;
        self.next += 1;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let read = socket.try_clone()?;
        let events = self.events.clone();
        std::thread::Builder::new()
            .name("agent".into())
            .spawn(move || link_read(number, &read, reader, &events))?;
        Ok(Link { number, socket })
    }

    /// Connects to the socket of an agent, without ever waiting for it.
    pub fn dial(&mut self, path: &str) -> io::Result<Link> {
        self.open(socket_connect(Path::new(path))?, HostReader::default())
    }
}

impl Link {
    /// Tells this link's events from others'.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Says something to the agent; whether that went well. If not, the link is ended, which its
    /// reader will notice.
    pub fn send(&self, message: &FromHost) -> bool {
        let sent = host_send(&self.socket, message);
        if let Err(error) = &sent {
            tracing::warn!(%error, "cannot tell the agent");
            // It may have ended already.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
        sent.is_ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The reader's copy would keep it open; it may have ended already.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

fn link_read(number: u64, socket: &UnixStream, mut reader: HostReader, events: &Sender<Event>) {
    loop {
        let event = match reader.next::<ToHost>(socket) {
            Ok(Some(message)) => Event::Message(number, Box::new(message)),
            Ok(None) => Event::Lost(number),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::warn!(%error, "the agent's socket has failed");
                Event::Lost(number)
            }
        };
        let last = matches!(event, Event::Lost(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_deep_in_the_file_system_is_dialled() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("x".repeat(200));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("agent.sock");
        let (events, heard) = std::sync::mpsc::channel();
        let mut links = Links::new(events);
        let text = path.to_str().unwrap();
        assert!(links.dial(text).is_err());
        let listener = crate::unix_path::socket_bind(&path).unwrap();
        let link = links.dial(text).unwrap();
        drop(listener.accept().unwrap());
        let event = heard.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(matches!(event, Event::Lost(number) if number == link.number()));
    }
}
