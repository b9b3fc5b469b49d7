//! What both sides of a measurement tell each other before it: lines of JSON over a socket.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use praas_runtime::directory::Resolved;
use praas_transport::{Address, RemoteKey, TransportConfig, TransportKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde::{Deserialize, Serialize};

use super::{Bench, BenchError, Machine};

/// How long one side waits for a line of the other.
pub(super) const LINE_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the longest line.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// What the peer needs to know: the first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) bench: Bench,
    pub(super) transport: TransportKind,
    pub(super) bytes_max: usize,
    pub(super) cpu: Option<usize>,
    pub(super) config: TransportConfig,
    /// The secret of the session, if the two do not share it already.
    pub(super) key: Option<[u8; 32]>,
}

/// Where a bare socket listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum RawAddress {
    Tcp(SocketAddr),
    /// An abstract name.
    Unix(String),
}

/// Where the peer listens.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) process: Resolved,
    pub(super) channel: Address,
    pub(super) raw: RawAddress,
    /// The region for one-sided operations.
    pub(super) region: Option<RemoteKey>,
    pub(super) machine: Machine,
}

/// The peer's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer<T> {
    Yes(T),
    /// Why not.
    No(String),
}

/// One end of the socket.
pub(super) struct Control {
    lines: BufReader<File>,
}

impl Control {
    pub(super) fn new(socket: OwnedFd) -> Self {
        let lines = BufReader::new(File::from(socket));
        Self { lines }
    }

    /// From now on reading a line takes only so long.
    pub(super) fn patience_set(&self, patience: Duration) -> Result<(), BenchError> {
        let socket = self.lines.get_ref();
        set_socket_timeout(socket, Timeout::Recv, Some(patience))
            .map_err(|error| BenchError::system("set up a socket")(error.into()))
    }

    /// Reads one line of JSON.
    pub(super) fn read<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T, BenchError> {
        let mut line = String::new();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_line(&mut line);
        match read {
            Ok(0) => Err(BenchError::Peer("has ended".into())),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| BenchError::Peer(format!("makes no sense: {error}"))),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::WouldBlock => BenchError::Peer("does not answer".into()),
                io::ErrorKind::ConnectionReset => BenchError::Peer("has ended".into()),
                _ => BenchError::system("read from the other process")(error),
            }),
        }
    }

    /// Reads an answer; a no is an error.
    pub(super) fn answer<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T, BenchError> {
        match self.read()? {
            Answer::Yes(value) => Ok(value),
            Answer::No(why) => Err(BenchError::Peer(format!("cannot measure: {why}"))),
        }
    }

    /// Writes one line of JSON.
    pub(super) fn write<T: Serialize>(&mut self, value: &T) -> Result<(), BenchError> {
        let line = serde_json::to_string(value).map_err(io::Error::from);
        line.and_then(|line| {
            self.lines
                .get_mut()
                .write_all(format!("{line}\n").as_bytes())
        })
        .map_err(BenchError::system("write to the other process"))
    }

    /// Waits for the other side to hang up.
    pub(super) fn end_wait(&mut self) {
        // Whatever comes, and any error, is the end.
        let _ = self.lines.read_line(&mut String::new());
    }

    /// Hangs up.
    pub(super) fn end(&self) {
        // A socket that is not connected any more has hung up already.
        let _ = rustix::net::shutdown(self.lines.get_ref(), rustix::net::Shutdown::Both);
    }

    /// Looks after the other side while both are busy elsewhere.
    pub(super) fn watch(&self) -> Result<Watch, BenchError> {
        let socket = self.lines.get_ref().as_fd().try_clone_to_owned();
        let socket = socket.map_err(BenchError::system("share a socket"))?;
        Ok(Watch(Arc::new(socket)))
    }
}

/// Tells whether the other side is there, when it does not answer for long.
#[derive(Clone)]
pub(super) struct Watch(Arc<OwnedFd>);

impl Watch {
    pub(super) fn look(&self) -> Result<(), BenchError> {
        let mut sockets = [PollFd::new(&*self.0, PollFlags::RDHUP)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut sockets, Some(&now)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            Ok(_) => Err(BenchError::Peer("has ended".into())),
            Err(error) => Err(BenchError::system("look after the other process")(
                error.into(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_arrive_and_the_end_is_noticed() {
        let (one, two) = UnixStream::pair().unwrap();
        let (mut one, mut two) = (Control::new(one.into()), Control::new(two.into()));
        let watch = two.watch().unwrap();
        one.write(&Answer::Yes(5)).unwrap();
        one.write(&Answer::<u32>::No("no reason".into())).unwrap();
        assert_eq!(two.answer::<u32>().unwrap(), 5);
        let error = two.answer::<u32>().unwrap_err().to_string();
        assert_eq!(error, "the peer process cannot measure: no reason");
        assert!(watch.look().is_ok());
        drop(one);
        assert!(watch.look().is_err());
        let error = two.read::<u32>().unwrap_err().to_string();
        assert_eq!(error, "the peer process has ended");
    }

    #[test]
    fn a_line_without_end_is_not_read() {
        let (one, two) = UnixStream::pair().unwrap();
        let mut two = Control::new(two.into());
        std::thread::spawn(move || {
            let mut one = one;
            // The reader hangs up in the middle.
            let _ = one.write_all(&vec![b'1'; 1 << 20]);
        });
        let error = two.read::<String>().unwrap_err().to_string();
        assert!(error.contains("makes no sense"), "{error}");
    }
}
